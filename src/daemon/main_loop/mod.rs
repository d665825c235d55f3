//! The loop itself: what it waits for, and that what the engine says is done.

mod exceptions;
mod facts;
mod reports;
mod requests;
mod surroundings;

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::{Instant, sleep, sleep_until};

use self::surroundings::index_if_up;
use super::calls::{self, Answer, Board, Call, Facts};
use super::lanes::{Lane, Lanes, Report};
use super::{Error, Plan, now, system};
use crate::config::Config;
use crate::dbus;
use crate::engine::{Command, Effect, Engine, Event, Layer, State, Time};
use crate::evidence::{Places, Recorder, Trouble, What, ruleset_hash};
use crate::exceptions::Book;
use crate::lock::{self, Keeper};
use crate::netlink::Family;
use crate::policy::Policy;
use crate::watch::{Blocked, BlockedWatch, Observer, Sleep, Watch};
use crate::wireguard::{Device, TrafficAlarm};

/// A lane that works on one thing for longer is not healthy: the watchdog is not fed.
const LONGEST_EFFECT: Duration = Duration::from_secs(60);
/// For what must end before the daemon does.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

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
            // Before all others, so that none can hold it up.
            () = until(daemon.exceptions.deadline()) => daemon.end_due_exceptions(),
            Some(report) = daemon.reports.recv() => daemon.reported(report),
            Some(call) = daemon.calls.recv() => daemon.called(call),
            Some(()) = hang_up.recv() => daemon.reload(),
            sent = sent(&daemon.alarm) => daemon.alarmed(sent),
            woke = resumed(&mut daemon.sleep) => daemon.woke(woke),
            () = until(daemon.engine.deadline()) => daemon.decide(Event::Tick),
            () = until(daemon.next_sign_of_life) => daemon.feed_watchdog(),
            Ok(()) = daemon.evidence.changed() => daemon.publish(),
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
    config: Option<Arc<Config>>,
    /// The configuration's.
    policy: Arc<Policy>,
    exceptions: Book,
    /// The policy with the exceptions.
    effective: Arc<Policy>,
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
    /// Index of the tunnel's link, if it was up when it was last looked at.
    tunnel_up: Option<u32>,
    /// Links changed, and the tunnel's routes were not set since: see [`Daemon::look_at_tunnel`].
    routes_doubted: bool,
    sleep: Option<Sleep>,
    /// `None`: nobody is told what is blocked.
    blocked: Option<BlockedWatch>,
    alarm: Option<TrafficAlarm>,
    board: Arc<Board>,
    calls: mpsc::Receiver<Call>,
    /// Who waits for the lock to be open.
    wait_for_open: Vec<Answer>,
    /// Who waits for it to be closed.
    wait_for_closed: Vec<(u64, Answer)>,
    /// How many holds of the lock were asked for, and how many have ended: its lane keeps their order.
    holds_asked: u64,
    holds_ended: u64,
    /// Who waits for what has ended to be closed, after a reload.
    wait_for_tightened: Vec<Answer>,
    tighten_after_reload: bool,
    /// A new configuration, whose policy the lock's lane is applying.
    coming: Option<Coming>,
    /// Since when effects have been with their lanes, each in order.
    under_way: Vec<UnderWay>,
    ready: bool,
    /// The lock's lane has seen it closed and whole, and nobody has opened it since.
    held: bool,
    /// Of the lock that is held, no layer is missing.
    whole: bool,
    /// The lane has opened it, and not closed it since.
    opened: bool,
    /// Exceptions whose closing failed.
    unclosed: Vec<u32>,
    /// See [`Facts::revision`](super::calls::Facts).
    revision: u64,
    /// What the lock's lane said last.
    lock_degraded: Vec<String>,
    link_degraded: Vec<String>,
    control_degraded: Option<String>,
    blocked_degraded: Option<String>,
    /// Why evidence is not kept as it should be.
    evidence: Trouble,
    recorded_state: Option<What>,
    recorded_degraded: BTreeSet<String>,
    failing: BTreeSet<String>,
    /// Changes by others that are not yet undone.
    disturbed: bool,
    repairs: u64,
    next_sign_of_life: Option<Time>,
    told: String,
}

/// Something that a lane has to do.
struct UnderWay {
    lane: Lane,
    since: Time,
    /// By the engine, which then waits for its end.
    asked: bool,
}

