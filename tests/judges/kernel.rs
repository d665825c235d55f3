//! The third judge: the kernel itself, in private namespaces.
//!
//! Two machines alike, each with a neighbour that holds the other ends of its links. One has the
//! lock; the other never does, and shows which packets the network carries at all. Observer chains
//! behind the lock's own keep the identity of every packet that gets so far; what the NIC lets out
//! is besides taken from the wire at the neighbour.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IoSlice, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use killswitch::lab::{Context, Error, Host, Result};
use killswitch::netfilter::{self, guarded, references};
use killswitch::netlink::{self, Attributes, Family, Socket};
use killswitch::policy::Policy;
use killswitch::ruleset::{compile, guard};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6,
    bind, recv, recvfrom, sendmsg, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::packet::{
    BRIDGE, Body, History, IPV4, IPV6, LOOK_ALIKE, LOOPBACK, Link, MACHINE, NIC, PORT, Packet,
    REAL, TUNNEL, Way, tunnel_address,
};
use crate::packets::Step;
use crate::wire;

/// A hardware address.
type Mac = [u8; 6];

/// Ends of veth pairs at the neighbour.
const FAR: [(Link, &str); 3] = [(NIC, "far0"), (LOOK_ALIKE, "far1"), (PORT, "far2")];

/// What was seen where: the link it left by, the input, the wire.
type Seen = BTreeSet<(Place, Identity)>;

