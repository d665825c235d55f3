//! Links and their addresses: one rtnetlink request, one answer.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
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
use crate::netlink::{self, Address, Family, Link, Message, Socket, encode};

/// IFNAMSIZ less the terminating NUL (include/uapi/linux/if.h).
pub(super) const LONGEST_NAME: usize = 15;

/// What keeps a link from having the wanted addresses and no other.
pub(super) struct AddressDifference {
    pub(super) missing: BTreeSet<IpNet>,
    pub(super) foreign: Vec<Address>,
}

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
        let difference = self.compare_addresses(link.index, wanted)?;
        for address in &difference.foreign {
            let Address { address: local, prefix_len, .. } = address;
            let what = format!("delete address {local}/{prefix_len} of link {:?}", link.name);
            let message = RouteNetlinkMessage::DelAddress(address_message(address));
            match self.request(&what, message, 0) {
                // The kernel takes secondary addresses away with the primary.
                Err(error) if error.errno() == Some(Errno::EADDRNOTAVAIL) => {}
                result => result?,
            }
        }
        let mut left_out = Vec::new();
        for address in difference.missing {
            match self.add_address(link, address) {
                Err(error) if address.addr().is_ipv6() && error.is_ipv6_disabled() => {
                    left_out.push(address);
                }
                result => result?,
            }
        }
        Ok(left_out)
    }

    /// What keeps these from being the only addresses of the link with this index.
    pub(super) fn compare_addresses(
        &self,
        link: u32,
        wanted: &[IpNet],
    ) -> Result<AddressDifference, Error> {
        let mut missing = BTreeSet::from_iter(wanted.iter().copied());
        let mut foreign = netlink::addresses(&self.socket).map_err(Error::Netlink)?;
        foreign.retain(|it| {
            let net = IpNet::new(it.address, it.prefix_len);
            it.link == link && !net.is_ok_and(|net| missing.remove(&net))
        });
        Ok(AddressDifference { missing, foreign })
    }

    fn add_address(&self, link: &Link, net: IpNet) -> Result<(), Error> {
        let (address, prefix_len) = (net.addr(), net.prefix_len());
        let address =
            Address { link: link.index, address, prefix_len, peer: address, usable: true };
        let mut message = address_message(&address);
        if net.addr().is_ipv6() {
            // Nobody else is on the link to have the same address.
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let what = format!("add address {net} to link {:?}", link.name);
        let request = RouteNetlinkMessage::NewAddress(message);
        self.request(&what, request, NLM_F_CREATE | NLM_F_REPLACE)
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

fn address_message(address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = address.link;
    message.header.prefix_len = address.prefix_len;
    message.header.family = match address.address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.attributes.push(AddressAttribute::Local(address.address));
    message.attributes.push(AddressAttribute::Address(address.peer));
    message
}
