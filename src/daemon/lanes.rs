//! What performs effects: three lanes, each one thing at a time.
//!
//! The lock and the tunnel have a thread each, since what they do blocks (netlink, WireGuard); the
//! resolvers are asked over D-Bus, which waits in the loop's own runtime. A thread that waits for
//! work costs nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::calls::Answer;
use crate::config::Config;
use crate::dns::{self, Changes, Resolvers, Restarts, Used};
use crate::engine::{Effect, Reading, TunnelLink};
use crate::lock::{Keeper, Outcome};
use crate::netlink::{Family, Socket};
use crate::policy::Policy;
use crate::routing;
use crate::wireguard::Device;

/// Where what must outlive a restart of the machine is kept.
const STATE: &str = "/var/lib/killswitch";

/// How an effect ended.
#[derive(Debug)]
pub(super) enum Report {
    /// The lock was read, and mended where it differed.
    Held(Result<Outcome, String>),
    /// It was opened; whether there was one.
    Unlocked(Result<bool, String>),
    /// A new policy was applied; after an error the old one is still the one that is held.
    Replaced(Result<Outcome, String>),
    /// An exception was opened, or not; then the policy before it is the one that is held.
    Loosened(u32, Result<Outcome, String>, Answer),
    /// Exceptions were closed. After an error some may be open still, but no longer than until the
    /// lock is held again.
    Tightened(Vec<u32>, Result<Outcome, String>, Vec<Answer>),
    /// The tunnel's link is there; what this machine cannot give it.
    LinkReady(Vec<String>),
    /// The counters.
    Read(Reading),
    /// The tunnel's resolvers are wanted, and are not the system's any more.
    ResolversLost,
    /// Any other effect.
    Done(Effect),
    /// Any other effect.
    Failed(Effect, String),
}

/// What does one thing at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Tables and routing guard.
    Lock,
    /// Link, peer, counters, routes.
    Tunnel,
    Resolvers,
}

impl Lane {
    /// Whose an effect is, unless it is the loop's own.
    pub(super) fn of(effect: &Effect) -> Self {
        match effect {
            Effect::HoldLock | Effect::Unlock => Lane::Lock,
            Effect::SetDns | Effect::RestoreDns => Lane::Resolvers,
            _ => Lane::Tunnel,
        }
    }
}

/// Hands effects to their lanes.
pub(super) struct Lanes {
    /// Of the socket by which routes into the tunnel are made.
    pub(super) routes_port: u32,
    lock: mpsc::Sender<LockTask>,
    tunnel: mpsc::Sender<TunnelTask>,
    dns: UnboundedSender<DnsTask>,
    /// A [`DnsTask::Look`] waits: a second one would see the same.
    looks: Arc<AtomicBool>,
}

enum LockTask {
    Hold,
    Unlock,
    Replace(Box<Policy>),
    /// With one more exception, of this number.
    Loosen(Box<Policy>, u32, Answer),
    /// Without these.
    Tighten(Box<Policy>, Vec<u32>, Vec<Answer>),
}

enum TunnelTask {
    Perform(Effect),
    Configure(Box<Config>),
}

enum DnsTask {
    Set,
    Restore,
    /// Others, a DHCP client for one, may have replaced them.
    Look,
    /// `None`: there is no tunnel of ours.
    Configure(Option<Resolvers>),
}

impl Lanes {
    /// Starts the lanes. Every effect is answered by one report or, for the counters, two.
    pub(super) fn start(
        keeper: Keeper,
        policy: Policy,
        config: Option<&Config>,
    ) -> io::Result<(Self, UnboundedReceiver<Report>)> {
        let (reports, received) = unbounded_channel();
        let (lock, tasks) = mpsc::channel();
        let to = reports.clone();
        spawn("lock", move || hold_lock(keeper, policy, &tasks, &to))?;
        let (tunnel, tasks) = mpsc::channel();
        let (to, device) = (reports.clone(), config.and_then(managed));
        let routes = Socket::open(Family::Route)?;
        let routes_port = routes.port();
        spawn("tunnel", move || keep_tunnel(device, &routes, &tasks, &to))?;
        let (dns, tasks) = unbounded_channel();
        let looks = Arc::new(AtomicBool::new(false));
        tokio::spawn(keep_resolvers(config.and_then(resolvers), tasks, looks.clone(), reports));
        Ok((Lanes { routes_port, lock, tunnel, dns, looks }, received))
    }

