//! Processes in this network namespace: who may do what, and who holds packet sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{Reading, Unknown};

/// A process that uses this network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Process {
    /// Its number; zero: of a socket whose process is not seen.
    pub id: u32,
    /// Its short name.
    pub name: String,
    /// Its program.
    pub program: String,
    /// Effective user.
    pub user: u32,
    /// CAP_NET_ADMIN is effective for this network.
    pub admin: bool,
    /// CAP_NET_RAW is effective for this network.
    pub raw: bool,
    /// It is in a container: what tells so.
    pub container: Option<String>,
    /// It is a part of the kill switch.
    pub ours: bool,
    /// Packet sockets of this namespace that it holds.
    pub packet_sockets: usize,
    /// AF_XDP sockets that it holds.
    pub xdp_sockets: usize,
}

/// What a process must share with us for its capabilities to count here.
struct Here {
    network: PathBuf,
    user: PathBuf,
    processes: PathBuf,
    program: PathBuf,
    id: u32,
    /// We lack privileges of root's, e.g. in a container, so some processes are none of ours to see.
    confined: bool,
}

impl Here {
    fn read() -> io::Result<Self> {
        let own = fs::read_to_string("/proc/self/status")?;
        let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap")?
            .trim_end()
            .parse()
            .map_err(io::Error::other)?;
        let all = u64::MAX >> (u64::BITS - 1).saturating_sub(last);
        Ok(Here {
            network: fs::read_link("/proc/thread-self/ns/net")?,
            user: fs::read_link("/proc/self/ns/user")?,
            processes: fs::read_link("/proc/self/ns/pid")?,
            program: fs::read_link("/proc/self/exe")?,
            id: std::process::id(),
            confined: !super::sees_every_user() || capabilities(&own) != all,
        })
    }
}

/// What the processes of this network namespace are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Processes {
    /// Those that were seen.
    pub seen: Vec<Process>,
    /// How many could not be looked into, since we lack privileges of root's.
    pub hidden: usize,
}

pub(super) fn processes() -> Reading<Processes> {
    read().map_err(|error| Unknown::of("/proc", &error))
}

fn read() -> io::Result<Processes> {
    let here = Here::read()?;
    let mut packet = packet_sockets()?;
    let mut found = Processes::default();
    for id in process_ids("/proc")? {
        if id == here.id {
            packet.retain(|inode| !held_sockets(&directory(id)).contains_key(inode));
            continue;
        }
        match examine(id, &here, &mut packet) {
            Ok(Some(process)) => found.seen.push(process),
            Ok(None) => {}
            // It ended meanwhile.
            Err(error) if is_gone(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && here.confined => {
                found.hidden += 1;
            }
            Err(error) => return Err(error),
        }
    }
    // A socket on its way to another process has no holder; one that was closed meanwhile is none.
    let left = packet_sockets()?.intersection(&packet).count();
    if left > 0 {
        let name = "a process that is not seen".into();
        found.seen.push(Process { name, packet_sockets: left, ..Process::default() });
    }
    Ok(found)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}

/// The processes in a proc file system, in order.
pub(super) fn process_ids(proc: &str) -> io::Result<BTreeSet<u32>> {
    let names = fs::read_dir(proc)?.flatten().map(|entry| entry.file_name());
    Ok(names.filter_map(|name| name.to_str()?.parse().ok()).collect())
}

fn directory(id: u32) -> PathBuf {
    format!("/proc/{id}").into()
}

/// Takes the packet sockets that it holds out of the list. `None`: nothing of interest.
fn examine(id: u32, here: &Here, packet: &mut BTreeSet<u64>) -> io::Result<Option<Process>> {
    let directory = directory(id);
    // The kernel's own threads have no program.
    let program = match fs::read_link(directory.join("exe")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // Anybody can run one from a place that is too deep to be named.
        Err(error) if error.raw_os_error() == Some(Errno::ENAMETOOLONG as i32) => {
            "(a path too long)".into()
        }
        program => program?,
    };
    let near = fs::read_link(directory.join("ns/net"))? == here.network;
    if !near && packet.is_empty() {
        return Ok(None);
    }
    let sockets = held_sockets(&directory);
    let held: Vec<u64> = sockets.keys().filter(|inode| packet.contains(inode)).copied().collect();
    if !near && held.is_empty() {
        return Ok(None);
    }
    packet.retain(|inode| !held.contains(inode));
    let status = text_of(&directory.join("status"))?;
    let capable = fs::read_link(directory.join("ns/user"))? == here.user;
    let capabilities = if capable { capabilities(&status) } else { 0 };
    let text = program.display().to_string();
    let name = text.strip_suffix(" (deleted)").unwrap_or(&text).to_owned();
    let ours =
        [here.program.as_path(), Path::new("/usr/bin/killswitch")].contains(&Path::new(&name));
    Ok(Some(Process {
        id,
        name: field(&status, "Name:").unwrap_or_default().to_owned(),
        program: name,
        user: field(&status, "Uid:")
            .and_then(|ids| ids.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or_default(),
        admin: capabilities & 1 << 12 != 0,
        raw: capabilities & 1 << 13 != 0,
        container: container(&directory, here)?,
        ours,
        packet_sockets: held.len(),
        xdp_sockets: if near { xdp_sockets(sockets.values()) } else { 0 },
    }))
}

/// With names in it that others chose, in any bytes.
fn text_of(file: &Path) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(file)?).into_owned())
}

