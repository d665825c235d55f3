//! A machine with two uplinks, some servers and an executor, just real enough to answer the engine.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use killswitch::dice::Dice;
use killswitch::engine::{
    Candidate, Command, Effect, Engine, Event, Network, Reading, Server, Settings, State, Time,
    TunnelLink, Uplink,
};

pub const MS: Duration = Duration::from_millis(1);
/// Why effects fail that were asked for.
const BAD_LUCK: &str = "bad luck";

pub const SECOND: Duration = Duration::from_secs(1);

/// Bytes of a WireGuard initiation, response, and of a small packet of data.
const INITIATION: u64 = 148;
const RESPONSE: u64 = 92;
const SMALL: u64 = 96;
const KEEPALIVE: u64 = 32;

/// Servers a (IPv4 and IPv6), b and c (IPv4).
pub fn settings() -> Settings {
    let server = |name: &str, endpoints: &[&str]| Server {
        name: name.to_owned(),
        endpoints: endpoints.iter().map(|it| it.parse().expect("an address")).collect(),
    };
    Settings {
        managed: true,
        servers: vec![
            server("a", &["192.0.2.1:1", "[2001:db8::1]:1"]),
            server("b", &["192.0.2.2:1"]),
            server("c", &["192.0.2.3:1"]),
        ],
        connect_at_start: true,
    }
}

pub fn uplink(link: u32, address: &str) -> Uplink {
    Uplink { link, gateway: None, addresses: vec![address.parse().expect("an address")] }
}

/// What the world's inhabitants do by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    None,
    /// Every packet is answered.
    BothWays,
    /// Nothing is answered but by WireGuard's keepalive.
    OneWay,
}

#[derive(Clone)]
pub struct World {
    pub engine: Engine,
    pub now: Time,
    pub dice: Dice,
    pub settings: Settings,
    pub network: Network,
    /// Whether the engine knows of uplinks in both families: then it need not wait for one.
    both_ways_told: bool,
    /// When the engine hears of the network's last change.
    news_at: Option<Time>,
    pub queue: VecDeque<Effect>,
    peer: Option<SocketAddr>,
    /// Whether the routes lead into the tunnel's link: they go with it.
    pub routed: bool,
    /// Whether the tunnel's resolvers are the system's.
    pub resolved: bool,
    handshake: Option<Time>,
    received: u64,
    sent: u64,
    answered_at: Time,
    /// Endpoints of servers that are dead.
    pub dead: Vec<SocketAddr>,
    /// Endpoints that are reached by handshakes, and by nothing else.
    pub swallowing: Vec<SocketAddr>,
    pub answers_probes: bool,
    /// The counters include handshakes and keepalives.
    pub counts: bool,
    /// Which of the servers' keepalives is lost on its way.
    pub lost_keepalive: Option<usize>,
    keepalives: usize,
    /// Since when something sent awaits an answer: WireGuard begins a handshake 15 s later.
    unanswered: Option<Time>,
    /// Between two packets of the inhabitants.
    pub every: Duration,
    watched: bool,
    pub cannot_watch: bool,
    pub traffic: Traffic,
    traffic_at: Time,
    /// One of so many effects fails; 0: none.
    pub failing: usize,
    /// The longest that an effect takes.
    pub slowness: Duration,
    /// An administrator opened the lock.
    pub open: bool,
    /// Something changed the lock, and it was not held since.
    disturbed: bool,
    /// The same, when it may have come too late for the effect under way.
    disturbed_meanwhile: bool,
    /// Another program set WireGuard's key, of which no event tells: no server answers until it is
    /// set back, which takes the session.
    pub foreign_key: bool,
    /// Another program had the kernel drop servers' replies (src_valid_mark), of which no event
    /// tells, either.
    pub replies_dropped: bool,
    pub events: u64,
    pub effects: Vec<(Time, Effect)>,
    /// Keep every effect, not only the last event's.
    pub keep: bool,
    /// Print what happens.
    pub traced: bool,
}

impl World {
    pub fn new(seed: u64) -> Self {
        World::with(settings(), seed)
    }

