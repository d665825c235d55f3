use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_route::RouteNetlinkMessage;

/// Appends one rtnetlink request to a datagram.
pub(crate) fn encode(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags | NLM_F_REQUEST;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}

/// A request by hand: `nlmsghdr` and what follows.
pub(super) fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    const HEADER: usize = 16;
    let length = u32::try_from(HEADER + body.len()).expect("requests are small");
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.resize(HEADER, 0);
    bytes.extend_from_slice(body);
    bytes
}

/// A request for everything of its kind.
pub(super) fn dump(kind: u16, body: &[u8]) -> Vec<u8> {
    request(kind, NLM_F_DUMP, body)
}
