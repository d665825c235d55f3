use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// Ages of handshakes, told right although WireGuard dates them by the wall clock.
#[derive(Debug, Default)]
pub(super) struct HandshakeClock {
    /// What WireGuard said, and when by the boot clock it was.
    last: Mutex<Option<(SystemTime, Duration)>>,
}

impl HandshakeClock {
    /// The age of a handshake at the wall clock's `at`.
    pub(super) fn age(&self, at: SystemTime) -> Option<Duration> {
        self.age_at(at, SystemTime::now(), boot_time()?)
    }

    /// The wall clock is asked only once for each handshake: it may be set meanwhile.
    fn age_at(&self, at: SystemTime, wall: SystemTime, boot: Duration) -> Option<Duration> {
        /// A userspace WireGuard may compute `at` anew from an age, each time a little different.
        const SAME: Duration = Duration::from_secs(1);
        if at == SystemTime::UNIX_EPOCH {
            return None;
        }
        let mut last = self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let happened = match *last {
            Some((known, happened)) if distance(known, at) < SAME => happened,
            // In the future: the clock was set back since. It may be old or new, so silence, not
            // age, must tell.
            _ => boot.saturating_sub(wall.duration_since(at).unwrap_or_default()),
        };
        *last = Some((at, happened));
        Some(boot.saturating_sub(happened))
    }
}

fn distance(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other).unwrap_or_else(|error| error.duration())
}

fn boot_time() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_BOOTTIME).ok().map(Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const YEAR: Duration = Duration::from_secs(365 * 86400);

    fn wall() -> SystemTime {
        SystemTime::UNIX_EPOCH + 50 * YEAR
    }

    #[test]
    fn an_age_grows_with_the_boot_clock_whatever_the_wall_clock_does() {
        let clock = HandshakeClock::default();
        let (at, boot) = (wall() - 5 * SECOND, 1000 * SECOND);
        assert_eq!(clock.age_at(at, wall(), boot), Some(5 * SECOND));
        assert_eq!(clock.age_at(at, wall() - YEAR, boot + SECOND), Some(6 * SECOND));
        assert_eq!(clock.age_at(at, wall() + YEAR, boot + 2 * SECOND), Some(7 * SECOND));
        // The next handshake, under the new clock.
        let at = wall() + YEAR;
        assert_eq!(clock.age_at(at, at + SECOND, boot + 9 * SECOND), Some(SECOND));
    }

    #[test]
    fn no_handshake_has_no_age_and_one_of_the_future_is_young() {
        let clock = HandshakeClock::default();
        assert_eq!(clock.age_at(SystemTime::UNIX_EPOCH, wall(), SECOND), None);
        assert_eq!(clock.age_at(wall() + YEAR, wall(), SECOND), Some(Duration::ZERO));
    }

    #[test]
    fn a_time_told_a_little_differently_is_the_same_handshake() {
        let clock = HandshakeClock::default();
        let (at, boot) = (wall() - 5 * SECOND, 1000 * SECOND);
        assert_eq!(clock.age_at(at, wall(), boot), Some(5 * SECOND));
        let again = at + Duration::from_millis(3);
        assert_eq!(clock.age_at(again, wall() + YEAR, boot + SECOND), Some(6 * SECOND));
    }
}
