//! Exit statuses and what is printed.

use std::process::{Command, Stdio};

use killswitch::lab::harness::Outcome;
use serde_json::Value;

use crate::machine::{Machine, PROGRAM, TUNNEL, failed};

pub fn a_day_in_its_life() -> Outcome {
    let machine = Machine::new()?;
    let run = |arguments: &[&str]| machine.killswitch(arguments);
    let checked = run(&["check"])?.exits(0);
    assert!(checked.out.contains(": valid"), "{checked:?}");
    assert!(run(&["status"])?.exits(20).out.contains("state     open"));
    assert!(run(&["plan"])?.exits(0).out.starts_with("not locked now"));
    assert!(machine.reaches_the_other_end()?);

    assert_eq!(run(&["lock"])?.exits(0).out, "locked\n");
    assert!(!machine.reaches_the_other_end()?);
    // Past the routing guard, so that the tables have something to count.
    machine.host.output("ping", &["-c1", "-W1", "-I", "eth0", "192.168.1.1"])?;
    let status = run(&["status"])?.exits(10);
    assert!(status.out.contains("state     blocked"), "{status:?}");
    assert!(status.out.contains("dropped   output: blocked: "), "{status:?}");
    assert_eq!(run(&["plan"])?.exits(0).out, "no change\n");
    let before = machine.table()?;
    assert_eq!(run(&["lock"])?.exits(0).out, "locked: nothing had to be changed\n");
    assert_eq!(run(&["reload"])?.exits(0).out, "reloaded: nothing had to be changed\n");
    assert_eq!(machine.table()?, before);

    let unlocked = run(&["unlock", "--yes"])?.exits(0);
    assert!(unlocked.out.starts_with("unlocked: "), "{unlocked:?}");
    assert_eq!(run(&["unlock", "--yes"])?.exits(0).out, "there was no lock\n");
    run(&["status"])?.exits(20);
    assert!(machine.reaches_the_other_end()?);
    Ok(())
}

pub fn a_tunnel_that_is_up_is_connected() -> Outcome {
    killswitch::lab::namespaces::tun_device()?;
    let machine = Machine::new()?;
    machine.killswitch(&["lock"])?.exits(0);
    machine
        .host
        .ip("tuntap add wg0 mode tun\naddress add 10.64.0.2/32 dev wg0\nlink set wg0 up")?;
    let status = machine.killswitch(&["--json", "status"])?.exits(0).json();
    assert_eq!(status["state"], "connected");
    // A name alone proves nothing: a bridge of that name is not the tunnel.
    machine.host.ip("link del wg0\nlink add wg0 type bridge\nlink set wg0 up")?;
    machine.killswitch(&["lock"])?.exits(0);
    assert_eq!(machine.killswitch(&["--json", "status"])?.exits(10).json()["state"], "blocked");
    Ok(())
}

pub fn damage_is_told() -> Outcome {
    let machine = Machine::new()?;
    machine.killswitch(&["lock"])?.exits(0);
    machine.nft("insert rule inet killswitch output accept")?;
    let status = machine.killswitch(&["--json", "status"])?.exits(30).json();
    assert_eq!(
        [&status["state"], &status["locked"], &status["intact"]],
        [&Value::from("damaged"), &Value::from(true), &Value::from(false)]
    );
    assert!(
        machine.killswitch(&["status"])?.exits(30).out.contains("`killswitch reload` mends it")
    );
    machine.killswitch(&["reload"])?.exits(0);
    machine.killswitch(&["status"])?.exits(10);
    Ok(())
}

