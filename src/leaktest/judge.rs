//! Says of a frame whether it may be outside of the tunnel. Pure, and written from SECURITY.md's
//! table "What may leave", not from the rules: what it does not recognise has leaked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::frame::{ARP, EAPOL, Frame, ICMPV6, IGMP, Packet, TCP, UDP};
use crate::policy::{MessageShape, NAME_SERVICE_PORTS, Policy, Protocol, Server};

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// A link or the tunnel needs it: address resolution, leases, outer packets.
    Needed,
    /// This key of the configuration allows it.
    Allowed(&'static str),
    /// It may not be there.
    Leaked,
}

use Judgement::{Allowed, Leaked, Needed};

/// Judges one frame that a link other than the tunnel's got.
pub fn judge(policy: &Policy, frame: &Frame<'_>) -> Judgement {
    match frame.ethertype {
        ARP => address_resolution(policy, frame),
        EAPOL if frame.ethernet && policy.tunnel.is_some() => Needed,
        _ => frame.packet().map_or(Leaked, |packet| judge_packet(policy, &packet)),
    }
}

/// RFC 826, for IPv4 over Ethernet: 1, 0x0800, 6, 4; operation; then the sender's two addresses.
fn address_resolution(policy: &Policy, frame: &Frame<'_>) -> Judgement {
    let sender = frame.payload.get(14..18).and_then(|it| <[u8; 4]>::try_from(it).ok());
    let Some(sender) = sender.filter(|_| frame.payload.starts_with(&[0, 1, 8, 0, 6, 4])) else {
        return Leaked;
    };
    let sender = IpAddr::from(Ipv4Addr::from(sender));
    match frame.ethernet && policy.tunnel.is_some() && !is_tunnels_own(policy, sender) {
        true => Needed,
        false => Leaked,
    }
}

fn is_tunnels_own(policy: &Policy, address: IpAddr) -> bool {
    policy.tunnel.as_ref().is_some_and(|tunnel| tunnel.addresses.contains(&address))
}

fn judge_packet(policy: &Policy, packet: &Packet<'_>) -> Judgement {
    if is_tunnels_own(policy, packet.source) {
        return Leaked;
    }
    if policy.servers.iter().any(|server| goes_to(server, packet)) || keeps_link(policy, packet) {
        return Needed;
    }
    if let Some(key) = allowing_key(policy, packet) {
        return Allowed(key);
    }
    Leaked
}

fn goes_to(server: &Server, packet: &Packet<'_>) -> bool {
    let protocol = match server.protocol {
        Protocol::Udp => UDP,
        Protocol::Tcp => TCP,
    };
    if packet.destination != server.endpoint.ip() || packet.protocol != protocol {
        return false;
    }
    if packet.later_fragment {
        return true;
    }
    let shaped = match server.shape {
        MessageShape::Any => true,
        MessageShape::Wireguard => matches!(packet.datagram(), [1..=4, 0, 0, 0, ..]),
    };
    shaped && packet.ports().is_some_and(|(_, to)| to == server.endpoint.port())
}

/// Neighbour discovery and leases.
fn keeps_link(policy: &Policy, packet: &Packet<'_>) -> bool {
    if policy.tunnel.is_none() || packet.extended {
        return false;
    }
    match packet.protocol {
        ICMPV6 => discovers_neighbours(policy, packet),
        UDP if policy.dhcp => asks_for_lease(packet),
        _ => false,
    }
}

fn discovers_neighbours(policy: &Policy, packet: &Packet<'_>) -> bool {
    let IpAddr::V6(destination) = packet.destination else { return false };
    let near = destination.is_unicast_link_local() || destination.segments()[0] == 0xff02;
    let kind = packet.payload.first();
    near && packet.hops == 255
        && (matches!(kind, Some(135 | 136)) || (policy.dhcp && kind == Some(&133)))
}

fn asks_for_lease(packet: &Packet<'_>) -> bool {
    let Some(ports) = packet.ports() else { return false };
    match (packet.source, packet.destination) {
        (IpAddr::V4(_), IpAddr::V4(to)) => {
            let server = to.is_broadcast() || to.is_private() || to.is_link_local();
            // RFC 2131, 2 and 3: a request, and the cookie before the options.
            let request = packet.datagram().first() == Some(&1);
            let cookie = packet.datagram().get(236..240) == Some(&[99, 130, 83, 99]);
            ports == (68, 67) && server && request && cookie
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            // RFC 8415, 7.1
            let everyone = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
            ports == (546, 547) && from.is_unicast_link_local() && to == everyone
        }
        _ => false,
    }
}

