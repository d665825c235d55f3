//! Whether the values of a configuration make sense together.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::draft::{Draft, ServerDraft, TunnelDraft};
use super::fields::Problems;
use super::source::Placed;
use super::text::quote;
use super::value::Complaint;
use super::{LinkPattern, MessageShape, Protocol, SMALLEST_MTU_V6, TunnelKind};

/// Notes everything that contradicts something else or is missing.
pub(super) fn check(draft: &Draft, problems: &Problems) {
    check_tunnel(&draft.tunnel, problems);
    check_servers(draft, problems);
    check_lan(draft, problems);
    check_ntp(draft, problems);
    check_internal(draft, problems);
}

fn check_tunnel(tunnel: &TunnelDraft, problems: &Problems) {
    let missing = |key: &str, help: &str| {
        problems.add(tunnel.place.with_key(key).problem("missing").help(help));
    };
    let addresses = tunnel.addresses.as_ref();
    match addresses {
        Some(addresses) if addresses.value.is_empty() => {
            problems.add(addresses.place.problem("the tunnel needs an address of its own"));
        }
        Some(_) => {}
        None => missing(
            "tunnel.addresses",
            "write the tunnel's own addresses, e.g. addresses = [\"10.64.0.2/32\"], or name a \
             wg-quick file that has them:\nconfig = \"/etc/wireguard/wg0.conf\"",
        ),
    }
    let addresses = addresses.map_or(&[][..], |addresses| &addresses.value);
    check_addresses(addresses, problems);
    if let Some(mtu) = tunnel.mtu.as_ref().filter(|mtu| mtu.value < SMALLEST_MTU_V6)
        && addresses.iter().any(|address| matches!(address.value, IpNet::V6(_)))
    {
        let message = format!("{} is too small for IPv6 (RFC 8200, section 5)", mtu.value);
        problems.add(mtu.place.problem(message).help(format!("write at least {SMALLEST_MTU_V6}")));
    }
    if tunnel.interface.is_none() && tunnel.config.is_none() {
        missing(
            "tunnel.interface",
            "write the name of the tunnel's link, e.g. interface = \"wg0\"",
        );
    }
    match tunnel.kind {
        TunnelKind::Wireguard if tunnel.private_key.is_none() => missing(
            "tunnel.private_key_file",
            "name a file of mode 0600 that holds the private key, or a wg-quick file that has it",
        ),
        TunnelKind::External => refuse_keys_of_external(tunnel, problems),
        TunnelKind::Wireguard => {}
    }
}

fn refuse_keys_of_external(tunnel: &TunnelDraft, problems: &Problems) {
    if let Some(file) = &tunnel.private_key_file {
        let problem = file.place.problem("of no use with kind = \"external\"");
        problems.add(problem.help("leave the key to the program that brings the tunnel up"));
    }
}

fn check_addresses(addresses: &[Placed<IpNet>], problems: &Problems) {
    let mut firsts: BTreeMap<IpAddr, &Placed<IpNet>> = BTreeMap::new();
    for address in addresses {
        let first = *firsts.entry(address.value.addr()).or_insert(address);
        if !std::ptr::eq(first, address) {
            let message = format!("given twice; the first is at {}", first.place.line());
            problems.add(address.place.problem(message));
        }
    }
}

fn check_servers(draft: &Draft, problems: &Problems) {
    if draft.servers.is_empty() {
        problems.add(
            draft
                .tunnel
                .place
                .with_key("server")
                .problem("no server")
                .help("write a [[server]], or name a wg-quick file that has a [Peer]"),
        );
    }
    let mut names: BTreeMap<&str, &Placed<String>> = BTreeMap::new();
    let mut endpoints: BTreeMap<(SocketAddr, Protocol), &Placed<SocketAddr>> = BTreeMap::new();
    for server in &draft.servers {
        check_server(server, draft.tunnel.kind, problems);
        if let Some(name) = &server.name
            && let Some(first) = names.insert(&name.value, name)
        {
            let first = first.place.line();
            let message = format!("{} is also the server at {first}", quote(&name.value));
            problems.add(name.place.problem(message).help("give each server a name of its own"));
        }
        let protocol = protocol(server);
        for endpoint in server.endpoints.iter().flat_map(|endpoints| &endpoints.value) {
            if let Some(first) = endpoints.insert((endpoint.value, protocol), endpoint) {
                let first = first.place.line();
                let message = format!("{} is also the endpoint at {first}", endpoint.value);
                problems.add(endpoint.place.problem(message).help("keep one of them"));
            }
        }
    }
}

pub(super) fn protocol(server: &ServerDraft) -> Protocol {
    server.protocol.as_ref().map_or(Protocol::Udp, |protocol| protocol.value)
}

