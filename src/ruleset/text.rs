//! A ruleset as `nft -f` reads it.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    Action, Base, Chain, ChainKind, ChainPolicy, Devices, Element, LOG_GROUP, Match, Rejection,
    Rule, Set, TABLE, Table, Test, ValueKind,
};

/// The table as a file for `nft -f`: replaces what is there in one transaction, in place.
pub fn script(table: &Table) -> String {
    let family = table.family;
    let mut text = String::new();
    let _ = writeln!(text, "table {family} {TABLE}\nflush table {family} {TABLE}");
    let _ = write!(text, "table {family} {TABLE} {{");
    for set in &table.sets {
        let _ = write!(text, "\n{}", self::set(set));
    }
    for chain in &table.chains {
        let _ = write!(text, "\n{}", self::chain(chain));
    }
    text.push_str("}\n");
    text
}

fn set(set: &Set) -> String {
    let key: Vec<_> = set.key.iter().map(|kind| kind.set_type_name()).collect();
    let mut text = format!("\tset {} {{\n\t\ttype {}\n", set.name, key.join(" . "));
    if set.interval {
        text.push_str("\t\tflags interval\n");
    }
    if !set.elements.is_empty() {
        let elements: Vec<_> = set.elements.iter().map(|it| element(&set.key, it)).collect();
        let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(",\n\t\t\t     "));
    }
    text.push_str("\t}\n");
    text
}

fn chain(chain: &Chain) -> String {
    let mut text = format!("\tchain {} {{\n", chain.name);
    if let Some(base) = &chain.base {
        let _ = writeln!(text, "\t\t{}", hook(base));
    }
    for it in &chain.rules {
        text.push_str("\t\t");
        push_rule(&mut text, it);
        text.push('\n');
    }
    text.push_str("\t}\n");
    text
}

pub(super) fn hook(base: &Base) -> String {
    let kind = match base.kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
    };
    let devices = match &base.devices {
        Devices::None => String::new(),
        Devices::Every => " devices = { \"*\" }".into(),
        Devices::Named(names) => {
            let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
            format!(" devices = {{ {} }}", names.join(", "))
        }
    };
    let policy = match base.policy {
        ChainPolicy::Accept => "accept",
        ChainPolicy::Drop => "drop",
    };
    let (hook, priority) = (base.hook.name(), base.priority);
    format!("type {kind} hook {hook}{devices} priority {priority}; policy {policy};")
}

/// One rule as nft writes it.
pub fn rule(rule: &Rule) -> String {
    let mut text = String::new();
    push_rule(&mut text, rule);
    text
}

fn push_rule(text: &mut String, rule: &Rule) {
    for it in &rule.matches {
        push_condition(text, it);
        text.push(' ');
    }
    if rule.counter {
        text.push_str("counter ");
    }
    text.push_str(&action(&rule.action));
    if !rule.comment.is_empty() {
        text.extend([" comment \"", &rule.comment, "\""]);
    }
}

/// What a rule does, as nft writes it.
pub fn action(action: &Action) -> String {
    match action {
        Action::Accept => "accept".into(),
        Action::Drop => "drop".into(),
        Action::Reject(Rejection::AdminProhibited) => "reject with icmpx admin-prohibited".into(),
        Action::Reject(Rejection::TcpReset) => "reject with tcp reset".into(),
        Action::Jump(chain) => format!("jump {chain}"),
        Action::Return => "return".into(),
        Action::SetMark(mark) => format!("meta mark set {mark:#010x}"),
        Action::Masquerade => "masquerade".into(),
        Action::Log { rate, burst } => {
            format!("limit rate {rate}/second burst {burst} packets log group {LOG_GROUP}")
        }
    }
}

/// One condition as nft writes it.
pub fn condition(it: &Match) -> String {
    let mut text = String::new();
    push_condition(&mut text, it);
    text
}

fn push_condition(text: &mut String, it: &Match) {
    for (number, field) in it.fields.iter().enumerate() {
        text.push_str(if number == 0 { "" } else { " . " });
        text.push_str(field.name());
    }
    text.push(' ');
    let kind = it.fields[0].kind();
    match &it.test {
        Test::Is(bytes) => text.push_str(&value(kind, bytes)),
        Test::Between(first, last) => {
            text.extend([value(kind, first), "-".into(), value(kind, last)]);
        }
        Test::Masked { mask, value: bytes } => {
            let length: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
            text.extend([value(kind, bytes), format!("/{length}").into()]);
        }
        Test::AnyOf(mask) => match kind {
            ValueKind::Number(_) => text.extend(["& ", &value(kind, mask), " != 0"]),
            _ => text.push_str(&value(kind, mask)),
        },
        Test::StartsWith(start) => {
            text.extend(["\"", &String::from_utf8_lossy(start), "*\""]);
        }
        Test::In(set) => text.extend(["@", set]),
    }
}

