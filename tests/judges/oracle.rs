//! The third judge: the design's section 3, sentence by sentence, in plain Rust.
//!
//! Written from the design alone; it knows nothing of nftables. Quotations are the design's.

use std::net::{IpAddr, Ipv4Addr};

use killswitch::policy::{LinkPattern, MessageShape, Policy, Protocol};

use crate::packet::{
    ARP, Body, EAPOL, History, ICMP, ICMPV6, IGMP, IPV6, LOOPBACK, Link, Packet, Ports, TCP, UDP,
    Way, is_behind, tunnel_address,
};
use crate::packets::Step;

/// Whether the packet may go its way.
pub fn may_pass(policy: &Policy, packet: &Packet, way: Way) -> bool {
    match way {
        Way::Sent(out) => may_leave(policy, packet, out),
        Way::Received(from) => may_enter(policy, packet, from, way),
        Way::Forwarded(from, out) => may_be_forwarded(policy, packet, from, out, way),
        Way::Frame(out) => may_be_handed_to(policy, packet, out),
    }
}

/// Each step with the verdict. What should follow a packet that did not pass follows nothing.
pub fn decide(policy: &Policy, mut steps: Vec<Step>) -> Vec<(Step, bool)> {
    let mut passes: Vec<bool> = Vec::new();
    for step in &mut steps {
        if step.after.is_some_and(|first| !passes[first]) {
            step.packet.history = History::None;
        }
        passes.push(may_pass(policy, &step.packet, step.way));
    }
    steps.into_iter().zip(passes).collect()
}

/// "What may leave while locked. Everything else is dropped."
fn may_leave(policy: &Policy, packet: &Packet, out: Link) -> bool {
    // The tunnel's outer packets do not go round in it.
    if is_tunnel(policy, out) && packet.mark == policy.mark {
        return false;
    }
    let is_ours = packet.is_from_this_machine(out) || packet.is_from_link_local();
    // "loopback, to a local address", under a local one (threat 72)
    (out == LOOPBACK
        && packet.is_to_this_machine()
        && (is_ours || packet.history != History::None || policy.tunnel.is_none()))
        // The kernel forwards none.
        || (out == LOOPBACK
            && policy.tunnel.is_some()
            && [packet.source, packet.destination].into_iter().all(is_link_local6))
        // "the tunnel interface, [...] only with the tunnel's own source addresses"
        || (is_tunnel(policy, out) && is_tunnel_address(policy, packet.source))
        || may_go_to_bridge(policy, packet, out)
        || (!is_tunnel_address(policy, packet.source) && may_be_outside(policy, packet, out))
}

/// From a service's port replies only, wherever the bridge leads (threat 74).
fn may_go_to_bridge(policy: &Policy, packet: &Packet, out: Link) -> bool {
    is_internal(policy, out)
        && (packet.history == History::Reply || !is_from_service(policy, packet))
}

/// Under another address than the tunnel's: threat 71.
fn may_be_outside(policy: &Policy, packet: &Packet, out: Link) -> bool {
    is_to_server(policy, packet)
        || keeps_the_link(policy, packet)
        || (is_to_ntp(policy, packet) && packet.is_from_this_machine(out))
        // "inbound services from named networks with their replies"
        || (is_from_service(policy, packet)
            && packet.history == History::Reply
            && packet.is_from_this_machine(out))
        // Under the machine's own address, or what a LAN's client asked through the tunnel.
        || (is_to_lan(policy, packet)
            && (packet.is_from_this_machine(out)
                || policy.forward_into_tunnel && packet.history != History::None))
}

fn may_enter(policy: &Policy, packet: &Packet, from: Link, way: Way) -> bool {
    if is_probe_of_tunnel_address(policy, packet, from) || is_forged(policy, packet, from, way) {
        return false;
    }
    from == LOOPBACK
        || (is_tunnel(policy, from) && is_tunnel_address(policy, packet.destination))
        || is_from_server(policy, packet)
        || is_error_of_the_outer_flow(policy, packet)
        || keeps_the_link_in(policy, packet)
        || is_from_ntp(policy, packet)
        || is_to_service(policy, packet)
        // "to and from the bridges of containers and guests"
        || is_internal(policy, from)
        || is_in_lan(policy, packet.source)
}