/// The effective ones, bit by bit (capabilities(7)).
fn capabilities(status: &str) -> u64 {
    let value = field(status, "CapEff:").and_then(|value| u64::from_str_radix(value, 16).ok());
    value.unwrap_or_default()
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Control groups that container managers make; systemd's services stay in its own, and in our
/// namespace of processes.
fn container(directory: &Path, here: &Here) -> io::Result<Option<String>> {
    let groups = text_of(&directory.join("cgroup")).unwrap_or_default();
    if let Some(manager) = manager(&groups) {
        return Ok(Some(format!("control group of {manager}")));
    }
    let foreign = fs::read_link(directory.join("ns/pid"))? != here.processes;
    Ok(foreign.then(|| "a process namespace of its own".into()))
}

/// Whose container is in these groups, as /proc/PID/cgroup names them. Who watches over a container,
/// outside of it, is none: podman's conmon, and systemd-nspawn itself.
fn manager(groups: &str) -> Option<&'static str> {
    const MANAGERS: [&str; 7] =
        ["docker", "libpod", "cri-containerd", "crio", "kubepods", "lxc", "machine.slice"];
    /// After a manager's name; its own service ("docker.service") is no container.
    const REST: [&str; 3] = ["-", ".slice", ".payload"];
    let parts: Vec<&str> = groups.split(['/', '\n', ':']).collect();
    let of_nspawn =
        |unit: &str| ["systemd-nspawn@", "machine-"].iter().any(|it| unit.starts_with(it));
    let watches = parts.iter().any(|part| part.starts_with("libpod-conmon-"))
        || parts.windows(2).any(|pair| of_nspawn(pair[0]) && pair[1] == "supervisor");
    let is_of = |manager: &str| {
        parts
            .iter()
            .filter_map(|part| part.strip_prefix(manager))
            .any(|rest| rest.is_empty() || REST.iter().any(|it| rest.starts_with(it)))
    };
    MANAGERS.into_iter().find(|it| is_of(it)).filter(|_| !watches)
}

/// Inodes of sockets, with the path of one descriptor.
fn held_sockets(directory: &Path) -> BTreeMap<u64, PathBuf> {
    let entries = fs::read_dir(directory.join("fd")).into_iter().flatten().flatten();
    let socket = |path: PathBuf| {
        let target = fs::read_link(&path).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
        Some((inode, path))
    };
    entries.filter_map(|entry| socket(entry.path())).collect()
}

/// The kernel names a socket's protocol as an attribute of its inode (net/socket.c,
/// `sockfs_xattr_handlers`); of AF_XDP there is nothing in /proc/net, and not every kernel has
/// xdp_diag.
fn xdp_sockets<'a>(descriptors: impl Iterator<Item = &'a PathBuf>) -> usize {
    let is_xdp = |path: &PathBuf| {
        let mut name = [0; 32];
        let length = rustix::fs::getxattr(path, "system.sockprotoname", &mut name[..]);
        length.is_ok_and(|length| name[..length].split(|byte| *byte == 0).next() == Some(b"XDP"))
    };
    descriptors.filter(|path| is_xdp(path)).count()
}

/// Inodes of this namespace's packet sockets. A kernel without them has no file.
fn packet_sockets() -> io::Result<BTreeSet<u64>> {
    match fs::read_to_string("/proc/thread-self/net/packet") {
        Ok(text) => Ok(text
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().last()?.parse().ok())
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_watches_over_a_container_is_none() {
        for (group, wanted) in [
            ("0::/system.slice/docker.service", None),
            ("0::/system.slice/docker-0123.scope", Some("docker")),
            ("0::/machine.slice/libpod-0123.scope/container", Some("libpod")),
            ("0::/machine.slice/libpod-conmon-0123.scope", None),
            (
                "0::/machine.slice/systemd-nspawn@x.service/payload/init.scope",
                Some("machine.slice"),
            ),
            ("0::/machine.slice/systemd-nspawn@x.service/supervisor", None),
            ("0::/machine.slice/machine-x.scope/supervisor", None),
            ("0::/machine.slice/libpod-0123.scope/supervisor", Some("libpod")),
            ("4:net_cls:/docker/0123\n0::/user.slice", Some("docker")),
            ("0::/user.slice/user-1000.slice/session-1.scope", None),
        ] {
            assert_eq!(manager(group), wanted, "{group}");
        }
    }
}
