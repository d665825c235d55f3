//! Calls that come at once: what is told afterwards is what the kernel holds, and nobody waits long.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use killswitch::lab::harness::{Outcome, Test, eventually};
use killswitch::lab::{Context, Daemon, Result, setup};

use crate::caller::Caller;
use crate::stage::Stage;

pub const TESTS: &[Test] = &[
    ("locks_and_unlocks_at_once_are_told_as_they_ended", at_once),
    ("a_thousand_locks_keep_no_unlock_waiting", many),
    ("a_layer_that_another_holds_is_told_and_had_once_it_is_free", taken),
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

/// Another program owns the egress guard's table when the daemon starts.
fn taken() -> Outcome {
    let (lab, configuration) = Stage::lab("")?;
    let mut nft = Command::new("nft");
    nft.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut owner = lab.client.start(nft)?;
    let mut input = owner.child().stdin.take().ok_or("no pipe")?;
    input.write_all(b"add table netdev killswitch { flags owner; }\n")?;
    let is_there = || Ok(lab.client.command("nft", &["list", "tables"])?.contains("netdev"));
    eventually("the table is another's", is_there)?;
    let _daemon = Daemon::start_and_wait(&lab, &setup::program()?, &configuration)?;
    let caller = Caller::at_the_socket()?;
    let told = |name| caller.property::<bool>(name).during("a property");
    assert!(told("Locked")? && !told("Intact")?, "a guard that is not there is told intact");
    assert_eq!(caller.property::<String>("State")?, "damaged");
    // Its table goes with it; nothing else changes.
    drop(owner);
    eventually("the guard is had", || told("Intact"))?;
    Ok(())
}