/// After an edit of the file and before `reload` the guard holds, but is another than configured. One
/// that was tampered with is not taken for such a one.
pub fn a_guard_of_another_configuration_is_one() -> Outcome {
    let machine = Machine::new()?;
    let egress = || -> Result<(Value, String), killswitch::lab::Error> {
        let status = machine.killswitch(&["--json", "status"])?.exits(30).json();
        Ok((status["layers"]["egress"].clone(), status["degraded"].to_string()))
    };
    let audit = || -> Result<Vec<String>, killswitch::lab::Error> {
        let found = machine.killswitch(&["--json", "audit"])?.json()["findings"].clone();
        let ids = found.as_array().into_iter().flatten();
        Ok(ids.filter_map(|it| it["id"].as_str().map(str::to_owned)).collect())
    };
    let (eth0, none) = (serde_json::json!(["eth0"]), serde_json::json!([]));
    machine.killswitch(&["lock"])?.exits(0);
    for more in ["[allow]\nlan = [\"192.168.1.0/24\"]\n", "colour = \"red\"\n"] {
        machine.configure(&format!("{TUNNEL}\n{more}"))?;
        let (links, degraded) = egress()?;
        assert_eq!(links, eth0, "{degraded}");
        assert!(
            degraded.contains("table netdev killswitch is not ") && !degraded.contains("has none")
        );
        let metrics = machine.killswitch(&["metrics"])?.exits(0).out;
        assert!(metrics.contains("killswitch_egress_guarded_links 1\n"), "{metrics}");
        assert!(metrics.contains("killswitch_intact 0\n"), "{metrics}");
    }
    machine.configure(&format!("{TUNNEL}\n[allow]\nlan = [\"192.168.1.0/24\"]\n"))?;
    let ids = audit()?;
    assert!(ids.iter().any(|it| it == "egress-guard-damaged"), "{ids:?}");
    assert!(!ids.iter().any(|it| it == "egress-guard-missing"), "{ids:?}");
    for tampering in [
        "insert rule netdev killswitch frames accept",
        "insert rule netdev killswitch frames ether type ip accept comment \"to a server\"",
        "flush chain netdev killswitch frames",
        "flush table netdev killswitch",
    ] {
        machine.configure(TUNNEL)?;
        machine.killswitch(&["lock"])?.exits(0);
        for text in [TUNNEL.to_owned(), format!("{TUNNEL}\n[allow]\nntp = [\"192.168.1.9\"]\n")] {
            if text == TUNNEL {
                machine.nft(tampering)?;
            }
            machine.configure(&text)?;
            let (links, degraded) = egress()?;
            assert_eq!(links, none, "{tampering}: {degraded}");
            assert!(degraded.contains("eth0 has none"), "{tampering}: {degraded}");
        }
        assert!(audit()?.iter().any(|it| it == "egress-guard-missing"), "{tampering}");
    }
    machine.configure(TUNNEL)?;
    machine.killswitch(&["reload"])?.exits(0);
    machine.killswitch(&["status"])?.exits(10);
    Ok(())
}

/// The table is gone, and what is left still blocks: nobody is told that everything may leave.
pub fn what_is_left_of_the_lock_is_said() -> Outcome {
    let machine = Machine::new()?;
    let open = || -> Result<String, killswitch::lab::Error> {
        Ok(machine.killswitch(&["status"])?.exits(20).out)
    };
    assert!(open()?.contains("everything may leave in clear"));
    machine.killswitch(&["lock"])?.exits(0);
    for damage in ["nft delete table inet killswitch", "nft delete table netdev killswitch"] {
        let (program, arguments) = damage.split_once(' ').expect("words");
        machine.host.command(program, &arguments.split(' ').collect::<Vec<_>>())?;
        machine.host.ip("rule del pref 27599")?;
        let said = open()?;
        assert!(!said.contains("everything may leave"), "{said}");
        assert!(said.contains("still blocks: `killswitch lock` locks"), "{said}");
        machine.host.ip("rule add pref 27599 unreachable protocol kernel")?;
    }
    machine.killswitch(&["unlock", "--yes"])?.exits(0);
    assert!(open()?.contains("everything may leave in clear"));
    Ok(())
}

pub fn unlock_asks_a_person() -> Outcome {
    let machine = Machine::new()?;
    machine.killswitch(&["lock"])?.exits(0);
    machine.killswitch(&["unlock"])?.exits(2).complains(&["unlock --yes"]);
    for answer in [r"\n", r"n\n", r"no\n", r"yess\n", r"\004"] {
        let asked = machine.on_a_terminal("unlock", answer)?.exits(1);
        assert!(asked.out.contains("Open the lock?") && asked.out.contains("not unlocked"));
        machine.killswitch(&["status"])?.exits(10);
    }
    machine.on_a_terminal("unlock", r"y\n")?.exits(0);
    machine.killswitch(&["status"])?.exits(20);
    Ok(())
}

/// The keys of design 5.2.
pub fn json_has_its_keys() -> Outcome {
    let machine = Machine::new()?;
    let report = machine.killswitch(&["--json", "lock"])?.exits(0).json();
    assert_eq!(report["locked"], true);
    assert_eq!(report["changed"], true);
    let status = machine.status()?;
    has_keys(
        &status,
        &["state", "locked", "intact", "degraded", "tunnel", "layers", "dropped", "daemon"],
    );
    has_keys(
        &status["tunnel"],
        &["interface", "server", "endpoint", "last_handshake_age_s", "rx_bytes", "tx_bytes"],
    );
    has_keys(&status["layers"], &["table", "egress", "routes", "owned"]);
    assert_eq!(status["layers"]["egress"], serde_json::json!(["eth0"]));
    has_keys(&status["dropped"]["output"]["blocked: local"], &["packets", "bytes"]);

    let check = machine.killswitch(&["--json", "check"])?.exits(0).json();
    has_keys(&check, &["valid", "errors", "warnings", "notices"]);
    let plan = machine.killswitch(&["--json", "plan"])?.exits(0).json();
    assert_eq!(plan, serde_json::json!({ "locked": true, "changes": [] }));
    let packet = ["--json", "explain", "--out", "eth0", "--to", "1.1.1.1", "--proto", "udp"];
    let explain = machine.killswitch(&packet)?.exits(0).json();
    has_keys(&explain, &["verdict", "table", "chain", "rule", "reason", "layers", "cause"]);
    assert!(explain["remedy"].is_null() && explain["never"].is_string(), "{explain}");
    let tables = machine.killswitch(&["rules", "--format", "json"])?.exits(0).json();
    for table in tables.as_array().into_iter().flatten() {
        has_keys(table, &["family", "name", "sets", "chains"]);
    }
    assert_eq!(
        machine.killswitch(&["--json", "unlock", "--yes"])?.exits(0).json()["locked"],
        false
    );
    machine.configure("nonsense")?;
    let check = machine.killswitch(&["--json", "check"])?.exits(78).json();
    assert_eq!(check["valid"], false);
    assert_eq!(check["errors"].as_array().map(Vec::len), Some(1), "{check}");
    Ok(())
}

