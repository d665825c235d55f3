//! Legal but unwise.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Config, Inbound, MessageShape, Notice, Protocol, Server};

/// Everything that a careful administrator should know of before using the configuration: what it
/// weakens, and why. The notices of the reading itself ([`Config::notices`]) are not repeated.
pub fn warnings(config: &Config) -> Vec<Notice> {
    let mut notes = Notes { config, notices: Vec::new() };
    lock(&mut notes);
    tunnel(&mut notes);
    servers(&mut notes);
    allow(&mut notes);
    notes.notices
}

struct Notes<'a> {
    config: &'a Config,
    notices: Vec<Notice>,
}

impl Notes<'_> {
    fn add(&mut self, key: &str, message: impl Into<String>) {
        let location = self.config.places.of(key);
        self.notices.push(Notice { location, message: format!("{key}: {}", message.into()) });
    }
}

fn lock(notes: &mut Notes<'_>) {
    if !notes.config.lock.at_boot {
        notes.add(
            "lock.at_boot",
            "not locked before the network comes up: traffic leaves in clear until the daemon starts",
        );
    }
    if !notes.config.lock.egress_guard {
        notes.add(
            "lock.egress_guard",
            "without the egress guard, programs with raw sockets, bridged guests and macvlan links \
             are not held back",
        );
    }
}

fn tunnel(notes: &mut Notes<'_>) {
    let tunnel = &notes.config.tunnel;
    if !tunnel.addresses.iter().any(|address| matches!(address, IpNet::V6(_))) {
        notes.add("tunnel.addresses", "no IPv6 address: all IPv6 traffic is dropped");
    }
    if !tunnel.addresses.iter().any(|address| matches!(address, IpNet::V4(_))) {
        notes.add("tunnel.addresses", "no IPv4 address: all IPv4 traffic is dropped");
    }
    if tunnel.dns.is_empty() && tunnel.is_managed() {
        notes.add(
            "tunnel.dns",
            "no resolver: names are looked up only if the one already configured can be reached \
             through the tunnel",
        );
    }
    for (index, resolver) in tunnel.dns.iter().enumerate() {
        if notes.config.allow.lan.iter().any(|lan| lan.contains(resolver)) {
            let message = format!(
                "{resolver} lies in allow.lan: routes may lead to the LAN, where it is not asked"
            );
            notes.add(&format!("tunnel.dns[{index}]"), message);
        }
    }
    if !tunnel.is_managed() {
        let message = format!(
            "the program that brings {} up must set the mark {:#x} on its outer packets (FwMark \
             in a wg-quick file), or they are dropped",
            tunnel.interface, tunnel.mark
        );
        notes.add("tunnel.kind", message);
    }
}

fn servers(notes: &mut Notes<'_>) {
    let config = notes.config;
    for (index, server) in config.servers.iter().enumerate() {
        let key = |name: &str| format!("server[{index}].{name}");
        let name = &server.name;
        if server.message_shape == MessageShape::Any && config.tunnel.is_managed() {
            notes.add(
                &key("message_shape"),
                format!("any program's datagrams may reach {name} in clear, if they bear the mark"),
            );
        }
        for (family, everything) in
            [("IPv4", IpNet::V4(Ipv4Net::default())), ("IPv6", IpNet::V6(Ipv6Net::default()))]
        {
            let has_address = config
                .tunnel
                .addresses
                .iter()
                .any(|address| address.addr().is_ipv4() == everything.addr().is_ipv4());
            if has_address && !covers(server, &everything) {
                let message = format!(
                    "{name} does not take all {family} traffic: the rest is dropped, not sent in \
                     clear"
                );
                notes.add(&key("allowed_ips"), message);
            }
        }
    }
    if let [only] = &config.servers[..]
        && only.endpoints.len() == 1
    {
        notes.add(
            "server[0].endpoints",
            "a single endpoint: when it cannot be reached, there is nothing else to try",
        );
    }
}

fn covers(server: &Server, everything: &IpNet) -> bool {
    IpNet::aggregate(&server.allowed_ips).contains(everything)
}

fn allow(notes: &mut Notes<'_>) {
    let allow = &notes.config.allow;
    if !allow.dhcp {
        notes.add("allow.dhcp", "no DHCP and no router solicitations: links need static addresses");
    }
    for (index, lan) in allow.lan.iter().enumerate().filter(|(_, lan)| !is_private(lan)) {
        let message = format!(
            "{lan} is not a private network: a hostile access point can hand out such addresses \
             and see all traffic to them in clear"
        );
        notes.add(&format!("allow.lan[{index}]"), message);
    }
    if !notes.config.tunnel.is_managed() && !allow.lan.is_empty() {
        notes.add(
            "allow.lan",
            "an external tunnel has no routing guard: addresses of these networks that lie behind \
             the gateway, not on the link, are reached in clear as well",
        );
    }
    for (index, resolver) in allow.lan_dns.iter().enumerate() {
        let message =
            format!("{resolver} and everyone on the LAN can see the names it is asked for");
        notes.add(&format!("allow.lan_dns[{index}]"), message);
    }
    for (index, server) in allow.ntp.iter().enumerate() {
        if !is_private(&IpNet::from(*server)) {
            let message = format!(
                "{server} is asked for the time in clear, outside of the tunnel: it and everyone \
                 on the way see this machine's address and can forge the answer"
            );
            notes.add(&format!("allow.ntp[{index}]"), message);
        }
    }
    for (port, everything) in open_to_all(&allow.inbound) {
        let message = format!(
            "port {port} is open to every address ({everything}), and its replies leave in clear"
        );
        notes.add("allow.inbound", message);
    }
}

/// The ports whose networks, together, are a whole address family.
fn open_to_all(inbound: &[Inbound]) -> Vec<(u16, IpNet)> {
    let mut from: BTreeMap<(Protocol, u16), Vec<IpNet>> = BTreeMap::new();
    for service in inbound {
        from.entry((service.protocol, service.port)).or_default().push(service.from);
    }
    let all = from.into_iter().flat_map(|((_, port), networks)| {
        IpNet::aggregate(&networks).into_iter().map(move |network| (port, network))
    });
    all.filter(|(_, network)| network.prefix_len() == 0).collect()
}

/// RFC 1918, RFC 3927, RFC 4193 and link-local IPv6.
fn is_private(network: &IpNet) -> bool {
    let prefix_at_least = |length: u8| network.prefix_len() >= length;
    match network.network() {
        IpAddr::V4(start) => {
            let [first, second, ..] = start.octets();
            (first == 10 && prefix_at_least(8))
                || (first == 172 && second & 0xf0 == 16 && prefix_at_least(12))
                || (start.octets()[..2] == [192, 168] && prefix_at_least(16))
                || (start.is_link_local() && prefix_at_least(16))
        }
        IpAddr::V6(start) => {
            (start.is_unique_local() && prefix_at_least(7))
                || (start.is_unicast_link_local() && prefix_at_least(10))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_networks() {
        let private = |text: &str| is_private(&text.parse().unwrap());
        for text in ["10.0.0.0/8", "172.16.0.0/12", "192.168.1.0/24", "169.254.0.0/16", "fc00::/7"]
        {
            assert!(private(text), "{text}");
        }
        for text in
            ["172.32.0.0/16", "172.0.0.0/8", "192.0.0.0/8", "100.64.0.0/10", "2001:db8::/32"]
        {
            assert!(!private(text), "{text}");
        }
    }
}
