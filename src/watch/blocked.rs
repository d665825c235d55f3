//! What the lock has just blocked, and who sent it: packets that the kernel shows to the readers of
//! [`LOG_GROUP`].
//!
//! The rules that log let through a few packets a second (`ruleset::compile`); what is left of a
//! flood is told once for each destination and sender, then counted (`limiter`). Nothing runs
//! while nothing is blocked.

mod group;
mod limiter;
mod packet;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Instant;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::listener::Listener;
use crate::netfilter::batch::push;
use crate::netfilter::message::{Request, Writer};
use crate::netlink::{Family, Socket};
use crate::ruleset::LOG_GROUP;

use group::Groups;
use limiter::{Key, Limiter};

/// Room for packets that are not read yet, in bytes: more than the kernel logs in ten seconds.
const BUFFER: usize = 256 << 10;
/// Bytes of each packet: the headers of a tagged frame, IPv6 with an extension, and the ports.
const COPIED: u32 = 128;

/// A packet that wanted to leave and was blocked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// The link that it would have left by, if it still has a name.
    pub link: Option<String>,
    /// Its sender's address; a frame that is not IP has none.
    pub source: Option<IpAddr>,
    /// Its sender's port.
    pub source_port: Option<u16>,
    /// Where it should have gone.
    pub destination: Option<IpAddr>,
    /// The port there.
    pub port: Option<u16>,
    /// "tcp", "udp", or another name or number of IP; of another frame its EtherType.
    pub protocol: String,
    /// Who opened the socket that sent it; nobody where it was forwarded.
    pub uid: Option<u32>,
    /// The control group of that socket, as in /proc/PID/cgroup; where it is still open, and the
    /// kernel says so: a TCP socket is closed as it is refused, and a packet socket is in no list.
    pub cgroup: Option<String>,
    /// How many such packets the kernel showed since this was last told. Of a flood it shows only a
    /// few: the counters of the rules know them all.
    pub suppressed: u64,
}

impl fmt::Display for Blocked {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.protocol)?;
        if let Some(destination) = self.destination {
            write!(out, " to {destination}")?;
        }
        if let Some(port) = self.port {
            write!(out, " port {port}")?;
        }
        if let Some(link) = &self.link {
            write!(out, " on {}", link.escape_debug())?;
        }
        if let Some(uid) = self.uid {
            write!(out, " by user {uid}")?;
        }
        if let Some(group) = &self.cgroup {
            write!(out, " in {}", group.escape_debug())?;
        }
        match self.suppressed {
            0 => Ok(()),
            more => write!(out, ", and {more} more before"),
        }
    }
}

/// Waits for packets that were blocked. Within a tokio runtime with I/O enabled.
pub struct BlockedWatch {
    listener: Listener,
    limiter: Limiter,
    groups: Groups,
    /// As many as the limiter lets pass between two readings.
    waiting: VecDeque<Blocked>,
    shown: u64,
    overruns: u64,
}

/// Why nobody can be told what is blocked; the lock holds all the same.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another program, e.g. ulogd, reads the group: a group has one reader.
    #[error("log group {LOG_GROUP} is read by another program")]
    Taken,
    /// The kernel has no nfnetlink_log.
    #[error("this kernel has no nfnetlink_log")]
    Missing,
    /// The netlink socket failed.
    #[error("netlink: {0}")]
    Socket(#[from] io::Error),
}

