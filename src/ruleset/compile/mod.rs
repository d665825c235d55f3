//! Policy in, whole ruleset out: "What may leave" of SECURITY.md, rule by rule.
//!
//! `table` has the chains of the `inet` table, `egress` those of the guard, `rules` what both ask,
//! `sets` the named sets, `words` the small words that rules are made of.

use super::{Action, Chain, ChainPolicy, Family, Field, Hook, Match, Rule, Table};
use crate::policy::{MessageShape, Policy};

mod egress;
mod rules;
mod sets;
mod table;
mod words;

pub(crate) use sets::successor;
use words::*;

/// The links that an egress chain hooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// Not an egress chain.
    None,
    /// Every link, present and future: kernel 6.18 and later.
    Every,
    /// These, by name.
    Named(Vec<String>),
}

/// A link as the egress guard sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkRef {
    /// Its index; part of its chain's name, since a link's name may hold anything.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// Local experimental EtherType 1 (IEEE 802): the guard's own probe.
pub const PROBE_ETHERTYPE: u16 = 0x88b5;
/// The comment of the rules that log.
pub const LOG_COMMENT: &str = "log what is blocked";
/// The mark of the guard's own probe on loopback: "kspr" in ASCII.
pub const PROBE_MARK: u32 = 0x6b73_7072;

/// Compiles a policy to the `inet` table.
pub fn compile(policy: &Policy) -> Table {
    let build = Build { policy, family: Family::Inet };
    let mut chains = Vec::new();
    chains.extend(build.lan_chain());
    chains.extend(build.to_internal_chains());
    chains.extend(build.internal_chain("from_internal", Field::MetaIifname));
    chains.extend(build.into_tunnel());
    chains.extend(build.tunnel_chain("from_tunnel", Ip::daddr, "from the tunnel"));
    chains.push(build.leave_chain());
    chains.push(build.output());
    chains.push(build.postrouting());
    chains.extend(build.forward_chains());
    chains.push(build.input());
    chains.extend(build.from_guest());
    chains.extend(build.prerouting());
    chains.extend(build.mark_replies());
    chains.extend(build.source_nat());
    Table { family: Family::Inet, sets: build.sets(), chains }
}

/// Compiles a policy to the egress guard, on the given links: `None` for every link there is or
/// will be (kernel 6.18 and later).
pub fn guard(policy: &Policy, links: Option<&[LinkRef]>) -> Table {
    let build = Build { policy, family: Family::Netdev };
    let mut chains = Vec::new();
    chains.extend(build.lan_chain());
    chains.extend(build.internal_chain("to_internal", Field::MetaOifname));
    chains.extend(build.port_chain());
    chains.extend(build.honest_chain());
    chains.push(build.frames_chain());
    match links {
        None => chains.push(build.egress("egress".into(), Devices::Every)),
        Some(links) => chains.extend(links.iter().map(|link| {
            build.egress(format!("egress_{}", link.index), Devices::Named(vec![link.name.clone()]))
        })),
    }
    Table { family: Family::Netdev, sets: build.sets(), chains }
}

struct Build<'a> {
    policy: &'a Policy,
    family: Family,
}

#[allow(clippy::wrong_self_convention, reason = "from_ and to_ say where packets come from and go")]
impl Build<'_> {
    /// Only the egress guard keeps a bridge with a NIC in it from leaking.
    pub(super) fn internal_is_allowed(&self) -> bool {
        self.policy.egress_guard && !self.policy.internal.is_empty()
    }

    pub(super) fn tunnel_links(&self) -> Vec<TunnelLink> {
        let Some(tunnel) = &self.policy.tunnel else { return Vec::new() };
        tunnel
            .kinds
            .iter()
            .map(|&kind| TunnelLink { name: tunnel.interface.clone(), kind })
            .collect()
    }

    pub(super) fn tunnel_families(&self) -> Vec<Ip> {
        let addresses = self.policy.tunnel.iter().flat_map(|tunnel| &tunnel.addresses);
        families(addresses.copied())
    }

    pub(super) fn has_server(&self, ip: Ip) -> bool {
        self.policy.servers.iter().any(|server| ip.has(server.endpoint.ip()))
    }

    pub(super) fn has_shape(&self, ip: Ip, shape: MessageShape) -> bool {
        self.policy
            .servers
            .iter()
            .any(|server| server.shape == shape && ip.has(server.endpoint.ip()))
    }

    pub(super) fn has_lan(&self, ip: Ip) -> bool {
        self.policy.lan.iter().any(|net| ip.has(net.addr()))
    }

    pub(super) fn has_lan_dns(&self, ip: Ip) -> bool {
        self.policy.lan_dns.iter().any(|&address| ip.has(address))
    }

    pub(super) fn has_ntp(&self, ip: Ip) -> bool {
        self.policy.ntp.iter().any(|&address| ip.has(address))
    }

    pub(super) fn has_inbound(&self, ip: Ip) -> bool {
        self.policy.inbound.iter().any(|service| ip.has(service.from.addr()))
    }

    pub(super) fn mark(&self) -> Match {
        is(Field::MetaMark, self.policy.mark.to_ne_bytes())
    }

    /// Matches of one address family, which they say first: the kernel would otherwise read an
    /// IPv6 packet's bytes as IPv4's.
    pub(super) fn of(&self, ip: Ip, matches: impl IntoIterator<Item = Match>) -> Vec<Match> {
        of_family(self.family, ip, matches)
    }

    /// As [`Build::of`], where nothing of the transport is asked, which would end the rule if the header
    /// were the other family's: a packet socket on a link without an Ethernet header says what it likes.
    pub(super) fn of_true(&self, ip: Ip, matches: impl IntoIterator<Item = Match>) -> Vec<Match> {
        let version = (self.family == Family::Netdev).then(|| version(ip));
        self.of(ip, version.into_iter().chain(matches))
    }

    /// Before the drops at the end of a chain: whoever listens is told what they block. As slow as
    /// that, a flood costs little and leaves room for the rest. Not in the strictest lock, which is
    /// the static one.
    pub(super) fn log_blocked(&self) -> Option<Rule> {
        let log = rule([], Action::Log { rate: 10, burst: 20 }, LOG_COMMENT);
        self.policy.tunnel.is_some().then_some(log)
    }

    pub(super) fn base(
        &self,
        name: &str,
        hook: Hook,
        priority: i32,
        mut rules: Vec<Rule>,
    ) -> Chain {
        // Explicit, besides the policy: a new chain's policy takes effect after its rules, and
        // until then it accepts (measured: threat 26).
        rules.push(counted([], Action::Drop, &format!("blocked: {name}")));
        Chain { name: name.into(), base: Some(base(hook, priority, ChainPolicy::Drop)), rules }
    }
}

/// The tunnel's link: its name proves nothing without its kind (threat 37), which is asked first,
/// since hardware has none.
struct TunnelLink {
    name: String,
    kind: &'static str,
}

impl TunnelLink {
    pub(super) fn outward(&self) -> Vec<Match> {
        vec![is_kind(Field::MetaOifkind, self.kind), is(Field::MetaOifname, padded(&self.name))]
    }

    pub(super) fn inward(&self) -> Vec<Match> {
        vec![is_kind(Field::MetaIifkind, self.kind), is(Field::MetaIifname, padded(&self.name))]
    }
}
