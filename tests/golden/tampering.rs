//! What is read back from the kernel, untouched and tampered with.

use std::time::Instant;

use killswitch::dice::Dice;
use killswitch::lab::Host;
use killswitch::lab::harness::{Failed, Outcome};
use killswitch::netfilter::{self, Applied, LiveTable};
use killswitch::netlink::{Family, Socket};
use killswitch::policy::{Inbound, MessageShape, Policy, Protocol, Server};
use killswitch::ruleset::{self, Table, compile, guard};

use crate::policies;

/// Name, and what a stranger feeds to `nft -f`.
type Tampering = (&'static str, &'static str);

/// The chains and sets are those of [`tampered_policy`].
const CATALOGUE: [Tampering; 21] = [
    ("the table is deleted", "delete table inet killswitch"),
    ("its rules are deleted", "flush table inet killswitch"),
    ("a chain's rules are deleted", "flush chain inet killswitch postrouting"),
    ("a rule is deleted", "delete rule inet killswitch input handle LAST_INPUT"),
    ("an accept is inserted", "insert rule inet killswitch output accept"),
    ("an accept is appended", "add rule inet killswitch forward accept"),
    ("a drop is inserted", "insert rule inet killswitch leave drop"),
    ("rules are swapped", "SWAPPED"),
    (
        "a rule is replaced",
        "replace rule inet killswitch input handle LAST_INPUT counter accept comment \"blocked: input\"",
    ),
    (
        "a comment is changed",
        "replace rule inet killswitch input handle LAST_INPUT counter drop comment \"blocked: inpuT\"",
    ),
    ("a comment is gone", "replace rule inet killswitch input handle LAST_INPUT counter drop"),
    (
        "a counter is gone",
        "replace rule inet killswitch input handle LAST_INPUT drop comment \"blocked: input\"",
    ),
    ("a policy is changed", "chain inet killswitch output { policy accept; }"),
    ("the table sleeps", "ASLEEP"),
    ("an element is added", "add element inet killswitch wireguard4 { 203.0.113.9 . 51820 }"),
    ("an element is deleted", "delete element inet killswitch wireguard4 { 198.51.100.7 . 51820 }"),
    ("a range is added", "add element inet killswitch lan4 { 11.0.0.0/8 }"),
    ("a set is emptied", "flush set inet killswitch name_services"),
    ("a chain is added", "add chain inet killswitch more { type filter hook output priority -5; }"),
    ("a plain chain is added", "add chain inet killswitch more"),
    ("a set is added", "add set inet killswitch more { type ipv4_addr; }"),
];

/// Of another kind than the reader knows; not every kernel has it.
const FLOWTABLE: Tampering = (
    "a flowtable is added",
    "add flowtable inet killswitch fast { hook ingress priority 0; devices = { lo }; }",
);
const COUNTER: Tampering = ("a named counter is added", "add counter inet killswitch seen");

struct Machine {
    host: Host,
    socket: Socket,
}

impl Machine {
    fn new() -> Result<Self, Failed> {
        let host = Host::new("golden")?;
        let socket = host.run(|| Socket::open(Family::Netfilter))??;
        Ok(Machine { host, socket })
    }

    fn live(&self, family: ruleset::Family) -> Result<Option<LiveTable>, Failed> {
        // A dump that another change interrupts says so.
        loop {
            match netfilter::live::read(&self.socket, family) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => return Ok(other?),
            }
        }
    }

    fn holds(&self, table: &Table) -> Result<bool, Failed> {
        Ok(self.live(table.family)?.is_some_and(|live| live.equals(table)))
    }
}

pub fn random_policies_read_back() -> Outcome {
    let seed = 20260;
    println!("seed {seed}");
    let mut dice = Dice::new(seed);
    let machine = Machine::new()?;
    let mut last: Option<Policy> = None;
    for _ in 0..60 {
        let policy = policies::policy(&mut dice);
        let table = compile(&policy);
        let before = last.replace(policy.clone()).map(|it| compile(&it));
        if before.as_ref() != Some(&table) && machine.holds(&table)? {
            return Err(format!("held before it was applied: {policy:#?}").into());
        }
        netfilter::apply(&machine.socket, &table).map_err(|it| format!("{it}: {policy:#?}"))?;
        if !machine.holds(&table)? {
            return Err(format!("not read back: {policy:#?}").into());
        }
        if before.is_some_and(|it| it != table && machine.holds(&it).unwrap_or(true)) {
            return Err(format!("taken for the one before: {policy:#?}").into());
        }
        if netfilter::apply(&machine.socket, &table)? != Applied::Unchanged {
            return Err(format!("applied twice: {policy:#?}").into());
        }
        random_guard_reads_back(&machine, &policy)?;
    }
    Ok(())
}

fn random_guard_reads_back(machine: &Machine, policy: &Policy) -> Outcome {
    let every = guard(policy, None);
    let links = [ruleset::LinkRef { index: 1, name: "lo".into() }];
    // Before kernel 6.18 the first is refused.
    let mut applied = Vec::new();
    for table in [every, guard(policy, Some(&links))] {
        if netfilter::apply(&machine.socket, &table).is_ok() {
            if !machine.holds(&table)? {
                return Err(format!("guard not read back: {policy:#?}").into());
            }
            applied.push(table);
        }
    }
    match applied.is_empty() {
        true => Err("no form of the guard was taken".into()),
        false => Ok(()),
    }
}

