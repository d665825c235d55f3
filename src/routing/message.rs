//! Rules, routes and links as rtnetlink messages, and many of them in one transaction.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, Nla, Parseable,
};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::guard::{Action, Family, PREFERENCES, Route, RouteKind, Rule, TABLE};
use super::kernel::{Error, Refusal};
use crate::netlink::{Attributes, Failure, Message, Socket, encode};

/// "No suppression" (net/core/fib_rules.c).
const NONE: u32 = u32::MAX;
/// The group of links that nobody put into another.
pub(super) const DEFAULT_GROUP: u32 = 0;
/// Messages in one datagram: far below the default socket buffer, even if each one fails.
const BATCH: usize = 100;

/// One request and how to name it should the kernel refuse it.
pub(super) struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    /// Which error means that there was nothing to do.
    already: &'static [Errno],
    pub(super) name: String,
}

impl Request {
    pub(super) fn add_rule(rule: &Rule) -> Self {
        Request {
            message: RouteNetlinkMessage::NewRule(encode_rule(rule)),
            flags: NLM_F_CREATE | NLM_F_EXCL,
            already: &[Errno::EEXIST],
            name: format!("add {rule}"),
        }
    }

    /// Deletes by what the kernel said of the rule, so that it names every selector.
    pub(super) fn delete_rule(rule: &Rule, message: &RuleMessage) -> Self {
        Request {
            message: RouteNetlinkMessage::DelRule(message.clone()),
            flags: 0,
            already: &[Errno::ENOENT],
            name: format!("delete {rule}"),
        }
    }

    pub(super) fn add_route(route: &Route) -> Self {
        Request {
            message: RouteNetlinkMessage::NewRoute(encode_route(route)),
            flags: NLM_F_CREATE | NLM_F_REPLACE,
            already: &[],
            name: format!("add {route}"),
        }
    }

    pub(super) fn delete_route(route: &Route, header: &RouteHeader) -> Self {
        let mut message = encode_route(route);
        message.header.kind = header.kind;
        message.header.protocol = header.protocol;
        message.header.scope = header.scope;
        Request {
            message: RouteNetlinkMessage::DelRoute(message),
            flags: 0,
            already: &[Errno::ESRCH],
            name: format!("delete {route}"),
        }
    }

    pub(super) fn set_group(index: u32, link: &str, group: u32) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Group(group));
        Request {
            message: RouteNetlinkMessage::SetLink(message),
            flags: 0,
            already: &[Errno::ENODEV],
            name: format!("put link {link:?} into group {group}"),
        }
    }
}

/// Sends all requests and returns those that the kernel refused.
///
/// The kernel works through a datagram before it returns and reports every failure; only the last
/// message asks for a success to be reported, so that many answers cannot overrun the socket.
pub(super) fn perform(socket: &Socket, requests: &[Request]) -> Result<Vec<Refusal>, Error> {
    let mut refusals = Vec::new();
    for chunk in requests.chunks(BATCH) {
        let mut bytes = Vec::new();
        for (index, request) in chunk.iter().enumerate() {
            let last = if index + 1 == chunk.len() { NLM_F_ACK } else { 0 };
            encode(&mut bytes, request.message.clone(), request.flags | last, index as u32 + 1);
        }
        socket.send(&bytes).map_err(Error::Netlink)?;
        for (index, failure) in answers(socket, chunk.len() as u32)? {
            let request = &chunk[index];
            if !request.already.iter().any(|&errno| errno as i32 == failure.errno) {
                refusals.push(Refusal { request: request.name.clone(), failure });
            }
        }
    }
    Ok(refusals)
}

/// Failures by index, up to the answer to the last request.
fn answers(socket: &Socket, last: u32) -> Result<Vec<(usize, Failure)>, Error> {
    let mut failures = Vec::new();
    loop {
        for ack in socket.receive().map_err(Error::Netlink)?.iter().filter_map(Message::ack) {
            if let Some(failure) = ack.failure {
                failures.push((ack.sequence as usize - 1, failure));
            }
            if ack.sequence == last {
                return Ok(failures);
            }
        }
    }
}

/// Everything of one kind. A dump that was changed under way is asked for again.
fn dump(socket: &Socket, message: RouteNetlinkMessage) -> std::io::Result<Vec<Message>> {
    let mut request = Vec::new();
    encode(&mut request, message, NLM_F_DUMP, 1);
    socket.dump_consistent(&request)
}

