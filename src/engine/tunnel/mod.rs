//! The tunnel: which candidate, over which network, in which phase. What moves it from phase to
//! phase has a file each; here is what time does, and what is seen of it from outside.

mod commands;
mod handshake;
mod link;
mod network;
mod session;

use std::time::Duration;

use super::liveness::Liveness;
use super::machine::Engine;
use super::{Candidate, State, Time, TunnelLink};

pub(super) use link::Link;

/// WireGuard's REJECT_AFTER_TIME (whitepaper, 6.1): an older session carries nothing.
const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

/// Where the way to a working tunnel has come to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    /// No tunnel is wanted.
    Off,
    /// There is no way out that any candidate could take, or the session's own is gone.
    Lost(Lost),
    /// A handshake is awaited.
    Trying(Attempt),
    /// No candidate answered; a handshake may still come, from the last one.
    Resting(Rest),
    /// It works, for all that is known.
    Up(Session),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Lost {
    session: Option<Session>,
    /// Until when the loss is brief, and the state that is shown so long.
    brief: Option<(Time, State)>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    candidate: Candidate,
    timeout: Duration,
    /// The candidate is connected, but may be dead.
    doubted: Option<Doubted>,
    /// The end of its time; `None`: its peer is not set yet.
    until: Option<Time>,
    probe_at: Option<Time>,
    read_at: Option<Time>,
    pause: Duration,
}

/// What is kept of a session over a handshake that decides about it.
#[derive(Debug, Clone, Copy)]
struct Doubted {
    answers: bool,
    silent: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Rest {
    candidate: Candidate,
    until: Time,
    read_at: Option<Time>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Session {
    candidate: Candidate,
    /// When the last handshake was that is known of.
    handshake: Time,
    liveness: Liveness,
}

/// The candidates of this round, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    list: Vec<Candidate>,
    at: usize,
    /// Rounds without success.
    round: u32,
    /// What was found dead since data last came through the tunnel, the last one last: a handshake
    /// alone proves little. The other endpoints of the last one's server hardly live.
    left: Vec<Candidate>,
}

impl Session {
    fn lives(&self, now: Time) -> bool {
        now.saturating_sub(self.handshake) < REJECT_AFTER_TIME
    }
}

impl Engine {
    /// Does what is due, and sees to it that the phase waits for something: an effect's end, a
    /// time, or the network.
    pub(super) fn advance(&mut self, now: Time) {
        self.check_link(now);
        match self.phase {
            Phase::Off => {}
            Phase::Lost(lost) => self.advance_lost(lost, now),
            Phase::Trying(attempt) => self.advance_attempt(attempt, now),
            Phase::Resting(rest) => self.advance_rest(rest, now),
            Phase::Up(session) => self.advance_session(session, now),
        }
    }

    pub(super) fn tunnel_deadline(&self) -> Option<Time> {
        let of_phase = match self.phase {
            Phase::Off => None,
            Phase::Lost(lost) => lost.brief.map(|(until, _)| until),
            Phase::Trying(it) => it.read_at.into_iter().chain(it.probe_at).min(),
            Phase::Resting(it) => it.read_at,
            Phase::Up(it) => it.liveness.deadline(),
        };
        of_phase.into_iter().chain(self.link.check_at).min()
    }

    pub(super) fn tunnel_state(&self) -> State {
        if !self.settings.managed {
            return State::External { up: self.network.tunnel == TunnelLink::Up };
        }
        match self.phase {
            Phase::Off => State::Disconnected,
            Phase::Lost(Lost { brief: Some((_, shown)), .. }) => shown,
            Phase::Lost(_) => State::Waiting,
            Phase::Trying(Attempt { candidate, doubted: Some(_), .. }) => {
                State::Connected(candidate)
            }
            Phase::Trying(Attempt { candidate, .. }) => State::Connecting(candidate),
            Phase::Resting(rest) => State::Connecting(rest.candidate),
            Phase::Up(session) => State::Connected(session.candidate),
        }
    }

    /// Whose peer is set and without a handshake.
    pub(super) fn awaits_handshake_of(&self) -> Option<Candidate> {
        match self.phase {
            Phase::Trying(attempt) => Some(attempt.candidate),
            Phase::Resting(rest) => Some(rest.candidate),
            _ => None,
        }
    }

    /// Whether a peer is set and listened to.
    pub(super) fn uses_tunnel(&self) -> bool {
        !matches!(self.phase, Phase::Off | Phase::Lost(_))
    }

    /// Whether it is connected, also while that is in doubt or there is no way out.
    pub(super) fn has_session(&self) -> bool {
        match self.phase {
            Phase::Up(_) => true,
            Phase::Lost(lost) => lost.session.is_some(),
            Phase::Trying(attempt) => attempt.doubted.is_some(),
            Phase::Off | Phase::Resting(_) => false,
        }
    }

    fn candidate(&self) -> Option<Candidate> {
        match self.phase {
            Phase::Up(session) | Phase::Lost(Lost { session: Some(session), .. }) => {
                Some(session.candidate)
            }
            _ => self.awaits_handshake_of(),
        }
    }
}
