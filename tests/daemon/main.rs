//! The daemon in the laboratory: real links, a real (userspace) WireGuard, a capture on every wire.

mod attacks;
mod crashes;
mod environment;
mod exceptions;
mod faults;
mod requests;
mod resolvers;
mod soak;
mod stage;

use std::process::ExitCode;

use killswitch::lab::harness;

fn main() -> ExitCode {
    let tests = [
        attacks::TESTS,
        faults::TESTS,
        crashes::TESTS,
        environment::TESTS,
        requests::TESTS,
        resolvers::TESTS,
        exceptions::TESTS,
    ]
    .concat();
    let slow = [faults::SLOW, soak::SLOW].concat();
    harness::run_with_slow(&tests, &slow)
}
