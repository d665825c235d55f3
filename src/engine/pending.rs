//! The effects that were asked for and have not ended: what the executor still has in its queue.

use std::collections::VecDeque;

use super::{Candidate, Effect};

/// In the executor's order.
#[derive(Debug, Clone, Default)]
pub(super) struct Pending(VecDeque<Entry>);

#[derive(Debug, Clone)]
struct Entry {
    effect: Effect,
    /// A reading that will speak of a peer which is no longer meant.
    outdated: bool,
}

impl Pending {
    pub(super) fn push(&mut self, effect: Effect) {
        if matches!(effect, Effect::Announce(_)) {
            return;
        }
        if matches!(effect, Effect::SetPeer(_)) {
            self.outdate_readings();
        }
        self.0.push_back(Entry { effect, outdated: false });
    }

    /// Takes an ended effect out; `false`: nobody asked for it.
    pub(super) fn end(&mut self, effect: &Effect) -> bool {
        let position = self.0.iter().position(|entry| entry.effect == *effect);
        position.and_then(|at| self.0.remove(at)).is_some()
    }

    /// Whether this effect is still to come or under way.
    pub(super) fn holds(&self, effect: &Effect) -> bool {
        self.0.iter().any(|entry| entry.effect == *effect && !entry.outdated)
    }

    /// Whether `effect` comes, and after every `other` that comes.
    pub(super) fn holds_after(&self, effect: &Effect, other: &Effect) -> bool {
        let last = |wanted: &Effect| self.0.iter().rposition(|entry| entry.effect == *wanted);
        last(effect).is_some() && last(effect) > last(other)
    }

    /// Whether the executor will come to set this peer last, and then to probe: what comes first in
    /// its queue may be under way.
    pub(super) fn will_set(&self, candidate: Candidate) -> bool {
        let effects = || self.0.iter().map(|entry| &entry.effect);
        let last = effects().enumerate().rfind(|(_, it)| matches!(it, Effect::SetPeer(_)));
        last.is_some_and(|(at, it)| {
            at > 0
                && *it == Effect::SetPeer(candidate)
                && effects().skip(at).any(|it| *it == Effect::Probe)
        })
    }

    /// Readings that were asked for before now tell nothing.
    pub(super) fn outdate_readings(&mut self) {
        for entry in &mut self.0 {
            entry.outdated |= entry.effect == Effect::ReadTunnel;
        }
    }

    /// Whether the next reading speaks of the peer that is meant.
    pub(super) fn reading_counts(&self) -> bool {
        let next = self.0.iter().find(|entry| entry.effect == Effect::ReadTunnel);
        next.is_some_and(|entry| !entry.outdated)
    }
}
