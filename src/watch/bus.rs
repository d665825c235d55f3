//! When the system bus appears.

use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::AddWatchFlags;
use tokio::time::sleep;

use super::Names;

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
    let appearing = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    // Where none of the directories exists, nothing is to be seen.
    let directories = DIRECTORIES.into_iter().filter(|it| Path::new(it).is_dir());
    match Names::watch(directories, &NAMES, appearing) {
        Ok(names) if names.changed().await.is_ok() => sleep(START).await,
        _ => std::future::pending().await,
    }
}
