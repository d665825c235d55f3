//! The D-Bus interface: [`INTERFACE`] of the object [`PATH`].
//!
//! There are two ways to it, and one object behind both:
//!
//! - the **control socket** [`SOCKET`], peer to peer, root's alone: it needs no bus (`private`);
//! - the **system bus** under [`NAME`], for everybody, as far as polkit allows (`bus`, `authority`).
//!
//! The daemon's loop knows of D-Bus only what refusals are called: what is asked of it comes over a
//! channel, what it tells goes to a board ([`crate::daemon::calls`]).

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::daemon::calls::{Board, Call};

mod authority;
mod bus;
pub mod client;
mod document;
mod error;
mod gate;
mod kernel;
mod manager;
mod packet;
mod private;

pub use error::Error;

/// The name on the system bus; root's alone.
pub const NAME: &str = "org.killswitch1";
/// The object.
pub const PATH: &str = "/org/killswitch1";
/// Its interface.
pub const INTERFACE: &str = "org.killswitch1.Manager";
/// The control socket: D-Bus from peer to peer, without a bus. Its directory is root's alone.
pub const SOCKET: &str = "/run/killswitch/control";

/// What the served object needs of the daemon.
#[derive(Debug, Clone)]
pub(crate) struct Daemon {
    /// What the loop tells.
    pub board: Arc<Board>,
    /// What the loop is asked.
    pub calls: mpsc::Sender<Call>,
}

/// Serves the object on both ways; the daemon lives without either.
///
/// # Errors
/// If the control socket cannot be made, e.g. where /run is read-only. The bus is served anyway, as
/// soon as there is one.
pub(crate) fn serve(daemon: &Daemon) -> std::io::Result<()> {
    if let Err(error) = serve_bus(daemon.clone()) {
        tracing::error!(%error, "not on the system bus: only root can ask, at the control socket");
    }
    private::serve(daemon.clone())
}

/// On a thread of its own: whatever anybody on the bus calls, however often, the daemon's loop and
/// root at the control socket do not wait for it.
fn serve_bus(daemon: Daemon) -> std::io::Result<()> {
    /// What is done there for callers takes milliseconds; more of it at the same time would only
    /// take memory.
    const BLOCKING_THREADS: usize = 4;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    let thread = std::thread::Builder::new().name("bus".into());
    thread.spawn(move || runtime.block_on(bus::serve(daemon))).map(drop)
}
