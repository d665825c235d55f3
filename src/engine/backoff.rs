//! How long to wait before trying again.

use std::time::Duration;

use crate::dice::Dice;

/// First and longest rest between two rounds over all candidates.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// `first`, doubled `times` times, at most `most`.
pub(super) fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << times.min(20)).min(most)
}

/// The rest after a round (counted from 0) in which no candidate answered. Jitter of a quarter up
/// and down keeps the clients of a server that returns from coming all at once.
pub(super) fn rest(round: u32, dice: &mut Dice) -> Duration {
    let middle = doubled(REST.0, round, REST.1);
    dice.between(middle * 3 / 4, middle * 5 / 4).clamp(REST.0, REST.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_most() {
        let times = |n| doubled(Duration::from_millis(100), n, Duration::from_secs(10));
        assert_eq!(times(0), Duration::from_millis(100));
        assert_eq!(times(3), Duration::from_millis(800));
        assert_eq!(times(7), Duration::from_secs(10));
        assert_eq!(times(u32::MAX), Duration::from_secs(10));
    }

    #[test]
    fn rests_stay_within_their_bounds_and_differ() {
        let mut dice = Dice::new(1);
        for round in 0..100 {
            let rest = rest(round, &mut dice);
            assert!(rest >= REST.0 && rest <= REST.1, "round {round}: {rest:?}");
        }
        let late: Vec<_> = (0..10).map(|_| rest(10, &mut dice)).collect();
        assert!(late.iter().any(|one| *one != late[0]), "no jitter: {late:?}");
        assert!(late.iter().all(|one| *one > REST.1 / 2), "no back-off: {late:?}");
    }
}
