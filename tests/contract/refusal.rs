//! What cannot be done is told, and changes nothing.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::{Context, Result};

use crate::machine::{
    Machine, PRIVATE_KEY, TUNNEL, failed, public_program, set_mode, without_privileges,
};

/// A mistake, and what must be said of it besides the file's name.
type Mistake = (&'static str, fn(&Machine) -> Result<()>, &'static [&'static str]);

fn replaced(machine: &Machine, from: &str, to: &str) -> Result<()> {
    let text = TUNNEL.replacen(from, to, 1);
    if text == TUNNEL {
        return Err(killswitch::lab::Error::new(format!("{from} is not in the configuration")));
    }
    machine.configure(&text)
}

fn allow(machine: &Machine, line: &str) -> Result<()> {
    machine.configure(&format!("{TUNNEL}\n[allow]\n{line}\n"))
}

fn endpoint(machine: &Machine, address: &str) -> Result<()> {
    replaced(machine, "198.51.100.7:443", address)
}

const MISTAKES: [Mistake; 25] = [
    (
        "missing",
        |it| std::fs::remove_file(it.path("killswitch.toml")).during("removing"),
        &["no such file", "help: "],
    ),
    ("empty", |it| it.configure(""), &["is empty", "help: "]),
    ("binary", |it| it.write("killswitch.toml", [0xff, 0, 1, 2], 0o644), &["not a text file"]),
    (
        "100 MB",
        |it| {
            it.configure("")?;
            let file = std::fs::OpenOptions::new().write(true).open(it.path("killswitch.toml"));
            file.and_then(|file| file.set_len(100 << 20)).during("growing the file")
        },
        &["too large", "104857600", "help: "],
    ),
    (
        "directory",
        |it| {
            std::fs::remove_file(it.path("killswitch.toml")).during("removing")?;
            std::fs::create_dir(it.path("killswitch.toml")).during("a directory")
        },
        &["a directory"],
    ),
    (
        "symbolic link",
        |it| {
            it.write("elsewhere.toml", TUNNEL, 0o644)?;
            std::fs::remove_file(it.path("killswitch.toml")).during("removing")?;
            symlink(it.path("elsewhere.toml"), it.path("killswitch.toml")).during("linking")
        },
        &["symbolic link", "help: "],
    ),
    ("others may write", |it| it.write("killswitch.toml", TUNNEL, 0o666), &["may write", "chmod"]),
    ("others may exchange it", |it| set_mode(&it.path(""), 0o777), &["directory", "chmod"]),
    ("not TOML", |it| it.configure("[tunnel\n"), &[":1"]),
    (
        "unknown key",
        |it| replaced(it, "interface =", "interfase ="),
        &[":3", "interfase", "interface"],
    ),
    ("wrong type", |it| replaced(it, "\"wg0\"", "7"), &[":3", "tunnel.interface"]),
    (
        "private key world-readable",
        |it| it.write("private.key", PRIVATE_KEY, 0o644),
        &["private.key", "others may read it", "chmod 600"],
    ),
    (
        "private key missing",
        |it| std::fs::remove_file(it.path("private.key")).during("removing"),
        &["private.key", "no such file", ":4"],
    ),
    (
        "private key broken",
        |it| it.write("private.key", "yAnz5TF+lXXJ", 0o600),
        &["private.key", "44 characters"],
    ),
    (
        "host bits",
        |it| allow(it, "lan = [\"192.168.1.7/24\"]"),
        &["192.168.1.7/24", "192.168.1.0/24"],
    ),
    ("port 0", |it| endpoint(it, "198.51.100.7:0"), &["198.51.100.7:0", ":9"]),
    ("no port", |it| endpoint(it, "198.51.100.7"), &["198.51.100.7", ":9", "help: "]),
    (
        "duplicate server",
        |it| {
            it.configure(&format!("{TUNNEL}{}", &TUNNEL[TUNNEL.find("[[server]]").unwrap_or(0)..]))
        },
        &["se-sto-1", ":8", ":14"],
    ),
    (
        "IPv4-mapped",
        |it| endpoint(it, "[::ffff:198.51.100.7]:443"),
        &["IPv6 form", "help: write it as IPv4"],
    ),
    ("zone", |it| endpoint(it, "[fe80::1%eth0]:443"), &["zone", "help: "]),
    (
        "host name",
        |it| endpoint(it, "vpn.example:443"),
        &["vpn.example", "not looked up", "getent"],
    ),
    (
        "LAN covers the tunnel",
        |it| allow(it, "lan = [\"10.0.0.0/8\"]"),
        &["10.0.0.0/8", "10.64.0.2"],
    ),
    ("LAN covers the Internet", |it| allow(it, "lan = [\"0.0.0.0/0\"]"), &["0.0.0.0/0"]),
    (
        "inbound port 0",
        |it| allow(it, "inbound = [{ proto = \"tcp\", port = 0, from = [\"192.168.1.0/24\"] }]"),
        &["allow.inbound"],
    ),
    (
        "unknown server key",
        |it| replaced(it, "public_key", "publickey"),
        &["publickey", "public_key"],
    ),
];

pub fn a_bad_configuration_leaves_the_lock_alone() -> Outcome {
    for (name, make, words) in MISTAKES {
        let machine = Machine::new()?;
        machine.killswitch(&["lock"])?.exits(0);
        let (table, routing) = (machine.table()?, machine.routing()?);
        assert!(table.contains("blocked: output"), "{table}");
        make(&machine)?;
        for command in [&["lock"][..], &["reload"], &["plan"], &["check"], &["rules"]] {
            let run = machine.killswitch(command)?;
            assert_eq!(run.code, 78, "{name}: {command:?}: {run:?}");
            assert!(run.out.is_empty() && run.err.starts_with("error: "), "{name}: {run:?}");
            assert!(
                run.err.contains(machine.path("").to_string_lossy().trim_end_matches('/')),
                "{name}: {run:?}"
            );
            for words in words {
                assert!(run.err.contains(words), "{name}: {words:?} is not in {}", run.err);
            }
            if command == ["reload"] {
                assert!(run.err.contains("the lock is as it was"), "{name}: {run:?}");
            }
        }
        assert_eq!(machine.table()?, table, "{name}");
        assert_eq!(machine.routing()?, routing, "{name}");
        let status = machine.killswitch(&["--json", "status"])?.exits(30).json();
        assert_eq!(status["locked"], true, "{name}: {status}");
        let complaint = status["degraded"][0].as_str().unwrap_or_default();
        assert!(complaint.starts_with("the configuration cannot be used"), "{name}: {status}");
        assert!(!machine.reaches_the_other_end()?, "{name}");
    }
    Ok(())
}

pub fn an_open_machine_stays_as_it_was() -> Outcome {
    let machine = Machine::new()?;
    let routing = machine.routing()?;
    machine.configure("colour = \"red\"\n")?;
    machine
        .killswitch(&["lock"])?
        .exits(78)
        .complains(&["killswitch.toml:1: colour", "NOT LOCKED"]);
    let words =
        ["NOT LOCKED: everything may leave", "`killswitch lock --boot` locks most strictly"];
    let reload = machine.killswitch(&["reload"])?.exits(78);
    assert!(!reload.err.contains("as it was"), "{reload:?}");
    reload.complains(&words);
    let error = machine.killswitch(&["--json", "reload"])?.exits(78).json()["error"].clone();
    let told = ["message", "help"].map(|key| error[key].as_str().unwrap_or_default().to_owned());
    assert!(told[0].ends_with(words[0]) && told[1].contains(words[1]), "{error}");
    assert_eq!(machine.table()?, "no table");
    assert_eq!(machine.routing()?, routing);
    machine.killswitch(&["status"])?.exits(20);
    Ok(())
}

pub fn who_may_not_is_told_so() -> Outcome {
    let machine = Machine::new()?;
    let program = public_program(&machine)?;
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(machine.command(arguments).get_args());
        machine.run(without_privileges(command))
    };
    machine.killswitch(&["lock"])?.exits(0);
    let (table, routing) = (machine.table()?, machine.routing()?);
    let words = ["not permitted", "CAP_NET_ADMIN", "run this as root"];
    for command in
        [&["lock"][..], &["reload"], &["unlock", "--yes"], &["plan"], &["lock", "--boot"]]
    {
        as_nobody(command)?.exits(4).complains(&words);
    }
    as_nobody(&["leaktest"])?.exits(4).complains(&words);
    as_nobody(&["status"])?.exits(30).complains(&words);
    as_nobody(&["--json", "status"])?.exits(30).complains(&words);
    // A file that holds no secret may be read by all, and then explains itself.
    let external =
        "[tunnel]\nkind = \"external\"\ninterface = \"wg0\"\naddresses = [\"10.64.0.2/32\"]
                    [[server]]\nname = \"a\"\nendpoints = [\"198.51.100.7:1194\"]\n";
    machine.configure(external)?;
    as_nobody(&["check"])?.exits(0);
    as_nobody(&["explain", "--out", "eth0", "--to", "1.1.1.1"])?.exits(0);
    as_nobody(&["lock"])?.exits(4).complains(&words);
    assert_eq!((machine.table()?, machine.routing()?), (table, routing));
    Ok(())
}

pub fn the_owner_of_a_table_is_named() -> Outcome {
    let machine = Machine::new()?;
    let mut nft = Command::new("nft");
    nft.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut owner = machine.host.start(nft)?;
    let process = owner.child().id();
    let mut input = owner.child().stdin.take().ok_or_else(|| failed("no pipe"))?;
    writeln!(input, "add table inet killswitch {{ flags owner; }}")?;
    input.flush()?;
    eventually("the table is there", || machine.has_table())?;
    assert_eq!(machine.status()?["layers"]["owned"], true);
    let name = format!("owned by nft (process {process})");
    for command in [&["lock"][..], &["reload"], &["unlock", "--yes"]] {
        machine.killswitch(command)?.exits(1).complains(&[&name, "help: "]);
    }
    drop((input, owner));
    eventually("its table goes with it", || Ok(!machine.has_table()?))?;
    machine.killswitch(&["lock"])?.exits(0);
    machine.killswitch(&["status"])?.exits(10);
    Ok(())
}