    /// What an effect that is not the loop's own needs done.
    pub(super) fn perform(&self, effect: Effect) {
        // A lane ends only with the loop.
        match effect {
            Effect::HoldLock => drop(self.lock.send(LockTask::Hold)),
            Effect::Unlock => drop(self.lock.send(LockTask::Unlock)),
            Effect::SetDns => drop(self.dns.send(DnsTask::Set)),
            Effect::RestoreDns => drop(self.dns.send(DnsTask::Restore)),
            other => drop(self.tunnel.send(TunnelTask::Perform(other))),
        }
    }

    /// While the tunnel's resolvers are wanted, tells if somebody replaced them.
    pub(super) fn look_at_resolvers(&self) {
        if !self.looks.swap(true, Ordering::Relaxed) {
            let _ = self.dns.send(DnsTask::Look);
        }
    }

    /// Applies a new policy.
    pub(super) fn replace(&self, policy: Policy) {
        let _ = self.lock.send(LockTask::Replace(Box::new(policy)));
    }

    /// Applies the policy with one more exception.
    pub(super) fn loosen(&self, policy: Policy, id: u32, answer: Answer) {
        let _ = self.lock.send(LockTask::Loosen(Box::new(policy), id, answer));
    }

    /// Applies the policy without these exceptions. Whatever comes of that, it is the one that is
    /// held from now on.
    pub(super) fn tighten(&self, policy: Policy, ids: Vec<u32>, answers: Vec<Answer>) {
        let _ = self.lock.send(LockTask::Tighten(Box::new(policy), ids, answers));
    }

    /// From now on the tunnel and its resolvers are these.
    pub(super) fn configure(&self, config: &Config) {
        let _ = self.dns.send(DnsTask::Configure(resolvers(config)));
        let _ = self.tunnel.send(TunnelTask::Configure(Box::new(config.clone())));
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // Neither recurses: the default of 2 MiB would be address space for nothing.
    const STACK: usize = 512 << 10;
    std::thread::Builder::new().name(name.into()).stack_size(STACK).spawn(work).map(drop)
}

fn hold_lock(
    mut keeper: Keeper,
    mut policy: Policy,
    tasks: &mpsc::Receiver<LockTask>,
    reports: &UnboundedSender<Report>,
) {
    let mut parked = false;
    // Opened by an administrator: to be closed by nothing but what means to.
    let mut open = false;
    for task in tasks {
        let report = match task {
            LockTask::Hold => {
                open = false;
                Report::Held(keeper.hold(&policy).map_err(|it| it.to_string()))
            }
            LockTask::Unlock => {
                let unlocked = keeper.unlock().map_err(|it| it.to_string());
                open = unlocked.is_ok();
                Report::Unlocked(unlocked)
            }
            LockTask::Replace(new) => {
                Report::Replaced(put(&mut keeper, *new, &mut policy, &mut open))
            }
            LockTask::Loosen(_, id, answer) if open => {
                Report::Loosened(id, Err("the lock was opened meanwhile".into()), answer)
            }
            LockTask::Loosen(new, id, answer) => {
                Report::Loosened(id, put(&mut keeper, *new, &mut policy, &mut open), answer)
            }
            LockTask::Tighten(new, ids, answers) => {
                policy = *new;
                let outcome = match open {
                    true => Ok(Outcome::default()),
                    false => keeper.hold(&policy).map_err(|it| it.to_string()),
                };
                Report::Tightened(ids, outcome, answers)
            }
        };
        if !parked && matches!(&report, Report::Held(Ok(outcome)) if outcome.owned) {
            match keeper.park() {
                Ok(()) => parked = true,
                Err(error) => tracing::warn!(%error, "systemd does not keep the tables' owner"),
            }
        }
        #[cfg(feature = "lab")]
        crash::perhaps();
        if reports.send(report).is_err() {
            return;
        }
    }
}

/// Applies a new policy, and keeps it if that succeeds.
fn put(
    keeper: &mut Keeper,
    new: Policy,
    policy: &mut Policy,
    open: &mut bool,
) -> Result<Outcome, String> {
    let outcome = keeper.replace(&new).map_err(|it| it.to_string())?;
    (*policy, *open) = (new, false);
    Ok(outcome)
}

/// The tunnel's device and where it leads.
struct Tunnel {
    device: Device,
    interface: String,
    destinations: Vec<IpNet>,
}

impl Tunnel {
    /// Every server's destinations: a route that the present one does not serve leads nowhere, where
    /// one that comes and goes with the server could be missed.
    fn new(config: &Config) -> Self {
        let all = config.servers.iter().flat_map(|server| server.allowed_ips.iter().copied());
        Tunnel {
            device: Device::new(config),
            interface: config.tunnel.interface.clone(),
            destinations: IpNet::aggregate(&all.collect::<Vec<_>>()),
        }
    }

