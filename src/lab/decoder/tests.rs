use etherparse::PacketBuilder;

use super::super::addresses::{CLIENT_V4, CLIENT_V6, INTERNET_V4, SERVER1_V4};
use super::*;

const US: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 2];
const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50];
const ALL_ROUTERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const HANDSHAKE: [u8; 8] = [1, 0, 0, 0, 9, 9, 9, 9];

fn expected() -> Expectation {
    Expectation {
        servers: vec![Server::wireguard("198.51.100.7:51820".parse().expect("an endpoint"))],
        dhcp: true,
        dhcp_servers: vec!["192.168.1.0/24".parse().expect("a network")],
        ..Expectation::default()
    }
}

fn udp_from(source: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(US, GATEWAY)
        .ipv4(source.octets(), to.octets(), 64)
        .udp(ports.0, ports.1);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("a frame");
    frame
}

fn udp(to: Ipv4Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    udp_from(CLIENT_V4, to, ports, payload)
}

fn icmpv6_frame(to: [u8; 16], hops: u8, message: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(US, GATEWAY).ipv6(LINK_LOCAL, to, hops);
    let mut frame = Vec::new();
    builder.write(&mut frame, IpNumber::IPV6_ICMP, message).expect("a frame");
    frame
}

fn arp_frame(sender: Ipv4Addr) -> Vec<u8> {
    let mut frame = [[0xff; 6], US].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(US);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend([192, 168, 1, 1]);
    frame
}

#[track_caller]
fn allowed(frame: &[u8], expected: &Expectation) {
    let verdict = classify(frame, expected);
    assert!(matches!(verdict, Allowed(_)), "{verdict:?}");
}

#[track_caller]
fn leaked(frame: &[u8], expected: &Expectation) {
    let verdict = classify(frame, expected);
    assert!(matches!(verdict, Verdict::Leaked(_)), "{verdict:?}");
}

#[test]
fn wireguard_to_a_server_needs_its_shape() {
    for kind in 1..=4 {
        allowed(&udp(SERVER1_V4, (5000, 51820), &[kind, 0, 0, 0, 7]), &expected());
    }
    for payload in [&b"GET / HTTP/1.1"[..], &[5, 0, 0, 0], &[1, 0, 1, 0], &[0, 0, 0, 0], &[1, 0, 0]]
    {
        leaked(&udp(SERVER1_V4, (5000, 51820), payload), &expected());
    }
    let mut any = expected();
    any.servers[0].wireguard = false;
    allowed(&udp(SERVER1_V4, (5000, 51820), b"GET / HTTP/1.1"), &any);
}

#[test]
fn another_port_or_address_is_no_server() {
    leaked(&udp(SERVER1_V4, (51820, 443), &HANDSHAKE), &expected());
    leaked(&udp(INTERNET_V4, (51820, 51820), &HANDSHAKE), &expected());
}

#[test]
fn tcp_to_a_udp_server_is_a_leak() {
    let builder = PacketBuilder::ethernet2(US, GATEWAY)
        .ipv4(CLIENT_V4.octets(), SERVER1_V4.octets(), 64)
        .tcp(5000, 51820, 1, 1000)
        .syn();
    let mut frame = Vec::new();
    builder.write(&mut frame, &[]).expect("a frame");
    leaked(&frame, &expected());
    assert_eq!(
        classify(&frame, &expected()),
        Verdict::Leaked("TCP SYN 192.168.1.50 -> 198.51.100.7:51820".into())
    );
}

#[test]
fn dhcp_goes_from_68_to_67_and_stays_near() {
    allowed(&udp_from(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, (68, 67), &[1]), &expected());
    allowed(&udp(Ipv4Addr::new(192, 168, 1, 1), (68, 67), &[1]), &expected());
    leaked(&udp(INTERNET_V4, (68, 67), &[1]), &expected());
    leaked(&udp(Ipv4Addr::BROADCAST, (67, 68), &[1]), &expected());
    leaked(&udp(Ipv4Addr::BROADCAST, (68, 67), &[1]), &Expectation::default());
}

#[test]
fn arp_never_tells_the_tunnels_address() {
    allowed(&arp_frame(CLIENT_V4), &expected());
    leaked(&arp_frame(TUNNEL_V4), &expected());
    leaked(&arp_frame(CLIENT_V4)[..40], &expected());
}

