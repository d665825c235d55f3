//! The way from the bus: no call is read while too many are being served. zbus gives each a task as
//! soon as it has been read, however many there are, and a bus that is flooded takes answers more
//! slowly than it brings calls. Those that are not read wait at the bus, which limits them.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use zbus::connection::socket::{BoxedSplit, ReadHalf, Split, WriteHalf};

use crate::unix_socket;

/// Tasks of the bus' thread. More than may wait for what is yet to be read, i.e. for the bus or
/// polkit to answer: they are admitted by number (`authority`).
const MOST_TASKS: usize = 1024;

/// Connects to the bus at this path.
pub(super) fn connect(path: &Path) -> io::Result<BoxedSplit> {
    /// For a bus that takes nobody.
    const PATIENCE: Duration = Duration::from_secs(5);
    let stream = unix_socket::connect(path, PATIENCE)?;
    stream.set_nonblocking(true)?;
    let (read, write) = UnixStream::from_std(stream)?.into_split();
    Ok(Split::new(Box::new(Read(read)), Box::new(Write(write))))
}

#[derive(Debug)]
struct Read(OwnedReadHalf);

#[async_trait]
impl ReadHalf for Read {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        wait_for_room().await;
        let stream = self.0.as_ref();
        stream.async_io(Interest::READABLE, || receive(stream, buffer)).await
    }

    /// dbus-broker ends a connection that cannot: who calls, it tells by a descriptor as well.
    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

fn receive(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    /// unix(7), SCM_MAX_FD: in one message.
    const MOST_DESCRIPTORS: usize = 253;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(buffer)];
    let received = recvmsg(stream, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((received.bytes, descriptors.flatten().collect()))
}

/// Not for ever: were all of them to wait for what is not read, nobody would get on.
async fn wait_for_room() {
    const PAUSE: Duration = Duration::from_millis(1);
    const PAUSES: u32 = 1000;
    let metrics = Handle::current().metrics();
    for _ in 0..PAUSES {
        if metrics.num_alive_tasks() < MOST_TASKS {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[derive(Debug)]
struct Write(OwnedWriteHalf);

#[async_trait]
impl WriteHalf for Write {
    /// We have no descriptor to send.
    async fn sendmsg(&mut self, bytes: &[u8], _: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.0.write(bytes).await
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }

    async fn close(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}
