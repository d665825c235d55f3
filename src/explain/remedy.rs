//! What to add to the configuration so that a packet passes; the narrowest that the model says suffices.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::{Direction, layers, passes};
use crate::config::Config;
use crate::policy::{
    Exception, GUEST_KINDS, Inbound, LinkPattern, NAME_SERVICE_PORTS, Policy, Protocol,
};
use crate::ruleset::model::Packet;

/// What lets the packet pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// Keys to set or lists to add to; all of them.
    pub add: Vec<Addition>,
    /// The command that does the same for a while, where one does.
    pub exception: Option<String>,
    /// What that costs, in a sentence.
    pub risk: String,
}

/// One key to set, or one item to add to a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Addition {
    /// The key, e.g. "allow.lan".
    pub key: String,
    /// Whether `value` is an item to add to the list; otherwise it takes the value's place.
    pub item: bool,
    /// In TOML.
    pub value: String,
    /// Where the key is written, as FILE:LINE; none where it is to be written anew.
    pub place: Option<String>,
}

/// What could be opened, part by part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Change {
    dhcp: bool,
    lan: Option<IpNet>,
    lan_dns: Option<IpAddr>,
    ntp: Option<IpAddr>,
    inbound: Option<Inbound>,
    internal: Vec<String>,
    port: Option<String>,
    forward: bool,
}

/// The first change that suffices, or why there is none.
pub(super) fn find(
    packet: &Packet,
    direction: Direction,
    policy: &Policy,
    config: Option<&Config>,
) -> Result<Remedy, String> {
    let Some(config) = config else {
        return Err("mend the configuration first: `killswitch check` says what is wrong".into());
    };
    let suffices = |change: &Change| {
        change.is_valid(config) && passes(&change.applied(policy), packet, direction)
    };
    match candidates(packet, direction).into_iter().find(suffices) {
        Some(change) => Ok(change.remedy(config)),
        None => Err(why_not(packet, direction, policy)),
    }
}

/// From narrow to wide.
fn candidates(packet: &Packet, direction: Direction) -> Vec<Change> {
    let none = Change::default;
    let peer = direction.peer(packet);
    let mut changes = vec![Change { dhcp: true, ..none() }];
    if packet.ethertype != 0x0806 {
        changes.push(Change { ntp: Some(peer), ..none() });
    }
    changes.extend(service(packet, direction).map(|it| Change { inbound: Some(it), ..none() }));
    if is_local(peer) {
        let lan = Some(IpNet::from(peer));
        changes.push(Change { lan_dns: Some(peer), ..none() });
        changes.push(Change { lan, ..none() });
        changes.push(Change { lan, lan_dns: Some(peer), ..none() });
    }
    if is_membership(packet) && is_local(packet.source) {
        changes.push(Change { lan: Some(packet.source.into()), ..none() });
    }
    match direction {
        Direction::Forwarded => changes.extend(forwarding(packet)),
        _ => changes.extend(bridges(packet, direction)),
    }
    changes
}

/// What lets it into the tunnel, and whom: internal bridges, clients in the LAN.
fn forwarding(packet: &Packet) -> Vec<Change> {
    let ends = [packet.source, packet.destination].into_iter().filter(|it| is_local(*it));
    let clients: Vec<Option<IpNet>> =
        std::iter::once(None).chain(ends.map(|it| Some(it.into()))).collect();
    let mut from = vec![Change::default()];
    from.extend(bridges(packet, Direction::Forwarded));
    let mut changes = Vec::new();
    for lan in clients {
        for forward in [false, true] {
            changes.extend(from.iter().map(|it| Change { lan, forward, ..it.clone() }));
        }
    }
    changes
}

/// The service that the packet asks or answers. Of a frame nobody knows a connection.
fn service(packet: &Packet, direction: Direction) -> Option<Inbound> {
    let protocol = match packet.protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    let answers = packet.connection.is_some_and(|it| it.reply);
    let (sport, dport) = packet.ports?;
    let port = match direction {
        Direction::Received => dport,
        Direction::Sent | Direction::Frame if answers => sport,
        _ => return None,
    };
    (port != 0).then(|| Inbound { protocol, port, from: direction.peer(packet).into() })
}

