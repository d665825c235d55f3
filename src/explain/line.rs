//! A packet from a line of text: what `tcpdump` and `tshark` print of one, `killswitch monitor` of one
//! that was blocked, `killswitch leaktest` of one that leaked, and the kernel's LOG. Pure.
//!
//! Strict: a line that is not understood is refused, and what it does not tell is said to be assumed.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::{Words, mark, protocol};

/// Bytes; longer than any line that one of these programs prints of a packet.
const LONGEST: usize = 4096;

/// What a line tells.
#[derive(Debug)]
pub struct Read {
    /// The packet.
    pub words: Words,
    /// What the line does not tell, and what was taken for it.
    pub assumed: Vec<String>,
}

/// Reads a line.
///
/// # Errors
/// What cannot be read in it, and what to do.
pub fn read(line: &str) -> Result<Read, String> {
    let line = line.trim();
    if line.len() > LONGEST {
        return Err(format!("the line is too long: {} bytes, and {LONGEST} at most", line.len()));
    }
    if line.starts_with('{') {
        return event(line);
    }
    if let Some((_, words)) = line.split_once("blocked: ") {
        return monitor(words);
    }
    if line.contains("SRC=") && line.contains("DST=") {
        return log(line);
    }
    let tokens: Vec<&str> = line.split_whitespace().collect();
    if let Some(read) = leaktest(&tokens) {
        return Ok(read);
    }
    match tokens.iter().position(|&token| is_arrow(token)) {
        Some(at) => tshark(&tokens, at),
        None => tcpdump(&tokens),
    }
}

/// Reads a line, and takes besides what it does not tell: links, the mark, and flags.
///
/// # Errors
/// As [`read`].
pub fn read_besides(line: &str, besides: &Words) -> Result<Read, String> {
    let mut read = read(line)?;
    let words = &mut read.words;
    words.out = besides.out.clone().or(words.out.take());
    words.into = besides.into.clone().or(words.into.take());
    words.wireguard = besides.wireguard.or(words.wireguard);
    words.related = besides.related.or(words.related);
    words.reply |= besides.reply;
    words.frame |= besides.frame;
    if besides.mark != 0 {
        words.mark = besides.mark;
    }
    Ok(read)
}

fn new(words: Words) -> Read {
    Read { words, assumed: Vec::new() }
}

impl Read {
    fn assume(&mut self, what: impl Into<String>) {
        self.assumed.push(what.into());
    }

    /// A packet of which nothing says whether it is the first of its connection.
    fn assume_first(&mut self) {
        if matches!(self.words.proto, 6 | 17) && !self.words.reply {
            self.assume("it begins a connection; --reply if it answers");
        }
    }
}

/// `81 bytes on eth0: udp 192.168.1.5:40000 -> 1.1.1.1:53`, with or without what is before the
/// protocol. `None`: it is none of these.
fn leaktest(tokens: &[&str]) -> Option<Read> {
    let mut read = new(Words::default());
    let mut rest = tokens;
    if let [_, "bytes", "on", link, after @ ..] = tokens {
        read.words.out = Some(link.strip_suffix(':')?.to_owned());
        rest = after;
    }
    let words = &mut read.words;
    match rest {
        [name @ ("tcp" | "udp"), from, "->", to] => {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().ok()?, to.parse().ok()?);
            (words.from, words.to) = (Some(from.ip()), Some(to.ip()));
            (words.sport, words.port) = (from.port(), Some(to.port()));
            words.proto = if *name == "tcp" { 6 } else { 17 };
            read.assume_first();
        }
        ["icmp", "type", kind, from, "->", to] => {
            (words.from, words.to) = (from.parse().ok(), to.parse().ok());
            words.proto = if words.to?.is_ipv4() { 1 } else { 58 };
            words.icmp_type = Some(number(kind)?);
        }
        ["ip", "protocol", name, from, "->", to] => {
            (words.from, words.to) = (from.parse().ok(), Some(to.parse().ok()?));
            words.proto = number(name)?;
        }
        ["frame", "of", "type", kind] => {
            let kind = u16::from_str_radix(kind.strip_prefix("0x")?, 16).ok()?;
            frame(words, kind);
        }
        _ => return None,
    }
    Some(read)
}

