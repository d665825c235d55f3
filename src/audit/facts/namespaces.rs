//! Links in other network namespaces: hardware that was moved there, and what hangs on our links.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns};

use super::processes::process_ids;
use super::{Reading, Unknown};
use crate::netlink::{self, Attached, Family, Socket};

/// A link in another network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// Its name there.
    pub link: String,
    /// Its kind; absent for hardware.
    pub kind: Option<String>,
    /// Index of the link of ours that it hangs on.
    pub parent: Option<u32>,
    /// What shows the namespace: a process, or a file.
    pub holder: String,
}

/// Where namespaces are kept without a process: ip-netns(8), Docker.
const KEPT: [&str; 2] = ["/run/netns", "/run/docker/netns"];

pub(super) fn elsewhere() -> Reading<Vec<Elsewhere>> {
    read().map_err(|error| Unknown::of("other network namespaces", &error))
}

/// One after the other: anybody can make more of them than files may be open at once.
fn read() -> io::Result<Vec<Elsewhere>> {
    let home = File::open("/proc/thread-self/ns/net")?;
    // The machine's own, that of its first process and of the kernel's threads: hardware that is
    // there was not moved away.
    let mut seen: BTreeSet<u64> = ["/proc/1/ns/net", "/proc/2/ns/net"]
        .iter()
        .filter_map(|path| fs::metadata(path).ok())
        .chain([home.metadata()?])
        .map(|file| file.ino())
        .collect();
    let mut found = Vec::new();
    for (path, holder) in holders()? {
        let Ok(inode) = fs::metadata(&path).map(|file| file.ino()) else { continue };
        if !seen.insert(inode) {
            continue;
        }
        let looked = File::open(&path).and_then(|other| look_into(&other, &home));
        let holder = || holder.name();
        match looked {
            Ok(links) => found.extend(links.into_iter().map(|link| Elsewhere {
                link: link.name,
                kind: link.kind,
                parent: link.parent,
                holder: holder(),
            })),
            // Its last process ended meanwhile; another may still hold it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                seen.remove(&inode);
            }
            Err(error) => {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", holder())));
            }
        }
    }
    Ok(found)
}

/// What shows a network namespace.
enum Holder {
    Process(u32),
    File(PathBuf),
}

impl Holder {
    fn name(&self) -> String {
        match self {
            Holder::Process(id) => {
                let name = fs::read(format!("/proc/{id}/comm")).unwrap_or_default();
                format!("process {id} ({})", String::from_utf8_lossy(&name).trim_end())
            }
            Holder::File(path) => path.display().to_string(),
        }
    }
}

fn holders() -> io::Result<Vec<(PathBuf, Holder)>> {
    let processes = process_ids("/proc")?.into_iter();
    let mut all: Vec<(PathBuf, Holder)> =
        processes.map(|id| (format!("/proc/{id}/ns/net").into(), Holder::Process(id))).collect();
    for directory in KEPT {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        all.extend(entries.map(|entry| (entry.path(), Holder::File(entry.path()))));
    }
    Ok(all)
}

/// A thread enters it: no other way to list a foreign namespace's links leaves ours unchanged.
fn look_into(other: &File, home: &File) -> io::Result<Vec<Attached>> {
    let look = || -> io::Result<Vec<Attached>> {
        setns(other, CloneFlags::CLONE_NEWNET)?;
        let socket = Socket::open(Family::Route)?;
        let ours = netlink::namespace_number(&socket, home.as_fd())?;
        let mut links = netlink::attached(&socket)?;
        links.retain_mut(|link| {
            let hangs_on_ours = ours.is_some() && link.parent_namespace == ours;
            link.parent = link.parent.filter(|_| hangs_on_ours);
            !link.loopback && (link.kind.is_none() || hangs_on_ours)
        });
        Ok(links)
    };
    std::thread::scope(|scope| scope.spawn(look).join())
        .unwrap_or_else(|_| Err(io::Error::other("a thread ended")))
}
