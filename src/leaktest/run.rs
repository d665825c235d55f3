//! A running test: what is sent, what is seen of it, and what becomes of the machine meanwhile.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use super::canary::Run;
use super::capture::{Capture, Captured};
use super::frame::Frame as Wire;
use super::in_force::InForce;
use super::judge::Judgement;
use super::probe::{self, Aims, Probe, plan};
use super::record::{Bands, Columns, Kind, Phases, Seen, bounded, overall};
use super::report::{BandKind, Frame, Level, Machine, Probe as Tried, Report, Verdict};
use super::surroundings::Surroundings;
use crate::dbus::client;
use crate::lock::{self, State, Status};
use crate::policy::Policy;

/// The form of the report's document.
const FORMAT: u32 = 1;

/// What is tested, and under which words it is reported.
#[derive(Debug, Clone)]
pub struct Subject {
    /// What may leave at the beginning.
    pub policy: Policy,
    /// The file by which that may change; `None`: it does not.
    pub configuration: Option<PathBuf>,
    /// The machine.
    pub machine: Machine,
    /// The command line that repeats it.
    pub repeat: String,
    /// The lock is not what it should be, as `machine.degraded` says.
    pub damaged: bool,
}

/// A test that runs.
pub struct Test {
    subject: Subject,
    pub(super) in_force: InForce,
    /// When another policy came into force.
    changes: Vec<u64>,
    run: Run,
    start: Instant,
    began: u64,
    capture: Capture,
    pub(super) here: Surroundings,
    aims: Aims,
    /// By the probe's number; last: everybody else.
    seen: Vec<Seen>,
    own_links: BTreeSet<u32>,
    columns: Columns,
    bands: Bands,
    pub(super) phases: Phases,
    pub(super) limits: Vec<String>,
    /// Packets that the lock dropped, as it counts them.
    blocked: Option<u64>,
    /// There was a link by which something could have left.
    exposed: bool,
    /// There was a moment without a lock.
    opened: bool,
    sampled: Option<Instant>,
    /// By which it ends before its time.
    signals: Option<SignalFd>,
}

impl Test {
    /// Begins to watch; with the probes to send. `lasting`: also by sockets that are open from now on.
    ///
    /// # Errors
    /// Those of sockets.
    pub fn begin(
        subject: Subject,
        lasting: bool,
    ) -> io::Result<(Self, Vec<Probe>, Option<impl Sized>)> {
        let run = Run::new()?;
        let mut here = Surroundings::read()?;
        let tunnel = here.tunnel(&subject.policy);
        let capture = Capture::start(&subject.policy, tunnel)?;
        let start = Instant::now();
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let plan = plan(&run, &subject.policy, &here, lasting);
        let own_links: BTreeSet<u32> = plan.guest.iter().map(|it| it.link).collect();
        here.links.retain(|it| !own_links.contains(&it.index));
        let mut limits = plan.limits;
        limits.extend(unwatched(&here, &subject.policy));
        let in_force = InForce::new(subject.policy.clone(), subject.configuration.clone());
        let mut test = Test {
            in_force,
            changes: Vec::new(),
            aims: Aims::of(&plan.probes),
            seen: vec![Seen::default(); plan.probes.len() + 1],
            subject,
            run,
            start,
            began,
            capture,
            here,
            own_links,
            columns: Columns::default(),
            bands: Bands::default(),
            phases: Phases::default(),
            limits,
            blocked: None,
            exposed: false,
            opened: false,
            sampled: None,
            signals: None,
        };
        test.sample()?;
        Ok((test, plan.probes, plan.guest))
    }

    /// A signal that waits here ends it.
    pub fn end_by(&mut self, signals: SignalFd) {
        self.signals = Some(signals);
    }

    /// Milliseconds since it began.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A new part of the test begins.
    pub fn phase(&mut self, name: &str, title: &str) {
        let now = self.now_ms();
        self.phases.begin(now, name, title);
    }

