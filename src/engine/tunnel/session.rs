//! A session: found, begun, doubted, lost.

use std::time::Duration;

use super::{Doubted, Link, Lost, Phase, REJECT_AFTER_TIME, Session};
use crate::engine::candidates::Wishes;
use crate::engine::liveness::{Liveness, Verdict};
use crate::engine::{Candidate, Effect, Engine, Reading, Time, TunnelLink};

impl Engine {
    pub(in crate::engine) fn adopt_or_connect(&mut self, found: Option<Reading>, now: Time) {
        let Some((reading, candidate)) = found.and_then(|it| Some((it, it.candidate?))) else {
            return self.begin(Wishes::default());
        };
        let handshake = reading.handshake_age.filter(|age| *age < REJECT_AFTER_TIME);
        let (Some(age), TunnelLink::Up) = (handshake, self.network.tunnel) else {
            return self.begin(Wishes { present: Some(candidate), ..Wishes::default() });
        };
        self.link = Link { built: true, confirmed: true, ..Link::default() };
        self.perform(Effect::EnsureLink);
        self.perform(Effect::EnsureRoutes);
        self.set_dns();
        let liveness = Liveness::new(reading, now);
        let session = Session { candidate, handshake: now.saturating_sub(age), liveness };
        if self.network.uplink(candidate).is_none() {
            self.phase = Phase::Lost(Lost { session: Some(session), brief: None });
        } else {
            self.settle(session);
        }
    }

    pub(in crate::engine) fn tunnel_read(&mut self, reading: Reading, now: Time) {
        if !self.pending.reading_counts() {
            return;
        }
        let handshake = reading.handshake_age.filter(|age| *age < REJECT_AFTER_TIME);
        match (self.phase, handshake) {
            (Phase::Trying(attempt), Some(age)) if reading.candidate == Some(attempt.candidate) => {
                self.connected(attempt.candidate, attempt.doubted, reading, age, now);
            }
            (Phase::Resting(rest), Some(age)) if reading.candidate == Some(rest.candidate) => {
                self.connected(rest.candidate, None, reading, age, now);
            }
            (Phase::Up(session), _) => self.session_read(session, reading, now),
            _ => {}
        }
    }

    fn connected(
        &mut self,
        candidate: Candidate,
        doubted: Option<Doubted>,
        reading: Reading,
        age: Duration,
        now: Time,
    ) {
        self.plan.round = 0;
        let server = self.settings.servers.get(candidate.server);
        if let (Some(uplink), Some(server)) = (self.network.uplink(candidate), server) {
            self.memory.remember(uplink, &server.name, candidate.endpoint);
        }
        let handshake = now.saturating_sub(age);
        let liveness = Liveness::new(reading, now);
        match doubted {
            Some(it) => {
                let liveness = liveness.knowing(it.answers, it.silent);
                self.phase = Phase::Up(Session { candidate, handshake, liveness });
            }
            None => {
                self.set_dns();
                self.settle(Session { candidate, handshake, liveness });
            }
        }
    }

    fn set_dns(&mut self) {
        if self.wants_dns() {
            self.perform(Effect::SetDns);
        }
    }

    /// A session is there; does its server answer probes?
    fn settle(&mut self, mut session: Session) {
        session.liveness.learn();
        self.perform_once(Effect::Probe);
        self.phase = Phase::Up(session);
    }

    fn session_read(&mut self, mut session: Session, reading: Reading, now: Time) {
        let candidate = session.candidate;
        if reading.candidate != Some(candidate) {
            // Somebody else set WireGuard's peer.
            return self.begin(Wishes { first: Some(candidate), ..Wishes::default() });
        }
        if let Some(age) = reading.handshake_age {
            session.handshake = session.handshake.max(now.saturating_sub(age));
        }
        let verdict = session.liveness.reading(&reading, now);
        if session.liveness.was_heard() {
            self.plan.left.clear();
        }
        self.phase = Phase::Up(session);
        match verdict {
            Verdict::Fine => {}
            Verdict::Probe => self.perform(Effect::Probe),
            Verdict::Quiet => {
                self.perform(Effect::WatchTraffic);
                // What was sent just before the watch began shows in the counters.
                self.perform(Effect::ReadTunnel);
            }
            Verdict::Doubt { silent } => {
                let answers = session.liveness.answers();
                self.attempt(candidate, Some(Doubted { answers, silent }));
            }
            Verdict::Dead => self.leave(candidate),
        }
    }

    /// The way to the server may be another: what it answers now decides.
    pub(super) fn challenge(&mut self, mut session: Session, now: Time) {
        if !session.lives(now) {
            return self.begin(Wishes { present: Some(session.candidate), ..Wishes::default() });
        }
        if session.liveness.challenge(now) {
            self.perform(Effect::ReadTunnel);
            self.perform(Effect::Probe);
        }
        self.phase = Phase::Up(session);
    }

    pub(in crate::engine) fn traffic_sent(&mut self, now: Time) {
        if let Phase::Up(session) = &mut self.phase
            && session.liveness.sent(now)
        {
            self.perform_once(Effect::ReadTunnel);
        }
    }

    pub(in crate::engine) fn probe_failed(&mut self) {
        if let Phase::Up(session) = &mut self.phase {
            session.liveness.probe_failed();
        }
    }

    pub(in crate::engine) fn watching_failed(&mut self, now: Time) {
        if let Phase::Up(session) = &mut self.phase {
            session.liveness.poll_instead(now);
        }
    }

    pub(super) fn advance_session(&mut self, mut session: Session, now: Time) {
        if !self.pending.holds(&Effect::Probe) {
            session.liveness.probe_sent(now);
        }
        if session.liveness.take_due(now) {
            self.perform_once(Effect::ReadTunnel);
        } else if !self.pending.holds(&Effect::ReadTunnel) {
            session.liveness.schedule(self.troubles.delay(&Effect::ReadTunnel), now);
        }
        self.phase = Phase::Up(session);
    }
}
