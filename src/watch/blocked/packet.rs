//! From the kernel's message to a [`Blocked`].

use std::net::IpAddr;

use super::Blocked;
use crate::netlink::{Attributes, Message};
use crate::ruleset::{self, Hook, LOG_GROUP, ValueKind, text};

/// NFULNL_MSG_PACKET of NFNL_SUBSYS_ULOG.
const PACKET: u16 = 4 << 8;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const FRAGMENT: u8 = 44;

/// What a message says; `None`: it is none of a blocked packet, or of one that is not worth telling.
/// With the index of the link that it would have left by.
pub(super) fn read(message: &Message) -> Option<(Blocked, Option<u32>)> {
    let packet = Packet::of(message)?;
    let ip = packet.ip().and_then(Ip::read);
    let blocked = Blocked {
        link: packet.out.and_then(name),
        source: ip.as_ref().map(|it| it.source),
        source_port: ip.as_ref().and_then(|it| it.ports).map(|it| it.0),
        destination: ip.as_ref().map(|it| it.destination),
        port: ip.as_ref().and_then(|it| it.ports).map(|it| it.1),
        protocol: match &ip {
            Some(ip) => text::value(ValueKind::Protocol, &[ip.protocol]).to_string(),
            None => text::value(ValueKind::Ethertype, &packet.ethertype.to_be_bytes()).to_string(),
        },
        uid: packet.uid,
        cgroup: None,
        suppressed: 0,
    };
    (!is_chatter(&packet, &blocked)).then_some((blocked, packet.out))
}

/// The kernel's own reports of multicast groups, solicitations and the like: no program sent them.
fn is_chatter(packet: &Packet<'_>, blocked: &Blocked) -> bool {
    packet.family != ruleset::Family::Netdev.number()
        && u32::from(packet.hook) == Hook::Output.number()
        && blocked.uid.is_none()
        && blocked.destination.is_some_and(|it| it.is_multicast())
}

fn name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    Some(name.to_string_lossy().into_owned())
}

/// `nfgenmsg` and the attributes (include/uapi/linux/netfilter/nfnetlink_log.h).
struct Packet<'a> {
    family: u8,
    hook: u8,
    ethertype: u16,
    out: Option<u32>,
    uid: Option<u32>,
    link_header: usize,
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    fn of(message: &'a Message) -> Option<Self> {
        const NFULA_PACKET_HDR: u16 = 1;
        const NFULA_IFINDEX_OUTDEV: u16 = 5;
        const NFULA_PAYLOAD: u16 = 9;
        const NFULA_UID: u16 = 11;
        const NFULA_L2HDR: u16 = 21;
        let header = message.payload.get(..4)?;
        if message.kind != PACKET || header[2..] != LOG_GROUP.to_be_bytes() {
            return None;
        }
        let (mut ethertype, mut hook, mut payload) = (None, 0, &[][..]);
        let (mut out, mut uid, mut link_header) = (None, None, 0);
        for (kind, value) in Attributes(&message.payload[4..]) {
            match kind {
                NFULA_PACKET_HDR => {
                    let &[high, low, at, ..] = value else { return None };
                    (ethertype, hook) = (Some(u16::from_be_bytes([high, low])), at);
                }
                NFULA_IFINDEX_OUTDEV => out = number(value),
                NFULA_PAYLOAD => payload = value,
                NFULA_UID => uid = number(value),
                // Only of frames, whose payload begins with it.
                NFULA_L2HDR => link_header = value.len(),
                _ => {}
            }
        }
        let family = header[0];
        Some(Packet { family, hook, ethertype: ethertype?, out, uid, link_header, payload })
    }

    /// The IP packet in it.
    fn ip(&self) -> Option<&'a [u8]> {
        let is_ip = [ETH_P_IP, ETH_P_IPV6].contains(&self.ethertype);
        self.payload.get(self.link_header..).filter(|_| is_ip)
    }
}

/// What the headers say.
struct Ip {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ports: Option<(u16, u16)>,
}

