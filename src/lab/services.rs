//! Echo servers, many addresses and ports on one thread.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::{Context, Error, Result};
use super::host::{Host, Stop, Worker};

/// So many connections are kept; the oldest goes first.
const CONNECTIONS: usize = 512;
/// How soon a thread notices that it is to stop.
pub(super) const TICK_MS: u16 = 50;

/// How many datagrams and connections came from each address.
pub type Heard = BTreeMap<IpAddr, u64>;

/// UDP and TCP echo on a list of addresses and ports of one machine.
pub struct Echo {
    heard: Arc<Mutex<Heard>>,
    worker: Worker<Option<()>>,
}

struct Sockets {
    udp: Vec<UdpSocket>,
    listeners: Vec<TcpListener>,
    connections: Vec<TcpStream>,
}

impl Echo {
    /// Starts to serve.
    ///
    /// # Errors
    /// Those of `bind(2)`.
    pub fn start(host: &Host, addresses: &[IpAddr], ports: &[u16]) -> Result<Self> {
        let sockets = host.run(|| bind(addresses, ports))??;
        let heard = Arc::new(Mutex::new(Heard::new()));
        let theirs = Arc::clone(&heard);
        let worker = host.spawn("echo", move |stop| serve(sockets, &theirs, &stop))?;
        Ok(Echo { heard, worker })
    }

    /// Asks it to end, without waiting for it.
    pub fn request_stop(&self) {
        self.worker.request_stop();
    }

    /// Who was heard so far.
    pub fn heard(&self) -> Heard {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn bind(addresses: &[IpAddr], ports: &[u16]) -> Result<Sockets> {
    let mut sockets = Sockets { udp: Vec::new(), listeners: Vec::new(), connections: Vec::new() };
    for &address in addresses {
        for &port in ports {
            let at = SocketAddr::new(address, port);
            let udp = UdpSocket::bind(at).during(format!("udp {at}"))?;
            udp.set_nonblocking(true).during("udp")?;
            sockets.udp.push(udp);
            let tcp = TcpListener::bind(at).during(format!("tcp {at}"))?;
            tcp.set_nonblocking(true).during("tcp")?;
            sockets.listeners.push(tcp);
        }
    }
    if sockets.udp.is_empty() {
        return Err(Error::new("nothing to serve"));
    }
    Ok(sockets)
}

fn serve(mut sockets: Sockets, heard: &Mutex<Heard>, stop: &Stop) {
    let mut buffer = vec![0u8; 65536];
    while !stop.requested() {
        let ready = wait(&sockets);
        let (udp, rest) = ready.split_at(sockets.udp.len());
        let (listeners, connections) = rest.split_at(sockets.listeners.len());
        for (socket, _) in sockets.udp.iter().zip(udp).filter(|(_, ready)| **ready) {
            echo_datagrams(socket, &mut buffer, heard);
        }
        let mut kept = Vec::new();
        for (mut stream, &ready) in sockets.connections.drain(..).zip(connections) {
            if !ready || echo_stream(&mut stream, &mut buffer) {
                kept.push(stream);
            }
        }
        for (listener, _) in sockets.listeners.iter().zip(listeners).filter(|(_, ready)| **ready) {
            while let Ok((stream, peer)) = listener.accept() {
                note(heard, peer);
                if stream.set_nonblocking(true).is_ok() {
                    kept.push(stream);
                }
            }
        }
        kept.drain(..kept.len().saturating_sub(CONNECTIONS));
        sockets.connections = kept;
    }
}

fn wait(sockets: &Sockets) -> Vec<bool> {
    let descriptors = sockets.udp.iter().map(AsFd::as_fd);
    let descriptors = descriptors.chain(sockets.listeners.iter().map(AsFd::as_fd));
    let descriptors = descriptors.chain(sockets.connections.iter().map(AsFd::as_fd));
    let mut polled: Vec<PollFd<'_>> =
        descriptors.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    if poll(&mut polled, PollTimeout::from(TICK_MS)).is_err() {
        return vec![false; polled.len()];
    }
    polled.iter().map(|fd| fd.any().unwrap_or(false)).collect()
}

fn echo_datagrams(socket: &UdpSocket, buffer: &mut [u8], heard: &Mutex<Heard>) {
    // A batch, so that one busy port does not starve the others.
    for _ in 0..64 {
        match socket.recv_from(buffer) {
            Ok((length, peer)) => {
                note(heard, peer);
                let _ = socket.send_to(&buffer[..length], peer);
            }
            Err(_) => return,
        }
    }
}

/// Whether the connection lives on.
fn echo_stream(stream: &mut TcpStream, buffer: &mut [u8]) -> bool {
    match stream.read(buffer) {
        Ok(0) => false,
        // A peer that sends without reading loses its echo.
        Ok(length) => match stream.write(&buffer[..length]) {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        },
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}

fn note(heard: &Mutex<Heard>, peer: SocketAddr) {
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    *heard.entry(peer.ip()).or_default() += 1;
}
