//! No false alarm, and what is said is what the manual says.

use std::collections::BTreeSet;
use std::process::Command;

use killswitch::audit::KINDS;
use killswitch::lab::harness::{Outcome, Test};

use crate::catalogue::{self, BOOTED};
use crate::stage::{Setting, Stage};

pub const TESTS: &[Test] = &[
    ("a_clean_machine_has_no_finding", a_clean_machine_has_no_finding),
    ("a_machine_with_systemd_has_no_finding", a_machine_with_systemd_has_no_finding),
    ("a_clean_machine_leaks_nothing", a_clean_machine_leaks_nothing),
    ("an_open_machine_is_told_so", an_open_machine_is_told_so),
    ("who_is_not_root_is_told_so", who_is_not_root_is_told_so),
    ("nobody_can_blind_it", nobody_can_blind_it),
    ("auditing_changes_nothing", auditing_changes_nothing),
    ("the_catalogue_is_long_and_every_finding_exists", the_catalogue_is_long),
];

fn a_clean_machine_has_no_finding() -> Outcome {
    let stage = Stage::set(Setting::Connected)?;
    let audit = stage.audit("")?;
    audit.must_find(&[], "on a clean machine")?;
    assert_eq!(audit.code, 0);
    let checks = audit.report["checks"].as_u64().expect("a number");
    let skipped = audit.report["not_applicable"].as_array().expect("a list").len() as u64;
    assert_eq!(checks + skipped, killswitch::audit::checks().count() as u64);
    let output = stage.audit_with("", &["audit"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&format!("nothing found; {checks} checks")), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
    Ok(())
}

/// With the units of the system that this runs on beside ours.
fn a_machine_with_systemd_has_no_finding() -> Outcome {
    let stage = Stage::set(Setting::Connected)?;
    let audit = stage.audit(BOOTED)?;
    audit.must_find(&[], "on a clean machine")?;
    let skipped = audit.report["not_applicable"].to_string();
    assert!(!skipped.contains("\"units\""), "{skipped}");
    Ok(())
}

/// But what is known to get out where there is no egress guard.
fn a_clean_machine_leaks_nothing() -> Outcome {
    for setting in [Setting::Connected, Setting::Alone, Setting::Unguarded] {
        let stage = Stage::set(setting)?;
        let leaks = setting.leaks();
        let code = if leaks.is_empty() { 0 } else { 20 };
        stage.leaktest("")?.must_leak_by(leaks, code, &format!("{setting:?}"))?;
    }
    Ok(())
}

fn an_open_machine_is_told_so() -> Outcome {
    let stage = Stage::set(Setting::Alone)?;
    stage.run("nft flush ruleset")?;
    let output = stage.audit_with("", &["audit"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("critical  lock-open: this machine\n"), "{text}");
    assert!(text.contains("    cure: killswitch lock\n"), "{text}");
    assert_eq!(output.status.code(), Some(20));
    Ok(())
}

fn who_is_not_root_is_told_so() -> Outcome {
    let stage = Stage::set(Setting::Alone)?;
    let map = std::fs::read_to_string("/proc/self/uid_map")?;
    // Where there is no other user nobody can be one.
    if map.split_whitespace().nth(2) == Some("1") {
        return Ok(());
    }
    let copy = "/run/killswitch-for-all";
    std::fs::copy(&stage.program, copy)?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", copy, "--json", "audit"]);
    let output = stage.lab.client.run(|| command.output())??;
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(document["error"]["code"], 4);
    Ok(())
}

/// What who has no privileges can do to be in its way: a name that is no text, a program in a place
/// too deep to be named, more network namespaces than files may be open.
fn nobody_can_blind_it() -> Outcome {
    const NAME: &str = "import ctypes, time\n\
        ctypes.CDLL(None).prctl(15, b'\\xff\\n\\x1b[2J', 0, 0, 0)\n\
        print('ready', flush=True)\ntime.sleep(3600)";
    const DEPTH: &str = "import os, sys, tempfile\n\
        program = open('/bin/sleep', 'rb').read()\n\
        os.chdir(sys.argv[1])\n\
        for _ in range(24):\n    os.mkdir('d' * 200)\n    os.chdir('d' * 200)\n\
        open('p', 'wb').write(program)\nos.chmod('p', 0o755)\n\
        print('ready', flush=True)\nos.execv('./p', ['p', '3600'])";
    const NAMESPACES: &str = "for _ in $(seq 40); do unshare -n sleep 3600 & done
        while [ $(jobs -p | xargs -I{} readlink /proc/{}/ns/net | sort -u | wc -l) -lt 40 ]; do
            sleep 0.1; done; echo ready; wait";
    let stage = Stage::set(Setting::Connected)?;
    let folder = tempfile::tempdir()?;
    let place = folder.path().display().to_string();
    let hostile = [
        stage.start("/usr/bin/python3", &["-c", NAME])?,
        stage.start("/usr/bin/python3", &["-c", DEPTH, &place])?,
        stage.start(
            "unshare",
            &["-n", "-p", "-f", "--kill-child", "--mount-proc", "bash", "-c", NAMESPACES],
        )?,
    ];
    let audit = stage.audit("ulimit -n 32")?;
    audit.must_find(&[], "among hostile processes")?;
    assert_eq!(audit.report["unchecked"], serde_json::json!([]), "{audit:#?}");
    // Too deep for a name, too deep for being removed by one.
    drop(hostile);
    Command::new("rm").arg("-rf").arg(&place).status()?;
    Ok(())
}

fn auditing_changes_nothing() -> Outcome {
    let stage = Stage::set(Setting::Alone)?;
    let look = || -> killswitch::lab::Result<String> {
        let script = "ip -4 rule; ip -6 rule; ip route show table all; ip -o link; ip netns list-id; \
                      timeout 20 nft -j list table inet killswitch | tr , '\\n' | grep -v '\"packets\\|\"bytes'; \
                      grep -r . /proc/sys/net/ipv4/conf";
        stage.lab.client.command("sh", &["-c", script])
    };
    let before = look()?;
    stage.audit("")?;
    assert_eq!(before, look()?);
    Ok(())
}

/// Every finding that the laboratory can bring about is brought about; the rest has a unit test, and
/// why it has no other.
fn the_catalogue_is_long() -> Outcome {
    const ELSEWHERE: [(&str, &str); 8] = [
        ("flowtable", "this kernel may have none"),
        ("iptables-legacy", "may not be installed"),
        ("kernel-without-egress", "needs another kernel"),
        ("link-elsewhere", "needs hardware"),
        ("lock-degraded", "needs a kernel that refuses a layer"),
        ("lock-unit-failed", "needs systemd"),
        ("nftables-flush", "needs another kernel"),
        ("table-not-owned", "needs a daemon that fails to own it"),
    ];
    let known: BTreeSet<&str> = KINDS.iter().map(|kind| kind.id).collect();
    let mut tried: BTreeSet<&str> =
        catalogue::FINDINGS.iter().copied().flatten().copied().collect();
    assert!(catalogue::CATALOGUE.len() >= 25, "{}", catalogue::CATALOGUE.len());
    let leaks = catalogue::LEAKS.iter().flatten().count();
    assert!(leaks >= 6, "{leaks}");
    assert!(tried.is_subset(&known), "{tried:?}");
    tried.extend(["daemon-not-running", "egress-guard-off"]);
    tried.extend(ELSEWHERE.map(|(id, _)| id));
    assert_eq!(tried, known);
    Ok(())
}
