//! `lock --boot`, and who types in an SSH session.

use std::process::Command;

use killswitch::lab::harness::Outcome;
use serde_json::json;

use crate::machine::{Machine, PRIVATE_KEY, TUNNEL};

pub fn a_bad_configuration_at_boot_is_the_strictest_lock() -> Outcome {
    for how in ["unknown key", "missing", "unreadable key"] {
        let machine = Machine::new()?;
        match how {
            "unknown key" => machine.configure("colour = \"red\"\n")?,
            "missing" => std::fs::remove_file(machine.path("killswitch.toml"))?,
            _ => machine.write("private.key", PRIVATE_KEY, 0o644)?,
        }
        let said = machine.killswitch(&["lock", "--boot"])?.exits(78);
        said.complains(&[
            "the strictest lock is on",
            "help: mend the file, then `killswitch reload`",
        ]);
        let strictest = machine.contents()?;
        assert!(!machine.reaches_the_other_end()?, "{how}");
        let status = machine.killswitch(&["--json", "status"])?.exits(10).json();
        assert_eq!([&status["locked"], &status["intact"]], [true, true], "{how}: {status}");
        let complaint = status["degraded"][0].as_str().unwrap_or_default();
        assert!(complaint.starts_with("the configuration cannot be used"), "{how}: {status}");
        // Neither again, nor by a command at a terminal does it become less.
        machine.killswitch(&["lock", "--boot"])?.exits(78);
        machine.killswitch(&["reload"])?.exits(78);
        assert_eq!(machine.contents()?, strictest, "{how}");

        machine.configure(TUNNEL)?;
        machine.write("private.key", PRIVATE_KEY, 0o600)?;
        let status = machine.killswitch(&["--json", "status"])?.exits(30).json();
        assert!(status["degraded"][0].as_str().unwrap_or_default().contains("strictest"));
        assert_eq!(machine.killswitch(&["reload"])?.exits(0).out, "reloaded\n");
        let status = machine.killswitch(&["--json", "status"])?.exits(10).json();
        assert_eq!([&status["intact"], &status["degraded"]], [&json!(true), &json!([])]);
    }
    Ok(())
}

/// The strictest lock takes the place of a looser one, not only of none.
pub fn a_bad_configuration_at_boot_tightens_what_is_there() -> Outcome {
    let machine = Machine::new()?;
    machine.configure(&format!("{TUNNEL}\n[allow]\nlan = [\"192.168.1.0/24\"]\n"))?;
    machine.killswitch(&["lock", "--boot"])?.exits(0);
    assert!(machine.reaches_the_other_end()?);
    machine.configure("colour = \"red\"\n")?;
    let run = machine.killswitch(&["--json", "lock", "--boot"])?.exits(78);
    let report = run.json();
    assert_eq!([&report["locked"], &report["changed"]], [true, true], "{report}");
    let error = &report["error"];
    assert_eq!(error["code"], 78, "{report}");
    assert!(error["message"].as_str().unwrap_or_default().contains("colour"), "{report}");
    assert!(error["help"].as_str().unwrap_or_default().contains("mend the file"), "{report}");
    run.complains(&["colour", "the strictest lock is on"]);
    assert!(!machine.reaches_the_other_end()?);
    Ok(())
}

pub fn not_wanted_at_boot_is_not_done() -> Outcome {
    let machine = Machine::new()?;
    machine.configure(&format!("{TUNNEL}\n[lock]\nat_boot = false\n"))?;
    let routing = machine.routing()?;
    let run = machine.killswitch(&["lock", "--boot"])?.exits(0);
    run.complains(&["lock.at_boot is false"]);
    let report = machine.killswitch(&["--json", "lock", "--boot"])?.exits(0).json();
    assert_eq!(report, json!({ "locked": false, "changed": false, "degraded": [] }));
    assert_eq!((machine.table()?, machine.routing()?), ("no table".into(), routing));
    // Typed, it locks all the same.
    machine.killswitch(&["lock"])?.exits(0);
    let table = machine.table()?;
    machine.killswitch(&["lock", "--boot"])?.exits(0);
    assert_eq!(machine.table()?, table, "a lock that is on is not opened at boot");
    let report = machine.killswitch(&["--json", "lock", "--boot"])?.exits(0).json();
    assert_eq!(report["locked"], true);
    Ok(())
}

const SESSION: &str = "192.168.1.7 50123 192.168.1.50 22";
const RULE: &str = r#"inbound = [{ proto = "tcp", port = 22, from = ["192.168.1.7/32"] }]"#;

pub fn a_session_is_not_cut_off_unasked() -> Outcome {
    let machine = Machine::new()?;
    let in_session = |arguments: &[&str]| {
        let mut command = machine.command(arguments);
        command.env("SSH_CONNECTION", SESSION);
        machine.run(command)
    };
    for command in ["lock", "reload"] {
        in_session(&[command])?.exits(1).complains(&["192.168.1.7", RULE, "--yes"]);
        assert_eq!(machine.table()?, "no table");
    }
    in_session(&["lock", "--yes"])?.exits(0);
    machine.killswitch(&["status"])?.exits(10);
    machine.killswitch(&["unlock", "--yes"])?.exits(0);
    // What the message says to write is what helps.
    machine.configure(&format!("{TUNNEL}\n[allow]\n{RULE}\n"))?;
    in_session(&["lock"])?.exits(0);
    // Nobody sits at the boot unit.
    machine.killswitch(&["unlock", "--yes"])?.exits(0);
    machine.configure(TUNNEL)?;
    in_session(&["lock", "--boot"])?.exits(0);
    Ok(())
}

/// sudo(8) drops the variable; the shell that it was typed in has it.
pub fn a_session_shows_in_the_environment_of_a_parent() -> Outcome {
    let machine = Machine::new()?;
    let program = machine.command(&["lock"]);
    let typed: Vec<_> = std::iter::once(program.get_program())
        .chain(program.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    let mut shell = Command::new("sh");
    // Twice: the nearest parent has it no more.
    let line = format!("env -u SSH_CONNECTION sh -c '{}; exit $?'; exit $?", typed.join(" "));
    shell.args(["-c", &line]).env("SSH_CONNECTION", SESSION);
    machine.run(shell)?.exits(1).complains(&[RULE]);
    assert_eq!(machine.table()?, "no table");
    Ok(())
}
