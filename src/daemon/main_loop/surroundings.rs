//! What changed around the daemon: links and routes, its own tables, sleep, traffic.

use std::time::Duration;

use tokio::time::sleep;

use super::Daemon;
use crate::daemon::calls;
use crate::daemon::lanes::Lane;
use crate::engine::{Effect, Event, Layer, Network, State, TunnelLink};
use crate::watch::{Blocked, Change, Culprit, Observer, Watch};
use crate::wireguard::{Device, TrafficAlarm};

/// Before a failed socket is opened anew.
const PAUSE: Duration = Duration::from_millis(200);

impl Daemon {
    pub(super) async fn changed(&mut self, change: std::io::Result<Change>) {
        let change = match change {
            Ok(change) => change,
            Err(error) => return self.watch_anew(&error).await,
        };
        if let Some(culprit) = &change.tables {
            self.tampered("tables", Some(culprit));
            self.decide(Event::Disturbed(Layer::Tables));
        }
        if change.rules {
            self.tampered("routing", None);
            self.decide(Event::Disturbed(Layer::Routing));
        }
        if change.network || change.lost {
            self.look_around().await;
        }
    }

    async fn look_around(&mut self) {
        match self.observer.observe(self.policy.tunnel.as_ref()).await {
            Ok(mut observed) => {
                // By its name and kind alone a look-alike would be taken for ours.
                let link = self.device.as_ref().map(Device::link);
                if let Some(Ok((link, index))) = link {
                    self.tell_if_replaced(&observed.network, index_if_up((link, index)));
                    observed.network.tunnel = link;
                    self.look_at_tunnel(link, index);
                }
                if observed.links_changed {
                    self.decide(Event::LinkAppeared);
                }
                self.decide(Event::Network(observed.network));
                self.set_doubted_routes();
                if matches!(self.engine.state(), State::Connected(_)) {
                    self.lanes.look_at_resolvers();
                }
            }
            // Too much changed meanwhile: there is another event to come.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!(%error, "links and routes cannot be read");
                match Observer::open() {
                    Ok(observer) => self.observer = observer,
                    Err(error) => tracing::error!(%error, "no socket to read them by"),
                }
            }
        }
    }

    /// A link that stands where another of its name and kind was up has no peer, and nobody saw that
    /// one go: the engine hears so.
    fn tell_if_replaced(&mut self, network: &Network, up: Option<u32>) {
        let last = std::mem::replace(&mut self.tunnel_up, up);
        if last.is_some() && up.is_some() && up != last {
            tracing::warn!("the tunnel's link is another one: beginning anew");
            let gone = Network { tunnel: TunnelLink::Absent, ..network.clone() };
            self.decide(Event::Network(gone));
        }
    }

    /// Addresses that others put on the tunnel's link, or took, and a foreign MTU are no matter of the
    /// engine's: making the link what it shall be disturbs no session. With an address, or when a
    /// link goes down, the kernel takes IPv4 routes of the link, and tells nobody (`fib_flush`).
    fn look_at_tunnel(&mut self, link: TunnelLink, index: Option<u32>) {
        let (TunnelLink::Up, Some(index), Some(device)) = (link, index, &self.device) else {
            return;
        };
        self.routes_doubted = true;
        if device.has_foreign_settings(index).unwrap_or(false) {
            tracing::warn!("somebody changed the tunnel's link: mending");
            self.perform_besides(Effect::EnsureLink);
        }
    }

    /// Once for many changes: when the lane has nothing else to do.
    pub(super) fn set_doubted_routes(&mut self) {
        let idle = !self.under_way.iter().any(|it| it.lane == Lane::Tunnel);
        if self.routes_doubted && idle && matches!(self.engine.state(), State::Connected(_)) {
            self.routes_doubted = false;
            self.perform_besides(Effect::EnsureRoutes);
        }
    }

    /// A socket that failed is opened anew; meanwhile anything may have happened.
    async fn watch_anew(&mut self, error: &std::io::Error) {
        tracing::error!(%error, "the kernel's events cannot be read; listening anew");
        sleep(PAUSE).await;
        if let Ok(mut watch) = Watch::open() {
            self.own_ports.iter().for_each(|&(family, port)| watch.disregard(family, port));
            self.watch = watch;
        }
        self.decide(Event::Disturbed(Layer::Tables));
        self.decide(Event::Disturbed(Layer::Routing));
        self.look_around().await;
    }

    fn tampered(&mut self, layer: &str, culprit: Option<&Culprit>) {
        // Told once until it is mended: a program may change a hundred rules one by one.
        if *self.engine.state() == State::Open || std::mem::replace(&mut self.disturbed, true) {
            return;
        }
        let (pid, process) = match culprit {
            Some(Culprit::Process { pid, name }) => (Some(*pid), Some(name.clone())),
            _ => (None, None),
        };
        let by = culprit.map(|it| format!(" by {it}")).unwrap_or_default();
        tracing::warn!(LAYER = layer, PID = pid, PROCESS = process, "{layer} changed{by}: mending");
        self.board.tell(calls::Event::Tampered { layer: layer.into(), pid, process });
    }

    pub(super) fn tell_blocked(&mut self, blocked: std::io::Result<Blocked>) {
        match blocked {
            Ok(blocked) => {
                tracing::info!(
                    LINK = blocked.link,
                    DESTINATION = blocked.destination.map(|it| it.to_string()),
                    PORT = blocked.port,
                    PROTOCOL = blocked.protocol,
                    UID = blocked.uid,
                    CGROUP = blocked.cgroup,
                    SUPPRESSED = blocked.suppressed,
                    "blocked {blocked}"
                );
                self.board.tell(calls::Event::Blocked(blocked));
            }
            Err(error) => {
                tracing::warn!(%error, "what is blocked is not told from now on");
                self.blocked_degraded = Some(format!("what is blocked is not told: {error}"));
                self.blocked = None;
            }
        }
    }

    pub(super) fn woke(&mut self, woke: std::io::Result<()>) {
        match woke {
            Ok(()) => {
                tracing::info!("woke from sleep");
                self.decide(Event::Resumed);
            }
            Err(error) => {
                tracing::warn!(%error, "waking up goes unnoticed from now on");
                self.sleep = None;
            }
        }
    }

    /// How it ended.
    pub(super) fn watch_traffic(&mut self) -> Event {
        let index = self
            .policy
            .tunnel
            .as_ref()
            .and_then(|tunnel| nix::net::if_::if_nametoindex(tunnel.interface.as_str()).ok());
        let effect = Effect::WatchTraffic;
        match index.map(TrafficAlarm::set) {
            Some(Ok(alarm)) => {
                self.alarm = Some(alarm);
                Event::Done(effect)
            }
            Some(Err(error)) => {
                self.failed(&effect, &error.to_string());
                Event::Failed(effect, error.to_string())
            }
            None => Event::Failed(effect, "no tunnel link".into()),
        }
    }

    pub(super) fn alarmed(&mut self, sent: std::io::Result<()>) {
        self.alarm = None;
        if let Err(error) = sent {
            tracing::warn!(%error, "traffic into the tunnel may have gone unseen");
        }
        // If that cannot be told, the counters will.
        self.decide(Event::Sent);
    }
}

/// Index of the tunnel's link, of what [`Device::link`] says.
pub(super) fn index_if_up((link, index): (TunnelLink, Option<u32>)) -> Option<u32> {
    index.filter(|_| link == TunnelLink::Up)
}
