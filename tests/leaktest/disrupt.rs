//! `leaktest --disrupt` beside the real daemon: nothing leaks, and whatever ends it, all is as before.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Outcome, Test, eventually};
use killswitch::lab::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::stage::Stage;

pub const TESTS: &[Test] = &[
    (
        "the_honest_test_sees_no_leak_and_gives_all_back_however_it_ends",
        the_honest_test_sees_no_leak_and_gives_all_back_however_it_ends,
    ),
    ("a_daemon_that_ends_meanwhile_is_left_out", a_daemon_that_ends_meanwhile_is_left_out),
    ("it_asks_first", it_asks_first),
];

/// At more moments: two minutes.
pub const SLOW: &[Test] = &[
    ("killed_at_any_moment_it_leaves_all_as_it_was", killed_at_any_moment_it_leaves_all_as_it_was),
    ("interrupted_it_leaves_all_as_it_was", interrupted_it_leaves_all_as_it_was),
];

/// At how many moments, spread over its course, it is killed.
const MOMENTS: u32 = 12;
const ARGUMENTS: [&str; 6] = ["--json", "leaktest", "--disrupt", "--yes", "--down-time", "1s"];

/// What must be as before: links, addresses, routes that somebody set, policy rules.
fn network(stage: &Stage) -> Result<String> {
    let look = "ip -o link | cut -d: -f2 | sort
        for link in eth0 wg0; do
            ip -o link show dev $link up | cut -d' ' -f2
            ip -o address show dev $link | sed 's/valid_lft.*//; s/^[0-9]*//'
            ip route show table all dev $link | sort
            ip -6 route show table all dev $link | grep -v '^multicast\\|^fe80\\|^local fe80' | sort
        done
        ip rule; ip -6 rule";
    // The tunnel's link may be another than before.
    stage.lab.client.command("sh", &["-c", look])
}

fn expect_as_before(stage: &Stage, before: &str, after: &str) -> Outcome {
    let mut now = String::new();
    eventually(&format!("all is as before {after}"), || {
        now = network(stage)?;
        Ok(now == before && !restorer_runs()?)
    })
    .during(format!("before: {before}\nnow: {now}"))?;
    assert!(!now.contains("kslt"), "a guest's link is left after {after}");
    let status = stage.status()?;
    assert_eq!(status["locked"], true, "after {after}: {status:#}");
    assert_eq!(status["intact"], true, "after {after}: {status:#}");
    stage.wait_for_traffic(after)?;
    stage.nothing_leaked(after)?;
    Ok(())
}

/// Whether a second process is at work yet.
fn restorer_runs() -> Result<bool> {
    let processes = fs::read_dir("/proc").during("/proc")?.flatten();
    let mut words = processes.filter_map(|it| fs::read(it.path().join("cmdline")).ok());
    Ok(words.any(|it| it.windows(16).any(|at| at == b"leaktest-restore")))
}

fn forwarding(stage: &Stage) -> Result<()> {
    stage.lab.client.sysctl("net/ipv4/ip_forward", "1")
}

fn the_honest_test_sees_no_leak_and_gives_all_back_however_it_ends() -> Outcome {
    let stage = Stage::set()?;
    forwarding(&stage)?;
    let before = network(&stage)?;
    let begin = Instant::now();
    let output = stage.ask(&ARGUMENTS)?;
    let course = begin.elapsed();
    let words = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).during(&words)?;
    let probes = report["probes"].as_array().expect("probes");
    let wrong: Vec<&Value> = probes.iter().filter(|it| it["verdict"] != "held").collect();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}: {wrong:#?}\n{}",
        report["summary"],
        report["limits"]
    );
    assert_eq!(report["disrupted"], true);
    let names: Vec<&str> = report["phases"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|it| it["name"].as_str())
        .collect();
    assert_eq!(names, ["before", "tunnel-cut", "link-down", "link-up", "table-flushed", "after"]);
    let sum =
        |of: &Value| of.as_array().into_iter().flatten().filter_map(Value::as_u64).sum::<u64>();
    let traffic = &report["traffic"];
    assert_eq!(sum(&traffic["leaked"]), 0);
    assert!(sum(&traffic["tunnel"]) > 100 && sum(&traffic["blocked"]) > 100, "{traffic}");
    let bands = report["bands"].as_array().expect("bands");
    let states = |kind: &str| -> Vec<&str> {
        let band = bands.iter().find(|it| it["kind"] == kind).expect(kind);
        band["spans"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|it| it["state"].as_str())
            .collect()
    };
    assert_eq!(states("link"), ["up", "down", "up"]);
    assert_eq!(states("lock"), ["intact"]);
    expect_as_before(&stage, &before, "the test")?;
    end_at(&stage, &before, course, 2, Signal::SIGKILL)?;
    end_at(&stage, &before, course, 1, Signal::SIGINT)
}

