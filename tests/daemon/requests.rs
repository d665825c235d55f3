//! What an administrator asks of the running daemon.

use std::process::{Command, Stdio};

use killswitch::lab::addresses::CLIENT_LINK;
use killswitch::lab::harness::{Outcome, Test, eventually};
use killswitch::lab::link::PacketSocket;

use super::stage::Stage;

pub const TESTS: &[Test] = &[
    ("connect_disconnect_reconnect", tunnel),
    ("unlock_and_lock_through_the_daemon", lock),
    ("reload_keeps_the_old_lock_on_an_error", reload),
    ("monitor_tells_of_tampering_by_whom", monitor),
    ("monitor_tells_what_is_blocked_and_whose", blocked),
];

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn tunnel() -> Outcome {
    let stage = Stage::set()?;
    let output = stage.ask(&["disconnect"])?;
    assert!(output.status.success(), "{}", said(&output));
    eventually("the link goes", || Ok(!stage.lab.client.has_link("wg0")?))?;
    assert_eq!(stage.ask(&["status"])?.status.code(), Some(10));
    let output = stage.ask(&["connect", "server2"])?;
    assert!(said(&output).contains("server2") && output.status.success(), "{}", said(&output));
    assert_eq!(stage.status()?["tunnel"]["server"], "server2");
    stage.wait_for_traffic("connect server2")?;
    let output = stage.ask(&["--json", "reconnect"])?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!((&report["state"], &report["server"]), (&"connected".into(), &"server2".into()));
    stage.wait_for_traffic("reconnect")?;
    let output = stage.ask(&["connect", "nowhere"])?;
    assert!(!output.status.success() && said(&output).contains("server1, server2"), "{output:?}");
    stage.nothing_leaked("connecting and disconnecting")?;
    Ok(())
}

fn lock() -> Outcome {
    let stage = Stage::set()?;
    let output = stage.ask(&["unlock", "--yes"])?;
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(stage.ask(&["status"])?.status.code(), Some(20));
    // The daemon does not lock again by itself, whatever happens.
    stage.lab.client.ip("link set eth0 down\nlink set eth0 up")?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(stage.ask(&["status"])?.status.code(), Some(20));
    let output = stage.ask(&["lock", "--yes"])?;
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(stage.status()?["intact"], true);
    assert_eq!(stage.status()?["layers"]["owned"], true);
    Ok(())
}

fn reload() -> Outcome {
    let stage = Stage::set()?;
    let good = std::fs::read_to_string(&stage.configuration)?;
    std::fs::write(&stage.configuration, format!("{good}\n[allow]\nlna = []\n"))?;
    let output = stage.ask(&["reload", "--yes"])?;
    assert_eq!(output.status.code(), Some(78), "{}", said(&output));
    stage.wait_for_traffic("a failed reload")?;
    std::fs::write(&stage.configuration, format!("{good}\n[allow]\nntp = [\"192.0.2.123\"]\n"))?;
    let output = stage.ask(&["reload", "--yes"])?;
    assert!(output.status.success(), "{}", said(&output));
    let status = stage.status()?;
    assert_eq!((&status["intact"], &status["state"]), (&true.into(), &"connected".into()));
    stage.wait_for_traffic("a reload")?;
    stage.nothing_leaked("reloading")?;
    Ok(())
}

fn monitor() -> Outcome {
    let stage = Stage::set()?;
    let mut command = Command::new(&stage.program);
    let log = std::env::temp_dir().join("monitor.log");
    command.args(["--json", "monitor"]).stdin(Stdio::null()).stdout(std::fs::File::create(&log)?);
    let _monitor = stage.lab.client.start(command)?;
    // Give it time to subscribe: the test repeats what it does until it is told of it.
    eventually("the deletion of rules is told and undone", || {
        stage.lab.client.output("ip", &["rule", "delete", "pref", "27590"])?;
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let has = |event: &str| text.contains(&format!("\"event\":\"{event}\""));
        Ok(has("tampered") && has("repaired"))
    })?;
    std::fs::remove_file(log)?;
    Ok(())
}

fn blocked() -> Outcome {
    let stage = Stage::set()?;
    let mut command = Command::new(&stage.program);
    let log = std::env::temp_dir().join("blocked.log");
    command.args(["--json", "monitor"]).stdin(Stdio::null()).stdout(std::fs::File::create(&log)?);
    let _monitor = stage.lab.client.start(command)?;
    let socket = PacketSocket::open(&stage.lab.client, CLIENT_LINK)?;
    // Of types that no rule knows, from LLDP's on: the same would be told once, and the monitor may
    // not listen yet.
    let mut kind = 0x88cc_u16;
    eventually("a blocked frame is told", || {
        let mut frame = vec![0xff; 12];
        frame.extend(kind.to_be_bytes());
        frame.resize(60, 0);
        assert!(socket.send(&frame).is_err());
        kind += 1;
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        Ok(text.lines().any(|line| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            event["event"] == "blocked"
                && event["link"] == CLIENT_LINK
                && event["protocol"].as_str().is_some_and(|it| it.starts_with("0x"))
                && event["uid"] == nix::unistd::geteuid().as_raw()
        }))
    })?;
    let told = stage.daemon.log()?;
    assert!(told.contains("blocked 0x"), "the journal does not say so: {told}");
    assert_eq!(stage.status()?["degraded"], serde_json::json!([]));
    stage.nothing_leaked("blocked frames")?;
    Ok(())
}
