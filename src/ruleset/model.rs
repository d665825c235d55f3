//! What a ruleset does to a packet, worked out without a kernel: `explain` asks it, and property
//! tests hold it against the kernel's own verdict.

use std::net::IpAddr;

use super::{
    Action, Chain, ChainPolicy, Element, Family, Field, Hook, Match, Rule, Ruleset, Set, Table,
    Test,
};

/// Everything about a packet that a rule of ours can look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// EtherType, in host byte order.
    pub ethertype: u16,
    /// Source address; for ARP the sender's.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP or UDP ports.
    pub ports: Option<(u16, u16)>,
    /// ICMP or ICMPv6 type.
    pub icmp_type: Option<u8>,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// A later fragment: without ports and payload.
    pub later_fragment: bool,
    /// What follows a UDP header.
    pub payload: Vec<u8>,
    /// Firewall mark.
    pub mark: u32,
    /// Where it came in.
    pub iif: Option<LinkView>,
    /// Where it goes out.
    pub oif: Option<LinkView>,
    /// Whether the source is an address of this machine.
    pub from_this_machine: bool,
    /// Whether the destination is an address of this machine.
    pub to_this_machine: bool,
    /// Whether its source is where it came from.
    pub from_where_it_came: bool,
    /// Whether its destination is where it came from.
    pub to_where_it_came: bool,
    /// What conntrack knows; `None`: nothing, or invalid.
    pub connection: Option<Connection>,
}

/// A link as rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkView {
    /// Its name.
    pub name: String,
    /// IFLA_INFO_KIND; absent for hardware.
    pub kind: Option<String>,
    /// The loopback link.
    pub loopback: bool,
}

/// What conntrack knows of a packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Its state.
    pub state: State,
    /// Whether the packet goes against the connection's first one.
    pub reply: bool,
    /// Whether its destination is translated.
    pub dnat: bool,
    /// Destination, protocol and port of the connection's first packet.
    pub original: (IpAddr, u8, u16),
}

/// Conntrack's view of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The first packet.
    New,
    /// Packets went both ways.
    Established,
    /// Belongs to another connection: an ICMP error.
    Related,
}

/// What is done with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It goes on.
    Accept,
    /// It is dropped.
    Drop,
    /// It is dropped and the sender is told.
    Reject,
}

/// Which rule decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    /// The outcome.
    pub verdict: Verdict,
    /// The table's family.
    pub family: Family,
    /// The chain.
    pub chain: &'a str,
    /// The rule; `None`: the chain's policy.
    pub rule: Option<&'a Rule>,
}

/// The hooks that a packet passes which this machine sends.
pub const SENT: &[Hook] = &[Hook::Output, Hook::Postrouting, Hook::Egress];
/// Of one that arrives for this machine.
pub const RECEIVED: &[Hook] = &[Hook::Prerouting, Hook::Input];
/// Of one that passes through.
pub const FORWARDED: &[Hook] = &[Hook::Prerouting, Hook::Forward, Hook::Postrouting, Hook::Egress];
/// Of a frame that is handed to a link without passing IP: a packet socket's, a bridged guest's.
pub const FRAME: &[Hook] = &[Hook::Egress];

