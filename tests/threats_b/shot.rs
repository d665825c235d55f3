//! One packet at a time, each with a canary, and what must become of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use etherparse::PacketBuilder;
use killswitch::lab::addresses::*;
use killswitch::lab::link::PacketSocket;
use killswitch::lab::{Context, Error, Host, Lab, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, sendto,
    setsockopt, socket, sockopt,
};

use crate::common::{LockedLab, Seen, canary};

/// How often each is sent: one may fall to a neighbour that is not resolved yet.
const TIMES: usize = 3;

/// A packet that some program of the client sends.
#[derive(Clone)]
pub struct Shot {
    kind: Kind,
    name: &'static str,
    to: SocketAddr,
    from: Option<SocketAddr>,
    mark: Option<u32>,
    link: Option<&'static str>,
    head: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Udp,
    Tcp,
    Frame,
}

impl Shot {
    /// A datagram.
    pub fn udp(name: &'static str, to: &str) -> Self {
        let to = to.parse().expect("an address and a port");
        Shot { kind: Kind::Udp, name, to, from: None, mark: None, link: None, head: Vec::new() }
    }

    /// The first packet of a connection; the decoder shows it by its destination.
    pub fn tcp(to: &'static str) -> Self {
        Shot { kind: Kind::Tcp, ..Shot::udp(to, to) }
    }

    /// A whole frame past all sockets, by default through the client's link.
    pub fn frame(name: &'static str, to: &str) -> Self {
        Shot { kind: Kind::Frame, link: Some(CLIENT_LINK), ..Shot::udp(name, to) }
    }

    /// With the mark of the tunnel's outer packets.
    pub fn marked(self) -> Self {
        Shot { mark: Some(MARK), ..self }
    }

    /// Bound to this link.
    pub fn through(self, link: &'static str) -> Self {
        Shot { link: Some(link), ..self }
    }

    /// From this address and port.
    pub fn from(self, from: &str) -> Self {
        Shot { from: Some(from.parse().expect("an address and a port")), ..self }
    }

    /// With these bytes before the canary.
    pub fn saying(self, head: &[u8]) -> Self {
        Shot { head: head.to_vec(), ..self }
    }

    /// In the shape of a WireGuard message.
    pub fn wireguard(self, kind: u8) -> Self {
        self.saying(&[kind, 0, 0, 0])
    }

    /// What it is called in messages.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it chooses its link itself.
    pub fn is_bound(&self) -> bool {
        self.link.is_some()
    }

    fn payload(&self) -> Vec<u8> {
        [self.head.clone(), canary(self.name)].concat()
    }

    /// Whether it is among what was seen.
    pub fn is_in(&self, seen: &Seen) -> bool {
        match self.kind {
            Kind::Tcp => seen.has_leak(&format!("-> {}", self.to)),
            Kind::Udp | Kind::Frame => seen.holds(&canary(self.name)),
        }
    }

    /// Sends it. That the kernel refuses is no error here: the wire shows.
    ///
    /// # Errors
    /// If no socket could be had.
    pub fn fire(&self, host: &Host) -> Result<()> {
        if self.kind == Kind::Frame {
            return self.fire_frame(host);
        }
        let sockets = host.run(|| {
            let sent: io::Result<Vec<OwnedFd>> = (0..TIMES).map(|_| self.send()).collect();
            sent
        })?;
        sockets.during(self.name).map(drop)
    }

    /// Sends it once; its socket.
    ///
    /// # Errors
    /// If no socket could be had.
    pub fn hold_open(&self, host: &Host) -> Result<OwnedFd> {
        host.run(|| self.send())?.during(self.name)
    }

