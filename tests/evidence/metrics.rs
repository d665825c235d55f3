//! Numbers for Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use killswitch::lab::harness::{Failed, Outcome, Test};
use serde_json::json;

use crate::journal::begin_anew;
use crate::machine::{Machine, public_program, without_privileges};

pub const TESTS: &[Test] = &[
    ("metrics::what_the_kernel_holds", numbers),
    ("metrics::a_file_is_replaced_at_once", file),
    ("metrics::what_cannot_be_read_is_not_called_locked", unreadable),
];

/// A strict reader of the exposition format: samples by name and labels.
fn read(text: &str) -> Result<BTreeMap<String, u64>, Failed> {
    let mut samples = BTreeMap::new();
    let mut family: Option<(String, String)> = None;
    let mut helped = BTreeSet::new();
    assert!(text.ends_with('\n'), "the last line has no end");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').ok_or(line)?;
            assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
            family = Some((name.to_owned(), String::new()));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or(line)?;
            let (helped, typed) = family.as_mut().ok_or(line)?;
            assert!(helped == name && typed.is_empty(), "{line}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(["counter", "gauge"].contains(&kind), "{line}");
            *typed = kind.to_owned();
        } else {
            let (what, value) = line.rsplit_once(' ').ok_or(line)?;
            let name = what.split('{').next().unwrap_or(what);
            let is_word = |it: &str| it.chars().all(|it| it.is_ascii_lowercase() || it == '_');
            assert!(name.starts_with("killswitch_") && is_word(name), "{line}");
            assert!(family.as_ref().is_some_and(|(it, kind)| it == name && !kind.is_empty()));
            let labels = what.strip_prefix(name).unwrap_or_default();
            assert!(labels.is_empty() || labels.starts_with('{') && labels.ends_with("\"}"));
            assert!(samples.insert(what.to_owned(), value.parse()?).is_none(), "twice: {line}");
        }
    }
    Ok(samples)
}

fn numbers() -> Outcome {
    let machine = Machine::new()?;
    begin_anew()?;
    let metrics = || read(&machine.killswitch(&["metrics"])?.exits(0).out);
    let open = metrics()?;
    assert_eq!((open["killswitch_up"], open["killswitch_locked"]), (1, 0));
    assert_eq!(open["killswitch_state{state=\"open\"}"], 1);
    machine.killswitch(&["lock"])?.exits(0);
    machine.host.output("ping", &["-c2", "-i0.2", "-W1", "-I", "eth0", "192.168.1.1"])?;
    let locked = metrics()?;
    assert_eq!(
        ["locked", "intact", "degraded_reasons", "daemon_up", "egress_guarded_links"]
            .map(|it| locked[&format!("killswitch_{it}")]),
        [1, 1, 0, 0, 1]
    );
    assert_eq!(locked["killswitch_state{state=\"blocked\"}"], 1);
    assert_eq!(locked["killswitch_evidence_entries_total"], 2);
    assert_eq!(locked["killswitch_tunnel_up{interface=\"wg0\"}"], 0);
    let status = machine.status()?;
    for (chain, reasons) in status["dropped"].as_object().into_iter().flatten() {
        for (reason, counted) in reasons.as_object().into_iter().flatten() {
            let name = format!(
                "killswitch_dropped_packets_total{{chain=\"{chain}\",reason=\"{reason}\"}}"
            );
            assert!(locked[&name] <= counted["packets"].as_u64().unwrap_or_default(), "{name}");
        }
    }
    let dropped: u64 = locked
        .iter()
        .filter(|(name, _)| name.starts_with("killswitch_dropped_packets_total"))
        .map(|(_, value)| value)
        .sum();
    assert!(dropped >= 2, "{locked:#?}");
    let document = machine.killswitch(&["--json", "metrics"])?.exits(0).json();
    let names: BTreeSet<&str> = locked.keys().filter_map(|it| it.split('{').next()).collect();
    let told = document["metrics"].as_array().ok_or("no metrics")?;
    let told: BTreeSet<&str> = told.iter().filter_map(|it| it["name"].as_str()).collect();
    assert_eq!(names, told);
    promtool(&machine)
}

/// Prometheus' own judgement, where it is installed.
fn promtool(machine: &Machine) -> Outcome {
    if Command::new("promtool").arg("--version").output().is_err() {
        println!("skipped: promtool is not installed (Debian: prometheus)");
        return Ok(());
    }
    let text = machine.killswitch(&["metrics"])?.exits(0).out;
    machine.write("text", text, 0o600)?;
    let line = format!("promtool check metrics <{} 2>&1", machine.path("text").display());
    let output = machine.host.output("sh", &["-c", &line])?;
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    Ok(())
}

fn file() -> Outcome {
    let machine = Machine::new()?;
    let path = machine.path("killswitch.prom");
    let output = path.display().to_string();
    fs::write(&path, "old")?;
    let run = machine.killswitch(&["metrics", "--output", &output])?.exits(0);
    assert!(run.out.is_empty() && run.err.is_empty(), "{run:?}");
    read(&fs::read_to_string(&path)?)?;
    assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o644);
    let names = fs::read_dir(machine.path(""))?.flatten().map(|it| it.file_name());
    assert!(names.into_iter().all(|it| !it.to_string_lossy().contains(".new")));
    machine.killswitch(&["metrics", "--output", "/nonexistent/a.prom"])?.exits(1);
    Ok(())
}

/// A file that goes on saying "locked" would be worse than none.
fn unreadable() -> Outcome {
    let machine = Machine::new()?;
    machine.killswitch(&["lock"])?.exits(0);
    let program = public_program(&machine)?;
    let folder = machine.path("collector");
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
    let path = folder.join("killswitch.prom");
    let output = path.display().to_string();
    let mut command = Command::new(&program);
    command.args(machine.command(&["--json", "metrics", "--output", &output]).get_args());
    let run = machine.run(without_privileges(command))?.exits(30);
    assert_eq!(run.json()["error"]["code"], json!(30));
    let samples = read(&fs::read_to_string(&path)?)?;
    assert_eq!(samples["killswitch_up"], 0);
    assert!(!samples.contains_key("killswitch_locked"), "{samples:?}");
    Ok(())
}
