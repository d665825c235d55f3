use std::io;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};

use super::Socket;

/// A network link of this namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

/// Every link of the socket's namespace, by index.
///
/// # Errors
/// The kernel's refusal.
pub fn links(socket: &Socket) -> io::Result<Vec<Link>> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut message = NetlinkMessage::new(header, request.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut links: Vec<Link> = socket
        .dump(&bytes)?
        .iter()
        .filter_map(|answer| {
            let mut header = NetlinkHeader::default();
            header.message_type = answer.kind;
            match RouteNetlinkMessage::deserialize(&header, &answer.payload) {
                Ok(RouteNetlinkMessage::NewLink(link)) => Some(read(&link)),
                _ => None,
            }
        })
        .collect();
    links.sort_by_key(|link| link.index);
    Ok(links)
}

fn read(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        loopback: message.header.link_layer_type == LinkLayerType::Loopback,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = Some(kind.to_string());
                    }
                }
            }
            _ => {}
        }
    }
    link
}
