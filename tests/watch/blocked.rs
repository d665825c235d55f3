//! What is told of packets that the lock blocks.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::link::PacketSocket;
use killswitch::lab::{Context, Error, Host, Result};
use killswitch::lock::{self, Status};
use killswitch::policy::{Policy, Tunnel};
use killswitch::watch::{Blocked, BlockedError, BlockedWatch};
use nix::sys::socket::{setsockopt, sockopt};

use crate::roles;
use crate::told::{cpu_time, run, switches, within};

const OWN: &str = "192.0.2.2";
const FAR: &str = "203.0.113.9";
const FAR6: &str = "2001:db8:9::9";
/// What the kernel shows of one chain at once, and in a second (`Build::log_blocked`).
const BURST: u64 = 20;
const RATE: u64 = 10;
/// What is told in as many seconds.
const MOST: (u64, u64) = (10, 5);

/// An external tunnel, so that no routing guard refuses before the table can.
fn policy() -> Policy {
    let tunnel = Tunnel {
        interface: "wg0".into(),
        kinds: ["wireguard"].into(),
        addresses: [std::net::Ipv4Addr::new(10, 64, 0, 2).into()].into(),
    };
    Policy { tunnel: Some(tunnel), dhcp: true, routing_guard: false, ..Policy::strictest() }
}

/// A machine with a way out, which is locked, and what is at the other end.
fn locked() -> Result<(Host, Host)> {
    let (host, far) = (Host::new("client")?, Host::new("far")?);
    host.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}
         link set eth0 up
         address add {OWN}/24 dev eth0
         neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev eth0
         route add default via 192.0.2.1",
        far.path()
    ))?;
    far.ip("link set eth0 up")?;
    let outcome = host.run(|| lock::lock(&policy()))?.during("lock")?;
    assert_eq!(outcome.degraded, [""; 0]);
    Ok((host, far))
}

/// As [`locked`], and the kernel sends nothing of its own: IPv6 tells every group that it joins.
fn quiet() -> Result<(Host, Host)> {
    let (host, far) = locked()?;
    host.sysctl("net/ipv6/conf/eth0/disable_ipv6", "1")?;
    let mut before = None;
    eventually("silence", || {
        std::thread::sleep(Duration::from_millis(200));
        let now = host.run(|| counted("output"))??;
        Ok(before.replace(now) == Some(now))
    })?;
    Ok((host, far))
}

fn has_ipv6(host: &Host) -> Result<()> {
    host.ip("address add 2001:db8::2/64 dev eth0 nodad
         neigh add 2001:db8::1 lladdr 02:00:00:00:00:01 dev eth0
         route add ::/0 via 2001:db8::1")
}

fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

/// Another user's, where this namespace has one.
fn uid() -> u32 {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_whole = map.split_whitespace().nth(2).is_some_and(|count| count.len() > 4);
    if is_whole { 1000 } else { 0 }
}

/// A user's program tries to reach an address; it must be refused.
fn try_as_user(how: &str, to: &str) -> Result<()> {
    let mut command = roles::command("sender");
    command.args([how, to, &uid().to_string()]);
    let output = command.output().during("a sender")?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.contains("refused") {
        true => Ok(()),
        false => Err(Error::new(format!("{how} to {to}: {said}"))),
    }
}

/// What a user's program does ([`try_as_user`]).
pub fn send() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [how, to, uid] = words.as_slice() else { return Err("how, where, who?".into()) };
    nix::unistd::setuid(uid.parse::<u32>()?.into())?;
    let to: SocketAddr = to.parse()?;
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let done = match how.as_str() {
        "udp" => UdpSocket::bind(any)?.send_to(b"hello", to).map(drop),
        _ => TcpStream::connect(to).map(drop),
    };
    match done {
        Err(error)
            if [ErrorKind::PermissionDenied, ErrorKind::ConnectionRefused]
                .contains(&error.kind()) =>
        {
            println!("refused");
            Ok(())
        }
        other => Err(format!("{other:?}").into()),
    }
}

fn is_intact() -> Result<bool> {
    let status = Status::of(&lock::read().during("read")?, &policy(), None);
    Ok(status.intact && status.degraded.iter().all(|it| !it.contains("not told")))
}

/// What was counted as blocked by a chain of the table.
fn counted(chain: &str) -> Result<u64> {
    let status = Status::of(&lock::read().during("read")?, &policy(), None);
    Ok(status.dropped.get(chain).map(|it| it.values().map(|it| it.packets).sum()).unwrap_or(0))
}

