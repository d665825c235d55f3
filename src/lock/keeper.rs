//! The lock in the daemon's hands: the same layers, by sockets that stay open, so that the tables
//! have an owner and nobody else can change or flush them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg as receive_message,
};
use sd_notify::NotifyState;

use super::{Error, Outcome, lock_tables, remove_tables, wait_for_turn, with_routing};
use crate::netfilter::{self, Applied, Ownership};
use crate::netlink::{Family as NetlinkFamily, Socket};
use crate::policy::Policy;
use crate::routing;
use crate::ruleset::{Family, Table};

/// What systemd's store of descriptors calls the socket that owns the tables.
const STORED: &str = "killswitch-tables";
/// A command that changes the lock takes milliseconds; the daemon does not wait for one that hangs.
const PATIENCE: Duration = Duration::from_millis(500);

/// Holds the lock. As long as it, or a copy of its socket in systemd's store, is there, the tables
/// that it owns are nobody else's.
pub struct Keeper {
    /// `None`: the kernel has no nf_tables, or not yet.
    netfilter: Option<Socket>,
    route: Socket,
    /// The kernel lets a table outlive its owner, as far as is known.
    ownable: bool,
}

impl Keeper {
    /// With new sockets in the caller's network namespace.
    ///
    /// # Errors
    /// Those of sockets; a kernel without nf_tables is none.
    pub fn open() -> io::Result<Self> {
        let route = Socket::open(NetlinkFamily::Route)?;
        Ok(Keeper { netfilter: None, route, ownable: true })
    }

    /// With the socket of a daemon that is gone, of which [`parked`] knows: its ownership goes on
    /// without a gap. Of several the one that owns a table; what is no such socket is closed.
    ///
    /// # Errors
    /// As [`Keeper::open`].
    pub fn adopt(parked: Vec<OwnedFd>) -> io::Result<Self> {
        let mut keeper = Keeper::open()?;
        for fd in parked {
            let Ok(socket) = Socket::from_fd(NetlinkFamily::Netfilter, fd) else { continue };
            // Answers that its last holder did not wait for.
            socket.discard_pending();
            if keeper.netfilter.is_none() || owns_any(&socket) {
                keeper.netfilter = Some(socket);
            }
        }
        Ok(keeper)
    }

    /// Makes every layer what the policy asks for, and owns the tables. Where all is so already it
    /// only reads.
    ///
    /// # Errors
    /// As [`super::lock`], but the routing guard is applied whatever becomes of the tables.
    pub fn hold(&mut self, policy: &Policy) -> Result<Outcome, Error> {
        let _turn = wait_for_turn(PATIENCE);
        self.route.discard_pending();
        let tables = self.hold_tables(policy);
        with_routing(tables, policy, |guard| routing::apply_with(&self.route, guard))
    }

    /// As [`Keeper::hold`], with another policy than before: if the tables cannot be had, the routing
    /// guard stays as it is, too.
    ///
    /// # Errors
    /// As [`super::lock`].
    pub fn replace(&mut self, policy: &Policy) -> Result<Outcome, Error> {
        let _turn = wait_for_turn(PATIENCE);
        self.route.discard_pending();
        match self.hold_tables(policy) {
            Err(error) if !matches!(error, netfilter::Error::Missing(_)) => Err(error.into()),
            tables => with_routing(tables, policy, |guard| routing::apply_with(&self.route, guard)),
        }
    }

    /// Opens everything: both tables and the routing guard go. Whether there was anything.
    ///
    /// # Errors
    /// As [`super::unlock`].
    pub fn unlock(&mut self) -> Result<bool, Error> {
        let _turn = wait_for_turn(PATIENCE);
        self.route.discard_pending();
        let any = match self.netfilter() {
            Ok(netfilter) => remove_tables(netfilter)?,
            Err(netfilter::Error::Missing(_)) => false,
            Err(error) => return Err(error.into()),
        };
        Ok(routing::remove_with(&self.route)? > 0 || any)
    }