fn has_keys(json: &Value, keys: &[&str]) {
    for key in keys {
        assert!(json.get(key).is_some(), "no {key} in {json}");
    }
}

pub fn rules_load_and_explain_agrees() -> Outcome {
    let machine = Machine::new()?;
    let text = machine.killswitch(&["rules"])?.exits(0).out;
    let (inet, _) = text.split_once("table netdev").ok_or_else(|| failed("no netdev table"))?;
    machine.nft(inet)?;
    let by_nft = machine.contents()?;
    machine.host.command("nft", &["delete", "table", "inet", "killswitch"])?;
    machine.killswitch(&["lock"])?.exits(0);
    let by_us = machine.contents()?;
    let differing: Vec<_> = by_us.iter().filter(|it| !by_nft.contains(it)).collect();
    assert!(differing.is_empty() && by_us.len() == by_nft.len(), "{differing:#?}");

    for (packet, verdict) in [
        ("--out eth0 --to 1.1.1.1 --proto udp --port 53", "refused"),
        ("--out lo --to 127.0.0.1", "passes"),
        (
            "--out eth0 --to 198.51.100.7 --proto udp --port 51820 --mark 0x6b73 --wireguard 1",
            "passes",
        ),
        ("--out eth0 --to 198.51.100.7 --proto udp --port 51820 --mark 0x6b73", "refused"),
        ("--out wg0 --to 1.1.1.1", "passes"),
        ("--in eth0 --proto tcp --port 22", "dropped"),
        ("--in eth0 --out wg0 --to 1.1.1.1", "dropped"),
    ] {
        let arguments: Vec<&str> = std::iter::once("explain").chain(packet.split(' ')).collect();
        let explained = machine.killswitch(&arguments)?.exits(0);
        assert!(explained.out.contains(verdict), "{packet}: {explained:?}");
    }
    let line = "12:00:00.1 eth0  Out IP 192.168.1.5.40000 > 1.1.1.1.53: 1234+ A? example.org. (29)";
    let explained = machine.killswitch(&["explain", "--line", line])?.exits(0);
    assert!(
        explained.out.contains("refused") && explained.out.contains("assumed: UDP"),
        "{explained:?}"
    );
    machine.killswitch(&["explain", "--line", "nonsense"])?.exits(2).complains(&["not a line of"]);
    machine.killswitch(&["explain", "--to", "1.1.1.1"])?.exits(2).complains(&["--out LINK"]);
    machine.killswitch(&["explain", "--out", "eth0"])?.exits(2).complains(&["--to ADDRESS"]);
    Ok(())
}

pub fn help_names_every_command() -> Outcome {
    let machine = Machine::new()?;
    let help = machine.killswitch(&["--help"])?.exits(0).out;
    for word in [
        "lock", "unlock", "reload", "status", "check", "plan", "rules", "explain", "leaktest",
        "audit", "evidence", "metrics", "demo",
    ] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(word)), "{word}: {help}");
        machine.killswitch(&[word, "--help"])?.exits(0);
    }
    assert!(help.contains("78 bad configuration"));
    let alone = machine.run(Command::new(PROGRAM))?.exits(2);
    assert!(alone.out.is_empty() && alone.err.contains("First steps:"), "{alone:?}");
    let of_lock = machine.killswitch(&["help", "lock"])?.exits(0);
    assert_eq!(of_lock.out, machine.killswitch(&["lock", "--help"])?.exits(0).out);
    let version = machine.killswitch(&["--version"])?.exits(0).out;
    assert_eq!(version, format!("killswitch {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        let script = machine.killswitch(&["completions", shell])?.exits(0).out;
        assert!(script.contains("unlock"), "{shell}");
    }
    for wrong in [&["bogus"][..], &[], &["lock", "--force"], &["rules", "--format", "xml"]] {
        let usage = machine.killswitch(wrong)?.exits(2);
        assert!(
            usage.out.is_empty() && usage.err.contains("Usage") || usage.err.contains("--help")
        );
    }
    Ok(())
}

