//! How fast the daemon gets the tunnel back, and what it costs while nothing happens.
//!
//! `make bench`, or parts of it: `cargo bench --features lab --bench daemon -- back expired
//! forgotten failover connect idle restart status`; with `quick`, fewer rounds and a shorter idleness. Runs
//! in private network namespaces. The peer is wg-quick's way: the same userspace WireGuard,
//! configured once with a persistent keepalive of 25 s, and nobody who watches. Payload is a
//! datagram each millisecond to a host on the Internet and back. Bounds are those of the project's
//! goals; a figure outside of its bound is marked, and the exit status is 1.

#[path = "daemon/payload.rs"]
mod payload;
#[path = "daemon/stage.rs"]
mod stage;

mod parts;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use killswitch::dbus::{NAME, client};
use killswitch::lab::addresses::*;
use killswitch::lab::{Bus, Context, Daemon, Result, namespaces};
use nix::sys::signal::Signal;

use parts::Part;
use stage::{Stage, Way};

/// Before the way out comes back: shorter than what the daemon takes for a lasting loss, and long
/// enough for all that was on its way to have arrived.
const OUTAGE: Duration = Duration::from_millis(300);
/// Between two rounds: for handshakes and readings to be over.
const SETTLED: Duration = Duration::from_millis(300);
/// The goal is one round trip and this.
const ALLOWANCE: Duration = Duration::from_millis(20);
/// A silent server must be replaced within this.
const FAILOVER: Duration = Duration::from_secs(3);
/// `status` answers within this, whatever the daemon does.
const STATUS: Duration = Duration::from_millis(50);
/// Bytes.
const MOST_MEMORY: u64 = 8 << 20;

struct Row {
    what: String,
    ours: String,
    theirs: String,
    goal: String,
    holds: bool,
}

impl Row {
    fn new(what: impl Into<String>, ours: String) -> Self {
        let (theirs, goal) = (String::new(), String::new());
        Row { what: what.into(), ours, theirs, goal, holds: true }
    }

    /// Middle and worst of many rounds, which must both be within `bound`.
    fn times(what: impl Into<String>, ours: &[Duration], bound: Option<Duration>) -> Self {
        let row = Row::new(what, spread(ours));
        match bound {
            None => row,
            Some(bound) => Row {
                goal: format!("at most {}", show(bound)),
                holds: quantile(ours, 0.99) <= bound,
                ..row
            },
        }
    }

    fn against(mut self, theirs: &[Duration]) -> Self {
        self.theirs = spread(theirs);
        self
    }
}

impl parts::Row for Row {
    fn holds(&self) -> bool {
        self.holds
    }

    fn print(&self) {
        let verdict = if self.holds { "" } else { "  MISSED" };
        println!(
            "| {:<52} | {:<32} | {:<32} | {:<16} |{verdict}",
            self.what, self.ours, self.theirs, self.goal
        );
    }
}

struct Bench {
    quick: bool,
}

fn main() -> ExitCode {
    let outcome = measure();
    let code = parts::exit_code(&outcome);
    if outcome.is_err() {
        let log = std::fs::read_to_string(Daemon::LOG).unwrap_or_default();
        let last = log.lines().count().saturating_sub(30);
        log.lines().skip(last).for_each(|line| eprintln!("{line}"));
    }
    code
}

fn measure() -> Result<bool> {
    namespaces::enter_private()?;
    let mut asked = parts::asked();
    let bench = Bench { quick: asked.iter().any(|it| it == "quick") };
    asked.retain(|it| it != "quick");
    let parts: [(&str, Part<Bench, Row>); 8] = [
        ("back", Bench::back),
        ("expired", Bench::expired),
        ("forgotten", Bench::forgotten),
        ("failover", Bench::failover),
        ("connect", Bench::connect),
        ("idle", Bench::idle),
        ("restart", Bench::restart),
        ("status", Bench::status),
    ];
    let heads = ["what", "ours: p50, p99 (of)", "WireGuard alone: p50, p99 (of)", "goal"];
    let [what, ours, theirs, goal] = heads;
    println!("| {what:<52} | {ours:<32} | {theirs:<32} | {goal:<16} |");
    println!("|{:-<54}|{:-<34}|{:-<34}|{:-<18}|", "", "", "", "");
    parts::measure(&bench, &asked, &parts)
}

impl Bench {
    fn rounds(&self, usual: usize, quick: usize) -> usize {
        if self.quick { quick } else { usual }
    }

