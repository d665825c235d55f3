//! From candidate to candidate, until one answers with a handshake.

use std::time::Duration;

use super::{Attempt, Doubted, Lost, Phase, Rest};
use crate::engine::backoff::{doubled, rest};
use crate::engine::candidates::{Wishes, order};
use crate::engine::{Candidate, Effect, Engine, Time};

/// How long a candidate may take for a handshake in the first round, and in any.
const TIMEOUT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(15));
/// How long a server that was connected may take for a new one.
const TIMEOUT_OF_KNOWN: Duration = Duration::from_millis(750);
/// Of the other endpoints of a server that was just found dead, in the first round: most often it is
/// the server that died, not the way to it, and the next one shall be reached within 3 s in all.
const TIMEOUT_OF_DEAD: Duration = Duration::from_millis(500);
/// First and longest time between two readings while a handshake is awaited.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));
/// The same between two rounds.
const PAUSE_AT_REST: Duration = Duration::from_secs(1);

impl Engine {
    /// Starts over with the first round.
    pub(super) fn begin(&mut self, wishes: Wishes) {
        self.plan.round = 0;
        self.start_round(wishes);
    }

    fn start_round(&mut self, wishes: Wishes) {
        if !self.keeps_tunnel() {
            self.phase = Phase::Off;
            return;
        }
        let servers = &self.settings.servers;
        let uplinks = self.network.v4.iter().chain(&self.network.v6);
        let remembered = self.memory.recall(uplinks, servers);
        let wishes = Wishes { asked: self.asked, remembered, ..wishes };
        self.plan.list = order(servers, &wishes, |it| self.network.uplink(it).is_some());
        self.plan.at = 0;
        self.plan.left = wishes.left;
        match self.plan.list.first() {
            Some(candidate) => self.attempt(*candidate, None),
            None => self.phase = Phase::Lost(Lost { session: None, brief: None }),
        }
    }

    pub(super) fn attempt(&mut self, candidate: Candidate, doubted: Option<Doubted>) {
        let timeout = match doubted {
            Some(_) => TIMEOUT_OF_KNOWN,
            None if self.was_just_left(candidate.server) => TIMEOUT_OF_DEAD,
            None => doubled(TIMEOUT.0, self.plan.round, TIMEOUT.1),
        };
        self.phase = Phase::Trying(Attempt {
            candidate,
            timeout,
            doubted,
            until: None,
            probe_at: None,
            read_at: None,
            pause: PAUSE.0,
        });
        if self.link.built && !self.troubles.has(&Effect::EnsureLink) {
            return self.set_peer(candidate);
        }
        self.link.built = true;
        self.link.confirmed = false;
        self.perform(Effect::EnsureLink);
        self.perform(Effect::SetPeer(candidate));
        self.perform(Effect::EnsureRoutes);
        self.perform(Effect::Probe);
    }

    fn was_just_left(&self, server: usize) -> bool {
        self.plan.left.last().is_some_and(|it| it.server == server)
    }

    /// A new session with this candidate; the probe asks for its handshake.
    pub(in crate::engine) fn set_peer(&mut self, candidate: Candidate) {
        if !self.pending.will_set(candidate) {
            self.perform(Effect::SetPeer(candidate));
            self.perform(Effect::Probe);
        }
    }

    pub(super) fn advance_attempt(&mut self, mut attempt: Attempt, now: Time) {
        let Some(until) = attempt.until else { return self.open_window(attempt, now) };
        if attempt.probe_at.is_some_and(|at| at <= now) {
            attempt.probe_at = None;
            self.perform_once(Effect::Probe);
        }
        if attempt.read_at.is_some_and(|at| at <= now) {
            attempt.read_at = None;
            self.perform_once(Effect::ReadTunnel);
        } else if attempt.read_at.is_none() && !self.pending.holds(&Effect::ReadTunnel) {
            // A reading at its end or later showed no handshake.
            if now >= until {
                return self.time_out(attempt, now);
            }
            attempt.read_at = Some((now + attempt.pause).min(until));
            attempt.pause = (attempt.pause * 2).min(PAUSE.1);
        }
        self.phase = Phase::Trying(attempt);
    }

    /// A candidate's time runs from the probe that asks it for a handshake; without a link, never.
    fn open_window(&mut self, mut attempt: Attempt, now: Time) {
        let on_its_way = Effect::SetPeer(attempt.candidate);
        if self.troubles.has(&Effect::EnsureLink)
            || self.pending.holds(&Effect::Probe)
            || self.pending.holds(&on_its_way)
        {
            return;
        }
        attempt.until = Some(now + attempt.timeout);
        attempt.probe_at = Some(now + attempt.timeout / 2);
        attempt.read_at = Some(now + attempt.pause);
        self.phase = Phase::Trying(attempt);
    }

    fn time_out(&mut self, attempt: Attempt, now: Time) {
        if attempt.doubted.is_some() {
            return self.leave(attempt.candidate);
        }
        let rest = self.plan.list.iter().enumerate().skip(self.plan.at + 1);
        let next =
            rest.map(|(at, it)| (at, *it)).find(|(_, it)| self.network.uplink(*it).is_some());
        if let Some((at, candidate)) = next {
            self.plan.at = at;
            return self.attempt(candidate, None);
        }
        self.mend_what_no_event_tells();
        let until = now + self.rest_after_round();
        let rest = Rest { candidate: attempt.candidate, until, read_at: None };
        self.advance_rest(rest, now);
    }

    /// Turns to the next candidate.
    pub(super) fn leave(&mut self, candidate: Candidate) {
        if let Some(uplink) = self.network.uplink(candidate) {
            self.memory.forget(uplink);
        }
        let mut left = std::mem::take(&mut self.plan.left);
        left.retain(|it| *it != candidate);
        left.push(candidate);
        self.begin(Wishes { left, ..Wishes::default() });
    }

    pub(super) fn try_anew(&mut self, attempt: Attempt) {
        match attempt.doubted {
            Some(_) => self.attempt(attempt.candidate, attempt.doubted),
            None => self.begin(Wishes::default()),
        }
    }

    pub(super) fn advance_rest(&mut self, mut rest: Rest, now: Time) {
        if rest.read_at.is_some_and(|at| at <= now) {
            rest.read_at = None;
            self.perform_once(Effect::ReadTunnel);
        } else if rest.read_at.is_none() && !self.pending.holds(&Effect::ReadTunnel) {
            if now >= rest.until {
                return self.start_round(Wishes::default());
            }
            rest.read_at = Some((now + PAUSE_AT_REST).min(rest.until));
        }
        self.phase = Phase::Resting(rest);
    }

    fn rest_after_round(&mut self) -> Duration {
        let round = self.plan.round;
        self.plan.round = round.saturating_add(1);
        rest(round, &mut self.dice)
    }
}
