//! A ruleset as `nft -f` reads it.

use std::fmt::{self, Write};
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
        text.push('\n');
        push_set(&mut text, set);
    }
    for chain in &table.chains {
        text.push('\n');
        push_chain(&mut text, chain);
    }
    text.push_str("}\n");
    text
}

fn push_set(text: &mut String, set: &Set) {
    let key: Vec<_> = set.key.iter().map(|kind| kind.set_type_name()).collect();
    let _ = writeln!(text, "\tset {} {{\n\t\ttype {}", set.name, key.join(" . "));
    if set.interval {
        text.push_str("\t\tflags interval\n");
    }
    for (number, it) in set.elements.iter().enumerate() {
        text.push_str(if number == 0 { "\t\telements = { " } else { ",\n\t\t\t     " });
        push_element(text, &set.key, it);
    }
    if !set.elements.is_empty() {
        text.push_str(" }\n");
    }
    text.push_str("\t}\n");
}

fn push_chain(text: &mut String, chain: &Chain) {
    text.extend(["\tchain ", &chain.name, " {\n"]);
    if let Some(base) = &chain.base {
        let _ = writeln!(text, "\t\t{}", hook(base));
    }
    for it in &chain.rules {
        text.push_str("\t\t");
        push_rule(text, it);
        text.push('\n');
    }
    text.push_str("\t}\n");
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
    push_action(text, &rule.action);
    if !rule.comment.is_empty() {
        text.extend([" comment \"", &rule.comment, "\""]);
    }
}

/// What a rule does, as nft writes it.
pub fn action(action: &Action) -> String {
    let mut text = String::new();
    push_action(&mut text, action);
    text
}

fn push_action(text: &mut String, action: &Action) {
    let _ = match action {
        Action::Accept => text.write_str("accept"),
        Action::Drop => text.write_str("drop"),
        Action::Reject(Rejection::AdminProhibited) => {
            text.write_str("reject with icmpx admin-prohibited")
        }
        Action::Reject(Rejection::TcpReset) => text.write_str("reject with tcp reset"),
        Action::Jump(chain) => write!(text, "jump {chain}"),
        Action::Return => text.write_str("return"),
        Action::SetMark(mark) => write!(text, "meta mark set {mark:#010x}"),
        Action::Masquerade => text.write_str("masquerade"),
        Action::Log { rate, burst } => {
            write!(text, "limit rate {rate}/second burst {burst} packets log group {LOG_GROUP}")
        }
    };
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
    let _ = match &it.test {
        Test::Is(bytes) => write!(text, "{}", value(kind, bytes)),
        Test::Between(first, last) => {
            write!(text, "{}-{}", value(kind, first), value(kind, last))
        }
        Test::Masked { mask, value: bytes } => {
            let length: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
            write!(text, "{}/{length}", value(kind, bytes))
        }
        Test::AnyOf(mask) => match kind {
            ValueKind::Number(_) => write!(text, "& {} != 0", value(kind, mask)),
            _ => write!(text, "{}", value(kind, mask)),
        },
        Test::StartsWith(start) => write!(text, "\"{}*\"", String::from_utf8_lossy(start)),
        Test::In(set) => write!(text, "@{set}"),
    };
}

/// One element of a set with keys of these kinds.
pub fn element(key: &[ValueKind], element: &Element) -> String {
    let mut text = String::new();
    push_element(&mut text, key, element);
    text
}

fn push_element(text: &mut String, key: &[ValueKind], element: &Element) {
    let mut at = 0;
    for (number, kind) in key.iter().enumerate() {
        text.push_str(if number == 0 { "" } else { " . " });
        let length = kind.length() as usize;
        push_range(text, *kind, &element.first[at..at + length], &element.last[at..at + length]);
        at += length.next_multiple_of(4);
    }
}

