//! The tunnel: which candidate, over which network, in which phase.

use std::time::Duration;

use super::backoff::{doubled, rest};
use super::candidates::{Wishes, order, same};
use super::liveness::{Liveness, Verdict};
use super::machine::Engine;
use super::{Candidate, Effect, Network, Reading, Settings, State, Time, TunnelLink, Uplink};

/// WireGuard's REJECT_AFTER_TIME (whitepaper, 6.1): an older session carries nothing.
const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
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
/// A shorter loss of the way out is nobody's business.
const BRIEF: Duration = Duration::from_secs(1);
/// When a link that was made and does not show is made again: first and longest time. The word of
/// it comes from the kernel, and may be late when there is much of it.
const LINK_CHECK: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

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
    /// The server that was just found dead: its other endpoints hardly live.
    dead: Option<usize>,
}

/// The tunnel's own link.
#[derive(Debug, Clone, Default)]
pub(super) struct Link {
    /// It was asked for, and nobody took it away since.
    pub built: bool,
    /// The kernel showed it up since.
    pub confirmed: bool,
    /// How often it was made again because it did not show.
    checks: u32,
    check_at: Option<Time>,
}

impl Session {
    fn lives(&self, now: Time) -> bool {
        now.saturating_sub(self.handshake) < REJECT_AFTER_TIME
    }
}

/// What events do.
impl Engine {
    pub(super) fn adopt_or_connect(&mut self, found: Option<Reading>, now: Time) {
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
        self.perform(Effect::SetDns);
        let liveness = Liveness::new(reading, now);
        let session = Session { candidate, handshake: now.saturating_sub(age), liveness };
        if self.uplink(candidate).is_none() {
            self.phase = Phase::Lost(Lost { session: Some(session), brief: None });
        } else {
            self.settle(session);
        }
    }

    pub(super) fn network_changed(&mut self, network: Network, now: Time) {
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
                match self.uplink(candidate) {
                    None => self.lose(Some(session), now),
                    Some(uplink) if Some(uplink) != old.uplink(candidate) => {
                        self.challenge(session, now);
                    }
                    Some(_) => {}
                }
            }
        }
    }

    pub(super) fn tunnel_read(&mut self, reading: Reading, now: Time) {
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

    pub(super) fn traffic_sent(&mut self, now: Time) {
        if let Phase::Up(session) = &mut self.phase
            && session.liveness.sent(now)
        {
            self.perform_once(Effect::ReadTunnel);
        }
    }

    pub(super) fn resumed(&mut self, now: Time) {
        match self.phase {
            Phase::Off | Phase::Lost(_) => {}
            Phase::Trying(attempt) => self.try_anew(attempt),
            Phase::Resting(_) => self.begin(Wishes::default()),
            Phase::Up(session) => self.challenge(session, now),
        }
    }

    /// Connects, unless the tunnel is already on its way to such a server.
    pub(super) fn connect(&mut self, server: Option<usize>, now: Time) {
        if !self.settings.managed {
            return;
        }
        self.wanted = true;
        self.asked = server.filter(|it| *it < self.settings.servers.len());
        let suits = |candidate: Candidate| self.asked.is_none_or(|it| it == candidate.server);
        match self.phase {
            Phase::Trying(attempt) if suits(attempt.candidate) => {}
            Phase::Up(session) if suits(session.candidate) => {}
            Phase::Lost(Lost { session, brief }) => {
                let session = session.filter(|it| suits(it.candidate));
                self.network_while_lost(Lost { session, brief }, now);
            }
            _ => self.begin(Wishes::default()),
        }
    }

    pub(super) fn disconnect(&mut self) {
        if self.settings.managed {
            self.take_down();
        }
    }

    pub(super) fn reconnect(&mut self, now: Time) {
        if !self.keeps_tunnel() {
            return self.connect(self.asked, now);
        }
        let first = self.candidate();
        self.begin(Wishes { first, ..Wishes::default() });
    }

    /// Keeps a session whose server and endpoint are still configured.
    pub(super) fn configured(&mut self, settings: Settings, now: Time) {
        let old = std::mem::replace(&mut self.settings, settings);
        let named = |index: usize| old.servers.get(index).map(|it| it.name.as_str());
        let servers = &self.settings.servers;
        let renamed = |index| servers.iter().position(|it| Some(it.name.as_str()) == named(index));
        let still = |it: Candidate| same(servers, named(it.server)?, it.endpoint);
        let candidate = self.candidate();
        let kept = candidate.and_then(still);
        self.asked = self.asked.and_then(renamed);
        if !self.settings.managed {
            if old.managed && self.wanted {
                self.take_down();
            }
        } else if !old.managed {
            self.wanted = self.settings.connect_at_start;
            self.begin(Wishes::default());
        } else if kept.is_none() {
            self.link.built = false;
            self.begin(Wishes::default());
        } else {
            self.keep(kept, candidate == kept, now);
        }
    }

    pub(super) fn probe_failed(&mut self) {
        if let Phase::Up(session) = &mut self.phase {
            session.liveness.probe_failed();
        }
    }

    pub(super) fn watching_failed(&mut self, now: Time) {
        if let Phase::Up(session) = &mut self.phase {
            session.liveness.poll_instead(now);
        }
    }
}

