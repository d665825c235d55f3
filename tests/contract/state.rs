//! Whatever is there already, the end is the same.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use killswitch::lab::harness::Outcome;
use killswitch::lab::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

use crate::machine::{Machine, TUNNEL};

/// What a lock on an untouched machine leaves behind.
struct Whole {
    table: Vec<String>,
    routing: String,
}

impl Whole {
    fn of(machine: &Machine) -> Result<Self> {
        let status = machine.killswitch(&["--json", "status"])?.exits(10).json();
        assert_eq!(
            [&status["intact"], &status["degraded"], &status["layers"]["egress"]],
            [&json!(true), &json!([]), &json!(["eth0"])],
            "{status}"
        );
        assert!(!machine.reaches_the_other_end()?);
        Whole::read(machine)
    }

    fn read(machine: &Machine) -> Result<Self> {
        // Link-local addresses are made of random ones; rules of one preference may stand anyhow.
        let text = machine.routing()?;
        let mut routing: Vec<_> = text.lines().filter(|it| !it.contains("fe80")).collect();
        routing.sort_unstable();
        Ok(Whole { table: machine.contents()?, routing: routing.join("\n") })
    }

    fn assert_same(&self, machine: &Machine, after: &str) -> Result<()> {
        let other = Whole::of(machine)?;
        assert_eq!(self.table, other.table, "after {after}");
        assert_eq!(self.routing, other.routing, "after {after}");
        Ok(())
    }
}

const FOREIGN_TABLE: &str = "
table inet killswitch {
    set tunnel4 { type ipv4_addr; flags interval; elements = { 1.0.0.0/8 }; }
    set link_scope6 { type inet_service; elements = { 1, 2 }; }
    set another { type ipv4_addr; flags dynamic, timeout; timeout 1h; }
    counter seen { packets 1 bytes 1; }
    chain aside { accept; }
    map ways { type ipv4_addr : verdict; elements = { 1.1.1.1 : jump aside }; }
    chain output { type filter hook output priority 500; policy accept;
        ip daddr vmap @ways
        ip daddr vmap { 1.1.1.2 : jump aside, 1.1.1.3 : drop }
        tcp dport @link_scope6 accept
        ip daddr @tunnel4 counter name seen accept
        add @another { ip daddr }
    }
    chain leave { type nat hook output priority 100; accept; }
    chain early { type filter hook ingress device eth0 priority 5; accept; }
}";

const FOREIGN_GUARD: &str = "
table netdev killswitch {
    set server_host4 { type inet_service; elements = { 1 }; }
    chain egress { type filter hook egress device eth0 priority 5; policy accept;
        ether type { arp, ip } accept
    }
    chain early { type filter hook ingress device eth0 priority 5; accept; }
}";