fn push_range(text: &mut String, kind: ValueKind, first: &[u8], last: &[u8]) {
    let _ = write!(text, "{}", value(kind, first));
    if first == last {
        return;
    }
    let _ = match prefix_length(first, last) {
        Some(length) => write!(text, "/{length}"),
        None => write!(text, "-{}", value(kind, last)),
    };
}

/// The length of the prefix whose first and last addresses these are.
fn prefix_length(first: &[u8], last: &[u8]) -> Option<u32> {
    let bits = |bytes: &[u8]| bytes.iter().fold(0u128, |sum, &byte| sum << 8 | u128::from(byte));
    let hosts = bits(first) ^ bits(last);
    let is_prefix = hosts & hosts.wrapping_add(1) == 0 && bits(first) & hosts == 0;
    is_prefix.then(|| first.len() as u32 * 8 - hosts.count_ones())
}

/// A value as nft writes it.
pub fn value(kind: ValueKind, bytes: &[u8]) -> impl fmt::Display {
    struct Written<'a>(ValueKind, &'a [u8]);
    impl fmt::Display for Written<'_> {
        fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_value(out, self.0, self.1)
        }
    }
    Written(kind, bytes)
}

fn write_value(out: &mut fmt::Formatter<'_>, kind: ValueKind, bytes: &[u8]) -> fmt::Result {
    let named = |out: &mut fmt::Formatter<'_>, number: u64, names: &[(u64, &str)]| match names
        .iter()
        .find(|it| it.0 == number)
    {
        Some((_, name)) => out.write_str(name),
        None => write!(out, "{number}"),
    };
    match kind {
        ValueKind::Ipv4 => match <[u8; 4]>::try_from(bytes) {
            Ok(octets) => write!(out, "{}", Ipv4Addr::from(octets)),
            Err(_) => write_hex(out, bytes),
        },
        ValueKind::Ipv6 => match <[u8; 16]>::try_from(bytes) {
            Ok(octets) => write!(out, "{}", Ipv6Addr::from(octets)),
            Err(_) => write_hex(out, bytes),
        },
        ValueKind::Protocol => {
            let names = [(1, "icmp"), (2, "igmp"), (6, "tcp"), (17, "udp"), (58, "ipv6-icmp")];
            named(out, big_endian(bytes), &names)
        }
        ValueKind::Ethertype => match big_endian(bytes) {
            0x0800 => out.write_str("ip"),
            0x0806 => out.write_str("arp"),
            0x86dd => out.write_str("ip6"),
            other => write!(out, "{other:#06x}"),
        },
        ValueKind::Nfproto => named(out, big_endian(bytes), &[(2, "ipv4"), (10, "ipv6")]),
        ValueKind::Mark => write!(out, "{:#010x}", host_endian(bytes)),
        ValueKind::Name => {
            let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
            write!(out, "\"{}\"", String::from_utf8_lossy(&bytes[..end]))
        }
        ValueKind::Link => named(out, host_endian(bytes).into(), &[(1, "\"lo\"")]),
        ValueKind::Linktype => {
            named(out, host_endian(bytes).into(), &[(1, "ether"), (772, "loopback")])
        }
        ValueKind::Addrtype => named(out, host_endian(bytes).into(), &[(2, "local")]),
        ValueKind::Presence => {
            named(out, host_endian(bytes).into(), &[(0, "missing"), (1, "exists")])
        }
        ValueKind::CtState => {
            let names =
                [(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")];
            out.write_str(&flags(host_endian(bytes), &names))
        }
        ValueKind::CtStatus => {
            out.write_str(&flags(host_endian(bytes), &[(16, "snat"), (32, "dnat")]))
        }
        ValueKind::CtDirection => match big_endian(bytes) {
            0 => out.write_str("original"),
            _ => out.write_str("reply"),
        },
        ValueKind::Port | ValueKind::Number(1) => write!(out, "{}", big_endian(bytes)),
        ValueKind::Number(_) => write!(out, "{:#x}", big_endian(bytes)),
    }
}

fn write_hex(out: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    out.write_str("0x")?;
    bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
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
