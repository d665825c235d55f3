//! A packet and its way, in words that neither nftables nor the code under test has coined.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;
pub const EAPOL: u16 = 0x888e;

pub const ICMP: u8 = 1;
pub const IGMP: u8 = 2;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

/// A link of the machine under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    pub name: &'static str,
    /// IFLA_INFO_KIND; hardware and loopback have none.
    pub kind: Option<&'static str>,
}

pub const LOOPBACK: Link = Link { name: "lo", kind: None };
pub const NIC: Link = Link { name: "nic", kind: Some("veth") };
pub const TUNNEL: Link = Link { name: "wg0", kind: Some("tun") };
pub const BRIDGE: Link = Link { name: "br-int", kind: Some("bridge") };
/// Named like a bridge, but something else.
pub const LOOK_ALIKE: Link = Link { name: "br-fake", kind: Some("veth") };
/// A port of the bridge.
pub const PORT: Link = Link { name: "vnet0", kind: Some("veth") };
/// The links that the kernel's judge has.
pub const REAL: [Link; 6] = [LOOPBACK, NIC, TUNNEL, BRIDGE, LOOK_ALIKE, PORT];
/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By a program on the machine, through its IP stack.
    Sent(Link),
    /// To the machine.
    Received(Link),
    /// Through the machine.
    Forwarded(Link, Link),
    /// Handed to a link as a whole frame: by a packet socket, for a guest.
    Frame(Link),
}

/// What was seen before of the packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// Nothing.
    None,
    /// It answers a packet that went the other way.
    Reply,
    /// It is an ICMP error about a packet of ours to this address, protocol and port.
    ErrorAbout(IpAddr, u8, u16),
}

/// What an IP packet or another frame holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Udp(Ports, Vec<u8>),
    Tcp(Ports),
    /// Protocol, type, what follows the first four bytes.
    Icmp(u8, u8, Vec<u8>),
    /// TCP or UDP, too short for its ports.
    Cut(u8),
    /// Another protocol of IP.
    Other(u8),
    /// Not IP.
    NotIp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    pub from: u16,
    pub to: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub ethertype: u16,
    /// Of ARP: the sender's.
    pub source: IpAddr,
    pub destination: IpAddr,
    pub hop_limit: u8,
    pub body: Body,
    pub mark: u32,
    pub history: History,
}

impl Packet {
    /// The protocol of IP; of anything else, none.
    pub fn protocol(&self) -> Option<u8> {
        Some(match &self.body {
            Body::Udp(..) => UDP,
            Body::Tcp(_) => TCP,
            Body::Icmp(protocol, ..) | Body::Cut(protocol) | Body::Other(protocol) => *protocol,
            Body::NotIp => return None,
        })
    }

    pub fn ports(&self) -> Option<Ports> {
        match &self.body {
            Body::Udp(ports, _) | Body::Tcp(ports) => Some(*ports),
            _ => None,
        }
    }

    /// A link-local address is a link's.
    pub fn is_from_this_machine(&self, out: Link) -> bool {
        let is_its = |own: &(&str, u8, Link)| own.2 == out && address(own.0) == self.source;
        match self.is_from_link_local() {
            true => MACHINE.iter().any(is_its),
            false => is_local(self.source),
        }
    }

    /// Its source is where the link leads, or it has none yet (RFC 2131, 4.1; RFC 4862, 5.4.2).
    pub fn comes_from(&self, link: Link, way: Way) -> bool {
        let asks_everybody = match self.destination {
            IpAddr::V4(to) => to.is_broadcast() || to.is_multicast(),
            IpAddr::V6(_) => true,
        };
        is_behind(self.source, link, way) || (self.source.is_unspecified() && asks_everybody)
    }

    pub fn is_from_link_local(&self) -> bool {
        matches!(self.source, IpAddr::V6(it) if it.is_unicast_link_local())
    }

    pub fn is_to_this_machine(&self) -> bool {
        is_local(self.destination)
    }
}

/// The machine's addresses; the tunnel's may be any of them.
pub const MACHINE: [(&str, u8, Link); 11] = [
    ("127.0.0.1", 8, LOOPBACK),
    ("::1", 128, LOOPBACK),
    ("10.64.0.2", 32, TUNNEL),
    ("fd00:64::2", 128, TUNNEL),
    ("192.168.1.50", 24, NIC),
    ("2001:db8:1::50", 64, NIC),
    ("fe80::50", 64, NIC),
    ("10.64.0.3", 32, NIC),
    ("fd00:64::3", 128, NIC),
    ("172.18.0.1", 16, BRIDGE),
    ("fd00:18::1", 64, BRIDGE),
];

/// The tunnel link's address in the family of another.
pub fn tunnel_address(like: IpAddr) -> IpAddr {
    let mut own = MACHINE.iter().filter(|it| it.2 == TUNNEL).map(|it| address(it.0));
    own.find(|own| own.is_ipv4() == like.is_ipv4()).unwrap_or(like)
}

/// By this machine's routes: links lead to their own networks, and each to link-local addresses; what
/// is forwarded has a route of its own, which leads everywhere. A router's own is each network's first
/// IPv6 address (RFC 4291, 2.6.1).
pub fn is_behind(it: IpAddr, link: Link, way: Way) -> bool {
    if matches!(it, IpAddr::V6(it) if it.is_unicast_link_local()) {
        return true;
    }
    let mut nets = MACHINE.iter().map(|own| (own.2, net(own.0, own.1)));
    if is_local(it) || nets.clone().any(|(_, own)| it.is_ipv6() && own.network() == it) {
        return false;
    }
    match way {
        Way::Forwarded(_, out) => out == link,
        _ => nets.any(|(its, own)| its == link && own.contains(&it)),
    }
}

fn net(text: &str, length: u8) -> ipnet::IpNet {
    ipnet::IpNet::new(address(text), length).expect("a prefix").trunc()
}

pub fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn machine_addresses() -> Vec<IpAddr> {
    MACHINE.iter().map(|(text, ..)| address(text)).collect()
}

pub fn is_local(it: IpAddr) -> bool {
    // All of 127/8 is routed to the loopback link.
    matches!(it, IpAddr::V4(it) if it.is_loopback()) || machine_addresses().contains(&it)
}

/// The address that many steps away, in the same family.
pub fn shifted(it: IpAddr, steps: i8) -> IpAddr {
    match it {
        IpAddr::V4(it) => {
            Ipv4Addr::from_bits(it.to_bits().wrapping_add_signed(steps.into())).into()
        }
        IpAddr::V6(it) => {
            Ipv6Addr::from_bits(it.to_bits().wrapping_add_signed(steps.into())).into()
        }
    }
}
