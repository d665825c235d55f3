//! Which rule decides on a packet, and why.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use clap::{Args, Parser};

use crate::netlink;
use crate::policy::Policy;
use crate::ruleset::model::{Connection, LinkView, Packet, State, Verdict};
use crate::ruleset::{self, Ruleset, text};

/// A packet in words.
#[derive(Debug, Args)]
pub struct Words {
    /// The link it leaves by.
    #[arg(long, value_name = "LINK")]
    pub out: Option<String>,
    /// The link it comes in by; with --out: a packet that passes through.
    #[arg(long = "in", value_name = "LINK")]
    pub into: Option<String>,
    /// Its destination; on arrival by the tunnel the tunnel's own address by default.
    #[arg(long, value_name = "ADDRESS")]
    pub to: Option<IpAddr>,
    /// Its source; by default an address of no interest, or the tunnel's on the tunnel.
    #[arg(long, value_name = "ADDRESS")]
    pub from: Option<IpAddr>,
    /// Its protocol: tcp, udp, icmp, icmpv6, igmp, or a number.
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp", value_parser = protocol)]
    pub proto: u8,
    /// Its destination port; 443 by default.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Its source port.
    #[arg(long, value_name = "PORT", default_value_t = 40000)]
    pub sport: u16,
    /// Its firewall mark.
    #[arg(long, value_name = "MARK", default_value = "0", value_parser = mark)]
    pub mark: u32,
    /// Its ICMP or ICMPv6 type.
    #[arg(long, value_name = "TYPE")]
    pub icmp_type: Option<u8>,
    /// It has the shape of this WireGuard message.
    #[arg(long, value_name = "TYPE", value_parser = clap::value_parser!(u8).range(1..=4))]
    pub wireguard: Option<u8>,
    /// It is an ICMP error about a packet to this server, as conntrack knows it.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub related: Option<SocketAddr>,
    /// It answers a packet that came in.
    #[arg(long)]
    pub reply: bool,
    /// It is handed to the link past IP: by a packet socket, or by a bridge.
    #[arg(long)]
    pub frame: bool,
}

impl Words {
    /// The same words as pairs, e.g. `("port", "53")`; what takes no value has "true".
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_pairs(pairs: &BTreeMap<String, String>) -> Result<Self, String> {
        #[derive(Parser)]
        #[command(no_binary_name = true, disable_help_flag = true)]
        struct Line {
            #[command(flatten)]
            words: Words,
        }
        let options = pairs.iter().filter(|(_, value)| *value != "false").map(|(name, value)| {
            match value.as_str() {
                "true" => format!("--{name}"),
                value => format!("--{name}={value}"),
            }
        });
        let line = Line::try_parse_from(options)
            .map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())?;
        Ok(line.words)
    }
}

fn protocol(text: &str) -> Result<u8, String> {
    match text {
        "icmp" => Ok(1),
        "igmp" => Ok(2),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmpv6" | "ipv6-icmp" => Ok(58),
        number => number
            .parse()
            .map_err(|_| "want tcp, udp, icmp, icmpv6, igmp or a number up to 255".to_owned()),
    }
}

fn mark(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "want a number like 27507 or 0x6b73".to_owned())
}

/// What decides, and how.
#[derive(Debug)]
pub struct Decision {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// The table's family.
    pub family: ruleset::Family,
    /// The chain.
    pub chain: String,
    /// The rule, as nft writes it; `None`: the chain's policy.
    pub rule: Option<String>,
    /// Why, in words.
    pub reason: String,
}

impl Decision {
    /// For scripts; `strictest`: the policy is not the configured one.
    pub fn document(&self, strictest: bool) -> serde_json::Value {
        serde_json::json!({
            "verdict": self.verdict,
            "table": format!("{} {}", self.family, ruleset::TABLE),
            "chain": self.chain,
            "rule": self.rule,
            "reason": self.reason,
            "policy": if strictest { "strictest" } else { "configured" },
        })
    }
}