/// See [`Daemon::coming`].
struct Coming {
    config: Config,
    answer: Option<Answer>,
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
        let (config, policy) = (config.map(Arc::new), Arc::new(policy));
        let started = What::DaemonStarted {
            version: env!("CARGO_PKG_VERSION").into(),
            ruleset: ruleset_hash(&policy),
        };
        let (recorder, evidence) = Recorder::start(Places::default(), started);
        let facts = Facts {
            report: calls::Report::default(),
            configured: policy.clone(),
            policy: policy.clone(),
            config: config.clone(),
            complaint: complaint.clone(),
            path: path.to_owned(),
            revision: 0,
            open: false,
        };
        let board = Arc::new(Board::new(facts, recorder));
        let (call, calls) = mpsc::channel(1);
        let served = dbus::serve(&dbus::Daemon { board: board.clone(), calls: call });
        let control_degraded = served.err().map(|error| {
            tracing::error!(%error, "no control socket: root, too, must ask over the system bus");
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
        let device = config.as_deref().and_then(device);
        // Before the tunnel is read: a link that takes this one's place from here on is seen.
        let tunnel_up = device.as_ref().and_then(|device| index_if_up(device.link().ok()?));
        // A tunnel that works may have been left by a daemon that was killed.
        let tunnel = device.as_ref().and_then(|device| device.read().ok().flatten());
        let mut daemon = Daemon {
            path: path.to_owned(),
            config,
            effective: policy.clone(),
            policy,
            exceptions: Book::default(),
            complaint,
            device,
            engine: Engine::new(settings, seed()),
            lanes,
            reports,
            watch,
            own_ports,
            observer,
            tunnel_up,
            routes_doubted: false,
            sleep,
            blocked,
            alarm: None,
            board,
            calls,
            wait_for_open: Vec::new(),
            wait_for_closed: Vec::new(),
            holds_asked: 0,
            holds_ended: 0,
            wait_for_tightened: Vec::new(),
            tighten_after_reload: false,
            coming: None,
            under_way: Vec::new(),
            ready: false,
            held: false,
            whole: false,
            opened: false,
            unclosed: Vec::new(),
            revision: 0,
            lock_degraded: Vec::new(),
            link_degraded: Vec::new(),
            control_degraded,
            blocked_degraded,
            evidence,
            recorded_state: None,
            recorded_degraded: BTreeSet::new(),
            failing: BTreeSet::new(),
            disturbed: false,
            repairs: 0,
            next_sign_of_life: None,
            told: String::new(),
        };
        daemon.feed_watchdog();
        daemon.decide(Event::Started { network: network.network, tunnel });
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
        self.publish();
    }

    fn perform(&mut self, effect: Effect) {
        if effect == Effect::HoldLock {
            self.holds_asked += 1;
        }
        let lane = Lane::of(&effect);
        self.under_way.push(UnderWay { lane, since: now(), asked: true });
        self.lanes.perform(effect);
    }

    /// What the engine did not ask for, and shall not hear of.
    fn perform_besides(&mut self, effect: Effect) {
        self.begin(Lane::of(&effect));
        self.lanes.perform(effect);
    }

    /// Something of our own begins in a lane.
    fn begin(&mut self, lane: Lane) {
        self.under_way.push(UnderWay { lane, since: now(), asked: false });
    }

    /// Only a loop that turns and lanes that get done feed it.
    fn feed_watchdog(&mut self) {
        let Some(every) = system::watchdog() else { return };
        let stuck = self
            .under_way
            .first()
            .is_some_and(|it| now().saturating_sub(it.since) > LONGEST_EFFECT);
        if stuck {
            tracing::error!("an effect does not end: systemd will restart the daemon");
        } else {
            system::alive();
        }
        self.next_sign_of_life = Some(now() + every);
    }

    /// The lock stays, without exceptions; the tunnel as configured.
    async fn stop(mut self) {
        system::stopping();
        self.wind_up().await;
        self.board.record(What::DaemonStopped);
        self.board.finish_recording();
    }

    async fn wind_up(&mut self) {
        // It is told by a task of its own.
        tokio::task::yield_now().await;
        if self.end_all_exceptions("the daemon stops") {
            self.tighten(None);
            self.finish(|daemon| daemon.exceptions.is_empty(), "exceptions are closed").await;
        }
        self.hold_once_more().await;
        let keep = self.config.as_ref().is_none_or(|config| config.tunnel.keep_at_stop);
        if keep || matches!(self.engine.state(), State::External { .. }) {
            tracing::info!("stopping; the lock and the tunnel stay");
            return;
        }
        tracing::info!("stopping; the lock stays");
        self.decide(Event::Command(Command::Disconnect));
        self.finish(|daemon| daemon.under_way.is_empty(), "the tunnel is down").await;
    }

    /// The signal is heard before any change of the lock, and Debian's nftables.service flushes, where
    /// it can, just before this daemon's turn to stop: nobody would mend that.
    async fn hold_once_more(&mut self) {
        self.decide(Event::Disturbed(Layer::Tables));
        self.finish(|daemon| daemon.holds_ended == daemon.holds_asked, "the lock is whole").await;
    }

    /// Waits for what must be done before the daemon ends, but not for ever.
    async fn finish(&mut self, done: impl Fn(&Self) -> bool, what: &str) {
        let end = Instant::now() + LAST_PATIENCE;
        while !done(self) {
            tokio::select! {
                Some(report) = self.reports.recv() => self.reported(report),
                () = sleep_until(end) => return tracing::warn!("stopping before {what}"),
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
    config.tunnel.is_managed().then(|| Device::new(config))
}

/// For jitter: daemons that lost the same server shall not return all at once.
fn seed() -> u64 {
    now().as_nanos() as u64 ^ u64::from(std::process::id()) << 32
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
