use std::io;

use super::encode::dump;
use super::socket::text;
use super::{Attributes, Message, Socket};

const RTM_GETLINK: u16 = 18;
const IFF_UP: u32 = 1;
const IFF_RUNNING: u32 = 0x40;
const IFF_LOWER_UP: u32 = 0x1_0000;
const ARPHRD_ETHER: u16 = 1;
/// include/net/flow.h: always the first link of a namespace; its type is no proof (TUNSETLINK).
const LOOPBACK_IFINDEX: u32 = 1;

/// A network link of this namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name; may hold any byte but NUL, `/` and white space.
    pub name: String,
    /// IFLA_INFO_KIND: "wireguard", "tun", "bridge", ...; absent for hardware.
    pub kind: Option<String>,
    /// The loopback link.
    pub loopback: bool,
    /// Whether it is an Ethernet link.
    pub ethernet: bool,
    /// Administratively up.
    pub up: bool,
    /// Up, with carrier, and not waiting for more, e.g. 802.1X (IFF_RUNNING, RFC 2863).
    pub running: bool,
    /// The largest packet that it takes.
    pub mtu: u32,
    /// IFLA_GROUP; zero unless somebody set it.
    pub group: u32,
    /// Index of the bridge, or other master, that it is a port of.
    pub master: Option<u32>,
    /// Bytes received since it came to be.
    pub rx_bytes: u64,
    /// Bytes sent since it came to be.
    pub tx_bytes: u64,
}

/// Every link of the socket's namespace, by index.
///
/// Read by hand, since netlink-packet-route drops a link whose name is not UTF-8 (threat 44), and
/// a link that is not seen is a link without a guard.
///
/// # Errors
/// The kernel's refusal.
pub fn links(socket: &Socket) -> io::Result<Vec<Link>> {
    let mut links: Vec<Link> = ask(socket)?.iter().filter_map(read).collect();
    links.sort_by_key(|link| link.index);
    Ok(links)
}

/// Every link as the kernel describes it.
pub(super) fn ask(socket: &Socket) -> io::Result<Vec<Message>> {
    const IFINFOMSG: usize = 16;
    socket.dump_consistent(&dump(RTM_GETLINK, &[0; IFINFOMSG]))
}

/// `ifinfomsg`: family, padding, type, index, flags, change; then attributes.
pub(super) fn read(message: &Message) -> Option<Link> {
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MTU: u16 = 4;
    const IFLA_MASTER: u16 = 10;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_STATS64: u16 = 23;
    const IFLA_GROUP: u16 = 27;
    let number = |value: &[u8]| value.try_into().ok().map(u32::from_ne_bytes);
    let header = message.payload.get(..16)?;
    let hardware = u16::from_ne_bytes(header[2..4].try_into().ok()?);
    let flags = u32::from_ne_bytes(header[8..12].try_into().ok()?);
    let index = u32::from_ne_bytes(header[4..8].try_into().ok()?);
    let mut link = Link {
        index,
        loopback: index == LOOPBACK_IFINDEX,
        ethernet: hardware == ARPHRD_ETHER,
        up: flags & IFF_UP != 0,
        running: [IFF_UP, IFF_RUNNING, IFF_LOWER_UP].iter().all(|flag| flags & flag != 0),
        ..Link::default()
    };
    for (kind, value) in Attributes(&message.payload[16..]) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_MTU => link.mtu = number(value).unwrap_or_default(),
            IFLA_MASTER => link.master = number(value),
            IFLA_GROUP => link.group = number(value).unwrap_or_default(),
            IFLA_LINKINFO => {
                link.kind = Attributes(value).get(IFLA_INFO_KIND).map(text);
            }
            IFLA_STATS64 => {
                let word = |at: usize| {
                    let bytes = value.get(at * 8..at * 8 + 8).and_then(|it| it.try_into().ok());
                    bytes.map(u64::from_ne_bytes).unwrap_or_default()
                };
                (link.rx_bytes, link.tx_bytes) = (word(2), word(3));
            }
            _ => {}
        }
    }
    Some(link)
}