/// "forwarded traffic: dropped, or into the tunnel only with `forward.mode = "tunnel"`"
fn may_be_forwarded(policy: &Policy, packet: &Packet, from: Link, out: Link, way: Way) -> bool {
    if is_probe_of_tunnel_address(policy, packet, from) || is_forged(policy, packet, from, way) {
        return false;
    }
    let is_client = is_internal(policy, from) || is_in_lan(policy, packet.source);
    let enters = policy.forward_into_tunnel && is_tunnel(policy, out) && is_client;
    let answers = policy.forward_into_tunnel
        && is_tunnel(policy, from)
        && packet.history != History::None
        && (is_internal(policy, out) || is_in_lan(policy, packet.destination));
    // Not to what may be asked outside, wherever the bridge leads (threat 74).
    let is_outside = is_in_lan(policy, packet.destination) || is_to_ntp(policy, packet);
    let stays = is_internal(policy, from)
        && may_go_to_bridge(policy, packet, out)
        && !(policy.tunnel.is_some() && policy.dhcp && is_for_lease_server(packet))
        && (!is_outside || is_behind(packet.destination, from, way));
    // Whatever passes through leaves by the same rules as what begins here, into the tunnel under
    // its own address.
    let mut leaving = packet.clone();
    if enters {
        let own = tunnel_address_like(policy, packet.source);
        leaving.source = own.unwrap_or_else(|| tunnel_address(packet.source));
    }
    // What comes from a server bears the mark from then on (threat 52), and never enters the tunnel.
    let is_outer = is_from_server(policy, packet) || is_error_of_the_outer_flow(policy, packet);
    if policy.routing_guard && is_outer {
        leaving.mark = policy.mark;
    }
    (stays || answers || enters) && may_leave(policy, &leaving, out)
}

fn tunnel_address_like(policy: &Policy, like: IpAddr) -> Option<IpAddr> {
    let mut own = policy.tunnel.iter().flat_map(|tunnel| &tunnel.addresses);
    own.find(|it| it.is_ipv4() == like.is_ipv4()).copied()
}

/// The egress guard: "the last gate for all that leaves a NIC, whichever way it came".
fn may_be_handed_to(policy: &Policy, packet: &Packet, out: Link) -> bool {
    if !policy.egress_guard {
        return true;
    }
    let is_port = matches!(out.kind, Some("veth" | "tun")) && is_named(&policy.internal_ports, out);
    out == LOOPBACK
        || is_tunnel(policy, out)
        || is_internal(policy, out)
        || is_port
        || needs_no_address(policy, packet)
        || (!is_tunnel_address(policy, packet.source) && may_be_framed(policy, packet))
}

/// Later fragments apart, which have neither port nor shape (threat 43): none is judged here.
fn may_be_framed(policy: &Policy, packet: &Packet) -> bool {
    is_to_server(policy, packet)
        || keeps_the_link(policy, packet)
        || is_to_ntp(policy, packet)
        // It knows no connections.
        || is_from_service(policy, packet)
        || is_to_lan(policy, packet)
}

/// "by name *and* kind (a foreign link that takes the name is not the tunnel)"
fn is_tunnel(policy: &Policy, link: Link) -> bool {
    let kind = link.kind.unwrap_or_default();
    policy.tunnel.as_ref().is_some_and(|it| it.interface == link.name && it.kinds.contains(kind))
}

fn is_tunnel_address(policy: &Policy, address: IpAddr) -> bool {
    policy.tunnel.as_ref().is_some_and(|tunnel| tunnel.addresses.contains(&address))
}

/// Threat 9, CVE-2019-14899: the tunnel's address asked for on another link.
fn is_probe_of_tunnel_address(policy: &Policy, packet: &Packet, from: Link) -> bool {
    from != LOOPBACK && !is_tunnel(policy, from) && is_tunnel_address(policy, packet.destination)
}

/// Threat 75: a guest under an address that is not behind its bridge, where it could have an answer
/// sent outside.
fn is_forged(policy: &Policy, packet: &Packet, from: Link, way: Way) -> bool {
    policy.tunnel.is_some()
        && is_bridge_of_guests(policy, from)
        && !(policy.lan.is_empty() && policy.inbound.is_empty())
        && !packet.comes_from(from, way)
}