fn check_server(server: &ServerDraft, kind: TunnelKind, problems: &Problems) {
    let missing = |key: &str, help: &str| {
        problems.add(server.place.problem(format!("{key} is missing")).help(help));
    };
    if server.name.is_none() {
        missing("name", "write e.g. name = \"se-sto-1\"");
    }
    match &server.endpoints {
        None => missing(
            "the endpoint",
            "write where the server listens, e.g. endpoints = [\"198.51.100.7:51820\"]\n\
             (in a wg-quick file: Endpoint = 198.51.100.7:51820)",
        ),
        Some(endpoints) if endpoints.value.is_empty() => {
            problems.add(endpoints.place.problem("the server needs an endpoint"));
        }
        Some(_) => {}
    }
    if let Some(networks) = server.allowed_ips.as_ref().filter(|list| list.value.is_empty()) {
        let problem = networks.place.problem("nothing would be sent to this server");
        problems.add(problem.help("leave it out for all traffic"));
    }
    check_transport(server, kind, problems);
    match (kind, &server.public_key, &server.preshared_key_file) {
        (TunnelKind::Wireguard, None, _) => missing("the public key", "the provider tells it"),
        (TunnelKind::External, _, Some(file)) => {
            problems.add(file.place.problem("of no use with kind = \"external\""));
        }
        _ => {}
    }
}

fn check_transport(server: &ServerDraft, kind: TunnelKind, problems: &Problems) {
    let Some(tcp) = server.protocol.as_ref().filter(|given| given.value == Protocol::Tcp) else {
        return;
    };
    if kind == TunnelKind::Wireguard {
        let problem = tcp.place.problem("WireGuard speaks UDP only");
        problems.add(problem.help("TCP is for kind = \"external\""));
    } else if let Some(shape) = &server.message_shape
        && shape.value == MessageShape::Wireguard
    {
        problems.add(shape.place.problem("WireGuard messages do not travel over TCP"));
    }
}

fn check_ntp(draft: &Draft, problems: &Problems) {
    let servers = draft.servers.iter().filter_map(|server| server.endpoints.as_ref());
    let servers: Vec<_> = servers.flat_map(|it| &it.value).map(|it| it.value.ip()).collect();
    for server in draft.allow.ntp.iter().filter(|it| servers.contains(&it.value)) {
        problems.add(
            server
                .place
                .problem(ntp_at_server(server.value))
                .help("ask it through the tunnel, or another"),
        );
    }
}

/// What an NTP server at a VPN server's address would open.
pub(super) fn ntp_at_server(address: IpAddr) -> String {
    format!("{address} is a VPN server's address, to which nothing may leave in clear")
}

fn check_lan(draft: &Draft, problems: &Problems) {
    for lan in &draft.allow.lan {
        let addresses = draft.tunnel.addresses.iter().flat_map(|addresses| &addresses.value);
        let endpoints = draft.servers.iter().filter_map(|server| server.endpoints.as_ref());
        let endpoints = endpoints.flat_map(|endpoints| &endpoints.value);
        let complaints =
            not_local(&lan.value, addresses.map(with_place), endpoints.map(with_place));
        for complaint in complaints {
            problems.add(complaint.at(&lan.place));
        }
    }
    for resolver in &draft.allow.lan_dns {
        if !draft.allow.lan.iter().any(|lan| lan.value.contains(&resolver.value)) {
            let message = format!("{} is in no network of allow.lan", resolver.value);
            problems.add(resolver.place.problem(message).help("add its network to allow.lan"));
        }
    }
}

fn with_place<T: Copy>(placed: &Placed<T>) -> (T, String) {
    (placed.value, format!(" at {}", placed.place.line()))
}

/// What keeps a network from being a local one beside this tunnel and these servers. Each of them
/// comes with the words for its place, if it has one.
pub(super) fn not_local(
    lan: &IpNet,
    addresses: impl IntoIterator<Item = (IpNet, String)>,
    endpoints: impl IntoIterator<Item = (SocketAddr, String)>,
) -> Vec<Complaint> {
    let overlaps = |net: IpNet| lan.contains(&net) || net.contains(lan);
    let mut complaints = Vec::new();
    let address = addresses.into_iter().find(|(address, _)| overlaps(address.trunc()));
    if let Some((address, place)) = address {
        let complaint =
            Complaint::new(format!("{lan} overlaps {address}, the tunnel's own address{place}"));
        complaints.push(complaint.help(
            "packets with the tunnel's addresses must never be sent outside of it;\n\
             name a smaller network that leaves them out",
        ));
    }
    let endpoint = endpoints.into_iter().find(|(endpoint, _)| lan.contains(&endpoint.ip()));
    if let Some((endpoint, place)) = endpoint {
        let complaint = Complaint::new(format!("{lan} contains the server {endpoint}{place}"));
        complaints.push(complaint.help(
            "any program could then talk to the server's address outside of the tunnel;\n\
             name a smaller network that leaves it out",
        ));
    }
    complaints
}

fn check_internal(draft: &Draft, problems: &Problems) {
    let Some(interface) = &draft.tunnel.interface else { return };
    for pattern in draft.allow.internal.iter().chain(&draft.allow.internal_ports) {
        let matches = match &pattern.value {
            LinkPattern::Exact(name) => *name == interface.value,
            LinkPattern::Prefix(prefix) => interface.value.starts_with(prefix),
        };
        if matches {
            let message = format!("also names the tunnel, {}", quote(&interface.value));
            problems.add(pattern.place.problem(message).help("name the bridges only"));
        }
    }
}