impl Ip {
    fn read(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::v4(bytes),
            6 => Self::v6(bytes),
            _ => None,
        }
    }

    fn v4(bytes: &[u8]) -> Option<Self> {
        let fixed: &[u8; 20] = bytes.first_chunk()?;
        let address = |at: usize| IpAddr::from([0, 1, 2, 3].map(|byte| fixed[at + byte]));
        let length = usize::from(fixed[0] & 0x0f) * 4;
        let is_first = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff == 0;
        let rest = bytes.get(length..).filter(|_| is_first).unwrap_or_default();
        let protocol = fixed[9];
        let (source, destination) = (address(12), address(16));
        Some(Ip { source, destination, protocol, ports: ports(protocol, rest) })
    }

    fn v6(bytes: &[u8]) -> Option<Self> {
        let fixed: &[u8; 40] = bytes.first_chunk()?;
        let address = |at: usize| -> Option<IpAddr> {
            Some(IpAddr::from(<[u8; 16]>::try_from(&fixed[at..at + 16]).ok()?))
        };
        let (protocol, rest) = after_extensions(fixed[6], &bytes[40..]);
        let (source, destination) = (address(8)?, address(24)?);
        Some(Ip { source, destination, protocol, ports: ports(protocol, rest) })
    }
}

/// Steps over hop-by-hop options, routing, destination options (RFC 8200, 4) and a first fragment's
/// header.
fn after_extensions(mut next: u8, mut rest: &[u8]) -> (u8, &[u8]) {
    while let (0 | 43 | FRAGMENT | 60, &[after, length, a, b, ..]) = (next, rest) {
        let length = if next == FRAGMENT { 8 } else { (usize::from(length) + 1) * 8 };
        let is_later = next == FRAGMENT && u16::from_be_bytes([a, b]) >> 3 != 0;
        rest = rest.get(length..).filter(|_| !is_later).unwrap_or_default();
        next = after;
    }
    (next, rest)
}

/// TCP, UDP, DCCP, SCTP, UDP-Lite: source and destination come first.
fn ports(protocol: u8, bytes: &[u8]) -> Option<(u16, u16)> {
    let &[a, b, c, d, ..] = bytes else { return None };
    let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    [6, 17, 33, 132, 136].contains(&protocol).then_some(ports)
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        bytes.extend([0x20; 32]);
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn extensions_are_stepped_over() {
        let ports = [0x11, 0x51, 0, 53];
        let read = |next: u8, rest: &[&[u8]]| {
            Ip::read(&v6(next, &rest.concat())).map(|it| (it.protocol, it.ports))
        };
        assert_eq!(read(17, &[&ports]), Some((17, Some((4433, 53)))));
        let options = [17, 0, 1, 4, 0, 0, 0, 0];
        assert_eq!(read(0, &[&options, &ports]), Some((17, Some((4433, 53)))));
        let first = [17, 0, 0, 1, 0, 0, 0, 7];
        assert_eq!(read(FRAGMENT, &[&first, &ports]), Some((17, Some((4433, 53)))));
        let later = [17, 0, 5, 201, 0, 0, 0, 7];
        assert_eq!(read(FRAGMENT, &[&later, &ports]), Some((17, None)));
        // Cut short, or pointing beyond its end.
        assert_eq!(read(0, &[&[17, 0]]), Some((0, None)));
        assert_eq!(read(60, &[&[17, 255, 0, 0], &ports]), Some((17, None)));
    }

    #[test]
    fn no_packet_makes_it_panic() {
        let whole = [v6(0, &[0; 100]), vec![0x4f; 100], vec![0x45; 100]];
        for bytes in &whole {
            for length in 0..bytes.len() {
                let mut payload = vec![5, 0];
                payload.extend(LOG_GROUP.to_be_bytes());
                payload.extend([8, 0, 1, 0, 0x86, 0xdd, 1, 0]);
                payload.extend((4 + length as u16).to_ne_bytes());
                payload.extend([9, 0]);
                payload.extend(&bytes[..length]);
                let message = Message { kind: PACKET, flags: 0, sequence: 0, port: 0, payload };
                assert!(read(&message).is_some());
            }
        }
    }

    #[test]
    fn another_group_is_not_ours() {
        let mut payload = vec![2, 0, 0, 1];
        payload.extend([8, 0, 1, 0, 0x08, 0, 3, 0]);
        let message = Message { kind: PACKET, flags: 0, sequence: 0, port: 0, payload };
        assert!(read(&message).is_none());
    }
}
