//! The control socket: the same object, peer to peer, for root alone. It needs no bus.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use zbus::connection::Builder;

use super::authority::{Authority, Peer};
use super::manager::{Manager, tell};
use super::{Daemon, PATH, SOCKET};

/// Peers at the same time; more wait.
const MOST_PEERS: usize = 64;
/// For a peer to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens from now on, within a tokio runtime.
pub(super) fn serve(daemon: Daemon) -> io::Result<()> {
    let path = Path::new(SOCKET);
    if let Some(directory) = path.parent() {
        // Whoever keeps evidence may make it at the same moment.
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    tokio::spawn(async move {
        let manager = Manager::new(daemon.clone(), Authority::Root(Peer::default()));
        let places = Arc::new(Semaphore::new(MOST_PEERS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (manager, daemon) = (manager.clone(), daemon.clone());
                    tokio::spawn(async move {
                        // A peer that goes away, or talks nonsense, harms nobody but itself.
                        let _ = attend(stream, manager, &daemon).await;
                        drop(place);
                    });
                }
                // Out of descriptors: not a reason to spin.
                Err(_) => tokio::time::sleep(PATIENCE).await,
            }
        }
    });
    Ok(())
}

async fn attend(stream: UnixStream, manager: Manager, daemon: &Daemon) -> zbus::Result<()> {
    let peer = stream.peer_cred().map_err(|error| zbus::Error::InputOutput(Arc::new(error)))?;
    if peer.uid() != 0 {
        return Ok(());
    }
    let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
    let manager = manager.for_peer(Peer { pid });
    let stream = stream.into_std().map_err(|error| zbus::Error::InputOutput(Arc::new(error)))?;
    let connection = Builder::unix_stream(stream)
        .server(zbus::Guid::generate())
        .p2p()
        .serve_at(PATH, manager)
        .build();
    let connection = timeout(PATIENCE, connection)
        .await
        .map_err(|_| zbus::Error::Failure("it does not say who it is".into()))??;
    tell(&connection, daemon).await
}
