//! Calls that come at once: what is told afterwards is what the kernel holds, and nobody waits long.

use std::time::{Duration, Instant};

use killswitch::lab::harness::{Outcome, Test, eventually};
use killswitch::lab::{Context, Result};

use crate::caller::Caller;
use crate::stage::Stage;

pub const TESTS: &[Test] = &[
    ("locks_and_unlocks_at_once_are_told_as_they_ended", at_once),
    ("a_thousand_locks_keep_no_unlock_waiting", many),
];

fn at_once() -> Outcome {
    let stage = Stage::set()?;
    let caller = Caller::at_the_socket()?;
    for round in 0..30 {
        caller.at_once(&[("Lock", None), ("Unlock", Some("")), ("Lock", None)][round % 2..]);
        eventually("what is told is what the kernel holds", || {
            let kernel = stage.ask(&["status"])?;
            let told = |name| caller.property::<bool>(name).during("a property");
            Ok(kernel["locked"] == told("Locked")? && kernel["intact"] == told("Intact")?)
        })?;
    }
    Ok(())
}

fn many() -> Outcome {
    let _stage = Stage::set()?;
    let caller = Caller::at_the_socket()?;
    let quiet = unlocked(&caller)?;
    caller.call::<_, (bool, Vec<String>)>("Lock", &())?;
    caller.at_once(&[("Lock", None); 1000]);
    let after = unlocked(&caller)?;
    println!("unlocked in {quiet:?}, after a thousand locks in {after:?}");
    // As many holds would take seconds.
    assert!(after < 10 * quiet + Duration::from_secs(1), "{after:?}, else {quiet:?}");
    Ok(())
}

fn unlocked(caller: &Caller) -> Result<Duration> {
    let begin = Instant::now();
    caller.at_once(&[("Unlock", Some(""))]);
    Ok(begin.elapsed())
}
