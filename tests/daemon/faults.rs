//! Faults of networks, servers and other programs: nothing leaks, and traffic returns by itself.

use killswitch::lab::faults;
use killswitch::lab::harness::{Outcome, Test};

use super::stage::Stage;

pub const TESTS: &[Test] = &[("connects_and_leaks_nothing", connects), ("each_fault", each_fault)];
pub const SLOW: &[Test] = &[];

fn connects() -> Outcome {
    let stage = Stage::set()?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    stage.nothing_leaked("connected")?;
    let status = stage.ask(&["status"])?;
    println!("{}", String::from_utf8_lossy(&status.stdout));
    assert_eq!(status.status.code(), Some(0), "{}", stage.daemon.log()?);
    Ok(())
}

fn each_fault() -> Outcome {
    let mut stage = Stage::set()?;
    for fault in faults::ALL {
        let took = stage.suffer(&[fault])?;
        println!("{:<20} back after {} ms", fault.name(), took.as_millis());
    }
    Ok(())
}
