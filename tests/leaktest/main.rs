//! `leaktest` as people run it: the real program in a laboratory's client, against holes on purpose.

mod changes;
#[path = "../common/mod.rs"]
mod common;
mod cost;
mod disrupt;
mod errors;
mod holes;
mod self_check;
#[path = "../daemon/stage.rs"]
#[allow(dead_code, reason = "the daemon's tests use all of it")]
mod stage;

use std::process::ExitCode;

use killswitch::lab::harness;

fn main() -> ExitCode {
    let together =
        [holes::TESTS, cost::TESTS, changes::TESTS, errors::TESTS, self_check::TESTS].concat();
    let alone = [changes::ALONE, disrupt::TESTS].concat();
    harness::run_groups(&together, &alone, disrupt::SLOW)
}
