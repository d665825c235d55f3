//! The system's resolvers while the tunnel is up, and their return afterwards.
//!
//! Who keeps `/etc/resolv.conf` decides how ([`Manager::of`]): systemd-resolved and NetworkManager
//! over D-Bus, resolvconf by its command, and the file itself where nobody keeps it or its keeper
//! does not answer. Nothing here is what keeps DNS from leaking: the lock does.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod changes;
pub mod file;
mod manager;
mod network_manager;
mod resolvconf;
mod resolved;

pub use changes::Changes;
pub use manager::Manager;
pub use resolved::Restarts;

use file::{Kept, ResolvConf};

/// How long a keeper of resolvers may take to answer; then the next way is tried.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the file is, and by which the machine's way is told.
const ETC: &str = "/etc";

/// The tunnel's resolvers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolvers {
    /// The tunnel's link.
    pub interface: String,
    /// Whom to ask; if there is none, nothing is ever done.
    pub servers: Vec<IpAddr>,
    /// Domains that are tried behind short names.
    pub search: Vec<String>,
    /// Where the note is kept that NetworkManager's resolvers are ours. It must outlive a restart
    /// of the machine, as NetworkManager's own record does: `/var/lib/killswitch`.
    pub state_dir: PathBuf,
}

/// The way that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Used {
    /// There are no resolvers to set.
    Nothing,
    /// systemd-resolved: gone with the link. It remembers across its own restarts by files in /run
    /// only: set again after one (see [`Restarts`]).
    Resolved,
    /// NetworkManager's global configuration.
    NetworkManager,
    /// resolvconf.
    Resolvconf,
    /// `/etc/resolv.conf`, replaced.
    File,
}

/// What [`Resolvers::restore`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// Everything is as it was before.
    AsBefore,
    /// Somebody else changed `/etc/resolv.conf` meanwhile: that stays.
    KeptForeign,
}

/// Why resolvers could not be set or given back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// The verb.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The original is not where it was put.
    #[error("{} is gone, so /etc/resolv.conf stays with the tunnel's resolvers: write it anew", .0.display())]
    OriginalLost(PathBuf),
    /// D-Bus, or who answers there.
    #[error("D-Bus: {0}")]
    Bus(#[from] zbus::Error),
    /// No answer in time.
    #[error("{0} did not answer in time")]
    TimedOut(&'static str),
    /// The command failed, and its words.
    #[error("resolvconf: {0}")]
    Resolvconf(String),
    /// A foreign global configuration of NetworkManager's is not replaced.
    #[error("NetworkManager has global resolvers already")]
    NotOurs,
}

impl Resolvers {
    /// Makes the tunnel's resolvers the system's. May be repeated, to set what was lost.
    ///
    /// # Errors
    /// If no way works. Then everything is as before; `/etc/resolv.conf` is never half a file.
    pub async fn set(&self, link_index: u32) -> Result<Used, Error> {
        if self.servers.is_empty() {
            return Ok(Used::Nothing);
        }
        let by_manager = match manager().await? {
            Manager::Resolved => resolved::set(link_index, self).await.map(|()| Used::Resolved),
            Manager::NetworkManager => {
                network_manager::set(self).await.map(|()| Used::NetworkManager)
            }
            Manager::Resolvconf => resolvconf::set(self).await.map(|()| Used::Resolvconf),
            Manager::Nobody => return self.write_file().await,
        };
        match by_manager {
            Ok(used) => Ok(used),
            Err(error) => {
                tracing::warn!(%error, "the resolvers' keeper failed; writing /etc/resolv.conf");
                self.write_file().await
            }
        }
    }

    /// Whether the system's resolvers are the tunnel's. False also if that cannot be told.
    pub async fn is_set(&self) -> bool {
        if self.servers.is_empty() {
            return true;
        }
        match manager().await {
            Ok(Manager::Resolved) => match index(&self.interface) {
                Some(link) => resolved::is_set(link, self).await.unwrap_or(false),
                None => false,
            },
            Ok(Manager::NetworkManager) => network_manager::is_set(self).await.unwrap_or(false),
            Ok(Manager::Resolvconf) => resolvconf::is_set(self),
            Ok(Manager::Nobody) => {
                let text = self.text();
                on_file(move |file| Ok(file.holds(&text))).await.unwrap_or(false)
            }
            Err(_) => false,
        }
    }

    /// Gives the resolvers back as they were. May be repeated, and works in a new process.
    ///
    /// # Errors
    /// The first of what failed; the rest was done nevertheless.
    pub async fn restore(&self) -> Result<Restored, Error> {
        let file = on_file(ResolvConf::restore).await;
        // Only now is it told by its keeper's contents again.
        let by_manager = match manager().await {
            Ok(Manager::Resolved) => match index(&self.interface) {
                Some(link) => resolved::revert(link).await,
                None => Ok(()),
            },
            Ok(Manager::Resolvconf) => resolvconf::restore(&self.interface).await,
            Ok(Manager::NetworkManager | Manager::Nobody) => Ok(()),
            Err(error) => Err(error),
        };
        let by_note = network_manager::restore(&self.state_dir).await;
        let kept = file?;
        // While the file was ours, its keeper was not asked, and may not even be there.
        if kept == Kept::Nothing {
            by_manager?;
        }
        by_note?;
        Ok(kept.into())
    }

    async fn write_file(&self) -> Result<Used, Error> {
        let text = self.text();
        on_file(move |file| file.replace(&text)).await.map(|()| Used::File)
    }

    /// resolv.conf(5). glibc takes the first three servers.
    fn text(&self) -> String {
        let mut text: String =
            self.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        if !self.search.is_empty() {
            text.push_str(&format!("search {}\n", self.search.join(" ")));
        }
        text
    }
}

/// As [`Resolvers::restore`], as far as that can be without knowing the tunnel's link: the file, and
/// what NetworkManager was given.
///
/// # Errors
/// The first of what failed; the rest was done nevertheless.
pub async fn restore_without_link(state_dir: &Path) -> Result<Restored, Error> {
    let kept = on_file(ResolvConf::restore).await;
    let by_note = network_manager::restore(state_dir).await;
    let restored = kept?.into();
    by_note.map(|()| restored)
}

impl From<Kept> for Restored {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::Foreign => Restored::KeptForeign,
            Kept::Nothing | Kept::Original => Restored::AsBefore,
        }
    }
}

impl fmt::Display for Used {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Used::Nothing => "none",
            Used::Resolved => "systemd-resolved",
            Used::NetworkManager => "NetworkManager",
            Used::Resolvconf => "resolvconf",
            Used::File => "/etc/resolv.conf",
        })
    }
}

async fn manager() -> Result<Manager, Error> {
    on_file(|file| file.manager()).await
}

/// Off the daemon's one thread: a disk may take long to sync.
async fn on_file<T: Send + 'static>(
    work: impl FnOnce(&ResolvConf) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(move || work(&ResolvConf::within(Path::new(ETC)))).await.map_err(
        |error| Error::File {
            doing: "work on",
            path: Path::new(ETC).join("resolv.conf"),
            source: io::Error::other(error),
        },
    )?
}

fn index(link: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(link).ok()
}

/// Gives up on somebody who does not answer.
async fn in_time<T>(
    whom: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or(Err(Error::TimedOut(whom)))
}
