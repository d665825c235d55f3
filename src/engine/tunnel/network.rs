//! The way out comes, goes, or is another; so it may be after a sleep.

use std::time::Duration;

use super::{Attempt, Lost, Phase, Session};
use crate::engine::candidates::Wishes;
use crate::engine::{Candidate, Engine, Network, Time, Uplink};

/// A shorter loss of the way out is nobody's business.
const BRIEF: Duration = Duration::from_secs(1);

impl Engine {
    pub(in crate::engine) fn network_changed(&mut self, network: Network, now: Time) {
        let old = std::mem::replace(&mut self.network, network);
        if !self.keeps_tunnel() {
            return;
        }
        if self.link_vanished() {
            return self.rebuild(now);
        }
        match self.phase {
            Phase::Off => {}
            Phase::Lost(lost) => self.network_while_lost(lost, now),
            Phase::Trying(attempt) => self.network_while_trying(attempt, &old, now),
            Phase::Resting(_) => {
                if !self.can_reach_any() {
                    self.lose(None, now);
                } else if (&old.v4, &old.v6) != (&self.network.v4, &self.network.v6) {
                    self.begin(Wishes::default());
                }
            }
            Phase::Up(session) => {
                let candidate = session.candidate;
                match self.network.uplink(candidate) {
                    None => self.lose(Some(session), now),
                    Some(uplink) if Some(uplink) != old.uplink(candidate) => {
                        self.challenge(session, now);
                    }
                    Some(_) => {}
                }
            }
        }
    }

    pub(in crate::engine) fn resumed(&mut self, now: Time) {
        match self.phase {
            Phase::Off | Phase::Lost(_) => {}
            Phase::Trying(attempt) => self.try_anew(attempt),
            Phase::Resting(_) => self.begin(Wishes::default()),
            Phase::Up(session) => self.challenge(session, now),
        }
    }

    pub(super) fn network_while_lost(&mut self, lost: Lost, now: Time) {
        match lost.session {
            Some(session) if self.network.uplink(session.candidate).is_some() => {
                self.challenge(session, now);
            }
            Some(_) if lost.brief.is_some() => self.phase = Phase::Lost(lost),
            _ if self.can_reach_any() => self.begin(Wishes::default()),
            _ => self.phase = Phase::Lost(lost),
        }
    }

    fn network_while_trying(&mut self, attempt: Attempt, old: &Network, now: Time) {
        let uplink = self.network.uplink(attempt.candidate);
        if uplink.is_some() && uplink == old.uplink(attempt.candidate) {
            return;
        }
        if uplink.is_none() && (attempt.doubted.is_some() || !self.can_reach_any()) {
            return self.lose(None, now);
        }
        self.try_anew(attempt);
    }

    /// The way out is gone: for a moment this changes nothing.
    fn lose(&mut self, session: Option<Session>, now: Time) {
        let brief = Some((now + BRIEF, self.tunnel_state()));
        self.phase = Phase::Lost(Lost { session, brief });
    }

    pub(super) fn advance_lost(&mut self, lost: Lost, now: Time) {
        let Some((until, _)) = lost.brief else { return };
        if now < until {
            return;
        }
        if self.can_reach_any() {
            self.begin(Wishes::default());
        } else {
            self.phase = Phase::Lost(Lost { brief: None, ..lost });
        }
    }

    fn can_reach_any(&self) -> bool {
        let servers = &self.settings.servers;
        let endpoints = |it: fn(&std::net::SocketAddr) -> bool| {
            servers.iter().flat_map(|server| &server.endpoints).any(it)
        };
        self.network.v4.is_some() && endpoints(|it| it.is_ipv4())
            || self.network.v6.is_some() && endpoints(|it| it.is_ipv6())
    }
}

impl Network {
    /// The way out to a candidate.
    pub(super) fn uplink(&self, candidate: Candidate) -> Option<&Uplink> {
        if candidate.endpoint.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }
}