#[test]
fn neighbour_discovery_stays_on_the_link() {
    for kind in [133, 135, 136] {
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &CLIENT_V6.octets()].concat();
        allowed(&icmpv6_frame(ALL_ROUTERS, 255, &message), &expected());
        allowed(&icmpv6_frame(LINK_LOCAL, 255, &message), &expected());
        leaked(&icmpv6_frame(ALL_ROUTERS, 64, &message), &expected());
        leaked(&icmpv6_frame(CLIENT_V6.octets(), 255, &message), &expected());
    }
    let redirect = [137, 0, 0, 0, 0, 0, 0, 0];
    leaked(&icmpv6_frame(ALL_ROUTERS, 255, &redirect), &expected());
    let of_the_tunnel = [&[136, 0, 0, 0, 0, 0, 0, 0][..], &TUNNEL_V6.octets()].concat();
    leaked(&icmpv6_frame(LINK_LOCAL, 255, &of_the_tunnel), &expected());
}

#[test]
fn multicast_groups_are_told_only_when_asked_for() {
    let report = [143, 0, 0, 0, 0, 0, 0, 0];
    let expecting = Expectation { groups: true, ..expected() };
    leaked(&icmpv6_frame(ALL_ROUTERS, 1, &report), &expected());
    allowed(&icmpv6_frame(ALL_ROUTERS, 1, &report), &expecting);
}

#[test]
fn the_tunnels_address_is_never_a_source() {
    leaked(&udp_from(TUNNEL_V4, SERVER1_V4, (5000, 51820), &HANDSHAKE), &expected());
}

#[test]
fn the_lan_is_reached_but_not_for_names() {
    let router = Ipv4Addr::new(192, 168, 1, 1);
    let lan = Expectation { lan: vec!["192.168.1.0/24".parse().expect("a network")], ..expected() };
    leaked(&udp(router, (5000, 8080), &[]), &expected());
    allowed(&udp(router, (5000, 8080), &[]), &lan);
    leaked(&udp(router, (5000, 53), &[]), &lan);
    let named = Expectation { lan_dns: vec![router.into()], ..lan };
    allowed(&udp(router, (5000, 53), &[]), &named);
    leaked(&udp(INTERNET_V4, (5000, 53), &[]), &named);
}

#[test]
fn a_service_answers_but_does_not_begin() {
    let service = Service {
        transport: Transport::Tcp,
        port: 22,
        from: "192.168.1.0/24".parse().expect("a network"),
    };
    let serving = Expectation { inbound: vec![service], ..expected() };
    let segment = |to: [u8; 4], answer: bool| {
        let builder = PacketBuilder::ethernet2(US, GATEWAY)
            .ipv4(CLIENT_V4.octets(), to, 64)
            .tcp(22, 5000, 1, 1000)
            .syn();
        let builder = if answer { builder.ack(1) } else { builder };
        let mut frame = Vec::new();
        builder.write(&mut frame, &[]).expect("a frame");
        frame
    };
    allowed(&segment([192, 168, 1, 20], true), &serving);
    leaked(&segment([192, 168, 1, 20], false), &serving);
    leaked(&segment(INTERNET_V4.octets(), true), &serving);
    leaked(&segment([192, 168, 1, 20], true), &expected());
}

#[test]
fn fragments_leak_even_to_a_server() {
    let mut frame = udp(SERVER1_V4, (5000, 51820), &HANDSHAKE);
    // More fragments, offset 0; the checksum is not looked at.
    frame[14 + 6] = 0x20;
    leaked(&frame, &expected());
    frame[14 + 6] = 0x00;
    frame[14 + 7] = 0x10;
    leaked(&frame, &expected());
}

#[test]
fn what_is_not_known_leaks() {
    leaked(&[], &expected());
    leaked(&[0; 13], &expected());
    let with_type = |kind: [u8; 2]| [&[0; 12][..], &kind, &[0; 50]].concat();
    for kind in [[0x81, 0], [0x88, 0xa8], [0x88, 0xcc], [0, 0], [8, 0], [0x86, 0xdd], [8, 6]] {
        leaked(&with_type(kind), &expected());
    }
}

#[test]
fn echo_to_the_internet_leaks() {
    let builder = PacketBuilder::ethernet2(US, GATEWAY)
        .ipv4(CLIENT_V4.octets(), INTERNET_V4.octets(), 64)
        .icmpv4_echo_request(1, 1);
    let mut frame = Vec::new();
    builder.write(&mut frame, &[]).expect("a frame");
    leaked(&frame, &expected());
    leaked(&icmpv6_frame(CLIENT_V6.octets(), 64, &[128, 0, 0, 0, 0, 0, 0, 0]), &expected());
}
