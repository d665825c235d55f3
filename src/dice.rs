//! Random choices that a seed repeats: for jitter, and for what tests try.

use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014). Not for
/// secrets.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Always the same choices for the same seed.
    pub fn new(seed: u64) -> Self {
        Dice(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..limit`.
    ///
    /// # Panics
    /// If there is none.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit as u64) as usize
    }

    /// True once in so many times.
    ///
    /// # Panics
    /// If that is never.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of them.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    /// Each with a chance of a half; now and then none at all.
    pub fn some<T: Clone, C: FromIterator<T>>(&mut self, list: &[T]) -> C {
        if self.once_in(3) {
            return C::from_iter(std::iter::empty());
        }
        list.iter().filter(|_| self.once_in(2)).cloned().collect()
    }

    /// From `least` to `most`, in whole microseconds above `least`.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = most.saturating_sub(least).as_micros() as u64;
        least + Duration::from_micros(self.number() % (span + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_numbers_for_ever() {
        // Of the reference implementation (Vigna, splitmix64.c).
        let mut dice = Dice::new(0);
        assert_eq!(dice.number(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(dice.number(), 0x6e78_9e6a_a1b9_65f4);
    }
}