    /// Watches for so long; looks at the machine's state as often as `every`.
    ///
    /// # Errors
    /// Those of sockets; Interrupted: by a signal.
    pub fn attend(&mut self, period: Duration, every: Duration) -> io::Result<()> {
        let end = Instant::now() + period;
        loop {
            self.drain()?;
            if self.sampled.is_none_or(|it| it.elapsed() >= every) {
                self.sample()?;
            }
            let rest = end.saturating_duration_since(Instant::now()).min(every);
            if rest.is_zero() {
                return Ok(());
            }
            if let Some(signals) = &self.signals
                && signals.read_signal()?.is_some()
            {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let ready = PollFlags::POLLIN;
            let mut waiting = vec![PollFd::new(self.capture.as_fd(), ready)];
            waiting.extend(self.in_force.events().map(|it| PollFd::new(it.as_fd(), ready)));
            waiting.extend(self.signals.iter().map(|it| PollFd::new(it.as_fd(), ready)));
            let timeout = PollTimeout::try_from(rest).unwrap_or(PollTimeout::ZERO);
            match poll(&mut waiting, timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            // Many at once cost less than one by one.
            std::thread::sleep(Duration::from_millis(10).min(rest));
        }
    }

    /// Judges what waits.
    ///
    /// # Errors
    /// Those of sockets.
    pub fn drain(&mut self) -> io::Result<()> {
        const LOOPBACK: u32 = 1;
        self.in_force.settle();
        let mut changed = self.in_force.follow();
        while let Some(frame) = self.capture.receive()? {
            let is_ours = self.own_links.contains(&frame.link);
            if frame.link == LOOPBACK || is_ours {
                continue;
            }
            if self.here.links.iter().all(|it| it.index != frame.link) {
                self.here = Surroundings::read()?;
            }
            let others = self.seen.len() - 1;
            let look = |in_force: &InForce| {
                View { in_force, here: &self.here, run: &self.run, aims: &self.aims }.of(&frame)
            };
            let (mut sender, mut sight) = look(&self.in_force);
            if matches!(sight, Sight::Leaked { .. }) && self.in_force.follow() {
                changed = true;
                (sender, sight) = look(&self.in_force);
            }
            let seen = &mut self.seen[sender.unwrap_or(others).min(others)];
            let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
            match sight {
                Sight::Tunnelled => {
                    seen.tunnelled += 1;
                    self.columns.add(now, Kind::Tunnel, 1);
                }
                Sight::Allowed(key) => *seen.allowed.entry(key).or_default() += 1,
                Sight::Leaked { link, what } => {
                    self.columns.add(now, Kind::Leaked, 1);
                    seen.leak(Frame { at_ms: now, link, length: frame.length, what });
                }
                Sight::Nothing => {}
            }
        }
        if changed {
            self.changes.push(self.now_ms());
            let policy = self.in_force.policy();
            self.capture.set_tunnel(policy, self.here.tunnel(policy))?;
        }
        Ok(())
    }

    /// Looks at links, tunnel, daemon and lock.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn sample(&mut self) -> io::Result<()> {
        // What is found at first was so from the beginning.
        let now = self.sampled.map_or(0, |_| self.now_ms());
        let before = self.here.tunnel(self.in_force.policy());
        let own = &self.own_links;
        let mut here = Surroundings::read()?;
        here.links.retain(|it| !own.contains(&it.index));
        self.here = here;
        let policy = self.in_force.policy();
        let tunnel = self.here.tunnel(policy);
        if tunnel != before {
            self.capture.set_tunnel(policy, tunnel)?;
        }
        if let Some(tunnel) = &policy.tunnel {
            let up = self.here.tunnel_link(policy).is_some_and(|link| link.up);
            let state = if up { (Level::Good, "up") } else { (Level::Away, "down") };
            self.bands.see(now, (BandKind::Tunnel, &tunnel.interface), state);
        }
        let daemon = match client::runs() {
            true => (Level::Good, "runs"),
            false => (Level::Away, "stopped"),
        };
        self.bands.see(now, (BandKind::Daemon, "daemon"), daemon);
        self.sample_lock(now);
        // Last, since there may be more of them than the report has room for.
        for link in self.here.watched(self.in_force.policy()) {
            self.exposed |= link.up && link.running;
            let state = match (link.up, link.running) {
                (true, true) => (Level::Good, "up"),
                (true, false) => (Level::Away, "no carrier"),
                (false, _) => (Level::Away, "down"),
            };
            self.bands.see(now, (BandKind::Link, &link.name), state);
        }
        self.sampled = Some(Instant::now());
        Ok(())
    }

    fn sample_lock(&mut self, now: u64) {
        let live = lock::read().ok();
        let status = live.map(|it| Status::of(&it, self.in_force.policy(), None));
        let state = match status.as_ref().map(|it| it.state) {
            None => (Level::Bad, "cannot be read"),
            Some(State::Open) => (Level::Bad, "open"),
            Some(State::Damaged) => (Level::Bad, "damaged"),
            Some(_) => (Level::Good, "intact"),
        };
        self.opened |= status.as_ref().is_some_and(|it| it.state == State::Open);
        self.bands.see(now, (BandKind::Lock, "lock"), state);
        let Some(status) = status else { return };
        let dropped = status.dropped.values().flat_map(|it| it.values());
        let blocked = dropped.map(|it| it.packets).sum();
        let before = self.blocked.replace(blocked).unwrap_or(blocked);
        // A table that was replaced counts from zero.
        let more = blocked.checked_sub(before).unwrap_or(blocked);
        self.columns.add(now, Kind::Blocked, more);
    }

    /// Frames that leaked so far, by the probe's number; last: everybody else's.
    pub fn leaks(&self) -> Vec<u64> {
        self.seen.iter().map(|it| it.leaked).collect()
    }

    /// The report; `probes`: what was sent in the end.
    pub fn finish(mut self, probes: &[Probe], disrupted: bool) -> Report {
        let end = self.now_ms();
        let lost = self.capture.lost();
        let others = self.seen.pop().unwrap_or_default();
        let mut tried: Vec<Tried> =
            probes.iter().zip(self.seen).map(|(probe, seen)| conclude(probe, seen, lost)).collect();
        tried.push(everybody_else(others, lost));
        let doubt = match (self.subject.damaged, self.exposed) {
            (true, _) => Some("the lock is damaged: `killswitch status` says how"),
            _ if self.opened && !disrupted => {
                Some("the lock was open meanwhile: lock, and try again")
            }
            (_, false) => Some("no link to a network is up, so that nothing could: connect first"),
            _ => None,
        };
        let verdict = match overall(&tried) {
            Verdict::Held if doubt.is_some() => Verdict::CannotTell,
            verdict => verdict,
        };
        self.limits.splice(0..0, changed_at(&self.changes));
        self.limits.extend(self.bands.left_out());
        bounded(Report {
            format: FORMAT,
            verdict,
            summary: summary(verdict, &tried, doubt),
            began: self.began,
            duration_ms: end,
            disrupted,
            machine: self.subject.machine,
            phases: self.phases.finish(end),
            bands: self.bands.finish(end),
            traffic: self.columns.finish(end),
            probes: tried,
            limits: self.limits,
            repeat: self.subject.repeat,
        })
    }
}

/// What a frame means to the test.
enum Sight {
    /// A canary that goes the right way.
    Tunnelled,
    /// Outside, by this key of the configuration.
    Allowed(&'static str),
    /// Outside, and may not be there.
    Leaked { link: String, what: String },
    /// Neither here nor there.
    Nothing,
}

/// What it takes to see it.
struct View<'a> {
    in_force: &'a InForce,
    here: &'a Surroundings,
    run: &'a Run,
    aims: &'a Aims,
}

impl View<'_> {
    /// With the probe that sent it, if one did.
    fn of(&self, frame: &Captured<'_>) -> (Option<usize>, Sight) {
        let wire = Wire::read(frame.hatype, frame.protocol, frame.bytes);
        let packet = wire.and_then(|it| it.packet());
        let sender = self.aims.sender(self.run, packet.as_ref(), frame.bytes);
        let policy = self.in_force.policy();
        if self.here.tunnel(policy) == Some(frame.link) {
            // The filter may not know yet that this is the tunnel.
            return (sender, sender.map_or(Sight::Nothing, |_| Sight::Tunnelled));
        }
        if self.here.internal(policy).iter().any(|it| it.index == frame.link) {
            return (sender, Sight::Nothing);
        }
        let sight = match wire.map_or(Judgement::Leaked, |wire| self.in_force.judge(&wire)) {
            Judgement::Allowed(key) => Sight::Allowed(key),
            // Nothing that we send is what a link or the tunnel needs.
            Judgement::Needed if sender.is_none() => Sight::Nothing,
            _ => Sight::Leaked {
                link: self.name(frame.link),
                what: wire.map_or_else(|| "frame without a header".into(), |it| it.to_string()),
            },
        };
        (sender, sight)
    }

