//! What changes in the kernel: links, addresses, routes, rules and the nftables tables.
//!
//! [`Watch`] says *what kind* of thing changed; how it is now is read anew by whoever asks
//! ([`Observer`], [`crate::lock`]). So a lost event costs a reading, never the truth, and what is
//! kept here does not grow with the number of events: it is one [`Change`].
//!
//! Events are read by hand, not by rtnetlink's connection: that one drops an event that it cannot
//! decode (a link whose name is not UTF-8: threat 44), and it queues without bound in this process
//! what its reader has not yet taken. Here the kernel's own buffer is the queue, and its overrun is
//! told.

mod blocked;
mod bus;
mod events;
mod listener;
mod names;
mod network;
mod sleep;

use std::collections::BTreeSet;
use std::fmt;
use std::io;

use crate::netlink::Family;
pub use blocked::{Blocked, BlockedWatch, Error as BlockedError};
pub use bus::BusAppears;
use events::Transaction;
use listener::Listener;
pub(crate) use names::Names;
pub use network::{Observed, Observer};
pub use sleep::Sleep;

/// Room for events of each kind, in bytes; the kernel takes twice that of its own memory at most.
const BUFFER: usize = 8 << 20;
/// RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE
/// (include/uapi/linux/rtnetlink.h).
const ROUTE_GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
/// NFNLGRP_NFTABLES (include/uapi/linux/netfilter/nfnetlink.h).
pub(crate) const TABLE_GROUPS: [u32; 1] = [7];

/// What kind of thing changed since the last time; one of them at least.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Links, addresses or default routes: [`Observer::observe`].
    pub network: bool,
    /// Policy rules, or routes in our table, by somebody else: hold the routing guard.
    pub rules: bool,
    /// One of our tables, by this one: hold the tables. The first of several.
    pub tables: Option<Culprit>,
    /// Events were lost: everything may have changed, and is said to have.
    pub lost: bool,
}

/// Who changed a table of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Culprit {
    /// A process, as the kernel names it (NFTA_GEN_PROC_PID, NFTA_GEN_PROC_NAME).
    Process {
        /// Its id in the initial process namespace.
        pid: u32,
        /// Its thread's name; any bytes but NUL, made text.
        name: String,
    },
    /// The event was lost.
    Unknown,
}

impl fmt::Display for Culprit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Culprit::Process { pid, name } => {
                write!(out, "{} (process {pid})", name.escape_debug())
            }
            Culprit::Unknown => out.write_str("an unknown process"),
        }
    }
}

impl Change {
    fn is_empty(&self) -> bool {
        *self == Change::default()
    }
}

/// Waits for changes of this network namespace. Within a tokio runtime with I/O enabled.
pub struct Watch {
    route: Listener,
    tables: Option<Listener>,
    transaction: Transaction,
    own_route: BTreeSet<u32>,
    own_netfilter: BTreeSet<u32>,
}

impl Watch {
    /// Begins to listen: what changes from now on is told.
    ///
    /// # Errors
    /// Those of sockets. A kernel without nf_tables is none: there is nothing to watch there.
    pub fn open() -> io::Result<Self> {
        Self::with_buffer(BUFFER)
    }

    /// As [`Watch::open`], with room for this many bytes of events of each kind.
    ///
    /// # Errors
    /// As [`Watch::open`].
    pub fn with_buffer(bytes: usize) -> io::Result<Self> {
        let route = Listener::open(Family::Route, &ROUTE_GROUPS, bytes)?;
        let tables = match Listener::open(Family::Netfilter, &TABLE_GROUPS, bytes) {
            Ok(listener) => Some(listener),
            Err(error) if is_missing(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(Watch {
            route,
            tables,
            transaction: Transaction::default(),
            own_route: BTreeSet::new(),
            own_netfilter: BTreeSet::new(),
        })
    }

    /// Does not tell what the socket of this port does to tables, rules and routes of ours; links,
    /// addresses and default routes are told whoever changes them.
    pub fn disregard(&mut self, family: Family, port: u32) {
        match family {
            Family::Route => self.own_route.insert(port),
            Family::Netfilter => self.own_netfilter.insert(port),
            Family::SockDiag => true,
        };
    }

    /// The next change. Whoever drops the future before its end loses nothing.
    ///
    /// # Errors
    /// A socket failed: open anew.
    pub async fn next(&mut self) -> io::Result<Change> {
        loop {
            // In a storm something always waits: the runtime's other tasks shall run, too.
            tokio::task::coop::consume_budget().await;
            let change = self.drain()?;
            if !change.is_empty() {
                return Ok(change);
            }
            match &self.tables {
                None => self.route.wait().await?,
                Some(tables) => tokio::select! {
                    ready = self.route.wait() => ready?,
                    ready = tables.wait() => ready?,
                },
            }
        }
    }

    fn drain(&mut self) -> io::Result<Change> {
        let mut change = Change::default();
        let own = &self.own_route;
        let lost = self.route.drain(|message| events::route(&mut change, message, own))?;
        if lost {
            (change.network, change.rules, change.lost) = (true, true, true);
        }
        let Some(tables) = &mut self.tables else { return Ok(change) };
        let (own, transaction) = (&self.own_netfilter, &mut self.transaction);
        let lost = tables.drain(|message| {
            if let Some(culprit) = transaction.event(message, own) {
                change.tables.get_or_insert(culprit);
            }
        })?;
        if lost {
            self.transaction = Transaction::default();
            change.tables.get_or_insert(Culprit::Unknown);
            change.lost = true;
        }
        Ok(change)
    }
}

/// The kernel has no nfnetlink.
fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::errno::Errno::EPROTONOSUPPORT as i32)
}
