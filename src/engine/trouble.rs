//! Effects that failed: when to try them again, and how to say so.

use std::mem::discriminant;
use std::time::Duration;

use super::backoff::doubled;
use super::{Effect, Time};

const FIRST: Duration = Duration::from_millis(100);
/// The lock is never left alone for longer.
const LONGEST_OF_LOCK: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(30);

/// An effect whose last attempt failed.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub effect: Effect,
    why: String,
    failures: u32,
    /// `None`: under way again, or another effect's retry brings it.
    pub retry_at: Option<Time>,
}

impl Trouble {
    fn delay(&self) -> Duration {
        let lock = matches!(self.effect, Effect::HoldLock | Effect::Unlock);
        doubled(FIRST, self.failures - 1, if lock { LONGEST_OF_LOCK } else { LONGEST })
    }
}

/// One of a kind: the candidate of [`Effect::SetPeer`] is the last that failed.
#[derive(Debug, Clone, Default)]
pub(super) struct Troubles(Vec<Trouble>);

impl Troubles {
    /// Notes a failure; with `retry`, it is due again after its back-off.
    pub(super) fn failed(&mut self, effect: Effect, why: String, retry: bool, now: Time) {
        let failures = self.find(&effect).map_or(0, |it| it.failures).saturating_add(1);
        self.ended(&effect);
        let mut trouble = Trouble { effect, why, failures, retry_at: None };
        trouble.retry_at = retry.then(|| now + trouble.delay());
        self.0.push(trouble);
    }

    pub(super) fn ended(&mut self, effect: &Effect) {
        self.0.retain(|it| !alike(&it.effect, effect));
    }

    /// There is a link again: what failed for want of one is due, unless it is under way.
    pub(super) fn link_is_there(&mut self, under_way: impl Fn(&Effect) -> bool, now: Time) {
        let on_link =
            |it: &Effect| matches!(it, Effect::SetPeer(_) | Effect::EnsureRoutes | Effect::Probe);
        for it in self.0.iter_mut().filter(|it| on_link(&it.effect) && !under_way(&it.effect)) {
            it.retry_at.get_or_insert(now);
        }
    }

    /// It is under way again: no timer for it.
    pub(super) fn asked(&mut self, effect: &Effect) {
        for it in self.0.iter_mut().filter(|it| alike(&it.effect, effect)) {
            it.retry_at = None;
        }
    }

    pub(super) fn has(&self, effect: &Effect) -> bool {
        self.find(effect).is_some()
    }

    /// How long to wait after the last failure; zero if there was none.
    pub(super) fn delay(&self, effect: &Effect) -> Duration {
        self.find(effect).map_or(Duration::ZERO, Trouble::delay)
    }

    pub(super) fn retain(&mut self, wanted: impl Fn(&Trouble) -> bool) {
        self.0.retain(wanted);
    }

    /// Takes the timers of those whose time has come, in the order of their failures.
    pub(super) fn take_due(&mut self, now: Time) -> Vec<Effect> {
        let due = |it: &&mut Trouble| it.retry_at.is_some_and(|at| at <= now);
        self.0
            .iter_mut()
            .filter(due)
            .map(|it| {
                it.retry_at = None;
                it.effect.clone()
            })
            .collect()
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.0.iter().filter_map(|it| it.retry_at).min()
    }

    pub(super) fn in_words(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|it| format!("{}: {}", cannot(&it.effect), it.why))
    }

    fn find(&self, effect: &Effect) -> Option<&Trouble> {
        self.0.iter().find(|it| alike(&it.effect, effect))
    }
}

fn alike(one: &Effect, other: &Effect) -> bool {
    discriminant(one) == discriminant(other)
}

fn cannot(effect: &Effect) -> &'static str {
    match effect {
        Effect::HoldLock => "the lock cannot be held as configured",
        Effect::Unlock => "the lock cannot be opened",
        Effect::EnsureLink => "the tunnel's link cannot be made",
        Effect::RemoveLink => "the tunnel's link cannot be removed",
        Effect::SetPeer(_) => "the server cannot be set as WireGuard's peer",
        Effect::EnsureRoutes => "the routes into the tunnel cannot be set",
        Effect::SetDns => "the tunnel's resolvers cannot be set",
        Effect::RestoreDns => "the resolvers cannot be restored",
        Effect::Probe => "no probe can be sent through the tunnel",
        Effect::ReadTunnel => "the tunnel's counters cannot be read",
        Effect::WatchTraffic => "traffic into the tunnel cannot be watched; polling instead",
        Effect::Announce(_) => "the state cannot be announced",
    }
}
