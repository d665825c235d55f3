//! The tunnel's own link: made, and made again when it vanishes or does not show.

use std::time::Duration;

use super::{Lost, Phase};
use crate::engine::backoff::doubled;
use crate::engine::candidates::Wishes;
use crate::engine::{Effect, Engine, Time, TunnelLink};

/// When a link that was made and does not show is made again: first and longest time. The word of
/// it comes from the kernel, and may be late when there is much of it.
const LINK_CHECK: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The tunnel's own link.
#[derive(Debug, Clone, Default)]
pub(in crate::engine) struct Link {
    /// It was asked for, and nobody took it away since.
    pub built: bool,
    /// The kernel showed it up since.
    pub confirmed: bool,
    /// How often it was made again because it did not show.
    pub(super) checks: u32,
    pub(super) check_at: Option<Time>,
}

impl Engine {
    /// A link that was made and does not show: the word of it is late, or somebody takes it away.
    pub(super) fn check_link(&mut self, now: Time) {
        let shows = self.network.tunnel == TunnelLink::Up;
        let waits = self.pending.holds(&Effect::EnsureLink)
            || self.troubles.has(&Effect::EnsureLink)
            || matches!(self.phase, Phase::Lost(_));
        if shows || waits || !self.keeps_tunnel() || !self.link.built {
            self.link.check_at = None;
            return;
        }
        match self.link.check_at {
            None => {
                let delay = doubled(LINK_CHECK.0, self.link.checks, LINK_CHECK.1);
                self.link.check_at = Some(now + delay);
            }
            Some(at) if at <= now => {
                self.link.check_at = None;
                self.link.checks = self.link.checks.saturating_add(1);
                self.make_link_again();
            }
            Some(_) => {}
        }
    }

    /// Notes what the kernel shows. An event of our own making must not count as a loss: a link
    /// vanishes only after it showed.
    pub(super) fn link_vanished(&mut self) -> bool {
        if self.network.tunnel == TunnelLink::Up {
            (self.link.confirmed, self.link.checks) = (true, 0);
            return false;
        }
        let vanished = self.link.built && self.link.confirmed;
        self.link.confirmed = false;
        vanished
    }

    /// A link that vanished, or went down, took its session and its routes along.
    pub(super) fn rebuild(&mut self, now: Time) {
        self.link.built = false;
        match self.phase {
            Phase::Lost(Lost { brief, .. }) => {
                self.network_while_lost(Lost { session: None, brief }, now);
            }
            _ => {
                let first = self.candidate();
                self.begin(Wishes { first, ..Wishes::default() });
            }
        }
    }

    pub(in crate::engine) fn make_link_again(&mut self) {
        self.link.built = false;
        match self.phase {
            Phase::Trying(attempt) => self.attempt(attempt.candidate, attempt.doubted),
            _ => {
                self.link.built = true;
                self.perform(Effect::EnsureLink);
                self.perform(Effect::EnsureRoutes);
                // Whether the peer survived shows in the next reading.
                self.perform(Effect::ReadTunnel);
            }
        }
    }

    /// No event tells that another program set WireGuard's key or mark, or a sysctl that the lock
    /// sets: whoever is not answered looks. What is right is left alone.
    pub(super) fn mend_what_no_event_tells(&mut self) {
        self.hold();
        // Otherwise the next attempt makes the link anyway.
        if self.link.built && !self.troubles.has(&Effect::EnsureLink) {
            self.perform_once(Effect::EnsureLink);
        }
    }

    pub(in crate::engine) fn trouble_with_link(&self) -> Option<&'static str> {
        if !self.keeps_tunnel() {
            return None;
        }
        match self.network.tunnel {
            TunnelLink::Foreign => Some("another link has the tunnel's name"),
            TunnelLink::Absent | TunnelLink::Down if self.link.checks > 0 => {
                Some("the tunnel's link does not stay up")
            }
            _ => None,
        }
    }
}
