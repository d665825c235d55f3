//! A DHCPv4 server (RFC 2131), honest or rogue, and a client's messages for tests.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::addresses::{CLIENT_V4, LAN_LINK, ROUTER_V4};
use super::error::{Context, Result};
use super::host::{Host, Stop, Worker};
use super::services::TICK_MS;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const MAGIC: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
/// The fixed fields, up to the magic cookie.
const FIXED: usize = 236;

/// Message types of option 53.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Who is there?
    Discover = 1,
    /// Take this.
    Offer = 2,
    /// I take this; or, with an address of one's own: may I keep it?
    Request = 3,
    /// Yes.
    Ack = 5,
    /// Not here.
    Nak = 6,
}

/// What the server hands out.
#[derive(Debug, Clone)]
pub struct DhcpOptions {
    /// The router's link that is served.
    pub link: &'static str,
    /// The router's address there.
    pub server: Ipv4Addr,
    /// The address offered to everybody.
    pub address: Ipv4Addr,
    /// Length of the lease in seconds.
    pub lease: u32,
    /// Default gateway.
    pub gateway: Ipv4Addr,
    /// Resolver.
    pub dns: Ipv4Addr,
    /// Option 26: the link's MTU, in bytes.
    pub mtu: Option<u16>,
    /// Option 121 (RFC 3442): routes that the client is to install, as TunnelVision does.
    pub routes: Vec<(Ipv4Addr, u8, Ipv4Addr)>,
}

impl Default for DhcpOptions {
    fn default() -> Self {
        DhcpOptions {
            link: LAN_LINK,
            server: ROUTER_V4,
            address: CLIENT_V4,
            lease: 3600,
            gateway: ROUTER_V4,
            dns: ROUTER_V4,
            mtu: None,
            routes: Vec::new(),
        }
    }
}

/// A running DHCP server; ends when dropped.
pub struct DhcpServer {
    heard: Arc<Mutex<Vec<Kind>>>,
    _worker: Worker<Option<()>>,
}

impl DhcpServer {
    /// Serves the LAN from the router.
    ///
    /// # Errors
    /// Those of `bind(2)`.
    pub fn start(router: &Host, options: DhcpOptions) -> Result<Self> {
        let socket = router.run(|| server_socket(options.link).during("DHCP server"))??;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let theirs = Arc::clone(&heard);
        let worker = router.spawn("dhcp", move |stop| serve(&socket, &options, &theirs, &stop))?;
        Ok(DhcpServer { heard, _worker: worker })
    }

    /// The messages that clients sent so far.
    pub fn heard(&self) -> Vec<Kind> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn server_socket(link: &str) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67))?;
    setsockopt(&socket, sockopt::BindToDevice, &link.into())?;
    socket.set_broadcast(true)?;
    socket.set_read_timeout(Some(Duration::from_millis(TICK_MS.into())))?;
    Ok(socket)
}

fn serve(socket: &UdpSocket, options: &DhcpOptions, heard: &Mutex<Vec<Kind>>, stop: &Stop) {
    let mut buffer = [0u8; 1500];
    while !stop.requested() {
        let (length, peer) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(_) => continue,
        };
        let Some(message) = Message::parse(&buffer[..length]) else { continue };
        heard.lock().unwrap_or_else(PoisonError::into_inner).push(message.kind);
        let answer = match message.kind {
            Kind::Discover => Kind::Offer,
            // RFC 2131, 4.3.2: an address of another network is refused, so that it is asked anew.
            Kind::Request if message.wanted.is_some_and(|one| one != options.address) => Kind::Nak,
            Kind::Request => Kind::Ack,
            Kind::Offer | Kind::Ack | Kind::Nak => continue,
        };
        // RFC 2131, 4.1: to the client's address if it has one, otherwise to all.
        let to = if message.client.is_unspecified() {
            SocketAddr::from((Ipv4Addr::BROADCAST, 68))
        } else {
            SocketAddr::V4(SocketAddrV4::new(message.client, peer.port()))
        };
        let _ = socket.send_to(&reply(&message, answer, options), to);
    }
}

/// What both sides read of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Option 53.
    pub kind: Kind,
    /// Which exchange it belongs to.
    pub transaction: [u8; 4],
    /// ciaddr: the address that the client has.
    pub client: Ipv4Addr,
    /// yiaddr: the address that the client gets.
    pub yours: Ipv4Addr,
    /// Option 50: the address that the client asks for.
    pub wanted: Option<Ipv4Addr>,
    hardware: [u8; 16],
}

