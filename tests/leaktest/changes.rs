//! What may leave changes while the test runs: by a reload, a lock, an exception.

use std::process::{Command, Stdio};
use std::time::Duration;

use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Failed, Outcome, Test, eventually};
use killswitch::lab::host::{Host, Process};
use killswitch::lab::{Context, Result};
use killswitch::routing;
use serde_json::Value;

use crate::common::LockedLab;
use crate::holes::{Said, nft};
use crate::stage::Stage;

pub const TESTS: &[Test] =
    &[("what_is_closed_during_the_test_is_one", what_is_closed_during_the_test_is_one)];

/// Beside a daemon, which no other test must meet.
pub const ALONE: &[Test] =
    &[("what_is_opened_during_the_test_is_no_leak", what_is_opened_during_the_test_is_no_leak)];

/// Pings the neighbour past the tunnel, twenty times a second; ends when dropped.
fn talk_to_neighbour(client: &Host) -> Result<Process> {
    let mut command = Command::new("ping");
    command.args(["-q", "-i", "0.05", "-I", CLIENT_LINK, &NEIGHBOUR_V4.to_string()]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    client.start(command)
}

fn reaches_neighbour(client: &Host) -> Result<bool> {
    let to = NEIGHBOUR_V4.to_string();
    let ping = ["-c1", "-W1", "-q", "-I", CLIENT_LINK, &to];
    Ok(client.output("ping", &ping)?.status.success())
}

/// A packet socket of every protocol on every link: the test's.
fn captures(client: &Host) -> Result<()> {
    eventually("the test captures", || {
        let sockets = client.command("cat", &["/proc/net/packet"])?;
        let mut words = sockets.lines().map(|it| it.split_whitespace().collect::<Vec<_>>());
        Ok(words.any(|it| it.get(3..5) == Some(&["0003", "0"])))
    })
}

/// An exception that ends during the test, then a reload that allows the same, and one that does not.
fn what_is_opened_during_the_test_is_no_leak() -> Outcome {
    /// Between two edits of the file: what a policy is that came and went without its file in place
    /// nobody can know.
    const PAUSE: Duration = Duration::from_secs(2);
    let stage = Stage::set()?;
    let client = &stage.lab.client;
    let closed = std::fs::read_to_string(&stage.configuration)?;
    let done = |arguments: &[&str]| -> Outcome {
        let output = stage.ask(arguments)?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(words.into()) }
    };
    let output = std::thread::scope(|scope| -> std::result::Result<_, Failed> {
        let _talk = talk_to_neighbour(client)?;
        let test = scope.spawn(|| stage.ask(&["--json", "leaktest", "--for", "15s"]));
        captures(client)?;
        done(&["exception", "add", "lan", LAN_V4, "--for", "1s"])?;
        eventually("the exception ends", || Ok(!reaches_neighbour(client)?))?;
        for (text, open) in
            [(format!("{closed}[allow]\nlan = [\"{LAN_V4}\"]\n"), true), (closed, false)]
        {
            std::fs::write(&stage.configuration, text)?;
            done(&["reload", "--yes"])?;
            eventually("it is reloaded", || Ok(reaches_neighbour(client)? == open))?;
            std::thread::sleep(PAUSE);
        }
        assert!(!test.is_finished(), "it ended too early");
        Ok(test.join().map_err(|_| "the test panicked")??)
    })?;
    let said: Value =
        serde_json::from_slice(&output.stdout).during(String::from_utf8_lossy(&output.stderr))?;
    let others = said["probes"].as_array().and_then(|it| it.last()).cloned().unwrap_or_default();
    let found = (output.status.code(), &said["verdict"], &others["verdict"], &others["reason"]);
    let wanted = (Some(0), &"held".into(), &"allowed".into(), &"allow.lan".into());
    assert_eq!(found, wanted, "{others:#}\n{}\n{}", said["bands"], said["limits"]);
    assert!(said["limits"].to_string().contains("what may leave changed"), "{}", said["limits"]);
    Ok(())
}

/// The capture left to the kernel what was allowed at the beginning.
fn what_is_closed_during_the_test_is_one() -> Outcome {
    let locked = LockedLab::with(&format!("[allow]\nlan = [\"{LAN_V4}\"]\n"))?;
    let client = &locked.lab.client;
    locked.lock()?;
    let said = std::thread::scope(|scope| -> std::result::Result<_, Failed> {
        let _talk = talk_to_neighbour(client)?;
        let test = scope.spawn(|| Said::of(&locked, &["--for", "10s"]));
        captures(client)?;
        assert!(reaches_neighbour(client)?);
        locked.configure("")?;
        locked.killswitch_ok(&["lock"])?;
        assert!(!reaches_neighbour(client)?);
        nft(&locked, "delete table netdev killswitch")?;
        client.run(|| routing::remove().map(drop).during("routing guard"))??;
        nft(&locked, "insert rule inet killswitch leave icmp type echo-request accept")?;
        nft(&locked, "insert rule inet killswitch input icmp type echo-reply accept")?;
        eventually("the hole is open", || reaches_neighbour(client))?;
        assert!(!test.is_finished(), "it ended too early");
        test.join().map_err(|_| "the test panicked")?
    })?;
    let others = said.probe("everything-else");
    assert_eq!((said.code, &others["verdict"]), (20, &"leaked".into()), "{}", said.in_words());
    let frame = others["frames"][0]["what"].as_str().unwrap_or_default();
    assert!(frame.contains(&NEIGHBOUR_V4.to_string()), "{frame}");
    Ok(())
}
