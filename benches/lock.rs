//! How fast the lock is, each figure a ratio to a peer measured in the same run.
//!
//! `make bench`, or parts of it: `cargo bench --features lab --bench lock -- commands commits servers
//! throughput`. The environment's KILLSWITCH is the program whose commands are measured. Runs in
//! private network namespaces. Bounds are those of the project's goals; a figure outside of its bound is
//! marked, and the exit status is 1.

mod parts;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use killswitch::lab::{Host, Result, namespaces};
use killswitch::netfilter::{self, batch::Batch, live};
use killswitch::netlink::{Family, Socket};
use killswitch::policy::{MessageShape, Policy, Protocol, Server};
use killswitch::ruleset::{self, Family as TableFamily, expression, text};
use killswitch::{config, lock};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};

use parts::Part;

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 50);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const MARK: u32 = config::DEFAULT_MARK;
/// Between two commands, so that each meets the idle kernel that a person's command meets.
const PAUSE: Duration = Duration::from_millis(100);

struct Row {
    what: &'static str,
    figures: String,
    ratio: f64,
    bound: Bound,
}

enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// The ratio of the same thing measured twice tells the noise.
    Within(f64),
    /// Not ours: what others are held against.
    None,
}

impl parts::Row for Row {
    fn holds(&self) -> bool {
        match self.bound {
            Bound::AtMost(bound) => self.ratio <= bound,
            Bound::AtLeast(bound) => self.ratio >= bound,
            Bound::Within(bound) => self.ratio <= bound && self.ratio >= 1.0 / bound,
            Bound::None => true,
        }
    }

    fn print(&self) {
        let goal = match self.bound {
            Bound::AtMost(bound) => format!("at most {bound:.2}"),
            Bound::AtLeast(bound) => format!("at least {bound:.2}"),
            Bound::Within(bound) => format!("{:.2} to {bound:.2}", 1.0 / bound),
            Bound::None => String::new(),
        };
        let verdict = if self.holds() { "" } else { "  MISSED" };
        println!(
            "| {:<46} | {:<34} | {:>5.2} | {goal:<13} |{verdict}",
            self.what, self.figures, self.ratio
        );
    }
}

fn main() -> ExitCode {
    parts::exit_code(&measure())
}

fn measure() -> Result<bool> {
    namespaces::enter_private()?;
    let bench = Bench::new()?;
    println!("| {:<46} | {:<34} | ratio | goal          |", "what", "medians");
    println!("|{:-<48}|{:-<36}|-------|---------------|", "", "");
    let parts: [(&str, Part<Bench, Row>); 4] = [
        ("commands", Bench::commands),
        ("commits", Bench::commits),
        ("servers", Bench::many_servers),
        ("throughput", Bench::throughput),
    ];
    parts::measure(&bench, &parts::asked(), &parts)
}

struct Bench {
    client: Host,
    peer: Host,
    folder: tempfile::TempDir,
    policy: Policy,
}

