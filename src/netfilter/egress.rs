//! The egress guard: the last gate for all that leaves a link, whichever way it came.
//!
//! Where the kernel takes a wildcard (6.18), one chain hooks every link there is or will be.
//! Elsewhere each present link gets a chain of its own. Proven by a blocked probe, never by
//! listing: a chain may be listed and hook nothing (threats 39, 42).

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, sendto, setsockopt, socket, sockopt,
};

use super::{Applied, Error, apply};
use crate::netlink::{self, Link, Socket};
use crate::policy::{GUEST_KINDS, LinkPattern, Policy};
use crate::ruleset::{LinkRef, PROBE_ETHERTYPE, PROBE_MARK, Table, guard};

/// How often the guard is tried anew when links vanish meanwhile.
const TRIES: u32 = 10;

/// What the egress guard covers.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Guard {
    /// Whether the kernel held anything else before.
    pub changed: bool,
    /// Links whose probe was blocked.
    pub proven: Vec<String>,
    /// Links that could not be probed, and why (down; not Ethernet).
    pub unproven: Vec<(String, String)>,
    /// Links whose probe got through: not guarded.
    pub open: Vec<String>,
}

impl Guard {
    fn proven(links: &[Link]) -> Self {
        let proven = links.iter().map(|link| link.name.clone()).collect();
        Guard { proven, ..Guard::default() }
    }

    fn after(self, applied: Applied) -> Self {
        Guard { changed: applied == Applied::Changed, ..self }
    }
}

/// Puts the guard on every link and probes each.
///
/// # Errors
/// [`Error`]; [`Error::Refused`] on kernels without egress chains (before 5.16).
pub fn apply_guard(netfilter: &Socket, route: &Socket, policy: &Policy) -> Result<Guard, Error> {
    apply_guard_by(&mut |table| apply(netfilter, table), route, policy)
}

/// As [`apply_guard`], with another way to put a table into the kernel.
///
/// # Errors
/// As [`apply_guard`].
pub fn apply_guard_by(
    put: &mut dyn FnMut(&Table) -> Result<Applied, Error>,
    route: &Socket,
    policy: &Policy,
) -> Result<Guard, Error> {
    let mut last = match put(&guard(policy, None)) {
        Ok(applied) => {
            let links = guarded(policy, &netlink::links(route)?);
            let found = match loopback_probe_is_refused() {
                true => Guard::proven(&links),
                false => probe(&links)?,
            };
            return Ok(found.after(applied));
        }
        // Somebody's table may be the very one that goes link by link.
        Err(error @ (Error::Refused(_) | Error::Owned { .. })) => error,
        Err(error) => return Err(error),
    };
    for _ in 0..TRIES {
        let links = guarded(policy, &netlink::links(route)?);
        match put(&guard(policy, Some(&references(&links)))) {
            Ok(applied) => return Ok(probe(&links)?.after(applied)),
            Err(error @ Error::Refused(_)) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// The links that must have the guard: all but loopback, the tunnel, and internal bridges.
pub fn guarded(policy: &Policy, links: &[Link]) -> Vec<Link> {
    links.iter().filter(|link| !link.loopback && !is_exempt(policy, link)).cloned().collect()
}

/// What `guard` calls these links.
pub fn references(links: &[Link]) -> Vec<LinkRef> {
    links.iter().map(|link| LinkRef { index: link.index, name: link.name.clone() }).collect()
}

fn is_exempt(policy: &Policy, link: &Link) -> bool {
    let Some(kind) = link.kind.as_deref() else { return false };
    let is_tunnel = policy
        .tunnel
        .as_ref()
        .is_some_and(|tunnel| tunnel.interface == link.name && tunnel.kinds.contains(kind));
    let named = |patterns: &std::collections::BTreeSet<LinkPattern>| {
        patterns.iter().any(|pattern| pattern.matches(&link.name))
    };
    is_tunnel
        || (kind == "bridge" && named(&policy.internal))
        || (GUEST_KINDS.contains(&kind) && named(&policy.internal_ports))
}

/// A chain on every link hooks loopback too, and refuses there what bears the probe's mark: that
/// shows that it hooks at all, without a frame on any wire. A packet socket would cost more than the
/// rest of the lock: closing one waits for a grace period (packet_release).
fn loopback_probe_is_refused() -> bool {
    /// discard (RFC 863); nothing has to listen.
    const TO: (std::net::Ipv4Addr, u16) = (std::net::Ipv4Addr::LOCALHOST, 9);
    let send = || -> std::io::Result<usize> {
        let sender = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
        setsockopt(&sender, sockopt::Mark, &PROBE_MARK)?;
        // Without it the kernel keeps ENOBUFS to itself (udp_send_skb).
        setsockopt(&sender, sockopt::Ipv4RecvErr, &true)?;
        sender.send_to(&[], TO)
    };
    send().is_err_and(|error| error.raw_os_error() == Some(Errno::ENOBUFS as i32))
}

/// Sends each link an empty frame to itself that the guard must refuse with ENOBUFS.
fn probe(links: &[Link]) -> Result<Guard, Error> {
    let addresses = netlink::hardware_addresses()?;
    let sender =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None::<SockProtocol>)
            .map_err(std::io::Error::from)?;
    let mut guard = Guard::default();
    for link in links {
        let address = addresses.get(&link.name).filter(|_| link.ethernet);
        let Some(address) = address else {
            guard.unproven.push((link.name.clone(), "not an ethernet link".into()));
            continue;
        };
        let frame = probe_frame(address.addr().unwrap_or_default());
        match sendto(sender.as_raw_fd(), &frame, address, MsgFlags::empty()) {
            Err(Errno::ENOBUFS) => guard.proven.push(link.name.clone()),
            Err(error) => guard.unproven.push((link.name.clone(), error.desc().to_lowercase())),
            Ok(_) => guard.open.push(link.name.clone()),
        }
    }
    Ok(guard)
}

/// From the link to itself, of the EtherType for local experiments, without content.
fn probe_frame(address: [u8; 6]) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].copy_from_slice(&address);
    frame[6..12].copy_from_slice(&address);
    frame[12..14].copy_from_slice(&PROBE_ETHERTYPE.to_be_bytes());
    frame
}
