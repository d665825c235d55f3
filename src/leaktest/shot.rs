//! One way to send one canary.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{LinkAddr, MsgFlags, bind, sendto};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::canary::HOPS;
use super::capture::EVERYTHING;
use crate::netlink::hardware_addresses;

/// How it is handed to the kernel.
#[derive(Debug)]
pub enum Way {
    /// A UDP socket.
    Udp,
    /// A TCP connection that is begun; nobody waits for it.
    Tcp,
    /// A raw socket of ICMP or ICMPv6.
    Icmp,
    /// A raw socket that brings IPv4's header with it.
    Header,
    /// A packet socket, and the link that gets the whole frame.
    Frame(LinkAddr),
    /// A socket that is there already: connected, or a packet socket of another namespace.
    Socket(Socket),
}

/// What the shots of one round send by: those that differ in receiver and content alone share a
/// socket, which costs more than a canary. None outlives its round, so that each tries what may be
/// opened now.
#[derive(Debug, Default)]
pub struct Sockets(BTreeMap<([i32; 3], Option<String>), Socket>);

impl Sockets {
    fn of(&mut self, shot: &Shot) -> io::Result<&Socket> {
        let (domain, kind, protocol) = shot.kind();
        let number = [domain.into(), kind.into(), protocol.map_or(0, i32::from)];
        match self.0.entry((number, shot.link.clone())) {
            Entry::Occupied(there) => Ok(there.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(shot.open()?)),
        }
    }
}

/// One canary, as often as it is wanted.
#[derive(Debug)]
pub struct Shot {
    /// How.
    pub way: Way,
    /// Whereto; of no meaning for [`Way::Socket`].
    pub to: SocketAddr,
    /// From which address; `None`: the kernel chooses.
    pub from: Option<IpAddr>,
    /// Bound to this link (SO_BINDTODEVICE); `None`: as routed.
    pub link: Option<String>,
    /// What it says.
    pub content: Vec<u8>,
}

/// What became of a shot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fired {
    /// The kernel took it.
    Sent,
    /// The sender got an error, as a program would.
    Refused,
    /// The machine cannot send such a thing at all: it has no IPv6.
    Absent,
    /// It could not be tried.
    Failed(String),
}

impl Shot {
    /// As routed, from whichever address.
    pub fn new(way: Way, to: SocketAddr, content: Vec<u8>) -> Self {
        Shot { way, to, from: None, link: None, content }
    }

    /// The same by this link only.
    pub fn bound_to(self, link: &str) -> Self {
        Shot { link: Some(link.to_owned()), ..self }
    }

    /// The same under this address.
    pub fn from(self, address: IpAddr) -> Self {
        Shot { from: Some(address), ..self }
    }

    /// Sends it once; never waits.
    pub fn fire(&self, sockets: &mut Sockets) -> Fired {
        let outcome = match &self.way {
            Way::Socket(socket) => Ok(socket.send(&self.content).map(drop)),
            // Used up by it; and a machine may have more addresses than files may be open.
            _ if matches!(self.way, Way::Tcp) || self.from.is_some() => {
                self.open().map(|it| self.send(&it))
            }
            _ => sockets.of(self).map(|it| self.send(it)),
        };
        match outcome {
            Ok(sent) => fired(sent),
            Err(error) if is(&error, &[Errno::EAFNOSUPPORT]) => Fired::Absent,
            // A link that went, an address that is not there (any more).
            Err(error) if is(&error, &[Errno::ENODEV, Errno::EADDRNOTAVAIL, Errno::ENXIO]) => {
                Fired::Refused
            }
            Err(error) => Fired::Failed(error.to_string()),
        }
    }

    fn kind(&self) -> (Domain, Type, Option<Protocol>) {
        let ip = Domain::for_address(self.to);
        match self.way {
            Way::Tcp => (ip, Type::STREAM, None),
            Way::Udp | Way::Socket(_) => (ip, Type::DGRAM, None),
            Way::Icmp if self.to.is_ipv4() => (ip, Type::RAW, Some(Protocol::ICMPV4)),
            Way::Icmp => (ip, Type::RAW, Some(Protocol::ICMPV6)),
            Way::Header => (ip, Type::RAW, Some(Protocol::UDP)),
            // Of no protocol and no link: it hears nothing, and need not wait when it is closed.
            Way::Frame(_) => (Domain::PACKET, Type::RAW, None),
        }
    }

