//! The loop itself.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use super::control::{self, Announcer, Call};
use super::lanes::{Lane, Lanes, Report};
use super::protocol::{self, Reply, Request};
use super::{Error, Plan, system};
use crate::config::{self, Config};
use crate::engine::{Command, Effect, Engine, Event, Layer, State, Time, TunnelLink};
use crate::lock::{self, Keeper, Outcome};
use crate::netlink::Family;
use crate::policy::Policy;
use crate::watch::{Blocked, BlockedWatch, Change, Culprit, Observer, Sleep, Watch};
use crate::wireguard::{Device, TrafficAlarm};

/// A lane that works on one thing for longer is not healthy: the watchdog is not fed.
const LONGEST_EFFECT: Duration = Duration::from_secs(60);
/// For what must end before the daemon does.
const LAST_PATIENCE: Duration = Duration::from_secs(5);
/// Before a failed socket is opened anew.
const PAUSE: Duration = Duration::from_millis(200);

/// Runs until a signal ends it.
pub(super) async fn run(path: &Path, plan: Plan) -> Result<(), Error> {
    // First: a signal that nobody listens for ends the process.
    let mut hang_up = signal(SignalKind::hangup()).map_err(Error::Runtime)?;
    let mut end = Ends::new().map_err(Error::Runtime)?;
    let mut daemon = Daemon::start(path, plan).await?;
    loop {
        tokio::select! {
            biased;
            () = end.asked() => break,
            Some(report) = daemon.reports.recv() => daemon.reported(report),
            Some(call) = daemon.calls.recv() => daemon.called(call),
            Some(()) = hang_up.recv() => daemon.reload(None),
            sent = sent(&daemon.alarm) => daemon.alarmed(sent),
            woke = resumed(&mut daemon.sleep) => daemon.woke(woke),
            () = until(daemon.engine.deadline()) => daemon.decide(Event::Tick),
            () = until(daemon.next_sign_of_life) => daemon.feed_watchdog(),
            blocked = blocked(&mut daemon.blocked) => daemon.tell_blocked(blocked),
            // Last: in a storm there is always one more.
            change = daemon.watch.next() => daemon.changed(change).await,
        }
    }
    daemon.stop().await;
    Ok(())
}

struct Daemon {
    path: PathBuf,
    /// `None`: it cannot be used.
    config: Option<Config>,
    policy: Policy,
    complaint: Option<String>,
    /// Only read here: the tunnel's lane changes it.
    device: Option<Device>,
    engine: Engine,
    lanes: Lanes,
    reports: UnboundedReceiver<Report>,
    watch: Watch,
    /// What these sockets change is our own doing.
    own_ports: Vec<(Family, u32)>,
    observer: Observer,
    sleep: Option<Sleep>,
    /// `None`: nobody is told what is blocked.
    blocked: Option<BlockedWatch>,
    alarm: Option<TrafficAlarm>,
    announcer: Announcer,
    calls: mpsc::Receiver<Call>,
    /// Who waits for the lock to be open.
    waiting: Vec<oneshot::Sender<Reply>>,
    /// A new configuration, whose policy the lock's lane is applying.
    coming: Option<Coming>,
    /// Since when effects have been with their lanes, each in order.
    under_way: Vec<(Lane, Time)>,
    ready: bool,
    /// What the lock's lane said last.
    lock_degraded: Vec<String>,
    link_degraded: Vec<String>,
    control_degraded: Option<String>,
    blocked_degraded: Option<String>,
    failing: BTreeSet<String>,
    /// Changes by others that are not yet undone.
    disturbed: bool,
    repairs: u64,
    next_sign_of_life: Option<Time>,
    told: String,
}

/// See [`Daemon::coming`].
struct Coming {
    config: Config,
    answer: Option<oneshot::Sender<Reply>>,
    /// An administrator opened the lock after asking for this.
    unlocked: bool,
}

