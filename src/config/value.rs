//! What single values mean: addresses, networks, endpoints, names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::LinkPattern;
use super::error::Problem;
use super::secret::{Key, PublicKey};
use super::source::Place;
use super::text::quote;

/// Longest link name in bytes: IFNAMSIZ of `linux/if.h` less the final zero.
const LONGEST_LINK_NAME: usize = 15;
const LONGEST_SERVER_NAME: usize = 64;
/// PATH_MAX of `linux/limits.h` less the final zero.
const LONGEST_PATH: usize = 4095;

/// What is wrong with a value, before its place is known.
#[derive(Debug)]
pub(super) struct Complaint {
    message: String,
    help: Option<String>,
}

impl Complaint {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Complaint { message: message.into(), help: None }
    }

    pub(super) fn help(self, help: impl Into<String>) -> Self {
        Complaint { help: Some(help.into()), ..self }
    }

    /// Without a place, as a failure's message has it.
    pub(super) fn in_words(self) -> String {
        match self.help {
            Some(help) => format!("{}\nhelp: {}", self.message, help.replace('\n', "\n      ")),
            None => self.message,
        }
    }

    pub(super) fn at(self, place: &Place) -> Problem {
        Problem { help: self.help, ..place.problem(self.message) }
    }
}

/// An address without a zone that is not an IPv4 address in IPv6 clothes.
fn address(text: &str) -> Result<IpAddr, Complaint> {
    if text.contains('%') {
        return Err(Complaint::new(format!("{} has a zone, which is not supported", quote(text)))
            .help("write an address that does not depend on the link"));
    }
    let address: IpAddr = text.parse().map_err(|_| not_an_address(text))?;
    not_mapped(address)?;
    Ok(address)
}

fn not_an_address(text: &str) -> Complaint {
    let complaint = Complaint::new(format!("{} is not an IP address", quote(text)));
    if text.contains('/') && text.split('/').next().is_some_and(|a| a.parse::<IpAddr>().is_ok()) {
        return complaint.help("write a single address, without a prefix length");
    }
    if is_host_name(text) {
        return complaint.help(names_are_not_looked_up(text));
    }
    complaint
}

/// The kernel sends to an IPv4-mapped address over IPv4, where rules for IPv6 do not see it.
fn not_mapped(address: IpAddr) -> Result<(), Complaint> {
    let IpAddr::V6(v6) = address else { return Ok(()) };
    v6.to_ipv4_mapped().map_or(Ok(()), |v4| {
        Err(Complaint::new(format!("{v6} is an IPv4 address in IPv6 form"))
            .help(format!("write it as IPv4: {v4}")))
    })
}

fn is_host_name(text: &str) -> bool {
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    text.chars().all(letters) && text.contains(|c: char| c.is_ascii_alphabetic())
}

fn names_are_not_looked_up(name: &str) -> String {
    let name = quote(name);
    let name = name.trim_matches('"');
    format!(
        "host names are not looked up, since a look-up before the lock would leave in clear and its\n\
         answer could be forged; find the address with\n    getent ahosts {name}\n\
         and write that"
    )
}

/// Why no packet should be addressed to it as to one other machine; `None` if it may.
fn not_a_host(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_multicast() => Some("a multicast address"),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("an address of \"this network\" (RFC 1122)"),
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => Some("a reserved address"),
        _ => None,
    }
}

fn host(address: IpAddr) -> Result<IpAddr, Complaint> {
    not_a_host(address).map_or(Ok(address), |reason| {
        Err(Complaint::new(format!("{address} is {reason}, which cannot be used here")))
    })
}

/// The address of one other machine.
pub(super) fn host_address(text: &str) -> Result<IpAddr, Complaint> {
    host(address(text)?)
}

/// The address of a resolver; one on this machine is legal.
pub(super) fn resolver(text: &str) -> Result<IpAddr, Complaint> {
    let address = address(text)?;
    if address.is_loopback() { Ok(address) } else { host(address) }
}

/// A network in CIDR form; the host part is kept.
fn cidr(text: &str) -> Result<IpNet, Complaint> {
    let Some((start, length)) = text.split_once('/') else {
        let address = address(text)?;
        return Err(Complaint::new(format!("{} has no prefix length", quote(text)))
            .help(format!("write \"{}\"", IpNet::from(address))));
    };
    let start = address(start)?;
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let length = length.parse().ok().filter(|_| digits);
    length.and_then(|length| IpNet::new(start, length).ok()).ok_or_else(|| {
        let longest = if start.is_ipv4() { 32 } else { 128 };
        Complaint::new(format!("{} has no valid prefix length", quote(text)))
            .help(format!("write a number from 0 to {longest} after the slash"))
    })
}

