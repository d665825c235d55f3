//! When somebody changes `/etc/resolv.conf`, e.g. a DHCP client that renews its lease.

use std::io;
use std::time::Duration;

use nix::sys::inotify::AddWatchFlags;
use tokio::time::{Instant, sleep_until};

use super::ETC;
use crate::watch::Names;

/// From a change until it is looked at: some remove the file before they write it, and two programs
/// that both insist on theirs shall not do so in a busy loop.
const SETTLES: Duration = Duration::from_secs(1);

/// Tells that the file was replaced, written or removed, by whomever: also by us.
#[derive(Debug)]
pub struct Changes {
    names: Names,
    /// Changed: to be told then.
    settled: Option<Instant>,
}

impl Changes {
    /// What changes from now on will be told.
    ///
    /// # Errors
    /// If this user has too many inotify watches.
    pub fn listen() -> io::Result<Self> {
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE;
        let names = Names::watch([ETC], &["resolv.conf"], changes)?;
        Ok(Changes { names, settled: None })
    }

    /// Waits until the file was changed and that has settled. May be dropped and called again:
    /// nothing is lost.
    pub async fn next(&mut self) {
        let at = match self.settled {
            Some(at) => at,
            None => match self.names.changed().await {
                Ok(()) => *self.settled.insert(Instant::now() + SETTLES),
                Err(_) => return std::future::pending().await,
            },
        };
        sleep_until(at).await;
        self.settled = None;
    }
}
