//! The named sets: what changes with the configuration's lists, while the rules stay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::super::{Element, Family, Set, ValueKind};
use super::Build;
use super::words::*;
use crate::policy::{MessageShape, NAME_SERVICE_PORTS};

impl Build<'_> {
    pub(super) fn sets(&self) -> Vec<Set> {
        let mut sets = Vec::new();
        for ip in BOTH {
            let (host, port) = (ip.kind(), ValueKind::Port);
            let protocol = ValueKind::Protocol;
            let tunnel = self.policy.tunnel.iter().flat_map(|tunnel| &tunnel.addresses);
            sets.push(values(ip.set("tunnel"), vec![host], ip.select(tunnel)));
            sets.push(values(ip.set("wireguard"), vec![host, port], self.wireguard(ip)));
            sets.push(values(ip.set("server"), vec![host, protocol, port], self.other(ip)));
            if self.family == Family::Netdev {
                sets.push(values(
                    ip.set("server_host"),
                    vec![host, protocol],
                    self.server_hosts(ip),
                ));
            }
            sets.push(values(ip.set("ntp"), vec![host], ip.select(&self.policy.ntp)));
            sets.push(values(ip.set("lan_dns"), vec![host], ip.select(&self.policy.lan_dns)));
            sets.push(Set {
                name: ip.set("lan"),
                key: vec![host],
                interval: true,
                elements: ranges(self.policy.lan.iter().filter(|net| ip.has(net.addr()))),
            });
            sets.push(Set {
                name: ip.set("inbound"),
                key: vec![host, protocol, port],
                interval: true,
                elements: self.inbound(ip),
            });
        }
        sets.extend(self.constant_sets());
        sets.retain(|set| !set.elements.is_empty());
        sets
    }

    pub(super) fn constant_sets(&self) -> Vec<Set> {
        let mut sets = Vec::new();
        if self.policy.tunnel.is_some() {
            sets.push(Set {
                name: "link_scope6".into(),
                key: vec![ValueKind::Ipv6],
                interval: true,
                elements: ranges(&[
                    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)),
                    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0), 16)),
                ]),
            });
        }
        if self.policy.tunnel.is_some() && self.policy.dhcp {
            sets.push(Set {
                name: "lease_servers".into(),
                key: vec![ValueKind::Ipv4],
                interval: true,
                elements: ranges(&[
                    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8)),
                    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16)),
                    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12)),
                    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16)),
                ]),
            });
        }
        if !self.policy.lan.is_empty() {
            let elements = [TCP, UDP]
                .into_iter()
                .flat_map(|protocol| {
                    NAME_SERVICE_PORTS.map(|port| joined([&[protocol][..], &port.to_be_bytes()]))
                })
                .collect();
            sets.push(values(
                "name_services".into(),
                vec![ValueKind::Protocol, ValueKind::Port],
                elements,
            ));
        }
        sets
    }

    pub(super) fn wireguard(&self, ip: Ip) -> Vec<Vec<u8>> {
        self.policy
            .servers
            .iter()
            .filter(|server| server.shape == MessageShape::Wireguard)
            .filter(|server| ip.has(server.endpoint.ip()))
            .map(|server| {
                let port = server.endpoint.port().to_be_bytes();
                joined([&octets(server.endpoint.ip())[..], &port])
            })
            .collect()
    }

    pub(super) fn other(&self, ip: Ip) -> Vec<Vec<u8>> {
        self.policy
            .servers
            .iter()
            .filter(|server| server.shape == MessageShape::Any)
            .filter(|server| ip.has(server.endpoint.ip()))
            .map(|server| {
                let port = server.endpoint.port().to_be_bytes();
                joined([&octets(server.endpoint.ip())[..], &[server.protocol.number()], &port])
            })
            .collect()
    }

    pub(super) fn server_hosts(&self, ip: Ip) -> Vec<Vec<u8>> {
        self.policy
            .servers
            .iter()
            .filter(|server| ip.has(server.endpoint.ip()))
            .map(|server| joined([&octets(server.endpoint.ip())[..], &[server.protocol.number()]]))
            .collect()
    }

    pub(super) fn inbound(&self, ip: Ip) -> Vec<Element> {
        let mut elements: Vec<Element> = disjoint(
            self.policy.inbound.iter().filter(|service| ip.has(service.from.addr())).collect(),
        )
        .into_iter()
        .map(|service| {
            let rest = [service.protocol.number()];
            let port = service.port.to_be_bytes();
            let edge = |address: IpAddr| joined([&octets(address)[..], &rest, &port]);
            Element { first: edge(service.from.network()), last: edge(service.from.broadcast()) }
        })
        .collect();
        elements.sort();
        elements
    }
}

/// A concatenation: each part begins on a register of four bytes.
fn joined<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn values(name: String, key: Vec<ValueKind>, values: Vec<Vec<u8>>) -> Set {
    let mut elements: Vec<Element> =
        values.into_iter().map(|value| Element { last: value.clone(), first: value }).collect();
    elements.sort();
    elements.dedup();
    Set { name, key, interval: false, elements }
}

/// Neighbouring prefixes become one range: the kernel's tree holds ranges, and so does the listing.
fn ranges<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> Vec<Element> {
    let mut elements: Vec<Element> = nets
        .into_iter()
        .map(|net| Element { first: octets(net.network()), last: octets(net.broadcast()) })
        .collect();
    elements.sort();
    let mut merged: Vec<Element> = Vec::new();
    for element in elements {
        match merged.last_mut() {
            Some(before) if element.first <= successor(&before.last) => {
                before.last = before.last.clone().max(element.last);
            }
            _ => merged.push(element),
        }
    }
    merged
}

/// The next address; the last one is its own successor.
pub(crate) fn successor(value: &[u8]) -> Vec<u8> {
    let mut next = value.to_vec();
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return next;
        }
    }
    value.to_vec()
}

/// Drops services that a wider network already allows: a set refuses overlapping ranges.
fn disjoint(services: Vec<&crate::policy::Inbound>) -> Vec<&crate::policy::Inbound> {
    services
        .iter()
        .filter(|service| {
            !services.iter().any(|other| {
                other != *service
                    && other.protocol == service.protocol
                    && other.port == service.port
                    && other.from.contains(&service.from)
            })
        })
        .copied()
        .collect()
}