    fn name(&self, index: u32) -> String {
        let link = self.here.links.iter().find(|it| it.index == index);
        link.map_or_else(|| format!("link {index}, gone"), |it| it.name.clone())
    }
}

/// The passive part: sends a little of everything, and disturbs nothing; again and again for at least
/// so long.
///
/// # Errors
/// Those of sockets.
pub fn passive(
    subject: Subject,
    least: Duration,
    tell: &mut dyn FnMut(&str),
) -> io::Result<Report> {
    /// The second finds neighbours that the first had to ask for. On a machine with 16 links the test
    /// takes 0.6 % of a processor; `tests/leaktest/cost.rs` holds it there.
    const ROUNDS: u32 = 2;
    const PAUSE: Duration = Duration::from_millis(1200);
    /// For what waits for a neighbour's address, and is seen a little later.
    const END: Duration = Duration::from_secs(1);
    const EVERY: Duration = Duration::from_secs(2);
    /// From the third round on.
    const LATER: Duration = Duration::from_secs(2);
    let (mut test, mut probes, guest) = Test::begin(subject, false)?;
    tell(&format!("{} ways out are tried; nothing is disturbed", probes.len()));
    test.phase("passive", "canaries are sent; nothing is disturbed");
    for _ in 0..ROUNDS {
        probe::fire(&mut probes);
        test.attend(PAUSE, EVERY)?;
    }
    while test.start.elapsed() < least {
        probe::fire(&mut probes);
        let rest = least.saturating_sub(test.start.elapsed());
        test.attend(LATER.min(rest), LATER)?;
    }
    test.attend(END, EVERY)?;
    test.sample()?;
    drop(guest);
    Ok(test.finish(&probes, false))
}

