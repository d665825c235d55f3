//! Packet sockets: what is sent to and received from a link as it is.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind,
    recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeSpec, TimeVal, TimeValLike};

use socket2::{SockFilter, SockRef};

use super::error::{Context, Error, Result};
use super::host::Host;
use crate::netlink::hardware_addresses;

/// PACKET_OUTGOING of include/uapi/linux/if_packet.h.
const OUTGOING: u8 = 4;

/// A packet socket on one link.
pub struct PacketSocket {
    fd: OwnedFd,
    /// `None`: every link.
    link: Option<LinkAddr>,
}

/// One received frame's length and circumstances.
pub(super) struct Received {
    pub(super) length: usize,
    /// When the kernel received it.
    pub(super) at: SystemTime,
    /// Sent by the machine itself, not received from the wire.
    pub(super) outgoing: bool,
    /// How many frames the socket has lost since it was opened.
    pub(super) lost: u32,
}

impl PacketSocket {
    /// Opens a socket on a link of a machine that sees every frame.
    ///
    /// # Errors
    /// Those of `socket(2)`; if there is no such link.
    pub fn open(host: &Host, link: &str) -> Result<Self> {
        host.run(|| open_here(link))?.during(format!("packet socket on {link} of {}", host.name()))
    }

    /// Opens a socket that sees every frame of every link of a machine, later ones included.
    pub(super) fn open_all(host: &Host) -> Result<Self> {
        let fd = host.run(open_unbound)?.during(format!("packet socket of {}", host.name()))?;
        Ok(PacketSocket { fd, link: None })
    }

    /// As [`PacketSocket::open`], but deaf at no time: a socket that is bound to its link misses
    /// what comes just after the link is set up again, and fails when it is set down.
    pub(super) fn open_lasting(host: &Host, link: &str) -> Result<Self> {
        host.run(|| open_filtered(link))?
            .during(format!("packet socket on {link} of {}", host.name()))
    }

    /// Sends one whole frame.
    ///
    /// # Errors
    /// Those of `sendmsg(2)`; ENOBUFS: a netdev egress chain dropped it.
    pub fn send(&self, frame: &[u8]) -> nix::Result<usize> {
        let flags = MsgFlags::empty();
        sendmsg(self.fd.as_raw_fd(), &[IoSlice::new(frame)], &[], flags, self.link.as_ref())
    }

    /// The link's hardware address.
    pub fn address(&self) -> [u8; 6] {
        self.link.and_then(|link| link.addr()).unwrap_or_default()
    }

    /// Room for a burst: over the system's limit where we may.
    pub(super) fn reserve(&self, bytes: usize) -> Result<()> {
        if setsockopt(&self.fd, sockopt::RcvBufForce, &bytes).is_err() {
            setsockopt(&self.fd, sockopt::RcvBuf, &bytes).during("SO_RCVBUF")?;
        }
        setsockopt(&self.fd, sockopt::RxqOvfl, &1).during("SO_RXQ_OVFL")?;
        setsockopt(&self.fd, sockopt::ReceiveTimestampns, &true).during("SO_TIMESTAMPNS")
    }

    /// For a socket that only sends: the smallest buffer fills, and later frames cost nothing.
    pub(super) fn deafen(&self) -> Result<()> {
        setsockopt(&self.fd, sockopt::RcvBuf, &0).during("SO_RCVBUF")
    }

    pub(super) fn set_timeout(&self, timeout: Duration) -> Result<()> {
        let milliseconds = i64::try_from(timeout.as_millis()).during("a time-out")?;
        let value = TimeVal::milliseconds(milliseconds);
        setsockopt(&self.fd, sockopt::ReceiveTimeout, &value).during("SO_RCVTIMEO")
    }

    /// Waits for a frame; `None` after the time-out.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Result<Option<Received>> {
        loop {
            match self.receive_any(buffer)? {
                // Came before the socket was bound or filtered.
                Some((_, link)) if self.link.is_some_and(|own| own.ifindex() != link) => {}
                other => return Ok(other.map(|(received, _)| received)),
            }
        }
    }

    /// With the index of its link.
    fn receive_any(&self, buffer: &mut [u8]) -> Result<Option<(Received, usize)>> {
        let mut control = nix::cmsg_space!(u32, TimeSpec);
        let mut parts = [IoSliceMut::new(buffer)];
        let fd = self.fd.as_raw_fd();
        let flags = MsgFlags::empty();
        match recvmsg::<LinkAddr>(fd, &mut parts, Some(&mut control), flags) {
            Ok(message) => {
                let (mut lost, mut at) = (0, SystemTime::now());
                for part in message.cmsgs().into_iter().flatten() {
                    match part {
                        ControlMessageOwned::RxqOvfl(count) => lost = count,
                        ControlMessageOwned::ScmTimestampns(time) => {
                            at = UNIX_EPOCH + Duration::from(time);
                        }
                        _ => {}
                    }
                }
                let outgoing = message.address.is_some_and(|from| from.pkttype() == OUTGOING);
                let link = message.address.map_or(0, |from| from.ifindex());
                Ok(Some((Received { length: message.bytes, at, outgoing, lost }, link)))
            }
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(None),
            Err(error) => Err(Error::new(format!("receiving: {error}"))),
        }
    }
}

fn open_filtered(name: &str) -> Result<PacketSocket> {
    let link = find(name)?;
    let fd = open_unbound()?;
    let index = u32::try_from(link.ifindex()).during("a link's index")?;
    SockRef::from(&fd).attach_filter(&only_link(index)).during("SO_ATTACH_FILTER")?;
    Ok(PacketSocket { fd, link: Some(link) })
}

/// linux/filter.h, linux/bpf_common.h: frames of one link pass, others do not.
fn only_link(index: u32) -> [SockFilter; 4] {
    let step = |code: u32, jf: u8, k: u32| SockFilter::new(code as u16, 0, jf, k);
    // A link's index lies at a "negative" offset of the packet.
    let at_index = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX) as u32;
    [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, at_index),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, index),
        step(libc::BPF_RET | libc::BPF_K, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0),
    ]
}

fn open_here(name: &str) -> Result<PacketSocket> {
    let link = find(name)?;
    let fd = open_unbound()?;
    // The address has protocol 0, which keeps the socket's own (net/packet/af_packet.c).
    bind(fd.as_raw_fd(), &link).during("bind")?;
    Ok(PacketSocket { fd, link: Some(link) })
}

fn open_unbound() -> Result<OwnedFd> {
    socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        // One bound later hears all links until then: frames of this host only.
        SockProtocol::EthAll,
    )
    .during("socket")
}

fn find(name: &str) -> Result<LinkAddr> {
    let address = hardware_addresses().during("getifaddrs")?.remove(name);
    address.ok_or_else(|| Error::new(format!("no link {name}")))
}
