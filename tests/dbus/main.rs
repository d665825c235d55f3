//! org.killswitch1 on a real bus: the daemon in the laboratory, and a `dbus-daemon` of its own.

mod answers;
mod caller;
mod examples;
mod introspection;
mod races;
mod secrets;
mod signals;
mod stage;

use std::process::ExitCode;

use killswitch::lab::harness;

fn main() -> ExitCode {
    let tests = [
        introspection::TESTS,
        answers::TESTS,
        signals::TESTS,
        secrets::TESTS,
        races::TESTS,
        examples::TESTS,
    ];
    harness::run(&tests.concat())
}