/// An IP packet's destination, and its identification or flow label; of other frames, none and the
/// sender's hardware address. The kernel sends packets of its own: a number alone might be theirs.
pub type Identity = (Option<IpAddr>, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Input,
    Egress(&'static str),
    Wire,
}

/// The machine under test and its neighbour.
pub struct Machine {
    host: Host,
    netfilter: Socket,
    route: Socket,
    observer: Socket,
    tunnel: tun::Device,
    into_tunnel: Frames,
    /// At the machine: for frames.
    near: BTreeMap<&'static str, Ether>,
    /// At the neighbour.
    far: BTreeMap<&'static str, Ether>,
    raw: BTreeMap<(&'static str, bool), OwnedFd>,
}

/// A packet socket on one link.
struct Ether {
    fd: OwnedFd,
    link: LinkAddr,
}

impl Machine {
    pub fn new() -> Result<Self> {
        let host = Host::new("machine")?;
        let neighbour = Host::new("neighbour")?;
        settle(&host, &neighbour)?;
        let tunnel = host.run(make_tunnel)??;
        host.ip(&addresses())?;
        host.ip(&routes())?;
        host.feed("ip", &["-6", "-batch", "-"], &routes())?;
        host.feed("nft", &["-f", "-"], &observers())?;
        let mut near = BTreeMap::new();
        for link in REAL.into_iter().filter(|it| *it != TUNNEL) {
            near.insert(link.name, host.run(|| Ether::open(link.name))??);
        }
        let mut tunnel = tunnel;
        let into_tunnel = host.run(|| Frames::open(&mut tunnel))??;
        let mut far = BTreeMap::new();
        for (link, name) in FAR {
            far.insert(link.name, neighbour.run(|| Ether::open(name))??);
        }
        let mut raw = BTreeMap::new();
        for link in REAL {
            for v4 in [true, false] {
                raw.insert((link.name, v4), host.run(|| raw_socket(link, v4))??);
            }
        }
        let open = |family| host.run(move || Socket::open(family))?.during("netlink");
        Ok(Machine {
            netfilter: open(Family::Netfilter)?,
            observer: open(Family::Netfilter)?,
            route: open(Family::Route)?,
            host: host.clone(),
            tunnel,
            into_tunnel,
            near,
            far,
            raw,
        })
    }

    /// Does something on the machine.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.host.run(work)
    }

    pub fn index_of(&self, link: Link) -> Result<u32> {
        self.host.run(|| if_nametoindex(link.name))?.during(link.name)
    }

    /// Puts the lock in place of the last one.
    pub fn lock(&self, policy: &Policy) -> Result<()> {
        netfilter::apply(&self.netfilter, &compile(policy)).during("the inet table")?;
        if !policy.egress_guard {
            let family = killswitch::ruleset::Family::Netdev;
            return netfilter::remove(&self.netfilter, family).during("no guard").map(drop);
        }
        if netfilter::apply(&self.netfilter, &guard(policy, None)).is_ok() {
            return Ok(());
        }
        // Before kernel 6.18: a chain for each link.
        let links = netlink::links(&self.route).during("links")?;
        let links = references(&guarded(policy, &links));
        netfilter::apply(&self.netfilter, &guard(policy, Some(&links))).during("guard").map(drop)
    }

    /// Sends them all, numbered, and says which got through; `translated`: what is forwarded into
    /// the tunnel takes its address.
    pub fn carry(&mut self, steps: &[Step], translated: bool) -> Result<Vec<bool>> {
        self.forget()?;
        let mut wire = BTreeSet::new();
        for (step, number) in steps.iter().zip(1..) {
            // Refused: ENOBUFS of the guard, EPERM of the lock, no route. What counts is what was
            // seen.
            let mut sent = step.clone();
            if translated {
                translate(&mut sent.packet, sent.way);
            }
            let _ = self.send(&sent, number);
            self.listen(&mut wire);
        }
        self.wait_for_stragglers()?;
        self.listen(&mut wire);
        let mut seen = self.seen()?;
        seen.extend(wire.into_iter().map(|identity| (Place::Wire, identity)));
        Ok(steps.iter().zip(1..).map(|(step, number)| got_through(&seen, step, number)).collect())
    }

    fn send(&mut self, step: &Step, identity: u16) -> Result<()> {
        let packet = &step.packet;
        match step.way {
            Way::Sent(out) => self.send_raw(out, packet, identity),
            Way::Frame(TUNNEL) => self.into_tunnel.send(packet, identity),
            Way::Frame(out) => {
                let ether = &self.near[out.name];
                setsockopt(&ether.fd, sockopt::Mark, &packet.mark).during("SO_MARK")?;
                ether.send(&frame(packet, identity, 0, [2; 6]))
            }
            Way::Received(from) => self.arrive(from, packet, identity, 0),
            Way::Forwarded(from, out) => self.arrive(from, packet, identity, service(out)),
        }
    }

    fn send_raw(&self, out: Link, packet: &Packet, identity: u16) -> Result<()> {
        let socket = &self.raw[&(out.name, packet.source.is_ipv4())];
        setsockopt(socket, sockopt::Mark, &packet.mark).during("SO_MARK")?;
        let bytes = wire::datagram(packet, identity, 0);
        let flags = MsgFlags::empty();
        match std::net::SocketAddr::new(packet.destination, 0) {
            std::net::SocketAddr::V4(to) => {
                sendto(socket.as_raw_fd(), &bytes, &SockaddrIn::from(to), flags)
            }
            std::net::SocketAddr::V6(to) => {
                sendto(socket.as_raw_fd(), &bytes, &SockaddrIn6::from(to), flags)
            }
        }
        .during("raw socket")
        .map(drop)
    }

    fn arrive(&mut self, from: Link, packet: &Packet, identity: u16, service: u8) -> Result<()> {
        if from == TUNNEL {
            let bytes = wire::datagram(packet, identity, service);
            return self.tunnel.write_all(&bytes).during("tunnel");
        }
        // The bridge hears through its port.
        let (port, to) = if from == BRIDGE { (PORT, BRIDGE) } else { (from, from) };
        let Some(ether) = self.far.get(port.name) else {
            return Err(Error::new("nothing comes from there"));
        };
        ether.send(&frame(packet, identity, service, self.near[to.name].address()))
    }

    /// Frames that the NIC has let out.
    fn listen(&self, wire: &mut BTreeSet<Identity>) {
        let mut buffer = [0; 2048];
        let far = &self.far[NIC.name];
        while let Ok(length) = recv(far.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            wire.extend(identity(&buffer[..length]));
        }
    }

    /// Both ends of a veth and the loopback link share one queue for each processor, in order: what
    /// was sent before a datagram over loopback has arrived when that does. Its address is nobody's:
    /// its number might be a step's.
    fn wait_for_stragglers(&self) -> Result<()> {
        self.host
            .run(|| -> std::io::Result<()> {
                let receiver = std::net::UdpSocket::bind("127.99.0.1:0")?;
                receiver.set_read_timeout(Some(std::time::Duration::from_secs(30)))?;
                let sender = std::net::UdpSocket::bind("127.0.0.1:0")?;
                sender.send_to(b"last", receiver.local_addr()?)?;
                receiver.recv(&mut [0; 8]).map(drop)
            })?
            .during("loopback")
    }

    fn forget(&self) -> Result<()> {
        let mut requests = vec![(BATCH_BEGIN, 0, netlink_body(&[]))];
        for (family, set, _) in observer_sets() {
            let body = netlink_body(&[(1, OBSERVER), (2, &set)]);
            requests.push((NFT << 8 | DELSETELEM, family, body));
        }
        requests.push((BATCH_END, 0, netlink_body(&[])));
        let bytes: Vec<u8> = requests
            .into_iter()
            .flat_map(|(kind, family, body)| {
                let batch = matches!(kind, BATCH_BEGIN | BATCH_END);
                message(kind, 1, family, if batch { NFT } else { 0 }, &body)
            })
            .collect();
        self.observer.send(&bytes).during("emptying the observers")?;
        while let Some(answers) = self.observer.receive_pending().during("observers")? {
            if let Some(failure) = answers.iter().find_map(|it| it.ack()?.failure) {
                return Err(Error::new(format!("emptying the observers: {failure}")));
            }
        }
        Ok(())
    }

    fn seen(&self) -> Result<Seen> {
        const REQUEST_AND_DUMP: u16 = 0x301;
        let mut seen = Seen::new();
        for (family, set, place) in observer_sets() {
            let body = netlink_body(&[(1, OBSERVER), (2, &set)]);
            let request = message(NFT << 8 | GETSETELEM, REQUEST_AND_DUMP, family, 0, &body);
            for answer in self.observer.dump(&request).during("reading the observers")? {
                seen.extend(
                    keys(&answer.payload).filter_map(|key| Some((place, identity_of_key(&key)?))),
                );
            }
        }
        Ok(seen)
    }
}

impl Ether {
    fn open(name: &str) -> Result<Self> {
        let link = getifaddrs()
            .during("getifaddrs")?
            .filter(|it| it.interface_name == name)
            .find_map(|it| it.address?.as_link_addr().copied())
            .ok_or_else(|| Error::new(format!("no link {name}")))?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
            .during("packet socket")?;
        setsockopt(&fd, sockopt::RcvBuf, &(4 << 20)).during("SO_RCVBUF")?;
        bind(fd.as_raw_fd(), &link).during("bind")?;
        Ok(Ether { fd, link })
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        let parts = [IoSlice::new(bytes)];
        sendmsg(self.fd.as_raw_fd(), &parts, &[], MsgFlags::empty(), Some(&self.link))
            .during("packet socket")
            .map(drop)
    }

    fn address(&self) -> Mac {
        self.link.addr().unwrap_or_default()
    }
}

/// A packet socket for the tunnel's link, which has no hardware address: getifaddrs(3) does not
/// tell such a link's packet address, but a packet received on it does, with its EtherType.
struct Frames {
    fd: OwnedFd,
    /// For IPv4 and IPv6.
    links: [LinkAddr; 2],
}

impl Frames {
    fn open(tunnel: &mut tun::Device) -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
            .during("packet socket")?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(30)).during("SO_RCVTIMEO")?;
        let mut learn = |first: u8| {
            let mut packet = [0; 60];
            packet[0] = first;
            tunnel.write_all(&packet).during("tunnel")?;
            learn_address(&fd)
        };
        let links = [learn(0x45)?, learn(0x60)?];
        Ok(Frames { fd, links })
    }

    fn send(&self, packet: &Packet, identity: u16) -> Result<()> {
        setsockopt(&self.fd, sockopt::Mark, &packet.mark).during("SO_MARK")?;
        let bytes = wire::datagram(packet, identity, 0);
        let link = &self.links[usize::from(packet.source.is_ipv6())];
        sendmsg(self.fd.as_raw_fd(), &[IoSlice::new(&bytes)], &[], MsgFlags::empty(), Some(link))
            .during("packet socket")
            .map(drop)
    }
}

