//! Leaves the machine as it was, whatever ends the test.
//!
//! While something is disturbed, a second process waits at a pipe: it knows what to give back, and
//! does it when the pipe ends without a word, as it does when the test is killed.

use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use super::kernel;
use crate::netlink::{Attributes, Family, Message, Socket};

/// The hidden command that the second process runs.
pub const COMMAND: &str = "leaktest-restore";

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

/// An address or route that the kernel drops with its link, as the kernel told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    kind: u16,
    payload: Vec<u8>,
}

impl Kept {
    fn to_line(&self) -> String {
        let hex: String = self.payload.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("keep {} {hex}", self.kind)
    }

    fn from_words(kind: &str, hex: &str) -> Option<Self> {
        let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
        let payload = (0..hex.len()).step_by(2).map(byte).collect::<Option<Vec<u8>>>()?;
        Some(Kept { kind: kind.parse().ok()?, payload })
    }

    fn request(&self) -> Vec<u8> {
        /// NLM_F_REQUEST, ACK, EXCL, CREATE.
        const FLAGS: u16 = 0x605;
        const HEADER: usize = 16;
        let mut bytes = Vec::new();
        let length = u32::try_from(HEADER + self.payload.len()).unwrap_or_default();
        bytes.extend(length.to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend(FLAGS.to_ne_bytes());
        bytes.extend(1_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.payload);
        bytes
    }
}

/// What the kernel drops when this link goes down, and nobody makes again: static routes, and
/// addresses of IPv6. In an order in which it can be given back.
///
/// # Errors
/// The kernel's refusal.
pub fn keep(socket: &Socket, link: u32) -> io::Result<Vec<Kept>> {
    let dump = |get: u16, length: u32| {
        /// NLM_F_REQUEST, NLM_F_DUMP.
        const FLAGS: u16 = 0x301;
        let mut request = Vec::new();
        request.extend((16 + length).to_ne_bytes());
        request.extend(get.to_ne_bytes());
        request.extend(FLAGS.to_ne_bytes());
        request.resize(16 + length as usize, 0);
        socket.dump_consistent(&request)
    };
    let mut kept = Vec::new();
    for message in dump(RTM_GETADDR, 8)? {
        if is_lost_address(&message, link) {
            kept.push(Kept { kind: RTM_NEWADDR, payload: message.payload });
        }
    }
    let mut routes = dump(RTM_GETROUTE, 12)?;
    routes.retain(|it| is_lost_route(it, link));
    // What a router is reached by comes before the routes through it.
    routes.sort_by_key(|it| attribute(it, 12, RTA_GATEWAY).is_some());
    kept.extend(routes.into_iter().map(|it| Kept { kind: RTM_NEWROUTE, payload: it.payload }));
    Ok(kept)
}

const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

fn attribute(message: &Message, header: usize, wanted: u16) -> Option<&[u8]> {
    Attributes(message.payload.get(header..)?).get(wanted)
}

/// `ifaddrmsg`. Addresses that are not permanent are made again by whoever made them.
fn is_lost_address(message: &Message, link: u32) -> bool {
    const AF_INET6: u8 = 10;
    const IFA_F_PERMANENT: u8 = 0x80;
    let Some(&[family, _, flags, scope, ref index @ ..]) = message.payload.get(..8) else {
        return false;
    };
    const RT_SCOPE_LINK: u8 = 253;
    family == AF_INET6
        && flags & IFA_F_PERMANENT != 0
        && scope < RT_SCOPE_LINK
        && index == link.to_ne_bytes()
}

/// `rtmsg`. The kernel's own routes and router advertisements' come back by themselves.
fn is_lost_route(message: &Message, link: u32) -> bool {
    const RT_TABLE_LOCAL: u8 = 255;
    const RTM_F_CLONED: u32 = 0x200;
    const RTPROT_KERNEL: u8 = 2;
    const RTPROT_RA: u8 = 9;
    let Some(&[_, _, _, _, table, protocol, _, _, a, b, c, d]) = message.payload.get(..12) else {
        return false;
    };
    let flags = u32::from_ne_bytes([a, b, c, d]);
    table != RT_TABLE_LOCAL
        && ![RTPROT_KERNEL, RTPROT_RA].contains(&protocol)
        && flags & RTM_F_CLONED == 0
        && attribute(message, 12, RTA_OIF) == Some(&link.to_ne_bytes())
}

/// Sets the link up and gives back what is not there; whoever manages the network may be faster.
///
/// # Errors
/// The link cannot be set up.
pub fn bring_back(link: u32, kept: &[Kept]) -> io::Result<()> {
    /// A route may have to wait for the link's address.
    const TRIES: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(100);
    let socket = Socket::open(Family::Route)?;
    match kernel::set_up(&socket, link, true) {
        // It was unplugged meanwhile.
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32) => {
            return Ok(());
        }
        outcome => outcome?,
    }
    let is_there = |outcome: io::Result<()>| match outcome {
        Err(error) => error.raw_os_error() == Some(nix::errno::Errno::EEXIST as i32),
        Ok(()) => true,
    };
    let mut missing: Vec<&Kept> = kept.iter().collect();
    for _ in 0..TRIES {
        missing.retain(|it| !is_there(kernel::ask(&socket, &it.request())));
        if missing.is_empty() {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// The second process.
pub struct Watcher {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Watcher {
    /// Starts it, with the configuration to lock by.
    ///
    /// # Errors
    /// Those of processes.
    pub fn start(configuration: &Path) -> io::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg("--config")
            .arg(configuration)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // The terminal's signals are not for it.
            .process_group(0)
            .spawn()?;
        let pipe = child.stdin.take();
        Ok(Watcher { child, pipe })
    }

    fn tell(&mut self, line: &str) -> io::Result<()> {
        let pipe = self.pipe.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        pipe.write_all(format!("{line}\n").as_bytes())
    }

    /// Takes a link down; it comes back when the guard is dropped.
    ///
    /// # Errors
    /// The kernel's refusal; the second process is gone.
    pub fn take_down(&mut self, link: u32) -> io::Result<Down<'_>> {
        let socket = Socket::open(Family::Route)?;
        let kept = keep(&socket, link)?;
        for it in &kept {
            self.tell(&it.to_line())?;
        }
        self.tell(&format!("down {link}"))?;
        let down = Down { watcher: self, link, kept };
        kernel::set_up(&socket, link, false)?;
        Ok(down)
    }

    /// Everything is as it was: it need not do anything.
    pub fn dismiss(mut self) {
        let _ = self.tell("done");
        self.pipe = None;
        let _ = self.child.wait();
    }
}

/// A link that is down.
pub struct Down<'a> {
    watcher: &'a mut Watcher,
    link: u32,
    kept: Vec<Kept>,
}

impl Drop for Down<'_> {
    fn drop(&mut self) {
        // What fails here the second process tries, too: it is not told that the link is back.
        if bring_back(self.link, &self.kept).is_ok() {
            let _ = self.watcher.tell("back");
        }
    }
}

/// What the second process does: waits, and gives back what is left to give back. Whether the test
/// ended without saying so.
///
/// # Errors
/// A link cannot be set up.
pub fn wait_and_restore(input: impl BufRead) -> io::Result<bool> {
    let (mut down, mut kept) = (Vec::new(), Vec::new());
    // A line that cannot be read ends it as the pipe's end does.
    for line in input.lines().map_while(Result::ok) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["keep", kind, hex] => kept.extend(Kept::from_words(kind, hex)),
            ["down", link] => down.extend(link.parse::<u32>()),
            ["back"] => {
                down.clear();
                kept.clear();
            }
            ["done"] => return Ok(false),
            _ => {}
        }
    }
    for link in down {
        bring_back(link, &kept)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_survives_the_pipe() {
        let kept = Kept { kind: RTM_NEWROUTE, payload: vec![0, 1, 0xfe, 0x80] };
        let line = kept.to_line();
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(Kept::from_words(words[1], words[2]), Some(kept));
        assert_eq!(Kept::from_words("24", "0"), None);
        assert!(!wait_and_restore(&b"keep 24 00\ndown 7\nback\ndone\n"[..]).unwrap());
        assert!(wait_and_restore(&b"down 7\nback\n"[..]).unwrap());
    }
}