    fn perform(
        &self,
        effect: Effect,
        routes: &Socket,
        reports: &UnboundedSender<Report>,
    ) -> Report {
        let done = |result: Result<(), String>| match result {
            Ok(()) => Report::Done(effect.clone()),
            Err(why) => Report::Failed(effect.clone(), why),
        };
        let words = |error: crate::wireguard::Error| error.to_string();
        match &effect {
            Effect::EnsureLink => match self.device.ensure_link() {
                Ok(link) => {
                    let _ = reports.send(Report::LinkReady(link.degraded));
                    done(Ok(()))
                }
                Err(error) => done(Err(words(error))),
            },
            Effect::RemoveLink => done(self.device.remove_link().map_err(words)),
            Effect::SetPeer(candidate) => done(self.device.set_peer(*candidate).map_err(words)),
            Effect::Probe => done(self.device.probe().map_err(words)),
            Effect::EnsureRoutes => done(self.ensure_routes(routes)),
            Effect::ReadTunnel => match self.device.read() {
                Ok(Some(reading)) => {
                    let _ = reports.send(Report::Read(reading));
                    done(Ok(()))
                }
                Ok(None) => done(Err("there is no tunnel to read".into())),
                Err(error) => done(Err(words(error))),
            },
            other => done(Err(format!("not the tunnel's: {other:?}"))),
        }
    }

