//! The control socket: root's alone, one request to a connection.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio::time::timeout;

use super::protocol::{Entry, Event, Reply, Request, SOCKET};

/// A request that waits for its answer.
#[derive(Debug)]
pub(super) struct Call {
    pub request: Request,
    pub answer: oneshot::Sender<Reply>,
}

/// Events that a slow reader may fall behind by, before some are left out for it.
const BACKLOG: usize = 256;
/// Bytes; a longer request is nonsense.
const LONGEST_REQUEST: u64 = 8192;
/// Callers at the same time; more wait.
const MOST_CALLERS: usize = 64;
/// For a caller to finish its sentence.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tells events to whoever listens.
#[derive(Debug, Clone)]
pub(super) struct Announcer(broadcast::Sender<Arc<str>>);

impl Announcer {
    pub(super) fn new() -> Self {
        Announcer(broadcast::channel(BACKLOG).0)
    }

    pub(super) fn tell(&self, event: Event) {
        // An error only says that nobody listens.
        let _ = self.0.send(line(&entry(event)).into());
    }
}

/// Listens, and hands every request on; the daemon lives without it.
///
/// # Errors
/// If the socket cannot be made, e.g. where /run is read-only.
pub(super) fn listen(announcer: Announcer, calls: mpsc::Sender<Call>) -> io::Result<()> {
    let path = Path::new(SOCKET);
    if let Some(directory) = path.parent()
        && !directory.is_dir()
    {
        DirBuilder::new().mode(0o700).create(directory)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(MOST_CALLERS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (announcer, calls) = (announcer.clone(), calls.clone());
                    tokio::spawn(async move {
                        // A caller that goes away, or talks nonsense, harms nobody but itself.
                        let _ = serve(stream, &announcer, &calls).await;
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

async fn serve(
    mut stream: UnixStream,
    announcer: &Announcer,
    calls: &mpsc::Sender<Call>,
) -> io::Result<()> {
    if stream.peer_cred()?.uid() != 0 {
        return Ok(());
    }
    let mut text = String::new();
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader.take(LONGEST_REQUEST));
    timeout(PATIENCE, reader.read_line(&mut text)).await??;
    let reply = match serde_json::from_str(&text) {
        Ok(Request::Monitor) => return stream_events(announcer, &mut stream).await,
        Ok(request) => {
            let (answer, reply) = oneshot::channel();
            let call = Call { request, answer };
            let gone = || refused("the daemon is stopping; the lock stays");
            match calls.send(call).await {
                Ok(()) => reply.await.unwrap_or_else(|_| gone()),
                Err(_) => gone(),
            }
        }
        Err(error) => refused(format!("not a request: {error}")),
    };
    timeout(PATIENCE, writer.write_all(line(&reply).as_bytes())).await?
}

async fn stream_events(announcer: &Announcer, stream: &mut UnixStream) -> io::Result<()> {
    let mut events = announcer.0.subscribe();
    let (mut reader, mut writer) = stream.split();
    let mut nothing = [0; 16];
    loop {
        let text = tokio::select! {
            // A listener says nothing more; when it goes, so does its place.
            _ = reader.read(&mut nothing) => return Ok(()),
            event = events.recv() => match event {
                Ok(text) => text,
                Err(broadcast::error::RecvError::Lagged(events)) => {
                    line(&entry(Event::Missed { events })).into()
                }
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
        };
        timeout(PATIENCE, writer.write_all(text.as_bytes())).await??;
    }
}

pub(super) fn refused(error: impl Into<String>) -> Reply {
    Reply::Refused { error: error.into(), code: 1 }
}

fn entry(event: Event) -> Entry {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Entry { time, event }
}

fn line(document: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string(document).expect("our documents have string keys");
    text.push('\n');
    text
}
