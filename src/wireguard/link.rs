//! Links and their addresses: one rtnetlink request, one answer.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, Parseable,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage, Prop,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::Error;
use crate::netlink::{self, Family, Link, Message, Socket, encode};

/// IFNAMSIZ less the terminating NUL (include/uapi/linux/if.h).
pub(super) const LONGEST_NAME: usize = 15;

/// The caller's network namespace.
pub(super) struct Links {
    socket: Socket,
}

impl Links {
    pub(super) fn open() -> Result<Self, Error> {
        Ok(Links { socket: Socket::open(Family::Route).map_err(Error::Netlink)? })
    }

    pub(super) fn all(&self) -> Result<Vec<Link>, Error> {
        netlink::links(&self.socket).map_err(Error::Netlink)
    }

    /// The link of this name; an alternative name does not count.
    pub(super) fn find(&self, name: &str) -> Result<Option<Link>, Error> {
        Ok(self.all()?.into_iter().find(|link| link.name == name))
    }

    /// The link that has `name` as an alternative name. It blocks the name for every other link.
    pub(super) fn with_altname(&self, name: &str) -> Result<Option<Link>, Error> {
        // The kernel looks alternative names up, too, but lists them apart.
        let Ok(index) = nix::net::if_::if_nametoindex(name) else { return Ok(None) };
        Ok(self.all()?.into_iter().find(|link| link.index == index && link.name != name))
    }

    /// Creates a link of kernel WireGuard, down. `Ok(false)`: this kernel has none.
    pub(super) fn create_wireguard(&self, name: &str) -> Result<bool, Error> {
        let mut message = LinkMessage::default();
        let kind = LinkInfo::Kind(InfoKind::Wireguard);
        message.attributes.push(LinkAttribute::IfName(name.into()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![kind]));
        let what = format!("add link {name:?} type wireguard");
        let request = RouteNetlinkMessage::NewLink(message);
        match self.request(&what, request, NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn delete(&self, link: &Link) -> Result<(), Error> {
        let what = format!("delete link {:?}", link.name);
        let request = RouteNetlinkMessage::DelLink(named(link));
        match self.request(&what, request, 0) {
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(()),
            result => result,
        }
    }

    pub(super) fn set_up(&self, link: &Link, up: bool) -> Result<(), Error> {
        let mut message = named(link);
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        message.header.change_mask = LinkFlags::Up;
        let word = if up { "up" } else { "down" };
        self.set(&format!("set link {:?} {word}", link.name), message)
    }

    /// No event follows if it is so already.
    pub(super) fn set_mtu(&self, link: &Link, mtu: u16) -> Result<(), Error> {
        let mut message = named(link);
        message.attributes.push(LinkAttribute::Mtu(mtu.into()));
        self.set(&format!("set link {:?} mtu {mtu}", link.name), message)
    }

    /// Keeps the kernel from giving the link an address of its own when it comes up, with the
    /// multicast that follows. (Kernel WireGuard has this setting from the start.)
    pub(super) fn set_no_link_local(&self, link: &Link) -> Result<(), Error> {
        let mut message = named(link);
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let inet6 = AfSpecUnspec::Inet6(vec![mode]);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![inet6]));
        self.set(&format!("set link {:?} addrgenmode none", link.name), message)
    }

    /// Renames a link. Before 6.2 the kernel refuses while it is up; then it goes down and up.
    pub(super) fn rename(&self, link: &Link, name: &str) -> Result<(), Error> {
        let rename = || {
            let mut message = named(link);
            message.attributes.push(LinkAttribute::IfName(name.into()));
            self.set(&format!("set link {:?} name {name:?}", link.name), message)
        };
        match rename() {
            Err(error) if error.errno() == Some(Errno::EBUSY) && link.up => {
                self.set_up(link, false)?;
                let renamed = rename();
                self.set_up(link, true)?;
                renamed
            }
            result => result,
        }
    }