fn bridges(packet: &Packet, direction: Direction) -> Vec<Change> {
    let of_kind = |link: Option<&crate::ruleset::model::LinkView>, kinds: &[&str]| {
        link.filter(|it| it.kind.as_deref().is_some_and(|kind| kinds.contains(&kind)))
            .map(|it| it.name.clone())
    };
    let into = of_kind(packet.iif.as_ref(), &["bridge"]);
    let out = of_kind(packet.oif.as_ref(), &["bridge"]);
    let internal = |names: Vec<String>| Change { internal: names, ..Change::default() };
    let mut changes: Vec<Change> =
        [&into, &out].into_iter().flatten().map(|it| internal(vec![it.clone()])).collect();
    if let (Some(into), Some(out)) = (into, out) {
        changes.push(internal(vec![into, out]));
    }
    if direction == Direction::Frame {
        let port = of_kind(packet.oif.as_ref(), &GUEST_KINDS);
        changes.extend(port.map(|name| Change { port: Some(name), ..Change::default() }));
    }
    changes
}

/// Private and link-local addresses, and shared ones (RFC 1918, 3927, 4193, 4291, 6598).
fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(it) => {
            let [a, b, ..] = it.octets();
            it.is_private() || it.is_link_local() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(it) => it.is_unique_local() || it.is_unicast_link_local(),
    }
}

fn is_membership(packet: &Packet) -> bool {
    packet.protocol == 2
        || (packet.protocol == 58 && matches!(packet.icmp_type, Some(130..=132 | 143)))
}

impl Change {
    /// Whether a configuration may say so.
    fn is_valid(&self, config: &Config) -> bool {
        let exceptions = [
            self.lan.map(Exception::Lan),
            self.ntp.map(Exception::Ntp),
            self.inbound.clone().map(Exception::Inbound),
        ];
        let may = |it: &Exception| {
            Exception::parse(it.kind(), &it.to_string()).is_ok() && it.check(config).is_ok()
        };
        let in_lan = |address: IpAddr| {
            config.allow.lan.iter().chain(&self.lan).any(|net| net.contains(&address))
        };
        let names = self.internal.iter().chain(&self.port);
        exceptions.iter().flatten().all(may)
            && self.lan_dns.is_none_or(in_lan)
            && names
                .clone()
                .all(|name| LinkPattern::parse(name).is_ok() && *name != config.tunnel.interface)
    }

    fn applied(&self, policy: &Policy) -> Policy {
        let exceptions = [
            self.lan.map(Exception::Lan),
            self.ntp.map(Exception::Ntp),
            self.inbound.clone().map(Exception::Inbound),
        ];
        let mut policy = policy.with(exceptions.iter().flatten());
        policy.dhcp |= self.dhcp;
        policy.lan_dns.extend(self.lan_dns);
        policy.internal.extend(self.internal.iter().cloned().map(LinkPattern::Exact));
        policy.internal_ports.extend(self.port.iter().cloned().map(LinkPattern::Exact));
        policy.forward_into_tunnel |= self.forward;
        policy
    }

    fn remedy(&self, config: &Config) -> Remedy {
        let mut add = Vec::new();
        if self.dhcp {
            add.push(set(config, "allow.dhcp", "true"));
        }
        add.extend(self.lan.map(|it| item(config, "allow.lan", quoted(it))));
        add.extend(self.lan_dns.map(|it| item(config, "allow.lan_dns", quoted(it))));
        add.extend(self.ntp.map(|it| item(config, "allow.ntp", quoted(it))));
        add.extend(self.inbound.as_ref().map(|it| item(config, "allow.inbound", inbound(it))));
        add.extend(links(config, "allow.internal", &config.allow.internal, &self.internal));
        add.extend(links(
            config,
            "allow.internal_ports",
            &config.allow.internal_ports,
            self.port.as_slice(),
        ));
        if self.forward && config.forward.mode != crate::config::ForwardMode::Tunnel {
            add.push(set(config, "forward.mode", "\"tunnel\""));
        }
        Remedy { add, exception: self.exception(), risk: self.risk() }
    }

    /// Of one part alone.
    fn exception(&self) -> Option<String> {
        let parts = [
            self.lan.map(Exception::Lan),
            self.ntp.map(Exception::Ntp),
            self.inbound.clone().map(Exception::Inbound),
        ];
        let only = parts.into_iter().flatten().next()?;
        let rest = Change { lan: None, ntp: None, inbound: None, ..self.clone() };
        (rest == Change::default())
            .then(|| format!("killswitch exception add {} {only} --for 10m", only.kind()))
    }