/// What time does.
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

    fn advance_lost(&mut self, lost: Lost, now: Time) {
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

    fn advance_attempt(&mut self, mut attempt: Attempt, now: Time) {
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
        let next = rest.map(|(at, it)| (at, *it)).find(|(_, it)| self.uplink(*it).is_some());
        if let Some((at, candidate)) = next {
            self.plan.at = at;
            return self.attempt(candidate, None);
        }
        let until = now + rest_after(self);
        let rest = Rest { candidate: attempt.candidate, until, read_at: None };
        self.advance_rest(rest, now);
    }

    fn advance_rest(&mut self, mut rest: Rest, now: Time) {
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

    fn advance_session(&mut self, mut session: Session, now: Time) {
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

    /// A link that was made and does not show: the word of it is late, or somebody takes it away.
    fn check_link(&mut self, now: Time) {
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
}

/// The ways from phase to phase.
impl Engine {
    /// Starts over with the first round.
    fn begin(&mut self, wishes: Wishes) {
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
        self.plan.dead = wishes.left.map(|it| it.server);
        match self.plan.list.first() {
            Some(candidate) => self.attempt(*candidate, None),
            None => self.phase = Phase::Lost(Lost { session: None, brief: None }),
        }
    }

    fn attempt(&mut self, candidate: Candidate, doubted: Option<Doubted>) {
        let timeout = match doubted {
            Some(_) => TIMEOUT_OF_KNOWN,
            None if self.plan.dead == Some(candidate.server) => TIMEOUT_OF_DEAD,
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

    /// A new session with this candidate; the probe asks for its handshake.
    pub(super) fn set_peer(&mut self, candidate: Candidate) {
        if !self.pending.will_set(candidate) {
            self.perform(Effect::SetPeer(candidate));
            self.perform(Effect::Probe);
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
                self.perform(Effect::SetDns);
                self.settle(Session { candidate, handshake, liveness });
            }
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

    /// Turns to the next candidate.
    fn leave(&mut self, candidate: Candidate) {
        if let Some(uplink) = self.network.uplink(candidate) {
            self.memory.forget(uplink);
        }
        self.begin(Wishes { left: Some(candidate), ..Wishes::default() });
    }

    /// The way to the server may be another: what it answers now decides.
    fn challenge(&mut self, mut session: Session, now: Time) {
        if !session.lives(now) {
            return self.begin(Wishes { present: Some(session.candidate), ..Wishes::default() });
        }
        if session.liveness.challenge(now) {
            self.perform(Effect::ReadTunnel);
            self.perform(Effect::Probe);
        }
        self.phase = Phase::Up(session);
    }

    /// The way out is gone: for a moment this changes nothing.
    fn lose(&mut self, session: Option<Session>, now: Time) {
        let brief = Some((now + BRIEF, self.tunnel_state()));
        self.phase = Phase::Lost(Lost { session, brief });
    }

    fn network_while_lost(&mut self, lost: Lost, now: Time) {
        match lost.session {
            Some(session) if self.uplink(session.candidate).is_some() => {
                self.challenge(session, now);
            }
            Some(_) if lost.brief.is_some() => self.phase = Phase::Lost(lost),
            _ if self.can_reach_any() => self.begin(Wishes::default()),
            _ => self.phase = Phase::Lost(lost),
        }
    }

    fn network_while_trying(&mut self, attempt: Attempt, old: &Network, now: Time) {
        let uplink = self.uplink(attempt.candidate);
        if uplink.is_some() && uplink == old.uplink(attempt.candidate) {
            return;
        }
        if uplink.is_none() && (attempt.doubted.is_some() || !self.can_reach_any()) {
            return self.lose(None, now);
        }
        self.try_anew(attempt);
    }

    fn try_anew(&mut self, attempt: Attempt) {
        match attempt.doubted {
            Some(_) => self.attempt(attempt.candidate, attempt.doubted),
            None => self.begin(Wishes::default()),
        }
    }

    fn take_down(&mut self) {
        self.wanted = false;
        self.phase = Phase::Off;
        self.link = Link::default();
        self.perform_once(Effect::RestoreDns);
        self.perform_once(Effect::RemoveLink);
    }

    /// The present candidate stays, as the new configuration counts it; what else that says of the
    /// tunnel (addresses, MTU, resolvers) is set.
    fn keep(&mut self, kept: Option<Candidate>, unmoved: bool, now: Time) {
        let Some(candidate) = kept else { return };
        if !unmoved {
            self.pending.outdate_readings();
        }
        match self.phase {
            Phase::Up(session) => {
                self.set_what_may_differ();
                self.phase = Phase::Up(Session { candidate, ..session });
            }
            Phase::Lost(Lost { session: Some(session), brief }) => {
                self.set_what_may_differ();
                let session = Some(Session { candidate, ..session });
                self.network_while_lost(Lost { session, brief }, now);
            }
            Phase::Trying(_) | Phase::Resting(_) => {
                self.link.built = false;
                self.begin(Wishes { first: Some(candidate), ..Wishes::default() });
            }
            Phase::Off | Phase::Lost(_) => {}
        }
    }

    fn set_what_may_differ(&mut self) {
        self.perform_once(Effect::EnsureLink);
        self.perform_once(Effect::EnsureRoutes);
        self.perform_once(Effect::SetDns);
    }
}

/// The tunnel's link.
impl Engine {
    /// Notes what the kernel shows. An event of our own making must not count as a loss: a link
    /// vanishes only after it showed.
    fn link_vanished(&mut self) -> bool {
        if self.network.tunnel == TunnelLink::Up {
            (self.link.confirmed, self.link.checks) = (true, 0);
            return false;
        }
        let vanished = self.link.built && self.link.confirmed;
        self.link.confirmed = false;
        vanished
    }

    /// A link that vanished, or went down, took its session and its routes along.
    fn rebuild(&mut self, now: Time) {
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

    pub(super) fn make_link_again(&mut self) {
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

    pub(super) fn trouble_with_link(&self) -> Option<&'static str> {
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

/// Questions.
impl Engine {
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

    fn candidate(&self) -> Option<Candidate> {
        match self.phase {
            Phase::Up(session) | Phase::Lost(Lost { session: Some(session), .. }) => {
                Some(session.candidate)
            }
            _ => self.awaits_handshake_of(),
        }
    }

    fn uplink(&self, candidate: Candidate) -> Option<&Uplink> {
        self.network.uplink(candidate)
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
    fn uplink(&self, candidate: Candidate) -> Option<&Uplink> {
        if candidate.endpoint.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }
}

fn rest_after(engine: &mut Engine) -> Duration {
    let round = engine.plan.round;
    engine.plan.round = round.saturating_add(1);
    rest(round, &mut engine.dice)
}
