//! Two hosts in namespaces of their own: this thread's, and a router that is also the Internet.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, ControlMessage, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrStorage, bind, connect, recvfrom, sendmsg, setsockopt, socket, sockopt,
};

/// Where traffic must not get to without the tunnel.
pub const INTERNET: [&str; 2] = ["198.51.100.9", "2001:db8:9::9"];
/// The router's own addresses on the link.
pub const LAN: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
/// Private, but behind the router.
pub const BEHIND: &str = "10.9.9.9";

/// Enough for the router to answer ARP and for the packet to follow.
const PATIENCE: Duration = Duration::from_millis(60);

static INITIAL: OnceLock<u64> = OnceLock::new();

fn namespace() -> u64 {
    std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
}

/// Leaves the machine's own network for good; before any thread starts.
pub fn leave_initial_namespace() {
    INITIAL.set(namespace()).unwrap();
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if !uid.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).expect("no private namespaces here");
    if !uid.is_root() {
        std::fs::write("/proc/self/setgroups", "deny").unwrap();
        std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
    }
    assert_private();
}

/// Refuses to go on in the namespace in which the program was started.
pub fn assert_private() {
    assert_ne!(Some(&namespace()), INITIAL.get(), "in the initial network namespace");
}

/// Runs a command in this thread's namespace; its output.
pub fn run(line: &str) -> String {
    assert_private();
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Adds an address (`ADDRESS/LENGTH`) to a link and waits until it can be used: the kernel finishes
/// IPv6 addresses later, even without duplicate address detection.
pub fn address(address: &str, link: &str) {
    let nodad = if address.contains(':') { " nodad" } else { "" };
    run(&format!("ip address add {address} dev {link}{nodad}"));
    if let Some((address, _)) = address.split_once('/').filter(|_| !nodad.is_empty()) {
        wait_for_local(&format!("local {address} dev {link} "));
    }
}

/// The link's own IPv6 address: from then on the kernel changes nothing by itself.
fn wait_for_link(link: &str) {
    wait_for_local(&format!(" dev {link} proto kernel metric 0"));
}

fn wait_for_local(route: &str) {
    for _ in 0..200 {
        let local = run("ip -6 route show table local");
        if local.lines().any(|line| line.starts_with("local ") && line.contains(route)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no route: {route}");
}

/// Sets `/proc/sys/NAME` in this thread's namespace.
pub fn sysctl(name: &str, value: &str) {
    assert_private();
    std::fs::write(format!("/proc/sys/{name}"), value).unwrap();
}

pub struct Lab {
    host: File,
    router: File,
    capture: OwnedFd,
}

/// How a packet is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum How {
    Plain,
    Bound,
    PacketInfo,
    Mark(u32),
    From(u16),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Udp,
    Tcp,
    Icmp,
}

pub const KINDS: [Kind; 3] = [Kind::Udp, Kind::Tcp, Kind::Icmp];

impl Lab {
    /// A fresh pair of hosts; this thread becomes the first.
    pub fn new() -> Self {
        let enter = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            assert_private();
            for scope in ["all", "default"] {
                sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0");
                sysctl(&format!("net/ipv6/conf/{scope}/dad_transmits"), "0");
            }
            run("ip link set lo up");
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let router = enter();
        let capture = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK,
            SockProtocol::EthAll,
        )
        .unwrap();
        // Answers for its addresses on the link only, as a router does for what is behind it.
        sysctl("net/ipv4/conf/all/arp_ignore", "1");
        let host = enter();
        let lab = Lab { host, router, capture };
        lab.pair("eth0", "far");
        address("192.0.2.2/24", "eth0");
        address("2001:db8:1::2/64", "eth0");
        lab.at_router(|| {
            address("192.0.2.1/24", "far");
            address("2001:db8:1::1/64", "far");
            address("198.51.100.9/32", "lo");
            address("10.9.9.9/32", "lo");
            address("2001:db8:9::9/128", "lo");
        });
        run("ip route add default via 192.0.2.1");
        run("ip route add default via 2001:db8:1::1");
        lab
    }

    /// A wire from `near` here to `far` at the router, both up.
    pub fn pair(&self, near: &str, far: &str) {
        run(&format!("ip link add {near} type veth peer name {far}"));
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.router.as_raw_fd());
        run(&format!("ip link set {far} netns {path}"));
        run(&format!("ip link set {near} up"));
        self.at_router(|| {
            run(&format!("ip link set {far} up"));
            wait_for_link(far);
        });
        wait_for_link(near);
    }

    pub fn at_router<T>(&self, work: impl FnOnce() -> T) -> T {
        setns(&self.router, CloneFlags::CLONE_NEWNET).unwrap();
        let result = work();
        setns(&self.host, CloneFlags::CLONE_NEWNET).unwrap();
        result
    }

    /// Destinations of the frames that reached the router, with the link they came by.
    pub fn arrived(&self) -> Vec<(usize, IpAddr)> {
        let mut frame = [0; 2048];
        let mut seen = Vec::new();
        while let Ok((length, from)) = recvfrom::<LinkAddr>(self.capture.as_raw_fd(), &mut frame) {
            let link = from.map_or(0, |address| address.ifindex());
            seen.extend(destination(&frame[..length]).map(|address| (link, address)));
        }
        seen
    }

    /// Whether what `send` does reaches the router with this destination; by which of its links.
    pub fn link_reached(&self, to: &str, send: impl FnOnce()) -> Option<usize> {
        let to: IpAddr = to.parse().unwrap();
        self.arrived();
        send();
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some((link, _)) = self.arrived().iter().find(|(_, address)| *address == to) {
                return Some(*link);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        None
    }

    pub fn reaches(&self, kind: Kind, to: &str, port: u16, how: How) -> bool {
        self.link_reached(to, || drop(attempt(kind, to, port, how))).is_some()
    }
}

fn destination(frame: &[u8]) -> Option<IpAddr> {
    match frame.get(12..14)? {
        [0x08, 0x00] => Some(Ipv4Addr::from(<[u8; 4]>::try_from(frame.get(30..34)?).ok()?).into()),
        [0x86, 0xdd] => Some(Ipv6Addr::from(<[u8; 16]>::try_from(frame.get(38..54)?).ok()?).into()),
        _ => None,
    }
}

/// Sends one packet; the socket, so that it can be used again.
pub fn attempt(kind: Kind, to: &str, port: u16, how: How) -> io::Result<OwnedFd> {
    let address: IpAddr = to.parse().unwrap();
    let v4 = address.is_ipv4();
    let family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let (style, protocol) = match kind {
        Kind::Udp => (SockType::Datagram, None),
        Kind::Tcp => (SockType::Stream, None),
        Kind::Icmp if v4 => (SockType::Raw, Some(SockProtocol::Icmp)),
        Kind::Icmp => (SockType::Raw, Some(SockProtocol::IcmpV6)),
    };
    let socket = socket(family, style, SockFlag::SOCK_NONBLOCK, protocol)?;
    match how {
        How::Bound => setsockopt(&socket, sockopt::BindToDevice, &"eth0".into())?,
        How::Mark(mark) => setsockopt(&socket, sockopt::Mark, &mark)?,
        How::From(port) => {
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            let any: IpAddr =
                if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port)))?;
        }
        How::Plain | How::PacketInfo => {}
    }
    let port = if kind == Kind::Icmp { 0 } else { port };
    let target = SockaddrStorage::from(SocketAddr::new(address, port));
    if kind == Kind::Tcp {
        match connect(socket.as_raw_fd(), &target) {
            Err(nix::errno::Errno::EINPROGRESS) => {}
            result => result?,
        }
        return Ok(socket);
    }
    let echo = [if v4 { 8 } else { 128 }, 0, 0, 0, 0, 1, 0, 1];
    let data = [io::IoSlice::new(&echo)];
    let index = nix::net::if_::if_nametoindex("eth0").unwrap_or(0);
    let v4_info = nix::libc::in_pktinfo {
        ipi_ifindex: index as i32,
        ipi_spec_dst: nix::libc::in_addr { s_addr: 0 },
        ipi_addr: nix::libc::in_addr { s_addr: 0 },
    };
    let v6_info = nix::libc::in6_pktinfo {
        ipi6_ifindex: index,
        ipi6_addr: nix::libc::in6_addr { s6_addr: [0; 16] },
    };
    let control = match how {
        How::PacketInfo if v4 => vec![ControlMessage::Ipv4PacketInfo(&v4_info)],
        How::PacketInfo => vec![ControlMessage::Ipv6PacketInfo(&v6_info)],
        _ => vec![],
    };
    sendmsg(socket.as_raw_fd(), &data, &control, MsgFlags::empty(), Some(&target))?;
    Ok(socket)
}
