//! Sees every frame that a link is handed, after the last hook of nftables.
//!
//! A packet socket that is bound to no link, so that links that come during the test are seen too;
//! its filter leaves what is plainly allowed to the kernel, so that it costs little.

use std::io::{self, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol as Number, SockFilter, Socket, Type};

use super::canary::HOPS;
use super::frame::{IPV4, IPV6, UDP};
use crate::policy::{MessageShape, Policy, Protocol, Server};

/// ETH_P_ALL of linux/if_ether.h, in network byte order, as packet(7) wants it.
pub(super) const EVERYTHING: i32 = (0x0003_u16).to_be() as i32;
/// Holds some ten thousand small frames.
const BUFFER: usize = 16 << 20;
/// So much of a frame is looked at: what is longer than any header and any canary.
const LOOK: usize = 2048;
/// So many servers' packets are left to the kernel; the rest is judged here.
const SERVERS: usize = 60;

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
const LOAD_BYTE: u16 = 0x30;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
const SKF_AD: u32 = -0x1000_i32 as u32;
const PROTOCOL: u32 = SKF_AD;
const PKTTYPE: u32 = SKF_AD + 4;
const IFINDEX: u32 = SKF_AD + 8;
/// SKF_NET_OFF: from the network header on, whatever the link's header is.
const NET: u32 = -0x10_0000_i32 as u32;

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

/// Instructions that return `verdict` if all questions are answered by yes, and go on otherwise.
fn if_all(questions: &[Question], verdict: u32) -> Vec<SockFilter> {
    const EQUAL: u16 = 0x15;
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
    code
}

/// Shows canaries; drops what comes in, loopback, what else the tunnel carries, and WireGuard to
/// servers.
fn filter(policy: &Policy, tunnel: Option<u32>) -> Vec<SockFilter> {
    const LOOPBACK: u32 = 1;
    const OUTGOING: u32 = 4;
    const TAKE: u32 = u32::MAX;
    let mut code = vec![
        SockFilter::new(LOAD_WORD, 0, 0, PKTTYPE),
        SockFilter::new(0x15, 1, 0, OUTGOING),
        SockFilter::new(RETURN, 0, 0, 0),
    ];
    code.extend(if_all(&[is(LOAD_WORD, IFINDEX, LOOPBACK)], 0));
    for (version, hops) in [(IPV4, 8), (IPV6, 7)] {
        let protocol = is(LOAD_HALF, PROTOCOL, version.into());
        code.extend(if_all(&[protocol, is(LOAD_BYTE, NET + hops, HOPS.into())], TAKE));
    }
    code.extend(tunnel.into_iter().flat_map(|it| if_all(&[is(LOAD_WORD, IFINDEX, it)], 0)));
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

/// WireGuard to this server, as [`super::judge`] has it.
fn outer_packet(server: &Server) -> Vec<Question> {
    let (version, to, octets, protocol, data) = match server.endpoint.ip() {
        IpAddr::V4(ip) => (IPV4, 16, ip.octets().to_vec(), 9, 20),
        IpAddr::V6(ip) => (IPV6, 24, ip.octets().to_vec(), 6, 40),
    };
    let mut questions =
        vec![is(LOAD_HALF, PROTOCOL, version.into()), is(LOAD_BYTE, NET + protocol, UDP.into())];
    for (at, word) in (NET + to..).step_by(4).zip(octets.chunks_exact(4)) {
        let word = word.iter().fold(0, |sum, &byte| sum << 8 | u32::from(byte));
        questions.push(is(LOAD_WORD, at, word));
    }
    if version == IPV4 {
        // No options, so that the ports are where they are looked for; and no fragment.
        questions.push(is(LOAD_BYTE, NET, 0x45));
        let fragment = Question { mask: 0x3fff, ..is(LOAD_HALF, NET + 6, 0) };
        questions.push(fragment);
    }
    questions.push(is(LOAD_HALF, NET + data + 2, server.endpoint.port().into()));
    // Type 1 to 4, and three zeros.
    let message = |test| Question { load: (LOAD_WORD, NET + data + 8), mask: u32::MAX, test };
    questions.push(Question { mask: 0x00ff_ffff, ..message(Test::Is(0)) });
    questions.push(message(Test::AtLeast(0x0100_0000)));
    questions.push(message(Test::AtMost(0x0400_0000)));
    questions
}