/// Where the next packet on the tunnel's link comes from.
fn learn_address(fd: &OwnedFd) -> Result<LinkAddr> {
    let wanted = if_nametoindex(TUNNEL.name).during(TUNNEL.name)? as usize;
    loop {
        let mut buffer = [0; 2048];
        let (_, from) =
            recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut buffer).during("packet socket")?;
        if let Some(from) = from.filter(|it| it.ifindex() == wanted) {
            return Ok(from);
        }
    }
}

/// As it is numbered.
pub fn identity_of(packet: &Packet, number: u16) -> Identity {
    match packet.body {
        Body::NotIp => (None, big_endian(&sender(number))),
        _ => (Some(packet.destination), number.into()),
    }
}

fn got_through(seen: &Seen, step: &Step, number: u16) -> bool {
    let identity = identity_of(&step.packet, number);
    match step.way {
        Way::Received(_) => seen.contains(&(Place::Input, identity)),
        Way::Sent(out) | Way::Frame(out) | Way::Forwarded(_, out) => {
            let passed = seen.contains(&(Place::Egress(out.name), identity));
            let on_wire = seen.contains(&(Place::Wire, identity));
            assert!(out != NIC || passed == on_wire, "observer {passed}, wire {on_wire}: {step:?}");
            passed
        }
    }
}

