//! The system bus: it may come minutes after us, restart under us, or never. The lock does not care.

use std::sync::Arc;
use std::time::Duration;

use zbus::Address;
use zbus::address::Transport;
use zbus::address::transport::UnixSocket;
use zbus::connection::Builder;

use super::authority::{Authority, Callers};
use super::gate;
use super::manager::{Manager, tell};
use super::{Daemon, NAME, PATH};
use crate::watch::BusAppears;

/// Serves the object there for ever, whenever there is a bus.
pub(super) async fn serve(daemon: Daemon) {
    let authority = Authority::Polkit(Callers::default());
    let manager = Manager::new(daemon.clone(), authority);
    let mut appears = BusAppears::new();
    loop {
        match serve_once(&daemon, manager.clone()).await {
            Ok(()) => appears.reset(),
            Err(zbus::Error::NameTaken) => {
                tracing::error!("{NAME} is taken on the system bus: nobody can ask for us there");
            }
            // Where there is no bus, there is nothing to tell.
            Err(error) => tracing::debug!(%error, "not on the system bus"),
        }
        appears.wait().await;
    }
}

/// Until the bus goes.
async fn serve_once(daemon: &Daemon, manager: Manager) -> zbus::Result<()> {
    /// For a bus that starts, or hangs.
    const PATIENCE: Duration = Duration::from_secs(30);
    let connection = builder()?.serve_at(PATH, manager).name(NAME).build();
    let connection = tokio::time::timeout(PATIENCE, connection)
        .await
        .map_err(|_| zbus::Error::Failure("the bus does not answer".into()))??;
    tracing::info!("on the system bus as {NAME}");
    // How it ended does not matter: it is to be had again.
    let _ = tell(&connection, daemon).await;
    Ok(())
}

/// At its socket by our own way, where the bus has a path, as everywhere.
fn builder() -> zbus::Result<Builder<'static>> {
    let address = Address::system()?;
    if let Transport::Unix(unix) = address.transport()
        && let UnixSocket::File(path) = unix.path()
    {
        let socket = gate::connect(path).map_err(|it| zbus::Error::InputOutput(Arc::new(it)))?;
        return Ok(Builder::socket(socket));
    }
    Ok(Builder::address(address))
}