impl Ruleset {
    /// A packet that this machine sends: output, postrouting, the link's egress.
    pub fn judge_sent(&self, packet: &Packet) -> Decision<'_> {
        self.judge(SENT, packet)
    }

    /// A packet that arrives for this machine: prerouting, input.
    pub fn judge_received(&self, packet: &Packet) -> Decision<'_> {
        self.judge(RECEIVED, packet)
    }

    /// A packet that passes through: prerouting, forward, postrouting, the link's egress.
    pub fn judge_forwarded(&self, packet: &Packet) -> Decision<'_> {
        self.judge(FORWARDED, packet)
    }

    /// A frame that is handed to a link without passing IP: a packet socket's, a bridged guest's.
    pub fn judge_frame(&self, packet: &Packet) -> Decision<'_> {
        self.judge(FRAME, packet)
    }

    /// The first decision against the packet, or the last one for it.
    pub fn judge(&self, hooks: &[Hook], packet: &Packet) -> Decision<'_> {
        let mut decisions = self.walk(hooks, packet).into_iter().map(|(_, decision)| decision);
        let mut last = None;
        let against = decisions.find(|decision| {
            last = Some(*decision);
            decision.verdict != Verdict::Accept
        });
        against.or(last).unwrap_or(Decision {
            verdict: Verdict::Accept,
            family: Family::Inet,
            chain: "(no chain)",
            rule: None,
        })
    }

    /// What each chain at these hooks does to the packet, also behind one that stops it.
    pub fn walk(&self, hooks: &[Hook], packet: &Packet) -> Vec<(Hook, Decision<'_>)> {
        let mut packet = packet.clone();
        let mut decisions = Vec::new();
        for &hook in hooks {
            let table = match hook {
                Hook::Egress => self.egress.as_ref(),
                _ => Some(&self.inet),
            };
            let here = table.map(|table| at_hook(table, hook, &mut packet)).unwrap_or_default();
            decisions.extend(here.into_iter().map(|decision| (hook, decision)));
        }
        decisions
    }
}

/// Each base chain of a hook in the order of priority, up to the first that does not accept.
fn at_hook<'a>(table: &'a Table, hook: Hook, packet: &mut Packet) -> Vec<Decision<'a>> {
    let mut chains: Vec<(i32, &Chain)> = table
        .chains
        .iter()
        .filter_map(|chain| {
            Some((chain.base.as_ref().filter(|it| it.hook == hook)?.priority, chain))
        })
        .collect();
    chains.sort_by_key(|(priority, _)| *priority);
    // Each link's egress chain is the same: one stands for all.
    if hook == Hook::Egress {
        chains.truncate(1);
    }
    let mut decisions = Vec::new();
    for (_, chain) in chains {
        let decision = run(table, chain, packet).unwrap_or_else(|| Decision {
            verdict: match chain.base.as_ref().map(|base| base.policy) {
                Some(ChainPolicy::Accept) => Verdict::Accept,
                Some(ChainPolicy::Drop) | None => Verdict::Drop,
            },
            family: table.family,
            chain: &chain.name,
            rule: None,
        });
        let accepted = decision.verdict == Verdict::Accept;
        decisions.push(decision);
        if !accepted {
            break;
        }
    }
    decisions
}

/// `None`: the chain's end was reached, or left by `return`.
fn run<'a>(table: &'a Table, chain: &'a Chain, packet: &mut Packet) -> Option<Decision<'a>> {
    for rule in &chain.rules {
        if !rule.matches.iter().all(|it| holds(table, it, packet)) {
            continue;
        }
        let verdict = match &rule.action {
            Action::Accept => Verdict::Accept,
            Action::Masquerade => {
                // Later hooks see the new source.
                packet.source = own_address(table, packet).unwrap_or(packet.source);
                packet.from_this_machine = true;
                Verdict::Accept
            }
            Action::Drop => Verdict::Drop,
            Action::Reject(_) => Verdict::Reject,
            Action::Return => return None,
            Action::Log { .. } => continue,
            Action::SetMark(mark) => {
                packet.mark = *mark;
                continue;
            }
            Action::Jump(name) => {
                let target = table.chain(name)?;
                match run(table, target, packet) {
                    Some(decision) => return Some(decision),
                    None => continue,
                }
            }
        };
        return Some(Decision {
            verdict,
            family: table.family,
            chain: &chain.name,
            rule: Some(rule),
        });
    }
    None
}