fn settle(host: &Host, neighbour: &Host) -> Result<()> {
    let all_links = [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/forwarding", "1"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        // No link-local addresses but our own.
        ("ipv6/conf/default/addr_gen_mode", "1"),
        ("ipv6/conf/default/mc_forwarding", "0"),
    ];
    for (key, value) in all_links {
        // Some are read-only; the open machine shows what that costs.
        let _ = host.sysctl(&format!("net/{key}"), value);
        let _ = neighbour.sysctl(&format!("net/{key}"), value);
    }
    let mut commands = String::new();
    for (link, far) in FAR {
        let path = neighbour.path();
        commands += &format!("link add {} type veth peer name {far} netns {path}\n", link.name);
        commands += &format!("link set {} up\n", link.name);
    }
    commands += "link add br-int type bridge\n\
                 link set br-int address 02:11:11:11:11:11\n\
                 link set vnet0 master br-int\n\
                 link set br-int up\n\
                 link set nic arp off\nlink set br-fake arp off\nlink set br-int arp off\n\
                 link set vnet0 arp off\n";
    host.ip(&commands)?;
    neighbour.ip(&FAR.map(|(_, far)| format!("link set {far} arp off up\n")).concat())
}

fn make_tunnel() -> Result<tun::Device> {
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(TUNNEL.name).up();
    let device = tun::create(&configuration).during("tun")?;
    device.set_nonblock().during("tun")?;
    Ok(device)
}

/// A packet that is forwarded says by its type of service where to.
fn service(out: Link) -> u8 {
    let at = REAL.iter().position(|it| *it == out).unwrap_or_default();
    4 * at as u8
}