/// One element of a set with keys of these kinds.
pub fn element(key: &[ValueKind], element: &Element) -> String {
    let mut parts = Vec::new();
    let mut at = 0;
    for kind in key {
        let length = kind.length() as usize;
        let (first, last) = (&element.first[at..at + length], &element.last[at..at + length]);
        parts.push(range(*kind, first, last));
        at += length.next_multiple_of(4);
    }
    parts.join(" . ")
}

fn range(kind: ValueKind, first: &[u8], last: &[u8]) -> Cow<'static, str> {
    if first == last {
        return value(kind, first);
    }
    match prefix_length(first, last) {
        Some(length) => format!("{}/{length}", value(kind, first)).into(),
        None => format!("{}-{}", value(kind, first), value(kind, last)).into(),
    }
}

/// The length of the prefix whose first and last addresses these are.
fn prefix_length(first: &[u8], last: &[u8]) -> Option<u32> {
    let bits = |bytes: &[u8]| bytes.iter().fold(0u128, |sum, &byte| sum << 8 | u128::from(byte));
    let hosts = bits(first) ^ bits(last);
    let is_prefix = hosts & hosts.wrapping_add(1) == 0 && bits(first) & hosts == 0;
    is_prefix.then(|| first.len() as u32 * 8 - hosts.count_ones())
}

/// A value as nft writes it.
pub fn value(kind: ValueKind, bytes: &[u8]) -> Cow<'static, str> {
    match kind {
        ValueKind::Ipv4 => match <[u8; 4]>::try_from(bytes) {
            Ok(octets) => Ipv4Addr::from(octets).to_string().into(),
            Err(_) => hex(bytes).into(),
        },
        ValueKind::Ipv6 => match <[u8; 16]>::try_from(bytes) {
            Ok(octets) => Ipv6Addr::from(octets).to_string().into(),
            Err(_) => hex(bytes).into(),
        },
        ValueKind::Protocol => match big_endian(bytes) {
            1 => "icmp".into(),
            2 => "igmp".into(),
            6 => "tcp".into(),
            17 => "udp".into(),
            58 => "ipv6-icmp".into(),
            other => other.to_string().into(),
        },
        ValueKind::Port => big_endian(bytes).to_string().into(),
        ValueKind::Ethertype => match big_endian(bytes) {
            0x0800 => "ip".into(),
            0x0806 => "arp".into(),
            0x86dd => "ip6".into(),
            other => format!("{other:#06x}").into(),
        },
        ValueKind::Nfproto => match big_endian(bytes) {
            2 => "ipv4".into(),
            10 => "ipv6".into(),
            other => other.to_string().into(),
        },
        ValueKind::Mark => format!("{:#010x}", host_endian(bytes)).into(),
        ValueKind::Name => {
            let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
            format!("\"{}\"", String::from_utf8_lossy(&bytes[..end])).into()
        }
        ValueKind::Link => match host_endian(bytes) {
            1 => "\"lo\"".into(),
            other => other.to_string().into(),
        },
        ValueKind::Linktype => match host_endian(bytes) {
            1 => "ether".into(),
            772 => "loopback".into(),
            other => other.to_string().into(),
        },
        ValueKind::Addrtype => match host_endian(bytes) {
            2 => "local".into(),
            other => other.to_string().into(),
        },
        ValueKind::CtState => flags(
            host_endian(bytes),
            &[(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")],
        )
        .into(),
        ValueKind::CtStatus => flags(host_endian(bytes), &[(16, "snat"), (32, "dnat")]).into(),
        ValueKind::CtDirection => match big_endian(bytes) {
            0 => "original".into(),
            _ => "reply".into(),
        },
        ValueKind::Number(1) => big_endian(bytes).to_string().into(),
        ValueKind::Number(_) => format!("{:#x}", big_endian(bytes)).into(),
    }
}

fn flags(mut mask: u32, names: &[(u32, &str)]) -> String {
    let mut words: Vec<String> = Vec::new();
    for (bit, name) in names {
        if mask & bit != 0 {
            words.push((*name).into());
            mask &= !bit;
        }
    }
    if mask != 0 || words.is_empty() {
        words.push(format!("{mask:#x}"));
    }
    words.join(",")
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

fn host_endian(bytes: &[u8]) -> u32 {
    match *bytes {
        [a, b] => u32::from(u16::from_ne_bytes([a, b])),
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]),
        _ => 0,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("0x"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
