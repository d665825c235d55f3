//! Whether two machines can talk.

use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use killswitch::lab::harness::eventually;
use killswitch::lab::{Error, Host, Result};

const PATIENCE: Duration = Duration::from_millis(1500);

/// A way to talk that expects an answer.
#[derive(Debug, Clone, Copy)]
pub enum By {
    /// An echo request.
    Ping,
    /// A datagram.
    Udp,
    /// A connection and a byte.
    Tcp,
}

/// One try.
pub fn answers(host: &Host, by: By, to: &str) -> Result<bool> {
    if matches!(by, By::Ping) {
        let ping = host.output("ping", &["-c1", "-W2", to])?;
        return Ok(ping.status.success());
    }
    let to: SocketAddr = to.parse().map_err(|_| Error::new(format!("no address: {to}")))?;
    let got = host.run(|| match by {
        By::Tcp => ask_stream(to),
        _ => ask_datagram(to),
    })?;
    Ok(got.is_ok())
}

fn ask_datagram(to: SocketAddr) -> io::Result<()> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    socket.send(b"hello")?;
    socket.recv(&mut [0; 16]).map(drop)
}

fn ask_stream(to: SocketAddr) -> io::Result<()> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"hello")?;
    stream.read_exact(&mut [0; 5])
}

/// Each must be answered, sooner or later.
pub fn talks(host: &Host, tries: &[(By, &str)]) -> Result<()> {
    for (by, to) in tries {
        eventually(&format!("{} to {to} by {by:?}", host.name()), || answers(host, *by, to))?;
    }
    Ok(())
}

/// None may be answered.
pub fn is_mute(host: &Host, tries: &[(By, &str)]) -> Result<()> {
    for (by, to) in tries {
        if answers(host, *by, to)? {
            return Err(Error::new(format!("{} got an answer from {to} by {by:?}", host.name())));
        }
    }
    Ok(())
}