impl Message {
    /// Reads a message of either side; `None` if it is none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let address =
            |at: usize| bytes.get(at..at + 4).map(|b| Ipv4Addr::new(b[0], b[1], b[2], b[3]));
        if bytes.get(FIXED..FIXED + 4)? != MAGIC {
            return None;
        }
        Some(Message {
            kind: kind(&bytes[FIXED + 4..])?,
            wanted: wanted(&bytes[FIXED + 4..]),
            transaction: bytes[4..8].try_into().ok()?,
            client: address(12)?,
            yours: address(16)?,
            hardware: bytes[28..44].try_into().ok()?,
        })
    }
}

fn kind(options: &[u8]) -> Option<Kind> {
    let &[kind] = option(options, 53)? else { return None };
    [Kind::Discover, Kind::Offer, Kind::Request, Kind::Ack, Kind::Nak]
        .into_iter()
        .find(|known| *known as u8 == kind)
}

fn wanted(options: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(option(options, 50)?).ok().map(Ipv4Addr::from)
}

/// The value of an option (RFC 2132).
fn option(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    const PAD: u8 = 0;
    loop {
        match options {
            [PAD, rest @ ..] => options = rest,
            [code, length, rest @ ..] => {
                let value = rest.get(..usize::from(*length))?;
                if *code == wanted {
                    return Some(value);
                }
                options = &rest[value.len()..];
            }
            _ => return None,
        }
    }
}

/// A client's message: DISCOVER, or REQUEST. With a `client` address it is a renewal.
pub fn request(kind: Kind, transaction: [u8; 4], hardware: [u8; 6], client: Ipv4Addr) -> Vec<u8> {
    let mut padded = [0u8; 16];
    padded[..6].copy_from_slice(&hardware);
    let head = Message {
        kind,
        transaction,
        client,
        yours: Ipv4Addr::UNSPECIFIED,
        wanted: None,
        hardware: padded,
    };
    let mut message = fixed(REQUEST, &head, Ipv4Addr::UNSPECIFIED);
    message.extend([53, 1, kind as u8, 255]);
    message
}

fn reply(to: &Message, kind: Kind, options: &DhcpOptions) -> Vec<u8> {
    let mut message = fixed(REPLY, to, options.address);
    message.extend([53, 1, kind as u8]);
    let mut option = |code: u8, value: &[u8]| {
        // Ours are far below the 255 bytes that an option may have.
        message.extend([code, value.len() as u8]);
        message.extend(value);
    };
    option(54, &options.server.octets());
    option(51, &options.lease.to_be_bytes());
    option(1, &[255, 255, 255, 0]);
    option(3, &options.gateway.octets());
    option(6, &options.dns.octets());
    if let Some(mtu) = options.mtu {
        option(26, &mtu.to_be_bytes());
    }
    if !options.routes.is_empty() {
        option(121, &classless_routes(&options.routes));
    }
    message.push(255);
    message
}

/// RFC 3442: the prefix length, the significant bytes of the prefix, the gateway.
fn classless_routes(routes: &[(Ipv4Addr, u8, Ipv4Addr)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (network, length, gateway) in routes {
        bytes.push(*length);
        bytes.extend(&network.octets()[..usize::from(*length).div_ceil(8).min(4)]);
        bytes.extend(gateway.octets());
    }
    bytes
}

fn fixed(operation: u8, head: &Message, yours: Ipv4Addr) -> Vec<u8> {
    /// "Answer by broadcast": we have no address to be answered at.
    const BROADCAST: u8 = 0x80;
    let mut message = vec![0u8; FIXED];
    message[..4].copy_from_slice(&[operation, 1, 6, 0]);
    message[4..8].copy_from_slice(&head.transaction);
    if head.client.is_unspecified() {
        message[10] = BROADCAST;
    }
    message[12..16].copy_from_slice(&head.client.octets());
    message[16..20].copy_from_slice(&yours.octets());
    message[28..44].copy_from_slice(&head.hardware);
    message.extend(MAGIC);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_its_own_reading() {
        let bytes = request(Kind::Discover, [1, 2, 3, 4], [2, 0, 0, 0, 0, 1], CLIENT_V4);
        let message = Message::parse(&bytes).expect("a message");
        assert_eq!(message.kind, Kind::Discover);
        assert_eq!(message.client, CLIENT_V4);
        let answer = reply(&message, Kind::Offer, &DhcpOptions::default());
        let answer = Message::parse(&answer).expect("an answer");
        assert_eq!((answer.kind, answer.yours), (Kind::Offer, CLIENT_V4));
        assert_eq!(answer.transaction, [1, 2, 3, 4]);
    }

    #[test]
    fn classless_routes_carry_the_significant_bytes_only() {
        let routes = [(Ipv4Addr::new(128, 0, 0, 0), 1, ROUTER_V4)];
        assert_eq!(classless_routes(&routes), [1, 128, 192, 168, 1, 1]);
    }
}
