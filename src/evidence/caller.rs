//! Who asked, as the kernel and the bus know it.

use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};

use crate::process::{self, Stat};

/// Who asked for something. What is not known is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Caller {
    /// As the kernel or the bus says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its name in /etc/passwd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Who logged in, whatever sudo made of them since (`/proc/PID/loginuid`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    /// The process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its name (`/proc/PID/comm`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Its parent's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The controlling terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminal: Option<String>,
    /// Where the SSH session comes from that it is typed in: by the environment, so by root's word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh: Option<String>,
    /// Its name on the system bus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
}

impl Caller {
    /// This process.
    pub fn here(ssh: Option<String>) -> Self {
        let uid = nix::unistd::getuid().as_raw();
        Caller { ssh, ..Caller::of(Some(uid), Some(std::process::id()), None) }
    }

    /// A process, by what the kernel or the bus vouches for. It may be gone by now.
    pub fn of(uid: Option<u32>, pid: Option<u32>, bus: Option<String>) -> Self {
        let stat = pid.and_then(Stat::of);
        Caller {
            uid,
            user: uid.and_then(name_of),
            login: pid.and_then(login),
            pid,
            program: stat.as_ref().map(|it| it.name.clone()),
            parent: stat.as_ref().and_then(|it| Stat::of(it.parent)).map(|it| it.name),
            terminal: stat.as_ref().and_then(|it| terminal(it.terminal)),
            ssh: None,
            bus,
        }
    }
}

impl fmt::Display for Caller {
    /// For messages: "uid 1000 (:1.23)".
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.uid, &self.bus) {
            (Some(uid), Some(bus)) => write!(to, "uid {uid} ({bus})"),
            (Some(0), None) => write!(to, "root at the control socket"),
            (Some(uid), None) => write!(to, "uid {uid}"),
            (None, _) => write!(to, "somebody"),
        }
    }
}

/// By the number of its device (Documentation/admin-guide/devices.txt).
fn terminal(device: i32) -> Option<String> {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    match (major, minor) {
        (0, _) => None,
        (136..=143, minor) => Some(format!("pts/{}", (major - 136) * 256 + minor)),
        (4, 0..=63) => Some(format!("tty{minor}")),
        (4, _) => Some(format!("ttyS{}", minor - 64)),
        _ => Some(format!("{major}:{minor}")),
    }
}

/// Who logged in: audit's.
fn login(pid: u32) -> Option<String> {
    const UNSET: u32 = u32::MAX;
    let mut buffer = [0; 16];
    let text = process::read(format!("/proc/{pid}/loginuid"), &mut buffer);
    let uid = std::str::from_utf8(text).ok()?.trim().parse().ok().filter(|uid| *uid != UNSET)?;
    Some(name_of(uid).unwrap_or_else(|| uid.to_string()))
}

/// By the file alone: the C library would load modules, which a static program cannot, and ask the
/// network.
fn name_of(uid: u32) -> Option<String> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    let entry = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    };
    text.lines().find_map(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_described() {
        let own = Caller::here(None);
        assert_eq!(own.pid, Some(std::process::id()));
        assert_eq!(own.uid, Some(nix::unistd::getuid().as_raw()));
        assert!(own.program.is_some() && own.parent.is_some(), "{own:?}");
        assert_eq!(name_of(0).as_deref(), Some("root"));
    }

    #[test]
    fn a_terminal_is_named_by_its_device() {
        assert_eq!(terminal(34817).as_deref(), Some("pts/1"));
        assert_eq!(terminal(0), None);
        assert_eq!(terminal(0x441).as_deref(), Some("ttyS1"));
    }
}
