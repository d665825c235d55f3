//! The daemon in the laboratory: real links, a real (userspace) WireGuard, a capture on every wire.

mod faults;
mod soak;
mod stage;

use std::process::ExitCode;

use killswitch::lab::harness;

fn main() -> ExitCode {
    let slow = [faults::SLOW, soak::SLOW].concat();
    harness::run_with_slow(faults::TESTS, &slow)
}