/// "to a server: exact address + protocol + port + our fwmark + the shape of a WireGuard message
/// (type 1 to 4 and three zero bytes) where the tunnel is WireGuard"
fn is_to_server(policy: &Policy, packet: &Packet) -> bool {
    let Some(ports) = packet.ports() else { return false };
    packet.mark == policy.mark
        && policy.servers.iter().any(|server| {
            server.endpoint == (packet.destination, ports.to).into()
                && packet.protocol() == Some(number(server.protocol))
                && (server.shape == MessageShape::Any || has_shape_of_wireguard(packet))
        })
}

fn has_shape_of_wireguard(packet: &Packet) -> bool {
    matches!(&packet.body, Body::Udp(_, payload) if matches!(payload[..], [1..=4, 0, 0, 0, ..]))
}

/// "what comes from a server: exact address + port, in only"
fn is_from_server(policy: &Policy, packet: &Packet) -> bool {
    let Some(ports) = packet.ports() else { return false };
    policy.servers.iter().any(|server| {
        server.endpoint == (packet.source, ports.from).into()
            && packet.protocol() == Some(number(server.protocol))
    })
}

/// "ICMP errors that belong to the outer flow (path MTU), in only"
fn is_error_of_the_outer_flow(policy: &Policy, packet: &Packet) -> bool {
    let History::ErrorAbout(address, protocol, port) = packet.history else { return false };
    is_icmp_error(packet)
        && policy.servers.iter().any(|server| {
            server.endpoint == (address, port).into() && number(server.protocol) == protocol
        })
}

/// RFC 792: unreachable, time exceeded, parameter problem. RFC 4443: types 1 to 4.
fn is_icmp_error(packet: &Packet) -> bool {
    match (&packet.body, packet.source) {
        (Body::Icmp(ICMP, kind, _), IpAddr::V4(_)) => matches!(kind, 3 | 11 | 12),
        (Body::Icmp(ICMPV6, kind, _), IpAddr::V6(_)) => matches!(kind, 1..=4),
        _ => false,
    }
}

/// "DHCPv4, DHCPv6, NDP by type, scoped addresses, hop limit 255; renewals included"
fn keeps_the_link(policy: &Policy, packet: &Packet) -> bool {
    // Without a tunnel nothing leaves: the strictest lock.
    policy.tunnel.is_some()
        && (is_neighbour_discovery(packet, 135..=136) && is_link_scoped(packet.destination)
            || policy.dhcp
                && (is_neighbour_discovery(packet, 133..=133)
                    && is_link_scoped(packet.destination)
                    || asks_for_lease4(packet)
                    || asks_for_lease6(packet)))
}

fn keeps_the_link_in(policy: &Policy, packet: &Packet) -> bool {
    policy.tunnel.is_some()
        && (is_neighbour_discovery(packet, 135..=136)
            || policy.dhcp
                && (is_neighbour_discovery(packet, 134..=134)
                    || brings_lease4(packet)
                    || brings_lease6(packet)))
}

/// RFC 4861: ICMPv6 of IPv6 whose hop limit no router has touched.
fn is_neighbour_discovery(packet: &Packet, types: std::ops::RangeInclusive<u8>) -> bool {
    packet.ethertype == IPV6
        && packet.hop_limit == 255
        && matches!(&packet.body, Body::Icmp(ICMPV6, kind, _) if types.contains(kind))
}

/// fe80::/10 or ff02::/16
fn is_link_scoped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(it) if it.segments()[0] == 0xff02 || it.is_unicast_link_local())
}

/// From port 68 to 67, a request with DHCP's cookie, to everybody or to a server nearby.
fn asks_for_lease4(packet: &Packet) -> bool {
    let Body::Udp(_, payload) = &packet.body else { return false };
    let is_request =
        payload.first() == Some(&1) && payload.get(236..240) == Some(&[0x63, 0x82, 0x53, 0x63]);
    let is_to_everybody = packet.destination == IpAddr::from(Ipv4Addr::BROADCAST);
    is_request && is_udp(packet, 68, 67) && (is_to_everybody || is_for_lease_server(packet))
}

fn is_for_lease_server(packet: &Packet) -> bool {
    let IpAddr::V4(to) = packet.destination else { return false };
    is_udp(packet, 68, 67) && (to.is_private() || to.is_link_local())
}

fn asks_for_lease6(packet: &Packet) -> bool {
    is_udp(packet, 546, 547)
        && is_link_local6(packet.source)
        && packet.destination == IpAddr::from([0xff02, 0, 0, 0, 0, 0, 1, 2])
}

