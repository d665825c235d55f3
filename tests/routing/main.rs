//! The routing guard alone, with no nft table, in the kernel of this machine: every denial after
//! a look at the same packet getting through without the guard.

#![allow(clippy::unwrap_used)]

mod guard;
mod lab;
mod leaks;

use libtest_mimic::{Arguments, Trial};

fn main() {
    lab::leave_initial_namespace();
    let trials = [leaks::TRIALS, guard::TRIALS].concat().into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    let timing = Trial::test("time", || {
        guard::time();
        Ok(())
    });
    let trials = trials.chain([timing.with_ignored_flag(true)]).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
