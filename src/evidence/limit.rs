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
    taken: BTreeMap<&'static str, u32>,
    left_out: u64,
}

impl Limit {
    /// How many were left out and not told of yet.
    pub(super) fn left_out(&mut self) -> Option<u64> {
        let entries = std::mem::take(&mut self.left_out);
        (entries > 0).then_some(entries)
    }

    /// Whether this one is taken, and how many were left out before it in an hour that is over.
    pub(super) fn take(&mut self, what: &What, now: Duration) -> (bool, Option<u64>) {
        let mut told = None;
        if now.saturating_sub(self.begin) >= SPAN {
            told = self.left_out();
            *self = Limit { begin: now, ..Limit::default() };
        }
        let Some(kind) = limited(what) else { return (true, told) };
        let taken = self.taken.entry(kind).or_default();
        *taken += 1;
        let takes = *taken <= MOST;
        self.left_out += u64::from(!takes);
        (takes, told)
    }
}

/// The kind, unless only an administrator causes it.
fn limited(what: &What) -> Option<&'static str> {
    Some(match what {
        // A reload that loosens nothing takes no password.
        What::Reloaded { loosens: 0, .. } => "reloaded",
        What::Lock { .. } => "lock",
        What::Reload { .. } => "reload",
        What::State { .. } => "state",
        What::Degraded { .. } => "degraded",
        What::DegradedEnded { .. } => "degraded_ended",
        What::Tampered { .. } => "tampered",
        What::Repaired { .. } => "repaired",
        What::Failed { .. } => "failed",
        What::Refused { .. } => "refused",
        _ => return None,
    })
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
        assert_eq!(limit.left_out(), None);
    }

    /// Who has no password can ask for a reload that changes nothing, as often as they like.
    #[test]
    fn reloads_are_limited_unless_they_loosen() {
        let taken = |loosens| {
            let mut limit = Limit::default();
            let reloaded = What::Reloaded { ruleset: "a".into(), tightens: 0, loosens };
            let taken = (0..1000).filter(|_| limit.take(&reloaded, Duration::ZERO).0).count();
            (taken as u64, limit.left_out().unwrap_or_default())
        };
        assert_eq!(taken(0), (u64::from(MOST), 1000 - u64::from(MOST)));
        assert_eq!(taken(1), (1000, 0));
    }
}