/// Everything that prints.
const PRINTING: [&[&str]; 11] = [
    &["--help"],
    &["--version"],
    &["status"],
    &["--json", "status"],
    &["check"],
    &["plan"],
    &["rules"],
    &["rules", "--format", "json"],
    &["completions", "bash"],
    &["explain", "--out", "eth0", "--to", "1.1.1.1"],
    &["leaktest"],
];

pub fn colour_is_for_terminals_only() -> Outcome {
    let machine = Machine::new()?;
    for arguments in PRINTING.into_iter().chain([&["bogus"][..], &["--config", "/none", "lock"]]) {
        let run = machine.killswitch(arguments)?;
        assert!(!run.out.contains('\x1b') && !run.err.contains('\x1b'), "{run:?}");
    }
    let colourful = machine.on_a_terminal("status", "")?;
    assert!(colourful.out.contains('\x1b'), "no colour on a terminal: {colourful:?}");
    let line = format!(
        "timeout 30 script -qec 'NO_COLOR=1 {PROGRAM} --config {} status' /dev/null </dev/null",
        machine.path("killswitch.toml").display()
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).env("TERM", "xterm");
    let plain = machine.run(shell)?.exits(20);
    assert!(plain.out.contains("state") && !plain.out.contains('\x1b'), "{plain:?}");
    Ok(())
}

pub fn a_closed_pipe_is_no_panic() -> Outcome {
    let machine = Machine::new()?;
    for arguments in PRINTING.into_iter().chain([&["lock"][..], &["unlock", "--yes"]]) {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let mut command = machine.command(arguments);
        command.stdout(Stdio::from(writer)).stderr(Stdio::piped());
        let run = machine.run(command)?;
        assert!([0, 20].contains(&run.code), "{arguments:?}: {run:?}");
        assert!(!run.err.contains("panicked"), "{arguments:?}: {run:?}");
    }
    Ok(())
}

/// A full disk: who reads the file must not take it for the whole.
pub fn what_cannot_be_written_is_a_failure() -> Outcome {
    let machine = Machine::new()?;
    let more = [&["lock"][..], &["--json", "check"], &["unlock", "--yes"], &["evidence", "export"]];
    for arguments in PRINTING.into_iter().chain(more) {
        let mut command = machine.command(arguments);
        command.stdout(std::fs::File::options().write(true).open("/dev/full")?);
        command.stderr(Stdio::piped());
        let run = machine.run(command)?.exits(1);
        let words = "error: standard output: No space left on device";
        assert_eq!(run.err.matches(words).count(), 1, "{arguments:?}: {run:?}");
    }
    // That the disk is full does not make another failure one of the disk.
    let mut command = machine.command(&["--json", "bogus"]);
    command.stdout(std::fs::File::options().write(true).open("/dev/full")?);
    machine.run(command)?.exits(2);
    Ok(())
}

pub fn the_same_configuration_gives_the_same_bytes() -> Outcome {
    let machine = Machine::new()?;
    let listed = |lan: &str, ntp: &str, inbound: &str, endpoints: &str| {
        let tunnel = crate::machine::TUNNEL
            .replace(r#""198.51.100.7:51820", "198.51.100.7:443""#, endpoints);
        format!("{tunnel}\n[allow]\nlan = [{lan}]\nntp = [{ntp}]\ninbound = [{inbound}]\n")
    };
    let one = listed(
        r#""192.168.1.0/24", "10.1.0.0/16""#,
        r#""192.0.2.1", "192.0.2.2""#,
        r#"{ proto = "tcp", port = 22, from = ["192.168.1.0/24"] }, { proto = "udp", port = 53, from = ["10.1.0.0/16"] }"#,
        r#""198.51.100.7:51820", "198.51.100.7:443""#,
    );
    let other = listed(
        r#""10.1.0.0/16", "192.168.1.0/24""#,
        r#""192.0.2.2", "192.0.2.1""#,
        r#"{ proto = "udp", port = 53, from = ["10.1.0.0/16"] }, { proto = "tcp", port = 22, from = ["192.168.1.0/24"] }"#,
        r#""198.51.100.7:443", "198.51.100.7:51820""#,
    );
    let mut texts = Vec::new();
    for text in [&one, &one, &other] {
        machine.configure(text)?;
        for format in ["nft", "json"] {
            texts.push((format, machine.killswitch(&["rules", "--format", format])?.exits(0).out));
        }
    }
    assert_eq!(texts[0..2], texts[2..4]);
    assert_eq!(texts[0..2], texts[4..6]);
    Ok(())
}