/// A network without host bits.
pub(super) fn network(text: &str) -> Result<IpNet, Complaint> {
    let network = cidr(text)?;
    if network.addr() != network.network() {
        return Err(Complaint::new(format!("{} has bits set beyond its prefix", quote(text)))
            .help(format!("write \"{}\"", network.trunc())));
    }
    Ok(network)
}

/// A network as wg(8) takes it: host bits are cut off, and a lone address is a network of one.
pub(super) fn lenient_network(text: &str) -> Result<IpNet, Complaint> {
    if text.contains('/') {
        cidr(text).map(|net| net.trunc())
    } else {
        address(text).map(IpNet::from)
    }
}

/// An address of this machine with the prefix length of its network.
pub(super) fn interface_address(text: &str) -> Result<IpNet, Complaint> {
    let network = cidr(text)?;
    host(network.addr())?;
    if network.prefix_len() == 0 {
        let message = format!("{} would have the whole Internet on its own link", quote(text));
        let help = format!("write \"{}\"", IpNet::from(network.addr()));
        return Err(Complaint::new(message).help(help));
    }
    Ok(network)
}

/// As [`interface_address`], with a lone address as a network of one.
pub(super) fn lenient_interface_address(text: &str) -> Result<IpNet, Complaint> {
    if text.contains('/') { interface_address(text) } else { host(address(text)?).map(IpNet::from) }
}

/// A local network: not one that reaches beyond a site, nor one that no site has.
pub(super) fn local_network(text: &str) -> Result<IpNet, Complaint> {
    let network = network(text)?;
    let (shortest, special): (u8, &[&str]) = match network {
        IpNet::V4(_) => (8, &["0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"]),
        IpNet::V6(_) => (7, &["::/8", "ff00::/8"]),
    };
    if network.prefix_len() == 0 {
        return Err(Complaint::new(format!(
            "{network} is the whole Internet, not a local network"
        ))
        .help("name the local network itself, e.g. \"192.168.1.0/24\""));
    }
    if network.prefix_len() < shortest {
        return Err(Complaint::new(format!("{network} is too large for a local network"))
            .help(format!("the shortest prefix length is {shortest}")));
    }
    let overlaps = |text: &&&str| {
        text.parse::<IpNet>().is_ok_and(|net| net.contains(&network) || network.contains(&net))
    };
    match special.iter().find(overlaps) {
        Some(special) => Err(Complaint::new(format!(
            "{network} is no local network: {special} is loopback, multicast or reserved"
        ))),
        None => Ok(network),
    }
}

/// Address and port of a server.
pub(super) fn endpoint(text: &str) -> Result<SocketAddr, Complaint> {
    let (address_text, port) = split_endpoint(text)?;
    let address = address(address_text).map_err(|complaint| match complaint.help {
        Some(_) => complaint,
        None => Complaint::new(format!("{} is not ADDRESS:PORT", quote(text)))
            .help("write e.g. \"198.51.100.7:51820\" or \"[2001:db8::7]:51820\""),
    })?;
    host(address)?;
    if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        return Err(Complaint::new(format!(
            "{address} is link-local: it needs a zone to be reached, \
             which is not supported"
        )));
    }
    Ok(SocketAddr::new(address, self::port(port, "server")?))
}

/// A port at which a server or a service listens.
pub(super) fn port(text: &str, whose: &str) -> Result<u16, Complaint> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>().ok().filter(|_| digits) {
        Some(0) => {
            Err(Complaint::new("port 0 cannot be used").help(format!("write the {whose}'s port")))
        }
        Some(port) => Ok(port),
        None => Err(Complaint::new(format!("{} is not a port", quote(text)))
            .help("write a number from 1 to 65535")),
    }
}