    pub fn with(settings: Settings, seed: u64) -> Self {
        World {
            engine: Engine::new(settings.clone(), seed),
            now: 1000 * SECOND,
            dice: Dice::new(seed),
            settings,
            network: Network {
                v4: Some(uplink(2, "198.51.100.2")),
                v6: None,
                tunnel: TunnelLink::Absent,
            },
            both_ways_told: false,
            news_at: None,
            queue: VecDeque::new(),
            peer: None,
            routed: false,
            resolved: false,
            handshake: None,
            received: 0,
            sent: 0,
            answered_at: Duration::ZERO,
            dead: Vec::new(),
            swallowing: Vec::new(),
            answers_probes: true,
            counts: true,
            lost_keepalive: None,
            keepalives: 0,
            unanswered: None,
            every: 100 * MS,
            watched: false,
            cannot_watch: false,
            traffic: Traffic::None,
            traffic_at: Duration::ZERO,
            failing: 0,
            slowness: MS,
            open: false,
            disturbed: false,
            disturbed_meanwhile: false,
            foreign_key: false,
            replies_dropped: false,
            events: 0,
            effects: Vec::new(),
            keep: false,
            traced: false,
        }
    }

    pub fn start(&mut self) {
        let tunnel = self.peer.map(|_| self.reading());
        // A daemon that was killed may have left them.
        (self.disturbed, self.resolved) = (true, true);
        self.feed(Event::Started { network: self.network.clone(), tunnel });
    }

    /// Started, connected, and idle.
    pub fn connected(seed: u64) -> Self {
        let mut world = World::new(seed);
        world.start();
        world.run(10 * SECOND);
        world
    }

    /// Gives the engine an event and holds its answer against what must always be.
    pub fn feed(&mut self, event: Event) -> usize {
        match &event {
            Event::Command(Command::Unlock) => (self.open, self.disturbed) = (true, false),
            Event::Command(Command::Lock) => (self.open, self.disturbed) = (false, true),
            Event::LinkAppeared | Event::Disturbed(_) => {
                self.disturbed = !self.open;
                self.disturbed_meanwhile = self.queue.front() == Some(&Effect::HoldLock);
            }
            Event::Failed(Effect::Unlock, why)
                if why == BAD_LUCK && !self.queue.contains(&Effect::Unlock) =>
            {
                self.open = false;
            }
            Event::Configured(settings) => self.settings = settings.clone(),
            Event::Network(network) | Event::Started { network, .. } => {
                self.both_ways_told = network.v4.is_some() && network.v6.is_some();
            }
            _ => {}
        }
        let failed = match &event {
            Event::Failed(effect, why) if why == BAD_LUCK => Some(effect.clone()),
            _ => None,
        };
        self.events += 1;
        if self.traced {
            println!("{:?} {event:?}", self.now);
        }
        let effects = self.engine.handle(event, self.now);
        if self.traced {
            println!("    {effects:?} {:?} {:?}", self.engine.state(), self.engine.deadline());
        }
        self.judge(&effects, failed);
        if !self.keep {
            self.effects.clear();
        }
        self.effects.extend(effects.iter().map(|it| (self.now, it.clone())));
        let count = effects.len();
        self.queue.extend(effects);
        count
    }

    fn judge(&self, effects: &[Effect], failed: Option<Effect>) {
        assert!(effects.len() <= 12, "so many effects of one event: {effects:?}");
        for effect in effects {
            match effect {
                Effect::Unlock => assert!(self.open, "opened without being told to"),
                Effect::HoldLock => assert!(!self.open, "locked after an unlock"),
                Effect::SetDns if self.open => panic!("resolvers that would be asked in clear"),
                Effect::Announce(_) | Effect::ReadTunnel | Effect::Probe => {}
                Effect::RestoreDns | Effect::RemoveLink => {}
                _ => assert!(self.settings.managed, "{effect:?} of a tunnel that is not ours"),
            }
        }
        if let Some(deadline) = self.engine.deadline() {
            assert!(deadline > self.now, "a deadline that has passed");
            assert!(deadline <= self.now + 60 * SECOND, "no sign of life for a minute");
        }
        if let Some(failed) = failed {
            self.judge_failure(effects, &failed);
        }
        let held = self.queue.contains(&Effect::HoldLock)
            || effects.contains(&Effect::HoldLock)
            || self.engine.deadline().is_some() && !self.engine.degraded().is_empty();
        assert!(!self.disturbed || held, "the lock was disturbed and nothing is done");
    }

