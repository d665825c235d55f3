//! Tables, links, rules and routes, from the kernel.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;

use nix::errno::Errno;

use super::{Reading, Unknown};
use crate::netfilter;
use crate::netfilter::live::{ForeignTable, read_foreign};
use crate::netlink::{self, Attached, Attributes, Family, Filter, Link, Message, Route, Socket};
use crate::routing::PREFERENCES;

/// An address of this machine.
pub type Address = netlink::Address;

/// A mark that a policy rule looks for: `value` under `mask`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// What the marked bits must be.
    pub value: u32,
    /// Which bits count.
    pub mask: u32,
}

/// A policy rule of somebody else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// IPv6.
    pub v6: bool,
    /// Lower ones decide first.
    pub preference: u32,
    /// FR_ACT_TO_TBL: it looks up this table.
    pub table: Option<u32>,
    /// FR_ACT_GOTO: it goes on at this preference.
    pub skips_to: Option<u32>,
    /// Only packets with this mark.
    pub mark: Option<Mark>,
    /// Only packets that came in by this link.
    pub came_by: Option<String>,
    /// FIB_RULE_INVERT: all but those.
    pub inverted: bool,
}

pub(super) fn links() -> Reading<Vec<Link>> {
    ask("links", netlink::links)
}

pub(super) fn attached() -> Reading<Vec<Attached>> {
    ask("links", netlink::attached)
}

pub(super) fn filters() -> Reading<Vec<Filter>> {
    ask("tc filters", netlink::filters)
}

pub(super) fn addresses() -> Reading<Vec<Address>> {
    ask("addresses", netlink::addresses)
}

fn ask<T>(what: &str, question: fn(&Socket) -> io::Result<T>) -> Reading<T> {
    Socket::open(Family::Route)
        .and_then(|socket| question(&socket))
        .map_err(|error| Unknown::of(what, &error))
}

pub(super) fn tables() -> Reading<Vec<ForeignTable>> {
    let read = Socket::open(Family::Netfilter).and_then(|socket| read_foreign(&socket));
    match read.map_err(netfilter::Error::from) {
        // Without nf_tables nobody has any.
        Err(netfilter::Error::Missing(_)) => Ok(Vec::new()),
        read => read.map_err(|error| Unknown::Unreadable(error.to_string())),
    }
}

/// The kernel names the tables of a namespace that are in use; without the modules there is no file.
pub(super) fn legacy() -> Reading<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for family in ["ip", "ip6"] {
        let file = format!("/proc/thread-self/net/{family}_tables_names");
        match fs::read_to_string(&file) {
            Ok(names) => found.extend(names.lines().map(|name| format!("{family} {name}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Unknown::of(&file, &error)),
        }
    }
    Ok(found)
}

pub(super) fn rules() -> Reading<Vec<PolicyRule>> {
    const RTM_GETRULE: u16 = 34;
    dump("policy rules", RTM_GETRULE, read_rule)
}

pub(super) fn local_routes() -> Reading<Vec<Route>> {
    const RTM_GETROUTE: u16 = 26;
    dump("routes of table local", RTM_GETROUTE, netlink::read_local_route)
}

/// Of both families.
fn dump<T>(what: &str, kind: u16, read: fn(&Message) -> Option<T>) -> Reading<Vec<T>> {
    const AF_INET: u8 = 2;
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        match ask_family(kind, family) {
            Ok(answers) => found.extend(answers.iter().filter_map(read)),
            Err(error) if family == AF_INET6 && is_unsupported(&error) => {}
            Err(error) => return Err(Unknown::of(what, &error)),
        }
    }
    Ok(found)
}

const AF_INET6: u8 = 10;

fn is_unsupported(error: &io::Error) -> bool {
    [Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP]
        .iter()
        .any(|&errno| error.raw_os_error() == Some(errno as i32))
}

/// `nlmsghdr`, and `fib_rule_hdr` or `rtmsg`, which are of one length.
fn ask_family(kind: u16, family: u8) -> io::Result<Vec<Message>> {
    const LENGTH: u32 = 28;
    const NLM_F_REQUEST_DUMP: u16 = 0x301;
    let mut request = Vec::new();
    request.extend_from_slice(&LENGTH.to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.resize(LENGTH as usize, 0);
    request[16] = family;
    Socket::open(Family::Route)?.dump_consistent(&request)
}

/// By hand, so that nothing strange in a foreign rule hides it. `None`: one of ours.
fn read_rule(message: &Message) -> Option<PolicyRule> {
    const FRA_IIFNAME: u16 = 3;
    const FRA_GOTO: u16 = 4;
    const FRA_PRIORITY: u16 = 6;
    const FRA_FWMARK: u16 = 10;
    const FRA_L3MDEV: u16 = 19;
    const FRA_TABLE: u16 = 15;
    const FRA_FWMASK: u16 = 16;
    const FRA_PROTOCOL: u16 = 21;
    const RTPROT_KERNEL: u8 = 2;
    const RT_TABLE_LOCAL: u8 = 255;
    const FR_ACT_TO_TBL: u8 = 1;
    const FR_ACT_GOTO: u8 = 2;
    const FIB_RULE_INVERT: u32 = 2;
    let header = message.payload.get(..12)?;
    let attributes = Attributes(&message.payload[12..]);
    let number = |kind: u16| {
        attributes.get(kind).and_then(|value| value.try_into().ok()).map(u32::from_ne_bytes)
    };
    // A rule without it has preference zero.
    let preference = number(FRA_PRIORITY).unwrap_or_default();
    let by_kernel = attributes.get(FRA_PROTOCOL) == Some(&[RTPROT_KERNEL]);
    if by_kernel && PREFERENCES.contains(&preference) {
        return None;
    }
    let looks_up = header[7] == FR_ACT_TO_TBL;
    // The first rule, of a kernel that does not say whose it is.
    if preference == 0 && header[4] == RT_TABLE_LOCAL {
        return None;
    }
    let table = match attributes.get(FRA_L3MDEV).is_some() {
        true => Some(0),
        false => number(FRA_TABLE).or(Some(u32::from(header[4]))),
    };
    let flags = u32::from_ne_bytes(header[8..12].try_into().ok()?);
    Some(PolicyRule {
        v6: header[0] == 10,
        preference,
        table: table.filter(|_| looks_up),
        skips_to: number(FRA_GOTO).filter(|_| header[7] == FR_ACT_GOTO),
        mark: number(FRA_FWMARK)
            .map(|value| Mark { value, mask: number(FRA_FWMASK).unwrap_or(u32::MAX) }),
        came_by: attributes.get(FRA_IIFNAME).map(netlink::text),
        inverted: flags & FIB_RULE_INVERT != 0,
    })
}

/// Whether an address is made of the link's own hardware address (RFC 4291, appendix A).
pub fn is_eui64(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.octets()[11..13] == [0xff, 0xfe])
}
