//! A laboratory in which payload flows, by the daemon or by a WireGuard that nobody watches.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread::sleep;
use std::time::{Duration, Instant};

use killswitch::lab::addresses::*;
use killswitch::lab::{Context, Daemon, Error, Lab, Result, Wireguard, setup};
use killswitch::netlink::{Family, Socket};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::payload::Payload;
use crate::{OUTAGE, SETTLED};

/// From a link's carrier to its route: a DHCP client's exchange. Without it the first question for
/// the gateway may meet a bridge that has not seen the carrier, and is repeated a second later.
const LEASE: Duration = Duration::from_millis(50);

/// What is lost, and comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The default route.
    Route,
    /// The link, and with it the route.
    Link,
    /// All: another router, another address.
    Network,
}

/// Dropped in this order: those who use the laboratory first.
pub struct Stage {
    pub payload: Payload,
    keeper: Keeper,
    routes: Socket,
    /// Index of the client's link.
    link: u32,
    elsewhere: bool,
    pub lab: Lab,
}

/// Who brought the tunnel up.
enum Keeper {
    Daemon { daemon: Daemon, configuration: PathBuf },
    Nobody(Option<Wireguard>),
}

/// What the daemon took so far, or takes.
pub struct Usage {
    /// Voluntary context switches of all its threads.
    pub wakeups: u64,
    pub processor: Duration,
    /// Bytes.
    pub memory: u64,
    /// Bytes of it that no file backs.
    pub anonymous: u64,
    pub threads: usize,
}

impl Stage {
    pub fn with_daemon() -> Result<Self> {
        let lab = lab()?;
        let configuration = setup::write_configuration(&lab, "")?;
        let daemon = Daemon::start_and_wait(&lab, &setup::program()?, &configuration)?;
        Self::set(lab, Keeper::Daemon { daemon, configuration })
    }

    pub fn without_daemon() -> Result<Self> {
        let lab = lab()?;
        let tunnel = lab.client_tunnel(0)?;
        lab.route_into_tunnel()?;
        Self::set(lab, Keeper::Nobody(Some(tunnel)))
    }

    fn set(lab: Lab, keeper: Keeper) -> Result<Self> {
        let payload = Payload::start(&lab)?;
        let routes = lab.client.run(|| Socket::open(Family::Route))?.during("netlink")?;
        let link = lab.client.run(|| nix::net::if_::if_nametoindex(CLIENT_LINK))?;
        let link = link.during(CLIENT_LINK)?;
        let stage = Stage { payload, keeper, routes, link, elsewhere: false, lab };
        stage.payload.first(Instant::now(), Some(SERVER1_V4))?;
        // Handshakes, readings and what is started late.
        sleep(Duration::from_secs(3));
        Ok(stage)
    }

    /// A wait in [`Stage::interrupted`] without more.
    pub fn nothing(&mut self) -> Result<()> {
        Ok(())
    }

    /// Takes the way out away, does something, and brings it back: the time from its default route
    /// to the first payload.
    pub fn interrupted(
        &mut self,
        way: Way,
        meanwhile: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Duration> {
        self.payload.forget();
        self.payload.first(Instant::now(), None)?;
        self.cut(way)?;
        sleep(OUTAGE);
        meanwhile(self)?;
        if way == Way::Link {
            self.lab.client.ip(&format!("link set {CLIENT_LINK} up"))?;
            sleep(LEASE);
        }
        let begin = Instant::now();
        self.add_default_route()?;
        let first = self.payload.first(begin, None)?;
        sleep(SETTLED);
        Ok(first - begin)
    }

    fn cut(&mut self, way: Way) -> Result<()> {
        let (client, router) = (&self.lab.client, &self.lab.router);
        match way {
            Way::Route => client.ip("route delete default"),
            Way::Link => client.ip(&format!("link set {CLIENT_LINK} down")),
            Way::Network => {
                self.elsewhere = !self.elsewhere;
                let places = [(CLIENT_V4, LAN_LINK), (OTHER_CLIENT_V4, OTHER_LAN_LINK)];
                let [(old, _), (new, bridge)] =
                    if self.elsewhere { places } else { [places[1], places[0]] };
                router.ip(&format!("link set {WIRE} down"))?;
                client.ip(&format!(
                    "route delete default
                     address delete {old}/24 dev {CLIENT_LINK}
                     address add {new}/24 dev {CLIENT_LINK}"
                ))?;
                router.ip(&format!("link set {WIRE} master {bridge}\nlink set {WIRE} up"))
            }
        }
    }

    /// By a message of our own: starting a program would take longer than what is measured.
    fn add_default_route(&self) -> Result<()> {
        let gateway = if self.elsewhere { OTHER_ROUTER_V4 } else { ROUTER_V4 };
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Dhcp;
        route.header.scope = RouteScope::Universe;
        route.header.kind = RouteType::Unicast;
        route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        // Without it the kernel would find the gateway behind the tunnel.
        route.attributes.push(RouteAttribute::Oif(self.link));
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(route));
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.routes.send(&bytes).during("adding the default route")?;
        let answers = self.routes.receive().during("adding the default route")?;
        match answers.iter().find_map(|it| it.ack()?.failure) {
            Some(failure) => Err(Error::new(format!("adding the default route: {failure}"))),
            None => Ok(()),
        }
    }

