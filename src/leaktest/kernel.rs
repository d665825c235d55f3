//! The few changes to links that the test makes: its own link, and links down and up again.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::{Message, Socket, encode};

/// Adds a pair of links, one end here and one in another namespace.
///
/// # Errors
/// The kernel's refusal.
pub fn add_pair(
    socket: &Socket,
    here: &str,
    there: &str,
    namespace: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName(there.into()));
    peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(here.into()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    request(socket, RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Deletes a link.
///
/// # Errors
/// The kernel's refusal.
pub fn delete(socket: &Socket, link: u32) -> io::Result<()> {
    request(socket, RouteNetlinkMessage::DelLink(of(link)), 0)
}

/// Sets a link up or down.
///
/// # Errors
/// The kernel's refusal.
pub fn set_up(socket: &Socket, link: u32, up: bool) -> io::Result<()> {
    let mut message = of(link);
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    message.header.change_mask = LinkFlags::Up;
    request(socket, RouteNetlinkMessage::SetLink(message), 0)
}

/// Sets a link up that asks for no neighbour: what is sent by it is sent at once, to nobody.
///
/// # Errors
/// The kernel's refusal.
pub fn set_up_without_neighbours(socket: &Socket, link: u32) -> io::Result<()> {
    let mut message = of(link);
    message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
    message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    request(socket, RouteNetlinkMessage::SetLink(message), 0)
}

/// Adds a default route.
///
/// # Errors
/// The kernel's refusal.
pub fn add_default_route(socket: &Socket, link: u32, router: IpAddr) -> io::Result<()> {
    let mut message = RouteMessage::default();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.header.address_family = family(router);
    message.attributes.push(RouteAttribute::Oif(link));
    message.attributes.push(RouteAttribute::Gateway(router.into()));
    request(socket, RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Gives a link an address, usable at once.
///
/// # Errors
/// The kernel's refusal.
pub fn add_address(socket: &Socket, link: u32, net: IpNet) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.index = link;
    message.header.prefix_len = net.prefix_len();
    message.header.family = family(net.addr());
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    if net.addr().is_ipv6() {
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    request(socket, RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn of(link: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = link;
    message
}

fn request(socket: &Socket, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut bytes = Vec::new();
    encode(&mut bytes, message, flags | NLM_F_ACK, 1);
    ask(socket, &bytes)
}

/// Sends one request that asks for an answer, and waits for it.
///
/// # Errors
/// The kernel's refusal.
pub fn ask(socket: &Socket, bytes: &[u8]) -> io::Result<()> {
    socket.send(bytes)?;
    loop {
        let answers = socket.receive()?;
        if let Some(ack) = answers.iter().find_map(Message::ack) {
            return match ack.failure {
                None => Ok(()),
                Some(failure) => Err(io::Error::from_raw_os_error(failure.errno)),
            };
        }
    }
}
