//! Other programs' tables: what could mark, redirect or hand over packets around the lock.
//!
//! Read as nft and iptables-nft write it: a value, in a register, that something uses. A mark that is
//! computed from the packet's own, or looked up in a map, is not followed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::known;
use crate::audit::kinds::*;
use crate::audit::{Facts, Found, Kind, Unknown, Wanted};
use crate::netfilter::live::{DORMANT, ForeignTable, LiveTable};
use crate::netlink::Attributes;
use crate::ruleset::Value;
use crate::ruleset::expression::Expression;

/// NFPROTO_*.
const FAMILIES: [(u8, &str); 6] =
    [(1, "inet"), (2, "ip"), (3, "arp"), (5, "netdev"), (7, "bridge"), (10, "ip6")];
const NETDEV: u8 = 5;
/// NF_INET_PRE_ROUTING, NF_INET_LOCAL_IN.
const ARRIVING: [u32; 2] = [0, 1];
/// NF_INET_LOCAL_OUT.
const OUTPUT: u32 = 3;

pub(super) fn tables(facts: &Facts, wanted: &Wanted) -> Result<Found, Unknown> {
    let mut found = Found::default();
    let awake = known(&facts.tables)?.iter().filter(|it| it.table.flags & DORMANT == 0);
    for table in awake {
        judge_table(table, wanted.policy.mark, &mut found);
    }
    Ok(found)
}

fn judge_table(foreign: &ForeignTable, mark: u32, found: &mut Found) {
    let family =
        FAMILIES.iter().find(|(number, _)| *number == foreign.family).map_or("?", |it| it.1);
    let table = format!("{family} {}", foreign.name);
    for name in &foreign.table.flowtables {
        let cure = format!("nft delete flowtable {table} {name}, and the rules that fill it");
        found.find(&FLOWTABLE, format!("flowtable {table} {name}"), cure);
    }
    let reached = reached(&foreign.table);
    for (name, chain) in &foreign.table.chains {
        let Some(hooks) = reached.get(name.as_str()) else { continue };
        let place = format!("chain {table} {name}");
        let cure = format!("nft -a list {place}; nft delete rule {table} {name} handle NUMBER");
        for rule in &chain.rules {
            for deed in deeds(&rule.expressions) {
                match judge_deed(&deed, hooks, foreign.family, mark) {
                    Some(Judged::Found(kind)) => found.find(kind, &place, &cure),
                    Some(Judged::Noted(what)) => found.note(format!("{place} {what}")),
                    None => {}
                }
            }
        }
    }
}

/// Where packets of a chain come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Hooks {
    numbers: BTreeSet<u32>,
    /// From a chain of type "route".
    routes: bool,
}

/// The chains that any packet can get to, with the hooks it comes from.
fn reached(table: &LiveTable) -> BTreeMap<&str, Hooks> {
    let mut reached: BTreeMap<&str, Hooks> = BTreeMap::new();
    for (name, chain) in &table.chains {
        let Some(base) = &chain.base else { continue };
        let mut waiting = vec![name.as_str()];
        let mut seen = BTreeSet::new();
        while let Some(name) = waiting.pop() {
            if !seen.insert(name) {
                continue;
            }
            let hooks = reached.entry(name).or_default();
            hooks.numbers.insert(base.hook);
            hooks.routes |= base.kind == "route";
            let rules = table.chains.get(name).into_iter().flat_map(|chain| &chain.rules);
            for expression in rules.flat_map(|rule| &rule.expressions) {
                waiting.extend(target(expression));
                // Which ones is not read: any that is no hook's.
                if is_verdict_map(expression) {
                    let others = table.chains.iter().filter(|(_, chain)| chain.base.is_none());
                    waiting.extend(others.map(|(name, _)| name.as_str()));
                }
            }
        }
    }
    reached
}

/// A lookup into the register of verdicts (NFTA_LOOKUP_DREG: NFT_REG_VERDICT): `vmap`.
fn is_verdict_map(expression: &Expression) -> bool {
    const DREG: u16 = 3;
    const VERDICT: [u8; 4] = [0; 4];
    matches!(expression, Expression::Foreign { name, data }
        if name == "lookup" && Attributes(data).any(|it| it == (DREG, &VERDICT[..])))
}

fn target(expression: &Expression) -> Option<&str> {
    match expression {
        Expression::Verdict { chain, .. } => chain.as_deref(),
        _ => None,
    }
}

