use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{LinkAddr, recvfrom};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells once when somebody sends into the tunnel.
///
/// A packet socket that lets through nothing but what goes out by the tunnel's link, asleep until
/// then. WireGuard's own messages are made below the link and do not pass there, so an idle tunnel
/// wakes nobody. To be had only while idle: while it exists, the kernel runs a filter of six
/// instructions for each packet of every link. (Safe code cannot bind it to a link that has no
/// hardware address: getifaddrs(3) gives none.)
pub struct TrafficAlarm {
    link: u32,
    // `None` only while it is being dropped.
    socket: Option<AsyncFd<Socket>>,
}

impl TrafficAlarm {
    /// Sets the alarm on the link of this index, in the caller's network namespace; within a tokio
    /// runtime. What was sent before it returned goes unseen: read the counters afterwards.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub fn set(link: u32) -> io::Result<Self> {
        Self::watch(link, open(link)?)
    }

    // Deprecated for descriptors that may change under it; a Socket keeps the one that it owns. The
    // successor is unsafe to call.
    #[allow(deprecated)]
    fn watch(link: u32, socket: Socket) -> io::Result<Self> {
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(TrafficAlarm { link, socket: Some(socket) })
    }

    /// Waits for the next packet into the tunnel: for ever, if the link goes. Cancel safe. Drop the
    /// alarm then.
    ///
    /// # Errors
    /// Those of `recvfrom(2)`.
    pub async fn sent(&self) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let socket = self.socket.as_ref().ok_or_else(gone)?;
        socket
            .async_io(Interest::READABLE, |socket| {
                while !self.receive(socket)? {}
                Ok(())
            })
            .await
    }

    /// Takes one packet; whether it went into the tunnel. Those from before the filter was set may
    /// be any.
    fn receive(&self, socket: &Socket) -> io::Result<bool> {
        let from = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut [0])?.1;
        Ok(from.is_some_and(|it| it.pkttype() == OUTGOING && it.ifindex() == self.link as usize))
    }
}

impl Drop for TrafficAlarm {
    fn drop(&mut self) {
        let Some(socket) = self.socket.take().map(AsyncFd::into_inner) else { return };
        // Closing waits for an RCU grace period, some milliseconds.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(socket));
        }
    }
}

/// PACKET_OUTGOING of include/uapi/linux/if_packet.h.
const OUTGOING: u8 = 4;

/// Accepts one byte of what goes out by the link, so that nothing else wakes us.
fn filter(link: u32) -> [SockFilter; 6] {
    // include/uapi/linux/filter.h, bpf_common.h
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const SKF_AD_OFF: u32 = -0x1000_i32 as u32;
    const SKF_AD_PKTTYPE: u32 = SKF_AD_OFF + 4;
    const SKF_AD_IFINDEX: u32 = SKF_AD_OFF + 8;
    [
        SockFilter::new(LOAD_WORD, 0, 0, SKF_AD_PKTTYPE),
        SockFilter::new(JUMP_IF_EQUAL, 0, 3, OUTGOING.into()),
        SockFilter::new(LOAD_WORD, 0, 0, SKF_AD_IFINDEX),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, link),
        SockFilter::new(RETURN, 0, 0, 1),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

fn open(link: u32) -> io::Result<Socket> {
    /// In network byte order, as packet(7) wants it.
    const ETH_P_ALL: i32 = (0x0003_u16).to_be() as i32;
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(ETH_P_ALL)))?;
    socket.attach_filter(&filter(link))?;
    socket.set_nonblocking(true)?;
    // The kernel's least; one packet always fits.
    socket.set_recv_buffer_size(0)?;
    Ok(socket)
}