impl Bench {
    fn new() -> Result<Self> {
        let (client, peer) = (Host::new("client")?, Host::new("peer")?);
        client.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {}\nlink set eth0 up\n\
             addr add {CLIENT}/24 dev eth0",
            peer.path()
        ))?;
        peer.ip(&format!(
            "link set eth0 up\naddr add {PEER}/24 dev eth0\n\
             addr add 198.51.100.7/32 dev lo\naddr add 10.64.0.0/10 dev lo"
        ))?;
        client.ip(&format!("route add default via {PEER}"))?;
        let folder = tempfile::tempdir().map_err(killswitch::lab::Error::new)?;
        write(folder.path(), "key", "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n");
        write(folder.path(), "killswitch.toml", CONFIG);
        let config = config::load(&folder.path().join("killswitch.toml"))
            .map_err(killswitch::lab::Error::new)?;
        let policy = Policy::from_config(&config);
        let inet = text::script(&ruleset::compile(&policy));
        write(folder.path(), "inet.nft", &inet);
        Ok(Bench { client, peer, folder, policy })
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// `killswitch lock` against `nft -f` of the same rules, each from nothing.
    fn commands(&self) -> Result<Vec<Row>> {
        const ROUNDS: usize = 41;
        let (config, script) = (self.path("killswitch.toml"), self.path("inet.nft"));
        let program = std::env::var("KILLSWITCH");
        let program = program.as_deref().unwrap_or(env!("CARGO_BIN_EXE_killswitch"));
        let ours = [program, "--config", &config, "lock"];
        let theirs = ["nft", "-f", &script];
        let mut times: [Vec<Duration>; 4] = Default::default();
        for _ in 0..ROUNDS {
            let (commit, whole) = self.client.run(|| timed(&ours))?;
            times[0].push(commit);
            times[1].push(whole);
            self.unlock()?;
            let (commit, whole) = self.client.run(|| timed(&theirs))?;
            times[2].push(commit);
            times[3].push(whole);
            self.unlock()?;
        }
        let [our_commit, our_whole, their_commit, their_whole] = times.map(median);
        Ok(vec![
            row("exec to commit, against nft -f", our_commit, their_commit, Bound::AtMost(0.5)),
            row(
                "whole lock (guards, read-back), against nft -f",
                our_whole,
                their_whole,
                Bound::AtMost(1.0),
            ),
        ])
    }

    fn unlock(&self) -> Result<()> {
        self.client.run(lock::unlock)?.map_err(killswitch::lab::Error::new)?;
        self.client.run(forget_connections)?.map_err(killswitch::lab::Error::new)?;
        std::thread::sleep(PAUSE);
        Ok(())
    }

    /// Building and committing a table against sending the same batch, built before.
    fn commits(&self) -> Result<Vec<Row>> {
        const ROUNDS: usize = 101;
        let table = ruleset::compile(&self.policy);
        self.client
            .run(|| {
                let mut ours = Vec::new();
                let mut bare = Vec::new();
                // Each on a socket of its own, as a command has it: the first transaction after a
                // table's owner has gone takes the kernel longer.
                for _ in 0..ROUNDS {
                    let socket = Socket::open(Family::Netfilter)?;
                    ours.push(clock(|| {
                        netfilter::commit(&socket, &ruleset::compile(&self.policy))
                    }));
                    netfilter::remove(&socket, TableFamily::Inet)?;
                    drop(socket);
                    let socket = Socket::open(Family::Netfilter)?;
                    let (bytes, _) = prebuilt(&table).finish(None);
                    bare.push(clock(|| {
                        socket.send(&bytes)?;
                        while socket.receive_pending()?.is_some() {}
                        std::io::Result::Ok(())
                    }));
                    netfilter::remove(&socket, TableFamily::Inet)?;
                }
                Ok::<_, netfilter::Error>(vec![row(
                    "compile and commit, against the bare batch",
                    median(ours),
                    median(bare),
                    Bound::AtMost(1.2),
                )])
            })?
            .map_err(killswitch::lab::Error::new)
    }

    /// Time to commit, and the cost of a packet to a server, with many servers.
    fn many_servers(&self) -> Result<Vec<Row>> {
        const ROUNDS: usize = 7;
        let sink = self.peer.run(|| UdpSocket::bind("198.51.100.7:51820"))?;
        let _sink = sink.map_err(killswitch::lab::Error::new)?;
        let policies = [1, 10_000, 100_000].map(|count| self.with_servers(count));
        self.client
            .run(|| {
                let mut commits: [Vec<Duration>; 3] = Default::default();
                let mut packets: [Vec<Duration>; 3] = Default::default();
                for _ in 0..ROUNDS {
                    for (index, policy) in policies.iter().enumerate() {
                        let socket = Socket::open(Family::Netfilter)?;
                        let table = ruleset::compile(policy);
                        commits[index].push(clock(|| netfilter::apply(&socket, &table)));
                        packets[index].push(packet_cost()?);
                        netfilter::remove(&socket, TableFamily::Inet)?;
                    }
                }
                let [one, ten, hundred] = packets.map(median);
                let [_, commit_ten, commit_hundred] = commits.map(median);
                println!(
                    "| {:<46} | {:<34} |       |               |",
                    "apply and read back 10,000 and 100,000 servers",
                    format!("{} and {}", show(commit_ten), show(commit_hundred))
                );
                Ok::<_, netfilter::Error>(vec![
                    row("packet to one of 10,000 servers, of 1", ten, one, Bound::Within(1.15)),
                    row(
                        "packet to one of 100,000 servers, of 1",
                        hundred,
                        one,
                        Bound::Within(1.15),
                    ),
                ])
            })?
            .map_err(killswitch::lab::Error::new)
    }

    fn with_servers(&self, count: u32) -> Policy {
        let mut policy = self.policy.clone();
        for number in 1..count {
            policy.servers.insert(Server {
                endpoint: SocketAddr::new(IpAddr::V4((0x2d00_0000 + number).into()), 51820),
                protocol: Protocol::Udp,
                shape: MessageShape::Wireguard,
            });
        }
        policy
    }

    /// TCP to an allowed LAN: over a link of 10 Gbit/s, and over bare memory, where the processor is
    /// the limit and any rule shows.
    fn throughput(&self) -> Result<Vec<Row>> {
        // The one that every kernel lets everybody use: BBR would pace by what it believes the link
        // carries, and not by what the processor does.
        self.client.sysctl("net/ipv4/tcp_congestion_control", "reno")?;
        let listener = self.peer.run(|| TcpListener::bind((PEER, 5001)))?;
        let listener = listener.map_err(killswitch::lab::Error::new)?;
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(std::io::Result::ok) {
                std::thread::spawn(move || swallow(stream));
            }
        });
        let lock = || lock::lock(&self.policy).map(drop).map_err(killswitch::lab::Error::new);
        let unlock = || lock::unlock().map(drop).map_err(killswitch::lab::Error::new);
        let shape = "qdisc replace dev eth0 root tbf rate 10gbit burst 5mb latency 20ms";
        self.client.command("tc", &shape.split(' ').collect::<Vec<_>>())?;
        let shaped =
            self.compare("throughput over 10 Gbit/s, locked against open", lock, unlock)?;
        self.client.command("tc", &["qdisc", "del", "dev", "eth0", "root"])?;
        let bare = self.compare("throughput over bare veth, locked against open", lock, unlock)?;
        // What any table costs that sees all that leaves and enters, knows connections and has one
        // rule in each chain.
        let script = self.path("floor.nft");
        let load = || {
            self.client.command("nft", &["-f", &script])?;
            Ok(())
        };
        let flush = || self.client.command("nft", &["flush", "ruleset"]).map(drop);
        write(self.folder.path(), "floor.nft", FLOOR);
        let floor = self.compare("the same, one rule in each chain against open", load, flush)?;
        Ok(vec![shaped, bare, Row { bound: Bound::None, ..floor }])
    }

    /// Pair by pair, since the machine's pace drifts.
    fn compare(
        &self,
        what: &'static str,
        on: impl Fn() -> Result<()> + Sync,
        off: impl Fn() -> Result<()> + Sync,
    ) -> Result<Row> {
        const ROUNDS: usize = 31;
        let (mut locked, mut open) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            self.client.run(&on)??;
            locked.push(self.client.run(pour)?.map_err(killswitch::lab::Error::new)?);
            self.client.run(&off)??;
            open.push(self.client.run(pour)?.map_err(killswitch::lab::Error::new)?);
        }
        let mut ratios: Vec<f64> = locked.iter().zip(&open).map(|(a, b)| a / b).collect();
        let middle = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let ratio = middle(&mut ratios);
        let (locked, open) = (middle(&mut locked) * 8e-9, middle(&mut open) * 8e-9);
        let figures = format!("{locked:.1} and {open:.1} Gbit/s");
        Ok(Row { what, figures, ratio, bound: Bound::AtLeast(0.99) })
    }
}