/// Of a machine that is not locked: no canary is needed to know.
pub fn open(subject: Subject) -> Report {
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    bounded(Report {
        format: FORMAT,
        verdict: Verdict::Leaked,
        summary:
            "not locked: everything leaves in clear; nothing was sent. `killswitch lock` locks"
                .into(),
        began,
        duration_ms: 0,
        disrupted: false,
        machine: subject.machine,
        phases: Vec::new(),
        bands: Vec::new(),
        traffic: Columns::default().finish(0),
        probes: Vec::new(),
        limits: Vec::new(),
        repeat: subject.repeat,
    })
}

fn conclude(probe: &Probe, seen: Seen, lost: u32) -> Tried {
    let (verdict, reason) = seen.verdict(probe.sent, probe.failed.as_deref(), lost);
    Tried {
        name: probe.name.into(),
        title: probe.title.into(),
        threats: probe.threats.into(),
        verdict,
        reason,
        sent: probe.sent,
        refused: probe.refused,
        tunnelled: seen.tunnelled,
        leaked: seen.leaked,
        frames: seen.frames,
    }
}

/// What other programs, containers and the kernel itself sent meanwhile.
fn everybody_else(seen: Seen, lost: u32) -> Tried {
    // It is not known how much it was: one, so that there is something to judge.
    let (verdict, reason) = seen.verdict(1, None, lost);
    Tried {
        name: "everything-else".into(),
        title: "every other frame that left meanwhile, whoever sent it".into(),
        threats: Vec::new(),
        verdict,
        reason,
        sent: 0,
        refused: 0,
        tunnelled: 0,
        leaked: seen.leaked,
        frames: seen.frames,
    }
}

/// `doubt`: why nothing that is seen is no proof.
fn summary(verdict: Verdict, tried: &[Tried], doubt: Option<&str>) -> String {
    let ways = tried.len() - 1;
    let of = |wanted: Verdict| -> Vec<&str> {
        tried.iter().filter(|it| it.verdict == wanted).map(|it| it.name.as_str()).collect()
    };
    match verdict {
        Verdict::Leaked => {
            let frames = match tried.iter().map(|it| it.leaked).sum() {
                1_u64 => "1 frame".into(),
                frames => format!("{frames} frames"),
            };
            format!("it leaks: {frames} came out by {}", of(Verdict::Leaked).join(", "))
        }
        Verdict::CannotTell => match (&of(Verdict::CannotTell)[..], doubt) {
            ([], Some(doubt)) => format!("cannot tell: nothing came out, but {doubt}"),
            (some, _) => format!("cannot tell: {} could not be judged", some.join(", ")),
        },
        Verdict::Held | Verdict::Allowed => match of(Verdict::Allowed)[..] {
            [] => format!("it holds: {ways} ways out were tried, and nothing came out"),
            ref allowed => format!(
                "it holds: {ways} ways out were tried, and nothing came out but what the \
                 configuration allows ({})",
                allowed.join(", ")
            ),
        },
    }
}

/// That what may leave changed, and what that means.
fn changed_at(times: &[u64]) -> Option<String> {
    let first = times.first()?;
    let more = match times.len() {
        1 => String::new(),
        some => format!(", and {} times more", some - 1),
    };
    Some(format!(
        "what may leave changed {}.{:01} s after the beginning{more}, by a reload or an exception: the \
         test judged by it from then on, and at that moment called no leak what either allows",
        first / 1000,
        first % 1000 / 100
    ))
}

/// What is not looked at, and why.
fn unwatched(here: &Surroundings, policy: &Policy) -> Vec<String> {
    // First, since there is room for so many sentences only.
    let mut limits = vec![
        "AF_XDP sockets and links in other network namespaces pass every hook and every capture \
         of this machine (SECURITY.md, 2, 15); packet sockets that pass the queues \
         (PACKET_QDISC_BYPASS) are stopped by the egress guard, but no capture here would see them"
            .to_owned(),
    ];
    limits.extend(here.internal(policy).iter().map(|it| {
        format!("{}: not watched: allow.internal says that it stays on this machine", it.name)
    }));
    limits
}
