//! Says of a frame whether it may leave a locked machine.
//!
//! Written a second time, from the promise and not from the rules: it shares no code with the
//! lock. What it does not recognise is a leak.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{IpNumber, Ipv4Slice, Ipv6Slice, TcpSlice, UdpSlice};
use ipnet::IpNet;

use super::addresses::{LAN_V4, OTHER_LAN_V4, TUNNEL_V4, TUNNEL_V6};
use super::topology::Lab;

#[cfg(test)]
mod tests;

/// What may leave, in plain terms. The default: nothing but ARP and neighbour discovery.
#[derive(Debug, Clone)]
pub struct Expectation {
    /// VPN servers.
    pub servers: Vec<Server>,
    /// The tunnel's own addresses: never to be seen outside.
    pub tunnel: Vec<IpAddr>,
    /// Whether ARP and neighbour discovery may run.
    pub neighbours: bool,
    /// Whether DHCPv4 and DHCPv6 may run.
    pub dhcp: bool,
    /// Where a lease may be renewed by unicast, besides by broadcast.
    pub dhcp_servers: Vec<IpNet>,
    /// Local networks that may be reached, DNS excepted.
    pub lan: Vec<IpNet>,
    /// Addresses in them that may be asked for names.
    pub lan_dns: Vec<IpAddr>,
    /// Whether multicast groups may be joined.
    pub groups: bool,
    /// NTP servers.
    pub ntp: Vec<IpAddr>,
    /// Services of the client that may answer.
    pub inbound: Vec<Service>,
}

/// Transport protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// A VPN server.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    /// Where it listens.
    pub endpoint: SocketAddr,
    /// Over what.
    pub transport: Transport,
    /// Whether its datagrams must look like WireGuard's.
    pub wireguard: bool,
}

/// A service that a network may reach.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// Over what.
    pub transport: Transport,
    /// Its port.
    pub port: u16,
    /// For whom.
    pub from: IpNet,
}

/// What a frame is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may leave, for this reason.
    Allowed(&'static str),
    /// It may not; this is what it is.
    Leaked(String),
}

use Verdict::Allowed;

impl Default for Expectation {
    fn default() -> Self {
        Expectation {
            servers: Vec::new(),
            tunnel: vec![TUNNEL_V4.into(), TUNNEL_V6.into()],
            neighbours: true,
            dhcp: false,
            dhcp_servers: Vec::new(),
            lan: Vec::new(),
            lan_dns: Vec::new(),
            groups: false,
            ntp: Vec::new(),
            inbound: Vec::new(),
        }
    }
}

impl Expectation {
    /// Both servers of a laboratory by WireGuard, and what keeps a link alive.
    pub fn of(lab: &Lab) -> Self {
        let endpoints = lab.servers.iter().flat_map(|one| [one.endpoint_v4, one.endpoint_v6]);
        Expectation {
            servers: endpoints.map(Server::wireguard).collect(),
            dhcp: true,
            dhcp_servers: [LAN_V4, OTHER_LAN_V4].iter().flat_map(|net| net.parse()).collect(),
            ..Expectation::default()
        }
    }
}

impl Server {
    /// A WireGuard server.
    pub fn wireguard(endpoint: SocketAddr) -> Self {
        Server { endpoint, transport: Transport::Udp, wireguard: true }
    }
}

/// Judges one Ethernet frame that the client sent.
pub fn classify(frame: &[u8], expected: &Expectation) -> Verdict {
    let Some(kind) = frame.get(12..14) else { return leak("frame without a header") };
    let payload = &frame[14..];
    match u16::from_be_bytes([kind[0], kind[1]]) {
        0x0800 => ipv4(payload, expected),
        0x86dd => ipv6(payload, expected),
        0x0806 => arp(payload, expected),
        0x8100 | 0x88a8 => leak("VLAN tag"),
        other => leak(format!("ethertype {other:#06x}")),
    }
}

fn leak(what: impl Display) -> Verdict {
    Verdict::Leaked(what.to_string())
}

