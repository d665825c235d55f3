//! A throw-away network namespace, behind a link of its own, that sends what the machine would have to
//! forward: as a container does.
//!
//! Nothing of it has a name that lasts: the namespace is held by descriptors, and its end of the link
//! takes the other one with it. So it is gone with the process, however that ends.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::LinkAddr;

use super::canary::{self, Run};
use super::kernel;
use super::shot::{Shot, Way, packet_socket};
use crate::netlink::{self, Family, Socket};

/// The machine's end, in networks for benchmarks (RFC 2544, RFC 5180).
const HERE: [&str; 2] = ["198.19.255.253/30", "2001:2:0:ffff::1/64"];
/// The guest.
const THERE: [&str; 2] = ["198.19.255.254", "2001:2:0:ffff::2"];
/// How the guest calls its end.
const PEER: &str = "eth0";

/// A guest; gone when dropped.
#[derive(Debug)]
pub struct Guest {
    /// Index of the machine's end of its link.
    pub link: u32,
    /// What it sends.
    pub shots: Vec<Shot>,
    _namespace: File,
}

/// Whether this machine forwards at all, in either family.
pub fn machine_forwards() -> bool {
    let is_on = |key: &str| {
        std::fs::read_to_string(format!("/proc/sys/net/{key}")).is_ok_and(|it| it.trim() == "1")
    };
    is_on("ipv4/ip_forward") || is_on("ipv6/conf/all/forwarding")
}

impl Guest {
    /// Makes one.
    ///
    /// # Errors
    /// Those of namespaces, links and sockets.
    pub fn new(run: &Run, token: &str) -> io::Result<Self> {
        let namespace = elsewhere(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        })?;
        let socket = Socket::open(Family::Route)?;
        let name = format!("kslt{}", std::process::id());
        kernel::add_pair(&socket, &name, PEER, namespace.as_fd())?;
        let link = netlink::links(&socket)?.into_iter().find(|it| it.name == name);
        let link = link.ok_or(io::ErrorKind::NotFound)?.index;
        let mut guest = Guest { link, shots: Vec::new(), _namespace: namespace };
        for net in HERE.iter().filter_map(|it| it.parse().ok()) {
            match kernel::add_address(&socket, link, net) {
                // No IPv6 here.
                Err(_) if net.addr().is_ipv6() => {}
                outcome => outcome?,
            }
        }
        kernel::set_up(&socket, link, true)?;
        let hardware = netlink::hardware_addresses()?.get(&name).and_then(LinkAddr::addr);
        let hardware = hardware.ok_or(io::ErrorKind::NotFound)?;
        for (frame, to) in frames(run, token, hardware) {
            let sender = guest.run(|| {
                let route = Socket::open(Family::Route)?;
                let own = netlink::links(&route)?.into_iter().find(|it| it.name == PEER);
                kernel::set_up(&route, own.ok_or(io::ErrorKind::NotFound)?.index, true)?;
                packet_socket(PEER)
            })?;
            guest.shots.push(Shot::new(Way::Socket(sender), to, frame));
        }
        Ok(guest)
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        elsewhere(|| {
            setns(&self._namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // If it cannot be deleted, it goes with the namespace.
        let _ = Socket::open(Family::Route).and_then(|it| kernel::delete(&it, self.link));
    }
}

/// On a thread of its own, which may be in another namespace than we.
pub(super) fn elsewhere<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let panicked = |_| io::Error::other("a thread panicked");
    std::thread::scope(|scope| scope.spawn(work).join()).map_err(panicked)?
}

/// One for each family, to the machine's end; one hop more than others, which forwarding takes.
fn frames(run: &Run, token: &str, hardware: [u8; 6]) -> Vec<(Vec<u8>, SocketAddr)> {
    let mut frames = Vec::new();
    for (from, to) in THERE.iter().zip(run.destinations()) {
        let Ok(from) = from.parse::<IpAddr>() else { continue };
        let (kind, packet) = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let packet = canary::ipv4_datagram(from, to, canary::HOPS + 1, token.as_bytes());
                ([8, 0], packet)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let packet = canary::ipv6_datagram(from, to, canary::HOPS + 1, token.as_bytes());
                ([0x86, 0xdd], packet)
            }
            _ => continue,
        };
        let source = [2, 0x6b, 0x73, 0, 0, 2];
        frames.push(([&hardware[..], &source, &kind, &packet].concat(), SocketAddr::new(to, 0)));
    }
    frames
}
