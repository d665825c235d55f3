//! The daemon: one loop that waits for events, lets the engine decide, and has the effects performed.
//!
//! ```text
//! watch, calls, signals, timer ─▶ loop ─▶ engine ─▶ effects ─▶ lanes ─▶ done or failed ─▶ loop
//! ```
//!
//! Each lane performs its effects one after the other, apart from the loop: the lock's (`lanes`) is
//! never held up by a resolver that does not answer. The loop itself never blocks.

use std::io;
use std::path::Path;

use nix::time::{ClockId, clock_gettime};

use crate::config::{self, Config};
use crate::dbus;
use crate::engine::{self, Settings, Time};
use crate::policy::Policy;

pub mod calls;
mod journal;
mod lanes;
mod main_loop;
mod system;

/// Why the daemon cannot run at all. The lock stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is one already.
    #[error("another daemon runs on this machine: {}", dbus::SOCKET)]
    Running,
    /// The asynchronous runtime.
    #[error("the daemon cannot run: {0}")]
    Runtime(#[source] io::Error),
    /// The sockets on which the kernel tells what changes, or by which it is told.
    #[error("the daemon cannot watch the kernel: {0}")]
    Kernel(#[source] io::Error),
    /// The threads that do the work.
    #[error("the daemon cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// The engine's time, in which exceptions end, too. CLOCK_BOOTTIME always exists.
pub(crate) fn now() -> Time {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Time::from).unwrap_or_default()
}

/// Runs until it is told to end (SIGTERM, SIGINT). The lock outlives it.
///
/// # Errors
/// Only what keeps it from starting: later failures are told, and tried again.
pub fn run(path: &Path) -> Result<(), Error> {
    journal::open();
    // Two would take table, tunnel and control socket from each other.
    if dbus::client::runs() {
        return Err(Error::Running);
    }
    let plan = Plan::load(path);
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // For whoever asks over D-Bus: many callers shall not make many threads.
        .max_blocking_threads(2)
        .build()
        .map_err(Error::Runtime)?
        .block_on(main_loop::run(path, plan))
}

/// What the daemon is to do, from one reading of the configuration.
struct Plan {
    /// `None`: it cannot be used.
    config: Option<Config>,
    policy: Policy,
    settings: Settings,
    /// Why the policy is the strictest.
    complaint: Option<String>,
}

impl Plan {
    /// What cannot be read leads to the strictest lock: failing means closed.
    fn load(path: &Path) -> Self {
        match config::load(path) {
            Ok(config) => Plan::of(config),
            Err(error) => {
                tracing::error!("{error}");
                Plan {
                    config: None,
                    policy: Policy::strictest(),
                    settings: Settings {
                        managed: false,
                        servers: Vec::new(),
                        connect_at_start: false,
                    },
                    // Anybody may read it on the bus: nothing of what stands in the file.
                    complaint: Some(format!(
                        "the configuration cannot be used, so nothing leaves: {}: \
                         `killswitch check` says why",
                        error.place()
                    )),
                }
            }
        }
    }

    fn of(config: Config) -> Self {
        Plan {
            policy: Policy::from_config(&config),
            settings: settings(&config),
            config: Some(config),
            complaint: None,
        }
    }
}

fn settings(config: &Config) -> Settings {
    let servers = config.servers.iter().map(|server| engine::Server {
        name: server.name.clone(),
        endpoints: server.endpoints.clone(),
    });
    Settings {
        managed: config.tunnel.is_managed(),
        servers: servers.collect(),
        connect_at_start: config.tunnel.connect_at_start,
    }
}
