//! What people type.
//!
//! Exit status: 0 done, 1 failed, 2 usage, 4 not permitted, 78 bad configuration; `status` has its
//! own (0 connected and intact, 10 locked without a tunnel, 20 open, 30 damaged or cannot tell).

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

mod agent;
pub mod args;
mod audit;
mod change;
mod completions;
mod demo;
mod evidence;
mod exception;
mod explain;
mod failure;
mod inspect;
mod leaktest;
mod metrics;
mod new_file;
mod output;
mod ssh;
mod status;
mod tunnel;
mod watch;

use args::{Arguments, Command, EvidenceCommand};
pub use failure::Failure;
use failure::{BAD_CONFIGURATION, Document, FAILED, NOT_PERMITTED};

/// The program's `main`.
pub fn main() -> ExitCode {
    let typed: Vec<OsString> = std::env::args_os().collect();
    let arguments = match Arguments::read(&typed) {
        Ok(arguments) => arguments,
        // Help and the version come this way too.
        Err(error) if !error.use_stderr() => {
            output::keep(error.print().and_then(|()| std::io::stdout().flush()));
            return unless_lost(0);
        }
        Err(error) if !asks_for_json(&typed) => error.exit(),
        Err(error) => return Failure::from(error).tell(Some(Document::Whole)),
    };
    // Keys are read: no core dump, and no other process of this user may look (prctl(2)).
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        output::warning(&format!("memory with keys may end up in a core dump: {error}"));
    }
    let code = match run(&arguments) {
        Ok(code) => unless_lost(code),
        Err(failure) => failure.tell(arguments.json.then(|| document(&arguments.command))),
    };
    // Last of all: a disk may take its time.
    evidence::after(&arguments.command);
    code
}

/// The exit status of a command that was done, if all that it said was written.
fn unless_lost(code: u8) -> ExitCode {
    let Some(error) = output::lost() else { return code.into() };
    output::error(&format!(
        "standard output: {error}\n\
         help: what was done stays done, but not all of what was to be said is written"
    ));
    FAILED.into()
}

/// Of a command line that is wrong somewhere.
fn asks_for_json(typed: &[OsString]) -> bool {
    typed.iter().take_while(|word| *word != "--").any(|word| word == "--json")
}

/// A stream has one document to a line, the failure that ends it included.
fn document(command: &Command) -> Document {
    match command {
        Command::Monitor | Command::Evidence(EvidenceCommand::Show(_)) => Document::Line,
        Command::Status(options) if options.watch => Document::Line,
        _ => Document::Whole,
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
        Command::Exception(command) => exception::exception(arguments, command),
        Command::Status(options) => status::status(arguments, options),
        Command::Monitor => tunnel::monitor(arguments),
        Command::Daemon => daemon(arguments),
        Command::Check(options) => inspect::check(arguments, options),
        Command::Plan(options) => inspect::plan(arguments, options),
        Command::Rules(options) => inspect::rules(arguments, options),
        Command::Explain(options) => explain::explain(arguments, options),
        Command::Audit => audit::audit(arguments),
        Command::Evidence(command) => evidence::evidence(arguments, command),
        Command::Metrics(options) => metrics::metrics(arguments, options),
        Command::Leaktest(options) => leaktest::leaktest(arguments, options),
        Command::LeaktestRestore => leaktest::restore(arguments),
        Command::Demo => demo::demo(arguments),
        Command::Completions { shell } => completions::completions(*shell),
        Command::Servers => completions::servers(&arguments.config),
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
