//! The control group of a packet's sender, which the packet itself does not tell: sock_diag(7) knows
//! the socket by its addresses, and the group's number is its directory's.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Blocked;
use crate::netlink::{Attributes, Family, Socket};

/// Where cgroup2 is mounted beside version 1, or alone.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
/// Directories that are read in search of one.
const MOST_DIRECTORIES: usize = 1000;
/// Names that are remembered.
const MOST_NAMES: usize = 64;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Asked only of what is told, so a few times a second at most.
#[derive(Default)]
pub(super) struct Groups {
    socket: Option<Socket>,
    names: BTreeMap<u64, String>,
}

impl Groups {
    /// The sender's group; `None`: its socket is gone, or the kernel (before 5.13) does not say.
    pub(super) fn of(&mut self, blocked: &Blocked, link: Option<u32>) -> Option<String> {
        let request = request(blocked, link)?;
        if self.socket.is_none() {
            self.socket = Some(Socket::open(Family::SockDiag).ok()?);
        }
        let number = ask(self.socket.as_ref()?, &request, blocked.uid?)?;
        if let Some(name) = self.names.get(&number) {
            return Some(name.clone());
        }
        let root = ROOTS.map(Path::new).into_iter().find(|it| it.is_dir())?;
        let name = find(root, number)?;
        if self.names.len() >= MOST_NAMES {
            self.names.clear();
        }
        self.names.insert(number, name.clone());
        Some(name)
    }
}

/// SOCK_DIAG_BY_FAMILY with `inet_diag_req_v2` (include/uapi/linux/inet_diag.h).
fn request(blocked: &Blocked, link: Option<u32>) -> Option<Vec<u8>> {
    const LENGTH: u32 = 16 + 56;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST: u16 = 1;
    let mut near = (blocked.source_port?, blocked.source?);
    let mut far = (blocked.port?, blocked.destination?);
    let protocol = match blocked.protocol.as_str() {
        "tcp" => TCP,
        "udp" => UDP,
        _ => return None,
    };
    if protocol == UDP {
        // The kernel looks up UDP as if for a packet that comes in (udp_dump_one).
        (near, far) = (far, near);
    }
    let mut bytes = Vec::with_capacity(LENGTH as usize);
    bytes.extend(LENGTH.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend([0; 8]);
    /// AF_INET, AF_INET6
    const FAMILIES: [u8; 2] = [2, 10];
    let family = FAMILIES[usize::from(near.1.is_ipv6())];
    bytes.extend([family, protocol, 0, 0]);
    // Every state, and no cookie.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(near.0.to_be_bytes());
    bytes.extend(far.0.to_be_bytes());
    bytes.extend(padded(near.1));
    bytes.extend(padded(far.1));
    bytes.extend(link.unwrap_or_default().to_ne_bytes());
    bytes.extend([0xff; 8]);
    Some(bytes)
}

fn padded(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
    }
}

/// INET_DIAG_CGROUP_ID of the socket, if it is that user's: meanwhile another may have the port.
fn ask(socket: &Socket, request: &[u8], uid: u32) -> Option<u64> {
    /// `inet_diag_msg`, and where the user is in it.
    const HEADER: usize = 72;
    const UID: usize = 64;
    const INET_DIAG_CGROUP_ID: u16 = 21;
    socket.discard_pending();
    socket.send(request).ok()?;
    // The kernel answers within `send`.
    let messages = socket.receive_pending().ok()??;
    let payload = &messages.first().filter(|it| it.ack().is_none())?.payload;
    let owner = u32::from_ne_bytes(payload.get(UID..UID + 4)?.try_into().ok()?);
    let number = Attributes(payload.get(HEADER..)?).get(INET_DIAG_CGROUP_ID)?;
    (owner == uid).then_some(u64::from_ne_bytes(number.try_into().ok()?))
}

/// The directory of that number (cgroup_id is its inode), as a path from the root.
fn find(root: &Path, number: u64) -> Option<String> {
    if root.metadata().ok()?.ino() == number {
        return Some("/".into());
    }
    let mut queue = VecDeque::from([PathBuf::from(root)]);
    for _ in 0..MOST_DIRECTORIES {
        let Ok(entries) = std::fs::read_dir(queue.pop_front()?) else { continue };
        for entry in entries.flatten().filter(|it| it.file_type().is_ok_and(|it| it.is_dir())) {
            let path = entry.path();
            if entry.ino() == number {
                let below = path.strip_prefix(root).ok()?.to_string_lossy();
                return Some(format!("/{below}"));
            }
            queue.push_back(path);
        }
    }
    None
}
