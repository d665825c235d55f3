//! Which line of the configuration is behind a rule.

use std::net::IpAddr;

use serde::Serialize;

use super::Direction;
use crate::config::{Config, Inbound, LinkPattern, Location};
use crate::ruleset::model::{Packet, Verdict};

/// Why the rule is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// The key, e.g. `allow.lan[1]`; none where no key is behind it.
    pub key: Option<String>,
    /// Where it is written, as FILE:LINE; none where its default holds.
    pub place: Option<String>,
    /// The same in words.
    pub words: String,
}

impl Cause {
    fn plain(words: impl Into<String>) -> Self {
        Cause { key: None, place: None, words: words.into() }
    }

    /// The key where it is written, or its default.
    fn of(config: &Config, key: &str) -> Self {
        let written = config.places.written(key);
        let words = match &written {
            Some(place) => format!("{place} {key}"),
            None => format!("the default of {}", key.split('[').next().unwrap_or(key)),
        };
        Cause { key: Some(key.to_owned()), place: written.map(|it| it.to_string()), words }
    }

    /// The nearest place of what stands in one of several files.
    fn near(config: &Config, key: &str) -> Self {
        let place: Location = config.places.of(key);
        Cause {
            key: Some(key.to_owned()),
            place: Some(place.to_string()),
            words: format!("{place} {key}"),
        }
    }
}

/// Of the rule of this comment; `config` is `None` where it cannot be used.
pub(super) fn find(
    reason: &str,
    verdict: Verdict,
    packet: &Packet,
    direction: Direction,
    config: Option<&Config>,
) -> Cause {
    let Some(config) = config else {
        return Cause::plain("the configuration cannot be used, so the strictest lock holds");
    };
    if verdict != Verdict::Accept {
        return block(reason, packet, direction, config);
    }
    let peer = direction.peer(packet);
    match reason {
        "lan" | "multicast membership" => of_lan(config, peer, reason),
        "lan client into the tunnel"
        | "guest into the tunnel"
        | "reply to a lan client"
        | "forwarded into the tunnel" => Cause::of(config, "forward.mode"),
        "lan dns" => {
            listed(config, "allow.lan_dns", config.allow.lan_dns.iter().position(|it| *it == peer))
        }
        "ntp" => listed(config, "allow.ntp", config.allow.ntp.iter().position(|it| *it == peer)),
        "dhcp" | "dhcpv6" | "router solicitation" | "router advertisement" => {
            Cause::of(config, "allow.dhcp")
        }
        "inbound service" | "reply of an inbound service" => of_inbound(config, packet, direction),
        "internal bridge" => {
            of_links(config, "allow.internal", &config.allow.internal, packet, direction)
        }
        "port of an internal bridge" => of_links(
            config,
            "allow.internal_ports",
            &config.allow.internal_ports,
            packet,
            direction,
        ),
        "into the tunnel" | "from the tunnel" => Cause::near(config, "tunnel.addresses"),
        "tunnel" if direction == Direction::Forwarded => Cause::of(config, "forward.mode"),
        "tunnel" => Cause::near(config, "tunnel.interface"),
        "wireguard to a server"
        | "to a server"
        | "from a server"
        | "fragment to a server"
        | "icmp error of the outer flow" => of_server(config, packet, direction),
        _ => Cause::plain("no key: it is always so"),
    }
}

fn block(reason: &str, packet: &Packet, direction: Direction, config: &Config) -> Cause {
    match reason {
        "blocked: from the tunnel's address"
        | "blocked: tunnel address from outside"
        | "blocked: arp for the tunnel address" => Cause::near(config, "tunnel.addresses"),
        "blocked: a guest to the lan" => Cause::of(config, "allow.lan"),
        "blocked: a guest to a time server" => Cause::of(config, "allow.ntp"),
        "blocked: a guest to a dhcp server" => Cause::of(config, "allow.dhcp"),
        "blocked: the tunnel into itself" => Cause::of(config, "tunnel.fwmark"),
        "blocked: from an inbound service's port, no reply" => {
            of_inbound(config, packet, direction)
        }
        _ => {
            let file = config.files.first().map(|file| Location::file(file).to_string());
            Cause::plain(format!("nothing in {} allows it", file.unwrap_or_default()))
        }
    }
}

/// An item of a list; one that is not in it was opened for a while.
fn listed(config: &Config, list: &str, index: Option<usize>) -> Cause {
    match index {
        Some(index) => Cause::of(config, &format!("{list}[{index}]")),
        None => Cause::plain("an exception that is open for a while"),
    }
}

fn of_lan(config: &Config, peer: IpAddr, reason: &str) -> Cause {
    if reason != "lan" {
        return Cause::of(config, "allow.lan");
    }
    listed(config, "allow.lan", config.allow.lan.iter().position(|net| net.contains(&peer)))
}

/// The configuration keeps one service for each network; the file has lists of them.
fn of_inbound(config: &Config, packet: &Packet, direction: Direction) -> Cause {
    let port = packet
        .ports
        .map(|(sport, port)| if direction == Direction::Received { port } else { sport });
    let peer = direction.peer(packet);
    let serves = |it: &Inbound| {
        it.protocol.number() == packet.protocol && Some(it.port) == port && it.from.contains(&peer)
    };
    let Some(mut at) = config.allow.inbound.iter().position(serves) else {
        return listed(config, "allow.inbound", None);
    };
    let is_there = |key: &str| config.places.written(key).is_some();
    for entry in 0.. {
        let of = |item: usize| format!("allow.inbound[{entry}].from[{item}]");
        let items = (0..).take_while(|&item| is_there(&of(item))).count();
        if at < items {
            return Cause::of(config, &of(at));
        }
        if !is_there(&format!("allow.inbound[{entry}]")) {
            break;
        }
        at -= items;
    }
    Cause::of(config, "allow.inbound")
}

fn of_links(
    config: &Config,
    key: &str,
    patterns: &[LinkPattern],
    packet: &Packet,
    direction: Direction,
) -> Cause {
    let link = match direction {
        Direction::Received => packet.iif.as_ref(),
        _ => packet.oif.as_ref(),
    };
    let name = link.map(|link| link.name.as_str()).unwrap_or_default();
    match patterns.iter().position(|it| it.matches(name)) {
        Some(index) => Cause::of(config, &format!("{key}[{index}]")),
        None => Cause::of(config, key),
    }
}

fn of_server(config: &Config, packet: &Packet, direction: Direction) -> Cause {
    let original = packet.connection.filter(|_| packet.icmp_type.is_some()).map(|it| it.original.0);
    let host = original.unwrap_or(direction.peer(packet));
    let has = |server: &crate::config::Server| server.endpoints.iter().any(|it| it.ip() == host);
    let index = config.servers.iter().position(has).unwrap_or(0);
    Cause::near(config, &format!("server[{index}].endpoints"))
}