    /// The way out comes back, and the session is still valid.
    fn back(&self) -> Result<Vec<Row>> {
        let ways = [
            (Way::Route, "default route back"),
            (Way::Link, "link back up"),
            (Way::Network, "another network"),
        ];
        let rounds = self.rounds(50, 8);
        let measure = |mut stage: Stage| {
            let trips = stage.payload.round_trips(Duration::from_secs(1));
            let times: Result<Vec<Vec<Duration>>> = ways
                .iter()
                .map(|&(way, _)| {
                    (0..rounds).map(|_| stage.interrupted(way, Stage::nothing)).collect()
                })
                .collect();
            times.map(|times| (trips, times))
        };
        let (trips, ours) = measure(Stage::with_daemon()?)?;
        let (their_trips, theirs) = measure(Stage::without_daemon()?)?;
        let bound = quantile(&trips, 0.5) + ALLOWANCE;
        let mut rows = vec![Row::times("round trip through the tunnel", &trips, None)];
        rows[0].theirs = spread(&their_trips);
        for (index, (_, name)) in ways.iter().enumerate() {
            let what = format!("{name}, to first payload");
            rows.push(Row::times(what, &ours[index], Some(bound)).against(&theirs[index]));
        }
        Ok(rows)
    }

    /// The way out comes back, and there is no session any more. The wait for a session's 180 s is
    /// left out: the daemon is told to begin anew while there is no way out, which forgets the
    /// session just so, and the other WireGuard is started in that time, and is then repeating its
    /// handshakes as one is whose session expired.
    fn expired(&self) -> Result<Vec<Row>> {
        let mut stage = Stage::with_daemon()?;
        let trips = stage.payload.round_trips(Duration::from_secs(1));
        let forget = |_: &mut Stage| reach()?.reconnect().during("reconnect");
        let rounds = self.rounds(50, 8);
        let ours: Result<Vec<_>> =
            (0..rounds).map(|_| stage.interrupted(Way::Route, forget)).collect();
        drop(stage);
        let mut stage = Stage::without_daemon()?;
        let rounds = self.rounds(20, 3);
        // WireGuard repeats a handshake every 5 s: the way out comes back at any time between.
        let theirs: Result<Vec<_>> = (0..rounds)
            .map(|round| {
                stage.interrupted(Way::Route, |stage| {
                    stage.start_wireguard_anew()?;
                    sleep(Duration::from_secs(5) * round as u32 / rounds as u32);
                    Ok(())
                })
            })
            .collect();
        let bound = quantile(&trips, 0.5) + ALLOWANCE;
        let what = "default route back, session expired, to payload";
        Ok(vec![Row::times(what, &ours?, Some(bound)).against(&theirs?)])
    }

    /// The server was restarted meanwhile: the client believes in a session of which it knows
    /// nothing. Payload alone tells, so this takes a time-out.
    fn forgotten(&self) -> Result<Vec<Row>> {
        let rounds = self.rounds(4, 1);
        let forget = |stage: &mut Stage| {
            stage.lab.stop_server(0);
            stage.lab.start_server(0)
        };
        let measure = |mut stage: Stage| {
            (0..rounds).map(|_| stage.interrupted(Way::Route, forget)).collect::<Result<Vec<_>>>()
        };
        let ours = measure(Stage::with_daemon()?)?;
        let theirs = measure(Stage::without_daemon()?)?;
        let what = "the same, server restarted meanwhile";
        Ok(vec![Row::times(what, &ours, Some(FAILOVER)).against(&theirs)])
    }

    /// The server falls silent under traffic.
    fn failover(&self) -> Result<Vec<Row>> {
        let stage = Stage::with_daemon()?;
        let mut times = Vec::new();
        for _ in 0..self.rounds(10, 2) {
            let silent = stage.silence()?;
            let first = stage.payload.first(silent, Some(SERVER2_V4))?;
            let last = stage.payload.last_before(first, SERVER1_V4).unwrap_or(silent);
            times.push(first - last);
            stage.undo_silence()?;
            // Until it is known whether this server answers probes.
            reach()?.connect(Some("server1")).during("connect")?;
            stage.payload.first(Instant::now(), Some(SERVER1_V4))?;
            sleep(Duration::from_secs(2));
        }
        let what = "silent server, last payload to first through the next";
        Ok(vec![Row::times(what, &times, Some(FAILOVER))])
    }

