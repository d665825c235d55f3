//! What the daemon records: requests and who made them, states, tampering, its own death.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use killswitch::lab::harness::{Outcome, Test, eventually};
use killswitch::lab::{Bus, Daemon, Lab, Result, setup};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::journal::{begin_anew, entries, events, last};

pub const TESTS: &[Test] = &[
    ("daemon::requests_and_who_made_them", requests),
    ("daemon::who_may_not_is_recorded", refusal),
    ("daemon::tampering_and_repair", tampering),
    ("daemon::killed_within_anything", killed),
];

struct Stage {
    daemon: Daemon,
    program: PathBuf,
    configuration: PathBuf,
    lab: Lab,
}

impl Stage {
    fn set() -> Result<Self> {
        begin_anew()?;
        let lab = Lab::with_servers()?;
        let configuration = setup::write_configuration(&lab, "")?;
        let program = setup::program()?;
        let daemon = Daemon::start_and_wait(&lab, &program, &configuration)?;
        Ok(Stage { daemon, program, configuration, lab })
    }

    #[track_caller]
    fn ask(&self, arguments: &[&str]) -> Result<Output> {
        let output = setup::killswitch(&self.lab, &self.program, &self.configuration, arguments)?;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        Ok(output)
    }
}

/// Whether there are users besides root: not in a namespace of one user.
pub fn has_nobody() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().nth(2).and_then(|it| it.parse::<u64>().ok()) > Some(65534)
}

fn recorded(event: &str) -> Result<Value> {
    let mut found = Err(killswitch::lab::Error::new(event));
    eventually(&format!("{event} is recorded"), || {
        found = last(event);
        Ok(found.is_ok())
    })?;
    found
}

fn requests() -> Outcome {
    let mut stage = Stage::set()?;
    eventually("it connects", || Ok(recorded("state")?["state"] == "connected"))?;
    assert_eq!(events()?[0], "daemon_started");
    stage.ask(&["unlock", "--yes", "--reason", "why not"])?;
    let unlocked = recorded("unlock")?;
    assert_eq!([&unlocked["through"], &unlocked["reason"]], ["daemon", "why not"]);
    // The kernel's word for the other end of the socket, and the command's own, are the same process.
    let typed = last("command")?;
    assert_eq!([&typed["command"], &typed["reason"]], ["unlock", "why not"]);
    assert_eq!(unlocked["by"]["pid"], typed["by"]["pid"], "{unlocked} {typed}");
    assert_eq!(
        [&unlocked["by"]["uid"], &unlocked["by"]["program"]],
        [&json!(0), &json!("killswitch")]
    );
    assert_ne!(unlocked["writer"], typed["writer"]);
    eventually("it is open", || Ok(last("state")?["state"] == "open"))?;
    stage.ask(&["lock", "--yes"])?;
    assert!(recorded("reload")?["by"]["pid"].is_u64());
    let reloaded = recorded("reloaded")?;
    assert_eq!((&reloaded["tightens"], &reloaded["loosens"]), (&json!(0), &json!(0)));
    let ntp = fs::read_to_string(&stage.configuration)? + "\n[allow]\nntp = [\"192.0.2.123\"]\n";
    fs::write(&stage.configuration, ntp)?;
    stage.ask(&["reload", "--yes"])?;
    eventually("it loosens", || Ok(last("reloaded")?["loosens"].as_u64() > Some(0)))?;
    assert_ne!(last("reloaded")?["ruleset"], reloaded["ruleset"]);
    stage.ask(&["exception", "add", "lan", "192.168.7.0/24", "--for", "1h"])?;
    let opened = recorded("exception_opened")?;
    assert_eq!(
        [&opened["kind"], &opened["what"], &opened["seconds"], &opened["id"]],
        [&json!("lan"), &json!("192.168.7.0/24"), &json!(3600), &json!(1)]
    );
    stage.ask(&["exception", "remove", "1"])?;
    let closed = recorded("exception_closed")?;
    assert_eq!([&closed["id"], &closed["why"]], [&json!(1), &json!("removed")]);
    assert!(closed["by"]["pid"].is_u64(), "{closed}");
    stage.daemon.signal(Signal::SIGTERM)?;
    eventually("it ends", || Ok(!stage.daemon.runs()))?;
    // Folded in by whoever comes next, if it was too late for that.
    stage.ask(&["lock", "--yes"])?;
    assert!(events()?.contains(&"daemon_stopped".to_owned()), "{:?}", events()?);
    assert_eq!(last("lock")?["through"], "kernel");
    stage.ask(&["evidence", "verify"])?;
    let all = entries()?.iter().map(Value::to_string).collect::<String>();
    assert!(!all.contains(&stage.lab.client_keys.private_text()));
    // Where somebody was is nobody's business.
    for server in &stage.lab.servers {
        assert!(!all.contains(&server.endpoint_v4.ip().to_string()), "{all}");
    }
    assert!(stage.daemon.log()?.contains("evidence ends at"), "{}", stage.daemon.log()?);
    Ok(())
}

