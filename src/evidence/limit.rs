//! How many entries of a kind are taken: what anybody may cause as often as they like must not rotate
//! away what only an administrator can.

use std::collections::BTreeMap;
use std::time::Duration;

use super::What;

/// Of each kind within [`SPAN`].
const MOST: u32 = 200;
const SPAN: Duration = Duration::from_secs(3600);

/// Counts entries; time is an argument.
#[derive(Debug, Default)]
pub(super) struct Limit {
    begin: Duration,
    taken: BTreeMap<std::mem::Discriminant<What>, u32>,
    left_out: u64,
}

impl Limit {
    /// Whether this one is taken, and how many were left out before it in an hour that is over.
    pub(super) fn take(&mut self, what: &What, now: Duration) -> (bool, Option<u64>) {
        let mut told = None;
        if now.saturating_sub(self.begin) >= SPAN {
            told = (self.left_out > 0).then_some(self.left_out);
            *self = Limit { begin: now, ..Limit::default() };
        }
        if is_administrators(what) {
            return (true, told);
        }
        let taken = self.taken.entry(std::mem::discriminant(what)).or_default();
        *taken += 1;
        let takes = *taken <= MOST;
        self.left_out += u64::from(!takes);
        (takes, told)
    }
}

fn is_administrators(what: &What) -> bool {
    !matches!(
        what,
        What::Lock { .. }
            | What::Reload { .. }
            | What::State { .. }
            | What::Degraded { .. }
            | What::DegradedEnded { .. }
            | What::Tampered { .. }
            | What::Repaired { .. }
            | What::Failed { .. }
            | What::Refused { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_kind_costs_no_other() {
        let mut limit = Limit::default();
        let flood = What::Repaired { repairs: 1 };
        let second = Duration::from_secs(1);
        let taken = (0..1000).filter(|_| limit.take(&flood, second).0).count();
        assert_eq!(taken, MOST as usize);
        let other = What::Degraded { reason: "a".into() };
        assert_eq!(limit.take(&other, second), (true, None));
        assert_eq!(limit.take(&What::DaemonStopped, second), (true, None));
        let later = second + SPAN;
        assert_eq!(limit.take(&flood, later), (true, Some(1000 - u64::from(MOST))));
        assert_eq!(limit.take(&flood, later), (true, None));
    }
}
