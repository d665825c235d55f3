//! Sees every frame that a link is handed, after the last hook of nftables.
//!
//! A packet socket that is bound to no link, so that links that come during the test are seen too;
//! its filter leaves what is plainly allowed to the kernel, so that it costs little.

use std::io::{self, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use ipnet::IpNet;
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol as Number, SockFilter, Socket, Type};

use super::canary::HOPS;
use super::frame::{IPV4, IPV6, TCP, UDP};
use crate::policy::{MessageShape, NAME_SERVICE_PORTS, Policy, Protocol, Server};

/// ETH_P_ALL of linux/if_ether.h, in network byte order, as packet(7) wants it.
pub(super) const EVERYTHING: i32 = (0x0003_u16).to_be() as i32;
/// Holds some ten thousand small frames.
const BUFFER: usize = 16 << 20;
/// So much of a frame is looked at: what is longer than any header and any canary.
const LOOK: usize = 2048;
/// Packets of so many servers are left to the kernel; the rest is judged here. A filter has 4096
/// instructions at most.
const SERVERS: usize = 40;
/// The same of local networks.
const NETWORKS: usize = 4;

/// A running capture.
pub struct Capture {
    socket: Socket,
    buffer: Vec<u8>,
    lost: u32,
}

/// A frame that a link got.
#[derive(Debug)]
pub struct Captured<'a> {
    /// Index of the link.
    pub link: u32,
    /// ARPHRD_ number of the link.
    pub hatype: u16,
    /// What the sender said it is: an EtherType.
    pub protocol: u16,
    /// Its whole length in bytes.
    pub length: u32,
    /// Its beginning.
    pub bytes: &'a [u8],
}

impl Capture {
    /// Begins to watch every link of the caller's namespace. `tunnel`: index of the tunnel's link, of
    /// which only canaries are shown.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub fn start(policy: &Policy, tunnel: Option<u32>) -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Number::from(EVERYTHING)))?;
        socket.attach_filter(&filter(policy, tunnel))?;
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
        }
        setsockopt(&socket, sockopt::RxqOvfl, &1)?;
        socket.set_nonblocking(true)?;
        Ok(Capture { socket, buffer: vec![0; LOOK], lost: 0 })
    }

    /// Another link is the tunnel now.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`.
    pub fn set_tunnel(&self, policy: &Policy, tunnel: Option<u32>) -> io::Result<()> {
        self.socket.attach_filter(&filter(policy, tunnel))
    }

    /// The next frame that waits, if one does. What came before the filter was set may be any.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`.
    pub fn receive(&mut self) -> io::Result<Option<Captured<'_>>> {
        /// PACKET_OUTGOING of linux/if_packet.h.
        const OUTGOING: u8 = 4;
        loop {
            let mut control = nix::cmsg_space!(u32);
            let mut parts = [IoSliceMut::new(&mut self.buffer)];
            let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
            let fd = self.socket.as_raw_fd();
            let message = match recvmsg::<LinkAddr>(fd, &mut parts, Some(&mut control), flags) {
                Ok(message) => message,
                Err(nix::Error::EAGAIN) => return Ok(None),
                // A link went down; the socket goes on.
                Err(nix::Error::ENETDOWN | nix::Error::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for part in message.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::RxqOvfl(count) = part {
                    self.lost = self.lost.max(count);
                }
            }
            let (length, address) = (message.bytes, message.address);
            let Some(from) = address.filter(|it| it.pkttype() == OUTGOING) else { continue };
            return Ok(Some(Captured {
                link: u32::try_from(from.ifindex()).unwrap_or_default(),
                hatype: from.hatype(),
                protocol: u16::from_be(from.protocol()),
                length: u32::try_from(length).unwrap_or(u32::MAX),
                bytes: &self.buffer[..length.min(LOOK)],
            }));
        }
    }

    /// How many frames came too fast to be read.
    pub fn lost(&self) -> u32 {
        self.lost
    }
}

impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

// linux/filter.h, linux/bpf_common.h
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_LENGTH: u16 = 0x80;
/// From the network header on, where the index register points. SKF_NET_OFF would not do: before
/// Linux 6.16 it reads a frame's linear part alone, and a sender may leave the rest on pages.
const NET_WORD: u16 = 0x40;
const NET_HALF: u16 = 0x48;
const NET_BYTE: u16 = 0x50;
const SET_INDEX: u16 = 0x01;
const TO_INDEX: u16 = 0x07;
const EQUAL: u16 = 0x15;
const EQUAL_INDEX: u16 = 0x1d;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
const SKF_AD: u32 = -0x1000_i32 as u32;
const PROTOCOL: u32 = SKF_AD;
const PKTTYPE: u32 = SKF_AD + 4;
const IFINDEX: u32 = SKF_AD + 8;
const HATYPE: u32 = SKF_AD + 28;
/// The bytes of Ethernet's header.
const ETHERNET: u32 = 14;