fn arp(packet: &[u8], expected: &Expectation) -> Verdict {
    // RFC 826, for IPv4 over Ethernet: 1, 0x0800, 6, 4; then operation, sender and target.
    let Some(sender) = packet
        .get(14..18)
        .filter(|_| packet.starts_with(&[0, 1, 8, 0, 6, 4]) && packet.len() >= 28)
    else {
        return leak("ARP that is not for IPv4");
    };
    let sender = IpAddr::V4(Ipv4Addr::new(sender[0], sender[1], sender[2], sender[3]));
    if expected.tunnel.contains(&sender) {
        return leak(format!("ARP from the tunnel's address {sender}"));
    }
    if expected.neighbours { Allowed("ARP") } else { leak("ARP") }
}

fn ipv4(packet: &[u8], expected: &Expectation) -> Verdict {
    let slice = match Ipv4Slice::from_slice(packet) {
        Ok(slice) => slice,
        Err(error) => return leak(format!("broken IPv4: {error}")),
    };
    let header = slice.header();
    let ends = Ends {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        hops: header.ttl(),
    };
    if slice.is_payload_fragmented() {
        return leak(format!("IPv4 fragment {ends}"));
    }
    internet(&ends, slice.payload_ip_number(), slice.payload().payload, expected)
}

fn ipv6(packet: &[u8], expected: &Expectation) -> Verdict {
    let slice = match Ipv6Slice::from_slice(packet) {
        Ok(slice) => slice,
        Err(error) => return leak(format!("broken IPv6: {error}")),
    };
    let header = slice.header();
    let ends = Ends {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        hops: header.hop_limit(),
    };
    if slice.is_payload_fragmented() {
        return leak(format!("IPv6 fragment {ends}"));
    }
    let number = slice.payload().ip_number;
    // Among what may leave only MLD carries extension headers.
    if header.next_header() != number && !(expected.groups && number == IpNumber::IPV6_ICMP) {
        return leak(format!("IPv6 extension header {} {ends}", header.next_header().0));
    }
    internet(&ends, number, slice.payload().payload, expected)
}

struct Ends {
    source: IpAddr,
    destination: IpAddr,
    hops: u8,
}

impl Display for Ends {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} -> {}", self.source, self.destination)
    }
}

fn internet(ends: &Ends, number: IpNumber, payload: &[u8], expected: &Expectation) -> Verdict {
    if expected.tunnel.contains(&ends.source) {
        return leak(format!("protocol {} from the tunnel's own address, {ends}", number.0));
    }
    match number {
        IpNumber::UDP => match UdpSlice::from_slice(payload) {
            Ok(udp) => datagram(ends, &udp, expected),
            Err(error) => leak(format!("broken UDP {ends}: {error}")),
        },
        IpNumber::TCP => match TcpSlice::from_slice(payload) {
            Ok(tcp) => segment(ends, &tcp, expected),
            Err(error) => leak(format!("broken TCP {ends}: {error}")),
        },
        IpNumber::IPV6_ICMP => icmpv6(ends, payload, expected),
        IpNumber::ICMP => match payload.first() {
            // Echoes and errors: who may be reached may be answered.
            Some(0 | 3 | 8 | 11) if local(ends.destination, expected) => Allowed("LAN"),
            kind => leak(format!("ICMP type {} {ends}", kind.copied().unwrap_or_default())),
        },
        IpNumber::IGMP if expected.groups => Allowed("multicast group"),
        other => leak(format!("IP protocol {} {ends}", other.0)),
    }
}

fn datagram(ends: &Ends, udp: &UdpSlice<'_>, expected: &Expectation) -> Verdict {
    let (from, to) = (udp.source_port(), udp.destination_port());
    let destination = SocketAddr::new(ends.destination, to);
    let what = |how: &str| leak(format!("UDP {} -> {destination}{how}", ends.source));
    for server in expected.servers.iter().filter(|one| one.transport == Transport::Udp) {
        if server.endpoint == destination {
            return match udp.payload() {
                _ if !server.wireguard => Allowed("to a server"),
                [1..=4, 0, 0, 0, ..] => Allowed("WireGuard to a server"),
                _ => what(", not WireGuard's shape"),
            };
        }
    }
    if expected.dhcp && dhcp(ends, from, to, expected) {
        return Allowed("DHCP");
    }
    if to == 123 && expected.ntp.contains(&ends.destination) {
        return Allowed("NTP");
    }
    if answers(ends, Transport::Udp, from, expected) {
        return Allowed("inbound service");
    }
    if lan(ends, to, expected) { Allowed("LAN") } else { what("") }
}