fn split_endpoint(text: &str) -> Result<(&str, &str), Complaint> {
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split_once("]:").ok_or_else(|| {
            Complaint::new(format!("{} is not [ADDRESS]:PORT", quote(text)))
                .help("write e.g. \"[2001:db8::7]:51820\"")
        });
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(Complaint::new(format!("{} has no port", quote(text)))
            .help(format!("write \"[{text}]:51820\" with the server's port")));
    }
    let missing = || {
        Complaint::new(format!("{} has no port", quote(text)))
            .help("write ADDRESS:PORT, e.g. \"198.51.100.7:51820\"")
    };
    let (address, port) = text.rsplit_once(':').ok_or_else(missing)?;
    if address.contains(':')
        && address.split('%').next().is_some_and(|a| a.parse::<Ipv6Addr>().is_ok())
    {
        return Err(Complaint::new(format!("{} is ambiguous", quote(text)))
            .help(format!("write IPv6 addresses in brackets: \"[{address}]:{port}\"")));
    }
    Ok((address, port))
}

/// The name of a link that may be ours.
pub(super) fn link_name(text: &str) -> Result<String, Complaint> {
    link_characters(text, text)?;
    // "all" and "default" are no links in /proc/sys/net/*/conf.
    if matches!(text, "." | ".." | "lo" | "all" | "default") {
        return Err(Complaint::new(format!(
            "{} cannot be used as the name of a link here",
            quote(text)
        ))
        .help("e.g. \"wg0\""));
    }
    Ok(text.to_owned())
}

/// A link name, or the beginning of one and `*`.
pub(super) fn link_pattern(text: &str) -> Result<LinkPattern, Complaint> {
    let Some(prefix) = text.strip_suffix('*') else {
        return link_name(text).map(LinkPattern::Exact);
    };
    if prefix.is_empty() {
        return Err(Complaint::new("\"*\" alone would name every link")
            .help("write the beginning that the names share, e.g. \"br-*\""));
    }
    link_characters(prefix, text)?;
    // No longer name begins so, and nft takes no longer pattern.
    Ok(match prefix.len() {
        LONGEST_LINK_NAME => LinkPattern::Exact(prefix.to_owned()),
        _ => LinkPattern::Prefix(prefix.to_owned()),
    })
}

fn link_characters(name: &str, whole: &str) -> Result<(), Complaint> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if !(1..=LONGEST_LINK_NAME).contains(&name.len()) {
        return Err(Complaint::new(format!(
            "{} has {} bytes; the name of a link has 1 to {LONGEST_LINK_NAME}",
            quote(whole),
            name.len()
        )));
    }
    if !name.bytes().all(allowed) {
        return Err(Complaint::new(format!("{} is not the name of a link", quote(whole)))
            .help("use letters, digits, \".\", \"_\" and \"-\""));
    }
    Ok(())
}

/// The name of a server.
pub(super) fn server_name(text: &str) -> Result<String, Complaint> {
    let fits = (1..=LONGEST_SERVER_NAME).contains(&text.len());
    if fits && text.chars().all(is_server_character) && !text.starts_with('-') {
        return Ok(text.to_owned());
    }
    Err(Complaint::new(format!("{} cannot be the name of a server", quote(text))).help(format!(
        "use 1 to {LONGEST_SERVER_NAME} letters, digits, \".\", \"_\" and \"-\", not \"-\" first"
    )))
}

pub(super) fn is_server_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-')
}

/// A public key in base64.
pub(super) fn public_key(text: &str) -> Result<PublicKey, Complaint> {
    PublicKey::from_base64(text).map_err(|error| Complaint::new(error.to_string()))
}

/// A private or preshared key in base64. No part of it is repeated in the complaint.
pub(super) fn key(text: &str) -> Result<Key, Complaint> {
    Key::from_base64(text)
        .map_err(|error| Complaint::new(error.to_string()).help("\"wg genkey\" writes such a key"))
}