type Mess = (&'static str, fn(&Machine) -> Result<()>);

fn locked_then(machine: &Machine, script: &str) -> Result<()> {
    machine.killswitch(&["lock"])?.exits(0);
    machine.nft(script)
}

const MESSES: [Mess; 15] = [
    ("nothing", |_| Ok(())),
    ("a chain is deleted", |it| {
        locked_then(it, "flush chain inet killswitch output\ndelete chain inet killswitch output")
    }),
    ("all rules are deleted", |it| locked_then(it, "flush table inet killswitch")),
    ("a rule is doubled", |it| {
        locked_then(it, "add rule inet killswitch output counter drop comment \"blocked: output\"")
    }),
    ("a policy is flipped", |it| {
        locked_then(it, "chain inet killswitch output { policy accept; }")
    }),
    ("an element is added", |it| {
        locked_then(it, "add element inet killswitch wireguard4 { 1.1.1.1 . 53 }")
    }),
    ("an element for everything else", |it| {
        locked_then(it, "add element inet killswitch wireguard4 { * }")?;
        assert_eq!(it.killswitch(&["status"])?.code, 30);
        let plan = it.killswitch(&["plan"])?.exits(0);
        assert!(plan.out.contains("a foreign set"), "{plan:?}");
        Ok(())
    }),
    ("a rule with an unnamed set", |it| {
        locked_then(it, "insert rule inet killswitch output ip daddr { 1.1.1.1, 8.8.8.8 } accept")
    }),
    ("only sets are there", |it| {
        it.nft("table inet killswitch { set wireguard4 { type ipv4_addr . inet_service; }; }")
    }),
    ("only the netdev table", |it| locked_then(it, "delete table inet killswitch")),
    ("only the inet table", |it| locked_then(it, "delete table netdev killswitch")),
    ("only the routing guard", |it| {
        locked_then(it, "delete table inet killswitch\ndelete table netdev killswitch")
    }),
    ("half of the routing guard", |it| {
        it.killswitch(&["lock"])?.exits(0);
        it.host.ip("rule del pref 27500\nrule del pref 27590\nroute flush table 27507")?;
        it.host.command("ip", &["-6", "rule", "del", "pref", "27599"]).map(drop)
    }),
    ("a foreign table of our name", |it| it.nft(FOREIGN_TABLE)),
    ("a foreign guard of our name", |it| it.nft(FOREIGN_GUARD)),
];

pub fn from_whatever_state_lock_leads_to_the_same() -> Outcome {
    let clean = Machine::new()?;
    clean.killswitch(&["lock"])?.exits(0);
    let whole = Whole::of(&clean)?;
    for (name, make) in MESSES {
        let machine = Machine::new()?;
        make(&machine)?;
        let run = machine.killswitch(&["lock"])?;
        assert_eq!(run.code, 0, "{name}: {run:?}");
        let mut same = Whole::of(&machine)?;
        // A foreign counter may stay: it stops nothing and lets nothing through.
        same.table.retain(|it| !it.starts_with("{\"counter\""));
        assert_eq!(whole.table, same.table, "{name}");
        assert_eq!(whole.routing, same.routing, "{name}");
        let (table, routing) = (machine.table()?, machine.routing()?);
        let again = machine.killswitch(&["lock"])?.exits(0);
        assert_eq!(again.out, "locked: nothing had to be changed\n", "{name}");
        assert_eq!((table, routing), (machine.table()?, machine.routing()?), "{name}");
    }
    Ok(())
}

pub fn unlock_leaves_nothing_of_ours_and_all_of_others() -> Outcome {
    let machine = Machine::new()?;
    machine.nft(
        "table inet other {
             set killswitch { type ipv4_addr; elements = { 1.1.1.1 }; }
             chain output { type filter hook output priority 0; policy accept; accept; }
         }
         table ip killswitch { chain output { type filter hook output priority 0; accept; }; }
         table ip6 nat { }",
    )?;
    machine.host.ip("rule add pref 100 fwmark 1 lookup 100
         rule add pref 27540 fwmark 2 lookup 100
         rule add pref 27600 lookup 27507 protocol static
         route add 192.0.2.0/24 dev eth0 table 100
         route add unreachable 192.0.2.0/24 metric 7")?;
    let tables = |machine: &Machine| -> Result<String> {
        let mut all = String::new();
        for table in [["inet", "other"], ["ip", "killswitch"], ["ip6", "nat"]] {
            let arguments = ["20", "nft", "-a", "list", "table", table[0], table[1]];
            all += &machine.host.command("timeout", &arguments)?;
        }
        Ok(all)
    };
    let before = (tables(&machine)?, machine.routing()?);
    machine.killswitch(&["lock"])?.exits(0);
    Whole::of(&machine)?;
    assert_eq!(tables(&machine)?, before.0);
    let locked = machine.routing()?;
    for line in before.1.lines() {
        assert!(locked.lines().any(|it| it == line), "{line} is gone: {locked}");
    }
    machine.killswitch(&["reload"])?.exits(0);
    machine.killswitch(&["unlock", "--yes"])?.exits(0);
    assert_eq!((tables(&machine)?, machine.routing()?), before);
    assert_eq!(machine.table()?, "no table");
    Ok(())
}

/// There is always a way out: whatever stands where commands take turns.
pub fn nothing_in_the_lock_files_place_holds_up() -> Outcome {
    const FILE: &str = "/run/killswitch.lock";
    let machine = Machine::new()?;
    let commands = || -> Outcome {
        for arguments in [&["lock"][..], &["reload"], &["unlock", "--yes"]] {
            let mut command = std::process::Command::new("timeout");
            let inner = machine.command(arguments);
            command.arg("20").arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
            machine.run(command)?.exits(0);
        }
        Ok(())
    };
    let remove = || drop(std::fs::remove_file(FILE));
    remove();
    mkfifo(FILE, Mode::S_IRUSR | Mode::S_IWUSR)?;
    commands()?;
    // With a reader it can be opened, and with a writer's lock it could be waited for.
    let ends = std::fs::File::options().read(true).write(true).open(FILE)?;
    let _held = Flock::lock(ends, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    let begin = Instant::now();
    commands()?;
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    remove();
    std::os::unix::fs::symlink("/dev/null", FILE)?;
    commands()?;
    remove();
    commands()
}

pub fn commands_at_the_same_time_take_turns() -> Outcome {
    const ROUNDS: usize = 3;
    let machine = Machine::new()?;
    let mut wholes = Vec::new();
    for (name, text) in [
        ("a.toml", TUNNEL.to_owned()),
        (
            "b.toml",
            format!("{TUNNEL}\n[allow]\nlan = [\"10.9.0.0/16\"]\n")
                .replace("198.51.100.7", "203.0.113.7"),
        ),
    ] {
        machine.write(name, &text, 0o644)?;
        machine.configure(&text)?;
        machine.killswitch(&["lock"])?.exits(0);
        wholes.push(Whole::of(&machine)?);
    }
    assert_ne!(wholes[0].table, wholes[1].table);
    for round in 0..ROUNDS {
        if round == 1 {
            machine.killswitch(&["unlock", "--yes"])?.exits(0);
        }
        let children: Vec<Child> = (0..20)
            .map(|number| {
                let name = ["a.toml", "b.toml"][number % 2];
                let mut command = machine.command(&[["lock", "reload"][number / 2 % 2]]);
                command.arg("--config").arg(machine.path(name));
                command.stdout(Stdio::null()).stderr(Stdio::piped());
                machine.host.run(|| command.spawn())?.during("starting the program")
            })
            .collect::<Result<_>>()?;
        for child in children {
            let output = child.wait_with_output()?;
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let now = Whole::read(&machine)?;
        let one = wholes.iter().filter(|it| it.table == now.table && it.routing == now.routing);
        let Whole { table, routing } = &now;
        assert_eq!(one.count(), 1, "round {round}: a mixture: {table:#?}\n{routing}");
        for (name, whole) in ["a.toml", "b.toml"].iter().zip(&wholes) {
            machine.configure(&std::fs::read_to_string(machine.path(name))?)?;
            machine.killswitch(&["lock"])?.exits(0);
            whole.assert_same(&machine, "the last lock")?;
        }
    }
    Ok(())
}
