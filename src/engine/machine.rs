//! The machine: takes events apart, holds the lock, tries failed effects again.

use super::candidates::Memory;
use super::pending::Pending;
use super::trouble::Troubles;
use super::tunnel::{Link, Phase, Plan};
use super::{
    Command, Effect, Event, Layer, Network, Reading, Settings, State, Time, TunnelLink, candidates,
};
use crate::dice::Dice;

/// Decides what the daemon does. Its fields say what is wanted and what was seen.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(super) settings: Settings,
    pub(super) network: Network,
    started: bool,
    lock: Lock,
    /// Whether a tunnel is wanted (of a managed one).
    pub(super) wanted: bool,
    /// The server that an administrator named.
    pub(super) asked: Option<usize>,
    pub(super) memory: Memory,
    pub(super) phase: Phase,
    pub(super) plan: Plan,
    pub(super) link: Link,
    /// The routing guard was disturbed while the routes were being set.
    routes_again: bool,
    pub(super) pending: Pending,
    pub(super) troubles: Troubles,
    pub(super) dice: Dice,
    state: State,
    announced: bool,
    effects: Vec<Effect>,
}

/// What is wanted of the lock, and what was seen of it.
#[derive(Debug, Clone, Default)]
struct Lock {
    /// An administrator said so. Nothing else sets it; only an administrator clears it, or that the
    /// opening failed.
    open: bool,
    /// Not seen closed since it was opened.
    seen_open: bool,
    /// It was disturbed while it was being mended.
    again: bool,
}

/// What undoes an effect.
fn opposite(effect: &Effect) -> Option<Effect> {
    Some(match effect {
        Effect::EnsureLink => Effect::RemoveLink,
        Effect::RemoveLink => Effect::EnsureLink,
        Effect::SetDns => Effect::RestoreDns,
        Effect::RestoreDns => Effect::SetDns,
        _ => return None,
    })
}