    pub(super) fn remove_altname(&self, link: &Link, name: &str) -> Result<(), Error> {
        let mut message = named(link);
        message.attributes.push(LinkAttribute::PropList(vec![Prop::AltIfName(name.into())]));
        let what = format!("delete altname {name:?} of link {:?}", link.name);
        self.request(&what, RouteNetlinkMessage::DelLinkProp(message), 0)
    }

    /// Makes these the link's only addresses; returns those that the kernel has no IPv6 for.
    pub(super) fn set_addresses(&self, link: &Link, wanted: &[IpNet]) -> Result<Vec<IpNet>, Error> {
        let present = self.addresses(link)?;
        let mut missing = BTreeSet::from_iter(wanted.iter().copied());
        for (address, message) in present {
            if !missing.remove(&address) {
                let what = format!("delete address {address} of link {:?}", link.name);
                match self.request(&what, RouteNetlinkMessage::DelAddress(message), 0) {
                    // The kernel takes secondary addresses away with the primary.
                    Err(error) if error.errno() == Some(Errno::EADDRNOTAVAIL) => {}
                    result => result?,
                }
            }
        }
        let mut left_out = Vec::new();
        for address in missing {
            match self.add_address(link, address) {
                Err(error) if address.addr().is_ipv6() && error.is_ipv6_disabled() => {
                    left_out.push(address);
                }
                result => result?,
            }
        }
        Ok(left_out)
    }

    fn add_address(&self, link: &Link, address: IpNet) -> Result<(), Error> {
        let mut message = AddressMessage::default();
        message.header.index = link.index;
        message.header.prefix_len = address.prefix_len();
        message.header.family = match address {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        };
        message.attributes.push(AddressAttribute::Local(address.addr()));
        message.attributes.push(AddressAttribute::Address(address.addr()));
        if address.addr().is_ipv6() {
            // Nobody else is on the link to have the same address.
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let what = format!("add address {address} to link {:?}", link.name);
        let request = RouteNetlinkMessage::NewAddress(message);
        self.request(&what, request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn addresses(&self, link: &Link) -> Result<Vec<(IpNet, AddressMessage)>, Error> {
        let mut request = AddressMessage::default();
        // Filters where the kernel checks dumps strictly (4.20); otherwise we do below.
        request.header.index = link.index;
        let mut bytes = Vec::new();
        encode(&mut bytes, RouteNetlinkMessage::GetAddress(request), NLM_F_DUMP, 1);
        let answers = self.socket.dump_consistent(&bytes).map_err(Error::Netlink)?;
        let mut found = Vec::new();
        for answer in &answers {
            let message = AddressMessage::parse(answer.payload.as_slice())
                .map_err(|error| Error::Netlink(io::Error::other(error.to_string())))?;
            if message.header.index == link.index
                && let Some(address) = own_address(&message)
            {
                found.push((address, message));
            }
        }
        Ok(found)
    }

    fn set(&self, what: &str, message: LinkMessage) -> Result<(), Error> {
        self.request(what, RouteNetlinkMessage::SetLink(message), 0)
    }

    fn request(&self, what: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        const SEQUENCE: u32 = 1;
        let mut bytes = Vec::new();
        encode(&mut bytes, message, flags | NLM_F_ACK, SEQUENCE);
        self.socket.send(&bytes).map_err(Error::Netlink)?;
        loop {
            let answers = self.socket.receive().map_err(Error::Netlink)?;
            if let Some(ack) = answers.iter().find_map(Message::ack) {
                return match ack.failure {
                    None => Ok(()),
                    Some(failure) => Err(Error::Refused { what: what.into(), failure }),
                };
            }
        }
    }
}

/// By index: names may change meanwhile.
fn named(link: &Link) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    message
}

/// IFA_LOCAL where there is one: of a point-to-point link IFA_ADDRESS is the other end.
fn own_address(message: &AddressMessage) -> Option<IpNet> {
    let mut found: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => found = Some(*address),
            AddressAttribute::Address(address) => found = found.or(Some(*address)),
            _ => {}
        }
    }
    IpNet::new(found?, message.header.prefix_len).ok()
}