pub fn large_sets_read_back() -> Outcome {
    for servers in [10_000u32, 100_000] {
        let machine = Machine::new()?;
        let mut policy = tampered_policy();
        policy.servers = (0..servers).map(server).collect();
        let table = compile(&policy);
        let start = Instant::now();
        netfilter::apply(&machine.socket, &table)?;
        let applied = start.elapsed();
        if !machine.holds(&table)? {
            return Err(format!("{servers} servers do not read back").into());
        }
        println!(
            "{servers} servers: applied in {applied:?}, read in {:?}",
            start.elapsed() - applied
        );
        let one_less = policy.servers.iter().nth(servers as usize / 2).copied();
        one_less.map(|it| policy.servers.remove(&it));
        if machine.holds(&compile(&policy))? {
            return Err(format!("one of {servers} servers is not missed").into());
        }
        netfilter::apply(&machine.socket, &compile(&policy))?;
        if !machine.holds(&compile(&policy))? {
            return Err(format!("one of {servers} servers was not taken out").into());
        }
    }
    Ok(())
}

fn server(number: u32) -> Server {
    let address = std::net::Ipv4Addr::from_bits(0x0b00_0000 + number / 2);
    let port = if number.is_multiple_of(2) { 51820 } else { 443 };
    let endpoint = (address, port).into();
    Server { endpoint, protocol: Protocol::Udp, shape: MessageShape::Wireguard }
}

/// With something in every set that the catalogue names.
fn tampered_policy() -> Policy {
    let mut policy = policies::policy(&mut Dice::new(1));
    let endpoint = "198.51.100.7:51820".parse().expect("an endpoint");
    let shape = MessageShape::Wireguard;
    policy.servers = [Server { endpoint, protocol: Protocol::Udp, shape }].into();
    policy.lan = vec!["192.168.1.0/24".parse().expect("a net")];
    policy.lan_dns.clear();
    policy.inbound = [Inbound {
        protocol: Protocol::Tcp,
        port: 22,
        from: "192.168.1.0/24".parse().expect("a net"),
    }]
    .into();
    policy
}

pub fn every_tampering_is_seen_and_repaired() -> Outcome {
    let table = compile(&tampered_policy());
    let mut wrong = Vec::new();
    for (name, script) in CATALOGUE {
        match tamper(&table, script)? {
            None => return Err(format!("{name}: nft refused").into()),
            Some(false) => {}
            Some(true) => wrong.push(format!("{name}: not seen")),
        }
    }
    for (name, script) in [FLOWTABLE, COUNTER] {
        match tamper(&table, script)? {
            None => println!("{name}: not in this kernel"),
            Some(false) => {}
            Some(true) => wrong.push(format!("{name}: not seen")),
        }
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong.join("\n").into()),
    }
}

/// Whether the table still passes for ours; `None`: nft was refused. What was seen is repaired.
fn tamper(table: &Table, script: &str) -> Result<Option<bool>, Failed> {
    let machine = Machine::new()?;
    netfilter::apply(&machine.socket, table)?;
    if !machine.holds(table)? {
        return Err("not intact to begin with".into());
    }
    // While its owner lives, nobody else can touch the table.
    let Machine { host, socket } = machine;
    drop(socket);
    let socket = host.run(|| Socket::open(Family::Netfilter))??;
    let machine = Machine { host, socket };
    let script = match script {
        "SWAPPED" => swapped(&machine)?,
        other => other.replace("LAST_INPUT", &last_handle(&machine, "input")?),
    };
    let done = match script.as_str() {
        "ASLEEP" => put_to_sleep(&machine, table)?,
        script => machine.host.feed("nft", &["-f", "-"], script).is_ok(),
    };
    if !done {
        return Ok(None);
    }
    if machine.holds(table)? {
        return Ok(Some(true));
    }
    netfilter::apply(&machine.socket, table).map_err(|error| format!("{script}: {error}"))?;
    match machine.holds(table)? {
        true => Ok(Some(false)),
        false => Err(format!("not repaired: {script}").into()),
    }
}

/// As an nft would that knows the flag persist, which may not be taken off.
fn put_to_sleep(machine: &Machine, table: &Table) -> Result<bool, Failed> {
    use killswitch::netfilter::live::{DORMANT, PERSIST};
    let flags = machine.live(table.family)?.ok_or("no table")?.flags & PERSIST;
    let mut batch = netfilter::batch::Batch::new(table.family);
    batch.add_table(flags | DORMANT);
    Ok(batch.commit(&machine.socket, None).is_ok())
}

fn last_handle(machine: &Machine, chain: &str) -> Result<String, Failed> {
    Ok(rules(machine, chain)?.pop().ok_or("no rules")?.1)
}

/// The script that moves a chain's first rule behind its second.
fn swapped(machine: &Machine) -> Result<String, Failed> {
    let rules = rules(machine, "leave")?;
    let [(first, handle), (_, second), ..] = &rules[..] else { return Err("too few rules".into()) };
    Ok(format!(
        "add rule inet killswitch leave handle {second} {first}\n\
         delete rule inet killswitch leave handle {handle}\n"
    ))
}

/// (text, handle) of each.
fn rules(machine: &Machine, chain: &str) -> Result<Vec<(String, String)>, Failed> {
    let list = ["-a", "list", "chain", "inet", "killswitch", chain];
    let text = machine.host.command("nft", &list)?;
    let split = |line: &str| {
        let (rule, handle) = line.trim().split_once(" # handle ")?;
        (!rule.ends_with('{')).then(|| (rule.to_owned(), handle.to_owned()))
    };
    Ok(text.lines().filter_map(split).collect())
}
