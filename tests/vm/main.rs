//! From power-on to power-off on Debian machines with Debian's kernels: every frame that the machine
//! sends is captured outside of it, and judged.
//!
//! `make test-vm` has what is seen at every change of the code, `make test-vm-long` all.
//! VM_SUITES="trixie": one release only. Scenarios are named in full, with or without their release,
//! many with commas: "kexec,trixie::reboot". VM_SCRIPT="journalctl" and the scenario "script": to try
//! something out in a machine that is connected. Images: tests/vm/image.

use std::process::ExitCode;

use killswitch::lab::harness::Outcome;
use killswitch::lab::namespaces;
use libtest_mimic::{Arguments, Trial};

mod actions;
mod boots;
mod console;
mod disks;
mod events;
mod machine;
mod monitor;
mod networks;
mod payload;
mod plan;
mod record;
mod stage;
mod ways;

/// bookworm 6.1, trixie 6.12, and the newest that Debian has.
const SUITES: [plan::Suite; 3] = ["bookworm", "trixie", "sid"];

/// A name, and what to do on a release under that name.
type Scenario = (&'static str, fn(plan::Suite, &str) -> Outcome);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Two emulated processors want two real ones.
    arguments.test_threads.get_or_insert(1);
    if !arguments.list
        && let Err(error) = namespaces::enter_private()
    {
        eprintln!("killswitch-vm: {error}");
        return ExitCode::FAILURE;
    }
    let wanted = std::env::var("VM_SUITES").unwrap_or_else(|_| SUITES.join(" "));
    let suites: Vec<plan::Suite> =
        SUITES.into_iter().filter(|suite| wanted.split(' ').any(|one| one == *suite)).collect();
    let mut trials = Vec::new();
    for suite in suites {
        for event in events::EVENTS {
            let title = format!("{suite}::{}", event.name);
            let trial = Trial::test(title, move || say(events::befall(event, suite)));
            trials.push(trial.with_ignored_flag(!events::ALWAYS.contains(&event.name)));
        }
        if let Ok(script) = std::env::var("VM_SCRIPT") {
            trials.push(Trial::test(format!("{suite}::script"), move || {
                events::try_out(suite, &script)
            }));
        }
        for &(name, scenario) in boots::SCENARIOS {
            let trial = Trial::test(format!("{suite}::{name}"), move || {
                record::forget(suite, name)?;
                say(scenario(suite, name))
            });
            trials.push(trial.with_ignored_flag(true));
        }
    }
    if let Some(names) = arguments.filter.take() {
        trials.retain(|trial| is_named(trial.name(), &names));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    events::switch_off();
    conclusion.exit_code()
}

/// Not by a part of the name: "reboot" is not every boot.
fn is_named(title: &str, names: &str) -> bool {
    names.split(',').any(|name| title == name || title.split("::").last() == Some(name))
}

/// What failed at once, instead of in an hour.
fn say(outcome: Outcome) -> Outcome {
    outcome.inspect_err(|failed| println!("{}", failed.message().unwrap_or_default()))
}
