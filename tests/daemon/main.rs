//! The daemon in the laboratory: real links, a real (userspace) WireGuard, a capture on every wire.

mod faults;
mod stage;

use std::process::ExitCode;

use killswitch::lab::harness;

fn main() -> ExitCode {
    harness::run_with_slow(faults::TESTS, faults::SLOW)
}