/// Asks the rules that a policy compiles to.
///
/// # Errors
/// If the words do not describe a packet: what is missing.
pub fn decide(words: &Words, policy: &Policy) -> Result<Decision, String> {
    let ruleset = Ruleset {
        inet: ruleset::compile(policy),
        egress: policy.egress_guard.then(|| ruleset::guard(policy, None)),
    };
    let packet = describe(words, policy)?;
    let decision = match (&words.into, &words.out, words.frame) {
        (_, _, true) => ruleset.judge_frame(&packet),
        (Some(_), Some(_), _) => ruleset.judge_forwarded(&packet),
        (Some(_), None, _) => ruleset.judge_received(&packet),
        (None, _, _) => ruleset.judge_sent(&packet),
    };
    let reason = decision.rule.map(|rule| rule.comment.as_str()).unwrap_or("the chain's policy");
    Ok(Decision {
        verdict: decision.verdict,
        family: decision.family,
        chain: decision.chain.to_owned(),
        rule: decision.rule.map(text::rule),
        reason: reason.to_owned(),
    })
}

fn describe(words: &Words, policy: &Policy) -> Result<Packet, String> {
    let links = netlink::Socket::open(netlink::Family::Route)
        .and_then(|socket| netlink::links(&socket))
        .unwrap_or_default();
    let view = |name: &String| view(name, &links, policy);
    let oif = match (&words.out, &words.into) {
        (Some(name), _) => Some(view(name)),
        (None, Some(_)) => None,
        (None, None) => {
            return Err("say --out LINK for a packet that leaves, --in LINK for one \
                                       that arrives, both for one that passes through"
                .into());
        }
    };
    let default = || words.into.as_ref().map(|link| ours(words, link, policy));
    let Some(destination) = words.to.or_else(default) else {
        return Err("say --to ADDRESS: where the packet goes".into());
    };
    let tunnel =
        policy.tunnel.as_ref().filter(|tunnel| Some(&tunnel.interface) == words.out.as_ref());
    let own = tunnel.and_then(|tunnel| {
        tunnel.addresses.iter().find(|it| it.is_ipv4() == destination.is_ipv4()).copied()
    });
    let source = words.from.or(own).unwrap_or_else(|| no_interest(destination));
    if source.is_ipv4() != destination.is_ipv4() {
        return Err("--from and --to must be of one family, IPv4 or IPv6".into());
    }
    let icmp = matches!(words.proto, 1 | 58);
    Ok(Packet {
        ethertype: if destination.is_ipv4() { 0x0800 } else { 0x86dd },
        source,
        destination,
        protocol: words.proto,
        ports: (!icmp).then(|| (words.sport, words.port.unwrap_or(443))),
        icmp_type: icmp.then(|| words.icmp_type.unwrap_or(if words.proto == 1 { 8 } else { 128 })),
        later_fragment: false,
        hop_limit: if matches!(words.icmp_type, Some(133..=137)) { 255 } else { 64 },
        payload: payload(words),
        mark: words.mark,
        iif: words.into.as_ref().map(view),
        oif,
        to_this_machine: destination.is_loopback(),
        connection: Some(connection(words, destination)),
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
fn ours(words: &Words, link: &str, policy: &Policy) -> IpAddr {
    let like = words.from.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let tunnel = policy.tunnel.as_ref().filter(|tunnel| tunnel.interface == link);
    let own = tunnel.into_iter().flat_map(|tunnel| &tunnel.addresses).copied();
    own.into_iter().find(|it| it.is_ipv4() == like.is_ipv4()).unwrap_or(no_interest(like))
}

/// A datagram's content: WireGuard's where that is said, DHCP's where the ports are its.
fn payload(words: &Words) -> Vec<u8> {
    /// BOOTP's fixed part (RFC 2131, 2), then the cookie (3).
    const COOKIE_AT: usize = 236;
    if let Some(kind) = words.wireguard {
        return vec![kind, 0, 0, 0];
    }
    match (words.proto, words.sport, words.port) {
        (17, 68, Some(67)) => {
            let mut request = vec![0; COOKIE_AT];
            request[0] = 1;
            request.extend([0x63, 0x82, 0x53, 0x63]);
            request
        }
        _ => Vec::new(),
    }
}

fn connection(words: &Words, destination: IpAddr) -> Connection {
    let state = match (words.related, words.reply) {
        (Some(_), _) => State::Related,
        (None, true) => State::Established,
        (None, false) => State::New,
    };
    let original = match words.related {
        Some(server) => (server.ip(), 17, server.port()),
        None => (destination, words.proto, words.port.unwrap_or(443)),
    };
    Connection { state, reply: words.reply, dnat: false, original }
}