fn allowing_key(policy: &Policy, packet: &Packet<'_>) -> Option<&'static str> {
    let ports = packet.ports();
    let in_lan = policy.lan.iter().any(|net| net.contains(&packet.destination));
    let asks_names = ports.is_some_and(|(_, to)| NAME_SERVICE_PORTS.contains(&to));
    if policy.lan_dns.contains(&packet.destination) {
        return Some("allow.lan_dns");
    }
    if in_lan && !asks_names && !packet.is_cut() {
        return Some("allow.lan");
    }
    if reports_groups(packet) && has_family(policy, packet.destination) {
        return Some("allow.lan");
    }
    if ports.is_some_and(|(_, to)| to == 123)
        && packet.protocol == UDP
        && policy.ntp.contains(&packet.destination)
    {
        return Some("allow.ntp");
    }
    let replies = policy.inbound.iter().any(|service| {
        let protocol = match service.protocol {
            Protocol::Udp => UDP,
            Protocol::Tcp => TCP,
        };
        packet.protocol == protocol
            && ports.is_some_and(|(from, _)| from == service.port)
            && service.from.contains(&packet.destination)
    });
    replies.then_some("allow.inbound")
}

fn has_family(policy: &Policy, address: IpAddr) -> bool {
    policy.lan.iter().any(|net| net.addr().is_ipv4() == address.is_ipv4())
}

/// IGMP and MLD (RFC 3376, RFC 3810), which stay on the link.
fn reports_groups(packet: &Packet<'_>) -> bool {
    let kind = packet.payload.first();
    packet.hops == 1
        && match packet.destination {
            IpAddr::V4(to) => to.is_multicast() && packet.protocol == IGMP,
            // RFC 4291, 2.7: to the link's own groups.
            IpAddr::V6(to) => {
                to.segments()[0] == 0xff02
                    && packet.protocol == ICMPV6
                    && matches!(kind, Some(131 | 132 | 143))
            }
        }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{IPV4, IPV6};
    use super::*;
    use crate::policy::Tunnel;

    fn policy() -> Policy {
        Policy {
            tunnel: Some(Tunnel {
                interface: "wg0".into(),
                kinds: ["tun"].into(),
                addresses: ["10.64.0.2".parse().unwrap()].into(),
            }),
            servers: [Server {
                endpoint: "198.51.100.7:51820".parse().unwrap(),
                protocol: Protocol::Udp,
                shape: MessageShape::Wireguard,
            }]
            .into(),
            dhcp: true,
            lan: vec!["192.168.1.0/24".parse().unwrap()],
            lan_dns: ["192.168.1.53".parse().unwrap()].into(),
            ntp: ["192.0.2.1".parse().unwrap()].into(),
            ..Policy::strictest()
        }
    }

    fn udp(from: &str, to: &str, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
        let [from, to]: [Ipv4Addr; 2] = [from, to].map(|it| it.parse().unwrap());
        let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, UDP, 0, 0];
        bytes.extend(from.octets());
        bytes.extend(to.octets());
        bytes.extend(ports.0.to_be_bytes());
        bytes.extend(ports.1.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(data);
        bytes
    }

    fn judged(payload: &[u8]) -> Judgement {
        judge(&policy(), &Frame { ethertype: IPV4, ethernet: true, payload })
    }

    #[test]
    fn to_a_server_only_its_port_and_shape() {
        let to = |address: &str, port, data: &[u8]| {
            judged(&udp("192.168.1.50", address, (4000, port), data))
        };
        assert_eq!(to("198.51.100.7", 51820, &[4, 0, 0, 0, 9]), Needed);
        assert_eq!(to("198.51.100.7", 51820, b"GET /"), Leaked);
        assert_eq!(to("198.51.100.7", 51821, &[4, 0, 0, 0, 9]), Leaked);
        assert_eq!(to("198.51.100.8", 51820, &[4, 0, 0, 0, 9]), Leaked);
        assert_eq!(judged(&udp("10.64.0.2", "198.51.100.7", (1, 51820), &[4, 0, 0, 0])), Leaked);
    }

    #[test]
    fn what_the_configuration_names() {
        let to = |address: &str, port| judged(&udp("192.168.1.50", address, (4000, port), &[]));
        assert_eq!(to("192.168.1.9", 80), Allowed("allow.lan"));
        assert_eq!(to("192.168.1.9", 53), Leaked);
        assert_eq!(to("192.168.1.53", 53), Allowed("allow.lan_dns"));
        assert_eq!(to("192.0.2.1", 123), Allowed("allow.ntp"));
        assert_eq!(to("192.0.2.1", 124), Leaked);
        assert_eq!(to("1.1.1.1", 443), Leaked);
    }

    #[test]
    fn what_cannot_be_read_may_be_a_name_look_up() {
        let policy = Policy { lan: vec!["fd00:1::/64".parse().unwrap()], ..policy() };
        let judged = |next: u8, rest: &[u8]| {
            let mut bytes = vec![0x60, 0, 0, 0, 0, 0, next, 64, 0x20, 1];
            bytes.extend([0; 14]);
            bytes.extend([0xfd, 0, 0, 1]);
            bytes.extend([0; 11]);
            bytes.push(9);
            bytes.extend(rest);
            judge(&policy, &Frame { ethertype: IPV6, ethernet: true, payload: &bytes })
        };
        let udp = |port: u8| [9, 9, 0, port, 0, 8, 0, 0];
        let behind = |header: [u8; 8], port| [header, udp(port)].concat();
        assert_eq!(judged(UDP, &udp(80)), Allowed("allow.lan"));
        assert_eq!(judged(UDP, &udp(53)), Leaked);
        assert_eq!(judged(UDP, &udp(80)[..3]), Leaked);
        for header in [0, 43, 60] {
            assert_eq!(
                judged(header, &behind([UDP, 0, 0, 0, 0, 0, 0, 0], 80)),
                Allowed("allow.lan")
            );
            assert_eq!(judged(header, &behind([UDP, 0, 0, 0, 0, 0, 0, 0], 53)), Leaked);
            assert_eq!(judged(header, &[UDP, 9, 0, 0]), Leaked);
        }
        // RFC 4302: 12 bytes have the length 1.
        let authenticated = |port| [&[UDP, 1][..], &[0; 10], &udp(port)].concat();
        assert_eq!(judged(51, &authenticated(80)), Allowed("allow.lan"));
        assert_eq!(judged(51, &authenticated(53)), Leaked);
        let fragment = |offset: u8| behind([UDP, 0, 0, offset, 0, 0, 0, 0], 53);
        assert_eq!(judged(44, &fragment(1)), Leaked);
        assert_eq!(judged(44, &fragment(8)), Allowed("allow.lan"));
    }

    #[test]
    fn leases_and_neighbours_as_they_should_look() {
        let mut request = vec![1; 240];
        request[236..].copy_from_slice(&[99, 130, 83, 99]);
        let lease = |to: &str, data: &[u8]| judged(&udp("0.0.0.0", to, (68, 67), data));
        assert_eq!(lease("255.255.255.255", &request), Needed);
        assert_eq!(lease("8.8.8.8", &request), Leaked);
        assert_eq!(lease("255.255.255.255", &request[..239]), Leaked);
        let arp = |sender: [u8; 4]| {
            let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2];
            bytes.extend(sender);
            bytes.extend([0; 10]);
            judge(&policy(), &Frame { ethertype: ARP, ethernet: true, payload: &bytes })
        };
        assert_eq!(arp([192, 168, 1, 50]), Needed);
        assert_eq!(arp([10, 64, 0, 2]), Leaked);
        let solicitation = |hops: u8, kind: u8| {
            let mut bytes = vec![0x60, 0, 0, 0, 0, 8, ICMPV6, hops, 0xfe, 0x80];
            bytes.extend([0; 14]);
            bytes.extend([0xff, 2]);
            bytes.extend([0; 14]);
            bytes.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
            judge(&policy(), &Frame { ethertype: IPV6, ethernet: true, payload: &bytes })
        };
        assert_eq!(solicitation(255, 135), Needed);
        assert_eq!(solicitation(64, 135), Leaked);
        assert_eq!(solicitation(255, 128), Leaked);
    }
}
