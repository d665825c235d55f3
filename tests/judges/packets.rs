//! Random packets near the boundaries of a policy's decisions: one that should pass, then spoilt
//! in one or two places, or not at all.

use std::net::IpAddr;

use killswitch::dice::Dice;
use killswitch::policy::{Inbound, MessageShape, Policy, Protocol, Server};

use crate::packet::{
    ARP, BRIDGE, Body, EAPOL, History, ICMP, ICMPV6, IGMP, IPV4, IPV6, LOOK_ALIKE, LOOPBACK, Link,
    NIC, PORT, Packet, Ports, TCP, TUNNEL, UDP, Way, address, machine_addresses, shifted,
};
use crate::policies::PORTS;

/// A packet, its way, and which earlier one of the same list it follows.
#[derive(Debug, Clone)]
pub struct Step {
    pub packet: Packet,
    pub way: Way,
    pub after: Option<usize>,
}

const FAR: [&str; 44] = [
    "1.1.1.1",
    "192.168.1.20",
    "192.168.2.127",
    "192.168.2.128",
    "192.168.1.1",
    "203.0.113.127",
    "203.0.113.128",
    "255.255.255.255",
    "9.255.255.255",
    "10.0.0.0",
    "10.255.255.255",
    "11.0.0.0",
    "169.253.255.255",
    "169.254.0.0",
    "169.254.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.16.0.0",
    "172.31.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "192.168.0.0",
    "192.168.255.255",
    "192.169.0.0",
    "223.255.255.255",
    "224.0.0.1",
    "224.0.0.251",
    "239.255.255.255",
    "240.0.0.0",
    "127.1.2.3",
    "172.18.0.2",
    "2606:4700:4700::1111",
    "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "fe80::1",
    "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "fec0::1",
    "ff01::1",
    "ff02::1",
    "ff02::1:2",
    "ff02::1:3",
    "ff02:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "ff03::1",
    "fd00:18::2",
    "2001:db8:1::20",
];

/// Packets for one policy, on links of this list.
pub fn steps(dice: &mut Dice, policy: &Policy, links: &[Link], count: usize) -> Vec<Step> {
    let mut maker = Maker { places: places(policy), dice, policy, links };
    let mut steps: Vec<Step> = Vec::new();
    while steps.len() < count {
        if maker.dice.once_in(8)
            && let Some([first, second]) = maker.exchange()
        {
            let after = Some(steps.len());
            steps.push(first);
            steps.push(Step { after, ..second });
        } else {
            steps.push(maker.single());
        }
    }
    for step in &mut steps {
        // What comes from elsewhere bears no mark: a link between namespaces takes it off (threat 17).
        if matches!(step.way, Way::Received(_) | Way::Forwarded(..)) {
            step.packet.mark = 0;
        }
    }
    steps
}

struct Maker<'a> {
    dice: &'a mut Dice,
    policy: &'a Policy,
    links: &'a [Link],
    places: Vec<IpAddr>,
}

/// Addresses in and just outside what the policy names.
fn places(policy: &Policy) -> Vec<IpAddr> {
    let mut named = machine_addresses();
    named.extend(policy.tunnel.iter().flat_map(|tunnel| &tunnel.addresses));
    named.extend(policy.servers.iter().map(|server| server.endpoint.ip()));
    named.extend(policy.lan_dns.iter().chain(&policy.ntp));
    let nets = policy.lan.iter().chain(policy.inbound.iter().map(|service| &service.from));
    named.extend(nets.flat_map(|net| [net.network(), net.broadcast()]));
    let near = named.iter().flat_map(|&it| [it, it, it, shifted(it, -1), shifted(it, 1)]);
    near.chain(FAR.map(address)).collect()
}