fn addresses() -> String {
    let mut commands = String::from("link set wg0 up\n");
    for (address, length, link) in MACHINE.iter().filter(|(.., link)| *link != LOOPBACK) {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        commands += &format!("address add {address}/{length} dev {}{nodad}\n", link.name);
    }
    commands
}

/// Everything by every link, and a table of its own for each type of service.
fn routes() -> String {
    let mut commands = String::new();
    for (link, metric) in REAL.iter().filter(|it| **it != LOOPBACK).zip(10..) {
        let (name, table) = (link.name, 100 + metric);
        commands += &format!("route add default dev {name} metric {metric}\n");
        commands += &format!("route add default dev {name} table {table}\n");
        let service = service(*link);
        commands += &format!("rule add pref {metric} tos {service:#x} lookup {table}\n");
    }
    commands
}

const OBSERVER: &str = "observer";

fn observer_sets() -> Vec<(u8, String, Place)> {
    const INET: u8 = 1;
    const NETDEV: u8 = 5;
    let mut sets: Vec<_> =
        ["4", "6"].map(|kind| (INET, format!("input{kind}"), Place::Input)).to_vec();
    for (at, link) in REAL.iter().enumerate() {
        for kind in ["2", "4", "6"] {
            sets.push((NETDEV, format!("link{at}_{kind}"), Place::Egress(link.name)));
        }
    }
    sets
}

fn observers() -> String {
    let set = |name: &str, kind: &str| {
        let key = match kind {
            "2" => "ether saddr",
            "4" => "ip daddr . ip id",
            _ => "ip6 daddr . ip6 flowlabel",
        };
        (
            format!("set {name} {{ typeof {key}; flags dynamic; size 65535; }}\n"),
            format!("update @{name} {{ {key} }}\n"),
        )
    };
    // The kernel's own packets (resets, errors, reports) have no socket of a user: their numbers
    // might be a step's, and a reset would end the connection that a later packet belongs to.
    let mut inet = String::from(
        "chain kernel { type filter hook output priority -350;\nmeta skuid >= 0 accept\ndrop\n}\n",
    );
    let (sets, rules): (String, String) =
        ["4", "6"].iter().map(|kind| set(&format!("input{kind}"), kind)).unzip();
    inet += &sets;
    inet += &format!("chain input {{ type filter hook input priority 2147483647;\n{rules} }}\n");
    let mut netdev = String::new();
    for (at, link) in REAL.iter().enumerate() {
        let (sets, rules): (String, String) =
            ["2", "4", "6"].iter().map(|kind| set(&format!("link{at}_{kind}"), kind)).unzip();
        netdev += &sets;
        netdev += &format!(
            "chain link{at} {{ type filter hook egress device \"{}\" priority 2147483647;\n{rules} }}\n",
            link.name
        );
    }
    format!("table inet {OBSERVER} {{\n{inet}}}\ntable netdev {OBSERVER} {{\n{netdev}}}\n")
}

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// NFNL_SUBSYS_NFTABLES.
const NFT: u16 = 10;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;

fn netlink_body(texts: &[(u16, &str)]) -> Vec<u8> {
    let mut body = killswitch::netfilter::message::Writer::default();
    for (kind, value) in texts {
        body.text(*kind, value);
    }
    body.finish()
}

