//! The daemon in the laboratory: real links, a real (userspace) WireGuard, a capture on every wire.

mod attacks;
mod crashes;
mod environment;
mod faults;
mod requests;
mod stage;

use std::process::ExitCode;

use killswitch::lab::harness;

fn main() -> ExitCode {
    let tests =
        [attacks::TESTS, faults::TESTS, crashes::TESTS, environment::TESTS, requests::TESTS]
            .concat();
    harness::run_with_slow(&tests, faults::SLOW)
}