/// One question of a filter: how a value, masked, must be.
struct Question {
    load: (u16, u32),
    mask: u32,
    test: Test,
}

enum Test {
    Is(u32),
    AtLeast(u32),
    AtMost(u32),
}

fn is(load: u16, at: u32, value: u32) -> Question {
    Question { load: (load, at), mask: u32::MAX, test: Test::Is(value) }
}

impl Question {
    /// A frame so long can be asked. What asks beyond its end is not answered by no: the whole filter
    /// ends there, and shows nothing.
    fn length(&self) -> u32 {
        let (load, at) = self.load;
        match load {
            NET_WORD => ETHERNET + at + 4,
            NET_HALF => ETHERNET + at + 2,
            NET_BYTE => ETHERNET + at + 1,
            _ => 0,
        }
    }
}

/// Instructions that return `verdict` if all questions are answered by yes, and go on otherwise.
fn if_all(questions: &[Question], verdict: u32) -> Vec<SockFilter> {
    const GREATER: u16 = 0x25;
    const NOT_LESS: u16 = 0x35;
    let mut code = vec![SockFilter::new(RETURN, 0, 0, verdict)];
    // From behind, since a jump needs to know how much follows.
    for question in questions.iter().rev() {
        let over = u8::try_from(code.len()).unwrap_or(u8::MAX);
        let test = match question.test {
            Test::Is(value) => SockFilter::new(EQUAL, 0, over, value),
            Test::AtLeast(value) => SockFilter::new(NOT_LESS, 0, over, value),
            Test::AtMost(value) => SockFilter::new(GREATER, over, 0, value),
        };
        let (load, at) = question.load;
        let (load, mask) =
            (SockFilter::new(load, 0, 0, at), SockFilter::new(AND, 0, 0, question.mask));
        code.splice(0..0, [load, mask, test]);
    }
    let length = questions.iter().map(Question::length).max().unwrap_or_default();
    let over = u8::try_from(code.len()).unwrap_or(u8::MAX);
    let long_enough =
        [SockFilter::new(LOAD_LENGTH, 0, 0, 0), SockFilter::new(NOT_LESS, 0, over, length)];
    code.splice(0..0, long_enough);
    code
}

/// Sets the index register to the network header's place, and shows Ethernet's frames whose type on
/// the wire is not the one that the kernel was told.
fn find_network_header(take: u32) -> Vec<SockFilter> {
    const ARPHRD_ETHER: u32 = 1;
    const AT_LEAST: u16 = 0x35;
    vec![
        SockFilter::new(SET_INDEX, 0, 0, 0),
        SockFilter::new(LOAD_WORD, 0, 0, HATYPE),
        SockFilter::new(EQUAL, 0, 8, ARPHRD_ETHER),
        SockFilter::new(LOAD_LENGTH, 0, 0, 0),
        SockFilter::new(AT_LEAST, 0, 4, ETHERNET),
        SockFilter::new(LOAD_HALF, 0, 0, 12),
        SockFilter::new(TO_INDEX, 0, 0, 0),
        SockFilter::new(LOAD_WORD, 0, 0, PROTOCOL),
        SockFilter::new(EQUAL_INDEX, 1, 0, 0),
        SockFilter::new(RETURN, 0, 0, take),
        SockFilter::new(SET_INDEX, 0, 0, ETHERNET),
    ]
}

/// Shows canaries; drops what comes in, loopback, what else the tunnel carries, and what is plainly
/// allowed: to local networks, and WireGuard to servers.
fn filter(policy: &Policy, tunnel: Option<u32>) -> Vec<SockFilter> {
    const LOOPBACK: u32 = 1;
    const OUTGOING: u32 = 4;
    const TAKE: u32 = u32::MAX;
    let mut code = vec![
        SockFilter::new(LOAD_WORD, 0, 0, PKTTYPE),
        SockFilter::new(EQUAL, 1, 0, OUTGOING),
        SockFilter::new(RETURN, 0, 0, 0),
    ];
    code.extend(if_all(&[is(LOAD_WORD, IFINDEX, LOOPBACK)], 0));
    code.extend(find_network_header(TAKE));
    for (version, hops) in [(IPV4, 8), (IPV6, 7)] {
        let protocol = is(LOAD_HALF, PROTOCOL, version.into());
        code.extend(if_all(&[protocol, is(NET_BYTE, hops, HOPS.into())], TAKE));
    }
    code.extend(tunnel.into_iter().flat_map(|it| if_all(&[is(LOAD_WORD, IFINDEX, it)], 0)));
    // Outside the tunnel its address is a leak whatever it is for.
    for address in policy.tunnel.iter().flat_map(|it| &it.addresses) {
        let places = Places::of(*address);
        code.extend(if_all(&places.within(places.from, (*address).into()), TAKE));
    }
    code.extend(policy.lan.iter().take(NETWORKS).flat_map(|net| to_lan(*net)));
    let servers = policy
        .servers
        .iter()
        .filter(|it| it.protocol == Protocol::Udp && it.shape == MessageShape::Wireguard);
    for server in servers.take(SERVERS) {
        code.extend(if_all(&outer_packet(server), 0));
    }
    code.push(SockFilter::new(RETURN, 0, 0, TAKE));
    code
}

