//! Links in other network namespaces: hardware that was moved there, and what hangs on our links.

use std::collections::BTreeMap;
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

fn read() -> io::Result<Vec<Elsewhere>> {
    let home = File::open("/proc/thread-self/ns/net")?;
    let mut others = others()?;
    others.remove(&home.metadata()?.ino());
    let mut found = Vec::new();
    for (file, holder) in others.into_values() {
        match look_into(&file, &home) {
            Ok(links) => found.extend(links.into_iter().map(|link| Elsewhere {
                link: link.name,
                kind: link.kind,
                parent: link.parent,
                holder: holder.clone(),
            })),
            // Its last process ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{holder}: {error}"))),
        }
    }
    Ok(found)
}

type Namespaces = BTreeMap<u64, (File, String)>;

/// Every network namespace that can be seen, but for the machine's own, that of its first process
/// and of the kernel's threads: hardware that is there was not moved away.
fn others() -> io::Result<Namespaces> {
    let mut found = Namespaces::new();
    let first = ["/proc/1/ns/net", "/proc/2/ns/net"]
        .map(|path| fs::metadata(path).map(|file| file.ino()).ok());
    let mut add = |path: PathBuf, holder: &dyn Fn() -> String| {
        let Ok(inode) = fs::metadata(&path).map(|file| file.ino()) else { return };
        if !first.contains(&Some(inode))
            && !found.contains_key(&inode)
            && let Ok(file) = File::open(&path)
        {
            found.insert(inode, (file, holder()));
        }
    };
    for id in process_ids("/proc")? {
        let name = || fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        let holder = || format!("process {id} ({})", name().trim_end());
        add(format!("/proc/{id}/ns/net").into(), &holder);
    }
    for directory in KEPT {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            add(path.clone(), &|| path.display().to_string());
        }
    }
    Ok(found)
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