    fn send(&self) -> io::Result<OwnedFd> {
        let family = if self.to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let kind = if self.kind == Kind::Tcp { SockType::Stream } else { SockType::Datagram };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(family, kind, flags, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        setsockopt(&fd, sockopt::Broadcast, &true)?;
        if let Some(mark) = self.mark {
            setsockopt(&fd, sockopt::Mark, &mark)?;
        }
        if let Some(link) = self.link {
            setsockopt(&fd, sockopt::BindToDevice, &link.into())?;
        }
        if let Some(from) = self.from {
            bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
        }
        let to = SockaddrStorage::from(self.to);
        let _refused = match self.kind {
            Kind::Tcp => connect(fd.as_raw_fd(), &to),
            _ => sendto(fd.as_raw_fd(), &self.payload(), &to, MsgFlags::empty()).map(drop),
        };
        Ok(fd)
    }

    fn fire_frame(&self, host: &Host) -> Result<()> {
        let socket = PacketSocket::open(host, self.link.unwrap_or(CLIENT_LINK))?;
        let frame = self.as_frame(socket.address())?;
        for _ in 0..TIMES {
            let _refused = socket.send(&frame);
        }
        Ok(())
    }

    fn as_frame(&self, address: [u8; 6]) -> Result<Vec<u8>> {
        let ethernet = PacketBuilder::ethernet2(address, [0xff; 6]);
        let port = self.from.map_or(40000, |from| from.port());
        let internet = match self.to.ip() {
            IpAddr::V4(to) => {
                let from = match self.from.map(|from| from.ip()) {
                    Some(IpAddr::V4(from)) => from,
                    _ => CLIENT_V4,
                };
                ethernet.ipv4(from.octets(), to.octets(), 64)
            }
            IpAddr::V6(to) => ethernet.ipv6(CLIENT_V6.octets(), to.octets(), 64),
        };
        let mut frame = Vec::new();
        internet.udp(port, self.to.port()).write(&mut frame, &self.payload()).during("a frame")?;
        Ok(frame)
    }
}

/// Sends them all.
pub fn fire(lab: &Lab, shots: &[Shot]) -> Result<()> {
    shots.iter().try_for_each(|shot| shot.fire(&lab.client))
}

/// The positive control: every one of them is seen on the wire.
pub fn leak(it: &LockedLab, shots: &[Shot]) -> Result<()> {
    let seen = it.during(|lab| fire(lab, shots))?;
    for shot in shots {
        if !shot.is_in(&seen) {
            let summary = seen.report.summary(20);
            return Err(Error::new(format!("control: {} was not seen: {summary}", shot.name)));
        }
    }
    Ok(())
}

/// None of them is seen, nor anything else that may not leave.
pub fn hold(it: &LockedLab, shots: &[Shot]) -> Result<()> {
    it.during(|lab| fire(lab, shots))?.must_be_clean()
}

/// None of them is seen. For the routing guard alone, which leaves the kernel's own packets be.
pub fn hold_these(it: &LockedLab, shots: &[Shot]) -> Result<()> {
    let seen = it.during(|lab| fire(lab, shots))?;
    match shots.iter().find(|shot| shot.is_in(&seen)) {
        Some(shot) => Err(Error::new(format!("{}: {}", shot.name, seen.report.summary(20)))),
        None => Ok(()),
    }
}

/// Every one of them leaves, and may; nothing else leaves.
pub fn pass(it: &LockedLab, shots: &[Shot]) -> Result<()> {
    let seen = it.during(|lab| fire(lab, shots))?;
    if seen.report.leaked_total() > 0 {
        return Err(Error::new(format!("leaked: {}", seen.report.summary(20))));
    }
    match shots.iter().find(|shot| !shot.is_in(&seen)) {
        Some(shot) => Err(Error::new(format!("{} did not leave", shot.name))),
        None => Ok(()),
    }
}

/// Loads nftables text in the client. Not under the lock: nft 1.0.6 may hang on reading a
/// wildcard chain (threat 42).
pub fn nft(lab: &Lab, text: &str) -> Result<()> {
    lab.client.feed("timeout", &["20", "nft", "-f", "-"], text)
}

/// Loads a lock as it is often written: one output chain that accepts what `rule` says. The wire's
/// own probe may pass.
pub fn naive_lock(lab: &Lab, priority: i32, rule: &str) -> Result<()> {
    nft(
        lab,
        &format!(
            "table inet naive {{
                chain output {{
                    type filter hook output priority {priority}; policy drop;
                    meta mark {MARK} ip daddr {SERVER2_V4} accept
                    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
                    {rule}
                }}
            }}"
        ),
    )
}

/// Removes it.
pub fn no_naive_lock(lab: &Lab) -> Result<()> {
    nft(lab, "delete table inet naive")
}

/// Our rules have preferences from 27500 to 27599.
pub fn remove_routing_guard(lab: &Lab) -> Result<()> {
    for family in ["-4", "-6"] {
        let listed = lab.client.command("ip", &[family, "rule"])?;
        for line in listed.lines() {
            let preference = line.split(':').next().unwrap_or_default();
            if (27500..=27599).contains(&preference.parse().unwrap_or(0)) {
                lab.client.command("ip", &[family, "rule", "del", "pref", preference])?;
            }
        }
    }
    Ok(())
}

/// As [`hold`]: with all layers, then without the routing guard, then by the inet table alone. The
/// egress guard is back afterwards, the routing guard is not.
pub fn hold_layer_by_layer(it: &LockedLab, shots: &[Shot]) -> Result<()> {
    hold(it, shots)?;
    remove_routing_guard(&it.lab)?;
    hold(it, shots).map_err(|error| Error::new(format!("without routing guard: {error}")))?;
    it.configure("[lock]\negress_guard = false\n")?;
    it.lock()?;
    remove_routing_guard(&it.lab)?;
    hold(it, shots).map_err(|error| Error::new(format!("inet table alone: {error}")))?;
    it.configure("")?;
    it.lock()?;
    remove_routing_guard(&it.lab)
}
