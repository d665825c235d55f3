//! IPv6 router advertisements (RFC 4861, 4191), honest or rogue.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt,
    socket, sockopt,
};

use super::addresses::{LAN_LINK, ROUTER_V6};
use super::error::{Context, Result};
use super::host::{Host, Worker};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What the router tells.
#[derive(Debug, Clone)]
pub struct RaOptions {
    /// The router's link.
    pub link: &'static str,
    /// For how many seconds it is a default router; 0: it is none.
    pub lifetime: u16,
    /// Prefixes of 64 bits to make addresses from.
    pub prefixes: Vec<Ipv6Addr>,
    /// Resolver (RFC 8106).
    pub dns: Option<Ipv6Addr>,
    /// Routes that clients are to install (RFC 4191): the IPv6 sister of DHCP's option 121.
    pub routes: Vec<(Ipv6Addr, u8)>,
    /// How often to send.
    pub interval: Duration,
}

impl Default for RaOptions {
    fn default() -> Self {
        RaOptions {
            link: LAN_LINK,
            lifetime: 1800,
            prefixes: vec![Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0)],
            dns: Some(ROUTER_V6),
            routes: Vec::new(),
            interval: Duration::from_millis(200),
        }
    }
}

/// A router that keeps advertising; ends when dropped.
pub struct Advertiser {
    _worker: Worker<Option<()>>,
}

impl Advertiser {
    /// Advertises on the LAN from the router.
    ///
    /// # Errors
    /// Those of raw sockets.
    pub fn start(router: &Host, options: RaOptions) -> Result<Self> {
        let (socket, link) = router
            .run(|| -> nix::Result<_> {
                let link = nix::net::if_::if_nametoindex(options.link)?;
                let socket = socket(
                    AddressFamily::Inet6,
                    SockType::Raw,
                    SockFlag::SOCK_CLOEXEC,
                    SockProtocol::IcmpV6,
                )?;
                // Receivers discard what came through a router (RFC 4861, 6.1.2).
                setsockopt(&socket, sockopt::Ipv6MulticastHops, &255)?;
                Ok((socket, link))
            })?
            .during("router advertisements")?;
        let message = encode(&options);
        let to = SockaddrIn6::from(SocketAddrV6::new(ALL_NODES, 0, 0, link));
        let worker = router.spawn("advertiser", move |stop| {
            while !stop.requested() {
                let _ = sendto(socket.as_raw_fd(), &message, &to, MsgFlags::empty());
                std::thread::sleep(options.interval);
            }
        })?;
        Ok(Advertiser { _worker: worker })
    }
}

/// The kernel fills the checksum in.
fn encode(options: &RaOptions) -> Vec<u8> {
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const HOP_LIMIT: u8 = 64;
    const SECONDS: u32 = 3600;
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, HOP_LIMIT, 0];
    message.extend(options.lifetime.to_be_bytes());
    // Reachable and retransmission time: unspecified.
    message.extend([0; 8]);
    for prefix in &options.prefixes {
        // On the link, and for addresses.
        message.extend([3, 4, 64, 0xc0]);
        message.extend(SECONDS.to_be_bytes());
        message.extend(SECONDS.to_be_bytes());
        message.extend([0; 4]);
        message.extend(prefix.octets());
    }
    for (network, length) in &options.routes {
        // High preference.
        message.extend([24, 3, *length, 0x08]);
        message.extend(SECONDS.to_be_bytes());
        message.extend(network.octets());
    }
    if let Some(dns) = options.dns {
        message.extend([25, 3, 0, 0]);
        message.extend(SECONDS.to_be_bytes());
        message.extend(dns.octets());
    }
    message
}
