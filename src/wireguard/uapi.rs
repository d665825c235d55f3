//! The socket of a userspace WireGuard (<https://www.wireguard.com/xplatform/>).
//!
//! Texts are defguard's; the exchange is ours. Its own retries for ever when the other end hangs,
//! and takes a closed connection for success.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use defguard_wireguard_rs::host::Host;
use defguard_wireguard_rs::peer::Peer;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;
use zeroize::Zeroizing;

use crate::unix_socket;

/// Fixed by the protocol; /var/run is /run.
pub(super) const DIRECTORY: &str = "/var/run/wireguard";
/// For a whole exchange: a healthy one takes well under a millisecond.
const PATIENCE: Duration = Duration::from_secs(3);
/// Holds the answer for one peer, so that it is not moved and leaves no copy of the key behind.
const USUAL: usize = 1 << 14;
const LARGEST: usize = 1 << 20;

/// Where the userspace WireGuard of a link listens.
pub(super) fn path(interface: &str) -> PathBuf {
    PathBuf::from(format!("{DIRECTORY}/{interface}.sock"))
}

/// The process that listens, whether or not it answers. `None`: nobody.
///
/// The kernel notes it on listen(2): the process may have passed the socket on and ended.
pub(super) fn listener(interface: &str) -> Option<Pid> {
    let stream = unix_socket::connect(&path(interface), PATIENCE).ok()?;
    let process = getsockopt(&stream, sockopt::PeerCredentials).ok()?.pid();
    // Zero: in another process namespace. To kill(2) it would be our own group.
    (process > 0).then(|| Pid::from_raw(process))
}

/// Reads key, mark, port and peers.
pub(super) fn get(interface: &str) -> io::Result<Host> {
    let answer = exchange(interface, "get=1\n\n")?;
    Host::parse_uapi(answer.as_slice())
}

/// Sets key, mark and port. Every peer goes.
pub(super) fn set_host(interface: &str, host: &Host) -> io::Result<()> {
    set(interface, &Zeroizing::new(host.as_uapi()))
}

/// Makes this the only peer, in one step and with a new session.
pub(super) fn set_only_peer(interface: &str, peer: &Peer) -> io::Result<()> {
    let peer = Zeroizing::new(peer.as_uapi_update());
    set(interface, &Zeroizing::new(format!("replace_peers=true\n{}", *peer)))
}

fn set(interface: &str, words: &str) -> io::Result<()> {
    exchange(interface, &Zeroizing::new(format!("set=1\n{words}\n"))).map(drop)
}

/// Sends a request and reads the answer up to its empty line. The answer may hold keys.
fn exchange(interface: &str, request: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let deadline = Instant::now() + PATIENCE;
    let mut stream = unix_socket::connect(&path(interface), PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Zeroizing::new(Vec::with_capacity(USUAL));
    let mut part = Zeroizing::new([0; 4096]);
    while !answer.ends_with(b"\n\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || answer.len() + part.len() > LARGEST {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no whole answer"));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(part.as_mut_slice()) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "refused")),
            Ok(length) => answer.extend_from_slice(&part[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    judge(&answer)?;
    Ok(answer)
}

/// The last line says how it went: `errno=0`, or an error number of either sign.
fn judge(answer: &[u8]) -> io::Result<()> {
    let last = answer.trim_ascii_end().rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
    let number = last.strip_prefix(b"errno=").and_then(|text| std::str::from_utf8(text).ok());
    match number.and_then(|text| text.parse::<i64>().ok()) {
        Some(0) => Ok(()),
        Some(errno) => Err(match i32::try_from(errno.unsigned_abs()) {
            Ok(errno) => io::Error::from_raw_os_error(errno),
            Err(_) => io::Error::other("an error without a number"),
        }),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer without errno")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errno_0_is_success() {
        assert!(judge(b"errno=0\n\n").is_ok());
        assert!(judge(b"private_key=00\nrx_bytes=7\nerrno=0\n\n").is_ok());
        let refused = judge(b"errno=-22\n\n").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(22));
        assert_eq!(judge(b"errno=22\n\n").unwrap_err().raw_os_error(), Some(22));
        for answer in [&b""[..], b"\n\n", b"errno=\n\n", b"rx_bytes=0\n\n", b"errno=9e9\n\n"] {
            assert!(judge(answer).is_err(), "{answer:?}");
        }
    }
}