    /// What failed and is still wanted is tried again or told.
    fn judge_failure(&self, effects: &[Effect], failed: &Effect) {
        let wanted = match failed {
            Effect::HoldLock => !self.open,
            Effect::Unlock => self.open,
            Effect::Announce(_) | Effect::SetPeer(_) => false,
            Effect::RestoreDns => self.open || *self.engine.state() == State::Disconnected,
            Effect::RemoveLink => *self.engine.state() == State::Disconnected,
            Effect::Probe | Effect::ReadTunnel | Effect::WatchTraffic | Effect::EnsureRoutes => {
                matches!(self.engine.state(), State::Connected(_)) && self.both_ways_told
            }
            _ => matches!(
                self.engine.state(),
                State::Waiting | State::Connecting(_) | State::Connected(_)
            ),
        };
        if wanted && !effects.contains(failed) && !self.queue.contains(failed) {
            assert!(!self.engine.degraded().is_empty(), "{failed:?} failed, nobody says so");
        }
    }

    /// Lets the next thing happen, if one happens until then.
    pub fn step(&mut self, until: Time) -> bool {
        let busy = !self.queue.is_empty();
        let executed = busy.then(|| {
            self.now + Duration::from_micros(self.dice.number() % self.slowness.as_micros() as u64)
        });
        let traffic = (self.traffic != Traffic::None).then(|| self.traffic_at.max(self.now));
        let deadline = self.engine.deadline();
        let times = [executed, self.news_at, traffic, deadline];
        let Some(next) = times.into_iter().flatten().min().filter(|it| *it <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        self.now = self.now.max(next);
        if traffic == Some(next) {
            self.send();
        } else if self.news_at == Some(next) {
            self.news_at = None;
            self.feed(Event::Network(self.network.clone()));
        } else if executed == Some(next) {
            self.execute();
        } else {
            self.feed(Event::Tick);
        }
        true
    }

    pub fn run(&mut self, duration: Duration) {
        let until = self.now + duration;
        while self.step(until) {}
    }

    /// Until this holds; panics if it does not within the time.
    pub fn run_until(&mut self, within: Duration, holds: impl Fn(&World) -> bool) -> Duration {
        let begin = self.now;
        while !holds(self) {
            assert!(self.step(begin + within), "not within {within:?}: {:?}", self.engine);
        }
        self.now - begin
    }

    /// The network changed: the engine will hear of it.
    pub fn tell(&mut self, after: Duration) {
        self.news_at = Some(self.now + after);
    }

    pub fn is_connected(&self) -> bool {
        matches!(self.engine.state(), State::Connected(_))
    }

    /// Nothing happens any more unless somebody does something.
    pub fn rests(&self) -> bool {
        self.queue.is_empty() && self.engine.deadline().is_none() && self.news_at.is_none()
    }

    /// The first time at which a peer was set since the log was cleared.
    pub fn peer_set(&self) -> Option<(Time, Candidate)> {
        self.effects.iter().find_map(|(at, it)| match it {
            Effect::SetPeer(candidate) => Some((*at, *candidate)),
            _ => None,
        })
    }

    /// Performs the executor's next effect.
    pub fn execute(&mut self) {
        let Some(effect) = self.queue.pop_front() else { return };
        if self.failing > 0 && self.dice.once_in(self.failing) || !self.apply(&effect) {
            // The next attempt sees what came meanwhile.
            self.disturbed_meanwhile &= effect != Effect::HoldLock;
            self.feed(Event::Failed(effect, BAD_LUCK.to_owned()));
        } else {
            if effect == Effect::ReadTunnel {
                self.shake_hands_again();
                let reading = self.reading();
                self.feed(Event::Tunnel(reading));
            }
            self.feed(Event::Done(effect));
        }
    }

    fn apply(&mut self, effect: &Effect) -> bool {
        let up = self.network.tunnel == TunnelLink::Up;
        match effect {
            Effect::HoldLock => {
                self.disturbed = std::mem::take(&mut self.disturbed_meanwhile) && !self.open;
                self.replies_dropped = false;
            }
            Effect::EnsureLink if !up => {
                self.lose_link(TunnelLink::Up);
                self.foreign_key = false;
                self.tell(self.slowness);
            }
            Effect::EnsureLink if self.foreign_key => {
                (self.foreign_key, self.handshake) = (false, None);
            }
            Effect::RemoveLink if up => {
                self.lose_link(TunnelLink::Absent);
                self.tell(self.slowness);
            }
            Effect::SetPeer(candidate) => {
                let server = self.settings.servers.get(candidate.server);
                let known = server.is_some_and(|it| it.endpoints.contains(&candidate.endpoint));
                if !known || !up {
                    return false;
                }
                self.peer = Some(candidate.endpoint);
                (self.handshake, self.received, self.sent) = (None, 0, 0);
                self.unanswered = None;
            }
            Effect::Probe => {
                if !up {
                    return false;
                }
                self.packet(self.answers_probes.then_some(SMALL));
            }
            Effect::ReadTunnel => return up,
            Effect::EnsureRoutes => {
                self.routed |= up;
                return up;
            }
            Effect::Unlock => self.routed = false,
            Effect::SetDns => {
                self.resolved |= up;
                return up;
            }
            Effect::RestoreDns => self.resolved = false,
            Effect::WatchTraffic if self.cannot_watch => return false,
            Effect::WatchTraffic => self.watched = up,
            _ => {}
        }
        true
    }

    /// The tunnel's link goes, or goes down, with what was on it; another may stand there instead.
    pub fn lose_link(&mut self, then: TunnelLink) {
        (self.network.tunnel, self.peer, self.routed) = (then, None, false);
    }

    fn reading(&self) -> Reading {
        let candidate = self.peer.and_then(|endpoint| {
            let server =
                self.settings.servers.iter().position(|it| it.endpoints.contains(&endpoint))?;
            Some(Candidate { server, endpoint })
        });
        Reading {
            candidate,
            handshake_age: self.handshake.map(|at| self.now - at),
            received: self.received,
            sent: self.sent,
        }
    }

    /// Whether the peer's server can be heard.
    fn hears(&self) -> bool {
        let Some(peer) = self.peer else { return false };
        let uplink = if peer.is_ipv4() { &self.network.v4 } else { &self.network.v6 };
        let dropped = self.foreign_key || self.replies_dropped && !self.open;
        uplink.is_some() && !self.dead.contains(&peer) && !dropped
    }

    /// WireGuard's REKEY_TIMEOUT after its KEEPALIVE_TIMEOUT.
    fn shake_hands_again(&mut self) {
        if self.peer.is_some() && self.unanswered.is_some_and(|it| self.now >= it + 15 * SECOND) {
            self.unanswered = None;
            self.shake_hands();
        }
    }

    /// Whether the server answered.
    fn shake_hands(&mut self) -> bool {
        self.sent += INITIATION;
        let answered = self.hears();
        if answered {
            self.received += if self.counts { RESPONSE } else { 0 };
            self.handshake = Some(self.now);
        }
        answered
    }

    /// A packet goes into the tunnel, and perhaps one comes back.
    fn packet(&mut self, answer: Option<u64>) {
        self.shake_hands_again();
        let valid = self.handshake.is_some_and(|at| self.now - at < 180 * SECOND);
        if !valid && self.peer.is_some() {
            if !self.shake_hands() {
                return;
            }
            self.answered_at = self.now;
        }
        if self.peer.is_none() {
            return;
        }
        self.sent += SMALL;
        self.unanswered.get_or_insert(self.now);
        if !self.hears() || self.peer.is_some_and(|it| self.swallowing.contains(&it)) {
            return;
        }
        let keepalive = self.now - self.answered_at >= 10 * SECOND;
        if answer.is_none() && !keepalive {
            return;
        }
        self.answered_at = self.now;
        self.keepalives += usize::from(answer.is_none());
        if answer.is_none() && self.lost_keepalive == Some(self.keepalives) {
            return;
        }
        self.unanswered = None;
        self.received += answer.unwrap_or(if self.counts { KEEPALIVE } else { 0 });
    }

    /// Somebody's traffic.
    fn send(&mut self) {
        self.traffic_at = self.now + self.every;
        if self.network.tunnel != TunnelLink::Up {
            return;
        }
        self.packet((self.traffic == Traffic::BothWays).then_some(1000));
        if std::mem::take(&mut self.watched) {
            self.feed(Event::Sent);
        }
    }
}
