//! What the kernel holds of the lock, read layer by layer.

use std::io;

use super::Error;
use crate::netfilter::{self, LiveTable, live};
use crate::netlink::{self, Family as NetlinkFamily, Link, Socket};
use crate::routing;
use crate::ruleset::Family;

/// What the kernel holds of the lock at one moment.
#[derive(Debug, Default)]
pub struct Live {
    /// The table that must hold.
    pub inet: Option<LiveTable>,
    /// The egress guard.
    pub egress: Option<LiveTable>,
    /// The routing guard.
    pub routing: routing::Live,
    /// Every link.
    pub links: Vec<Link>,
}

impl Live {
    /// Whether our table is there and awake, whatever it holds.
    pub fn locked(&self) -> bool {
        self.inet.as_ref().is_some_and(|table| table.flags & live::DORMANT == 0)
    }
}

/// Reads it.
///
/// # Errors
/// [`Error`]; nobody without CAP_NET_ADMIN may read the tables.
pub fn read() -> Result<Live, Error> {
    let (inet, egress) = read_tables()?;
    let route = Socket::open(NetlinkFamily::Route).map_err(netfilter::Error::from)?;
    let links = netlink::links(&route).map_err(netfilter::Error::from)?;
    Ok(Live { inet, egress, routing: routing::read()?, links })
}

type Tables = (Option<LiveTable>, Option<LiveTable>);

fn read_tables() -> Result<Tables, netfilter::Error> {
    match Socket::open(NetlinkFamily::Netfilter).map_err(Into::into) {
        Ok(socket) => read_with(&socket),
        Err(netfilter::Error::Missing(_)) => Ok((None, None)),
        Err(error) => Err(error),
    }
}

fn read_with(netfilter: &Socket) -> Result<Tables, netfilter::Error> {
    /// Another program's change interrupts a reading; endless change is that program's fault.
    const TRIES: u32 = 50;
    for _ in 0..TRIES {
        let read = |family| live::read(netfilter, family);
        match read(Family::Inet).and_then(|inet| Ok((inet, read(Family::Netdev)?))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return Ok(other?),
        }
    }
    Err(netfilter::Error::Busy(TRIES))
}
