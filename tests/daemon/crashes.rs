//! The daemon dies or hangs: the lock holds, the tunnel goes on, the next daemon adopts both.

use std::time::Duration;

use killswitch::lab::Fault;
use killswitch::lab::harness::{Outcome, Test, eventually};
use nix::sys::signal::Signal;

use super::stage::Stage;

pub const TESTS: &[Test] = &[
    ("killed_between_any_two_effects", killed),
    ("a_working_tunnel_is_adopted_without_a_new_handshake", adopted),
    ("without_routes_into_the_tunnel_nothing_counts_as_connected", unrouted),
    ("sigterm_leaves_lock_and_tunnel", terminated),
    ("what_was_changed_before_sigterm_is_mended", terminated_after_a_change),
    ("sigterm_takes_the_tunnel_down_if_configured", terminated_without_tunnel),
    ("a_hung_daemon_keeps_nobody_from_unlocking", hung),
    ("a_dead_daemon_keeps_nobody_from_unlocking", dead),
];

fn killed() -> Outcome {
    /// More than connecting takes; under traffic the counters are read for ever.
    const EFFECTS: u32 = 24;
    let mut stage = Stage::set()?;
    for effects in 1..=EFFECTS {
        // From nothing, so that every effect of connecting has its turn.
        stage.daemon.crash();
        stage.lab.client.output("ip", &["link", "delete", "wg0"])?;
        stage.daemon.again_until(&stage.lab, effects)?;
        eventually("it is killed", || Ok(!stage.daemon.runs()))?;
        let what = format!("being killed after {effects} effects");
        stage.daemon.again(&stage.lab)?;
        stage.wait_for_traffic(&what)?;
        stage.nothing_leaked(&what)?;
    }
    Ok(())
}

fn adopted() -> Outcome {
    let mut stage = Stage::set()?;
    let session = |stage: &Stage| -> killswitch::lab::Result<(String, String)> {
        let link = stage.lab.client.command("ip", &["-o", "link", "show", "wg0"])?;
        let age = stage.status()?["tunnel"]["last_handshake_age_s"].to_string();
        Ok((link.split(':').next().unwrap_or_default().to_owned(), age))
    };
    std::thread::sleep(Duration::from_secs(3));
    let (link, _) = session(&stage)?;
    stage.daemon.crash();
    assert!(stage.has_traffic()?, "the tunnel of a killed daemon goes on");
    stage.daemon.again(&stage.lab)?;
    eventually("connected", || Ok(stage.ask(&["status"])?.status.code() == Some(0)))?;
    let (same_link, age) = session(&stage)?;
    assert_eq!(link, same_link, "the link was made anew");
    assert!(age.parse::<u64>()? >= 3, "the session was made anew: {age} s");
    stage.nothing_leaked("adopting")?;
    Ok(())
}

fn unrouted() -> Outcome {
    let mut stage = Stage::set()?;
    // It would set them again at once.
    stage.daemon.crash();
    for family in ["-4", "-6"] {
        let table = killswitch::config::DEFAULT_MARK.to_string();
        let routes = ["route", "flush", "table", &table, "dev", "wg0"];
        stage.lab.client.command("ip", &[&[family][..], &routes].concat())?;
    }
    let status = stage.status()?;
    assert_eq!((&status["state"], &status["intact"]), (&"blocked".into(), &true.into()));
    assert!(status["degraded"].to_string().contains("no route leads into wg0"), "{status:#}");
    assert_eq!(stage.ask(&["status"])?.status.code(), Some(10));
    stage.daemon.again(&stage.lab)?;
    eventually("connected", || Ok(stage.ask(&["status"])?.status.code() == Some(0)))?;
    stage.wait_for_traffic("the daemon's return")?;
    stage.nothing_leaked("losing the routes")?;
    Ok(())
}

fn terminated() -> Outcome {
    let mut stage = Stage::set()?;
    stage.daemon.signal(Signal::SIGTERM)?;
    eventually("it ends", || Ok(!stage.daemon.runs()))?;
    assert!(stage.has_traffic()?, "the tunnel goes on");
    assert_eq!(stage.status()?["intact"], true);
    stage.nothing_leaked("SIGTERM")?;
    Ok(())
}

fn terminated_after_a_change() -> Outcome {
    let mut stage = Stage::set()?;
    // It finds both when it goes on.
    stage.daemon.signal(Signal::SIGSTOP)?;
    Fault::RulesDeleted.apply(&mut stage.lab)?;
    assert_eq!(stage.status()?["intact"], false);
    stage.daemon.signal(Signal::SIGTERM)?;
    stage.daemon.signal(Signal::SIGCONT)?;
    eventually("it ends", || Ok(!stage.daemon.runs()))?;
    let status = stage.status()?;
    assert_eq!(status["intact"], true, "{status:#}");
    stage.nothing_leaked("SIGTERM after a change")?;
    Ok(())
}

fn terminated_without_tunnel() -> Outcome {
    let mut stage = Stage::set()?;
    let text = std::fs::read_to_string(&stage.configuration)?;
    let text = text.replace("[tunnel]", "[tunnel]\nkeep_at_stop = false");
    std::fs::write(&stage.configuration, text)?;
    stage.daemon.signal(Signal::SIGHUP)?;
    eventually("it reloads", || Ok(stage.daemon.log()?.contains("reloaded")))?;
    stage.daemon.signal(Signal::SIGTERM)?;
    eventually("it ends", || Ok(!stage.daemon.runs()))?;
    assert!(!stage.lab.client.has_link("wg0")?, "the tunnel is down");
    let status = stage.status()?;
    assert_eq!((&status["locked"], &status["intact"]), (&true.into(), &true.into()), "{status:#}");
    stage.nothing_leaked("SIGTERM")?;
    Ok(())
}

fn hung() -> Outcome {
    let mut stage = Stage::set()?;
    stage.daemon.signal(Signal::SIGSTOP)?;
    let status = stage.status()?;
    assert_eq!(status["locked"], true, "{status:#}");
    assert!(status["degraded"].to_string().contains("does not answer"), "{status:#}");
    stage.nothing_leaked("a hung daemon")?;
    let unlocked = stage.ask(&["unlock", "--yes"])?;
    assert!(unlocked.status.success(), "{}", String::from_utf8_lossy(&unlocked.stderr));
    assert_eq!(stage.ask(&["status"])?.status.code(), Some(20));
    Ok(())
}

fn dead() -> Outcome {
    let mut stage = Stage::set()?;
    stage.daemon.crash();
    let unlocked = stage.ask(&["unlock", "--yes"])?;
    assert!(unlocked.status.success(), "{}", String::from_utf8_lossy(&unlocked.stderr));
    assert_eq!(stage.ask(&["status"])?.status.code(), Some(20));
    let locked = stage.ask(&["lock"])?;
    assert!(locked.status.success(), "{}", String::from_utf8_lossy(&locked.stderr));
    assert_eq!(stage.status()?["locked"], true);
    Ok(())
}
