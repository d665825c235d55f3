use std::io;
use std::os::fd::AsRawFd;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{LinkAddr, bind, recvfrom};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells once when somebody sends into the tunnel.
///
/// A packet socket on the tunnel's link, asleep until then. WireGuard's own messages are made below
/// the link and do not pass there, so an idle tunnel wakes nobody. To be had only while idle: while
/// it exists, each packet on the link costs the kernel a look.
pub struct TrafficAlarm {
    link: u32,
    // `None` only while it is being dropped.
    socket: Option<AsyncFd<Socket>>,
}

impl TrafficAlarm {
    /// Sets the alarm on the link of this index, in the caller's network namespace. What was sent
    /// before it returned may go unseen: read the counters afterwards.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW; ENODEV if there is no such link.
    pub async fn set(link: u32) -> io::Result<Self> {
        // Binding waits for an RCU grace period, some milliseconds, as closing does.
        let opened = tokio::task::spawn_blocking(move || open(link)).await;
        let socket = opened.map_err(io::Error::other)??;
        Self::watch(link, socket)
    }

    // Deprecated for descriptors that may change under it; a Socket keeps the one that it owns. The
    // successor is unsafe to call.
    #[allow(deprecated)]
    fn watch(link: u32, socket: Socket) -> io::Result<Self> {
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(TrafficAlarm { link, socket: Some(socket) })
    }

    /// Waits for the next packet into the tunnel. Cancel safe. The alarm is to be dropped then.
    ///
    /// # Errors
    /// ENETDOWN if the link goes down or away.
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

    /// Takes one packet; whether it went into the tunnel. Those from before the filter and the link
    /// were set may be any.
    fn receive(&self, socket: &Socket) -> io::Result<bool> {
        let from = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut [0])?.1;
        Ok(from.is_some_and(|it| it.pkttype() == OUTGOING && it.ifindex() == self.link as usize))
    }
}

impl Drop for TrafficAlarm {
    fn drop(&mut self) {
        let Some(socket) = self.socket.take().map(AsyncFd::into_inner) else { return };
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
    let address = address(link)?;
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(ETH_P_ALL)))?;
    socket.attach_filter(&filter(link))?;
    socket.set_nonblocking(true)?;
    // The kernel's least; one packet always fits.
    socket.set_recv_buffer_size(0)?;
    // The address has protocol 0, which keeps the socket's own (net/packet/af_packet.c).
    bind(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

/// getifaddrs(3) is where safe code gets a link-layer address from.
fn address(link: u32) -> io::Result<LinkAddr> {
    getifaddrs()?
        .filter_map(|entry| entry.address?.as_link_addr().copied())
        .find(|address| address.ifindex() == link as usize)
        .ok_or_else(|| nix::errno::Errno::ENODEV.into())
}