/// One rule in each chain that the lock has, with conntrack.
const FLOOR: &str = r#"
table inet floor {
    chain output { type filter hook output priority 0; ct state invalid drop; }
    chain postrouting { type filter hook postrouting priority 2147483647; oif lo accept; }
    chain input { type filter hook input priority 0; iif lo accept; }
    chain prerouting { type filter hook prerouting priority -310; iif lo accept; }
    chain mangled { type filter hook prerouting priority -150; iif lo accept; }
}
table netdev floor {
    chain egress { type filter hook egress device eth0 priority 0; oif lo accept; }
}
"#;

const CONFIG: &str = r#"
[tunnel]
interface = "wg0"
private_key_file = "key"
addresses = ["10.64.0.2/32", "fd00:64::2/128"]
[[server]]
name = "one"
endpoints = ["198.51.100.7:51820", "[2001:db8::7]:51820"]
public_key = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="
[allow]
lan = ["192.168.1.0/24", "fd12:3456::/32"]
ntp = ["192.0.2.123"]
inbound = [{ proto = "tcp", port = 22, from = ["192.168.1.0/24"] }]
"#;

fn write(folder: &Path, name: &str, content: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let file = folder.join(name);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)
        .expect("a file");
    file.write_all(content.as_bytes()).expect("room for a small file");
}