pub fn local_senders_are_told_with_their_user() -> Outcome {
    let (host, _far) = locked()?;
    has_ipv6(&host)?;
    within(&host, || async {
        let mut watch = BlockedWatch::open().during("watch")?;
        for (how, far, own) in [
            ("udp", FAR, OWN),
            ("tcp", FAR, OWN),
            ("udp", FAR6, "2001:db8::2"),
            ("tcp", FAR6, "2001:db8::2"),
        ] {
            let to = SocketAddr::new(far.parse().during(far)?, 4433);
            try_as_user(how, &to.to_string())?;
            let told = watch.next().await.during("watch")?;
            assert!(told.source_port.is_some_and(|port| port != 0), "{told:?}");
            let wanted = Blocked {
                link: Some("eth0".into()),
                source: address(own),
                source_port: told.source_port,
                destination: address(far),
                port: Some(4433),
                protocol: how.into(),
                uid: Some(uid()),
                ..told.clone()
            };
            assert_eq!(told, wanted);
            assert_eq!(told.suppressed, 0);
            assert!(is_intact()?);
        }
        Ok(())
    })?;
    Ok(())
}

/// The routing guard refuses most before the table sees it; what passes by it is told.
pub fn behind_a_routing_guard_only_what_passes_it_is_told() -> Outcome {
    let (host, _far) = quiet()?;
    within(&host, || async {
        let policy = Policy { routing_guard: true, ..policy() };
        lock::lock(&policy).during("lock")?;
        let mut watch = BlockedWatch::open().during("watch")?;
        let socket = UdpSocket::bind((OWN, 0)).during("bind")?;
        let refused = socket.send_to(b"hello", (FAR, 53)).map_err(|it| it.kind());
        assert_eq!(refused, Err(ErrorKind::HostUnreachable));
        setsockopt(&socket, sockopt::Mark, &policy.mark).during("mark")?;
        let refused = socket.send_to(b"hello", (FAR, 54)).map_err(|it| it.kind());
        assert_eq!(refused, Err(ErrorKind::PermissionDenied));
        let told = watch.next().await.during("watch")?;
        assert_eq!((told.destination, told.port), (address(FAR), Some(54)));
        Ok(())
    })?;
    Ok(())
}

fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// An IPv4 header and that of UDP, without checksums.
fn datagram() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend([192, 0, 2, 2, 203, 0, 113, 9]);
    packet.extend([0x11, 0x51, 0, 53, 0, 8, 0, 0]);
    packet
}

pub fn frames_are_told() -> Outcome {
    let (host, _far) = quiet()?;
    let socket = PacketSocket::open(&host, "eth0")?;
    within(&host, || async {
        let mut watch = BlockedWatch::open().during("watch")?;
        assert_eq!(socket.send(&frame(0x0800, &datagram())), Err(nix::errno::Errno::ENOBUFS));
        let told = watch.next().await.during("watch")?;
        let wanted = Blocked {
            link: Some("eth0".into()),
            source: address(OWN),
            source_port: Some(4433),
            destination: address(FAR),
            port: Some(53),
            protocol: "udp".into(),
            uid: Some(nix::unistd::geteuid().as_raw()),
            ..told.clone()
        };
        assert_eq!(told, wanted);
        // LLDP, which is not IP.
        assert_eq!(socket.send(&frame(0x88cc, &[0; 46])), Err(nix::errno::Errno::ENOBUFS));
        let told = watch.next().await.during("watch")?;
        assert_eq!((told.protocol.as_str(), told.destination), ("0x88cc", None), "{told:?}");
        assert!(is_intact()?);
        Ok(())
    })?;
    Ok(())
}

