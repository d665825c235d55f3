use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use etherparse::PacketBuilder;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv,
    sendto, setsockopt, socket, sockopt,
};

use super::super::addresses::{CLIENT_LINK, CLIENT_V4};
use super::super::error::Context;
use super::super::host::Host;
use super::super::link::PacketSocket;
use super::Result;

/// So many sockets wait for their answers; the oldest is closed first.
const WAITING: usize = 32;

/// Something that sends one packet at a time and never waits.
pub(super) trait Sender: Send {
    /// Sends once.
    fn shoot(&mut self) -> io::Result<()>;

    /// How many answers came since the last call.
    fn replies(&mut self) -> u64;
}

/// UDP, from a socket of its own for each, or always the same.
pub(super) struct Datagrams {
    to: SocketAddr,
    link: Option<&'static str>,
    old: Option<UdpSocket>,
    waiting: VecDeque<UdpSocket>,
}

impl Datagrams {
    pub(super) fn fresh(to: SocketAddr, link: Option<&'static str>) -> Self {
        Datagrams { to, link, old: None, waiting: VecDeque::new() }
    }

    pub(super) fn connected(to: SocketAddr) -> Result<Self> {
        let socket = open_udp(to, None).during("udp")?;
        socket.connect(to).during(to)?;
        Ok(Datagrams { to, link: None, old: Some(socket), waiting: VecDeque::new() })
    }
}

impl Sender for Datagrams {
    fn shoot(&mut self) -> io::Result<()> {
        let query = dns_query();
        if let Some(socket) = &self.old {
            return socket.send(&query).map(drop);
        }
        let socket = open_udp(self.to, self.link)?;
        socket.send_to(&query, self.to)?;
        self.waiting.push_back(socket);
        if self.waiting.len() > WAITING {
            self.waiting.pop_front();
        }
        Ok(())
    }

    fn replies(&mut self) -> u64 {
        let mut buffer = [0; 512];
        if let Some(socket) = &self.old {
            return std::iter::from_fn(|| socket.recv(&mut buffer).ok()).count() as u64;
        }
        let before = self.waiting.len();
        self.waiting.retain(|socket| socket.recv(&mut buffer).is_err());
        (before - self.waiting.len()) as u64
    }
}

/// TCP connections, a new one each time.
pub(super) struct Streams {
    to: SocketAddr,
    link: Option<&'static str>,
    waiting: VecDeque<TcpStream>,
}

impl Streams {
    pub(super) fn new(to: SocketAddr, link: Option<&'static str>) -> Self {
        Streams { to, link, waiting: VecDeque::new() }
    }
}

impl Sender for Streams {
    fn shoot(&mut self) -> io::Result<()> {
        let fd = open(self.to.ip(), SockType::Stream, None, self.link)?;
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(self.to)) {
            Ok(()) | Err(nix::Error::EINPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        self.waiting.push_back(fd.into());
        if self.waiting.len() > WAITING {
            self.waiting.pop_front();
        }
        Ok(())
    }

    fn replies(&mut self) -> u64 {
        let before = self.waiting.len();
        self.waiting.retain(|stream| stream.peer_addr().is_err());
        (before - self.waiting.len()) as u64
    }
}

/// A TCP connection from before.
pub(super) struct OldConnection(TcpStream);

impl OldConnection {
    pub(super) fn open(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(10)).during(to)?;
        stream.set_nonblocking(true).during(to)?;
        stream.set_nodelay(true).during(to)?;
        Ok(OldConnection(stream))
    }
}

impl Sender for OldConnection {
    fn shoot(&mut self) -> io::Result<()> {
        self.0.write(b"from before the lock").map(drop)
    }

    fn replies(&mut self) -> u64 {
        let mut buffer = [0; 4096];
        std::iter::from_fn(|| self.0.read(&mut buffer).ok().filter(|&length| length > 0)).count()
            as u64
    }
}

/// Pings.
pub(super) struct Echoes {
    fd: OwnedFd,
    to: IpAddr,
    identifier: u16,
    sequence: u16,
}

impl Echoes {
    pub(super) fn open(to: IpAddr, link: Option<&'static str>) -> Result<Self> {
        let protocol = if to.is_ipv4() { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
        let fd = open(to, SockType::Raw, Some(protocol), link).during("icmp")?;
        // Answers are copied to every raw socket: told apart by identifier.
        let identifier = 0x6b00 | u16::try_from(fd.as_raw_fd() & 0xff).unwrap_or_default();
        Ok(Echoes { fd, to, identifier, sequence: 0 })
    }

    fn message(&self) -> Vec<u8> {
        let kind = if self.to.is_ipv4() { 8 } else { 128 };
        let mut message = vec![kind, 0, 0, 0];
        message.extend(self.identifier.to_be_bytes());
        message.extend(self.sequence.to_be_bytes());
        if self.to.is_ipv4() {
            // The kernel computes ICMPv6's.
            let mut sum: u32 =
                message.chunks(2).map(|b| u32::from(b[0]) << 8 | u32::from(b[1])).sum();
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            message[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        }
        message
    }
}

impl Sender for Echoes {
    fn shoot(&mut self) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let to = SockaddrStorage::from(SocketAddr::new(self.to, 0));
        sendto(self.fd.as_raw_fd(), &self.message(), &to, MsgFlags::empty())?;
        Ok(())
    }

    fn replies(&mut self) -> u64 {
        let mut buffer = [0; 256];
        let mut count = 0;
        while let Ok(length) = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            // Raw IPv4 sockets deliver the header, of 20 bytes here, raw ICMPv6 ones do not.
            let (message, reply) = match self.to {
                IpAddr::V4(_) => (buffer.get(20..length), 0),
                IpAddr::V6(_) => (buffer.get(..length), 129),
            };
            if message.is_some_and(|message| {
                message.first() == Some(&reply)
                    && message.get(4..6) == Some(&self.identifier.to_be_bytes())
            }) {
                count += 1;
            }
        }
        count
    }
}

/// Whole frames, past every socket and every rule but the egress hook's.
pub(super) struct Frames {
    socket: PacketSocket,
    frame: Vec<u8>,
}

impl Frames {
    pub(super) fn open(client: &Host) -> Result<Self> {
        let socket = PacketSocket::open(client, CLIENT_LINK)?;
        socket.deafen()?;
        let builder = PacketBuilder::ethernet2(socket.address(), [0xff; 6])
            .ipv4(CLIENT_V4.octets(), [1, 1, 1, 1], 64)
            .udp(5000, 53);
        let mut frame = Vec::new();
        builder.write(&mut frame, &dns_query()).during("a frame")?;
        Ok(Frames { socket, frame })
    }
}

impl Sender for Frames {
    fn shoot(&mut self) -> io::Result<()> {
        self.socket.send(&self.frame)?;
        Ok(())
    }

    fn replies(&mut self) -> u64 {
        0
    }
}

fn open_udp(to: SocketAddr, link: Option<&str>) -> io::Result<UdpSocket> {
    Ok(open(to.ip(), SockType::Datagram, None, link)?.into())
}

pub(super) fn open(
    to: IpAddr,
    kind: SockType,
    protocol: Option<SockProtocol>,
    link: Option<&str>,
) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, kind, flags, protocol)?;
    if let Some(link) = link {
        setsockopt(&fd, sockopt::BindToDevice, &link.into())?;
    }
    Ok(fd)
}

/// "example.com, A?", RFC 1035.
fn dns_query() -> Vec<u8> {
    let mut query = vec![0x6b, 0x73, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(b"\x07example\x03com\x00");
    query.extend([0, 1, 0, 1]);
    query
}
