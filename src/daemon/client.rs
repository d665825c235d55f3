//! How the command line talks to the daemon.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;

use super::protocol::{Entry, Reply, Request, SOCKET};
use crate::unix_socket;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("the daemon does not run")]
    NotRunning,
    /// It listens, but does not answer in time.
    #[error("the daemon does not answer")]
    Silent,
    /// Everything else.
    #[error("the control socket {SOCKET}: {0}")]
    Io(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NotRunning,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Silent,
            _ => Error::Io(error),
        }
    }
}

/// Asks, and waits for the answer for as long as `patience`.
///
/// # Errors
/// [`Error`]
pub fn ask(request: &Request, patience: Duration) -> Result<Reply, Error> {
    let mut answer = String::new();
    send(request, Some(patience))?.read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(Error::Silent);
    }
    serde_json::from_str(&answer).map_err(|error| Error::Io(error.into()))
}

/// Every event from now on; ends with the daemon.
///
/// # Errors
/// [`Error`]
pub fn monitor() -> Result<impl Iterator<Item = io::Result<Entry>>, Error> {
    let lines = send(&Request::Monitor, None)?.lines();
    Ok(lines.map(|line| Ok(serde_json::from_str(&line?)?)))
}

/// Whether a daemon listens, however it hangs.
pub fn runs() -> bool {
    const PATIENCE: Duration = Duration::from_millis(30);
    matches!(
        unix_socket::connect(Path::new(SOCKET), PATIENCE).map_err(Error::from),
        Ok(_) | Err(Error::Silent)
    )
}

/// Kills the daemon that listens, whatever it is doing. The lock outlives it.
///
/// # Errors
/// [`Error`]: of one that has hung for long, so many callers may wait that none can come in any more
/// ([`Error::Silent`]); those of `kill(2)`.
pub fn kill() -> Result<(), Error> {
    const PATIENCE: Duration = Duration::from_millis(100);
    let stream = unix_socket::connect(Path::new(SOCKET), PATIENCE)?;
    let daemon = getsockopt(&stream, sockopt::PeerCredentials).map_err(io::Error::from)?.pid();
    // kill(2): zero, which stands for a process of another namespace, would be our own group.
    if daemon <= 0 {
        return Err(Error::Io(io::Error::other("the daemon is in another process namespace")));
    }
    Ok(signal::kill(Pid::from_raw(daemon), Signal::SIGKILL).map_err(io::Error::from)?)
}

/// For a place in the queue of whoever waits for ever.
const LONGEST: Duration = Duration::from_secs(5);

fn send(request: &Request, patience: Option<Duration>) -> Result<BufReader<UnixStream>, Error> {
    let mut stream = unix_socket::connect(Path::new(SOCKET), patience.unwrap_or(LONGEST))?;
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    let mut text = serde_json::to_string(request).map_err(|error| Error::Io(error.into()))?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    Ok(BufReader::new(stream))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
    };

    use super::*;

    #[test]
    fn nobody_waits_for_ever_where_too_many_wait() {
        let path = std::env::temp_dir().join(format!("killswitch-queue-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let flags = SockFlag::empty();
        let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let patience = Duration::from_millis(50);
        let mut callers = Vec::new();
        let refused = loop {
            match unix_socket::connect(&path, patience) {
                Ok(stream) => callers.push(stream),
                Err(error) => break error,
            }
            assert!(callers.len() < 10, "the queue has no end");
        };
        assert!(!callers.is_empty());
        assert!(matches!(Error::from(refused), Error::Silent));
        drop(listener);
        let refused = unix_socket::connect(&path, patience).unwrap_err();
        assert!(matches!(Error::from(refused), Error::NotRunning));
        std::fs::remove_file(&path).unwrap();
    }
}