/// A line of `tcpdump -e` as it is without -e.
fn without_hardware<'a>(tokens: &[&'a str]) -> Option<Vec<&'a str>> {
    let at = tokens.iter().position(|it| *it == "ethertype")?;
    let before = tokens.get(..at.checked_sub(3)?).filter(|_| tokens[at - 2] == ">")?;
    let name = match *tokens.get(at + 1)? {
        "IPv4" => "IP",
        "IPv6" => "IP6",
        "ARP" => "ARP,",
        _ => return None,
    };
    // "(0x0800), length 71:"
    let after = tokens.get(at + 5..).filter(|_| tokens[at + 3] == "length")?;
    Some([before, &[name], after].concat())
}

/// `12:00:00.1 eth0 Out IP 192.168.1.5.40000 > 1.1.1.1.53: 1234+ A? example.org. (29)`
fn tcpdump(tokens: &[&str]) -> Result<Read, String> {
    let bare = without_hardware(tokens);
    let tokens = bare.as_deref().unwrap_or(tokens);
    let is_time = |token: &&&str| {
        token.starts_with(|it: char| it.is_ascii_digit())
            && token.bytes().all(|byte| byte.is_ascii_digit() || b":.-".contains(&byte))
    };
    let times = tokens.iter().take(2).take_while(is_time).count();
    let mut read = new(Words::default());
    let mut rest = &tokens[times..];
    if let [link, direction @ ("In" | "Out" | "B" | "M" | "P"), after @ ..] = rest {
        let link = Some((*link).to_owned());
        match *direction {
            "Out" => read.words.out = link,
            _ => read.words.into = link,
        }
        rest = after;
    }
    match rest {
        ["ARP,", words @ ..] => arp(read, words),
        ["IP" | "IP6", from, ">", to, tail @ ..] => {
            let to = to.strip_suffix(':').ok_or_else(|| unread(to, "ADDRESS: after \">\""))?;
            let (from, sport) = end(from)?;
            let (to, port) = end(to)?;
            read.words.from = Some(from);
            read.words.to = Some(to);
            tcpdump_protocol(&mut read, sport.zip(port), tail)?;
            Ok(read)
        }
        ["IP" | "IP6", ..] => Err("no \"SOURCE > DESTINATION:\"; print the line without -v".into()),
        _ => Err("not a line of tcpdump, tshark, `killswitch monitor` or the kernel's LOG".into()),
    }
}

fn unread(token: &str, wanted: &str) -> String {
    format!("{token:?} is not {wanted}")
}

/// An address, with the port after its last dot.
fn end(token: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(address) = token.parse() {
        return Ok((address, None));
    }
    let parts = || {
        let (address, port) = token.rsplit_once('.')?;
        Some((address.parse().ok()?, Some(port_number(port)?)))
    };
    parts().ok_or_else(|| unread(token, "an address with its port; run tcpdump with -n"))
}

/// A number, or one of the names that tcpdump prints without -n.
fn port_number(text: &str) -> Option<u16> {
    const NAMES: [(&str, u16); 12] = [
        ("ssh", 22),
        ("domain", 53),
        ("bootps", 67),
        ("bootpc", 68),
        ("http", 80),
        ("ntp", 123),
        ("https", 443),
        ("dhcpv6-client", 546),
        ("dhcpv6-server", 547),
        ("domain-s", 853),
        ("mdns", 5353),
        ("hostmon", 5355),
    ];
    let named = || NAMES.iter().find(|(name, _)| *name == text).map(|(_, port)| *port);
    number(text).or_else(named)
}

fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn tcpdump_protocol(
    read: &mut Read,
    ports: Option<(u16, u16)>,
    tail: &[&str],
) -> Result<(), String> {
    let text = tail.join(" ");
    let icmp = text.strip_prefix("HBH ").unwrap_or(&text);
    let words = &mut read.words;
    if let Some(kind) = icmp.strip_prefix("ICMP ") {
        return icmp_words(words, 1, kind);
    }
    if let Some(kind) = icmp.strip_prefix("ICMP6, ") {
        return icmp_words(words, 58, kind);
    }
    const BARE: [(&str, u8); 5] =
        [("igmp", 2), ("GREv", 47), ("ESP(", 50), ("AH(", 51), ("sctp", 132)];
    if let Some((_, number)) = BARE.iter().find(|(name, _)| text.starts_with(name)) {
        words.proto = *number;
        words.hop_limit = (*number == 2).then_some(1);
        return Ok(());
    }
    if let Some(rest) = text.strip_prefix("ip-proto-") {
        let digits = rest.split(' ').next().unwrap_or_default();
        words.proto = number(digits).ok_or_else(|| unread(digits, "a protocol's number"))?;
        return Ok(());
    }
    let (sport, port) = ports.ok_or_else(|| unread(&text, "a protocol that can be read"))?;
    (words.sport, words.port) = (sport, Some(port));
    if let Some(flags) = text.strip_prefix("Flags [") {
        words.proto = 6;
        words.reply = flags.starts_with("S.]");
    } else if text.starts_with("tcp") {
        words.proto = 6;
    } else {
        words.proto = 17;
        if !text.starts_with("UDP") {
            read.assume("UDP: the line names no protocol, and no TCP flags");
        }
    }
    if !text.starts_with("Flags [S]") {
        read.assume_first();
    }
    Ok(())
}