    /// Ports of our sockets: what they do is our own doing ([`crate::watch::Watch::disregard`]).
    ///
    /// # Errors
    /// Those of sockets; without nf_tables there is only the other one.
    pub fn ports(&mut self) -> Result<Vec<(NetlinkFamily, u32)>, netfilter::Error> {
        let mut ports = vec![(NetlinkFamily::Route, self.route.port())];
        match self.netfilter() {
            Ok(netfilter) => ports.push((NetlinkFamily::Netfilter, netfilter.port())),
            Err(netfilter::Error::Missing(_)) => {}
            Err(error) => return Err(error),
        }
        Ok(ports)
    }

    /// The socket for rules and routes.
    pub fn route(&self) -> &Socket {
        &self.route
    }

    /// Gives systemd a copy of the owner's socket, for the next daemon to [`Keeper::adopt`]: between
    /// the two the tables keep their owner. Nothing happens where systemd did not start us.
    ///
    /// # Errors
    /// Those of the notification socket; of sockets.
    pub fn park(&mut self) -> Result<(), netfilter::Error> {
        let netfilter = match self.netfilter() {
            Err(netfilter::Error::Missing(_)) => return Ok(()),
            other => other?,
        };
        let words = [
            NotifyState::FdStore,
            NotifyState::FdName(STORED),
            // systemd would drop a socket that has an error pending.
            NotifyState::Custom("FDPOLL=0"),
        ];
        Ok(sd_notify::notify_with_fds(&words, &[netfilter.as_fd()])?)
    }

    /// Where the kernel had no nf_tables, a module may have been loaded meanwhile.
    fn netfilter(&mut self) -> Result<&Socket, netfilter::Error> {
        let socket = match self.netfilter.take() {
            Some(socket) => socket,
            None => Socket::open(NetlinkFamily::Netfilter)?,
        };
        Ok(self.netfilter.insert(socket))
    }

    fn hold_tables(&mut self, policy: &Policy) -> Result<Outcome, netfilter::Error> {
        self.netfilter()?.discard_pending();
        let Some(netfilter) = &self.netfilter else { return Ok(Outcome::default()) };
        let ownable = &mut self.ownable;
        let mut unowned = Vec::new();
        let mut put = |table: &Table| {
            let applied = netfilter::apply(netfilter, table)?;
            if !*ownable {
                return Ok(applied);
            }
            match netfilter::own(netfilter, table) {
                Ok(Ownership::Held) => Ok(applied),
                Ok(Ownership::Taken) => {
                    netfilter::apply(netfilter, table)?;
                    Ok(Applied::Changed)
                }
                Ok(Ownership::Unsupported) => {
                    *ownable = false;
                    Ok(applied)
                }
                // It holds, which is what counts.
                Err(error) => {
                    unowned.push(error.to_string());
                    Ok(applied)
                }
            }
        };
        let mut outcome = lock_tables(netfilter, Ok(&self.route), policy, &mut put)?;
        unowned.dedup();
        outcome.degraded.extend(unowned);
        if !self.ownable {
            outcome.degraded.push(
                "the tables have no owner: this kernel cannot let them outlive one (before 6.9)"
                    .into(),
            );
        }
        let families = [Family::Inet, Family::Netdev];
        let wanted = if policy.egress_guard { &families[..] } else { &families[..1] };
        outcome.owned = wanted.iter().all(|&family| owns(netfilter, family));
        Ok(outcome)
    }
}

fn owns_any(socket: &Socket) -> bool {
    [Family::Inet, Family::Netdev].into_iter().any(|family| owns(socket, family))
}

fn owns(socket: &Socket, family: Family) -> bool {
    netfilter::owner(socket, family).is_ok_and(|owner| owner == Some(socket.port()))
}

/// The descriptors that systemd kept for us: for [`Keeper::adopt`]. Once only.
///
/// # Errors
/// What systemd passed makes no sense.
pub fn parked() -> io::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for (fd, name) in sd_notify::listen_fds_with_names()? {
        if name == STORED {
            found.push(take(fd)?);
        }
    }
    Ok(found)
}

/// Makes a number that systemd told us an owned descriptor, without unsafe code: it is sent to
/// ourselves and comes back as one.
fn take(number: RawFd) -> io::Result<OwnedFd> {
    let (near, far) = UnixDatagram::pair()?;
    let rights = [number];
    let control = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(near.as_raw_fd(), &[IoSlice::new(&[0])], &control, MsgFlags::empty(), None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    receive_message(&far, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    nix::unistd::close(number)?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::other("a descriptor was lost"))
}