impl Daemon {
    async fn start(path: &Path, plan: Plan) -> Result<Self, Error> {
        let Plan { config, policy, settings, complaint } = plan;
        // Before anything is read, so that no change is missed.
        let mut watch = Watch::open().map_err(Error::Kernel)?;
        let mut observer = Observer::open().map_err(Error::Kernel)?;
        let parked = lock::parked().unwrap_or_else(|error| {
            tracing::warn!(%error, "what systemd kept for us cannot be used");
            Vec::new()
        });
        let mut keeper = Keeper::adopt(parked).map_err(Error::Kernel)?;
        let mut own_ports = keeper.ports().unwrap_or_else(|error| {
            tracing::warn!(%error, "our own changes cannot be told from others'");
            Vec::new()
        });
        let (lanes, reports) =
            Lanes::start(keeper, policy.clone(), config.as_ref()).map_err(Error::Thread)?;
        own_ports.push((Family::Route, lanes.routes_port));
        own_ports.iter().for_each(|&(family, port)| watch.disregard(family, port));
        let announcer = Announcer::new();
        let (call, calls) = mpsc::channel(1);
        let control_degraded = control::listen(announcer.clone(), call).err().map(|error| {
            tracing::error!(%error, "no control socket: connect, disconnect and the like cannot be asked for");
            format!("control socket: {error}")
        });
        let sleep = Sleep::open()
            .inspect_err(|error| tracing::warn!(%error, "waking up goes unnoticed"))
            .ok();
        let (blocked, blocked_degraded) = match BlockedWatch::open() {
            Ok(blocked) => (Some(blocked), None),
            Err(error) => {
                tracing::warn!(%error, "what is blocked is not told");
                (None, Some(format!("what is blocked is not told: {error}")))
            }
        };
        let network = observer.observe(policy.tunnel.as_ref()).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "links and routes cannot be read yet");
            crate::watch::Observed { network: Default::default(), links_changed: true }
        });
        let device = config.as_ref().and_then(device);
        // A tunnel that works may have been left by a daemon that was killed.
        let tunnel = device.as_ref().and_then(|device| device.read().ok().flatten());
        let mut daemon = Daemon {
            path: path.to_owned(),
            config,
            policy,
            complaint,
            device,
            engine: Engine::new(settings, seed()),
            lanes,
            reports,
            watch,
            own_ports,
            observer,
            sleep,
            blocked,
            alarm: None,
            announcer,
            calls,
            waiting: Vec::new(),
            coming: None,
            under_way: Vec::new(),
            ready: false,
            lock_degraded: Vec::new(),
            link_degraded: Vec::new(),
            control_degraded,
            blocked_degraded,
            failing: BTreeSet::new(),
            disturbed: false,
            repairs: 0,
            next_sign_of_life: None,
            told: String::new(),
        };
        daemon.feed_watchdog();
        daemon.decide(Event::Started { network: network.network, tunnel });
        if !matches!(daemon.engine.state(), State::Connected(_)) {
            daemon.lanes.tidy_resolvers();
        }
        Ok(daemon)
    }

    /// Asks the engine, and sees to it that what it says is done, in its order.
    fn decide(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.engine.handle(event, now()) {
                match effect {
                    Effect::Announce(_) => self.announce(),
                    Effect::WatchTraffic => events.push_back(self.watch_traffic()),
                    other => self.perform(other),
                }
            }
        }
        self.tell_systemd();
    }

    fn perform(&mut self, effect: Effect) {
        self.under_way.push((Lane::of(&effect), now()));
        self.lanes.perform(effect);
    }

    fn reported(&mut self, report: Report) {
        match report {
            Report::LinkReady(degraded) => self.link_degraded = degraded,
            Report::Read(reading) => self.decide(Event::Tunnel(reading)),
            Report::Held(result) => {
                self.ended(Lane::Lock);
                self.held(result);
            }
            Report::Unlocked(result) => {
                self.ended(Lane::Lock);
                self.unlocked(result);
            }
            Report::Replaced(result) => {
                self.ended(Lane::Lock);
                self.replaced(result);
            }
            Report::Done(effect) => {
                self.ended(Lane::of(&effect));
                self.failing.remove(&name(&effect));
                self.decide(Event::Done(effect));
            }
            Report::Failed(effect, why) => {
                self.ended(Lane::of(&effect));
                self.failed(&effect, &why);
                self.decide(Event::Failed(effect, why));
            }
        }
    }

    fn ended(&mut self, lane: Lane) {
        if let Some(oldest) = self.under_way.iter().position(|it| it.0 == lane) {
            self.under_way.remove(oldest);
        }
    }

    fn held(&mut self, result: Result<Outcome, String>) {
        let effect = Effect::HoldLock;
        match result {
            Ok(outcome) => {
                if outcome.changed && std::mem::take(&mut self.disturbed) {
                    self.repairs += 1;
                    tracing::warn!(
                        REPAIRS = self.repairs,
                        "the lock was changed by others: mended"
                    );
                    self.tell(protocol::Event::Repaired { repairs: self.repairs });
                }
                self.disturbed = false;
                self.lock_degraded = outcome.degraded;
                self.failing.remove(&name(&effect));
                self.decide(Event::Done(effect));
                if !std::mem::replace(&mut self.ready, true) {
                    system::ready();
                }
            }
            Err(why) => {
                self.failed(&effect, &why);
                self.decide(Event::Failed(effect, why));
            }
        }
    }

    fn unlocked(&mut self, result: Result<bool, String>) {
        let effect = Effect::Unlock;
        match result {
            Ok(changed) => {
                tracing::warn!("unlocked by an administrator: everything may leave in clear");
                self.lock_degraded.clear();
                self.failing.remove(&name(&effect));
                self.answer(&Reply::Done { changed, degraded: Vec::new() });
                self.decide(Event::Done(effect));
            }
            Err(why) => {
                self.answer(&control::refused(why.clone()));
                self.failed(&effect, &why);
                self.decide(Event::Failed(effect, why));
            }
        }
    }

    fn replaced(&mut self, result: Result<Outcome, String>) {
        let Some(Coming { config, answer, unlocked }) = self.coming.take() else { return };
        let reply = match result {
            Ok(outcome) => {
                let plan = Plan::of(config);
                self.policy = plan.policy;
                self.complaint = None;
                self.lock_degraded = outcome.degraded.clone();
                let mut anew = false;
                if let Some(config) = &plan.config {
                    self.lanes.configure(config);
                    self.device = device(config);
                    anew = self.config.as_ref().is_some_and(|old| ends_session(old, config));
                }
                self.config = plan.config;
                self.decide(Event::Configured(plan.settings));
                if anew && matches!(self.engine.state(), State::Connecting(_) | State::Connected(_))
                {
                    self.decide(Event::Command(Command::Reconnect));
                }
                // `reload` locks an open machine.
                if !unlocked {
                    self.decide(Event::Command(Command::Lock));
                }
                tracing::info!("reloaded");
                self.tell(protocol::Event::Reloaded);
                Reply::Done { changed: outcome.changed, degraded: outcome.degraded }
            }
            Err(why) => {
                tracing::error!("not reloaded, the old lock stays: {why}");
                control::refused(format!("{why}\nthe lock is as it was"))
            }
        };
        if let Some(answer) = answer {
            let _ = answer.send(reply);
        }
        if self.ready {
            system::ready();
        }
    }

    fn reload(&mut self, answer: Option<oneshot::Sender<Reply>>) {
        let refuse = |words: String, code, answer: Option<oneshot::Sender<Reply>>| {
            tracing::error!("not reloaded, the old lock stays: {words}");
            if let Some(answer) = answer {
                let _ = answer.send(Reply::Refused { error: words, code });
            }
        };
        if self.coming.is_some() {
            return refuse("another reload is under way".into(), 1, answer);
        }
        match config::load(&self.path) {
            Ok(config) => {
                if self.ready {
                    system::reloading();
                }
                self.under_way.push((Lane::Lock, now()));
                self.lanes.replace(Policy::from_config(&config));
                self.coming = Some(Coming { config, answer, unlocked: false });
            }
            Err(error) => {
                /// As the command line's: bad configuration.
                const BAD_CONFIGURATION: u8 = 78;
                refuse(format!("{error}\nthe lock is as it was"), BAD_CONFIGURATION, answer);
            }
        }
    }

    async fn changed(&mut self, change: std::io::Result<Change>) {
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
                    observed.network.tunnel = link;
                    self.look_at_tunnel(link, index);
                }
                if observed.links_changed {
                    self.decide(Event::LinkAppeared);
                }
                self.decide(Event::Network(observed.network));
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

    /// Addresses that others put on the tunnel's link, or took, are no matter of the engine's: making
    /// the link what it shall be disturbs no session. With an address the kernel takes IPv4 routes of
    /// the link, and tells nobody (`fib_flush`).
    fn look_at_tunnel(&mut self, link: TunnelLink, index: Option<u32>) {
        let (TunnelLink::Up, Some(index), Some(device)) = (link, index, &self.device) else {
            return;
        };
        let foreign = device.has_foreign_addresses(index).unwrap_or(false);
        if foreign {
            tracing::warn!("somebody changed the addresses of the tunnel's link: mending");
            self.perform(Effect::EnsureLink);
        }
        let idle = !self.under_way.iter().any(|(lane, _)| *lane == Lane::Tunnel);
        if foreign || (idle && matches!(self.engine.state(), State::Connected(_))) {
            self.perform(Effect::EnsureRoutes);
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
        self.tell(protocol::Event::Tampered { layer: layer.into(), pid, process });
    }

    fn tell_blocked(&mut self, blocked: std::io::Result<Blocked>) {
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
                self.tell(protocol::Event::Blocked(blocked));
            }
            Err(error) => {
                tracing::warn!(%error, "what is blocked is not told from now on");
                self.blocked_degraded = Some(format!("what is blocked is not told: {error}"));
                self.blocked = None;
            }
        }
    }

    fn woke(&mut self, woke: std::io::Result<()>) {
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
    fn watch_traffic(&mut self) -> Event {
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

    fn alarmed(&mut self, sent: std::io::Result<()>) {
        self.alarm = None;
        if let Err(error) = sent {
            tracing::warn!(%error, "traffic into the tunnel may have gone unseen");
        }
        // If that cannot be told, the counters will.
        self.decide(Event::Sent);
    }

    fn called(&mut self, call: Call) {
        let Call { request, answer } = call;
        let done = Reply::Done { changed: true, degraded: Vec::new() };
        let reply = match request {
            Request::Connect { server } => match self.connect(server) {
                Ok(()) => done,
                Err(refusal) => control::refused(refusal),
            },
            Request::Disconnect => self.command(Command::Disconnect),
            Request::Reconnect => self.command(Command::Reconnect),
            Request::Unlock => {
                self.waiting.push(answer);
                if let Some(coming) = &mut self.coming {
                    coming.unlocked = true;
                }
                return self.decide(Event::Command(Command::Unlock));
            }
            Request::Reload { config } if config != self.path => control::refused(format!(
                "the daemon runs with {}, not with {}",
                self.path.display(),
                config.display()
            )),
            Request::Reload { .. } => return self.reload(Some(answer)),
            Request::Status => Reply::Status(self.report()),
            // The control socket's own.
            Request::Monitor => return,
        };
        let _ = answer.send(reply);
    }

    fn command(&mut self, command: Command) -> Reply {
        if let Err(refusal) = self.may_connect() {
            return control::refused(refusal);
        }
        self.decide(Event::Command(command));
        Reply::Done { changed: true, degraded: Vec::new() }
    }

    fn may_connect(&self) -> Result<&Config, String> {
        let config = self.config.as_ref().ok_or("the configuration cannot be used")?;
        match config.tunnel.kind {
            config::TunnelKind::Wireguard => Ok(config),
            config::TunnelKind::External => {
                Err("tunnel.kind is \"external\": something else brings the tunnel up".into())
            }
        }
    }

    fn connect(&mut self, server: Option<String>) -> Result<(), String> {
        let config = self.may_connect()?;
        let position = match &server {
            None => None,
            Some(name) => {
                let known = config.servers.iter().map(|it| it.name.as_str());
                let position = known.clone().position(|it| it == name);
                Some(position.ok_or_else(|| {
                    format!(
                        "there is no server {name:?}; the configuration has: {}",
                        known.collect::<Vec<_>>().join(", ")
                    )
                })?)
            }
        };
        self.decide(Event::Command(Command::Connect(position)));
        Ok(())
    }

    fn answer(&mut self, reply: &Reply) {
        for answer in self.waiting.drain(..) {
            // The caller may have gone.
            let _ = answer.send(reply.clone());
        }
    }

    fn failed(&mut self, effect: &Effect, why: &str) {
        let what = name(effect);
        tracing::warn!(EFFECT = what, "{what} failed, to be tried again: {why}");
        if self.failing.insert(what.clone()) {
            self.tell(protocol::Event::Failed { what, why: why.into() });
        }
    }

    fn announce(&mut self) {
        let report = self.report();
        let words = self.words();
        tracing::info!(STATE = report.state, SERVER = report.server, "{words}");
        self.tell(protocol::Event::State(report));
    }

    fn tell(&self, event: protocol::Event) {
        self.announcer.tell(event);
    }

    fn report(&self) -> protocol::Report {
        let (state, candidate) = match *self.engine.state() {
            State::Open => ("open", None),
            State::Disconnected => ("disconnected", None),
            State::Waiting => ("waiting", None),
            State::Connecting(candidate) => ("connecting", Some(candidate)),
            State::Connected(candidate) => ("connected", Some(candidate)),
            State::External { up: true } => ("connected", None),
            State::External { up: false } => ("disconnected", None),
        };
        let server = candidate
            .and_then(|it| Some(self.config.as_ref()?.servers.get(it.server)?.name.clone()));
        protocol::Report {
            state: state.into(),
            server,
            endpoint: candidate.map(|it| it.endpoint.to_string()),
            degraded: self.degraded(),
            repairs: self.repairs,
        }
    }

    fn degraded(&self) -> Vec<String> {
        let mut all: Vec<String> = self.complaint.iter().cloned().collect();
        all.extend(self.lock_degraded.iter().cloned());
        all.extend(self.link_degraded.iter().cloned());
        all.extend(self.control_degraded.iter().cloned());
        all.extend(self.blocked_degraded.iter().cloned());
        all.extend(self.engine.degraded());
        all
    }

    /// One line for `systemctl status` and the journal.
    fn words(&self) -> String {
        let report = self.report();
        let through = match (&report.server, &report.endpoint) {
            (Some(server), Some(endpoint)) => format!(" {server} ({endpoint})"),
            _ => String::new(),
        };
        let mut words = match report.state.as_str() {
            "open" => "OPEN: an administrator unlocked".to_owned(),
            "connected" => format!("locked, connected{through}"),
            "connecting" => format!("locked, connecting to{through}"),
            "waiting" => "locked, waiting for a network".to_owned(),
            _ => "locked, not connected".to_owned(),
        };
        if let [first, rest @ ..] = report.degraded.as_slice() {
            words.push_str(&format!("; degraded: {first}"));
            if !rest.is_empty() {
                words.push_str(&format!(" and {} more", rest.len()));
            }
        }
        words
    }

    fn tell_systemd(&mut self) {
        let words = self.words();
        if words != self.told {
            system::status(&words);
            self.told = words;
        }
    }

    /// Only a loop that turns and lanes that get done feed it.
    fn feed_watchdog(&mut self) {
        let Some(every) = system::watchdog() else { return };
        let stuck =
            self.under_way.first().is_some_and(|it| now().saturating_sub(it.1) > LONGEST_EFFECT);
        if stuck {
            tracing::error!("an effect does not end: systemd will restart the daemon");
        } else {
            system::alive();
        }
        self.next_sign_of_life = Some(now() + every);
    }

    /// The lock stays; the tunnel as configured.
    async fn stop(mut self) {
        system::stopping();
        // It is told by a task of its own.
        tokio::task::yield_now().await;
        let keep = self.config.as_ref().is_none_or(|config| config.tunnel.keep_at_stop);
        if keep || matches!(self.engine.state(), State::External { .. }) {
            tracing::info!("stopping; the lock and the tunnel stay");
            return;
        }
        tracing::info!("stopping; the lock stays");
        self.decide(Event::Command(Command::Disconnect));
        let end = Instant::now() + LAST_PATIENCE;
        while !self.under_way.is_empty() {
            tokio::select! {
                Some(report) = self.reports.recv() => self.reported(report),
                () = sleep_until(end) => {
                    tracing::warn!("stopping before the tunnel is down");
                    return;
                }
            }
        }
    }
}

/// SIGTERM and SIGINT.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn new() -> std::io::Result<Self> {
        Ok(Ends {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The tunnel, if it is ours to make.
fn device(config: &Config) -> Option<Device> {
    (config.tunnel.kind == config::TunnelKind::Wireguard).then(|| Device::new(config))
}

/// Whether a session made under one configuration cannot go on under the other.
fn ends_session(old: &Config, new: &Config) -> bool {
    let key = |config: &Config| config.tunnel.private_key.clone();
    let peers = |config: &Config| -> Vec<_> {
        let servers = config.servers.iter();
        let peer = |server: &config::Server| {
            let server = server.clone();
            let (name, keepalive) = (server.name, server.persistent_keepalive);
            (name, server.public_key, server.preshared_key, server.allowed_ips, keepalive)
        };
        servers.map(peer).collect()
    };
    key(old) != key(new) || peers(old) != peers(new)
}

/// In the engine's time. CLOCK_BOOTTIME always exists.
fn now() -> Time {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// For jitter: daemons that lost the same server shall not return all at once.
fn seed() -> u64 {
    now().as_nanos() as u64 ^ u64::from(std::process::id()) << 32
}

fn name(effect: &Effect) -> String {
    match effect {
        Effect::HoldLock => "holding the lock",
        Effect::Unlock => "unlocking",
        Effect::EnsureLink => "making the tunnel's link",
        Effect::RemoveLink => "removing the tunnel's link",
        Effect::SetPeer(_) => "setting the server",
        Effect::EnsureRoutes => "routing into the tunnel",
        Effect::SetDns => "setting the resolvers",
        Effect::RestoreDns => "restoring the resolvers",
        Effect::Probe => "probing the server",
        Effect::ReadTunnel => "reading the tunnel",
        Effect::WatchTraffic => "watching the traffic",
        Effect::Announce(_) => "announcing",
    }
    .into()
}

async fn until(deadline: Option<Time>) {
    match deadline {
        Some(deadline) => sleep(deadline.saturating_sub(now())).await,
        None => std::future::pending().await,
    }
}

async fn sent(alarm: &Option<TrafficAlarm>) -> std::io::Result<()> {
    match alarm {
        Some(alarm) => alarm.sent().await,
        None => std::future::pending().await,
    }
}

async fn blocked(watch: &mut Option<BlockedWatch>) -> std::io::Result<Blocked> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

async fn resumed(sleep: &mut Option<Sleep>) -> std::io::Result<()> {
    match sleep {
        Some(sleep) => sleep.resumed().await,
        None => std::future::pending().await,
    }
}