/// Our rules: those in our range with `protocol kernel`. What others wrote is not even decoded, so
/// that nothing strange in it can keep us from reading ours.
pub(super) fn dump_rules(socket: &Socket, family: Family) -> std::io::Result<Vec<RuleMessage>> {
    let mut request = RuleMessage::default();
    request.header.family = address_family(family);
    dump(socket, RouteNetlinkMessage::GetRule(request))?
        .iter()
        .filter(|answer| is_our_rule(&answer.payload))
        .map(|answer| parse(RuleMessage::parse(answer.payload.as_slice())))
        .collect()
}

fn is_our_rule(payload: &[u8]) -> bool {
    /// `fib_rule_hdr`.
    const HEADER: usize = 12;
    const FRA_PRIORITY: u16 = 6;
    const FRA_PROTOCOL: u16 = 21;
    let find = |wanted| {
        let attributes = Attributes(payload.get(HEADER..).unwrap_or_default());
        attributes.into_iter().find_map(|(kind, value)| (kind == wanted).then_some(value))
    };
    let preference = find(FRA_PRIORITY).and_then(|value| value.try_into().ok());
    find(FRA_PROTOCOL) == Some(&[u8::from(RouteProtocol::Kernel)])
        && preference.map(u32::from_ne_bytes).is_some_and(|value| PREFERENCES.contains(&value))
}

/// The routes of our table: the kernel need not list the others.
pub(super) fn dump_routes(socket: &Socket, family: Family) -> std::io::Result<Vec<RouteMessage>> {
    let mut request = RouteMessage::default();
    request.header.address_family = address_family(family);
    request.attributes.push(RouteAttribute::Table(TABLE));
    match dump(socket, RouteNetlinkMessage::GetRoute(request)) {
        // The table does not exist before its first route.
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(answers) => answers
            .iter()
            .map(|answer| parse(RouteMessage::parse(answer.payload.as_slice())))
            .collect(),
    }
}

fn parse<T>(result: Result<T, netlink_packet_core::DecodeError>) -> std::io::Result<T> {
    result.map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string()))
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn encode_rule(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    message.header.action = match rule.action {
        Action::Goto(_) => RuleAction::Goto,
        Action::Unreachable => RuleAction::Unreachable,
        _ => RuleAction::ToTable,
    };
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Priority(rule.preference));
    attributes.push(RuleAttribute::Protocol(RouteProtocol::Kernel));
    if let Some(to) = rule.to {
        message.header.dst_len = to.prefix_len();
        attributes.push(RuleAttribute::Destination(to.addr()));
    }
    if let Some(mark) = rule.mark {
        attributes.push(RuleAttribute::FwMark(mark));
        attributes.push(RuleAttribute::FwMask(u32::MAX));
    }
    if let Some(protocol) = rule.protocol {
        attributes.push(RuleAttribute::IpProtocol(i32::from(protocol).into()));
    }
    if rule.local {
        attributes.push(RuleAttribute::Iifname(LOOPBACK.into()));
    }
    let exactly = |port| RulePortRange { start: port, end: port };
    attributes.extend(rule.source_port.map(exactly).map(RuleAttribute::SourcePortRange));
    attributes.extend(rule.destination_port.map(exactly).map(RuleAttribute::DestinationPortRange));
    let near = || RuleAttribute::SuppressPrefixLen(rule.family.too_wide());
    let main = RuleAttribute::Table(RouteHeader::RT_TABLE_MAIN.into());
    match rule.action {
        Action::Main => attributes.push(main),
        Action::MainNear => attributes.extend([main, near()]),
        Action::MainInternal => {
            attributes.extend([main, near(), RuleAttribute::SuppressIfGroup(DEFAULT_GROUP)]);
        }
        Action::Table => attributes.push(RuleAttribute::Table(TABLE)),
        Action::Goto(preference) => attributes.push(RuleAttribute::Goto(preference)),
        Action::Unreachable | Action::Other => {}
    }
    message
}

