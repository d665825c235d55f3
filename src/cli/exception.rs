//! `exception`: what is open for a while, which only the daemon sees to.

use std::time::Duration;

use serde::Serialize;

use super::agent::with_agent;
use super::args::{AddException, Arguments, ExceptionCommand};
use super::output::{harmless, json, say};
use super::{Failure, evidence};
use crate::dbus::client::Daemon;
use crate::lock::Exception;
use crate::{policy, status};

/// For an answer of the daemon, which never blocks for long.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn exception(arguments: &Arguments, command: &ExceptionCommand) -> Result<u8, Failure> {
    match command {
        ExceptionCommand::Add(options) => add(arguments, options),
        ExceptionCommand::List => list(arguments),
        ExceptionCommand::Remove { id } => remove(arguments, *id),
    }
}

fn add(arguments: &Arguments, options: &AddException) -> Result<u8, Failure> {
    let (kind, what) = (&options.kind, options.what.join(" "));
    // Before anybody is asked for a password.
    policy::Exception::parse(kind, &what).map_err(Failure::usage)?;
    evidence::typed("exception add", "");
    let id = with_agent(|| {
        Ok(Daemon::reach(PATIENCE)?.add_exception(kind, &what, options.duration)?)
    })?;
    let left_s = options.duration.into();
    let exception = Exception { id, kind: kind.clone(), what, left_s };
    match arguments.json {
        true => json(&exception),
        false => say(&format!("exception {}", line(&exception))),
    }
    Ok(0)
}

fn list(arguments: &Arguments) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct List {
        exceptions: Vec<Exception>,
    }
    let report = Daemon::reach(PATIENCE)?.report()?;
    let exceptions = status::exceptions(&report.exceptions);
    if arguments.json {
        json(&List { exceptions });
    } else if exceptions.is_empty() {
        say("no exceptions");
    } else {
        exceptions.iter().for_each(|exception| say(&line(exception)));
    }
    Ok(0)
}

fn remove(arguments: &Arguments, id: u32) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Removed {
        id: u32,
    }
    evidence::typed("exception remove", "");
    with_agent(|| Ok(Daemon::reach(PATIENCE)?.remove_exception(id)?))?;
    match arguments.json {
        true => json(&Removed { id }),
        false => say(&format!("exception {id} removed")),
    }
    Ok(0)
}

/// Its number first: what `remove` takes.
pub(super) fn line(exception: &Exception) -> String {
    let Exception { id, kind, what, left_s } = exception;
    let left = humantime::format_duration(Duration::from_secs(*left_s));
    format!("{id}: {kind} {}, {left} left", harmless(what))
}
