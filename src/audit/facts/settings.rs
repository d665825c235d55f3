//! Settings and files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::{Reading, Unknown};

/// Who may write to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mode {
    /// The file or directory.
    pub path: String,
    /// Its owner.
    pub user: u32,
    /// Its mode bits.
    pub mode: u32,
}

pub(super) fn kernel() -> Reading<(u32, u32)> {
    let file = "/proc/sys/kernel/osrelease";
    let text = fs::read_to_string(file).map_err(|error| Unknown::of(file, &error))?;
    let mut numbers = text.split(|it: char| !it.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(Unknown::Unreadable(format!("{file}: {text:?} is no version"))),
    }
}

/// Those that a check looks at. What this kernel lacks is left out.
pub(super) fn all() -> BTreeMap<String, String> {
    const OF_LINKS: [&str; 6] = [
        "arp_ignore",
        "rp_filter",
        "src_valid_mark",
        "route_localnet",
        "accept_redirects",
        "accept_source_route",
    ];
    let mut found = BTreeMap::new();
    let mut read = |key: String| {
        if let Ok(value) = fs::read_to_string(Path::new("/proc/sys").join(&key)) {
            found.insert(key, value.trim_end().to_owned());
        }
    };
    read("net/ipv4/ip_forward".into());
    read("net/ipv6/conf/all/forwarding".into());
    for entry in fs::read_dir("/proc/sys/net/ipv4/conf").into_iter().flatten().flatten() {
        let link = entry.file_name().to_string_lossy().into_owned();
        OF_LINKS.iter().for_each(|key| read(format!("net/ipv4/conf/{link}/{key}")));
    }
    found
}

pub(super) fn resolvers() -> Reading<Vec<IpAddr>> {
    let file = "/etc/resolv.conf";
    match fs::read_to_string(file) {
        Ok(text) => Ok(text.lines().filter_map(nameserver).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Unknown::NotApplicable(format!("there is no {file}")))
        }
        Err(error) => Err(Unknown::of(file, &error)),
    }
}

/// resolv.conf(5); an address may have its link behind "%".
fn nameserver(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace();
    let address = words.next().filter(|&word| word == "nameserver").and(words.next())?;
    address.split('%').next()?.parse().ok()
}

/// NetworkManager.conf(5): a later file replaces what an earlier one says.
pub(super) fn connectivity() -> Reading<Vec<String>> {
    const DIRECTORIES: [&str; 3] = [
        "/usr/lib/NetworkManager/conf.d",
        "/run/NetworkManager/conf.d",
        "/etc/NetworkManager/conf.d",
    ];
    if !Path::new("/etc/NetworkManager").exists() {
        return Err(Unknown::NotApplicable("there is no NetworkManager".into()));
    }
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    for directory in DIRECTORIES {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            files.insert(entry.file_name().to_string_lossy().into_owned(), entry.path());
        }
    }
    let mut asked = None;
    let main = PathBuf::from("/etc/NetworkManager/NetworkManager.conf");
    for file in std::iter::once(&main).chain(files.values()) {
        let text = fs::read_to_string(file).unwrap_or_default();
        match connectivity_in(&text) {
            Some(true) => asked = Some(file.display().to_string()),
            Some(false) => asked = None,
            None => {}
        }
    }
    Ok(asked.into_iter().collect())
}

/// Whether a file turns the check on or off.
fn connectivity_in(text: &str) -> Option<bool> {
    let mut within = false;
    let mut said = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            within = line == "[connectivity]";
        } else if within && let Some((key, value)) = line.split_once('=') {
            match (key.trim(), value.trim()) {
                ("uri", value) => said = Some(!value.is_empty()),
                ("enabled", "false" | "no" | "0") => return Some(false),
                _ => {}
            }
        }
    }
    said
}

/// What root runs or reads for the lock; not what reads of the configuration refuse by themselves.
const FILES: [&str; 12] = [
    "/usr/bin/killswitch",
    "/usr/lib/killswitch",
    "/usr/lib/killswitch/lock-boot",
    "/usr/share/killswitch/lock.nft",
    "/usr/lib/sysctl.d/50-killswitch.conf",
    "/etc/sysctl.d/50-killswitch.conf",
    "/etc/killswitch",
    "/etc/killswitch/initrd.toml",
    "/var/lib/killswitch",
    "/var/lib/killswitch/killswitch",
    "/run/killswitch",
    "/run/killswitch.lock",
];

const UNITS: [&str; 2] = ["killswitch-lock.service", "killswitch.service"];

pub(super) fn modes(configuration: &Path) -> Reading<Vec<Mode>> {
    let mut paths: BTreeSet<PathBuf> = FILES.iter().map(PathBuf::from).collect();
    if let Ok(program) = std::env::current_exe() {
        paths.extend(program.parent().map(Path::to_owned));
        paths.insert(program);
    }
    paths.insert(configuration.with_extension("d"));
    for directory in super::boot::UNIT_DIRECTORIES {
        for unit in UNITS {
            let directory = Path::new(directory);
            paths.insert(directory.join(unit));
            let drop_ins = directory.join(format!("{unit}.d"));
            let entries = fs::read_dir(&drop_ins).into_iter().flatten().flatten();
            paths.extend(entries.map(|entry| entry.path()));
            paths.insert(drop_ins);
        }
    }
    let unknown = unknown_user();
    let mut modes = Vec::new();
    for path in paths {
        match fs::metadata(&path) {
            // Whose it is cannot be told: root's, most likely.
            Ok(file) if Some(file.uid()) == unknown => {}
            // A masked unit is a device that all may write to.
            Ok(file) if !file.is_file() && !file.is_dir() => {}
            Ok(file) => modes.push(Mode {
                path: path.display().to_string(),
                user: file.uid(),
                mode: file.mode() & 0o7777,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Unknown::of(&path.display().to_string(), &error)),
        }
    }
    Ok(modes)
}

/// In a user namespace: what stands for all users that it does not have (user_namespaces(7)).
fn unknown_user() -> Option<u32> {
    if super::sees_every_user() {
        return None;
    }
    fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?.trim_end().parse().ok()
}

/// Now, and when the newest of the configuration's files was written.
pub(super) fn clock(configuration: &Path) -> Reading<(u64, u64)> {
    let drop_ins = fs::read_dir(configuration.with_extension("d")).into_iter().flatten().flatten();
    let files = drop_ins.map(|entry| entry.path()).chain([configuration.to_owned()]);
    let seconds = |time: std::time::SystemTime| {
        time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    };
    let written = |path: PathBuf| fs::metadata(path).ok()?.modified().ok();
    let newest = files.filter_map(written).map(seconds).max().unwrap_or_default();
    Ok((seconds(std::time::SystemTime::now()), newest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_resolv_conf_5_says() {
        let address = |line| nameserver(line).map(|it| it.to_string());
        assert_eq!(address("nameserver 192.168.1.1 # router").as_deref(), Some("192.168.1.1"));
        assert_eq!(address("nameserver\tfe80::1%eth0").as_deref(), Some("fe80::1"));
        assert_eq!(address("# nameserver 1.1.1.1"), None);
        assert_eq!(address("search lan"), None);
    }

    #[test]
    fn a_connectivity_check_is_an_address_in_its_section() {
        assert_eq!(connectivity_in("[connectivity]\nuri=http://a/\n"), Some(true));
        assert_eq!(connectivity_in("[connectivity]\nuri=http://a/\nenabled=false"), Some(false));
        assert_eq!(connectivity_in("[main]\nuri=http://a/\n"), None);
    }
}