impl BlockedWatch {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`Error`]: reasons why the daemon is degraded, not why it should end.
    pub fn open() -> Result<Self, Error> {
        Self::with_buffer(BUFFER)
    }

    /// As [`BlockedWatch::open`], with room for this many bytes of packets that are not read yet.
    ///
    /// # Errors
    /// As [`BlockedWatch::open`].
    pub fn with_buffer(bytes: usize) -> Result<Self, Error> {
        let socket = Socket::open(Family::Netfilter)?;
        bind(&socket)?;
        let listener = Listener::over(socket, bytes)?;
        Ok(BlockedWatch {
            listener,
            limiter: Limiter::default(),
            groups: Groups::default(),
            waiting: VecDeque::new(),
            shown: 0,
            overruns: 0,
        })
    }

    /// The next packet that is worth telling. Whoever drops the future before its end loses nothing.
    ///
    /// # Errors
    /// The socket failed: open anew.
    pub async fn next(&mut self) -> io::Result<Blocked> {
        loop {
            // In a flood something always waits: the runtime's other tasks shall run, too.
            tokio::task::coop::consume_budget().await;
            if let Some(blocked) = self.waiting.pop_front() {
                return Ok(blocked);
            }
            self.drain()?;
            if self.waiting.is_empty() {
                self.listener.wait().await?;
            }
        }
    }

    /// How many packets the kernel showed, told or not.
    pub fn shown(&self) -> u64 {
        self.shown
    }

    /// How often the kernel had no room for what it wanted to show.
    pub fn overruns(&self) -> u64 {
        self.overruns
    }

    fn drain(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let (limiter, groups) = (&mut self.limiter, &mut self.groups);
        let (waiting, shown) = (&mut self.waiting, &mut self.shown);
        let lost = self.listener.drain(|message| {
            let Some((mut blocked, out)) = packet::read(message) else { return };
            *shown += 1;
            if let Some(suppressed) = limiter.admit(Key::of(&blocked), now) {
                blocked.suppressed = suppressed;
                blocked.cgroup = groups.of(&blocked, out);
                waiting.push_back(blocked);
            }
        })?;
        self.overruns += u64::from(lost);
        Ok(())
    }
}

/// NFULNL_MSG_CONFIG (include/uapi/linux/netfilter/nfnetlink_log.h): the group is ours, with the
/// first bytes of each packet, and at once.
fn bind(socket: &Socket) -> Result<(), Error> {
    const NFNL_SUBSYS_ULOG: u16 = 4;
    const NFULNL_MSG_CONFIG: u16 = 1;
    const NLM_F_ACK: u16 = 4;
    const CMD: u16 = 1;
    const CMD_BIND: u8 = 1;
    const MODE: u16 = 2;
    const COPY_PACKET: u8 = 2;
    const QTHRESH: u16 = 5;
    let [a, b, c, d] = COPIED.to_be_bytes();
    let mut body = Writer::default();
    body.bytes(CMD, &[CMD_BIND]);
    body.bytes(MODE, &[a, b, c, d, COPY_PACKET, 0]);
    body.number(QTHRESH, 1);
    let request = Request { kind: 0, flags: NLM_F_ACK, family: 0, body: body.finish() };
    let mut bytes = Vec::new();
    push(&mut bytes, NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG, &request, 0, LOG_GROUP);
    socket.send(&bytes)?;
    for message in socket.receive()? {
        // What is logged meanwhile has no acknowledgement.
        let failure = message.ack().and_then(|ack| ack.failure);
        match failure.map(|it| Errno::from_raw(it.errno)) {
            None => {}
            Some(Errno::EPERM | Errno::EBUSY) => return Err(Error::Taken),
            Some(Errno::EINVAL | Errno::EOPNOTSUPP) => return Err(Error::Missing),
            Some(errno) => return Err(io::Error::from(errno).into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_hold_no_control_characters() {
        let blocked = Blocked {
            link: Some("e\u{1b}0".into()),
            source: None,
            source_port: None,
            destination: Some(std::net::Ipv4Addr::new(203, 0, 113, 9).into()),
            port: Some(53),
            protocol: "udp".into(),
            uid: Some(1000),
            cgroup: Some("/a\nb".into()),
            suppressed: 3,
        };
        assert_eq!(
            blocked.to_string(),
            "udp to 203.0.113.9 port 53 on e\\u{1b}0 by user 1000 in /a\\nb, and 3 more before"
        );
    }
}