/// The address that a packet gets on its way into the tunnel, the only link that masquerades.
fn own_address(table: &Table, packet: &Packet) -> Option<IpAddr> {
    let name = if packet.source.is_ipv4() { "tunnel4" } else { "tunnel6" };
    let first = &table.set(name)?.elements.first()?.first;
    match packet.source {
        IpAddr::V4(_) => Some(<[u8; 4]>::try_from(first.as_slice()).ok()?.into()),
        IpAddr::V6(_) => Some(<[u8; 16]>::try_from(first.as_slice()).ok()?.into()),
    }
}

fn holds(table: &Table, it: &Match, packet: &Packet) -> bool {
    let mut values = Vec::new();
    for field in &it.fields {
        // A field that the packet lacks ends the rule (NFT_BREAK).
        match packet.field(*field) {
            Some(value) => values.push(value),
            None => return false,
        }
    }
    let value = values[0].as_slice();
    match &it.test {
        Test::Is(wanted) => value == wanted.as_slice(),
        Test::Between(first, last) => first.as_slice() <= value && value <= last.as_slice(),
        Test::Masked { mask, value: wanted } => {
            value.iter().zip(mask).map(|(byte, mask)| byte & mask).eq(wanted.iter().copied())
        }
        Test::AnyOf(mask) => value.iter().zip(mask).any(|(byte, mask)| byte & mask != 0),
        Test::StartsWith(start) => value.starts_with(start),
        Test::In(name) => table.set(name).is_some_and(|set| contains(set, &values)),
    }
}

fn contains(set: &Set, values: &[Vec<u8>]) -> bool {
    if !set.interval {
        let key = joined(values);
        return set.elements.binary_search_by(|element| element.first.cmp(&key)).is_ok();
    }
    set.elements.iter().any(|element| covers(element, values))
}

fn covers(element: &Element, values: &[Vec<u8>]) -> bool {
    let mut at = 0;
    values.iter().all(|value| {
        let part = at..at + value.len();
        at += value.len().next_multiple_of(4);
        element.first[part.clone()] <= value[..] && value[..] <= element.last[part]
    })
}

fn joined(values: &[Vec<u8>]) -> Vec<u8> {
    if let [only] = values {
        return only.clone();
    }
    let mut key = Vec::new();
    for value in values {
        key.extend_from_slice(value);
        key.resize(key.len().next_multiple_of(4), 0);
    }
    key
}

