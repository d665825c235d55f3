//! One way to send one canary.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::errno::Errno;
use nix::sys::socket::{LinkAddr, bind};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::canary::HOPS;
use super::capture::EVERYTHING;

/// How it is handed to the kernel.
#[derive(Debug)]
pub enum Way {
    /// A UDP socket, made for it.
    Udp,
    /// A TCP connection that is begun; nobody waits for it.
    Tcp,
    /// A raw socket of ICMP or ICMPv6.
    Icmp,
    /// A raw socket that brings IPv4's header with it.
    Header,
    /// A socket that is there already: connected, or a packet socket.
    Socket(Socket),
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
    pub fn fire(&self) -> Fired {
        if let Way::Socket(socket) = &self.way {
            return fired(socket.send(&self.content).map(drop));
        }
        match self.open() {
            Ok(socket) => fired(self.send(&socket)),
            Err(error) if is(&error, &[Errno::EAFNOSUPPORT]) => Fired::Absent,
            // A link that went, an address that is not there (any more).
            Err(error) if is(&error, &[Errno::ENODEV, Errno::EADDRNOTAVAIL, Errno::ENXIO]) => {
                Fired::Refused
            }
            Err(error) => Fired::Failed(error.to_string()),
        }
    }

    fn open(&self) -> io::Result<Socket> {
        let v4 = self.to.is_ipv4();
        let (kind, protocol) = match self.way {
            Way::Tcp => (Type::STREAM, None),
            Way::Udp | Way::Socket(_) => (Type::DGRAM, None),
            Way::Icmp if v4 => (Type::RAW, Some(Protocol::ICMPV4)),
            Way::Icmp => (Type::RAW, Some(Protocol::ICMPV6)),
            Way::Header => (Type::RAW, Some(Protocol::UDP)),
        };
        let socket = unblocking(self.to, kind, protocol)?;
        limit_hops(&socket, self.to.ip())?;
        if self.to.ip() == IpAddr::from(Ipv4Addr::BROADCAST) {
            socket.set_broadcast(true)?;
        }
        if matches!(self.way, Way::Header) {
            socket.set_header_included_v4(true)?;
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
        if !matches!(self.way, Way::Tcp) {
            return socket.send_to(&self.content, &to).map(drop);
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

/// In one call: a test makes hundreds.
fn unblocking(to: SocketAddr, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, kind.nonblocking(), protocol)
}

/// So that a canary does not come far.
fn limit_hops(socket: &Socket, to: IpAddr) -> io::Result<()> {
    let hops = u32::from(HOPS);
    match (to.is_ipv4(), to.is_multicast()) {
        (true, false) => socket.set_ttl_v4(hops),
        (true, true) => socket.set_multicast_ttl_v4(hops),
        (false, false) => socket.set_unicast_hops_v6(hops),
        (false, true) => socket.set_multicast_hops_v6(hops),
    }
}

/// A connected UDP socket: one that will be older than what comes.
///
/// # Errors
/// Those of sockets; where there is no route none can be connected.
pub fn connected(to: SocketAddr, link: Option<&str>) -> io::Result<Socket> {
    let socket = unblocking(to, Type::DGRAM, None)?;
    limit_hops(&socket, to.ip())?;
    if let Some(link) = link {
        socket.bind_device(Some(link.as_bytes()))?;
    }
    socket.connect(&SockAddr::from(to))?;
    Ok(socket)
}

/// A packet socket that sends whole frames by the link of this name, with the link's address.
/// `None`: it is not Ethernet.
///
/// # Errors
/// Those of sockets.
pub fn packet_socket(link: &str) -> io::Result<Option<(Socket, [u8; 6])>> {
    // getifaddrs(3) is where safe code gets a link-layer address from.
    let of_link = |it: &nix::ifaddrs::InterfaceAddress| it.interface_name == link;
    let place = nix::ifaddrs::getifaddrs()?
        .filter(of_link)
        .find_map(|it| it.address.and_then(|address| address.as_link_addr().copied()));
    let Some((place, address)) = place.and_then(|it: LinkAddr| Some((it, it.addr()?))) else {
        return Ok(None);
    };
    // It hears nothing: the filter shows it no frame.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERYTHING)))?;
    socket.attach_filter(&[socket2::SockFilter::new(0x06, 0, 0, 0)])?;
    socket.set_nonblocking(true)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &place)?;
    Ok(Some((socket, address)))
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