/// From the start of a program to the first commit, and to its end.
fn timed(program: &[&str]) -> (Duration, Duration) {
    let socket = Socket::open(Family::Netfilter).expect("a socket");
    let generation = || live::generation(&socket).expect("the generation");
    let before = generation();
    let start = Instant::now();
    let mut child = Command::new(program[0])
        .args(&program[1..])
        .stdout(Stdio::null())
        .spawn()
        .expect("the program starts");
    // A transaction's rules are in force from the moment at which the generation counts on. It is
    // asked for without end, on the other processor, since whoever subscribes to events has the kernel
    // write one for each rule.
    while generation() == before {
        if let Some(status) = child.try_wait().expect("the program") {
            assert_ne!(generation(), before, "{program:?} committed nothing: {status}");
        }
    }
    let commit = start.elapsed();
    let status = child.wait().expect("the program ends");
    assert!(status.success(), "{program:?}: {status}");
    (commit, start.elapsed())
}

/// Each command meets a kernel that knows of no connection, as at boot. The proof of the egress guard
/// leaves one behind, and as soon as there is any, whoever asks first for a connection's state waits
/// while the kernel walks all of conntrack's table, once for each family (nf_ct_netns_do_get).
fn forget_connections() -> std::io::Result<()> {
    /// IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK; without attributes: all of them.
    const DELETE: u16 = 1 << 8 | 2;
    const LENGTH: u32 = 20;
    let mut message = Vec::new();
    message.extend_from_slice(&LENGTH.to_ne_bytes());
    message.extend_from_slice(&DELETE.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.resize(LENGTH as usize, 0);
    let socket = Socket::open(Family::Netfilter)?;
    socket.send(&message)?;
    match socket.receive()?.iter().find_map(|answer| answer.ack()?.failure) {
        Some(failure) => Err(std::io::Error::other(failure.to_string())),
        None => Ok(()),
    }
}

fn prebuilt(table: &ruleset::Table) -> Batch {
    let mut batch = Batch::new(table.family);
    batch.add_table(live::OWNER | live::PERSIST);
    for set in &table.sets {
        batch.add_set(set);
        batch.add_elements(set, &set.elements);
    }
    table.chains.iter().for_each(|chain| batch.add_chain(chain));
    for chain in &table.chains {
        for rule in &chain.rules {
            batch.add_rule(&chain.name, &expression::lower(rule), &rule.comment);
        }
    }
    batch
}

/// The time that one marked datagram of WireGuard's shape takes to the server.
fn packet_cost() -> std::io::Result<Duration> {
    const PACKETS: u32 = 100_000;
    let socket = UdpSocket::bind((CLIENT, 0))?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Mark, &MARK)?;
    socket.connect("198.51.100.7:51820")?;
    let mut message = [0; 148];
    message[0] = 1;
    let start = Instant::now();
    for _ in 0..PACKETS {
        socket.send(&message)?;
    }
    Ok(start.elapsed() / PACKETS)
}

fn swallow(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 18];
    while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
}

/// Bytes a second.
fn pour() -> std::io::Result<f64> {
    const LONG: Duration = Duration::from_millis(300);
    let mut stream = TcpStream::connect((PEER, 5001))?;
    let buffer = vec![0; 1 << 18];
    let (start, mut sent) = (Instant::now(), 0usize);
    while start.elapsed() < LONG {
        sent += stream.write(&buffer)?;
    }
    Ok(sent as f64 / start.elapsed().as_secs_f64())
}

fn clock<T, E: std::fmt::Debug>(work: impl FnOnce() -> std::result::Result<T, E>) -> Duration {
    let start = Instant::now();
    work().expect("what is measured works");
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn row(what: &'static str, ours: Duration, theirs: Duration, bound: Bound) -> Row {
    Row {
        what,
        figures: format!("{} and {}", show(ours), show(theirs)),
        ratio: ours.as_secs_f64() / theirs.as_secs_f64(),
        bound,
    }
}

fn show(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 1e-3 => format!("{:.2} us", seconds * 1e6),
        seconds => format!("{:.2} ms", seconds * 1e3),
    }
}