fn killed_at_any_moment_it_leaves_all_as_it_was() -> Outcome {
    ended_at(MOMENTS, Signal::SIGKILL)
}

fn interrupted_it_leaves_all_as_it_was() -> Outcome {
    ended_at(3, Signal::SIGINT)
}

fn ended_at(moments: u32, signal: Signal) -> Outcome {
    let stage = Stage::set()?;
    forwarding(&stage)?;
    let before = network(&stage)?;
    let begin = Instant::now();
    stage.ask(&ARGUMENTS)?;
    let course = begin.elapsed();
    expect_as_before(&stage, &before, "a whole test")?;
    end_at(&stage, &before, course, moments, signal)
}

/// At so many moments, spread over the test's course.
fn end_at(stage: &Stage, before: &str, course: Duration, moments: u32, signal: Signal) -> Outcome {
    for moment in 0..moments {
        let after = course * (2 * moment + 1) / (2 * moments);
        end_after(stage, after, signal)?;
        expect_as_before(stage, before, &format!("{signal} after {after:?} of {course:?}"))?;
    }
    Ok(())
}

fn end_after(stage: &Stage, after: Duration, signal: Signal) -> Result<()> {
    let mut command = Command::new(&stage.program);
    command.arg("--config").arg(&stage.configuration).args(ARGUMENTS);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = stage.lab.client.start(command)?;
    std::thread::sleep(after);
    let id = Pid::from_raw(process.child().id().cast_signed());
    // It may have ended by itself.
    let _ = kill(id, signal);
    process.child().wait().during("leaktest").map(drop)
}

/// While the link is down: what needs the daemon is not done then, and the lock stays. The next daemon
/// goes on where this one ended.
fn a_daemon_that_ends_meanwhile_is_left_out() -> Outcome {
    let mut stage = Stage::set()?;
    let before = network(&stage)?;
    let mut command = Command::new(&stage.program);
    command.arg("--config").arg(&stage.configuration).args(ARGUMENTS);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let client = stage.lab.client.clone();
    let test = std::thread::spawn(move || client.run(|| command.output()));
    eventually("the link is down", || {
        let link = stage.lab.client.command("ip", &["link", "show", CLIENT_LINK])?;
        Ok(!link.contains("state UP"))
    })?;
    stage.daemon.crash();
    let output = test.join().map_err(|_| "the test panicked")???;
    let words = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).during(&words)?;
    let limits = report["limits"].to_string();
    assert_eq!((output.status.code(), &report["verdict"]), (Some(0), &"held".into()), "{limits}");
    assert!(limits.contains("daemon-killed: not done"), "{limits}");
    let phases = report["phases"].to_string();
    assert!(phases.contains("link-up") && phases.contains("after"), "{phases}");
    assert_eq!(stage.status()?["locked"], true);
    stage.nothing_leaked("a test without its daemon")?;
    stage.daemon.again(&stage.lab)?;
    expect_as_before(&stage, &before, "a daemon's end and the next one's start")
}

fn it_asks_first() -> Outcome {
    let stage = Stage::set()?;
    let output = stage.ask(&["leaktest", "--disrupt"])?;
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{words}");
    assert!(words.contains("leaktest --disrupt --yes"), "{words}");
    // Nor without being told does it cut the session that it is typed in.
    let session = format!("SSH_CONNECTION={NEIGHBOUR_V4} 50123 {CLIENT_V4} 22");
    let (program, configuration) = (stage.program.display(), stage.configuration.display());
    let line = format!("exec {program} --config {configuration} leaktest --disrupt </dev/null");
    let output = stage.lab.client.output("env", &[&session, "sh", "-c", &line])?;
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("cut off your SSH session"), "{words}");
    assert!(stage.lab.client.command("ip", &["link", "show", CLIENT_LINK])?.contains("state UP"));
    Ok(())
}
