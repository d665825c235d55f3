//! When the system bus appears.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::listener::register;

/// Of the bus's socket, `/run/dbus/system_bus_socket`, and above it: the directory comes first.
const DIRECTORIES: [&str; 2] = ["/run/dbus", "/run"];
const NAMES: [&str; 2] = ["system_bus_socket", "dbus"];

/// Waits for a bus that is not there, or has gone; nothing runs meanwhile but a rare timer.
///
/// Whoever waits tries to connect before each wait.
#[derive(Debug)]
pub struct BusAppears {
    pause: Duration,
}

/// The first pause: a bus that went may be back at once.
const FIRST: Duration = Duration::from_secs(1);
/// The longest: for a bus elsewhere than where we look.
const LONGEST: Duration = Duration::from_secs(3600);

impl Default for BusAppears {
    fn default() -> Self {
        Self::new()
    }
}

impl BusAppears {
    /// Waits for the first pause at first.
    pub fn new() -> Self {
        BusAppears { pause: FIRST }
    }

    /// There was a bus just now.
    pub fn reset(&mut self) {
        self.pause = FIRST;
    }

    /// Returns when it is worth trying again: its socket appeared, or a pause is over, longer from
    /// time to time (1 s to 1 h).
    pub async fn wait(&mut self) {
        let pause = self.pause;
        self.pause = LONGEST.min(pause * 4);
        tokio::select! {
            () = sleep(pause) => {}
            () = appears() => self.reset(),
        }
    }
}

/// Without inotify (too many watches) there remains the timer.
async fn appears() {
    /// Its socket is there before it listens.
    const START: Duration = Duration::from_millis(200);
    let Ok(watch) = watch() else { return std::future::pending().await };
    loop {
        let Ok(mut ready) = watch.readable().await else { return std::future::pending().await };
        let events = ready.get_inner().0.read_events().unwrap_or_default();
        ready.clear_ready();
        let mut names = events.iter().filter_map(|event| event.name.as_ref());
        if names.any(|name| NAMES.iter().any(|known| name == known)) {
            return sleep(START).await;
        }
    }
}

/// Where none of the directories exists, nothing is to be seen.
fn watch() -> std::io::Result<AsyncFd<Directories>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let appearing = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    for directory in DIRECTORIES.iter().filter(|it| Path::new(it).is_dir()) {
        inotify.add_watch(*directory, appearing)?;
    }
    register(Directories(inotify), Interest::READABLE)
}

#[derive(Debug)]
struct Directories(Inotify);

impl AsRawFd for Directories {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
