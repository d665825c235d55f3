//! Which rule decides on a packet, and why: [`mod@line`] reads a packet from a line of text, `layers` asks
//! every layer that it meets, `cause` finds the key behind the rule, `remedy` what would let it pass.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use clap::{Args, Parser};

use crate::config::Config;
use crate::netlink;
use crate::policy::Policy;
use crate::ruleset::model::{
    Connection, FORWARDED, FRAME, LinkView, Packet, RECEIVED, SENT, State, Verdict,
};
use crate::ruleset::{self, Hook, Ruleset};

mod cause;
mod layers;
pub mod line;
mod remedy;

pub use cause::Cause;
pub use layers::{Layer, NEAR_ROUTE};
pub use remedy::{Addition, Remedy};

/// A packet in words.
#[derive(Debug, Clone, Args)]
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
    /// What else is in it; by default IP's.
    #[arg(skip)]
    pub ethertype: Option<u16>,
    /// Its TTL or hop limit; by default what such a packet is sent with.
    #[arg(skip)]
    pub hop_limit: Option<u8>,
}

impl Default for Words {
    fn default() -> Self {
        Words {
            out: None,
            into: None,
            to: None,
            from: None,
            proto: 6,
            port: None,
            sport: 40000,
            mark: 0,
            icmp_type: None,
            wireguard: None,
            related: None,
            reply: false,
            frame: false,
            ethertype: None,
            hop_limit: None,
        }
    }
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

/// Where a packet goes: what decides which hooks it meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Sent,
    Received,
    Forwarded,
    Frame,
}

impl Direction {
    fn of(words: &Words) -> Self {
        match (&words.into, &words.out, words.frame) {
            (_, _, true) => Direction::Frame,
            (Some(_), Some(_), _) => Direction::Forwarded,
            (Some(_), None, _) => Direction::Received,
            (None, _, _) => Direction::Sent,
        }
    }

    fn hooks(self) -> &'static [Hook] {
        match self {
            Direction::Sent => SENT,
            Direction::Received => RECEIVED,
            Direction::Forwarded => FORWARDED,
            Direction::Frame => FRAME,
        }
    }

    /// Who is at the other end.
    fn peer(self, packet: &Packet) -> IpAddr {
        match self {
            Direction::Received => packet.source,
            _ => packet.destination,
        }
    }
}

/// What becomes of a packet, and why.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What the tables do with it.
    pub decision: Layer,
    /// Every layer that it meets, in order, each as if the others were not there.
    pub layers: Vec<Layer>,
    /// The line of the configuration behind the decision.
    pub cause: Cause,
    /// What would let it pass, or why nothing would; `None` if it passes.
    pub remedy: Option<Result<Remedy, String>>,
}

impl Answer {
    /// For scripts; `strictest`: the policy is not the configured one.
    pub fn document(&self, strictest: bool) -> serde_json::Value {
        let remedy = self.remedy.as_ref();
        serde_json::json!({
            "verdict": self.decision.verdict,
            "table": self.decision.layer,
            "chain": self.decision.chain,
            "rule": self.decision.rule,
            "reason": self.decision.reason,
            "policy": if strictest { "strictest" } else { "configured" },
            "layers": self.layers,
            "cause": self.cause,
            "remedy": remedy.and_then(|it| it.as_ref().ok()),
            "never": remedy.and_then(|it| it.as_ref().err()),
        })
    }

    /// The other layers that do not let it pass.
    pub fn others(&self) -> impl Iterator<Item = &Layer> {
        let stops =
            |layer: &&Layer| layer.verdict != Verdict::Accept && layer.layer != self.decision.layer;
        self.layers.iter().filter(stops)
    }
}

/// Asks what a policy compiles to; `config`: where it comes from, unless that cannot be used.
///
/// # Errors
/// If the words do not describe a packet: what is missing.
pub fn decide(words: &Words, policy: &Policy, config: Option<&Config>) -> Result<Answer, String> {
    decide_at(&Here::read().unwrap_or_default(), words, policy, config)
}

/// What the answer depends on besides the policy.
#[derive(Debug, Default)]
pub struct Here {
    /// Every link of the machine.
    pub links: Vec<netlink::Link>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
}

impl Here {
    fn read() -> std::io::Result<Self> {
        let socket = netlink::Socket::open(netlink::Family::Route)?;
        let addresses = netlink::addresses(&socket)?.into_iter().map(|it| it.address).collect();
        Ok(Here { links: netlink::links(&socket)?, addresses })
    }
}

/// The same on such a machine. Pure.
///
/// # Errors
/// As [`decide`].
pub fn decide_at(
    here: &Here,
    words: &Words,
    policy: &Policy,
    config: Option<&Config>,
) -> Result<Answer, String> {
    let packet = describe(here, words, policy)?;
    let direction = Direction::of(words);
    let ruleset = compile(policy);
    let decision = layers::of_table(&ruleset.judge(direction.hooks(), &packet));
    let layers = layers::walk(policy, &ruleset, &packet, direction);
    let cause = cause::find(&decision.reason, decision.verdict, &packet, direction, config);
    let stopped = layers.iter().any(|layer| layer.verdict != Verdict::Accept);
    let remedy = stopped.then(|| remedy::find(&packet, direction, policy, config));
    Ok(Answer { decision, layers, cause, remedy })
}

fn compile(policy: &Policy) -> Ruleset {
    Ruleset {
        inet: ruleset::compile(policy),
        egress: policy.egress_guard.then(|| ruleset::guard(policy, None)),
    }
}

/// Whether every layer lets it.
fn passes(policy: &Policy, packet: &Packet, direction: Direction) -> bool {
    let layers = layers::walk(policy, &compile(policy), packet, direction);
    layers.iter().all(|layer| layer.verdict == Verdict::Accept)
}

fn describe(here: &Here, words: &Words, policy: &Policy) -> Result<Packet, String> {
    let view = |name: &String| view(name, &here.links, policy);
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
    let not_ip = words.ethertype.map(|_| Ipv4Addr::UNSPECIFIED.into());
    let Some(destination) = words.to.or_else(default).or(not_ip) else {
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
        ethertype: words.ethertype.unwrap_or(if destination.is_ipv4() { 0x0800 } else { 0x86dd }),
        source,
        destination,
        protocol: words.proto,
        ports: (!icmp).then(|| (words.sport, words.port.unwrap_or(443))),
        icmp_type: icmp.then(|| words.icmp_type.unwrap_or(if words.proto == 1 { 8 } else { 128 })),
        later_fragment: false,
        hop_limit: words.hop_limit.unwrap_or(hop_limit(words)),
        payload: payload(words),
        mark: words.mark,
        iif: words.into.as_ref().map(view),
        oif,
        // Who asks about what this machine sends names an address that it has, or had.
        from_this_machine: words.into.is_none(),
        to_this_machine: destination.is_loopback() || here.addresses.contains(&destination),
        // Routes are taken for granted.
        from_where_it_came: true,
        to_where_it_came: false,
        connection: Some(connection(words, destination)),
    })
}

/// Neighbour discovery has 255 (RFC 4861, 7.1), membership of groups 1 (RFC 3376, 4; RFC 3810, 5).
fn hop_limit(words: &Words) -> u8 {
    match (words.proto, words.icmp_type) {
        (58, Some(133..=137)) => 255,
        (2, _) | (58, Some(130..=132 | 143)) => 1,
        _ => 64,
    }
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