    /// Fit for every shot that [`Sockets::of`] takes for the same.
    fn open(&self) -> io::Result<Socket> {
        let (domain, kind, protocol) = self.kind();
        let socket = Socket::new(domain, kind.nonblocking(), protocol)?;
        if matches!(self.way, Way::Frame(_)) {
            return Ok(socket);
        }
        limit_hops(&socket, domain)?;
        match self.way {
            Way::Udp => reach_groups(&socket, domain)?,
            Way::Header => socket.set_header_included_v4(true)?,
            _ => {}
        }
        if let Some(link) = &self.link {
            socket.bind_device(Some(link.as_bytes()))?;
        }
        if let Some(from) = self.from {
            socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
        }
        Ok(socket)
    }

    fn send(&self, socket: &Socket) -> io::Result<()> {
        let to = SockAddr::from(self.to);
        match &self.way {
            Way::Tcp => {}
            Way::Frame(link) => {
                let sent = sendto(socket.as_raw_fd(), &self.content, link, MsgFlags::empty());
                return Ok(sent.map(drop)?);
            }
            _ => return socket.send_to(&self.content, &to).map(drop),
        }
        match socket.connect(&to) {
            // A lock's reset is there at once.
            Err(error) if is(&error, &[Errno::EINPROGRESS]) => match socket.take_error()? {
                Some(error) => Err(error),
                None => Ok(()),
            },
            other => other,
        }
    }
}

/// So that a canary does not come far.
fn limit_hops(socket: &Socket, domain: Domain) -> io::Result<()> {
    match domain {
        Domain::IPV4 => socket.set_ttl_v4(HOPS.into()),
        _ => socket.set_unicast_hops_v6(HOPS.into()),
    }
}

/// Multicast as far as other canaries, and broadcast.
fn reach_groups(socket: &Socket, domain: Domain) -> io::Result<()> {
    match domain {
        Domain::IPV4 => {
            socket.set_broadcast(true)?;
            socket.set_multicast_ttl_v4(HOPS.into())
        }
        _ => socket.set_multicast_hops_v6(HOPS.into()),
    }
}

/// A connected UDP socket: one that will be older than what comes.
///
/// # Errors
/// Those of sockets; where there is no route none can be connected.
pub fn connected(to: SocketAddr, link: Option<&str>) -> io::Result<Socket> {
    let domain = Domain::for_address(to);
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), None)?;
    limit_hops(&socket, domain)?;
    if let Some(link) = link {
        socket.bind_device(Some(link.as_bytes()))?;
    }
    socket.connect(&SockAddr::from(to))?;
    Ok(socket)
}

/// A packet socket that sends whole frames by the Ethernet link of this name in the caller's
/// namespace.
///
/// # Errors
/// Those of sockets; NotFound.
pub fn packet_socket(link: &str) -> io::Result<Socket> {
    let place = hardware_addresses()?.remove(link).ok_or(io::ErrorKind::NotFound)?;
    // It hears nothing: the filter shows it no frame.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERYTHING)))?;
    socket.attach_filter(&[socket2::SockFilter::new(0x06, 0, 0, 0)])?;
    socket.set_nonblocking(true)?;
    bind(socket.as_raw_fd(), &place)?;
    Ok(socket)
}

/// Refusals are answers, too: of a rule, a route, a link that is down or gone.
fn fired(outcome: io::Result<()>) -> Fired {
    use Errno::{
        EACCES, EADDRNOTAVAIL, EAGAIN, ECONNREFUSED, ECONNRESET, EDESTADDRREQ, EHOSTUNREACH,
        ENETDOWN, ENETUNREACH, ENOBUFS, ENODEV, ENOKEY, ENXIO, EPERM,
    };
    const ANSWERS: [Errno; 14] = [
        EPERM,
        EACCES,
        ENETUNREACH,
        EHOSTUNREACH,
        ENETDOWN,
        ENOBUFS,
        ECONNREFUSED,
        ECONNRESET,
        ENODEV,
        ENXIO,
        EAGAIN,
        EADDRNOTAVAIL,
        // WireGuard's own: no peer takes it, or none has an address.
        ENOKEY,
        EDESTADDRREQ,
    ];
    match outcome {
        Ok(()) => Fired::Sent,
        Err(error) if is(&error, &ANSWERS) => Fired::Refused,
        Err(error) if is(&error, &[Errno::EAFNOSUPPORT]) => Fired::Absent,
        Err(error) => Fired::Failed(error.to_string()),
    }
}

fn is(error: &io::Error, numbers: &[Errno]) -> bool {
    numbers.iter().any(|it| error.raw_os_error() == Some(*it as i32))
}
