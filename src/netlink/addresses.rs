use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::encode::dump;
use super::{Attributes, Message, Socket};

const RTM_GETADDR: u16 = 22;
/// RT_SCOPE_LINK: from here on an address means nothing behind the link.
const RT_SCOPE_LINK: u8 = 253;
/// IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE.
const UNUSABLE: u32 = 0x08 | 0x20 | 0x40;

/// An address of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Index of its link.
    pub link: u32,
    /// The local end.
    pub address: IpAddr,
    /// Length of its network's prefix in bits.
    pub prefix_len: u8,
    /// The other end of a point-to-point link, or the local one again.
    pub peer: IpAddr,
    /// New connections may use it to reach further than the link: not link-local, not deprecated,
    /// not waiting for duplicate address detection.
    pub usable: bool,
}

/// Whether it is one of those that the kernel gives to every link that speaks IPv6.
pub fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(it) if it.is_unicast_link_local())
}

/// Every address of the socket's namespace.
///
/// Read by hand, as [`super::links`] is, and for the same reason: an IPv4 address bears its link's
/// name (IFA_LABEL), and netlink-packet-route drops one whose name is not UTF-8 (threat 44).
///
/// # Errors
/// The kernel's refusal.
pub fn addresses(socket: &Socket) -> io::Result<Vec<Address>> {
    const IFADDRMSG: usize = 8;
    let answers = socket.dump_consistent(&dump(RTM_GETADDR, &[0; IFADDRMSG]))?;
    let mut addresses: Vec<Address> = answers.iter().filter_map(read).collect();
    addresses.sort();
    Ok(addresses)
}

/// `ifaddrmsg`: family, prefix length, flags, scope, index; then attributes.
fn read(message: &Message) -> Option<Address> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_FLAGS: u16 = 8;
    let header = message.payload.get(..8)?;
    let (mut flags, scope) = (u32::from(header[2]), header[3]);
    let (mut peer, mut local) = (None, None);
    for (kind, value) in Attributes(&message.payload[8..]) {
        match kind {
            IFA_ADDRESS => peer = ip(value),
            // Where there is none, IFA_ADDRESS is the local end.
            IFA_LOCAL => local = ip(value),
            IFA_FLAGS => flags = value.try_into().ok().map(u32::from_ne_bytes)?,
            _ => {}
        }
    }
    let address = local.or(peer)?;
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    Some(Address {
        link: u32::from_ne_bytes(header[4..8].try_into().ok()?),
        address,
        prefix_len: header[1],
        peer: peer.unwrap_or(address),
        usable: flags & UNUSABLE == 0 && scope < RT_SCOPE_LINK && !link_local,
    })
}

pub(super) fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}
