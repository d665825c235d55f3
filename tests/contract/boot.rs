//! `lock --boot`, and who types in an SSH session.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use killswitch::lab::harness::Outcome;
use killswitch::lab::{Context, Result};
use serde_json::json;

use crate::machine::{Machine, PRIVATE_KEY, Run, TUNNEL};

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
    run.complains(&["lock.at_boot is false: not locked"]);
    let report = machine.killswitch(&["--json", "lock", "--boot"])?.exits(0).json();
    assert_eq!(report, json!({ "locked": false, "changed": false, "degraded": [] }));
    assert_eq!((machine.table()?, machine.routing()?), ("no table".into(), routing));
    // Typed, it locks all the same.
    machine.killswitch(&["lock"])?.exits(0);
    let table = machine.table()?;
    let run = machine.killswitch(&["lock", "--boot"])?.exits(0);
    assert!(!run.err.contains("not locked"), "{run:?}");
    run.complains(&["lock.at_boot is false: the lock stays on"]);
    assert_eq!(machine.table()?, table, "a lock that is on is not opened at boot");
    let report = machine.killswitch(&["--json", "lock", "--boot"])?.exits(0).json();
    assert_eq!(report["locked"], true);
    Ok(())
}

const SESSION: &str = "192.168.1.7 50123 192.168.1.50 22";
const RULE: &str = r#"inbound = [{ proto = "tcp", port = 22, from = ["192.168.1.7/32"] }]"#;

fn run_in(session: &str, machine: &Machine, arguments: &[&str]) -> Result<Run> {
    let mut command = machine.command(arguments);
    command.env("SSH_CONNECTION", session);
    machine.run(command)
}

pub fn a_session_is_not_cut_off_unasked() -> Outcome {
    let machine = Machine::new()?;
    let in_session = |arguments: &[&str]| run_in(SESSION, &machine, arguments);
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

/// Conntrack sees nothing before the first lock, so it takes the server's word for the connection's
/// beginning.
pub fn a_session_goes_on_though_its_server_speaks_first() -> Outcome {
    const SERVER: &str = "192.168.1.50:2222";
    let machine = Machine::new()?;
    let inbound = r#"inbound = [{ proto = "tcp", port = 2222, from = ["192.168.1.1/32"] }]"#;
    machine.configure(&format!("{TUNNEL}\n[allow]\n{inbound}\n"))?;
    let listener = machine.host.run(|| TcpListener::bind(SERVER))?.during("listening")?;
    let mut client = machine.far.run(|| TcpStream::connect(SERVER))?.during("connecting")?;
    let (mut server, _) = listener.accept().during("accepting")?;
    machine.killswitch(&["lock"])?.exits(0);

    server.write_all(b"locked").during("the server's word")?;
    client.write_all(b"key").during("the client's word")?;
    assert_eq!(heard(&mut server, 3)?, b"key");
    assert_eq!(heard(&mut client, 6)?, b"locked");
    let status = machine.killswitch(&["--json", "status"])?.exits(10).json();
    let dropped = &status["dropped"]["output"];
    assert!(dropped.to_string().contains("from an inbound service's port"), "{dropped}");
    Ok(())
}

fn heard(stream: &mut TcpStream, length: usize) -> Result<Vec<u8>> {
    const PATIENCE: Duration = Duration::from_secs(20);
    stream.set_read_timeout(Some(PATIENCE)).during("a limit")?;
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).during("what was heard")?;
    Ok(bytes)
}

/// The routing guard takes no default route to a LAN.
pub fn a_session_from_behind_the_gateway_needs_a_service() -> Outcome {
    const SESSION: &str = "172.16.9.5 50123 192.168.1.50 22";
    const RULE: &str = r#"inbound = [{ proto = "tcp", port = 22, from = ["172.16.9.5/32"] }]"#;
    let machine = Machine::new()?;
    let lan = format!("{TUNNEL}\n[allow]\nlan = [\"172.16.0.0/12\"]\n");
    machine.configure(&lan)?;
    run_in(SESSION, &machine, &["lock"])?.exits(1).complains(&[RULE]);
    assert_eq!(machine.table()?, "no table");
    machine.host.ip("route add unreachable 172.16.9.0/24")?;
    machine.host.ip("route add 172.16.0.0/16 via 192.168.1.1")?;
    run_in(SESSION, &machine, &["lock"])?.exits(1).complains(&[RULE]);
    machine.host.ip("route delete unreachable 172.16.9.0/24")?;
    run_in(SESSION, &machine, &["lock"])?.exits(0);
    // The lock's own rules and routes do not change the answer.
    run_in(SESSION, &machine, &["reload"])?.exits(0);
    machine.host.ip("route delete 172.16.0.0/16")?;
    run_in(SESSION, &machine, &["reload"])?.exits(1).complains(&[RULE]);
    machine.configure(&format!("{lan}{RULE}\n"))?;
    run_in(SESSION, &machine, &["reload"])?.exits(0);
    Ok(())
}

/// What would be allowed for these is allowed to others, too.
pub fn a_session_that_never_leaves_is_not_cut_off() -> Outcome {
    let machine = Machine::new()?;
    machine.configure(&format!("{TUNNEL}\n[allow]\ninternal = [\"br-x\"]\n"))?;
    machine.host.ip("link add br-x type bridge
         address add 172.18.0.1/16 dev br-x
         link set br-x up")?;
    for session in [
        "172.18.0.5 50123 172.18.0.1 22",
        "172.18.0.5 50123 192.168.1.50 22",
        "192.168.1.50 50123 192.168.1.50 22",
        "::ffff:172.18.0.5 50123 ::ffff:172.18.0.1 22",
    ] {
        run_in(session, &machine, &["lock"])?.exits(0);
        machine.killswitch(&["unlock", "--yes"])?.exits(0);
    }
    let mapped = "::ffff:192.168.1.7 50123 ::ffff:192.168.1.50 22";
    run_in(mapped, &machine, &["lock"])?.exits(1).complains(&[RULE]);
    Ok(())
}
