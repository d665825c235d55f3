//! What happens to names in directories: inotify(7).

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::listener::register;

/// Waits for changes of some names; costs nothing while nothing happens in their directories.
#[derive(Debug)]
pub(crate) struct Names {
    directories: AsyncFd<Directories>,
    names: &'static [&'static str],
}

impl Names {
    /// From now on these changes of these names in these directories count.
    ///
    /// # Errors
    /// If there are too many watches, or no such directory.
    pub(crate) fn watch(
        directories: impl IntoIterator<Item = &'static str>,
        names: &'static [&'static str],
        changes: AddWatchFlags,
    ) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        for directory in directories {
            inotify.add_watch(directory, changes)?;
        }
        let directories = register(Directories(inotify), Interest::READABLE)?;
        Ok(Names { directories, names })
    }

    /// Waits for the next change. May be dropped and called again: nothing is lost.
    ///
    /// # Errors
    /// Those of the event loop.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.directories.readable().await?;
            let mut changed = false;
            // To the end: only then the kernel tells of more.
            while let Ok(events) = ready.get_inner().0.read_events() {
                let mut names = events.iter().filter_map(|event| event.name.as_ref());
                changed |= names.any(|name| self.names.iter().any(|known| name == known));
            }
            ready.clear_ready();
            if changed {
                return Ok(());
            }
        }
    }
}

#[derive(Debug)]
struct Directories(Inotify);

impl AsRawFd for Directories {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
