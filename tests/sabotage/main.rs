//! A catalogue of sabotages: each is done to a locked machine of the laboratory and found there, by
//! `audit`, `leaktest` or both; a clean machine gives no finding and no leak.

mod catalogue;
mod clean;
mod stage;

use killswitch::lab::harness;

fn main() -> std::process::ExitCode {
    harness::run(&[clean::TESTS, catalogue::CATALOGUE].concat())
}
