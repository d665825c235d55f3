use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use etherparse::PacketBuilder;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockType, SockaddrStorage, sendmmsg};

use super::super::addresses::{CLIENT_LINK, CLIENT_V4, INTERNET_V4};
use super::super::error::{Context, Error, Result};
use super::super::host::{Stop, Worker};
use super::super::link::PacketSocket;
use super::super::topology::Lab;
use super::senders::open;

/// Datagrams to one system call.
const BATCH: usize = 64;
const PAYLOAD: [u8; 18] = [0x6b; 18];

/// Sends datagrams or frames as fast as it can, until stopped.
pub struct Flood {
    worker: Worker<Option<Flooded>>,
}

/// What a flood did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flooded {
    /// Datagrams or frames that the kernel took.
    pub sent: u64,
    /// Calls that it refused.
    pub refused: u64,
}

impl Flood {
    /// Starts to send from the client to an address, bound to a link or as routed.
    ///
    /// # Errors
    /// Those of sockets.
    pub fn start(lab: &Lab, to: SocketAddr, link: Option<&'static str>) -> Result<Self> {
        let socket = lab.client.run(|| open(to.ip(), SockType::Datagram, None, link))?;
        let socket = socket.during("flood")?;
        let worker = lab.client.spawn("flood", move |stop| flood(&socket, to, &stop))?;
        Ok(Flood { worker })
    }

    /// Starts to send to the Internet, as routed.
    ///
    /// # Errors
    /// Those of sockets.
    pub fn datagrams(lab: &Lab) -> Result<Self> {
        Self::start(lab, (INTERNET_V4, 9).into(), None)
    }

    /// Starts to send whole frames, each with a datagram to the Internet, by the client's link. Only
    /// the egress guard sees them.
    ///
    /// # Errors
    /// Those of packet sockets.
    pub fn frames(lab: &Lab) -> Result<Self> {
        let socket = PacketSocket::open(&lab.client, CLIENT_LINK)?;
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(socket.address(), [0xff; 6])
            .ipv4(CLIENT_V4.octets(), INTERNET_V4.octets(), 64)
            .udp(9, 9)
            .write(&mut frame, &PAYLOAD)
            .during("a frame")?;
        let worker = lab.client.spawn("frames", move |stop| {
            let mut flooded = Flooded::default();
            while !stop.requested() {
                match socket.send(&frame) {
                    Ok(_) => flooded.sent += 1,
                    Err(_) => flooded.refused += 1,
                }
            }
            flooded
        })?;
        Ok(Flood { worker })
    }

    /// Ends it.
    ///
    /// # Errors
    /// If its thread panicked.
    pub fn stop(self) -> Result<Flooded> {
        self.worker.stop()?.ok_or_else(|| Error::new("the flood did not start"))
    }
}

fn flood(socket: &OwnedFd, to: SocketAddr, stop: &Stop) -> Flooded {
    let parts = [[IoSlice::new(&PAYLOAD)]; BATCH];
    let addresses = [Some(SockaddrStorage::from(to)); BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let mut flooded = Flooded::default();
    while !stop.requested() {
        let fd = socket.as_raw_fd();
        match sendmmsg(fd, &mut headers, &parts, addresses, [], MsgFlags::empty()) {
            Ok(sent) => flooded.sent += sent.count() as u64,
            Err(nix::Error::EAGAIN) => std::thread::yield_now(),
            Err(_) => flooded.refused += 1,
        }
    }
    flooded
}