impl Maker<'_> {
    fn single(&mut self) -> Step {
        let mut step = self.fitting();
        for _ in 0..self.dice.pick(&[0, 0, 0, 1, 1, 1, 2, 3]) {
            self.spoil(&mut step);
        }
        step
    }

    /// One that some sentence of the design is about.
    fn fitting(&mut self) -> Step {
        match self.dice.below(20) {
            0 | 1 => self.server_asked(),
            2 => self.server_answers(),
            3 => self.tunnel_entered(),
            4 => self.tunnel_left(),
            5 => self.neighbour_discovery(),
            6 => self.lease4(),
            7 => self.lease6(),
            8 => self.ntp(),
            9 => self.service_asked(),
            10 => self.service_replies(),
            11 | 12 => self.local_network(),
            13 => self.membership(),
            14 => self.not_ip(),
            15 => self.loopback(),
            16 => self.bridge(),
            17 if self.dice.once_in(3) => self.guest_asks_outside(),
            17 => self.forwarded(),
            18 => self.icmp_error(),
            _ => self.anything(),
        }
    }

    fn server_asked(&mut self) -> Step {
        let Some(server) = self.server() else { return self.anything() };
        let from = self.of_family(server.endpoint.ip());
        let mut packet = self.packet(from, server.endpoint.ip());
        packet.mark = self.policy.mark;
        let ports = Ports { from: self.fresh_port(), to: server.endpoint.port() };
        packet.body = match (server.protocol, server.shape) {
            (Protocol::Tcp, _) => Body::Tcp(ports),
            (Protocol::Udp, MessageShape::Wireguard) => Body::Udp(ports, self.message()),
            (Protocol::Udp, MessageShape::Any) => Body::Udp(ports, b"GET / HTTP/1.1".to_vec()),
        };
        self.outgoing(packet)
    }

    fn server_answers(&mut self) -> Step {
        let Some(server) = self.server() else { return self.anything() };
        let to = self.own_address(server.endpoint.ip());
        let mut packet = self.packet(server.endpoint.ip(), to);
        let ports = Ports { from: server.endpoint.port(), to: self.fresh_port() };
        packet.body = transport(server.protocol, ports);
        self.incoming(packet)
    }

    fn tunnel_entered(&mut self) -> Step {
        let from = self.tunnel_address();
        let to = self.of_family(from);
        let mut packet = self.packet(from, to);
        packet.body = self.any_body(packet.ethertype);
        let way = if self.dice.once_in(4) { Way::Frame(TUNNEL) } else { Way::Sent(TUNNEL) };
        Step { packet, way, after: None }
    }

    fn tunnel_left(&mut self) -> Step {
        let to = self.tunnel_address();
        let from = self.of_family(to);
        let mut packet = self.packet(from, to);
        packet.body = self.any_body(packet.ethertype);
        let link = if self.dice.once_in(3) { self.link() } else { TUNNEL };
        Step { packet, way: Way::Received(link), after: None }
    }

    fn neighbour_discovery(&mut self) -> Step {
        let to = self.dice.pick(&["fe80::1", "ff02::1", "ff02::1:ff00:50", "fe80::50"]);
        let to = address(to);
        let mut packet = self.packet(address("fe80::50"), to);
        packet.hop_limit = 255;
        let kind = self.dice.pick(&[132, 133, 134, 135, 136, 137]);
        packet.body = Body::Icmp(ICMPV6, kind, vec![0; 20]);
        if self.dice.once_in(3) {
            packet.source = address("fe80::1");
            packet.destination = address("fe80::50");
            return self.incoming(packet);
        }
        self.outgoing(packet)
    }

    fn lease4(&mut self) -> Step {
        if self.dice.once_in(4) {
            let to = self.dice.pick(&["255.255.255.255", "192.168.1.50"]);
            let mut packet = self.packet(address("192.168.1.1"), address(to));
            packet.body = Body::Udp(Ports { from: 67, to: 68 }, dhcp(2));
            return self.incoming(packet);
        }
        let to = match self.dice.once_in(2) {
            true => address("255.255.255.255"),
            false => self.of_family(address("10.0.0.1")),
        };
        let from = self.dice.pick(&["192.168.1.50", "0.0.0.0", "192.168.1.9"]);
        let mut packet = self.packet(address(from), to);
        packet.body = Body::Udp(Ports { from: 68, to: 67 }, dhcp(1));
        self.outgoing(packet)
    }

    fn lease6(&mut self) -> Step {
        if self.dice.once_in(4) {
            let mut packet = self.packet(address("fe80::1"), address("fe80::50"));
            packet.body = Body::Udp(Ports { from: 547, to: 546 }, vec![7; 20]);
            return self.incoming(packet);
        }
        let mut packet = self.packet(address("fe80::50"), address("ff02::1:2"));
        packet.body = Body::Udp(Ports { from: 546, to: 547 }, vec![1; 20]);
        self.outgoing(packet)
    }

    fn ntp(&mut self) -> Step {
        let servers: Vec<_> = self.policy.ntp.iter().copied().collect();
        if servers.is_empty() {
            return self.anything();
        }
        let server = self.dice.pick(&servers);
        let ports = Ports { from: self.fresh_port(), to: 123 };
        if self.dice.once_in(3) {
            let to = self.own_address(server);
            let mut packet = self.packet(server, to);
            packet.body = Body::Udp(Ports { from: 123, to: ports.from }, vec![0x1c; 48]);
            return self.incoming(packet);
        }
        let from = self.of_family(server);
        let mut packet = self.packet(from, server);
        packet.body = Body::Udp(ports, vec![0x23; 48]);
        self.outgoing(packet)
    }

    fn service_asked(&mut self) -> Step {
        let Some(service) = self.service() else { return self.anything() };
        let from = self.client(&service);
        let to = self.own_address(from);
        let mut packet = self.packet(from, to);
        let ports = Ports { from: self.fresh_port(), to: service.port };
        packet.body = transport(service.protocol, ports);
        self.incoming(packet)
    }

    /// Without the question: a reply only for the egress guard.
    fn service_replies(&mut self) -> Step {
        let Some(service) = self.service() else { return self.anything() };
        let to = self.client(&service);
        let from = self.of_family(to);
        let mut packet = self.packet(from, to);
        let ports = Ports { from: service.port, to: self.fresh_port() };
        packet.body = transport(service.protocol, ports);
        self.outgoing(packet)
    }

    fn local_network(&mut self) -> Step {
        let Some(to) = self.lan_address() else { return self.anything() };
        let from = self.of_family(to);
        let mut packet = self.packet(from, to);
        let ports = Ports {
            from: self.fresh_port(),
            to: self.dice.pick(&[53, 853, 5353, 5355, 52, 54, 852, 854, 5352, 5354, 5356, 80]),
        };
        packet.body = match self.dice.below(4) {
            0 => Body::Tcp(ports),
            1 => self.any_body(packet.ethertype),
            _ => Body::Udp(ports, b"who is".to_vec()),
        };
        if self.dice.once_in(4) {
            packet.source = packet.destination;
            packet.destination = self.own_address(packet.source);
            return self.incoming(packet);
        }
        self.outgoing(packet)
    }

    fn membership(&mut self) -> Step {
        if self.dice.once_in(2) {
            let mut packet = self.packet(address("192.168.1.50"), address("224.0.0.22"));
            packet.destination = self.dice.pick(&["224.0.0.22", "239.1.2.3"].map(address));
            packet.body = Body::Other(IGMP);
            packet.hop_limit = 1;
            return self.outgoing(packet);
        }
        let mut packet = self.packet(address("fe80::50"), address("ff02::16"));
        let kind = self.dice.pick(&[130, 131, 132, 133, 142, 143, 144]);
        packet.body = Body::Icmp(ICMPV6, kind, vec![0; 24]);
        packet.hop_limit = 1;
        self.outgoing(packet)
    }

    fn not_ip(&mut self) -> Step {
        let from = self.of_family(address("10.0.0.1"));
        let to = self.of_family(from);
        let mut packet = self.packet(from, to);
        packet.ethertype = self.dice.pick(&[ARP, ARP, EAPOL, EAPOL - 1, 0x88cc, ARP + 1]);
        packet.body = Body::NotIp;
        if self.dice.once_in(2) {
            packet.source = self.dice.pick(&["10.64.0.2", "10.64.0.3"].map(address));
        }
        let link = if self.dice.once_in(2) { NIC } else { self.link() };
        Step { packet, way: Way::Frame(link), after: None }
    }

    fn loopback(&mut self) -> Step {
        let to = self.dice.pick(&machine_addresses());
        let from = self.of_family(to);
        let mut packet = self.packet(from, to);
        packet.body = self.any_body(packet.ethertype);
        if !to.is_ipv6() && self.dice.once_in(3) {
            // As a foreign translation would leave it (threat 35).
            packet.destination = self.of_family(to);
        }
        Step { packet, way: Way::Sent(LOOPBACK), after: None }
    }

    fn bridge(&mut self) -> Step {
        let from = self.place();
        let to = self.of_family(from);
        let mut packet = self.packet(from, to);
        packet.body = self.any_body(packet.ethertype);
        let link = self.dice.pick(&[BRIDGE, LOOK_ALIKE, PORT, BRIDGE]);
        let way = match self.dice.below(4) {
            0 => {
                packet.destination = self.own_address(packet.source);
                Way::Received(link)
            }
            1 => Way::Frame(link),
            _ => Way::Sent(link),
        };
        Step { packet, way, after: None }
    }

    fn forwarded(&mut self) -> Step {
        let from = match self.dice.once_in(2) {
            true => self.lan_address().unwrap_or(address("172.18.0.2")),
            false => self.place(),
        };
        let to = self.of_family(from);
        let mut packet = self.packet(from, to);
        packet.body = self.transport_body();
        let way = Way::Forwarded(
            self.dice.pick(&[NIC, BRIDGE, BRIDGE, LOOK_ALIKE, TUNNEL]),
            self.dice.pick(&[TUNNEL, TUNNEL, BRIDGE, NIC, LOOK_ALIKE]),
        );
        Step { packet, way, after: None }
    }

    /// As this machine may, by a bridge that could have a NIC.
    fn guest_asks_outside(&mut self) -> Step {
        let asked = if self.dice.once_in(2) { self.lease4() } else { self.ntp() };
        let from = if self.dice.once_in(2) { self.link() } else { BRIDGE };
        Step { way: Way::Forwarded(from, BRIDGE), after: None, ..asked }
    }

    /// About nothing that we ever sent.
    fn icmp_error(&mut self) -> Step {
        let from = self.place();
        let to = self.own_address(from);
        let mut packet = self.packet(from, to);
        let protocol = if packet.ethertype == IPV4 { ICMP } else { ICMPV6 };
        let kind = self.dice.pick(&[0, 1, 2, 3, 4, 5, 8, 11, 12, 128]);
        packet.body = Body::Icmp(protocol, kind, vec![0; 40]);
        self.incoming(packet)
    }

    fn anything(&mut self) -> Step {
        let from = self.place();
        let to = self.of_family(from);
        let mut packet = self.packet(from, to);
        packet.body = self.any_body(packet.ethertype);
        let way = match self.dice.below(3) {
            0 => Way::Sent(self.link()),
            1 => Way::Frame(self.link()),
            _ => {
                packet.destination = self.own_address(packet.source);
                Way::Received(self.link())
            }
        };
        Step { packet, way, after: None }
    }

    /// Two packets of one connection, the second depending on the first.
    fn exchange(&mut self) -> Option<[Step; 2]> {
        match self.dice.below(4) {
            0 => self.service_answers(),
            1 | 2 => self.router_complains(),
            _ => self.client_is_answered(),
        }
    }

    fn service_answers(&mut self) -> Option<[Step; 2]> {
        let service = self.service()?;
        let client = self.client(&service);
        let own = self.own_address(client);
        let near = self.dice.pick(&[service.port, service.port, service.port, service.port + 1]);
        let ports = Ports { from: self.fresh_port(), to: near };
        let mut question = self.packet(client, own);
        question.body = transport(service.protocol, ports);
        let mut answer = self.packet(own, client);
        answer.body = transport(service.protocol, Ports { from: ports.to, to: ports.from });
        answer.history = History::Reply;
        Some([
            Step { packet: question, way: Way::Received(NIC), after: None },
            Step { packet: answer, way: Way::Sent(NIC), after: None },
        ])
    }

    fn router_complains(&mut self) -> Option<[Step; 2]> {
        let mut first = match self.dice.below(4) {
            0 => self.local_network(),
            1 => self.ntp(),
            _ => self.server_asked(),
        };
        let to = first.packet.destination;
        first.packet.source = match to {
            IpAddr::V4(_) => address("192.168.1.50"),
            IpAddr::V6(_) => address("2001:db8:1::50"),
        };
        first.way = Way::Sent(NIC);
        let ports = first.packet.ports()?;
        let protocol = first.packet.protocol()?;
        let router = self.of_family(to);
        let mut error = self.packet(router, first.packet.source);
        let (icmp, kinds) = match to {
            IpAddr::V4(_) => (ICMP, [3, 3, 11, 12, 4, 5]),
            IpAddr::V6(_) => (ICMPV6, [1, 2, 3, 4, 2, 5]),
        };
        error.body = Body::Icmp(icmp, self.dice.pick(&kinds), quoted(&first.packet));
        error.history = History::ErrorAbout(to, protocol, ports.to);
        let link = self.dice.pick(&[NIC, NIC, LOOK_ALIKE]);
        Some([first, Step { packet: error, way: Way::Received(link), after: None }])
    }

    /// A forwarded question, and the answer to it under the translated address.
    fn client_is_answered(&mut self) -> Option<[Step; 2]> {
        let mut first = self.forwarded();
        let from = self.dice.pick(&[NIC, BRIDGE]);
        first.way = Way::Forwarded(from, TUNNEL);
        let ports = first.packet.ports()?;
        let mut answer = self.packet(first.packet.destination, first.packet.source);
        answer.history = History::Reply;
        let back = Ports { from: ports.to, to: ports.from };
        answer.body = match &first.packet.body {
            Body::Tcp(_) => Body::Tcp(back),
            _ => Body::Udp(back, b"answer".to_vec()),
        };
        let to = self.dice.pick(&[from, from, from, BRIDGE, NIC]);
        Some([first, Step { packet: answer, way: Way::Forwarded(TUNNEL, to), after: None }])
    }

    fn spoil(&mut self, step: &mut Step) {
        let packet = &mut step.packet;
        match self.dice.below(12) {
            0 => packet.source = self.of_family(packet.source),
            1 => packet.destination = self.of_family(packet.destination),
            2 => packet.source = shifted(packet.source, self.dice.pick(&[-1, 1])),
            3 => packet.destination = shifted(packet.destination, self.dice.pick(&[-1, 1])),
            4 => packet.hop_limit = self.dice.pick(&[254, 255, 1, 2, 64]),
            5 => packet.mark = self.dice.pick(&[0, self.policy.mark, self.policy.mark ^ 1]),
            6 => step.way = self.other_way(step.way),
            7 => step.way = self.other_way(step.way),
            _ => self.spoil_body(&mut packet.body),
        }
    }

    fn spoil_body(&mut self, body: &mut Body) {
        let near = |dice: &mut Dice, port: u16| {
            let other = dice.pick(&PORTS);
            dice.pick(&[port.wrapping_add(1), port.wrapping_sub(1), other])
        };
        match body {
            Body::Udp(ports, payload) => match self.dice.below(6) {
                0 => ports.from = near(self.dice, ports.from),
                1 => ports.to = near(self.dice, ports.to),
                2 => *ports = Ports { from: ports.to, to: ports.from },
                3 => *body = Body::Tcp(*ports),
                4 => payload.truncate(self.dice.pick(&[0, 1, 3, 4, 239])),
                _ => {
                    let at = self.dice.pick(&[0, 0, 1, 2, 3, 236, 239]);
                    if let Some(byte) = payload.get_mut(at) {
                        *byte = byte.wrapping_add(self.dice.pick(&[1, 255, 4]));
                    }
                }
            },
            Body::Tcp(ports) => match self.dice.below(4) {
                0 => ports.from = near(self.dice, ports.from),
                1 => ports.to = near(self.dice, ports.to),
                2 => *ports = Ports { from: ports.to, to: ports.from },
                _ => *body = Body::Udp(*ports, self.message()),
            },
            Body::Icmp(protocol, kind, _) => match self.dice.once_in(6) {
                true => *protocol = ICMP + ICMPV6 - *protocol,
                false => *kind = kind.wrapping_add(self.dice.pick(&[1, 255])),
            },
            Body::Other(protocol) => *protocol = self.dice.pick(&[1, 2, 3, 253]),
            Body::Cut(_) | Body::NotIp => {}
        }
    }

    fn other_way(&mut self, way: Way) -> Way {
        match way {
            Way::Sent(_) if self.dice.once_in(3) => Way::Frame(self.link()),
            Way::Sent(_) => Way::Sent(self.link()),
            Way::Frame(_) => Way::Frame(self.link()),
            Way::Received(_) => Way::Received(self.link()),
            Way::Forwarded(_, out) if self.dice.once_in(2) => Way::Forwarded(self.link(), out),
            Way::Forwarded(from, _) => Way::Forwarded(from, self.link()),
        }
    }

    fn outgoing(&mut self, packet: Packet) -> Step {
        let link = if self.dice.once_in(5) { self.link() } else { NIC };
        let way = if self.dice.once_in(4) { Way::Frame(link) } else { Way::Sent(link) };
        Step { packet, way, after: None }
    }

    fn incoming(&mut self, packet: Packet) -> Step {
        let link = if self.dice.once_in(5) { self.link() } else { NIC };
        Step { packet, way: Way::Received(link), after: None }
    }

    fn packet(&mut self, source: IpAddr, destination: IpAddr) -> Packet {
        let ethertype = if source.is_ipv4() { IPV4 } else { IPV6 };
        let (hop_limit, mark) = (64, 0);
        let (body, history) = (Body::Other(253), History::None);
        Packet { ethertype, source, destination, hop_limit, body, mark, history }
    }

    fn any_body(&mut self, ethertype: u16) -> Body {
        match self.dice.below(5) {
            0 => Body::Icmp(if ethertype == IPV4 { ICMP } else { ICMPV6 }, 8, vec![0; 12]),
            1 if self.dice.once_in(3) => Body::Cut(self.dice.pick(&[TCP, UDP])),
            1 => Body::Other(self.dice.pick(&[253, IGMP, 132])),
            _ => self.transport_body(),
        }
    }

    fn transport_body(&mut self) -> Body {
        let to = match self.dice.once_in(2) {
            true => self.dice.pick(&PORTS),
            false => self.fresh_port(),
        };
        let ports = Ports { from: self.fresh_port(), to };
        match self.dice.pick(&[TCP, UDP]) {
            TCP => Body::Tcp(ports),
            _ => Body::Udp(ports, self.message()),
        }
    }

    fn message(&mut self) -> Vec<u8> {
        let kind = self.dice.pick(&[0, 1, 1, 2, 3, 4, 4, 5]);
        [&[kind, 0, 0, 0][..], &[0x5a; 28]].concat()
    }

    fn place(&mut self) -> IpAddr {
        self.dice.pick(&self.places)
    }

    fn of_family(&mut self, like: IpAddr) -> IpAddr {
        let places: Vec<_> =
            self.places.iter().copied().filter(|it| it.is_ipv4() == like.is_ipv4()).collect();
        self.dice.pick(&places)
    }

    fn own_address(&mut self, like: IpAddr) -> IpAddr {
        let of_family = |it: &IpAddr| it.is_ipv4() == like.is_ipv4() && !it.is_loopback();
        let own: Vec<_> = machine_addresses().into_iter().filter(of_family).collect();
        self.dice.pick(&own)
    }

    fn tunnel_address(&mut self) -> IpAddr {
        let own: Vec<_> = self.policy.tunnel.iter().flat_map(|it| &it.addresses).copied().collect();
        if own.is_empty() { self.place() } else { self.dice.pick(&own) }
    }

    fn lan_address(&mut self) -> Option<IpAddr> {
        if self.policy.lan.is_empty() {
            return None;
        }
        let net = self.dice.pick(&self.policy.lan);
        let mut inside = vec![net.network(), net.broadcast(), shifted(net.network(), 2)];
        inside.extend(self.policy.lan_dns.iter().filter(|it| net.contains(*it)));
        Some(self.dice.pick(&inside))
    }

    fn client(&mut self, service: &Inbound) -> IpAddr {
        let net = service.from;
        let inside = [shifted(net.network(), 9), shifted(net.broadcast(), -9), net.network()];
        let one = self.dice.pick(&inside);
        if self.dice.once_in(6) { shifted(one, -1) } else { one }
    }

    fn server(&mut self) -> Option<Server> {
        let servers: Vec<_> = self.policy.servers.iter().copied().collect();
        (!servers.is_empty()).then(|| self.dice.pick(&servers))
    }

    fn service(&mut self) -> Option<Inbound> {
        let services: Vec<_> = self.policy.inbound.iter().cloned().collect();
        (!services.is_empty()).then(|| self.dice.pick(&services))
    }

    fn link(&mut self) -> Link {
        self.dice.pick(self.links)
    }

    fn fresh_port(&mut self) -> u16 {
        20000 + self.dice.below(40000) as u16
    }
}

fn transport(protocol: Protocol, ports: Ports) -> Body {
    match protocol {
        Protocol::Tcp => Body::Tcp(ports),
        Protocol::Udp => Body::Udp(ports, b"datagram".to_vec()),
    }
}

/// RFC 2131, 2: `op`, up to the cookie, and the end option.
fn dhcp(op: u8) -> Vec<u8> {
    let mut message = vec![0; 300];
    message[0] = op;
    message[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    message[240] = 255;
    message
}

/// What an ICMP error holds after its first four bytes: four more, then the packet.
fn quoted(packet: &Packet) -> Vec<u8> {
    let mut rest = vec![0, 0, 5, 0];
    rest.extend(crate::wire::datagram(packet, 1, 0));
    rest.truncate(200);
    rest
}
