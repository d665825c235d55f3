use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use netlink_sys::Socket as Raw;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_SOCK_DIAG};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, getsockname, sendmsg, setsockopt, sockopt};
use rustix::buffer::spare_capacity;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvFlags, recvfrom};

/// `nlmsghdr`: length, type, flags, sequence number, port id.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The extended acknowledgement follows (include/uapi/linux/netlink.h).
const NLM_F_ACK_TLVS: u16 = 0x200;
/// The acknowledgement echoes the request's header only.
const NLM_F_CAPPED: u16 = 0x100;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSGERR_ATTR_OFFS: u16 = 2;
/// The kernel's port id: nobody else may speak for it.
const KERNEL: u32 = 0;
/// No datagram is longer: the kernel fills 32 KiB of a dump's answer where the reader has as much
/// room (netlink_dump), and more only for links with hundreds of virtual functions, if asked for them.
const LONGEST_DATAGRAM: usize = 64 << 10;

/// Which part of the kernel a socket talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes, rules.
    Route,
    /// nf_tables.
    Netfilter,
    /// Sockets of programs.
    SockDiag,
}

/// An open netlink socket, bound to a port of its own.
pub struct Socket {
    fd: OwnedFd,
    port: u32,
    buffer: RefCell<Vec<u8>>,
}

/// One message from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// Sequence number of the request that it answers.
    pub sequence: u32,
    /// Port of the socket that asked for it or, in an event, whose request caused it; zero: the
    /// kernel's own.
    pub port: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
}

/// The kernel's answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Which request.
    pub sequence: u32,
    /// `None`: done. Otherwise what failed.
    pub failure: Option<Failure>,
}

/// Why the kernel refused a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The error number, positive.
    pub errno: i32,
    /// The kernel's own words, if it had any.
    pub text: Option<String>,
    /// Byte offset in the request of the attribute at fault.
    pub offset: Option<u32>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}", io::Error::from_raw_os_error(self.errno))?;
        if let Some(text) = &self.text {
            write!(out, ": {text}")?;
        }
        Ok(())
    }
}

impl Socket {
    /// Opens a socket in the caller's network namespace.
    ///
    /// # Errors
    /// Those of `socket(2)` and `bind(2)`: a kernel without the family answers EPROTONOSUPPORT.
    pub fn open(family: Family) -> io::Result<Self> {
        Self::open_subscribed(family, &[])
    }

    /// As [`Socket::open`], subscribed to multicast groups (RTNLGRP_*, NFNLGRP_*).
    ///
    /// # Errors
    /// As [`Socket::open`], and those of `setsockopt(2)`.
    pub fn open_subscribed(family: Family, groups: &[u32]) -> io::Result<Self> {
        let mut raw = Raw::new(family.protocol())?;
        raw.bind_auto()?;
        raw.set_ext_ack(true)?;
        raw.set_cap_ack(true)?;
        if family == Family::Route {
            // Kernels before 4.20 lack it; dumps are then filtered on our side only.
            let _ = raw.set_netlink_get_strict_chk(true);
        }
        groups.iter().try_for_each(|&group| raw.add_membership(group))?;
        Self::from_fd(family, raw.as_fd().try_clone_to_owned()?)
    }

    /// Takes over an open socket of this family, e.g. one that [`Socket::open`] made in a process
    /// that is gone. Its port and all that hangs on it stay what they were.
    ///
    /// # Errors
    /// EINVAL: it is no netlink socket of this family.
    pub fn from_fd(family: Family, fd: OwnedFd) -> io::Result<Self> {
        let socket = socket2::SockRef::from(&fd);
        let is_ours = socket.domain()? == socket2::Domain::from(nix::libc::AF_NETLINK)
            && socket.protocol()?.map_or(0, i32::from) as isize == family.protocol();
        if !is_ours {
            return Err(Errno::EINVAL.into());
        }
        socket.set_cloexec(true)?;
        let port = getsockname::<NetlinkAddr>(fd.as_raw_fd())?.pid();
        Ok(Socket { fd, port, buffer: RefCell::default() })
    }