impl Engine {
    /// Before [`Event::Started`] it wants nothing. The seed is for jitter only.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            network: Network::default(),
            started: false,
            lock: Lock::default(),
            wanted: false,
            asked: None,
            memory: Memory::default(),
            phase: Phase::Off,
            plan: Plan::default(),
            link: Link::default(),
            routes_again: false,
            pending: Pending::default(),
            troubles: Troubles::default(),
            dice: Dice::new(seed),
            state: State::Disconnected,
            announced: false,
            effects: Vec::new(),
        }
    }

    /// Takes an event at a time not before the last one's; gives what is to be done, in this order.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Effect> {
        self.take(event, now);
        self.retry_what_failed(now);
        self.advance(now);
        self.do_again();
        self.forget_unwanted_troubles();
        self.announce();
        std::mem::take(&mut self.effects)
    }

    /// When [`Event::Tick`] must come; `None`: nothing is due, however long nothing happens.
    pub fn deadline(&self) -> Option<Time> {
        self.troubles.deadline().into_iter().chain(self.tunnel_deadline()).min()
    }

    /// As last announced, or to be announced by the first event.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// In words, what is not as the configuration wants it; empty: nothing.
    pub fn degraded(&self) -> Vec<String> {
        let words = self.troubles.in_words();
        words.chain(self.trouble_with_link().map(str::to_owned)).collect()
    }

    /// Whether the tunnel's resolvers shall be the system's. While the lock is open, nothing routes
    /// to them through the tunnel: they would be asked in clear.
    pub(super) fn wants_dns(&self) -> bool {
        self.keeps_tunnel() && !self.lock.open
    }

    /// Whether the tunnel is ours to keep up.
    pub(super) fn keeps_tunnel(&self) -> bool {
        self.wanted && self.settings.managed
    }

    pub(super) fn perform(&mut self, effect: Effect) {
        self.troubles.asked(&effect);
        self.pending.push(effect.clone());
        self.effects.push(effect);
    }

    /// Unless it is already to come.
    pub(super) fn perform_once(&mut self, effect: Effect) {
        let comes = match opposite(&effect) {
            // What comes before its opposite is undone again.
            Some(opposite) => self.pending.holds_after(&effect, &opposite),
            None => self.pending.holds(&effect),
        };
        if !comes {
            self.perform(effect);
        }
    }

    fn take(&mut self, event: Event, now: Time) {
        match event {
            Event::Started { network, tunnel } => self.start(network, tunnel, now),
            Event::Network(network) => self.network_changed(network, now),
            Event::LinkAppeared | Event::Disturbed(Layer::Tables) => self.hold(),
            Event::Disturbed(Layer::Routing) => {
                self.hold();
                self.route_again();
            }
            Event::Tunnel(reading) => self.tunnel_read(reading, now),
            Event::Sent => self.traffic_sent(now),
            Event::ResolversLost => self.resolve_again(),
            Event::Resumed => self.resumed(now),
            Event::Command(command) => self.obey(command, now),
            Event::Configured(settings) => self.configured(settings, now),
            Event::Done(effect) => self.done(&effect, now),
            Event::Failed(effect, why) => self.failed(effect, why, now),
            Event::Tick => {}
        }
    }

    fn start(&mut self, network: Network, tunnel: Option<Reading>, now: Time) {
        if self.started {
            return self.network_changed(network, now);
        }
        self.started = true;
        self.network = network;
        self.hold();
        if self.settings.managed {
            self.find_tunnel(tunnel, now);
        }
        // What a daemon left that was killed.
        if !self.pending.holds(&Effect::SetDns) {
            self.perform(Effect::RestoreDns);
        }
    }

    fn find_tunnel(&mut self, tunnel: Option<Reading>, now: Time) {
        let of_ours = |it: &Reading| {
            it.candidate.is_some_and(|it| candidates::known(&self.settings.servers, it))
        };
        let found = tunnel.filter(of_ours);
        // A tunnel that is there was wanted when the last daemon died.
        self.wanted |= self.settings.connect_at_start || found.is_some();
        if self.wanted {
            self.adopt_or_connect(found, now);
        }
    }

    fn obey(&mut self, command: Command, now: Time) {
        match command {
            Command::Lock => {
                self.lock.open = false;
                self.hold();
                self.route_again();
                self.resolve_again();
            }
            Command::Unlock => {
                self.lock = Lock { open: true, seen_open: true, again: false };
                if !self.pending.holds_after(&Effect::Unlock, &Effect::HoldLock) {
                    self.perform(Effect::Unlock);
                }
                // The tunnel's routes go with the lock, and its resolvers are behind them. They may be
                // set whatever the phase: a new handshake leaves them.
                if self.keeps_tunnel() {
                    self.perform_once(Effect::RestoreDns);
                }
            }
            Command::Connect(server) => self.connect(server, now),
            Command::Disconnect => self.disconnect(),
            Command::Reconnect => self.reconnect(now),
        }
    }

    /// Makes the lock what is configured. Many disturbances at once cost one effect, and one more
    /// for what came while it was performed.
    pub(super) fn hold(&mut self) {
        if self.lock.open {
            return;
        }
        self.lock.again = self.pending.holds_after(&Effect::HoldLock, &Effect::Unlock);
        if !self.lock.again {
            self.perform(Effect::HoldLock);
        }
    }

    fn route_again(&mut self) {
        if self.lock.open || !self.keeps_tunnel() || !self.link.built {
            return;
        }
        self.routes_again = self.pending.holds(&Effect::EnsureRoutes);
        if !self.routes_again {
            self.perform(Effect::EnsureRoutes);
        }
    }

    /// The tunnel's resolvers, unless they wait for a handshake.
    pub(super) fn resolve_again(&mut self) {
        if self.wants_dns() && self.has_session() {
            self.perform_once(Effect::SetDns);
        }
    }

    fn do_again(&mut self) {
        if self.lock.again && !self.pending.holds(&Effect::HoldLock) {
            self.hold();
        }
        if self.routes_again && !self.pending.holds(&Effect::EnsureRoutes) {
            self.routes_again = false;
            self.route_again();
        }
    }

    fn done(&mut self, effect: &Effect, now: Time) {
        if !self.pending.end(effect) {
            return;
        }
        self.troubles.ended(effect);
        match effect {
            Effect::HoldLock if !self.lock.open && !self.pending.holds(&Effect::Unlock) => {
                let was_open = std::mem::take(&mut self.lock.seen_open);
                // The routes went with the lock.
                if was_open {
                    self.route_again();
                }
            }
            Effect::EnsureLink => {
                self.link.confirmed = self.network.tunnel == TunnelLink::Up;
                self.troubles.link_is_there(|it| self.pending.holds(it), now);
                // It may be another than before, of which no event told: that one has no routes.
                if !self.lock.open && self.still_wanted(&Effect::EnsureRoutes) {
                    self.perform_once(Effect::EnsureRoutes);
                }
            }
            _ => {}
        }
    }

    fn failed(&mut self, effect: Effect, why: String, now: Time) {
        if !self.pending.end(&effect) {
            return;
        }
        match effect {
            Effect::HoldLock => self.lock.again = false,
            // Whoever asked has been told that it failed: it must not open later, unasked.
            Effect::Unlock if !self.pending.holds(&Effect::Unlock) => {
                self.lock.open = false;
                self.hold();
                self.resolve_again();
            }
            Effect::EnsureRoutes => self.routes_again = false,
            Effect::Probe => self.probe_failed(),
            Effect::WatchTraffic => self.watching_failed(now),
            _ => {}
        }
        let retry = self.retries(&effect);
        self.troubles.failed(effect, why, retry, now);
    }

    /// Whether this effect is tried again on its own. Without a link nothing can be done on it; and
    /// whoever cannot watch traffic reads until there is none, and then tries to watch again.
    fn retries(&self, effect: &Effect) -> bool {
        match effect {
            Effect::WatchTraffic => false,
            Effect::SetPeer(_) | Effect::EnsureRoutes | Effect::Probe => {
                !self.troubles.has(&Effect::EnsureLink)
            }
            _ => true,
        }
    }

    fn retry_what_failed(&mut self, now: Time) {
        for effect in self.troubles.take_due(now) {
            if !self.still_wanted(&effect) || self.pending.holds(&effect) {
                continue;
            }
            match effect {
                Effect::EnsureLink => self.make_link_again(),
                // WireGuard may hang: making the link sees to it that it answers.
                Effect::SetPeer(candidate) => {
                    self.perform_once(Effect::EnsureLink);
                    self.set_peer(candidate);
                }
                Effect::ReadTunnel => {
                    self.perform_once(Effect::EnsureLink);
                    self.perform(effect);
                }
                _ => self.perform(effect),
            }
        }
    }

    fn forget_unwanted_troubles(&mut self) {
        let mut troubles = std::mem::take(&mut self.troubles);
        troubles.retain(|trouble| self.still_wanted(&trouble.effect));
        self.troubles = troubles;
    }

    fn still_wanted(&self, effect: &Effect) -> bool {
        match effect {
            Effect::HoldLock => !self.lock.open,
            Effect::Unlock => self.lock.open,
            Effect::SetDns => self.wants_dns(),
            Effect::RestoreDns => !self.wants_dns(),
            Effect::RemoveLink => !self.keeps_tunnel(),
            Effect::SetPeer(candidate) => self.awaits_handshake_of() == Some(*candidate),
            Effect::Probe | Effect::ReadTunnel | Effect::WatchTraffic => self.uses_tunnel(),
            Effect::Announce(_) => false,
            Effect::EnsureRoutes => self.keeps_tunnel() && self.link.built,
            Effect::EnsureLink => self.keeps_tunnel(),
        }
    }

    fn announce(&mut self) {
        let state = if self.lock.seen_open { State::Open } else { self.tunnel_state() };
        if self.announced && state == self.state {
            return;
        }
        (self.state, self.announced) = (state, true);
        self.perform(Effect::Announce(state));
    }
}