/// Types by how their description begins, the longer ones first.
fn icmp_words(words: &mut Words, protocol: u8, text: &str) -> Result<(), String> {
    const V4: [(&str, u8); 11] = [
        ("echo request", 8),
        ("Echo (ping) request", 8),
        ("echo reply", 0),
        ("Echo (ping) reply", 0),
        ("redirect", 5),
        ("Redirect", 5),
        ("time exceeded", 11),
        ("Time-to-live exceeded", 11),
        ("Destination unreachable", 3),
        ("parameter problem", 12),
        ("source quench", 4),
    ];
    const V6: [(&str, u8); 22] = [
        ("echo request", 128),
        ("Echo (ping) request", 128),
        ("echo reply", 129),
        ("Echo (ping) reply", 129),
        ("destination unreachable", 1),
        ("Destination Unreachable", 1),
        ("packet too big", 2),
        ("Packet Too Big", 2),
        ("time exceeded", 3),
        ("Time Exceeded", 3),
        ("parameter problem", 4),
        ("multicast listener query", 130),
        ("multicast listener report v2", 143),
        ("Multicast Listener Report Message v2", 143),
        ("multicast listener report", 131),
        ("multicast listener done", 132),
        ("router solicitation", 133),
        ("Router Solicitation", 133),
        ("router advertisement", 134),
        ("Router Advertisement", 134),
        ("neighbor solicitation", 135),
        ("Neighbor Solicitation", 135),
    ];
    const V6_REST: [(&str, u8); 4] = [
        ("neighbor advertisement", 136),
        ("Neighbor Advertisement", 136),
        ("redirect", 137),
        ("Redirect", 137),
    ];
    let found = match protocol {
        1 => V4.iter().find(|(name, _)| text.starts_with(name)),
        _ => V6.iter().chain(&V6_REST).find(|(name, _)| text.starts_with(name)),
    };
    let kind = match found {
        Some((_, kind)) => *kind,
        // "1.1.1.1 udp port 53 unreachable"
        None if protocol == 1 && text.contains("unreachable") => 3,
        None => return Err(unread(text, "an ICMP message that can be read")),
    };
    words.proto = protocol;
    words.icmp_type = Some(kind);
    words.reply = matches!((protocol, kind), (1, 0) | (58, 129));
    Ok(())
}

/// `Request who-has 192.168.1.1 tell 192.168.1.5, length 28`
fn arp(mut read: Read, words: &[&str]) -> Result<Read, String> {
    let address = |token: &str| -> Result<IpAddr, String> {
        token
            .trim_end_matches(',')
            .parse()
            .map_err(|_| unread(token, "an address; run tcpdump with -n"))
    };
    let after = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1).copied()
    };
    let (from, to) = match (words.first(), after("who-has"), after("tell")) {
        (_, Some(target), Some(sender)) => (address(sender)?, address(target)?),
        (Some(&("Reply" | "Announcement")), _, _) => {
            let sender = address(words.get(1).copied().unwrap_or_default())?;
            (sender, sender)
        }
        _ => return Err("ARP of a kind that cannot be read".into()),
    };
    frame(&mut read.words, 0x0806);
    (read.words.from, read.words.to) = (Some(from), Some(to));
    Ok(read)
}

/// What is not IP is judged where it is handed to the link.
fn frame(words: &mut Words, ethertype: u16) {
    words.ethertype = Some(ethertype);
    words.frame = true;
}

fn is_arrow(token: &str) -> bool {
    matches!(token, "→" | "->")
}