fn brings_lease4(packet: &Packet) -> bool {
    packet.source.is_ipv4() && is_udp(packet, 67, 68)
}

fn brings_lease6(packet: &Packet) -> bool {
    is_link_local6(packet.source) && is_udp(packet, 547, 546)
}

fn is_udp(packet: &Packet, from: u16, to: u16) -> bool {
    matches!(&packet.body, Body::Udp(ports, _) if (ports.from, ports.to) == (from, to))
}

fn is_link_local6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(it) if it.is_unicast_link_local())
}

fn is_to_ntp(policy: &Policy, packet: &Packet) -> bool {
    policy.ntp.contains(&packet.destination)
        && matches!(&packet.body, Body::Udp(ports, _) if ports.to == 123)
}

fn is_from_ntp(policy: &Policy, packet: &Packet) -> bool {
    policy.ntp.contains(&packet.source)
        && matches!(&packet.body, Body::Udp(ports, _) if ports.from == 123)
}

fn is_to_service(policy: &Policy, packet: &Packet) -> bool {
    packet.ports().is_some_and(|ports| serves(policy, packet, ports.to, packet.source))
}

fn is_from_service(policy: &Policy, packet: &Packet) -> bool {
    packet.ports().is_some_and(|ports| serves(policy, packet, ports.from, packet.destination))
}

fn serves(policy: &Policy, packet: &Packet, port: u16, client: IpAddr) -> bool {
    policy.inbound.iter().any(|service| {
        packet.protocol() == Some(number(service.protocol))
            && service.port == port
            && service.from.contains(&client)
    })
}

/// "`allow.internal`, by name and kind "bridge" [...] where the kernel has [no egress guard],
/// `internal` is left out"
fn is_internal(policy: &Policy, link: Link) -> bool {
    policy.egress_guard && is_bridge_of_guests(policy, link)
}

fn is_bridge_of_guests(policy: &Policy, link: Link) -> bool {
    link.kind == Some("bridge") && is_named(&policy.internal, link)
}

fn is_named(patterns: &std::collections::BTreeSet<LinkPattern>, link: Link) -> bool {
    patterns.iter().any(|pattern| match pattern {
        LinkPattern::Exact(name) => link.name == name,
        LinkPattern::Prefix(start) => link.name.starts_with(start.as_str()),
    })
}

/// "LAN prefixes [...] (DNS, DoT, mDNS, LLMNR to the LAN stay closed unless named)",
/// "MLD/IGMP not [...] unless `allow.lan`"
fn is_to_lan(policy: &Policy, packet: &Packet) -> bool {
    if packet.protocol().is_none() || policy.lan.is_empty() {
        return false;
    }
    policy.lan_dns.contains(&packet.destination)
        || !may_ask_for_names(packet)
            && (is_in_lan(policy, packet.destination) || joins_a_group(policy, packet))
}

/// Nobody knows what is cut short before its ports.
fn may_ask_for_names(packet: &Packet) -> bool {
    let asks = |ports: Ports| matches!(ports.to, 53 | 853 | 5353 | 5355);
    matches!(packet.body, Body::Cut(_)) || packet.ports().is_some_and(asks)
}

fn is_in_lan(policy: &Policy, address: IpAddr) -> bool {
    policy.lan.iter().any(|net| net.contains(&address))
}

/// IGMP (RFC 2236: TTL 1) and MLD reports (RFC 3810: hop limit 1), "only when a LAN of that family
/// is allowed".
fn joins_a_group(policy: &Policy, packet: &Packet) -> bool {
    let has_lan = policy.lan.iter().any(|net| net.addr().is_ipv4() == packet.source.is_ipv4());
    has_lan
        && packet.hop_limit == 1
        && match (packet.destination, &packet.body) {
            (IpAddr::V4(to), Body::Other(IGMP)) => to.is_multicast(),
            (IpAddr::V6(to), Body::Icmp(ICMPV6, 131 | 132 | 143, _)) => to.segments()[0] == 0xff02,
            _ => false,
        }
}

/// ARP (threat 7: "normally allow"; threat 8: never about the tunnel's address) and 802.1X.
fn needs_no_address(policy: &Policy, packet: &Packet) -> bool {
    policy.tunnel.is_some()
        && match packet.ethertype {
            ARP => !is_tunnel_address(policy, packet.source),
            EAPOL => true,
            _ => false,
        }
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    }
}