fn refusal() -> Outcome {
    if !has_nobody() {
        println!("skipped: there is nobody here who is not root");
        return Ok(());
    }
    begin_anew()?;
    let lab = Lab::with_servers()?;
    let configuration = setup::write_configuration(&lab, "")?;
    let _bus = Bus::start(&lab.client)?;
    let _daemon = Daemon::start_and_wait(&lab, &setup::program()?, &configuration)?;
    // No polkit: only root may.
    let call = [
        "--reuid=65534",
        "--clear-groups",
        "busctl",
        "call",
        "org.killswitch1",
        "/org/killswitch1",
        "org.killswitch1.Manager",
        "Unlock",
        "s",
        "please",
    ];
    let mut refused = String::new();
    eventually("it is on the bus, and refuses", || {
        let output = lab.client.output("setpriv", &call)?;
        assert!(!output.status.success(), "{output:?}");
        refused = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(refused.contains("only root may"))
    })?;
    let entry = recorded("refused")?;
    assert_eq!(entry["action"], "org.killswitch1.loosen");
    let by = &entry["by"];
    assert_eq!([&by["uid"], &by["program"]], [&json!(65534), &json!("busctl")], "{by}");
    assert!(by["bus"].as_str().is_some_and(|it| it.starts_with(':')), "{by}");
    assert!(by["user"].is_string() && by["pid"].is_u64(), "{by}");
    assert!(!events()?.contains(&"unlock".to_owned()));
    Ok(())
}

fn tampering() -> Outcome {
    let stage = Stage::set()?;
    eventually("it connects", || Ok(recorded("state")?["state"] == "connected"))?;
    let deletes = || stage.lab.client.output("ip", &["rule", "delete", "pref", "27590"]);
    assert!(deletes()?.status.success());
    assert_eq!(recorded("tampered")?["layer"], "routing");
    assert_eq!(recorded("repaired")?["repairs"], 1);
    let events = events()?;
    let at = |event: &str| events.iter().position(|it| it == event);
    assert!(at("tampered") < at("repaired"), "{events:?}");
    Ok(())
}

/// At any moment, many times, while others write, too.
fn killed() -> Outcome {
    let mut stage = Stage::set()?;
    const TIMES: usize = 15;
    for number in 0..TIMES {
        for _ in 0..number % 4 {
            // Whether it is answered does not matter.
            let _ = setup::killswitch(
                &stage.lab,
                &stage.program,
                &stage.configuration,
                &["exception", "add", "lan", "192.168.7.0/24", "--for", "1h"],
            )?;
        }
        std::thread::sleep(std::time::Duration::from_micros(700 * number as u64));
        stage.daemon.again(&stage.lab)?;
    }
    stage.ask(&["unlock", "--yes", "--reason", "the end"])?;
    eventually("the end is recorded", || Ok(recorded("unlock")?["reason"] == "the end"))?;
    stage.ask(&["evidence", "verify"])?;
    let started = events()?.iter().filter(|it| *it == "daemon_started").count();
    // Once they are ready, all are there.
    assert_eq!(started, TIMES + 1);
    let all = entries()?;
    let bodies = all.iter().map(|it| {
        (it["writer"].as_u64(), it["boottime_us"].as_u64(), it["event"].clone().to_string())
    });
    let mut distinct: Vec<_> = bodies.collect();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), all.len(), "something is there twice: {all:#?}");
    Ok(())
}