/// `1 0.000 192.168.1.5 → 1.1.1.1 DNS 71 Standard query 0x1234 A example.org`
fn tshark(tokens: &[&str], at: usize) -> Result<Read, String> {
    let shape = "NUMBER TIME SOURCE → DESTINATION PROTOCOL LENGTH ...";
    let (Some(from), Some(to), Some(name)) =
        (at.checked_sub(1).and_then(|at| tokens.get(at)), tokens.get(at + 1), tokens.get(at + 2))
    else {
        return Err(format!("not tshark's {shape}"));
    };
    let info = tokens.get(at + 4..).unwrap_or_default();
    let mut read = new(Words::default());
    if *name == "ARP" {
        return tshark_arp(read, info);
    }
    let address =
        |token: &str| token.parse().map_err(|_| unread(token, "an address; run tshark with -n"));
    read.words.from = Some(address(from)?);
    read.words.to = Some(address(to)?);
    let text = info.join(" ");
    match *name {
        "ICMP" => icmp_words(&mut read.words, 1, &text)?,
        "ICMPv6" => icmp_words(&mut read.words, 58, &text)?,
        name if name.starts_with("IGMP") => {
            read.words.proto = 2;
            read.words.hop_limit = Some(1);
        }
        name => tshark_ports(&mut read, name, info, &text)?,
    }
    Ok(read)
}

fn tshark_arp(read: Read, info: &[&str]) -> Result<Read, String> {
    let told: Vec<&str> = info.iter().map(|word| word.trim_end_matches('?')).collect();
    match told[..] {
        ["Who", "has", target, "Tell", sender, ..] => {
            arp(read, &["Request", "who-has", target, "tell", sender])
        }
        [sender, "is", "at", ..] => arp(read, &["Reply", sender]),
        _ => Err("ARP of a kind that cannot be read".into()),
    }
}

/// The ports that a line shows, or those of the protocol that it names.
fn tshark_ports(read: &mut Read, name: &str, info: &[&str], text: &str) -> Result<(), String> {
    const KNOWN: [(&str, u8, u16); 11] = [
        ("DNS", 17, 53),
        ("NTP", 17, 123),
        ("QUIC", 17, 443),
        ("WireGuard", 17, 51820),
        ("STUN", 17, 3478),
        ("TLSv1", 6, 443),
        ("SSL", 6, 443),
        ("HTTP", 6, 80),
        ("SSH", 6, 22),
        ("SSHv2", 6, 22),
        ("TLSv1.2", 6, 443),
    ];
    /// From and to the same port, or two fixed ones.
    const FIXED: [(&str, u16, u16); 4] =
        [("MDNS", 5353, 5353), ("DHCPv6", 546, 547), ("DHCP", 68, 67), ("BOOTP", 68, 67)];
    let words = &mut read.words;
    if let [sport, arrow, port, ..] = info
        && let (Some(sport), true, Some(port)) = (number(sport), is_arrow(arrow), number(port))
    {
        (words.sport, words.port) = (sport, Some(port));
        words.proto = if text.contains('[') { 6 } else { 17 };
        words.reply = text.contains("[SYN, ACK]");
        if !text.contains("[SYN]") {
            read.assume_first();
        }
        return Ok(());
    }
    if let Some((_, sport, port)) = FIXED.iter().find(|(known, ..)| *known == name) {
        words.proto = 17;
        let answers =
            ["Offer", "ACK", "NAK", "Advertise", "Reply"].iter().any(|it| text.contains(it));
        let (sport, port) = if answers { (port, sport) } else { (sport, port) };
        (words.sport, words.port) = (*sport, Some(*port));
        return Ok(());
    }
    let base = name.strip_prefix("TLSv1").map_or(name, |_| "TLSv1");
    let (_, number, port) = KNOWN.iter().find(|(known, ..)| *known == base).ok_or_else(|| {
        unread(name, "a protocol whose ports are known; describe the packet in words")
    })?;
    words.proto = *number;
    if text.contains("response") || text.contains("server,") {
        (words.sport, words.port) = (*port, Some(40000));
        words.reply = true;
    } else {
        words.port = Some(*port);
    }
    read.assume(format!("port {port}: the line names {name}, but no ports"));
    read.assume_first();
    Ok(())
}

/// Whether it is an event of `killswitch --json monitor` that is not of a packet.
pub fn is_other_event(line: &str) -> bool {
    let event = |value: &Value| value.get("event").is_some_and(|event| event != "blocked");
    line.trim_start().starts_with('{') && serde_json::from_str(line).is_ok_and(|it| event(&it))
}

/// `killswitch --json monitor`, and the dictionary of LeakBlocked as JSON.
fn event(line: &str) -> Result<Read, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
    if value.get("event").is_some_and(|event| event != "blocked") {
        return Err("this event is not of a packet: only \"blocked\" is".into());
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let port =
        |key: &str| value.get(key).and_then(Value::as_u64).and_then(|it| u16::try_from(it).ok());
    let address = |key: &str| match text(key) {
        Some(text) => text.parse().map(Some).map_err(|_| unread(text, "an address")),
        None => Ok(None),
    };
    let mut read = new(Words::default());
    read.words.out = text("link").map(str::to_owned);
    read.words.from = address("source")?;
    read.words.to = address("destination")?;
    read.words.port = port("port");
    if let Some(sport) = port("source_port") {
        read.words.sport = sport;
    }
    let name = text("protocol").ok_or("the event has no \"protocol\"")?;
    blocked(read, name, value.get("uid").is_some_and(Value::is_null))
}

