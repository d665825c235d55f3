//! What the test sends: harmless if it gets out, and known wherever it is seen.
//!
//! A canary that leaks is a real leak of one packet. So it goes to networks that nobody may announce
//! (198.18.0.0/15 of RFC 2544, 2001:2::/48 of RFC 5180), lives for a few hops, and says what it is
//! and nothing else: to whoever sees it, it shows the sender's address on the link, and that a leak
//! test runs.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Hop limit of every canary: no program's usual one, so that the capture's filter knows it by that,
/// and so low that it dies within the provider's network.
pub const HOPS: u8 = 5;

/// What every token of every run begins with.
const START: &str = "killswitch-leaktest-";
const NONCE: usize = 16;
const NUMBER: usize = 2;

/// What tells this run's canaries from another's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    nonce: u64,
}

impl Run {
    /// With a random nonce.
    ///
    /// # Errors
    /// If /dev/urandom cannot be read.
    pub fn new() -> std::io::Result<Self> {
        let mut nonce = [0; 8];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut nonce)?;
        Ok(Run { nonce: u64::from_be_bytes(nonce) })
    }

    /// In this run, of the probe with this number: a label of DNS, too.
    pub fn token(&self, probe: u8) -> String {
        format!("{START}{:016x}-{probe:02x}", self.nonce)
    }

    /// The number of the probe whose token is in these bytes.
    pub fn find(&self, bytes: &[u8]) -> Option<u8> {
        let start = format!("{START}{:0NONCE$x}-", self.nonce);
        let at = bytes.windows(start.len()).position(|it| it == start.as_bytes())?;
        let number = bytes.get(at + start.len()..at + start.len() + NUMBER)?;
        u8::from_str_radix(std::str::from_utf8(number).ok()?, 16).ok()
    }

    /// Where canaries go that need no particular receiver.
    pub fn destinations(&self) -> [IpAddr; 2] {
        let [a, b, c, d, e, f, g, h] = self.nonce.to_be_bytes();
        let half = |high, low| u16::from_be_bytes([high, low]);
        // Neither a network's first address nor its last.
        let v4 = Ipv4Addr::new(198, 18 | (a & 1), b.clamp(1, 254), c.clamp(1, 254));
        let v6 = Ipv6Addr::new(0x2001, 2, 0, half(a, b), half(c, d), half(e, f), half(g, h), 1);
        [v4.into(), v6.into()]
    }
}

/// A query for the token's name (RFC 1035), in a zone that no resolver passes on.
pub fn dns_query(token: &str, zone: &str) -> Vec<u8> {
    let mut query = vec![0x6b, 0x73, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [token, zone] {
        query.extend(u8::try_from(label.len()));
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// As an Initial packet of QUIC begins (RFC 9000, 17.2.2), and as long as one must be.
pub fn quic_initial(token: &str) -> Vec<u8> {
    let mut packet = vec![0xc3, 0, 0, 0, 1, 8];
    packet.extend(&token.as_bytes()[..8]);
    packet.extend([0, 0, 0x44, 0x96, 0, 0, 0, 0]);
    packet.extend(token.as_bytes());
    packet.resize(1200, 0);
    packet
}

/// A client's request (RFC 5905), and the token behind it.
pub fn ntp_request(token: &str) -> Vec<u8> {
    let mut packet = vec![0; 48];
    packet[0] = 0x23;
    packet.extend(token.as_bytes());
    packet
}

/// A binding request (RFC 8489) with the token as SOFTWARE.
pub fn stun_request(token: &str) -> Vec<u8> {
    let length = u16::try_from(token.len().next_multiple_of(4)).unwrap_or_default();
    let mut packet = vec![0, 1];
    packet.extend((length + 4).to_be_bytes());
    packet.extend([0x21, 0x12, 0xa4, 0x42]);
    packet.extend(&token.as_bytes()[..12]);
    packet.extend([0x80, 0x22]);
    packet.extend(u16::try_from(token.len()).unwrap_or_default().to_be_bytes());
    packet.extend(token.as_bytes());
    packet.resize(24 + usize::from(length), 0);
    packet
}

/// As WireGuard's transport data begin, but nothing that a server could read.
pub fn wireguard_message(token: &str) -> Vec<u8> {
    [&[4, 0, 0, 0], token.as_bytes()].concat()
}

/// An echo request (RFC 792; RFC 4443, whose checksum the kernel makes) with the token in it.
pub fn echo_request(v4: bool, token: &str) -> Vec<u8> {
    let kind = if v4 { 8 } else { 128 };
    let mut message = vec![kind, 0, 0, 0, 0x6b, 0x73, 0, 1];
    message.extend(token.as_bytes());
    if v4 {
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// From where, and to which port, canaries are that bring their own header.
const PORTS: [u16; 2] = [40000, 4433];

/// An IPv4 packet with a UDP datagram in it.
pub fn ipv4_datagram(from: Ipv4Addr, to: Ipv4Addr, hops: u8, data: &[u8]) -> Vec<u8> {
    let datagram = datagram(data);
    let length = length(20 + datagram.len());
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, hops, 17, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(datagram);
    packet
}

/// An IPv6 packet with a UDP datagram in it.
pub fn ipv6_datagram(from: Ipv6Addr, to: Ipv6Addr, hops: u8, data: &[u8]) -> Vec<u8> {
    let datagram = datagram(data);
    let length = length(datagram.len());
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], 17, hops];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(datagram);
    packet
}

/// Without a checksum over the data: whoever gets it by mistake throws it away.
fn datagram(data: &[u8]) -> Vec<u8> {
    let [from, to] = PORTS.map(u16::to_be_bytes);
    [&from[..], &to, &length(8 + data.len()), &[0, 0], data].concat()
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let pair = |it: &[u8]| u32::from(it[0]) << 8 | u32::from(it.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(pair).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_in_whatever_carries_it() {
        let run = Run { nonce: 0x0123_4567_89ab_cdef };
        let token = run.token(0x2a);
        assert!(token.len() < 64, "a label of DNS");
        for packet in [
            dns_query(&token, "invalid"),
            quic_initial(&token),
            ntp_request(&token),
            stun_request(&token),
            wireguard_message(&token),
            echo_request(true, &token),
            echo_request(false, &token),
        ] {
            assert_eq!(run.find(&packet), Some(0x2a));
            assert_eq!(Run { nonce: 1 }.find(&packet), None);
            assert_eq!(run.find(&packet[..packet.len().min(30)]), None);
        }
        assert_eq!(run.find(&token.as_bytes()[..token.len() - 1]), None);
    }

    #[test]
    fn destinations_are_in_networks_for_benchmarks() {
        for nonce in [0, u64::MAX, 0xff00_ff00_ff00_ff00] {
            let [v4, v6] = Run { nonce }.destinations();
            let within = |net: &str, ip| net.parse::<ipnet::IpNet>().unwrap().contains(&ip);
            assert!(within("198.18.0.0/15", v4), "{v4}");
            assert!(within("2001:2::/48", v6), "{v6}");
        }
    }
}
