//! Runs tests in private namespaces, under `cargo test` and `cargo nextest` alike.
//!
//! A test target with `harness = false`:
//!
//! ```no_run
//! use killswitch::lab::{Lab, harness};
//!
//! fn pings() -> harness::Outcome {
//!     let lab = Lab::new()?;
//!     lab.client.command("ping", &["-c1", "-W5", "1.1.1.1"])?;
//!     Ok(())
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     harness::run(&[("pings", pings)])
//! }
//! ```

use std::process::ExitCode;
use std::time::{Duration, Instant};

pub use libtest_mimic::Failed;
use libtest_mimic::{Arguments, Trial};

use super::error::{Error, Result};
use super::namespaces;

/// What a test returns: `?` takes every error that can be printed.
pub type Outcome = std::result::Result<(), Failed>;

/// A name and what to do.
pub type Test = (&'static str, fn() -> Outcome);

/// Laboratories at the same time, of tests that mostly wait.
pub const TOGETHER: usize = 4;

/// The whole of a test target's `main`: reads the command line, enters private namespaces while
/// there is one thread (unless tests are only listed), runs the tests one after the other.
pub fn run(tests: &[Test]) -> ExitCode {
    run_with_slow(tests, &[])
}

/// As [`run`], with tests that take so long that they run only when asked for (`--ignored`).
pub fn run_with_slow(tests: &[Test], slow: &[Test]) -> ExitCode {
    run_groups(&[], tests, slow)
}

/// As [`run_with_slow`]; first, [`TOGETHER`] at a time, those that mostly wait, each in a laboratory
/// of its own and without a daemon: all share one /run.
pub fn run_groups(together: &[Test], tests: &[Test], slow: &[Test]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    if !arguments.list
        && let Err(error) = namespaces::enter_private()
    {
        eprintln!("killswitch-lab: {error}");
        return ExitCode::FAILURE;
    }
    let trial = |&(name, test): &Test| Trial::test(name, test);
    let slow = slow.iter().map(|test| trial(test).with_ignored_flag(true));
    let trials = tests.iter().map(trial).chain(slow).collect();
    let mut failed = false;
    if !together.is_empty() {
        arguments.test_threads = Some(TOGETHER);
        let trials = together.iter().map(trial).collect();
        failed = libtest_mimic::run(&arguments, trials).has_failed();
    }
    // One laboratory at a time: two would share two processors and measure each other.
    arguments.test_threads = Some(1);
    failed |= libtest_mimic::run(&arguments, trials).has_failed();
    if failed { ExitCode::from(101) } else { ExitCode::SUCCESS }
}

/// Waits until something holds, for a generous time: machines are noisy.
///
/// # Errors
/// Naming `what` did not come true.
pub fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let patience = Duration::from_secs(30);
    let start = Instant::now();
    while start.elapsed() < patience {
        if holds()? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(Error::new(format!("waited {} s in vain: {what}", patience.as_secs())))
}