/// `udp to 203.0.113.9 port 53 on eth0 by user 1000 in /user.slice, and 3 more before`
fn monitor(text: &str) -> Result<Read, String> {
    let tokens: Vec<&str> = text.split_whitespace().collect();
    let [name, rest @ ..] = &tokens[..] else { return Err("nothing after \"blocked:\"".into()) };
    let mut read = new(Words::default());
    let mut rest = rest;
    let mut nobody = true;
    // No name of a link has a blank in it.
    while let [key, value, after @ ..] = rest {
        let plain = value.trim_end_matches(',');
        match *key {
            "to" => read.words.to = Some(plain.parse().map_err(|_| unread(plain, "an address"))?),
            "port" => read.words.port = Some(number(plain).ok_or_else(|| unread(plain, "a port"))?),
            "on" if after.first() == Some(&"and") => read.words.out = Some(plain.to_owned()),
            "on" => read.words.out = Some((*value).to_owned()),
            "by" | "user" | "in" | "and" => nobody &= *key != "by",
            _ => return Err(unread(key, "to, port, on, by user or in")),
        }
        rest = match *key {
            "by" => after.get(1..).unwrap_or_default(),
            "in" | "and" => &[],
            _ => after,
        };
    }
    blocked(read, name, nobody)
}

fn blocked(mut read: Read, name: &str, nobody: bool) -> Result<Read, String> {
    if read.words.to.is_some() {
        read.words.proto = protocol(name)?;
        let icmp = matches!(read.words.proto, 1 | 58);
        if icmp {
            read.assume("an echo request; --icmp-type TYPE otherwise");
        }
        if nobody {
            read.assume("this machine sent it; --in LINK besides if it was forwarded, --frame if by a packet socket");
        }
        read.assume_first();
        return Ok(read);
    }
    let digits = name.strip_prefix("0x").unwrap_or(name);
    let ethertype = match name {
        "arp" => Some(0x0806),
        _ => u16::from_str_radix(digits, 16).ok(),
    };
    frame(&mut read.words, ethertype.ok_or_else(|| unread(name, "an EtherType"))?);
    Ok(read)
}

/// `IN= OUT=eth0 SRC=192.168.1.5 DST=1.1.1.1 ... PROTO=UDP SPT=40000 DPT=53 MARK=0x6b73`
fn log(line: &str) -> Result<Read, String> {
    // An ICMP error shows the packet that it is about in brackets.
    let outer = match (line.find("[SRC="), line.rfind(']')) {
        (Some(from), Some(to)) if from < to => format!("{} {}", &line[..from], &line[to + 1..]),
        (Some(from), _) => line[..from].to_owned(),
        (None, _) => line.to_owned(),
    };
    let value = |key: &str| {
        let of = |token: &&str| token.strip_prefix(key).is_some_and(|rest| rest.starts_with('='));
        let token = outer.split_whitespace().find(of)?;
        Some(&token[key.len() + 1..]).filter(|value| !value.is_empty())
    };
    let has = |flag: &str| outer.split_whitespace().any(|token| token == flag);
    let address = |key: &str| {
        let text = value(key).ok_or_else(|| format!("no {key}="))?;
        text.parse().map(Some).map_err(|_| unread(text, "an address"))
    };
    let port = |key: &str| match value(key) {
        Some(text) => number(text).map(Some).ok_or_else(|| unread(text, "a port")),
        None => Ok(None),
    };
    let mut read = new(Words::default());
    let words = &mut read.words;
    words.into = value("IN").map(str::to_owned);
    words.out = value("OUT").map(str::to_owned);
    words.from = address("SRC")?;
    words.to = address("DST")?;
    words.proto = protocol(&value("PROTO").ok_or("no PROTO=")?.to_lowercase())?;
    words.port = port("DPT")?;
    words.sport = port("SPT")?.unwrap_or(words.sport);
    words.icmp_type = value("TYPE").and_then(number);
    words.hop_limit = value("TTL").or(value("HOPLIMIT")).and_then(number);
    words.mark = value("MARK").map_or(Ok(0), mark)?;
    words.reply = has("SYN") && has("ACK");
    if !has("SYN") {
        read.assume_first();
    }
    Ok(read)
}