pub fn forwarded_packets_are_told() -> Outcome {
    let (host, _far) = locked()?;
    let guest = Host::new("guest")?;
    host.ip(&format!(
        "link add lan0 type veth peer name eth0 netns {}
         link set lan0 up
         address add 10.9.0.1/24 dev lan0",
        guest.path()
    ))?;
    guest.ip("link set eth0 up
              address add 10.9.0.2/24 dev eth0
              route add default via 10.9.0.1")?;
    host.sysctl("net/ipv4/ip_forward", "1")?;
    // Resolution is not what is tested here.
    let own = host.command("cat", &["/sys/class/net/lan0/address"]);
    if let Ok(own) = own {
        guest.ip(&format!("neigh replace 10.9.0.1 lladdr {} dev eth0", own.trim()))?;
    }
    within(&host, || async {
        let mut watch = BlockedWatch::open().during("watch")?;
        guest.run(|| -> Result<()> {
            let socket = UdpSocket::bind("10.9.0.2:4433").during("bind")?;
            socket.send_to(b"hello", (FAR, 53)).map(drop).during("send")
        })??;
        let told = watch.next().await.during("watch")?;
        let wanted = Blocked {
            link: Some("eth0".into()),
            source: address("10.9.0.2"),
            source_port: Some(4433),
            destination: address(FAR),
            port: Some(53),
            protocol: "udp".into(),
            uid: None,
            ..told.clone()
        };
        assert_eq!(told, wanted);
        Ok(())
    })?;
    Ok(())
}

/// Neither what comes in, nor what the kernel says of itself, nor what may leave.
pub fn what_does_not_want_to_leave_is_not_told() -> Outcome {
    let (host, far) = locked()?;
    let wire = PacketSocket::open(&far, "eth0")?;
    within(&host, || async {
        let mut watch = BlockedWatch::open().during("watch")?;
        let before = counted("output")?;
        // The kernel joins groups, and would tell everybody.
        run("ip link add eth1 type veth peer name far1")?;
        run("ip link set far1 up")?;
        run("ip link set eth1 up")?;
        eventually("the kernel reports its groups", || Ok(counted("output")? > before))?;
        wire.send(&frame(0x0800, &datagram())).during("far")?;
        try_as_user("udp", &format!("{FAR}:7"))?;
        let told = watch.next().await.during("watch")?;
        assert_eq!((told.destination, told.port), (address(FAR), Some(7)));
        Ok(())
    })?;
    Ok(())
}

pub fn a_group_has_one_reader() -> Outcome {
    let (host, _far) = quiet()?;
    within(&host, || async {
        let first = BlockedWatch::open().during("watch")?;
        assert!(matches!(BlockedWatch::open(), Err(BlockedError::Taken)));
        assert!(is_intact()?);
        drop(first);
        let mut second = BlockedWatch::open().during("watch")?;
        try_as_user("udp", &format!("{FAR}:9"))?;
        assert_eq!(second.next().await.during("watch")?.port, Some(9));
        Ok(())
    })?;
    Ok(())
}

pub fn without_a_reader_nothing_changes() -> Outcome {
    let (host, _far) = quiet()?;
    host.run(|| -> Result<()> {
        let before = counted("output")?;
        let socket = UdpSocket::bind((OWN, 0)).during("bind")?;
        for _ in 0..100 {
            let refused = socket.send_to(b"hello", (FAR, 9)).map_err(|it| it.kind());
            assert_eq!(refused, Err(ErrorKind::PermissionDenied));
        }
        assert_eq!(counted("output")?, before + 100);
        assert!(is_intact()?);
        Ok(())
    })??;
    Ok(())
}

/// A kernel that cannot log would hold this table: all its other rules are there.
pub fn a_lock_without_log_is_intact_but_degraded() -> Outcome {
    let (host, _far) = quiet()?;
    host.run(|| -> Result<()> {
        use killswitch::netfilter;
        use killswitch::netlink::{Family, Socket};
        use killswitch::ruleset::{compile, guard};
        let socket = Socket::open(Family::Netfilter).during("netlink")?;
        netfilter::apply(&socket, &compile(&policy()).without_log()).during("apply")?;
        netfilter::apply(&socket, &guard(&policy(), None).without_log()).during("apply")?;
        let status = Status::of(&lock::read().during("read")?, &policy(), None);
        assert!(status.intact, "{:?}", status.degraded);
        assert_eq!(status.degraded.len(), 1, "{:?}", status.degraded);
        assert!(status.degraded[0].contains("not told"), "{:?}", status.degraded);
        // One that can gets its log back.
        let outcome = lock::lock(&policy()).during("lock")?;
        assert!(outcome.changed && outcome.degraded.is_empty(), "{outcome:?}");
        assert!(is_intact()?);
        Ok(())
    })??;
    Ok(())
}

/// What does not fit is lost; what comes after is told.
pub fn an_overrun_is_counted() -> Outcome {
    let (host, _far) = quiet()?;
    within(&host, || async {
        let mut watch = BlockedWatch::with_buffer(1).during("watch")?;
        let socket = UdpSocket::bind((OWN, 0)).during("bind")?;
        for port in 1..=BURST as u16 {
            let _ = socket.send_to(&[0; 512], (FAR, port));
        }
        while watch.overruns() == 0 {
            watch.next().await.during("watch")?;
        }
        // As soon as the kernel shows any again.
        loop {
            try_as_user("tcp", &format!("{FAR}:4433"))?;
            let told = tokio::time::timeout(Duration::from_millis(500), watch.next()).await;
            if told.is_ok_and(|it| it.is_ok_and(|it| it.port == Some(4433))) {
                return Ok(());
            }
        }
    })?;
    Ok(())
}

pub fn nobody_wakes_while_nothing_is_blocked() -> Outcome {
    const PAUSE: Duration = Duration::from_secs(2);
    let (host, _far) = quiet()?;
    within(&host, || async {
        let mut watch = BlockedWatch::open().during("watch")?;
        let before = (switches()?, cpu_time()?);
        let silence = tokio::time::timeout(PAUSE, watch.next()).await;
        assert!(silence.is_err(), "{silence:?}");
        let (woken, worked) = (switches()? - before.0, cpu_time()? - before.1);
        // The end of the pause is one.
        assert!(woken <= 3 && worked < PAUSE / 20, "{woken} {worked:?}");
        Ok(())
    })?;
    Ok(())
}

pub fn a_flood_is_told_a_little_at_a_time() -> Outcome {
    flood(100_000)
}

pub fn a_flood_of_a_million_slow() -> Outcome {
    flood(1_000_000)
}

fn flood(packets: u64) -> Outcome {
    let (host, _far) = quiet()?;
    let begin = Instant::now();
    let watcher = host.spawn("watcher", |stop| collect(|| stop.requested()))?;
    host.run(|| -> Result<()> {
        let socket = UdpSocket::bind((OWN, 0)).during("bind")?;
        let before = counted("output")?;
        let sent = Instant::now();
        for number in 0..packets {
            // A few destinations over and over, and a scan.
            let port = if number % 2 == 0 { 53 } else { (number % 60_000) as u16 + 1 };
            let refused = socket.send_to(b"hello", (FAR, port)).map_err(|it| it.kind());
            if refused != Err(ErrorKind::PermissionDenied) {
                return Err(Error::new(format!("not blocked: {refused:?}")));
            }
        }
        println!("{packets} datagrams refused in {:.1?}", sent.elapsed());
        assert_eq!(counted("output")? - before, packets);
        assert!(is_intact()?);
        Ok(())
    })??;
    let (told, shown) = watcher.stop()?.ok_or_else(|| Error::new("no watcher"))??;
    let seconds = begin.elapsed().as_secs() + 1;
    println!("{} told of {shown} shown in {seconds} s", told.len());
    assert!(!told.is_empty());
    assert!(told.len() as u64 <= MOST.0 * (seconds / MOST.1 + 1), "{}", told.len());
    assert!(shown <= BURST + RATE * seconds, "{shown}");
    Ok(())
}

fn collect(ends: impl Fn() -> bool) -> Result<(Vec<Blocked>, u64)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.during("runtime")?.block_on(async {
        let mut watch = BlockedWatch::open().during("watch")?;
        let mut told = Vec::new();
        while !ends() {
            let next = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
            if let Ok(next) = next {
                told.push(next.during("watch")?);
            }
        }
        Ok((told, watch.shown()))
    })
}

