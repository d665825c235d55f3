//! `leaktest` as people run it: the real program in a laboratory's client, against holes on purpose.

#[path = "../common/mod.rs"]
mod common;
mod holes;

use std::process::ExitCode;

use killswitch::lab::harness;

fn main() -> ExitCode {
    harness::run(&[holes::TESTS].concat())
}
