//! Random policies whose sets lie close to each other.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use killswitch::dice::Dice;
use killswitch::policy::{Inbound, LinkPattern, MessageShape, Policy, Protocol, Server, Tunnel};

use crate::packet::address;

pub const PORTS: [u16; 6] = [51820, 51821, 443, 53, 22, 123];

const LAN: [&str; 8] = [
    "192.168.1.0/24",
    "192.168.2.0/25",
    "192.168.0.0/16",
    "10.0.0.0/24",
    "172.16.5.0/30",
    "fd00:1::/64",
    "fd00:1:0:1::/64",
    "2001:db8:1::/64",
];
const SERVERS: [&str; 6] = [
    "198.51.100.7",
    "198.51.100.8",
    "192.168.1.77",
    "2001:db8:b::7",
    "2001:db8:b::8",
    "fd00:1::77",
];
const NTP: [&str; 4] = ["192.0.2.123", "198.51.100.7", "2001:db8:c::123", "2001:db8:b::7"];
const CLIENTS: [&str; 7] = [
    "192.168.1.0/24",
    "192.168.0.0/16",
    "203.0.113.128/25",
    "198.51.100.7/32",
    "0.0.0.0/0",
    "2001:db8:1::/64",
    "2001:db8::/32",
];
/// Of each family that is there, the address that the real link has: the kernel translates to it.
const TUNNEL_ADDRESSES: [&[&str]; 6] = [
    &["10.64.0.2"],
    &["fd00:64::2"],
    &["10.64.0.2", "fd00:64::2"],
    &["10.64.0.2", "10.64.0.3", "fd00:64::2", "fd00:64::3"],
    &["fd00:64::2", "fd00:64::3"],
    &["10.64.0.2", "10.64.0.3"],
];

pub fn policy(dice: &mut Dice) -> Policy {
    let lan = IpNet::aggregate(&dice.some::<_, Vec<_>>(&LAN.map(|it| it.parse().expect("a net"))));
    let lan_dns = if lan.is_empty() { BTreeSet::new() } else { lan_dns(dice, &lan) };
    Policy {
        mark: dice.pick(&[0x6b73, 0x6b73, 1, 0x8000_0000]),
        tunnel: (!dice.once_in(8)).then(|| tunnel(dice)),
        servers: (0..dice.below(6)).map(|_| server(dice)).collect(),
        dhcp: !dice.once_in(3),
        lan,
        lan_dns,
        ntp: dice.some(&NTP.map(address)),
        inbound: (0..dice.below(7)).map(|_| inbound(dice)).collect(),
        internal: dice.some(&[exact("br-int"), prefix("br-"), exact("br-fake"), prefix("vnet")]),
        internal_ports: dice.some(&[exact("vnet0"), prefix("vn"), prefix("br-")]),
        forward_into_tunnel: dice.once_in(2),
        egress_guard: !dice.once_in(4),
        routing_guard: dice.once_in(2),
    }
}

fn exact(name: &str) -> LinkPattern {
    LinkPattern::Exact(name.into())
}

fn prefix(start: &str) -> LinkPattern {
    LinkPattern::Prefix(start.into())
}

fn tunnel(dice: &mut Dice) -> Tunnel {
    let kinds = [&["tun"][..], &["tun", "wireguard"], &["wireguard"], &["tun"]];
    let addresses = dice.pick(&TUNNEL_ADDRESSES);
    Tunnel {
        interface: dice.pick(&["wg0", "wg0", "wg0", "wg0", "wg", "nic"]).into(),
        kinds: dice.pick(&kinds).iter().copied().collect(),
        addresses: addresses.iter().map(|it| address(it)).collect(),
    }
}

fn server(dice: &mut Dice) -> Server {
    let shape = dice.pick(&[MessageShape::Wireguard, MessageShape::Any]);
    // A WireGuard server is asked over UDP: anything else is refused in the configuration.
    let protocol = match shape {
        MessageShape::Wireguard => Protocol::Udp,
        MessageShape::Any => dice.pick(&[Protocol::Udp, Protocol::Tcp]),
    };
    let endpoint = (address(dice.pick(&SERVERS)), dice.pick(&PORTS[..4])).into();
    Server { endpoint, protocol, shape }
}

fn inbound(dice: &mut Dice) -> Inbound {
    Inbound {
        protocol: dice.pick(&[Protocol::Udp, Protocol::Tcp]),
        port: dice.pick(&PORTS[2..5]),
        from: dice.pick(&CLIENTS).parse().expect("a net"),
    }
}

fn lan_dns(dice: &mut Dice, lan: &[IpNet]) -> BTreeSet<IpAddr> {
    let resolvers = ["192.168.1.1", "192.168.1.77", "172.16.5.1", "fd00:1::1", "2001:db8:1::1"];
    let inside = resolvers.map(address).into_iter().filter(|it| lan.iter().any(|n| n.contains(it)));
    dice.some(&inside.collect::<Vec<_>>())
}