    /// An administrator names the other server.
    fn connect(&self) -> Result<Vec<Row>> {
        let stage = Stage::with_daemon()?;
        let trips = stage.payload.round_trips(Duration::from_secs(1));
        let servers = [("server2", SERVER2_V4), ("server1", SERVER1_V4)];
        let (mut times, mut whole, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
        for (name, address) in servers.iter().cycle().take(self.rounds(50, 8)) {
            let begin = Instant::now();
            reach()?.connect(Some(name)).during("connect")?;
            let first = stage.payload.first(begin, Some(*address))?;
            times.push(first - begin);
            gaps.push(first - stage.payload.last_other(first, *address).unwrap_or(begin));
            sleep(SETTLED);
        }
        for (name, _) in servers.iter().cycle().take(self.rounds(20, 4)) {
            let begin = Instant::now();
            stage.killswitch(&["connect", name])?;
            whole.push(begin.elapsed());
            sleep(SETTLED);
        }
        let bound = quantile(&trips, 0.5) + ALLOWANCE;
        Ok(vec![
            Row::times("connect to the other server, to first payload", &times, Some(bound)),
            Row::times("of it without payload", &gaps, None),
            Row::times("the whole command `killswitch connect`", &whole, None),
        ])
    }

    /// Nobody sends, nothing changes, nobody calls: on a bus, as on most machines. (Without one, the
    /// daemon looks for it after 1, 4, 16 and 64 s, then ever more rarely.)
    fn idle(&self) -> Result<Vec<Row>> {
        let mut stage = Stage::with_daemon()?;
        let _bus = Bus::start(&stage.lab.client)?;
        stage.payload.pause();
        // The last readings, and threads that end when nothing is to be done.
        sleep(Duration::from_secs(20));
        stage.lab.client.command("busctl", &["status", NAME]).during("on the bus")?;
        let time = Duration::from_secs(if self.quick { 10 } else { 60 });
        let before = stage.usage()?;
        sleep(time);
        let after = stage.usage()?;
        let wakeups = after.wakeups - before.wakeups;
        let memory = after.memory;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let goal = |words: &str, holds| (words.to_owned(), holds);
        let with = |row: Row, (goal, holds)| Row { goal, holds, ..row };
        Ok(vec![
            with(
                Row::new(
                    format!("wake-ups in {} s of idleness", time.as_secs()),
                    wakeups.to_string(),
                ),
                goal("0", wakeups == 0),
            ),
            Row::new("processor time in it", show(after.processor - before.processor)),
            with(
                Row::new(
                    "memory (RSS; of it not the program's file)",
                    format!("{:.1} MiB; {:.1} MiB", mib(memory), mib(after.anonymous)),
                ),
                goal("below 8 MiB", memory < MOST_MEMORY),
            ),
            Row::new("threads", after.threads.to_string()),
        ])
    }

    /// The daemon is killed and started again, as systemd does it.
    fn restart(&self) -> Result<Vec<Row>> {
        let mut stage = Stage::with_daemon()?;
        let mut times = Vec::new();
        let (mut sent, mut lost) = (0, 0);
        for _ in 0..self.rounds(30, 5) {
            sleep(SETTLED);
            let begin = Instant::now();
            stage.restart()?;
            times.push(begin.elapsed());
            sleep(SETTLED);
            let tally = stage.payload.lost(begin, Instant::now() - SETTLED / 2);
            sent += tally.0;
            lost += tally.1;
        }
        let traffic = Row::new("payload lost meanwhile", format!("{lost} of {sent}"));
        Ok(vec![
            Row::times("killed and started: until READY, lock verified", &times, None),
            Row { goal: "0".into(), holds: lost == 0, ..traffic },
        ])
    }
}

impl Bench {
    /// What people wait for, whatever the daemon is at.
    fn status(&self) -> Result<Vec<Row>> {
        let mut stage = Stage::with_daemon()?;
        let rounds = self.rounds(50, 8);
        let mut rows = vec![status_row(&stage, "status, the daemon idle", rounds)?];
        let stop = AtomicBool::new(false);
        rows.push(std::thread::scope(|scope| {
            for _ in 0..ASKERS {
                scope.spawn(|| ask_until(&stop));
            }
            let row = status_row(&stage, "status, the daemon asked by 8 without end", rounds);
            stop.store(true, Ordering::Relaxed);
            row
        })?);
        stage.daemon()?.signal(Signal::SIGSTOP)?;
        rows.push(status_row(&stage, "status, the daemon stopped (SIGSTOP)", rounds)?);
        stage.daemon()?.crash();
        rows.push(status_row(&stage, "status, the daemon dead", rounds)?);
        Ok(rows)
    }
}

/// Who keep the daemon busy.
const ASKERS: usize = 8;

fn ask_until(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let _ = reach().map(|daemon| daemon.status().map(drop));
    }
}

fn status_row(stage: &Stage, what: &str, rounds: usize) -> Result<Row> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let begin = Instant::now();
        stage.killswitch(&["--json", "status"])?;
        times.push(begin.elapsed());
    }
    Ok(Row::times(what, &times, Some(STATUS)))
}

fn reach() -> Result<client::Daemon> {
    client::Daemon::reach(Duration::from_secs(10)).during("reaching the daemon")
}

/// Of those that are sorted by size.
fn quantile(times: &[Duration], part: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}

fn spread(times: &[Duration]) -> String {
    let (middle, worst) = (quantile(times, 0.5), quantile(times, 0.99));
    format!("{}, {} ({})", show(middle), show(worst), times.len())
}

fn show(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 1e-3 => format!("{:.0} us", seconds * 1e6),
        seconds if seconds < 1.0 => format!("{:.2} ms", seconds * 1e3),
        seconds => format!("{seconds:.2} s"),
    }
}
