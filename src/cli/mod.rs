//! What people type.
//!
//! Exit status: 0 done, 1 failed, 2 usage, 4 not permitted, 78 bad configuration; `status` has its
//! own (0 connected and intact, 10 locked without a tunnel, 20 open, 30 damaged or cannot tell).

use std::process::ExitCode;

use clap::Parser;

pub mod args;
mod change;
mod demo;
mod explain;
mod inspect;
mod output;
mod ssh;
mod status;
mod tunnel;

use args::{Arguments, Command};

/// Why a command ends without having done what was asked.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const NOT_PERMITTED: u8 = 4;
const BAD_CONFIGURATION: u8 = 78;

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }

    fn usage(message: impl Into<String>) -> Self {
        Failure::new(USAGE, message)
    }
}

impl From<crate::lock::Error> for Failure {
    fn from(error: crate::lock::Error) -> Self {
        let code = match &error {
            crate::lock::Error::Netfilter(crate::netfilter::Error::NotPermitted) => NOT_PERMITTED,
            _ => FAILED,
        };
        Failure::new(code, error.to_string())
    }
}

impl From<crate::config::Error> for Failure {
    fn from(error: crate::config::Error) -> Self {
        Failure::new(BAD_CONFIGURATION, error.to_string())
    }
}

impl From<crate::dbus::client::Error> for Failure {
    fn from(error: crate::dbus::client::Error) -> Self {
        use crate::dbus::Error as Refusal;
        use crate::dbus::client::Error::{Io, NoBus, NotRunning, OtherFile, Refused, Silent};
        match error {
            NotRunning => Failure::new(
                FAILED,
                "the daemon does not run\nhelp: systemctl start killswitch; the lock does not need it",
            ),
            Silent => Failure::new(
                FAILED,
                "the daemon does not answer\nhelp: systemctl restart killswitch; the lock stays",
            ),
            Refused(refusal) => {
                let code = match &refusal {
                    Refusal::NotAuthorized(_) => NOT_PERMITTED,
                    Refusal::BadConfiguration(_) => BAD_CONFIGURATION,
                    Refusal::InvalidArgument(_) => USAGE,
                    _ => FAILED,
                };
                Failure::new(code, refusal.message())
            }
            NoBus(_) => Failure::new(NOT_PERMITTED, error.to_string()),
            Io(ref io) if io.kind() == std::io::ErrorKind::PermissionDenied => {
                Failure::new(NOT_PERMITTED, "only root may talk to the daemon")
            }
            OtherFile { .. } | Io(_) => Failure::new(FAILED, error.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::new(FAILED, error.to_string())
    }
}

/// The program's `main`.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Keys are read: no core dump, and no other process of this user may look (prctl(2)).
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        output::warning(&format!("memory with keys may end up in a core dump: {error}"));
    }
    match run(&arguments) {
        Ok(code) => code.into(),
        Err(failure) => {
            output::error(&failure.message);
            failure.code.into()
        }
    }
}

fn run(arguments: &Arguments) -> Result<u8, Failure> {
    match &arguments.command {
        Command::Lock(options) => change::lock(arguments, options),
        Command::Unlock(options) => change::unlock(arguments, options),
        Command::Reload(options) => change::reload(arguments, options),
        Command::Connect(options) => tunnel::connect(arguments, options),
        Command::Disconnect => tunnel::disconnect(arguments),
        Command::Reconnect => tunnel::reconnect(arguments),
        Command::Status(options) => status::status(arguments, options),
        Command::Monitor => tunnel::monitor(arguments),
        Command::Daemon => daemon(arguments),
        Command::Check(options) => inspect::check(arguments, options),
        Command::Plan(options) => inspect::plan(arguments, options),
        Command::Rules(options) => inspect::rules(arguments, options),
        Command::Explain(options) => explain::explain(arguments, options),
        Command::Demo => demo::demo(arguments),
        Command::Completions { shell } => {
            output::completions(*shell);
            Ok(0)
        }
    }
}

fn daemon(arguments: &Arguments) -> Result<u8, Failure> {
    // Who may not lock is told so at once, instead of a daemon that tries for ever.
    crate::lock::permitted()?;
    let path = std::path::absolute(&arguments.config)?;
    match crate::daemon::run(&path) {
        Ok(()) => Ok(0),
        Err(error) => Err(Failure::new(FAILED, error.to_string())),
    }
}