fn dhcp(ends: &Ends, from: u16, to: u16, expected: &Expectation) -> bool {
    match ends.destination {
        IpAddr::V4(destination) => {
            (from, to) == (68, 67)
                && (destination.is_broadcast()
                    || expected.dhcp_servers.iter().any(|net| net.contains(&ends.destination)))
        }
        // RFC 8415, 7.1: clients multicast to All_DHCP_Relay_Agents_and_Servers.
        IpAddr::V6(destination) => {
            let all_servers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
            (from, to) == (546, 547) && destination == all_servers && link_local(ends.source)
        }
    }
}

fn segment(ends: &Ends, tcp: &TcpSlice<'_>, expected: &Expectation) -> Verdict {
    let (from, to) = (tcp.source_port(), tcp.destination_port());
    let destination = SocketAddr::new(ends.destination, to);
    let servers = expected.servers.iter();
    if servers.clone().any(|one| one.transport == Transport::Tcp && one.endpoint == destination) {
        return Allowed("to a server");
    }
    let begins = tcp.syn() && !tcp.ack();
    if !begins && answers(ends, Transport::Tcp, from, expected) {
        return Allowed("inbound service");
    }
    if lan(ends, to, expected) {
        return Allowed("LAN");
    }
    let flags = [(tcp.syn(), "SYN"), (tcp.ack(), "ACK"), (tcp.rst(), "RST"), (tcp.fin(), "FIN")];
    let flags: Vec<&str> = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    leak(format!("TCP {} {} -> {destination}", flags.join("+"), ends.source))
}

fn icmpv6(ends: &Ends, message: &[u8], expected: &Expectation) -> Verdict {
    let Some(&kind) = message.first() else { return leak(format!("broken ICMPv6 {ends}")) };
    let discovery = matches!(kind, 133 | 135 | 136);
    if discovery && expected.neighbours {
        let near = link_local(ends.destination) || link_multicast(ends.destination);
        if !near || ends.hops != 255 {
            return leak(format!("neighbour discovery {kind} off the link, {ends}"));
        }
        // RFC 4861, 4.4: an advertisement's target is the address that it tells of.
        let target = message.get(8..24).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
        if kind == 136 && target.is_some_and(|it| expected.tunnel.contains(&IpAddr::from(it))) {
            return leak(format!("advertisement of the tunnel's address, {ends}"));
        }
        return Allowed("neighbour discovery");
    }
    if matches!(kind, 131 | 132 | 143) && expected.groups {
        return Allowed("multicast group");
    }
    if matches!(kind, 1 | 3 | 128 | 129) && local(ends.destination, expected) {
        return Allowed("LAN");
    }
    leak(format!("ICMPv6 type {kind} {ends}"))
}

/// Names are not asked of the LAN unless it is said of whom: DNS, DoT and DoQ, mDNS, LLMNR.
fn lan(ends: &Ends, port: u16, expected: &Expectation) -> bool {
    let asks_names = matches!(port, 53 | 853 | 5353 | 5355);
    local(ends.destination, expected)
        && (!asks_names || expected.lan_dns.contains(&ends.destination))
}

fn local(address: IpAddr, expected: &Expectation) -> bool {
    expected.lan.iter().any(|net| net.contains(&address))
}

fn answers(ends: &Ends, transport: Transport, port: u16, expected: &Expectation) -> bool {
    expected.inbound.iter().any(|service| {
        service.transport == transport
            && service.port == port
            && service.from.contains(&ends.destination)
    })
}

fn link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.segments()[0] & 0xffc0 == 0xfe80)
}

fn link_multicast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.segments()[0] == 0xff02)
}
