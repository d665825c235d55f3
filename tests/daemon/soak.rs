//! A day's worth of reconnects: nothing grows, nothing leaks.

use std::fmt;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use killswitch::dbus::client::Daemon;
use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Outcome, Test, eventually};
use killswitch::lab::{Context, Error, Result};

use super::stage::Stage;

pub const SLOW: &[Test] = &[("soak_of_reconnects", reconnects)];

/// KILLSWITCH_SOAK asks for another number.
const ROUNDS: u32 = 20_000;
/// Every so often the other server is connected to, and every so often the link is deleted.
const SERVER_CHANGE: u32 = 50;
const LINK_DELETION: u32 = 200;
/// Between two looks.
const LEG: u32 = 500;
/// KiB that memory may grow by after the warm-up, a tenth of all rounds: what allocators keep.
const MARGIN: usize = 512;
/// For the daemon to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What might grow.
#[derive(Debug, Clone, Copy)]
struct Size {
    /// KiB that are resident.
    memory: usize,
    descriptors: usize,
    threads: usize,
    /// Programs that it started, those included that ended and were not waited for.
    children: usize,
    rules: usize,
    routes: usize,
    links: usize,
    /// Lines of the listing of table inet.
    tables: usize,
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size { memory, descriptors, threads, children, rules, routes, links, tables } = self;
        write!(
            out,
            "{memory} KiB, {descriptors} descriptors, {threads} threads, {children} children, \
             {rules} rules, {routes} routes, {links} links, {tables} lines of tables"
        )
    }
}

impl Size {
    fn of(stage: &mut Stage) -> Result<Self> {
        let daemon = stage.daemon.id().ok_or_else(|| Error::new("the daemon has ended"))?;
        let process = format!("/proc/{daemon}");
        let entries = |what: &str| -> Result<usize> {
            let path = format!("{process}/{what}");
            Ok(fs::read_dir(&path).during(path)?.count())
        };
        let children = |task: fs::DirEntry| {
            let listed = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            listed.split_whitespace().count()
        };
        let lines = |program: &str, arguments: &[&str]| -> Result<usize> {
            Ok(stage.lab.client.command(program, arguments)?.lines().count())
        };
        let status = fs::read_to_string(format!("{process}/status")).during("its status")?;
        let tasks = fs::read_dir(format!("{process}/task")).during("its threads")?;
        Ok(Size {
            memory: number(&status, "VmRSS:"),
            descriptors: entries("fd")?,
            threads: entries("task")?,
            children: tasks.filter_map(|task| task.ok()).map(children).sum(),
            rules: lines("ip", &["-4", "rule"])? + lines("ip", &["-6", "rule"])?,
            routes: lines("ip", &["-4", "route", "show", "table", "all"])?
                + lines("ip", &["-6", "route", "show", "table", "all"])?,
            links: lines("ip", &["-o", "link"])?,
            // Not the egress guard: nft 1.0.6 hangs on a chain that hooks every link.
            tables: lines("nft", &["list", "table", "inet", "killswitch"])?,
        })
    }

    /// What is more than it was.
    fn grown_since(&self, then: &Size) -> Vec<&'static str> {
        let all = [
            ("memory", self.memory > then.memory + MARGIN),
            ("descriptors", self.descriptors > then.descriptors),
            ("threads", self.threads > then.threads),
            ("children", self.children > then.children),
            ("rules", self.rules > then.rules),
            ("routes", self.routes > then.routes),
            ("links", self.links > then.links),
            ("tables", self.tables > then.tables),
        ];
        all.into_iter().filter_map(|(name, grown)| grown.then_some(name)).collect()
    }
}

fn reconnects() -> Outcome {
    let rounds = std::env::var("KILLSWITCH_SOAK").ok().and_then(|it| it.parse().ok());
    let rounds = rounds.unwrap_or(ROUNDS).max(2 * LEG);
    let warm = (rounds / 10).max(LEG) / LEG * LEG;
    let mut stage = Stage::set()?;
    let begin = Instant::now();
    let mut then = None;
    for round in 1..=rounds {
        disturb(&stage, round)?;
        if round % LEG == 0 {
            stage.nothing_leaked(&format!("round {round}"))?;
            let size = Size::of(&mut stage)?;
            println!("{round} in {} s: {size}", begin.elapsed().as_secs());
        }
        if round == warm {
            then = Some(rest(&mut stage)?);
        }
    }
    let then = then.ok_or("the warm-up never ended")?;
    let mut now = rest(&mut stage)?;
    // What is going away, e.g. a thread that waits for more to do, may take its time.
    let calm = eventually("it is no more than after the warm-up", || {
        now = Size::of(&mut stage)?;
        Ok(now.grown_since(&then).is_empty())
    });
    let report = stage.nothing_leaked("the end")?;
    println!("after the warm-up: {then}\nat the end:        {now}");
    println!("frames that the capture had no time for: {}", report.lost);
    let grown = now.grown_since(&then);
    if let Err(error) = calm {
        return Err(format!("{grown:?} grew: {error}").into());
    }
    Ok(())
}

/// One round: something that takes the session away, and the wait for the next.
fn disturb(stage: &Stage, round: u32) -> Result<()> {
    if round.is_multiple_of(LINK_DELETION) {
        let old = link(stage)?;
        stage.lab.client.output("ip", &["link", "delete", TUNNEL_LINK])?;
        eventually("the link is made anew", || Ok(link(stage)?.is_some_and(|it| Some(it) != old)))?;
    } else if round.is_multiple_of(SERVER_CHANGE) {
        let server = 1 + (round / SERVER_CHANGE) % 2;
        reach()?.connect(Some(&format!("server{server}"))).during("connect")?;
    } else {
        reach()?.reconnect().during("reconnect")?;
    }
    connected()
}

fn link(stage: &Stage) -> Result<Option<u32>> {
    stage.lab.client.run(|| nix::net::if_::if_nametoindex(TUNNEL_LINK).ok())
}

/// Until the daemon says so.
fn connected() -> Result<()> {
    let begin = Instant::now();
    loop {
        if reach()?.report().during("report")?.state == "connected" {
            return Ok(());
        }
        if begin.elapsed() > 6 * PATIENCE {
            return Err(Error::new("the daemon does not connect"));
        }
        sleep(Duration::from_millis(1));
    }
}

fn reach() -> Result<Daemon> {
    Daemon::reach(PATIENCE).during("reaching the daemon")
}

/// How it is when what was begun is over.
fn rest(stage: &mut Stage) -> Result<Size> {
    stage.wait_for_traffic("the reconnects")?;
    sleep(Duration::from_secs(12));
    Size::of(stage)
}

/// The number after a word at the start of a line.
fn number(text: &str, name: &str) -> usize {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|it| it.parse().ok()).unwrap_or(0)
}