/// Where a family has what a filter asks for, from its header on.
struct Places {
    version: u16,
    from: u32,
    to: u32,
    protocol: u32,
    data: u32,
}

const V4: Places = Places { version: IPV4, from: 12, to: 16, protocol: 9, data: 20 };
const V6: Places = Places { version: IPV6, from: 8, to: 24, protocol: 6, data: 40 };

impl Places {
    fn of(address: IpAddr) -> &'static Self {
        if address.is_ipv4() { &V4 } else { &V6 }
    }

    /// A packet of this family with an address of this network at this place.
    fn within(&self, at: u32, net: IpNet) -> Vec<Question> {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let word = |it: &[u8]| it.iter().fold(0, |sum, &byte| sum << 8 | u32::from(byte));
        let (net, masks) = (octets(net.network()), octets(net.netmask()));
        let words = net.chunks_exact(4).map(word).zip(masks.chunks_exact(4).map(word));
        let mut questions = vec![is(LOAD_HALF, PROTOCOL, self.version.into())];
        for (at, (value, mask)) in (at..).step_by(4).zip(words) {
            questions.push(Question { mask, ..is(NET_WORD, at, value) });
        }
        questions
    }

    /// Of this protocol, its ports where they are looked for.
    fn carries(&self, protocol: u8) -> Vec<Question> {
        let mut questions = vec![is(NET_BYTE, self.protocol, protocol.into())];
        if self.version == IPV4 {
            // No options, and no fragment.
            questions.push(is(NET_BYTE, 0, 0x45));
            questions.push(Question { mask: 0x3fff, ..is(NET_HALF, 6, 0) });
        }
        questions
    }

    /// To a port of this range.
    fn to_ports(&self, first: u16, last: u16) -> [Question; 2] {
        let port = |test| Question { test, ..is(NET_HALF, self.data + 2, 0) };
        [port(Test::AtLeast(first.into())), port(Test::AtMost(last.into()))]
    }
}

/// WireGuard to this server, as [`super::judge`] has it.
fn outer_packet(server: &Server) -> Vec<Question> {
    let places = Places::of(server.endpoint.ip());
    let port = server.endpoint.port();
    let mut questions = places.within(places.to, server.endpoint.ip().into());
    questions.extend(places.carries(UDP));
    questions.extend(places.to_ports(port, port));
    // Type 1 to 4, and three zeros.
    let message = |test| Question { test, ..is(NET_WORD, places.data + 8, 0) };
    questions.push(Question { mask: 0x00ff_ffff, ..message(Test::Is(0)) });
    questions.push(message(Test::AtLeast(0x0100_0000)));
    questions.push(message(Test::AtMost(0x0400_0000)));
    questions
}

/// What `allow.lan` lets out to this network over TCP and UDP: all but name look-ups.
fn to_lan(net: IpNet) -> Vec<SockFilter> {
    let places = Places::of(net.addr());
    let mut code = Vec::new();
    let mut first = 0;
    let ends = NAME_SERVICE_PORTS.into_iter().map(|port| (port - 1, port + 1));
    for (last, next) in ends.chain([(u16::MAX, 0)]) {
        for protocol in [TCP, UDP] {
            let mut questions = places.within(places.to, net);
            questions.extend(places.carries(protocol));
            questions.extend(places.to_ports(first, last));
            code.extend(if_all(&questions, 0));
        }
        first = next;
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Tunnel;

    /// BPF_MAXINSNS of linux/bpf_common.h; a longer one is refused, and so is the test.
    #[test]
    fn the_largest_filter_is_taken() {
        let server = |port: u16, ip: IpAddr| Server {
            endpoint: (ip, port).into(),
            protocol: Protocol::Udp,
            shape: MessageShape::Wireguard,
        };
        let six: IpAddr = "2001:db8::1".parse().unwrap();
        let policy = Policy {
            tunnel: Some(Tunnel {
                interface: "wg0".into(),
                kinds: ["tun"].into(),
                addresses: [six].into(),
            }),
            servers: (1..500).map(|port| server(port, six)).collect(),
            lan: (0..9).map(|it| format!("fd00:{it}::/32").parse().unwrap()).collect(),
            ..Policy::strictest()
        };
        let length = filter(&policy, Some(7)).len();
        assert!((1000..=4096).contains(&length), "{length}");
    }
}