/// What a rule does to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Deed {
    /// Its mark becomes this.
    Mark(u32),
    /// Its mark becomes its connection's.
    Restore,
    /// Its mark becomes something else.
    OtherMark,
    /// Its destination becomes this, or something else.
    Destination(Option<IpAddr>),
    /// It is handed to a link, or copied.
    Forward,
    /// Its content changes.
    Write,
}

enum Judged {
    Found(&'static Kind),
    Noted(&'static str),
}

fn judge_deed(deed: &Deed, hooks: &Hooks, family: u8, ours: u32) -> Option<Judged> {
    let arrives_only = hooks.numbers.iter().all(|hook| ARRIVING.contains(hook));
    let sent_from_here = family != NETDEV && hooks.numbers.contains(&OUTPUT);
    match deed {
        Deed::Mark(mark) if *mark == ours => Some(Judged::Found(&MARK_SET)),
        Deed::Restore if arrives_only => {
            Some(Judged::Noted("restores marks of connections on what arrives"))
        }
        Deed::Restore => Some(Judged::Found(&MARK_RESTORED)),
        Deed::Mark(_) | Deed::OtherMark | Deed::Write if hooks.routes => {
            Some(Judged::Found(&ROUTE_CHAIN))
        }
        Deed::Destination(Some(address)) if sent_from_here && is_far(*address) => {
            Some(Judged::Found(&DNAT_OUTPUT))
        }
        Deed::Destination(_) if sent_from_here => {
            Some(Judged::Noted("redirects what this machine sends to containers or guests"))
        }
        Deed::Forward => Some(Judged::Found(&NFT_FORWARD)),
        _ => None,
    }
}

/// Beyond this machine, its containers and its LAN.
fn is_far(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified())
        }
        IpAddr::V6(v6) => {
            !(v6.is_unique_local()
                || v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_unspecified())
        }
    }
}

/// What is in a register.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Held {
    Bytes(Value),
    ConnectionMark,
}

const META_MARK: u32 = 3;
/// NFT_CT_MARK.
const CT_MARK: u32 = 3;

fn deeds(expressions: &[Expression]) -> Vec<Deed> {
    let mut registers: BTreeMap<u32, Held> = BTreeMap::new();
    let mut deeds = Vec::new();
    for expression in expressions {
        match expression {
            Expression::Immediate { register, data } => {
                registers.insert(*register, Held::Bytes(data.clone()));
            }
            Expression::Ct { key: CT_MARK, register, .. } => {
                registers.insert(*register, Held::ConnectionMark);
            }
            Expression::Bitwise { register, mask, xor } => {
                change(&mut registers, *register, mask, xor)
            }
            Expression::MetaSet { key: META_MARK, register } => {
                deeds.push(match registers.get(register) {
                    Some(Held::Bytes(bytes)) => number(bytes).map_or(Deed::OtherMark, Deed::Mark),
                    Some(Held::ConnectionMark) => Deed::Restore,
                    None => Deed::OtherMark,
                });
            }
            // Of a packet that has none: what `meta mark set meta mark or` makes of it.
            Expression::Meta { key: META_MARK, register } => {
                registers.insert(*register, Held::Bytes(Value::from_elem(0, 4)));
            }
            Expression::Meta { register, .. }
            | Expression::Ct { register, .. }
            | Expression::Fib { register, .. }
            | Expression::Payload { register, .. } => {
                registers.remove(register);
            }
            Expression::Foreign { name, data } => deeds.extend(foreign(name, data, &registers)),
            _ => {}
        }
    }
    deeds
}

fn change(registers: &mut BTreeMap<u32, Held>, register: u32, mask: &[u8], xor: &[u8]) {
    let changed = match registers.get(&register) {
        Some(Held::ConnectionMark) if mask.iter().any(|&byte| byte != 0) => return,
        Some(Held::Bytes(bytes)) => bytes.clone(),
        _ if mask.iter().all(|&byte| byte == 0) => Value::from_elem(0, xor.len()),
        _ => return,
    };
    let bytes = changed.iter().zip(mask).zip(xor).map(|((byte, mask), xor)| byte & mask ^ xor);
    registers.insert(register, Held::Bytes(bytes.collect()));
}

