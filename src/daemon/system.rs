//! systemd: ready, status, watchdog.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;

/// How often systemd must hear from us, if it asked for it.
pub(super) fn watchdog() -> Option<Duration> {
    // Half the time that it allows: sd_watchdog_enabled(3).
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

pub(super) fn ready() {
    notify(&[NotifyState::Ready]);
}

pub(super) fn alive() {
    notify(&[NotifyState::Watchdog]);
}

pub(super) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

pub(super) fn status(words: &str) {
    notify(&[NotifyState::Status(words)]);
}

/// Until [`ready`].
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// Messages that wait for a manager which does not read; more are dropped.
const BACKLOG: usize = 64;

/// Nothing happens where systemd did not start us; a manager that does not listen is its own
/// trouble.
fn notify(states: &[NotifyState<'_>]) {
    static QUEUE: LazyLock<Option<mpsc::Sender<String>>> =
        LazyLock::new(|| Some(queue(address()?)));
    if let Some(queue) = &*QUEUE {
        let text = states.iter().map(|state| format!("{state}\n")).collect();
        if queue.try_send(text).is_err() {
            tracing::debug!("systemd was not told");
        }
    }
}

/// Sends in order, apart from whoever has something to say: whoever writes to a manager that does
/// not read is blocked, as in `sd_notify::notify`. Within a tokio runtime.
fn queue(manager: SocketAddr) -> mpsc::Sender<String> {
    let (sender, mut texts) = mpsc::channel::<String>(BACKLOG);
    tokio::spawn(async move {
        while let Some(text) = texts.recv().await {
            if let Err(error) = send(&manager, &text).await {
                tracing::debug!(%error, "systemd was not told");
            }
        }
    });
    sender
}

async fn send(manager: &SocketAddr, text: &str) -> io::Result<()> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(manager)?;
    UnixDatagram::from_std(socket)?.send(text.as_bytes()).await.map(drop)
}

/// sd_notify(3): a path, or after an @ a name in the abstract namespace.
fn address() -> Option<SocketAddr> {
    let name = std::env::var_os("NOTIFY_SOCKET")?;
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_manager_that_does_not_read_blocks_nobody_and_misses_little() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let queue = queue(SocketAddr::from_pathname(&path).unwrap());
        // The kernel holds net.unix.max_dgram_qlen of them: 10, or what systemd sets, 512.
        for number in 0..2000 {
            let _ = queue.try_send(format!("STATUS={number}\n"));
            tokio::task::yield_now().await;
        }
        let mut buffer = [0; 64];
        for number in 0..BACKLOG {
            let length = manager.recv(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..length], format!("STATUS={number}\n").as_bytes());
        }
    }
}