    /// Server 1 neither hears nor says anything. Since when.
    pub fn silence(&self) -> Result<Instant> {
        self.payload.forget();
        self.payload.first(Instant::now(), Some(SERVER1_V4))?;
        self.lab.servers[0].silence()?;
        Ok(Instant::now())
    }

    pub fn undo_silence(&self) -> Result<()> {
        self.lab.servers[0].end_silence()
    }

    /// One that never had a session.
    pub fn start_wireguard_anew(&mut self) -> Result<()> {
        if let Keeper::Nobody(tunnel) = &mut self.keeper {
            *tunnel = None;
            *tunnel = Some(self.lab.client_tunnel(0)?);
        }
        Ok(())
    }

    pub fn killswitch(&self, arguments: &[&str]) -> Result<Output> {
        let Keeper::Daemon { configuration, .. } = &self.keeper else { return Err(no_daemon()) };
        setup::killswitch(&self.lab, &setup::program()?, configuration, arguments)
    }

    pub fn restart(&mut self) -> Result<()> {
        match &mut self.keeper {
            Keeper::Daemon { daemon, .. } => daemon.again(&self.lab),
            Keeper::Nobody(_) => Err(no_daemon()),
        }
    }

    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        match &mut self.keeper {
            Keeper::Daemon { daemon, .. } => Ok(daemon),
            Keeper::Nobody(_) => Err(no_daemon()),
        }
    }

    pub fn usage(&mut self) -> Result<Usage> {
        Usage::of(self.daemon()?.id().ok_or_else(no_daemon)?)
    }
}

fn no_daemon() -> Error {
    Error::new("there is no daemon")
}

impl Usage {
    fn of(process: u32) -> Result<Self> {
        let status = read(Path::new(&format!("/proc/{process}/status")))?;
        let tasks = fs::read_dir(format!("/proc/{process}/task")).during("its threads")?;
        let (mut wakeups, mut processor, mut threads) = (0, 0, 0);
        for task in tasks {
            let task = task.during("its threads")?.path();
            wakeups += field(&read(&task.join("status"))?, "voluntary_ctxt_switches:");
            // Nanoseconds on a processor (Documentation/scheduler/sched-stats.rst).
            let schedule = read(&task.join("schedstat"))?;
            processor += schedule.split(' ').next().and_then(|it| it.parse().ok()).unwrap_or(0);
            threads += 1;
        }
        Ok(Usage {
            wakeups,
            processor: Duration::from_nanos(processor),
            memory: field(&status, "VmRSS:") << 10,
            anonymous: field(&status, "RssAnon:") << 10,
            threads,
        })
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).during(path.display())
}

/// The number after a word at the start of a line.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|it| it.parse().ok()).unwrap_or(0)
}

/// With both servers, and a client that has but IPv4: which family comes back first would decide.
fn lab() -> Result<Lab> {
    let lab = Lab::with_servers()?;
    lab.client.command("ip", &["-6", "route", "delete", "default"])?;
    Ok(lab)
}
