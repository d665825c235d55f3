//! `connect`, `disconnect`, `reconnect`, `monitor`: what only the daemon does.

use std::time::{Duration, Instant};

use super::args::{Arguments, Connect};
use super::output::{Style, harmless, json, say, stream, styled, warning};
use super::{FAILED, Failure};
use crate::daemon::client;
use crate::daemon::protocol::{Entry, Event, Reply, Report, Request};

/// For an answer of the daemon, which never blocks for long.
const PATIENCE: Duration = Duration::from_secs(10);
/// For a tunnel; the daemon goes on trying after it.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Between two looks at the state: at first, since a handshake takes milliseconds, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// For a lock that is being closed.
const LONGEST_CLOSING: Duration = Duration::from_secs(2);

pub(super) fn connect(arguments: &Arguments, options: &Connect) -> Result<u8, Failure> {
    ask(&Request::Connect { server: options.server.clone() })?;
    wait_for_tunnel(arguments)
}

pub(super) fn reconnect(arguments: &Arguments) -> Result<u8, Failure> {
    ask(&Request::Reconnect)?;
    wait_for_tunnel(arguments)
}

pub(super) fn disconnect(arguments: &Arguments) -> Result<u8, Failure> {
    ask(&Request::Disconnect)?;
    let report = report()?;
    match arguments.json {
        true => json(&report),
        false => say("disconnected; the lock stays: nothing leaves"),
    }
    Ok(0)
}

pub(super) fn monitor(arguments: &Arguments) -> Result<u8, Failure> {
    for entry in client::monitor()? {
        let entry = entry?;
        let line = match arguments.json {
            true => serde_json::to_string(&entry).map_err(std::io::Error::from)?,
            false => in_words(&entry),
        };
        if stream(&line).is_err() {
            return Ok(0);
        }
    }
    Err(Failure::new(FAILED, "the daemon has ended; the lock stays"))
}

/// What the daemon answers to a request that it performs.
pub(super) fn ask(request: &Request) -> Result<Reply, Failure> {
    match client::ask(request, PATIENCE)? {
        Reply::Refused { error, code } => Err(Failure::new(code, error)),
        other => Ok(other),
    }
}

/// What the daemon knows.
pub(super) fn report() -> Result<Report, Failure> {
    match ask(&Request::Status)? {
        Reply::Status(report) => Ok(report),
        _ => Err(Failure::new(FAILED, "the daemon is of another version; restart it")),
    }
}

fn wait_for_tunnel(arguments: &Arguments) -> Result<u8, Failure> {
    let begin = Instant::now();
    let mut shown = String::new();
    let mut pause = PAUSE.0;
    loop {
        let report = report()?;
        let words = state_in_words(&report);
        if report.state == "connected" {
            match arguments.json {
                true => json(&report),
                false => say(&words),
            }
            return Ok(0);
        }
        // It takes a moment to see a lock that was closed just now.
        if report.state == "open" && begin.elapsed() > LONGEST_CLOSING {
            return Err(Failure::new(
                FAILED,
                "the lock is open: with or without a tunnel, everything may leave in clear\n\
                 help: `killswitch lock`",
            ));
        }
        if report.state == "disconnected" {
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

fn state_in_words(report: &Report) -> String {
    let server = match (&report.server, &report.endpoint) {
        (Some(server), Some(endpoint)) => format!(" {server} ({endpoint})"),
        _ => String::new(),
    };
    match report.state.as_str() {
        "connected" => format!("{}{server}", styled(Style::Green, "connected")),
        "connecting" => format!("{} to{server}", styled(Style::Yellow, "connecting")),
        "waiting" => format!("{} for a network", styled(Style::Yellow, "waiting")),
        "open" => styled(Style::Red, "open"),
        other => other.to_owned(),
    }
}

fn in_words(entry: &Entry) -> String {
    let words = match &entry.event {
        Event::State(report) => state_in_words(report),
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
    };
    format!("{:.3}  {words}", entry.time)
}
