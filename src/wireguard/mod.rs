//! The tunnel: a WireGuard link and its one peer.
//!
//! Synchronous, for a blocking thread; only [`TrafficAlarm`] is for the daemon's loop. The link is
//! made once and adopted by whoever comes after: kernel WireGuard has no process, and a userspace
//! one is a program of its own that outlives us, so that a killed daemon's tunnel goes on.
//!
//! defguard_wireguard_rs speaks to the kernel, and encodes and decodes what a userspace WireGuard is
//! told; its socket does not know a time-out that ends (`uapi`). Links and addresses are ours
//! (`link`): it flushes them, and hides why something failed.

use std::io;
use std::path::PathBuf;

use defguard_wireguard_rs::error::WireguardInterfaceError;
use nix::errno::Errno;

use crate::netlink::Failure;

mod alarm;
mod clock;
mod device;
mod link;
mod probe;
mod program;
mod uapi;

pub use alarm::TrafficAlarm;
pub use device::{Device, Link};

/// What went wrong with the tunnel. Never holds a key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The netlink socket itself, or an answer that cannot be read.
    #[error("netlink: {0}")]
    Netlink(#[source] io::Error),
    /// The kernel refused a request.
    #[error("{what}: {failure}")]
    Refused {
        /// What was asked, in the words of `ip`.
        what: String,
        /// The kernel's answer.
        failure: Failure,
    },
    /// `backend = "kernel"` on a kernel without WireGuard.
    #[error(
        "this kernel has no WireGuard: load the module wireguard, or set tunnel.backend to \
         \"userspace\" and install wireguard-go"
    )]
    NotInKernel,
    /// No userspace WireGuard is installed.
    #[error("no userspace WireGuard is installed: install wireguard-go (looked for {searched})")]
    NoProgram {
        /// Where it was looked for.
        searched: String,
    },
    /// The userspace WireGuard did not come up.
    #[error("{} did not start: {reason}", program.display())]
    NotStarted {
        /// The program.
        program: PathBuf,
        /// What it said, or how it ended.
        reason: String,
    },
    /// The userspace WireGuard did not take or give its configuration.
    #[error("the userspace WireGuard of {interface}: {error}")]
    Userspace {
        /// Its link.
        interface: String,
        /// What failed.
        #[source]
        error: io::Error,
    },
    /// Kernel WireGuard did not take or give its configuration.
    #[error("kernel WireGuard: {0}")]
    Kernel(#[from] WireguardInterfaceError),
    /// The tunnel's link is not there, or is not ours.
    #[error("there is no link {0:?} of ours")]
    NoLink(String),
    /// The configuration has no key, or no such server.
    #[error("the configuration has no {0}")]
    NotConfigured(&'static str),
    /// The probe could not be sent.
    #[error("cannot send into the tunnel: {0}")]
    Probe(#[source] io::Error),
}

impl Error {
    fn errno(&self) -> Option<Errno> {
        match self {
            Error::Refused { failure, .. } => Some(Errno::from_raw(failure.errno)),
            _ => None,
        }
    }

    /// `disable_ipv6` is EACCES (net/ipv6/addrconf.c); a kernel without IPv6 does not know the
    /// family.
    fn is_ipv6_disabled(&self) -> bool {
        let known = [Errno::EACCES, Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT];
        self.errno().is_some_and(|errno| known.contains(&errno))
    }
}