/// A path; never a key, which someone may have written in its place.
pub(super) fn path(text: &str) -> Result<std::path::PathBuf, Complaint> {
    if text.is_empty() || text.contains('\0') {
        return Err(Complaint::new("not a path"));
    }
    if text.len() > LONGEST_PATH {
        let message = format!("{} bytes, where a path has {LONGEST_PATH} at most", text.len());
        return Err(Complaint::new(message));
    }
    let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex || PublicKey::from_base64(text).is_ok() {
        return Err(Complaint::new(
            "a key, where the path of a file that holds the key is expected",
        )
        .help("put the key into a file of its own, mode 0600, and name that file here"));
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said<T>(result: Result<T, Complaint>) -> String {
        match result {
            Ok(_) => "accepted".into(),
            Err(Complaint { message, help }) => {
                [Some(message), help].into_iter().flatten().collect::<Vec<_>>().join(" | ")
            }
        }
    }

    #[test]
    fn endpoints() {
        for text in ["198.51.100.7:51820", "[2001:db8::7]:1", "10.0.0.1:65535"] {
            assert_eq!(endpoint(text).unwrap().to_string(), text);
        }
        for (text, part) in [
            ("198.51.100.7", "has no port"),
            ("2001:db8::7", "write \"[2001:db8::7]:51820\""),
            ("2001:db8::7::51820", "is not ADDRESS:PORT"),
            ("198.51.100.7:0", "port 0"),
            ("198.51.100.7:70000", "is not a port"),
            ("198.51.100.7:+1", "is not a port"),
            ("198.51.100.7:", "is not a port"),
            ("vpn.example.org:51820", "getent ahosts vpn.example.org"),
            ("[::ffff:198.51.100.7]:51820", "as IPv4: 198.51.100.7"),
            ("[fe80::1%eth0]:51820", "has a zone"),
            ("[fe80::1]:51820", "link-local"),
            ("[::1]:51820", "loopback"),
            ("127.0.0.1:51820", "loopback"),
            ("0.0.0.0:51820", "unspecified"),
            ("[::]:51820", "unspecified"),
            ("224.0.0.1:51820", "multicast"),
            ("[ff02::1]:51820", "multicast"),
            ("255.255.255.255:51820", "broadcast"),
            ("[198.51.100.7:51820", "is not [ADDRESS]:PORT"),
            ("198.051.100.7:51820", "is not ADDRESS:PORT"),
            ("", "has no port"),
            (":", "is not ADDRESS:PORT"),
        ] {
            let said = said(endpoint(text));
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn networks() {
        assert_eq!(network("192.168.1.0/24").unwrap().to_string(), "192.168.1.0/24");
        assert_eq!(lenient_network("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(lenient_network("::/0").unwrap().to_string(), "::/0");
        assert_eq!(interface_address("10.1.2.3/8").unwrap().to_string(), "10.1.2.3/8");
        for (text, part) in [
            ("192.168.1.7/24", "write \"192.168.1.0/24\""),
            ("192.168.1.7", "write \"192.168.1.7/32\""),
            ("192.168.1.0/33", "0 to 32"),
            ("fd00::/+8", "0 to 128"),
            ("::ffff:10.0.0.0/104", "IPv4 address in IPv6 form"),
            ("fe80::%eth0/64", "has a zone"),
            ("lan/24", "getent"),
        ] {
            let said = said(network(text));
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn local_networks() {
        for text in ["10.0.0.0/8", "192.168.1.0/24", "fc00::/7", "fe80::/64", "203.0.113.0/24"] {
            assert_eq!(said(local_network(text)), "accepted");
        }
        for (text, part) in [
            ("0.0.0.0/0", "whole Internet"),
            ("::/0", "whole Internet"),
            ("128.0.0.0/1", "too large"),
            ("e000::/3", "too large"),
            ("fe00::/7", "ff00::/8 is"),
            ("127.0.0.0/8", "is no local network"),
            ("239.0.0.0/8", "is no local network"),
            ("::/96", "is no local network"),
        ] {
            let said = said(local_network(text));
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn link_names_and_patterns() {
        for text in ["wg0", "a", "tun.5_x-y", "exactly15-bytes"] {
            assert_eq!(link_name(text).unwrap(), text);
        }
        for text in
            ["", "sixteen-bytes-is", ".", "..", "lo", "all", "wg 0", "wg/0", "wg*", "w\u{e9}"]
        {
            assert!(link_name(text).is_err(), "{text}");
        }
        assert_eq!(link_pattern("br-*").unwrap(), LinkPattern::Prefix("br-".into()));
        for (text, prefix) in [("fourteen-bytes*", true), ("exactly15-bytes*", false)] {
            let pattern = link_pattern(text).unwrap();
            assert_eq!(matches!(pattern, LinkPattern::Prefix(_)), prefix, "{pattern:?}");
        }
        assert_eq!(link_pattern("docker0").unwrap(), LinkPattern::Exact("docker0".into()));
        for text in ["*", "a*b", "**", "a**", "", "a\";flush*", "lo"] {
            assert!(link_pattern(text).is_err(), "{text}");
        }
    }
}