impl Packet {
    /// The field's bytes as the kernel's register would hold them; `None` where it has none.
    fn field(&self, field: Field) -> Option<Vec<u8>> {
        Some(match field {
            Field::MetaProtocol => self.ethertype.to_be_bytes().to_vec(),
            Field::MetaNfproto => vec![match self.ethertype {
                0x0800 => 2,
                0x86dd => 10,
                _ => return None,
            }],
            Field::MetaL4proto => vec![self.is_ip().then_some(self.protocol)?],
            Field::MetaMark => self.mark.to_ne_bytes().to_vec(),
            Field::MetaIifname => name(&self.iif.as_ref()?.name),
            Field::MetaOifname => name(&self.oif.as_ref()?.name),
            Field::MetaIifkind => name(self.iif.as_ref()?.kind.as_ref()?),
            Field::MetaOifkind => name(self.oif.as_ref()?.kind.as_ref()?),
            Field::MetaIif => index(self.iif.as_ref()?),
            Field::MetaOif => index(self.oif.as_ref()?),
            Field::MetaOiftype => link_type(self.oif.as_ref()?),
            Field::CtState => {
                let bit: u32 = match self.connection.map(|it| it.state) {
                    None => 1,
                    Some(State::Established) => 2,
                    Some(State::Related) => 4,
                    Some(State::New) => 8,
                };
                bit.to_ne_bytes().to_vec()
            }
            Field::CtStatus => {
                let status: u32 = if self.connection?.dnat { 32 } else { 0 };
                status.to_ne_bytes().to_vec()
            }
            Field::CtDirection => vec![u8::from(self.connection?.reply)],
            Field::CtProtocol => vec![self.connection?.original.1],
            Field::CtOriginalIpDaddr => v4(self.connection?.original.0)?,
            Field::CtOriginalIp6Daddr => v6(self.connection?.original.0)?,
            Field::CtOriginalProtoDst => self.connection?.original.2.to_be_bytes().to_vec(),
            Field::FibSaddrType => address_type(self.from_this_machine),
            Field::FibDaddrType => address_type(self.to_this_machine),
            Field::FibSaddrIif => presence(self.from_where_it_came),
            Field::FibDaddrIif => presence(self.to_where_it_came),
            Field::IpSaddr => v4(self.source)?,
            Field::IpDaddr => v4(self.destination)?,
            Field::Ip6Saddr => v6(self.source)?,
            Field::Ip6Daddr => v6(self.destination)?,
            Field::IpFragOff if self.later_fragment => vec![0, 185],
            Field::IpFragOff => vec![0, 0],
            Field::Ip6Nexthdr if self.later_fragment => vec![44],
            Field::Ip6Nexthdr => vec![self.protocol],
            Field::Ip6FragOff => self.later_fragment.then(|| vec![5, 200])?,
            Field::IpTtl | Field::Ip6Hoplimit => vec![self.hop_limit],
            Field::UdpSport | Field::ThSport => self.ports?.0.to_be_bytes().to_vec(),
            // Other protocols' headers have bytes there, too, which mean something else.
            Field::ThDport if self.is_of_another_protocol() => vec![0, 0],
            Field::UdpDport | Field::ThDport => self.ports?.1.to_be_bytes().to_vec(),
            Field::IcmpType | Field::Icmpv6Type => vec![self.icmp_type?],
            Field::ArpProtocol => (self.ethertype == 0x0806).then(|| vec![8, 0])?,
            Field::ArpSaddrIp => v4(self.source)?,
            // Frames here say what they are, and bear no tag.
            Field::EtherType => self.ethertype.to_be_bytes().to_vec(),
            Field::VlanPriority | Field::VlanType => return None,
            Field::IpVersion => vec![match self.ethertype {
                0x0800 => 0x45,
                0x86dd => 0x60,
                _ => return None,
            }],
            Field::WireguardType | Field::BootpOp => self.payload.get(..1)?.to_vec(),
            Field::WireguardReserved => self.payload.get(1..4)?.to_vec(),
            Field::BootpCookie => self.payload.get(236..240)?.to_vec(),
        })
    }

    fn is_of_another_protocol(&self) -> bool {
        self.is_ip() && !self.later_fragment && !matches!(self.protocol, 6 | 17)
    }

    fn is_ip(&self) -> bool {
        matches!(self.ethertype, 0x0800 | 0x86dd)
    }
}

fn presence(is_there: bool) -> Vec<u8> {
    u32::from(is_there).to_ne_bytes().to_vec()
}

/// RTN_LOCAL and RTN_UNICAST (include/uapi/linux/rtnetlink.h).
fn address_type(local: bool) -> Vec<u8> {
    let kind: u32 = if local { 2 } else { 1 };
    kind.to_ne_bytes().to_vec()
}

fn name(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

/// Loopback is always the first; which of the others it is, no rule asks.
fn index(link: &LinkView) -> Vec<u8> {
    let number: u32 = if link.loopback { 1 } else { 2 };
    number.to_ne_bytes().to_vec()
}

fn link_type(link: &LinkView) -> Vec<u8> {
    let number: u16 = if link.loopback { 772 } else { 1 };
    number.to_ne_bytes().to_vec()
}

fn v4(address: IpAddr) -> Option<Vec<u8>> {
    match address {
        IpAddr::V4(address) => Some(address.octets().to_vec()),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: IpAddr) -> Option<Vec<u8>> {
    match address {
        IpAddr::V6(address) => Some(address.octets().to_vec()),
        IpAddr::V4(_) => None,
    }
}
