//! `connect`, `disconnect`, `reconnect`, `monitor`: what only the daemon does.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::agent::with_agent;
use super::args::{Arguments, Connect};
use super::output::{Style, harmless, json, say, stream, styled, warning};
use super::{FAILED, Failure};
use crate::daemon::calls::{Event, Report};
use crate::dbus::client::Daemon;

/// For an answer of the daemon, which never blocks for long.
const PATIENCE: Duration = Duration::from_secs(10);
/// For a tunnel; the daemon goes on trying after it.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Between two looks at the state: at first, since a handshake takes milliseconds, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// For a lock that is being closed.
const LONGEST_CLOSING: Duration = Duration::from_secs(2);

pub(super) fn connect(arguments: &Arguments, options: &Connect) -> Result<u8, Failure> {
    let daemon = Daemon::reach(PATIENCE)?;
    with_agent(|| Ok(daemon.connect(options.server.as_deref())?))?;
    wait_for_tunnel(arguments, &daemon)
}

pub(super) fn reconnect(arguments: &Arguments) -> Result<u8, Failure> {
    let daemon = Daemon::reach(PATIENCE)?;
    with_agent(|| Ok(daemon.reconnect()?))?;
    wait_for_tunnel(arguments, &daemon)
}

pub(super) fn disconnect(arguments: &Arguments) -> Result<u8, Failure> {
    let daemon = Daemon::reach(PATIENCE)?;
    with_agent(|| Ok(daemon.disconnect()?))?;
    match arguments.json {
        true => json(&daemon.report()?),
        false => say("disconnected; the lock stays: nothing leaves"),
    }
    Ok(0)
}

/// An event, and when we heard of it.
#[derive(Serialize)]
struct Entry {
    /// Seconds since 1970, by the machine's clock.
    time: f64,
    #[serde(flatten)]
    event: Event,
}

pub(super) fn monitor(arguments: &Arguments) -> Result<u8, Failure> {
    let mut nobody_reads = false;
    let outcome = Daemon::reach(PATIENCE)?.events(|event| {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let entry = Entry { time, event };
        let line = match arguments.json {
            true => serde_json::to_string(&entry)?,
            false => format!("{time:.3}  {}", in_words(&entry.event, styled)),
        };
        stream(&line).inspect_err(|_| nobody_reads = true)
    });
    if nobody_reads {
        return Ok(0);
    }
    outcome?;
    Err(Failure::new(FAILED, "the daemon has ended; the lock stays"))
}

fn wait_for_tunnel(arguments: &Arguments, daemon: &Daemon) -> Result<u8, Failure> {
    let begin = Instant::now();
    let mut shown = String::new();
    let mut pause = PAUSE.0;
    loop {
        let report = daemon.report()?;
        let words = state_in_words(&report, styled);
        if report.tunnel == "connected" {
            match arguments.json {
                true => json(&report),
                false => say(&words),
            }
            return Ok(0);
        }
        // It takes a moment to see a lock that was closed just now.
        if !report.locked && begin.elapsed() > LONGEST_CLOSING {
            return Err(Failure::new(
                FAILED,
                "the lock is open: with or without a tunnel, everything may leave in clear\n\
                 help: `killswitch lock`",
            ));
        }
        if report.locked && report.tunnel == "off" {
            return Err(Failure::new(FAILED, "disconnected meanwhile by somebody else"));
        }
        if begin.elapsed() > LONGEST_WAIT {
            report.degraded.iter().for_each(|reason| warning(reason));
            return Err(Failure::new(
                FAILED,
                format!(
                    "{words}: no tunnel within {} s; the daemon goes on trying, the lock stays\n\
                     help: `killswitch monitor` shows what it tries",
                    LONGEST_WAIT.as_secs()
                ),
            ));
        }
        if !arguments.json && words != shown {
            say(&words);
            shown = words;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE.1);
    }
}

fn state_in_words(report: &Report, styled: Paint) -> String {
    let server = match (&report.server, &report.endpoint) {
        (Some(server), Some(endpoint)) => format!(" {server} ({endpoint})"),
        _ => String::new(),
    };
    if !report.locked {
        return styled(Style::Red, "open");
    }
    match report.tunnel.as_str() {
        "connected" => format!("{}{server}", styled(Style::Green, "connected")),
        "connecting" => format!("{} to{server}", styled(Style::Yellow, "connecting")),
        "waiting" => format!("{} for a network", styled(Style::Yellow, "waiting")),
        _ => "disconnected".to_owned(),
    }
}

/// How a word in a style is written.
type Paint = fn(Style, &str) -> String;

/// An event on a line.
pub(super) fn in_words(event: &Event, styled: Paint) -> String {
    match event {
        Event::State(report) => state_in_words(report, styled),
        Event::Tampered { layer, pid, process } => {
            let by = match (process, pid) {
                (Some(process), Some(pid)) => format!(" by {} (process {pid})", harmless(process)),
                _ => String::new(),
            };
            format!("{}: {layer} changed{by}", styled(Style::Red, "tampered"))
        }
        Event::Blocked(blocked) => format!("{}: {blocked}", styled(Style::Yellow, "blocked")),
        Event::Repaired { repairs } => {
            format!(
                "{}: the lock is whole again ({repairs} so far)",
                styled(Style::Green, "repaired")
            )
        }
        Event::Failed { what, why } => {
            format!("{}: {what}: {}", styled(Style::Yellow, "failed"), harmless(why))
        }
        Event::Reloaded => "reloaded".to_owned(),
        Event::Missed { events } => format!("{events} events left out: read faster"),
    }
}
