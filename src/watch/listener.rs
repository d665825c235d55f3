use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::netlink::{Family, Message, Socket};

/// Datagrams between two looks at the state: in a storm that never ends it is still read.
const MOST: usize = 4096;

/// A socket that is subscribed to events.
pub(super) struct Listener {
    socket: AsyncFd<Socket>,
    /// Events were lost, and the kernel says so only once until its queue is empty.
    lossy: bool,
}

impl Listener {
    pub(super) fn open(family: Family, groups: &[u32], buffer: usize) -> io::Result<Self> {
        Self::over(Socket::open_subscribed(family, groups)?, buffer)
    }

    /// Listens on a socket to which something is sent already.
    pub(super) fn over(socket: Socket, buffer: usize) -> io::Result<Self> {
        socket.reserve_events(buffer)?;
        Ok(Listener { socket: register(socket, interest())?, lossy: false })
    }

    /// Waits until there is something to [`Listener::drain`].
    pub(super) async fn wait(&self) -> io::Result<()> {
        self.socket.ready(interest()).await?.retain_ready();
        Ok(())
    }

    /// Takes what waits; whether events were lost.
    pub(super) fn drain(&mut self, mut each: impl FnMut(&Message)) -> io::Result<bool> {
        for _ in 0..MOST {
            match self.one() {
                Ok(messages) => messages.iter().flatten().for_each(&mut each),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(std::mem::take(&mut self.lossy));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    self.lossy = true;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(self.lossy)
    }

    /// One datagram, or the error that waits. An interest at a time: tokio's `try_io` takes no two.
    fn one(&self) -> io::Result<Option<Vec<Message>>> {
        let one = |socket: &Socket| socket.receive_one(RecvFlags::DONTWAIT);
        match self.socket.try_io(Interest::READABLE, one) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.socket.try_io(Interest::ERROR, one)
            }
            other => other,
        }
    }
}

/// An overrun with nothing in the queue (netlink_set_err) is an error only.
fn interest() -> Interest {
    Interest::READABLE | Interest::ERROR
}

/// Only for what owns its descriptor, and with it what the safety of the constructor that is not
/// deprecated asks for: that the descriptor stays open and the same.
#[allow(deprecated, reason = "its successor is unsafe, which this package forbids")]
pub(super) fn register<T: AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, interest)
}
