//! How often what is told. Pure: the time is an argument.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Blocked;

/// Between two reports of the same.
const AGAIN: Duration = Duration::from_secs(10);
/// Reports of all kinds in [`WINDOW`].
const MOST: u32 = 10;
const WINDOW: Duration = Duration::from_secs(5);
/// Destinations and senders that are remembered.
const KEYS: usize = 256;

/// What makes two packets the same to a reader.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    destination: Option<IpAddr>,
    protocol: String,
    port: Option<u16>,
    uid: Option<u32>,
}

impl Key {
    /// Of a packet.
    pub fn of(blocked: &Blocked) -> Self {
        Key {
            destination: blocked.destination,
            protocol: blocked.protocol.clone(),
            port: blocked.port,
            uid: blocked.uid,
        }
    }
}

/// Tells the same once, then counts it; and never tells more than a few a second.
#[derive(Debug, Default)]
pub struct Limiter {
    seen: BTreeMap<Key, Seen>,
    window: Option<Instant>,
    told: u32,
}

#[derive(Debug)]
struct Seen {
    last: Instant,
    told: Option<Instant>,
    suppressed: u64,
}

impl Limiter {
    /// Whether to tell, and how many such packets were not told since the last time.
    pub fn admit(&mut self, key: Key, now: Instant) -> Option<u64> {
        if self.seen.len() >= KEYS && !self.seen.contains_key(&key) {
            self.forget_oldest();
        }
        let room = self.has_room(now);
        let seen = self.seen.entry(key).or_insert(Seen { last: now, told: None, suppressed: 0 });
        seen.last = now;
        let is_due = seen.told.is_none_or(|told| now.saturating_duration_since(told) >= AGAIN);
        if !(room && is_due) {
            seen.suppressed += 1;
            return None;
        }
        seen.told = Some(now);
        self.told += 1;
        Some(std::mem::take(&mut seen.suppressed))
    }

    fn has_room(&mut self, now: Instant) -> bool {
        if self.window.is_none_or(|begin| now.saturating_duration_since(begin) >= WINDOW) {
            (self.window, self.told) = (Some(now), 0);
        }
        self.told < MOST
    }

    fn forget_oldest(&mut self) {
        let oldest = self.seen.iter().min_by_key(|(_, seen)| seen.last);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.seen.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Key {
        let destination = Some(std::net::Ipv4Addr::from(number).into());
        Key { destination, protocol: "udp".into(), port: Some(53), uid: Some(1000) }
    }

    #[test]
    fn the_same_is_told_once_then_counted() {
        let (mut limiter, begin) = (Limiter::default(), Instant::now());
        assert_eq!(limiter.admit(key(1), begin), Some(0));
        for step in 1..100 {
            assert_eq!(limiter.admit(key(1), begin + AGAIN * step / 100), None);
        }
        assert_eq!(limiter.admit(key(1), begin + AGAIN), Some(99));
        assert_eq!(limiter.admit(key(1), begin + AGAIN * 2), Some(0));
    }

    #[test]
    fn another_sender_is_not_the_same() {
        let (mut limiter, begin) = (Limiter::default(), Instant::now());
        assert_eq!(limiter.admit(key(1), begin), Some(0));
        assert_eq!(limiter.admit(Key { uid: Some(0), ..key(1) }, begin), Some(0));
        assert_eq!(limiter.admit(Key { port: Some(54), ..key(1) }, begin), Some(0));
    }

    #[test]
    fn a_scan_is_told_a_little_at_a_time() {
        let (mut limiter, begin) = (Limiter::default(), Instant::now());
        let admitted = |limiter: &mut Limiter, now| {
            (0..100).filter(|&number| limiter.admit(key(number), now).is_some()).count()
        };
        assert_eq!(admitted(&mut limiter, begin), MOST as usize);
        assert_eq!(admitted(&mut limiter, begin + WINDOW / 2), 0);
        assert_eq!(admitted(&mut limiter, begin + WINDOW), MOST as usize);
        // What had to wait says how much it was.
        assert_eq!(limiter.admit(key(50), begin + WINDOW * 2), Some(3));
    }

    #[test]
    fn memory_is_bounded_and_keeps_the_latest() {
        let (mut limiter, begin) = (Limiter::default(), Instant::now());
        for number in 0..10_000 {
            limiter.admit(key(number), begin + Duration::from_millis(number.into()));
        }
        assert_eq!(limiter.seen.len(), KEYS);
        assert!(limiter.seen.contains_key(&key(9_999)) && !limiter.seen.contains_key(&key(1)));
    }

    #[test]
    fn a_clock_that_stands_still_tells_little() {
        let (mut limiter, begin) = (Limiter::default(), Instant::now());
        let told = (0..10_000).filter(|it| limiter.admit(key(it % 1000), begin).is_some());
        assert_eq!(told.count(), MOST as usize);
    }
}
