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
        Command::Status => status::status(arguments),
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