/// A directory of cgroup2, if we may make one.
struct Group(std::path::PathBuf);

impl Group {
    fn new() -> Option<Self> {
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(std::path::Path::new);
        let root = roots.into_iter().find(|it| it.join("cgroup.procs").is_file())?;
        let path = root.join(format!("killswitch-test-{}", std::process::id()));
        std::fs::create_dir(&path).ok().map(|()| Group(path))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

pub fn senders_that_wait_are_told_with_their_group() -> Outcome {
    let Some(group) = Group::new() else {
        println!("no cgroup2 that we may change");
        return Ok(());
    };
    let (host, _far) = quiet()?;
    within(&host, || async {
        let mut watch = BlockedWatch::open().during("watch")?;
        for (to, with_group) in [(53, true), (54, false)] {
            let mut command = roles::command("waiting sender");
            command.args(["udp", &format!("{FAR}:{to}"), &uid().to_string()]);
            command.stdin(Stdio::piped());
            if with_group {
                command.env("KILLSWITCH_TEST_GROUP", group.0.join("cgroup.procs"));
            }
            let mut child = command.spawn().during("a sender")?;
            let told = watch.next().await.during("watch")?;
            // It ends with its input.
            drop(child.stdin.take());
            child.wait().during("a sender")?;
            let name = group.0.file_name().map(|it| format!("/{}", it.to_string_lossy()));
            assert_eq!((told.port, told.uid), (Some(to), Some(uid())));
            assert!(told.cgroup.is_some(), "{told:?}");
            assert_eq!(told.cgroup == name, with_group, "{told:?}");
        }
        Ok(())
    })?;
    Ok(())
}

/// Goes into a group, sends ([`send`]), and keeps its socket until nobody needs it.
pub fn send_and_wait() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(2).collect();
    let [to, uid] = words.as_slice() else { return Err("where, who?".into()) };
    if let Ok(group) = std::env::var("KILLSWITCH_TEST_GROUP") {
        std::fs::write(group, std::process::id().to_string())?;
    }
    nix::unistd::setuid(uid.parse::<u32>()?.into())?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let _ = socket.send_to(b"hello", to.parse::<SocketAddr>()?);
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}