    fn ensure_routes(&self, socket: &Socket) -> Result<(), String> {
        // By its name alone a look-alike would get them.
        let link = match self.device.link().map_err(|error| error.to_string())? {
            (TunnelLink::Up | TunnelLink::Down, Some(index)) => index,
            _ => return Err(format!("there is no link {:?} of ours", self.interface)),
        };
        // Answers to what was given up half-way.
        socket.discard_pending();
        self.destinations.iter().try_for_each(|&destination| {
            match routing::add_tunnel_route(socket, link, destination) {
                // Without IPv6 in the kernel there is nothing that could leave over it either.
                Err(error) if destination.addr().is_ipv6() && error.is_ipv6_missing() => Ok(()),
                other => other.map_err(|error| error.to_string()),
            }
        })
    }
}

fn keep_tunnel(
    mut tunnel: Option<Tunnel>,
    routes: &Socket,
    tasks: &mpsc::Receiver<TunnelTask>,
    reports: &UnboundedSender<Report>,
) {
    for task in tasks {
        let report = match (task, &tunnel) {
            (TunnelTask::Configure(config), _) => {
                let new = managed(&config);
                if let Some(old) = &tunnel
                    && new.as_ref().is_none_or(|new| new.interface != old.interface)
                    && let Err(error) = old.device.remove_link()
                {
                    tracing::warn!(%error, "the earlier configuration's tunnel is left behind");
                }
                tunnel = new;
                continue;
            }
            (TunnelTask::Perform(effect), Some(tunnel)) => tunnel.perform(effect, routes, reports),
            // It went with the configuration; what stands there now is not ours.
            (TunnelTask::Perform(effect @ Effect::RemoveLink), None) => Report::Done(effect),
            (TunnelTask::Perform(effect), None) => {
                Report::Failed(effect, "the configuration has no tunnel".into())
            }
        };
        #[cfg(feature = "lab")]
        crash::perhaps();
        if reports.send(report).is_err() {
            return;
        }
    }
}

/// The tunnel, if it is ours to make.
fn managed(config: &Config) -> Option<Tunnel> {
    config.tunnel.is_managed().then(|| Tunnel::new(config))
}

/// The tunnel's resolvers, if it is ours: those of another tunnel's link are its maker's.
fn resolvers(config: &Config) -> Option<Resolvers> {
    config.tunnel.is_managed().then(|| Resolvers {
        interface: config.tunnel.interface.clone(),
        servers: config.tunnel.dns.clone(),
        search: config.tunnel.dns_search.clone(),
        state_dir: PathBuf::from(STATE),
    })
}

async fn keep_resolvers(
    mut resolvers: Option<Resolvers>,
    mut tasks: UnboundedReceiver<DnsTask>,
    looks: Arc<AtomicBool>,
    reports: UnboundedSender<Report>,
) {
    let mut wanted = false;
    let mut restarts = None;
    // Only while the file itself is ours: its keepers write it anew whenever they are told something.
    let mut changes = None;
    loop {
        let task = tokio::select! {
            task = tasks.recv() => match task {
                Some(task) => task,
                None => return,
            },
            // A restarted systemd-resolved has forgotten what it was told.
            () = restarted(&mut restarts), if wanted => {
                let _ = reports.send(Report::ResolversLost);
                continue;
            }
            () = changed(&mut changes), if wanted => DnsTask::Look,
        };
        let report = match task {
            DnsTask::Configure(new) => {
                // The engine has the new ones set, if they are wanted.
                if wanted
                    && resolvers != new
                    && let Err(error) = restore(resolvers.as_ref()).await
                {
                    tracing::warn!("the earlier configuration's resolvers: {error}");
                }
                resolvers = new;
                continue;
            }
            DnsTask::Look => {
                looks.store(false, Ordering::Relaxed);
                if wanted
                    && let Some(resolvers) = &resolvers
                    && !resolvers.is_set().await
                {
                    tracing::info!("somebody replaced the tunnel's resolvers: setting them again");
                    let _ = reports.send(Report::ResolversLost);
                }
                continue;
            }
            DnsTask::Set => {
                wanted = true;
                // Before: no change shall be missed.
                let listening = changes.take().or_else(listen_to_changes);
                let used = set(resolvers.as_ref()).await;
                changes = listening.filter(|_| used == Ok(Used::File));
                told(Effect::SetDns, used.map(drop))
            }
            DnsTask::Restore => {
                (wanted, changes) = (false, None);
                told(Effect::RestoreDns, restore(resolvers.as_ref()).await)
            }
        };
        #[cfg(feature = "lab")]
        crash::perhaps();
        if reports.send(report).is_err() {
            return;
        }
    }
}

fn told(effect: Effect, result: Result<(), String>) -> Report {
    match result {
        Ok(()) => Report::Done(effect),
        Err(why) => Report::Failed(effect, why),
    }
}

async fn set(resolvers: Option<&Resolvers>) -> Result<Used, String> {
    let Some(resolvers) = resolvers.filter(|it| !it.servers.is_empty()) else {
        return Ok(Used::Nothing);
    };
    let index = nix::net::if_::if_nametoindex(resolvers.interface.as_str())
        .map_err(|error| format!("{}: {error}", resolvers.interface))?;
    resolvers.set(index).await.map_err(|error| error.to_string())
}

async fn restore(resolvers: Option<&Resolvers>) -> Result<(), String> {
    let restored = match resolvers {
        Some(resolvers) => resolvers.restore().await,
        None => dns::restore_without_link(Path::new(STATE)).await,
    };
    restored.map(drop).map_err(|error| error.to_string())
}

fn listen_to_changes() -> Option<Changes> {
    Changes::listen()
        .inspect_err(|error| tracing::warn!(%error, "a changed /etc/resolv.conf may go unnoticed"))
        .ok()
}

async fn changed(changes: &mut Option<Changes>) {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

/// The next restart of systemd-resolved; without a bus there is none to wait for.
async fn restarted(listener: &mut Option<Restarts>) {
    /// A bus may come later. Rarely: this wakes an idle daemon.
    const AGAIN: Duration = Duration::from_secs(600);
    if listener.is_none() {
        *listener = Restarts::listen().await.ok();
    }
    if let Some(restarts) = listener
        && restarts.next().await.is_some()
    {
        return;
    }
    *listener = None;
    tokio::time::sleep(AGAIN).await;
}

/// For tests only: the daemon is killed between two effects.
#[cfg(feature = "lab")]
mod crash {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    use nix::sys::signal::{Signal, raise};

    /// Effects until then.
    static LEFT: LazyLock<AtomicI64> = LazyLock::new(|| {
        let number = std::env::var("KILLSWITCH_CRASH_AFTER").ok();
        AtomicI64::new(number.and_then(|text| text.parse().ok()).unwrap_or(i64::MAX))
    });

    pub(super) fn perhaps() {
        if LEFT.fetch_sub(1, Ordering::Relaxed) == 1 {
            let _ = raise(Signal::SIGKILL);
        }
    }
}