/// Marks are in the machine's own order.
fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// Expressions that our own rules do not have.
fn foreign(name: &str, data: &[u8], registers: &BTreeMap<u32, Held>) -> Option<Deed> {
    /// NFTA_PAYLOAD_SREG.
    const PAYLOAD_SOURCE: u16 = 5;
    let attributes = Attributes(data);
    let at =
        |kind: u16| attributes.get(kind).and_then(|it| it.try_into().ok()).map(u32::from_be_bytes);
    match name {
        "fwd" | "dup" => Some(Deed::Forward),
        "payload" if attributes.get(PAYLOAD_SOURCE).is_some() => Some(Deed::Write),
        // NFTA_NAT_TYPE: NFT_NAT_DNAT; NFTA_NAT_REG_ADDR_MIN.
        "nat" if at(1) == Some(1) => {
            let address = at(3).and_then(|register| match registers.get(&register) {
                Some(Held::Bytes(bytes)) => address(bytes),
                _ => None,
            });
            Some(Deed::Destination(address))
        }
        // NFTA_TARGET_NAME, NFTA_TARGET_INFO.
        "target" => {
            let name = String::from_utf8_lossy(attributes.get(1)?);
            extension(name.trim_end_matches('\0'), attributes.get(3).unwrap_or_default())
        }
        _ => None,
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// Targets of iptables-nft (include/uapi/linux/netfilter/xt_*.h).
fn extension(name: &str, info: &[u8]) -> Option<Deed> {
    /// XT_CONNMARK_RESTORE.
    const RESTORE: u8 = 2;
    match name {
        // xt_mark_tginfo2: mark, mask.
        "MARK" => Some(info.get(..4).and_then(number).map_or(Deed::OtherMark, Deed::Mark)),
        // xt_connmark_tginfo1: ctmark, ctmask, nfmask, mode.
        "CONNMARK" if info.get(12) == Some(&RESTORE) => Some(Deed::Restore),
        "TEE" => Some(Deed::Forward),
        // nf_nat_range2: flags, the first address in sixteen bytes; an IPv4 one fills four.
        "DNAT" => {
            let bytes = info.get(4..20)?;
            let short = bytes[4..].iter().all(|&byte| byte == 0);
            Some(Deed::Destination(address(if short { &bytes[..4] } else { bytes })))
        }
        _ => None,
    }
}

/// A table that can only filter cannot let out what the lock drops.
pub(super) fn legacy(facts: &Facts, _: &Wanted) -> Result<Found, Unknown> {
    let mut found = Found::default();
    for table in known(&facts.legacy)? {
        let (family, name) = table.split_once(' ').unwrap_or(("ip", table));
        let program = format!("{family}tables-legacy");
        match name {
            "filter" | "security" => {
                found.note(format!("{program} has table {name}, which cannot open the lock"))
            }
            _ => {
                let cure = format!("{program} -t {name} -S; then flush it: {program} -t {name} -F");
                found.find(&IPTABLES_LEGACY, format!("{program}, table {name}"), cure);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, ids, wanted};
    use super::*;
    use crate::netfilter::live::{LiveBase, LiveChain, LiveRule};

    const OURS: u32 = 0x6b73;

    fn table(family: u8, kind: &str, hook: u32, expressions: Vec<Expression>) -> ForeignTable {
        let base = LiveBase {
            kind: kind.into(),
            hook,
            priority: 0,
            policy: 1,
            devices: Vec::new(),
            every_device: false,
        };
        let rule = LiveRule { expressions, comment: String::new(), counted: None };
        let jump = Expression::Verdict { code: -3, chain: Some("inner".into()) };
        let jumps = LiveRule { expressions: vec![jump], comment: String::new(), counted: None };
        let chains = [
            ("outer".to_owned(), LiveChain { base: Some(base), rules: vec![jumps] }),
            ("inner".to_owned(), LiveChain { base: None, rules: vec![rule] }),
        ];
        let table = LiveTable { chains: chains.into(), ..LiveTable::default() };
        ForeignTable { family, name: "foreign".into(), table }
    }

    fn with(table: ForeignTable) -> Vec<&'static str> {
        let mut facts = facts();
        facts.tables = Ok(vec![table]);
        ids(&facts, &wanted())
    }

    fn mark(value: u32) -> Vec<Expression> {
        let data = Value::from_slice(&value.to_ne_bytes());
        vec![
            Expression::Immediate { register: 1, data },
            Expression::MetaSet { key: 3, register: 1 },
        ]
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn target(name: &[u8], info: &[u8]) -> Vec<Expression> {
        let data = [attribute(1, name), attribute(3, info)].concat();
        vec![Expression::Foreign { name: "target".into(), data }]
    }

    #[test]
    fn our_mark_is_found_wherever_it_is_set() {
        assert_eq!(with(table(1, "filter", 3, mark(OURS))), ["mark-set"]);
        assert_eq!(with(table(1, "filter", 3, mark(1))), [""; 0]);
        let info = [OURS.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat();
        assert_eq!(with(table(2, "filter", 3, target(b"MARK\0", &info))), ["mark-set"]);
        let mut asleep = table(1, "filter", 3, mark(OURS));
        asleep.table.flags = DORMANT;
        assert_eq!(with(asleep), [""; 0]);
        let mut idle = table(1, "filter", 3, mark(OURS));
        idle.table.chains.remove("outer");
        assert_eq!(with(idle), [""; 0], "no packet gets there");
    }

    #[test]
    fn a_constant_may_be_made_of_anything() {
        let (mask, xor) = (Value::from_elem(0, 4), Value::from_slice(&OURS.to_ne_bytes()));
        let zeroed = Expression::Bitwise { register: 1, mask, xor };
        let rule = vec![
            Expression::Meta { key: 3, register: 1 },
            zeroed,
            Expression::MetaSet { key: 3, register: 1 },
        ];
        assert_eq!(with(table(1, "filter", 3, rule)), ["mark-set"]);
    }

    #[test]
    fn a_mark_may_be_added_to_the_packets_own() {
        let set = |xor: u32| {
            let xor = Value::from_slice(&xor.to_ne_bytes());
            let mask = Value::from_slice(&0xffff_0000_u32.to_ne_bytes());
            vec![
                Expression::Meta { key: 3, register: 1 },
                Expression::Bitwise { register: 1, mask, xor },
                Expression::MetaSet { key: 3, register: 1 },
            ]
        };
        assert_eq!(with(table(1, "filter", 3, set(OURS))), ["mark-set"]);
        assert_eq!(with(table(1, "filter", 3, set(0x4000))), [""; 0], "kube-proxy does");
    }

    #[test]
    fn a_map_of_verdicts_may_lead_anywhere() {
        let mut jumps = table(1, "filter", 3, mark(OURS));
        let data =
            [attribute(1, b"m\0"), attribute(2, &[0, 0, 0, 1]), attribute(3, &[0; 4])].concat();
        let lookup = vec![Expression::Foreign { name: "lookup".into(), data }];
        jumps.table.chains.get_mut("outer").unwrap().rules[0].expressions = lookup;
        assert_eq!(with(jumps), ["mark-set"]);
    }

    #[test]
    fn marks_are_restored_on_what_leaves() {
        let restore = vec![
            Expression::Ct { key: CT_MARK, direction: None, register: 1 },
            Expression::MetaSet { key: 3, register: 1 },
        ];
        assert_eq!(with(table(1, "filter", 3, restore.clone())), ["mark-restored"]);
        assert_eq!(with(table(1, "filter", 0, restore)), [""; 0], "wg-quick does");
        let info = [&[0; 12][..], &[2]].concat();
        assert_eq!(with(table(2, "filter", 4, target(b"CONNMARK\0", &info))), ["mark-restored"]);
    }

    #[test]
    fn destinations_far_away_are_found_and_containers_are_not() {
        let to = |address: [u8; 4]| {
            let data = [attribute(1, &[0, 0, 0, 1]), attribute(3, &[0, 0, 0, 1])].concat();
            vec![
                Expression::Immediate { register: 1, data: Value::from_slice(&address) },
                Expression::Foreign { name: "nat".into(), data },
            ]
        };
        assert_eq!(with(table(2, "nat", 3, to([203, 0, 113, 10]))), ["dnat-output"]);
        assert_eq!(with(table(2, "nat", 3, to([172, 17, 0, 2]))), [""; 0]);
        assert_eq!(with(table(2, "nat", 0, to([203, 0, 113, 10]))), [""; 0]);
        let info = [&[0; 4][..], &[203, 0, 113, 10], &[0; 12]].concat();
        assert_eq!(with(table(2, "nat", 3, target(b"DNAT\0", &info))), ["dnat-output"]);
    }

    #[test]
    fn what_hands_packets_over_or_routes_them_anew_is_found() {
        let fwd = vec![Expression::Foreign { name: "fwd".into(), data: Vec::new() }];
        assert_eq!(with(table(5, "filter", 0, fwd)), ["nft-forward"]);
        assert_eq!(with(table(1, "route", 3, mark(1))), ["route-chain"]);
        assert_eq!(with(table(1, "route", 3, Vec::new())), [""; 0]);
        let mut flows = table(1, "filter", 2, Vec::new());
        flows.table.flowtables.insert("f".into());
        assert_eq!(with(flows), ["flowtable"]);
    }

    #[test]
    fn tables_of_iptables_legacy_that_can_do_more_than_filter() {
        let mut it = facts();
        it.legacy = Ok(["ip filter".to_owned(), "ip6 mangle".into()].into());
        assert_eq!(ids(&it, &wanted()), ["iptables-legacy"]);
    }
}
