//! `explain`: which rule decides on a packet, and why.

use std::net::{IpAddr, Ipv4Addr};

use super::Failure;
use super::args::{Arguments, Explain};
use super::change::load_or_strictest;
use super::output::{Style, json, say, styled, warning};
use crate::netlink;
use crate::policy::Policy;
use crate::ruleset::model::{Connection, LinkView, Packet, State, Verdict};
use crate::ruleset::{self, Ruleset, text};

pub(super) fn explain(arguments: &Arguments, options: &Explain) -> Result<u8, Failure> {
    let (_, policy, complaint) = load_or_strictest(arguments);
    if let Some(complaint) = &complaint {
        warning(&format!("{complaint}; this is what the strictest lock does"));
    }
    let ruleset = Ruleset {
        inet: ruleset::compile(&policy),
        egress: policy.egress_guard.then(|| ruleset::guard(&policy, None)),
    };
    let packet = describe(options, &policy)?;
    let decision = match (&options.into, &options.out, options.frame) {
        (_, _, true) => ruleset.judge_frame(&packet),
        (Some(_), Some(_), _) => ruleset.judge_forwarded(&packet),
        (Some(_), None, _) => ruleset.judge_received(&packet),
        (None, _, _) => ruleset.judge_sent(&packet),
    };
    let rule = decision.rule.map(text::rule);
    let reason = decision.rule.map(|rule| rule.comment.as_str()).unwrap_or("the chain's policy");
    if arguments.json {
        json(&serde_json::json!({
            "verdict": decision.verdict,
            "table": format!("{} {}", decision.family, ruleset::TABLE),
            "chain": decision.chain,
            "rule": rule,
            "reason": reason,
            "policy": if complaint.is_some() { "strictest" } else { "configured" },
        }));
        return Ok(0);
    }
    let verdict = match decision.verdict {
        Verdict::Accept => styled(Style::Green, "passes"),
        Verdict::Drop => styled(Style::Red, "is dropped"),
        Verdict::Reject => styled(Style::Red, "is refused, and the sender is told at once"),
    };
    say(&format!("the packet {verdict}: {reason}"));
    say(&format!(
        "decided by table {} {}, chain {}",
        decision.family,
        ruleset::TABLE,
        decision.chain
    ));
    if let Some(rule) = rule {
        say(&format!("    {rule}"));
    }
    Ok(0)
}

fn describe(options: &Explain, policy: &Policy) -> Result<Packet, Failure> {
    let links = netlink::Socket::open(netlink::Family::Route)
        .and_then(|socket| netlink::links(&socket))
        .unwrap_or_default();
    let view = |name: &String| view(name, &links, policy);
    let oif = match (&options.out, &options.into) {
        (Some(name), _) => Some(view(name)),
        (None, Some(_)) => None,
        (None, None) => {
            return Err(Failure::usage(
                "say --out LINK for a packet that leaves, --in LINK for one \
                                       that arrives, both for one that passes through",
            ));
        }
    };
    let default = || options.into.as_ref().map(|link| ours(options, link, policy));
    let Some(destination) = options.to.or_else(default) else {
        return Err(Failure::usage("say --to ADDRESS: where the packet goes"));
    };
    let tunnel =
        policy.tunnel.as_ref().filter(|tunnel| Some(&tunnel.interface) == options.out.as_ref());
    let own = tunnel.and_then(|tunnel| {
        tunnel.addresses.iter().find(|it| it.is_ipv4() == destination.is_ipv4()).copied()
    });
    let source = options.from.or(own).unwrap_or_else(|| no_interest(destination));
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(Failure::usage("--from and --to must be of one family, IPv4 or IPv6"));
    }
    let icmp = matches!(options.proto, 1 | 58);
    Ok(Packet {
        ethertype: if destination.is_ipv4() { 0x0800 } else { 0x86dd },
        source,
        destination,
        protocol: options.proto,
        ports: (!icmp).then(|| (options.sport, options.port.unwrap_or(443))),
        icmp_type: icmp
            .then(|| options.icmp_type.unwrap_or(if options.proto == 1 { 8 } else { 128 })),
        later_fragment: false,
        hop_limit: if matches!(options.icmp_type, Some(133..=137)) { 255 } else { 64 },
        payload: payload(options),
        mark: options.mark,
        iif: options.into.as_ref().map(view),
        oif,
        to_this_machine: destination.is_loopback(),
        connection: Some(connection(options, destination)),
    })
}

/// A link that is not there yet is taken for what its name promises.
fn view(name: &str, links: &[netlink::Link], policy: &Policy) -> LinkView {
    if let Some(link) = links.iter().find(|link| link.name == name) {
        return LinkView { name: name.into(), kind: link.kind.clone(), loopback: link.loopback };
    }
    let tunnel = policy.tunnel.as_ref().filter(|tunnel| tunnel.interface == name);
    let bridge = policy.internal.iter().any(|pattern| pattern.matches(name)).then_some("bridge");
    let kind = tunnel.and_then(|tunnel| tunnel.kinds.last().copied()).or(bridge);
    LinkView { name: name.into(), kind: kind.map(Into::into), loopback: name == "lo" }
}

/// TEST-NET-1 (RFC 5737) and the documentation prefix (RFC 3849).
fn no_interest(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => "2001:db8::1".parse().expect("an address"),
    }
}

/// The tunnel's own address if it comes in there.
fn ours(options: &Explain, link: &str, policy: &Policy) -> IpAddr {
    let like = options.from.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let tunnel = policy.tunnel.as_ref().filter(|tunnel| tunnel.interface == link);
    let own = tunnel.into_iter().flat_map(|tunnel| &tunnel.addresses).copied();
    own.into_iter().find(|it| it.is_ipv4() == like.is_ipv4()).unwrap_or(no_interest(like))
}

/// A datagram's content: WireGuard's where that is said, DHCP's where the ports are its.
fn payload(options: &Explain) -> Vec<u8> {
    /// BOOTP's fixed part (RFC 2131, 2), then the cookie (3).
    const COOKIE_AT: usize = 236;
    if let Some(kind) = options.wireguard {
        return vec![kind, 0, 0, 0];
    }
    match (options.proto, options.sport, options.port) {
        (17, 68, Some(67)) => {
            let mut request = vec![0; COOKIE_AT];
            request[0] = 1;
            request.extend([0x63, 0x82, 0x53, 0x63]);
            request
        }
        _ => Vec::new(),
    }
}

fn connection(options: &Explain, destination: IpAddr) -> Connection {
    let state = match (options.related, options.reply) {
        (Some(_), _) => State::Related,
        (None, true) => State::Established,
        (None, false) => State::New,
    };
    let original = match options.related {
        Some(server) => (server.ip(), 17, server.port()),
        None => (destination, options.proto, options.port.unwrap_or(443)),
    };
    Connection { state, reply: options.reply, dnat: false, original }
}
