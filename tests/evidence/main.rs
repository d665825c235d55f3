//! The journal of what happened to the lock, and its numbers: by the real program against the kernel
//! of private namespaces, with a /run and a /var/lib of their own.

mod commands;
mod daemon;
mod disks;
mod journal;
#[path = "../contract/machine.rs"]
#[allow(dead_code, reason = "the contract's tests use all of it")]
mod machine;
mod metrics;

use std::process::ExitCode;

use killswitch::lab::harness;

fn main() -> ExitCode {
    let tests = [commands::TESTS, disks::TESTS, daemon::TESTS, metrics::TESTS];
    harness::run(&tests.concat())
}
