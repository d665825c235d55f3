//! Packets as bytes.

use std::net::IpAddr;

use crate::packet::{Body, ICMPV6, Packet, Ports, UDP};

/// The IP packet, with an identity in IPv4's identification or IPv6's flow label and a type of
/// service: no rule looks at either.
pub fn datagram(packet: &Packet, identity: u16, service: u8) -> Vec<u8> {
    match (packet.source, packet.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let body = body(packet, &from.octets(), &to.octets());
            let length = (20 + body.len() as u16).to_be_bytes();
            let mut bytes = [&[0x45, service][..], &length, &identity.to_be_bytes()].concat();
            let protocol = packet.protocol().unwrap_or_default();
            bytes.extend([0, 0, packet.hop_limit, protocol, 0, 0]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
            let sum = checksum(&[&bytes]);
            bytes[10..12].copy_from_slice(&sum);
            [bytes, body].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let body = body(packet, &from.octets(), &to.octets());
            let (next, option) = hop_by_hop(packet);
            let first: u32 = 6 << 28 | u32::from(service) << 20 | u32::from(identity);
            let length = (option.len() + body.len()) as u16;
            let mut bytes = [&first.to_be_bytes()[..], &length.to_be_bytes()].concat();
            bytes.extend([next, packet.hop_limit]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
            [bytes, option, body].concat()
        }
        _ => Vec::new(),
    }
}

/// Listener reports carry a router alert (RFC 3810, 5).
fn hop_by_hop(packet: &Packet) -> (u8, Vec<u8>) {
    match packet.body {
        Body::Icmp(ICMPV6, 131 | 132 | 143, _) => (0, vec![ICMPV6, 0, 5, 2, 0, 0, 1, 0]),
        _ => (packet.protocol().unwrap_or_default(), Vec::new()),
    }
}

fn body(packet: &Packet, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let sum_at = match &packet.body {
        Body::Udp(Ports { from, to }, payload) => {
            bytes.extend([from.to_be_bytes(), to.to_be_bytes()].concat());
            bytes.extend((8 + payload.len() as u16).to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(payload);
            6
        }
        Body::Tcp(Ports { from, to }) => {
            bytes.extend([from.to_be_bytes(), to.to_be_bytes()].concat());
            bytes.extend(tcp(packet));
            16
        }
        Body::Icmp(_, kind, rest) => {
            bytes.extend([*kind, 0, 0, 0]);
            bytes.extend(rest);
            2
        }
        Body::Cut(_) => return vec![0x11; 3],
        Body::Other(_) | Body::NotIp => return vec![0x11; 16],
    };
    let protocol = packet.protocol().unwrap_or_default();
    let pseudo = [from, to, &(bytes.len() as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat();
    let has_pseudo = !matches!(packet.body, Body::Icmp(..)) || packet.source.is_ipv6();
    let mut sum = checksum(&[if has_pseudo { &pseudo } else { &[] }, &bytes]);
    // A UDP sum of zero means none (RFC 768).
    if protocol == UDP && sum == [0, 0] {
        sum = [0xff, 0xff];
    }
    bytes[sum_at..sum_at + 2].copy_from_slice(&sum);
    bytes
}

/// The header after the ports: SYN, or SYN and ACK of an answer.
fn tcp(packet: &Packet) -> Vec<u8> {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let (flags, acknowledged) = match packet.history {
        crate::packet::History::Reply => (SYN | ACK, 1001u32),
        _ => (SYN, 0),
    };
    let mut bytes = 1000u32.to_be_bytes().to_vec();
    bytes.extend(acknowledged.to_be_bytes());
    bytes.extend([0x50, flags, 0x40, 0, 0, 0, 0, 0]);
    bytes
}

/// RFC 1071.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default());
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