/// `nlmsghdr` and `nfgenmsg`.
fn message(kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = (20 + body.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE.
fn keys(payload: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    fn within(bytes: &[u8], wanted: u16) -> impl Iterator<Item = &[u8]> {
        Attributes(bytes).filter(move |(kind, _)| *kind == wanted).map(|(_, value)| value)
    }
    within(&payload[4..], 3)
        .flat_map(|list| Attributes(list).map(|(_, element)| element))
        .flat_map(|element| within(element, 1))
        .flat_map(|key| within(key, 1))
        .map(<[u8]>::to_vec)
}

/// Of an observer's element.
fn identity_of_key(key: &[u8]) -> Option<Identity> {
    Some(match key.len() {
        6 => (None, big_endian(key)),
        8 => (Some(address4(&key[..4])?), big_endian(&key[4..6])),
        _ => (Some(address6(key.get(..16)?)?), big_endian(key.get(16..19)?)),
    })
}

/// Of a whole frame.
pub fn identity(frame: &[u8]) -> Option<Identity> {
    let packet = frame.get(14..)?;
    Some(match u16::from_be_bytes([frame[12], frame[13]]) {
        IPV4 => (Some(address4(packet.get(16..20)?)?), big_endian(&packet[4..6])),
        IPV6 => (Some(address6(packet.get(24..40)?)?), big_endian(&packet[1..4]) & 0xf_ffff),
        _ => (None, big_endian(&frame[6..12])),
    })
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn address4(bytes: &[u8]) -> Option<IpAddr> {
    Some(<[u8; 4]>::try_from(bytes).ok()?.into())
}

fn address6(bytes: &[u8]) -> Option<IpAddr> {
    Some(<[u8; 16]>::try_from(bytes).ok()?.into())
}

fn raw_socket(link: Link, v4: bool) -> Result<OwnedFd> {
    let family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC;
    // IPPROTO_RAW: with a header of our own (raw(7)).
    let fd = socket(family, SockType::Raw, flags, SockProtocol::Raw).during("raw socket")?;
    setsockopt(&fd, sockopt::BindToDevice, &link.name.into()).during("SO_BINDTODEVICE")?;
    setsockopt(&fd, sockopt::Broadcast, &true).during("SO_BROADCAST")?;
    Ok(fd)
}

/// An Ethernet frame; of what is not IP, the source address is the identity.
fn frame(packet: &Packet, identity: u16, service: u8, to: Mac) -> Vec<u8> {
    let mut bytes = to.to_vec();
    bytes.extend(sender(identity));
    bytes.extend(packet.ethertype.to_be_bytes());
    match (&packet.body, packet.source, packet.destination) {
        (Body::NotIp, IpAddr::V4(from), IpAddr::V4(to)) => {
            // ARP (RFC 826): Ethernet, IPv4, a request.
            bytes.extend([0, 1, 8, 0, 6, 4, 0, 1]);
            bytes.extend(sender(identity));
            bytes.extend(from.octets());
            bytes.extend([0; 6]);
            bytes.extend(to.octets());
            bytes.resize(60, 0);
        }
        _ => bytes.extend(wire::datagram(packet, identity, service)),
    }
    bytes
}

/// A locally administered hardware address that says an identity.
fn sender(identity: u16) -> Mac {
    let [high, low] = identity.to_be_bytes();
    [2, 0, 0, 0, high, low]
}

/// Whether the kernel's verdict can be had. A tun link takes only IP; what comes in by a port comes
/// in by its bridge; what is to this machine leaves by loopback only; the kernel writes a source
/// where there is none (raw(7)).
pub fn can_carry(step: &Step) -> bool {
    let packet = &step.packet;
    match step.way {
        Way::Frame(TUNNEL) => packet.body != Body::NotIp,
        Way::Frame(_) => true,
        Way::Received(from) => !matches!(from, PORT | LOOPBACK),
        Way::Forwarded(from, _) => !matches!(from, PORT | LOOPBACK) && !packet.is_to_this_machine(),
        Way::Sent(out) => {
            !packet.source.is_unspecified() && (out == LOOPBACK || !packet.is_to_this_machine())
        }
    }
}

/// What comes back out of the tunnel is addressed to the tunnel's link, under whose address the
/// question went.
fn translate(packet: &mut Packet, way: Way) {
    if matches!(way, Way::Forwarded(TUNNEL, _)) && packet.history == History::Reply {
        packet.destination = tunnel_address(packet.source);
    }
}