    /// Our port id: the kernel names it as a table's owner.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Makes room for a message of `bytes` to the kernel and answers of that size, over the
    /// system's limit where we may.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`.
    pub fn reserve(&self, bytes: usize) -> io::Result<()> {
        let fd = self.as_fd();
        if setsockopt(&fd, sockopt::SndBufForce, &bytes).is_err() {
            setsockopt(&fd, sockopt::SndBuf, &bytes)?;
        }
        self.reserve_events(bytes)
    }

    /// Makes room for this much of what the kernel sends unasked (it takes twice that, for its own
    /// headers), over the system's limit where we may.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`.
    pub fn reserve_events(&self, bytes: usize) -> io::Result<()> {
        let fd = self.as_fd();
        if setsockopt(&fd, sockopt::RcvBufForce, &bytes).is_err() {
            setsockopt(&fd, sockopt::RcvBuf, &bytes)?;
        }
        Ok(())
    }

    /// Sends one datagram, which may hold several messages.
    ///
    /// # Errors
    /// Those of `sendto(2)`; EMSGSIZE: [`Socket::reserve`] more.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let kernel = NetlinkAddr::new(KERNEL, 0);
        let part = [IoSlice::new(bytes)];
        let sent = sendmsg(self.as_raw_fd(), &part, &[], MsgFlags::empty(), Some(&kernel))?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::WriteZero, "netlink datagram cut short"))
        }
    }

    /// Waits for one datagram of the kernel and splits it into messages.
    ///
    /// # Errors
    /// Those of `recvfrom(2)`; ENOBUFS: messages were lost.
    pub fn receive(&self) -> io::Result<Vec<Message>> {
        loop {
            if let Some(messages) = self.receive_one(RecvFlags::empty())? {
                return Ok(messages);
            }
        }
    }

    /// As [`Socket::receive`], but `None` if nothing waits: nfnetlink answers within `send`.
    ///
    /// # Errors
    /// As [`Socket::receive`].
    pub fn receive_pending(&self) -> io::Result<Option<Vec<Message>>> {
        loop {
            match self.receive_one(RecvFlags::DONTWAIT) {
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                other => return other,
            }
        }
    }

    /// Throws away what waits: answers to what a former holder of the socket asked, or to what was
    /// given up half-way.
    pub fn discard_pending(&self) {
        /// A flood of foreign messages must not keep us here.
        const MOST: usize = 10_000;
        for _ in 0..MOST {
            match self.receive_one(RecvFlags::DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    }

    /// Sends one dump request and collects its answers up to NLMSG_DONE.
    ///
    /// # Errors
    /// The kernel's refusal as an OS error; EINTR: the dump was inconsistent, ask again.
    pub fn dump(&self, request: &[u8]) -> io::Result<Vec<Message>> {
        const NLM_F_DUMP_INTR: u16 = 0x10;
        self.send(request)?;
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            for message in self.receive()? {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE if interrupted => {
                        return Err(io::Error::from(io::ErrorKind::Interrupted));
                    }
                    // A dump that fails from the start says so here, not in NLMSG_ERROR.
                    NLMSG_DONE => return message.done().map(|()| answers),
                    NLMSG_ERROR => {
                        if let Some(Ack { failure: Some(failure), .. }) = message.ack() {
                            return Err(io::Error::from_raw_os_error(failure.errno));
                        }
                    }
                    _ => answers.push(message),
                }
            }
        }
    }

    /// As [`Socket::dump`], asking anew as long as something changes meanwhile, within reason.
    ///
    /// # Errors
    /// As [`Socket::dump`].
    pub fn dump_consistent(&self, request: &[u8]) -> io::Result<Vec<Message>> {
        const TRIES: usize = 8;
        let mut tries = 1;
        loop {
            match self.dump(request) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted && tries < TRIES => {
                    tries += 1;
                }
                result => return result,
            }
        }
    }

    /// One datagram; `None`: it was not from the kernel. Any process with CAP_NET_ADMIN may send to
    /// our port, and to a group (threat 61).
    ///
    /// # Errors
    /// Those of `recvfrom(2)`; with MSG_DONTWAIT, EAGAIN: nothing waits.
    pub(crate) fn receive_one(&self, flags: RecvFlags) -> io::Result<Option<Vec<Message>>> {
        let mut buffer = self.buffer.borrow_mut();
        buffer.clear();
        // Never filled with zeros: a short answer touches one page of it, not sixteen.
        buffer.reserve(LONGEST_DATAGRAM);
        let room = spare_capacity(&mut buffer);
        let (received, size, sender) = recvfrom(&self.fd, room, flags | RecvFlags::TRUNC)?;
        if received < size {
            return Err(Errno::EMSGSIZE.into());
        }
        let sender = sender.and_then(|it| SocketAddrNetlink::try_from(it).ok());
        Ok(sender.is_some_and(|it| it.pid() == KERNEL).then(|| split(&buffer)))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Family {
    fn protocol(self) -> isize {
        match self {
            Family::Route => NETLINK_ROUTE,
            Family::Netfilter => NETLINK_NETFILTER,
            Family::SockDiag => NETLINK_SOCK_DIAG,
        }
    }
}

impl Message {
    /// Reads the error number of NLMSG_DONE.
    fn done(&self) -> io::Result<()> {
        let errno = self.payload.get(..4).and_then(|bytes| bytes.try_into().ok());
        match errno.map_or(0, i32::from_ne_bytes) {
            0.. => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    }

    /// Reads an NLMSG_ERROR message; `None` for every other kind.
    pub fn ack(&self) -> Option<Ack> {
        if self.kind != NLMSG_ERROR || self.payload.len() < 4 + HEADER {
            return None;
        }
        let errno = i32::from_ne_bytes(self.payload[..4].try_into().ok()?);
        let request_length = u32::from_ne_bytes(self.payload[4..8].try_into().ok()?) as usize;
        let sequence = u32::from_ne_bytes(self.payload[12..16].try_into().ok()?);
        if errno == 0 {
            return Some(Ack { sequence, failure: None });
        }
        let echoed = if self.flags & NLM_F_CAPPED != 0 { HEADER } else { request_length };
        let mut failure = Failure { errno: -errno, text: None, offset: None };
        if self.flags & NLM_F_ACK_TLVS != 0 {
            let attributes = self.payload.get(4 + align(echoed)..).unwrap_or_default();
            for (kind, value) in Attributes(attributes) {
                match kind {
                    NLMSGERR_ATTR_MSG => {
                        failure.text = Some(text(value));
                    }
                    NLMSGERR_ATTR_OFFS => {
                        failure.offset = value.try_into().ok().map(u32::from_ne_bytes);
                    }
                    _ => {}
                }
            }
        }
        Some(Ack { sequence, failure: Some(failure) })
    }
}

/// Walks the attributes of a netlink message: (type without its flags, payload).
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The payload of the first attribute of a type.
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        let mut all = self;
        all.find(|it| it.0 == kind).map(|it| it.1)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        /// NLA_F_NESTED and NLA_F_NET_BYTEORDER.
        const FLAGS: u16 = 0xc000;
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & !FLAGS;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A string's value, which may end in NUL, and be of any bytes.
pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn split(mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(header) = bytes.get(..HEADER) {
        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = word(0) as usize;
        let Some(payload) = bytes.get(HEADER..length) else { break };
        messages.push(Message {
            kind: half(4),
            flags: half(6),
            sequence: word(8),
            port: word(12),
            payload: payload.to_vec(),
        });
        bytes = bytes.get(align(length)..).unwrap_or_default();
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_stop_at_a_cut_one() {
        let bytes = [5, 0, 1, 0, 7, 0, 0, 0, 200, 0, 2, 0];
        assert_eq!(Attributes(&bytes).collect::<Vec<_>>(), vec![(1, &[7u8][..])]);
    }

    #[test]
    fn a_message_longer_than_its_datagram_is_dropped() {
        let mut bytes = vec![0u8; HEADER];
        bytes[0] = 200;
        assert!(split(&bytes).is_empty());
    }
}