/// A rule of ours. What we never write makes it [`Action::Other`].
pub(super) fn decode_rule(message: &RuleMessage, family: Family) -> Rule {
    /// Masks of exact ports, which newer kernels (6.15) list; the crate does not know them.
    const FRA_SPORT_MASK: u16 = 28;
    const FRA_DPORT_MASK: u16 = 29;

    let header = &message.header;
    let mut rule = Rule::new(family, 0, Action::Other);
    let mut strange = header.src_len != 0 || header.tos != 0;
    strange |= header.flags.bits() & INVERT != 0;
    let (mut table, mut target) = (u32::from(header.table), 0);
    let (mut length, mut group, mut mask) = (NONE, NONE, u32::MAX);
    let exact = |range: &RulePortRange| (range.start == range.end).then_some(range.start);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => rule.preference = *value,
            RuleAttribute::Protocol(_) => {}
            RuleAttribute::Destination(address) => {
                rule.to = IpNet::new(*address, header.dst_len).ok();
            }
            RuleAttribute::FwMark(value) => rule.mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = *value,
            RuleAttribute::IpProtocol(value) => rule.protocol = Some(u8::from(*value)),
            RuleAttribute::Iifname(name) if name == LOOPBACK => rule.local = true,
            RuleAttribute::SourcePortRange(range) => {
                rule.source_port = exact(range);
                strange |= rule.source_port.is_none();
            }
            RuleAttribute::DestinationPortRange(range) => {
                rule.destination_port = exact(range);
                strange |= rule.destination_port.is_none();
            }
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Goto(value) => target = *value,
            RuleAttribute::SuppressPrefixLen(value) => length = *value,
            RuleAttribute::SuppressIfGroup(value) => group = *value,
            RuleAttribute::Other(other)
                if [FRA_SPORT_MASK, FRA_DPORT_MASK].contains(&other.kind()) =>
            {
                let mut value = vec![0; other.value_len()];
                other.emit_value(&mut value);
                strange |= value != [0xff, 0xff];
            }
            _ => strange = true,
        }
    }
    let near = family.too_wide();
    rule.action = match (header.action, table, length, group) {
        _ if strange || mask != u32::MAX => Action::Other,
        (RuleAction::Unreachable, ..) => Action::Unreachable,
        (RuleAction::Goto, ..) => Action::Goto(target),
        (RuleAction::ToTable, TABLE, NONE, NONE) => Action::Table,
        (RuleAction::ToTable, MAIN, NONE, NONE) => Action::Main,
        (RuleAction::ToTable, MAIN, suppressed, NONE) if suppressed == near => Action::MainNear,
        (RuleAction::ToTable, MAIN, suppressed, DEFAULT_GROUP) if suppressed == near => {
            Action::MainInternal
        }
        _ => Action::Other,
    };
    rule
}

/// As incoming link: packets of this machine.
const LOOPBACK: &str = "lo";
/// FIB_RULE_INVERT (include/uapi/linux/fib_rules.h).
const INVERT: u32 = 2;
const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

fn encode_route(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = address_family(Family::of(route.destination.addr()));
    header.destination_prefix_length = route.destination.prefix_len();
    header.protocol = RouteProtocol::Kernel;
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(TABLE));
    attributes.push(RouteAttribute::Priority(route.metric));
    if route.destination.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(match route.destination.addr() {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        }));
    }
    match route.kind {
        RouteKind::Unreachable => header.kind = RouteType::Unreachable,
        RouteKind::Link(index) => {
            header.kind = RouteType::Unicast;
            header.scope = RouteScope::Link;
            attributes.push(RouteAttribute::Oif(index));
        }
        RouteKind::Other => {}
    }
    message
}

/// A route of our table; `None` for those of others.
pub(super) fn decode_route(message: &RouteMessage, family: Family) -> Option<Route> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut destination = family.everything();
    let (mut metric, mut link, mut strange) = (0, None, header.source_prefix_length != 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination =
                    IpNet::new((*address).into(), header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination =
                    IpNet::new((*address).into(), header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::MultiPath(_)
            | RouteAttribute::NhId(_)
            | RouteAttribute::Encap(_) => strange = true,
            _ => {}
        }
    }
    strange |= header.protocol != RouteProtocol::Kernel;
    let kind = match (header.kind, link) {
        _ if strange => RouteKind::Other,
        (RouteType::Unreachable, _) => RouteKind::Unreachable,
        (RouteType::Unicast, Some(index)) => RouteKind::Link(index),
        _ => RouteKind::Other,
    };
    (table == TABLE).then_some(Route { destination, metric, kind })
}

/// Sends what has no other rule to `destination` through the link: the daemon's last step of
/// connecting. The kernel drops the route with the link.
///
/// # Errors
/// The kernel's refusal.
pub fn add_tunnel_route(socket: &Socket, link: u32, destination: IpNet) -> Result<(), Error> {
    let route = tunnel_route(link, destination);
    Error::unless_none(perform(socket, &[Request::add_route(&route)])?)
}

/// Takes back [`add_tunnel_route`]; no error if it is gone.
///
/// # Errors
/// The kernel's refusal.
pub fn remove_tunnel_route(socket: &Socket, link: u32, destination: IpNet) -> Result<(), Error> {
    let route = tunnel_route(link, destination);
    let header = encode_route(&route).header;
    Error::unless_none(perform(socket, &[Request::delete_route(&route, &header)])?)
}

fn tunnel_route(link: u32, destination: IpNet) -> Route {
    /// Zero would read back as 1024 for IPv6.
    const METRIC: u32 = 1024;
    Route { destination: destination.trunc(), metric: METRIC, kind: RouteKind::Link(link) }
}
