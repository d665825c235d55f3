//! What fails while the test runs: a link that goes away, a full disk, and errors of the kernel, injected
//! by strace. Whatever it is, the machine is as before, locked, and the words say so.

use std::fs;
use std::process::Output;

use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Failed, Outcome, Test, eventually};
use killswitch::lab::{Context, Result};
use serde_json::Value;

use crate::common::{BLOCKED, LockedLab, words};

pub const TESTS: &[Test] = &[
    ("a_full_disk_costs_the_page_alone", a_full_disk_costs_the_page_alone),
    ("a_link_that_goes_away_is_left_out", a_link_that_goes_away_is_left_out),
    ("an_error_at_any_step_leaves_all_as_it_was", an_error_at_any_step_leaves_all_as_it_was),
];

const DISRUPT: [&str; 5] = ["leaktest", "--disrupt", "--yes", "--down-time", "1s"];

fn document(output: &Output) -> std::result::Result<Value, Failed> {
    Ok(serde_json::from_slice(&output.stdout).during(words(output))?)
}

fn a_full_disk_costs_the_page_alone() -> Outcome {
    let locked = LockedLab::new()?;
    locked.lock()?;
    let place = locked.config().with_file_name("full");
    fs::create_dir(&place)?;
    let disk = place.to_str().ok_or("a path")?;
    killswitch::lab::namespaces::assert_private()?;
    let mount = ["-t", "tmpfs", "-o", "size=4k", "tmpfs", disk];
    locked.lab.client.command("mount", &mount)?;
    let page = format!("{disk}/page.html");
    let output = locked.killswitch(&["--json", "leaktest", "--html", &page])?;
    let said = document(&output)?;
    let left = fs::read_dir(&place)?.count();
    locked.lab.client.command("umount", &[disk])?;
    assert_eq!(output.status.code(), Some(1), "{said:#}");
    assert_eq!((&said["verdict"], left), (&"held".into(), 0));
    let error = said["error"]["message"].as_str().unwrap_or_default();
    assert!(error.contains(&page) && error.contains("No space left"), "{error}");
    Ok(())
}

/// While another one is down.
fn a_link_that_goes_away_is_left_out() -> Outcome {
    let locked = LockedLab::new()?;
    let (client, trap) = (&locked.lab.client, locked.lab.trap.path());
    client.ip(&format!(
        "link add late index 77 type veth peer name trap netns {trap}
         address add 10.98.1.2/24 dev late
         link set late up
         route add default via 10.98.1.1 dev late metric 900"
    ))?;
    locked.lock()?;
    let output = std::thread::scope(|scope| -> std::result::Result<_, Failed> {
        let test = scope.spawn(|| locked.killswitch(&[&["--json"][..], &DISRUPT].concat()));
        let is_down = || -> Result<bool> {
            Ok(!client.command("ip", &["link", "show", CLIENT_LINK])?.contains("state UP"))
        };
        eventually("a link is down", is_down)?;
        client.ip("link del late")?;
        Ok(test.join().map_err(|_| "the test panicked")??)
    })?;
    let said = document(&output)?;
    let limits = said["limits"].to_string();
    assert_eq!((output.status.code(), &said["verdict"]), (Some(0), &"held".into()), "{limits}");
    assert!(limits.contains("link-down: not done with late"), "{limits}");
    assert!(client.command("ip", &["link", "show", CLIENT_LINK])?.contains("state UP"));
    Ok(())
}

/// System call, error, and at which of its calls: before the first change, at each of them, after.
const ERRORS: [(&str, &str, u32); 8] = [
    ("sendmsg", "EPERM", 50),
    ("sendmsg", "EPERM", 230),
    ("sendmsg", "ENOBUFS", 240),
    ("socket", "EMFILE", 60),
    ("socket", "EMFILE", 250),
    ("write", "EPIPE", 2),
    ("write", "EPIPE", 4),
    ("poll", "ENOMEM", 10),
];

fn an_error_at_any_step_leaves_all_as_it_was() -> Outcome {
    let locked = LockedLab::new()?;
    locked.lock()?;
    let before = network(&locked)?;
    let mut ended = 0;
    for (call, error, when) in ERRORS {
        let what = format!("{error} at {call} {when}");
        let output = injected(&locked, (call, error, when))?;
        let said = words(&output);
        match output.status.code() {
            Some(0 | 30) => {}
            Some(1 | 4) => {
                ended += 1;
                assert!(said.contains("is given back") || said.contains("not permitted"), "{said}");
            }
            code => panic!("{what}: {code:?}: {said}"),
        }
        let mut now = String::new();
        eventually(&format!("all is as before {what}"), || {
            now = network(&locked)?;
            Ok(now == before)
        })
        .during(format!("before: {before}\nnow: {now}\n{said}"))?;
        locked.expect_status(BLOCKED)?;
    }
    assert!(ended > 0, "no error was one");
    Ok(())
}

fn injected(
    locked: &LockedLab,
    (call, error, when): (&str, &str, u32),
) -> std::result::Result<Output, Failed> {
    let trace = locked.config().with_file_name("trace");
    let inject = format!("inject={call}:error={error}:when={when}+60000");
    let text = |path: &std::path::Path| path.display().to_string();
    let (trace_path, config) = (text(&trace), text(&locked.config()));
    let only = format!("trace={call}");
    let mut all = vec!["-f", "-qq", "-e", &only, "-e", &inject, "-o", &trace_path];
    all.extend([env!("CARGO_BIN_EXE_killswitch"), "--config", &config]);
    all.extend(DISRUPT);
    let output = locked.lab.client.output("strace", &all)?;
    let traced = fs::read_to_string(&trace)?;
    assert!(traced.contains("INJECTED"), "{call} is not called {when} times");
    Ok(output)
}

fn network(locked: &LockedLab) -> Result<String> {
    let look = "ip -o link show up | cut -d: -f2 | sort
        ip -o address | sed 's/valid_lft.*//'
        ip route; ip -6 route | grep -v fe80 | sort; ip rule; ip -6 rule";
    locked.lab.client.command("sh", &["-c", look])
}