    fn risk(&self) -> String {
        let mut risks = Vec::new();
        if self.dhcp {
            risks.push("every network that you join sees this machine ask for a lease".to_owned());
        }
        if let Some(net) = self.lan {
            let who = net.addr();
            risks.push(format!("every program may talk to {who} in clear, and {who} to every service of this machine"));
        }
        if let Some(who) = self.lan_dns {
            risks.push(format!(
                "{who} sees the names that it is asked for, and may pass them on in clear"
            ));
        }
        if let Some(who) = self.ntp {
            risks.push(format!("{who} and everybody on the way see that this machine is on, and may set its clock wrong"));
        }
        if let Some(Inbound { port, from, .. }) = &self.inbound {
            risks.push(format!(
                "{} may reach port {port} of this machine outside of the tunnel",
                from.addr()
            ));
        }
        for name in self.internal.iter().chain(&self.port) {
            risks.push(format!(
                "everything may pass by {name}: it must never lead out of this machine"
            ));
        }
        if self.forward {
            risks.push(
                "guests and LAN clients use the tunnel under this machine's address".to_owned(),
            );
        }
        risks.join("; ")
    }
}

fn quoted(value: impl ToString) -> String {
    format!("\"{}\"", value.to_string())
}

fn inbound(service: &Inbound) -> String {
    let name = if service.protocol == Protocol::Tcp { "tcp" } else { "udp" };
    format!("{{ proto = \"{name}\", port = {}, from = [\"{}\"] }}", service.port, service.from)
}

fn set(config: &Config, key: &str, value: &str) -> Addition {
    let place = config.places.written(key).map(|it| it.to_string());
    Addition { key: key.into(), item: false, value: value.into(), place }
}

fn item(config: &Config, key: &str, value: String) -> Addition {
    let place = config.places.written(key).map(|it| it.to_string());
    match place {
        Some(_) => Addition { key: key.into(), item: true, value, place },
        None => Addition { key: key.into(), item: false, value: format!("[{value}]"), place },
    }
}

/// A list that is not written has a default, which a written one replaces.
fn links(config: &Config, key: &str, present: &[LinkPattern], names: &[String]) -> Vec<Addition> {
    if names.is_empty() {
        return Vec::new();
    }
    if config.places.written(key).is_some() {
        return names.iter().map(|name| item(config, key, quoted(name))).collect();
    }
    let all: Vec<String> = present.iter().map(quoted).chain(names.iter().map(quoted)).collect();
    vec![set(config, key, &format!("[{}]", all.join(", ")))]
}

fn why_not(packet: &Packet, direction: Direction, policy: &Policy) -> String {
    let to = packet.destination;
    let own = |address: IpAddr| {
        policy.tunnel.as_ref().is_some_and(|tunnel| tunnel.addresses.contains(&address))
    };
    let into_tunnel = packet.oif.as_ref().is_some_and(|it| layers::is_tunnel(policy, it));
    let asks_names = packet.ports.is_some_and(|it| NAME_SERVICE_PORTS.contains(&it.1));
    if direction == Direction::Received {
        return match own(to) {
            true => "the tunnel's own address is reached by the tunnel alone".into(),
            false => "[allow] has TCP and UDP services by their port, NTP servers and local networks, and no key for this".into(),
        };
    }
    if into_tunnel {
        return match direction == Direction::Forwarded {
            true => "into the tunnel pass only local networks and internal bridges".into(),
            false => "into the tunnel goes only what has the tunnel's own address and not its mark"
                .into(),
        };
    }
    if own(packet.source) {
        return "the tunnel's own address must never be seen outside of it".into();
    }
    if policy.servers.iter().any(|server| server.endpoint.ip() == to) {
        return "to a VPN server's address nothing leaves in clear, only the tunnel's own packets"
            .into();
    }
    if direction == Direction::Forwarded {
        return "forwarded packets leave by the tunnel (forward.mode = \"tunnel\") or stay on internal bridges".into();
    }
    if serves(policy, packet) {
        return "from an inbound service's port only replies leave: what begins here needs another"
            .into();
    }
    if to.is_multicast() {
        return format!("{to} is a multicast group, and no key names one");
    }
    if packet.ethertype != 0x0800 && packet.ethertype != 0x86dd {
        return "of what is not IP only ARP and 802.1X leave, and no key opens more".into();
    }
    match asks_names {
        true => format!(
            "names are asked for inside the tunnel (tunnel.dns): to {to} everybody on the way would see them"
        ),
        false => format!("{to} is on no local network: only the tunnel leads there"),
    }
}

/// Whether it comes from the port of an inbound service, to one of its clients.
fn serves(policy: &Policy, packet: &Packet) -> bool {
    policy.inbound.iter().any(|it| {
        it.protocol.number() == packet.protocol
            && packet.ports.is_some_and(|(from, _)| from == it.port)
            && it.from.contains(&packet.destination)
    })
}
