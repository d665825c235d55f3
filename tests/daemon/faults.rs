//! Faults of networks, servers and other programs: nothing leaks, and traffic returns by itself.

use std::time::Duration;

use killswitch::lab::faults::{self, Fault};
use killswitch::lab::harness::{Failed, Outcome, Test, eventually};

use super::stage::Stage;

pub const TESTS: &[Test] = &[
    ("connects_and_leaks_nothing", connects),
    ("without_the_daemon_faults_are_not_mended", control),
    ("each_fault", each_fault),
    ("a_dead_server_is_left_for_the_next", failover),
];
pub const SLOW: &[Test] = &[("pairs_of_faults", pairs), ("sequences_of_faults", sequences)];

/// Sequences of [`sequences`] by default, and of what length.
const SEQUENCES: u64 = 200;
const LENGTH: usize = 20;
/// How often [`pairs`] has the one pair that it is told.
const AGAIN: usize = 100;

fn connects() -> Outcome {
    let stage = Stage::set()?;
    std::thread::sleep(Duration::from_secs(1));
    stage.nothing_leaked("connected")?;
    // On a busy machine it may not yet have looked at the lock, or not answer in time.
    eventually("it is whole, and nothing is degraded", || {
        let status = stage.status()?;
        Ok(status["state"] == "connected"
            && status["daemon"] == true
            && status["intact"] == true
            && status["layers"]["owned"] == true
            && status["degraded"] == serde_json::json!([]))
    })?;
    let status = stage.status()?;
    assert_eq!(status["tunnel"]["server"], "server1", "{status:#}");
    assert!(status["tunnel"]["last_handshake_age_s"].is_u64(), "{status:#}");
    assert_eq!(stage.ask(&["status"])?.status.code(), Some(0));
    Ok(())
}

/// The positive control: it is the daemon that mends.
fn control() -> Outcome {
    let mut stage = Stage::set()?;
    stage.daemon.crash();
    Fault::TunnelDeleted.apply(&mut stage.lab)?;
    std::thread::sleep(Duration::from_secs(3));
    assert!(!stage.has_traffic()?, "traffic without a tunnel");
    stage.nothing_leaked("no daemon, no tunnel")?;
    stage.daemon.again(&stage.lab)?;
    stage.wait_for_traffic("the daemon's return")?;
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

fn failover() -> Outcome {
    let mut stage = Stage::set()?;
    for (server, next) in [(0, "server2"), (1, "server1")] {
        let fault = Fault::ServerSilent(server);
        fault.apply(&mut stage.lab)?;
        stage.wait_for_traffic(fault.name())?;
        let status = stage.status()?;
        assert_eq!(status["tunnel"]["server"], next, "{status:#}");
        fault.undo(&mut stage.lab)?;
        stage.nothing_leaked(fault.name())?;
    }
    Ok(())
}

/// FAULT_PAIR=FIRST,SECOND has that pair alone, many times, e.g. one that failed.
fn pairs() -> Outcome {
    let pairs = match std::env::var("FAULT_PAIR") {
        Ok(names) => vec![pair(&names).ok_or("FAULT_PAIR wants two faults")?; AGAIN],
        Err(_) => faults::pairs(),
    };
    let mut stage = Stage::set()?;
    for (first, second) in pairs {
        stage.suffer(&[first, second])?;
    }
    Ok(())
}

fn pair(names: &str) -> Option<(Fault, Fault)> {
    let find = |name: &str| faults::ALL.into_iter().find(|fault| fault.name() == name);
    let (first, second) = names.split_once(',')?;
    Some((find(first)?, find(second)?))
}

/// FAULT_SEEDS=FROM..TO runs those, e.g. one that failed.
fn sequences() -> Outcome {
    let seeds = match std::env::var("FAULT_SEEDS") {
        Ok(text) => range(&text).ok_or("FAULT_SEEDS wants FROM..TO")?,
        Err(_) => 0..SEQUENCES,
    };
    let mut stage = Stage::set()?;
    let first = seeds.start;
    for seed in seeds {
        let faults = faults::sequence(seed, LENGTH);
        let names: Vec<&str> = faults.iter().map(|fault| fault.name()).collect();
        let what = format!("FAULT_SEEDS={seed}..{}: {}", seed + 1, names.join(", "));
        let told = |failure: Failed| -> Failed {
            format!("{what}: {}", failure.message().unwrap_or_default()).into()
        };
        stage.suffer_in_turn(&faults, &what).map_err(told)?;
        if (seed + 1) % 10 == 0 {
            println!("held: {} sequences, the last with seed {seed}", seed + 1 - first);
        }
    }
    Ok(())
}

fn range(text: &str) -> Option<std::ops::Range<u64>> {
    let (from, to) = text.split_once("..")?;
    Some(from.parse().ok()?..to.parse().ok()?)
}
