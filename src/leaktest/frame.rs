//! A frame on its way out, taken apart. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// EtherTypes (IEEE 802; linux/if_ether.h).
pub const IPV4: u16 = 0x0800;
/// Address resolution.
pub const ARP: u16 = 0x0806;
/// IPv6.
pub const IPV6: u16 = 0x86dd;
/// 802.1X.
pub const EAPOL: u16 = 0x888e;
const VLAN: u16 = 0x8100;

/// Protocols (IANA).
pub const ICMP: u8 = 1;
/// Group membership.
pub const IGMP: u8 = 2;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMPv6.
pub const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;

/// A frame as the link got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its type on the wire; on a link without a header, as the sender told the kernel.
    pub ethertype: u16,
    /// The link has Ethernet's header.
    pub ethernet: bool,
    /// What is behind the link's header.
    pub payload: &'a [u8],
}

/// An IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The sender's address.
    pub source: IpAddr,
    /// The receiver's address.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub hops: u8,
    /// The protocol after all extension headers.
    pub protocol: u8,
    /// Something stands between IPv6's header and that.
    pub extended: bool,
    /// Not a packet's first fragment: there are no ports.
    pub later_fragment: bool,
    /// What the protocol carries, its header included.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// `hatype`: the link's ARPHRD_ number; `protocol`: what the sender said the frame is. One VLAN tag
    /// is stepped over. `None`: shorter than its header.
    pub fn read(hatype: u16, protocol: u16, bytes: &'a [u8]) -> Option<Self> {
        const ARPHRD_ETHER: u16 = 1;
        if hatype != ARPHRD_ETHER {
            return Some(Frame { ethertype: protocol, ethernet: false, payload: bytes });
        }
        let half = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let (ethertype, at) = match half(12)? {
            VLAN => (half(16)?, 18),
            ethertype => (ethertype, 14),
        };
        Some(Frame { ethertype, ethernet: true, payload: bytes.get(at..)? })
    }

    /// The packet in it; `None`: not IP, or broken.
    pub fn packet(&self) -> Option<Packet<'a>> {
        match self.ethertype {
            IPV4 => Packet::v4(self.payload),
            IPV6 => Packet::v6(self.payload),
            _ => None,
        }
    }
}

impl<'a> Packet<'a> {
    fn v4(bytes: &'a [u8]) -> Option<Self> {
        let fixed: &[u8; 20] = bytes.first_chunk()?;
        let address = |at: usize| {
            IpAddr::V4(Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]))
        };
        let length = usize::from(fixed[0] & 0x0f) * 4;
        Some(Packet {
            source: address(12),
            destination: address(16),
            hops: fixed[8],
            protocol: fixed[9],
            extended: false,
            later_fragment: u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff != 0,
            payload: bytes.get(length.max(20)..).filter(|_| fixed[0] >> 4 == 4)?,
        })
    }

    fn v6(bytes: &'a [u8]) -> Option<Self> {
        let fixed: &[u8; 40] = bytes.first_chunk().filter(|it| it[0] >> 4 == 6)?;
        let address = |at: usize| -> Option<IpAddr> {
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[at..at + 16]).ok()?).into())
        };
        let mut packet = Packet {
            source: address(8)?,
            destination: address(24)?,
            hops: fixed[7],
            protocol: fixed[6],
            extended: false,
            later_fragment: false,
            payload: &bytes[40..],
        };
        packet.step_over_extensions();
        Some(packet)
    }

    /// Hop-by-hop options, routing, fragment, authentication, destination options (RFC 8200, 4). Those
    /// of a later fragment are the first one's matter.
    fn step_over_extensions(&mut self) {
        while let (false, 0 | 43 | FRAGMENT | AUTHENTICATION | 60, &[next, length, a, b, ..]) =
            (self.later_fragment, self.protocol, self.payload)
        {
            let fragment = self.protocol == FRAGMENT;
            let length = match self.protocol {
                FRAGMENT => 8,
                AUTHENTICATION => (usize::from(length) + 2) * 4,
                _ => (usize::from(length) + 1) * 8,
            };
            self.extended = true;
            self.later_fragment |= fragment && u16::from_be_bytes([a, b]) >> 3 != 0;
            self.payload = self.payload.get(length..).unwrap_or_default();
            self.protocol = next;
        }
    }

    /// Source and destination port of TCP and UDP.
    pub fn ports(&self) -> Option<(u16, u16)> {
        let &[a, b, c, d, ..] = self.payload else { return None };
        let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        (matches!(self.protocol, TCP | UDP) && !self.later_fragment).then_some(ports)
    }

    /// What it is for cannot be read where it should stand: its ports, or what follows its extension
    /// headers.
    pub fn is_cut(&self) -> bool {
        let extension = matches!(self.protocol, 0 | 43 | FRAGMENT | 60)
            || self.protocol == AUTHENTICATION && self.source.is_ipv6();
        let portless = matches!(self.protocol, TCP | UDP) && self.ports().is_none();
        !self.later_fragment && (portless || extension)
    }

    /// What a UDP datagram carries.
    pub fn datagram(&self) -> &'a [u8] {
        match self.protocol {
            UDP if !self.later_fragment => self.payload.get(8..).unwrap_or_default(),
            _ => &[],
        }
    }
}

impl fmt::Display for Frame<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.packet(), self.ethertype) {
            (Some(packet), _) => packet.fmt(out),
            (None, IPV4 | IPV6) => out.write_str("broken IP packet"),
            (None, ARP) => out.write_str("ARP"),
            (None, other) => write!(out, "frame of type {other:#06x}"),
        }
    }
}

impl fmt::Display for Packet<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Packet { source, destination, protocol, .. } = self;
        match (self.ports(), *protocol) {
            (Some((from, to)), TCP | UDP) => {
                let name = if *protocol == TCP { "tcp" } else { "udp" };
                let end = |address: IpAddr, port| std::net::SocketAddr::new(address, port);
                write!(out, "{name} {} -> {}", end(*source, from), end(*destination, to))
            }
            (_, ICMP | ICMPV6) => {
                let kind = self.payload.first().copied().unwrap_or_default();
                write!(out, "icmp type {kind} {source} -> {destination}")
            }
            _ => write!(out, "ip protocol {protocol} {source} -> {destination}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_frame_makes_it_panic() {
        for first in 0..=255u8 {
            for length in 0..80 {
                let mut bytes = vec![first; length];
                for (kind, hatype) in
                    [(IPV4, 1), (IPV6, 1), (IPV4, 65534), (IPV6, 65534), (VLAN, 1)]
                {
                    if let Some(place) = bytes.get_mut(12..14) {
                        place.copy_from_slice(&kind.to_be_bytes());
                    }
                    if let Some(frame) = Frame::read(hatype, kind, &bytes) {
                        let _ = (frame.to_string(), frame.packet().map(|it| it.datagram().len()));
                    }
                }
            }
        }
    }
}
