//! Connecting to programs of this machine that may hang.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// As [`UnixStream::connect`], which waits for ever where a program takes nobody and its queue is
/// full: gives up (`WouldBlock`) after `patience`, which must not be zero.
pub(crate) fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // socket(7), SO_SNDTIMEO: it holds for connect(2), too.
    socket.set_write_timeout(Some(patience))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(OwnedFd::from(socket).into())
}
