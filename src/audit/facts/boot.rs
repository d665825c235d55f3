//! What happens at the next boot: systemd's units, and the initrd.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Reading, Unknown};

/// Where systemd looks for units; the first that has one decides (systemd.unit(5)).
pub(super) const UNIT_DIRECTORIES: [&str; 7] = [
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/run/systemd/generator.late",
];
const LOCK: &str = "killswitch-lock.service";
const DAEMON: &str = "killswitch.service";

/// Whether a unit is started at boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// Something wants it.
    Enabled,
    /// Nothing does.
    #[default]
    Disabled,
    /// It cannot be started.
    Masked,
}

/// A unit that may use the network before the lock is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Early {
    /// Its name.
    pub unit: String,
    /// The program that uses the network.
    pub program: String,
}

/// What systemd does at boot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Units {
    /// killswitch-lock.service.
    pub lock: State,
    /// killswitch.service.
    pub daemon: State,
    /// killswitch-lock.service has failed.
    pub lock_failed: bool,
    /// nftables.service is started, and /etc/nftables.conf flushes the ruleset.
    pub nftables_flush: bool,
    /// Units that nothing orders after the lock.
    pub early: Vec<Early>,
}

/// What runs before systemd's own boot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Initrd {
    /// /etc/killswitch/initrd.toml is there.
    pub locked: bool,
    /// What brings the network up in it: a word of the kernel's command line, or a file.
    pub network: Vec<String>,
}

pub(super) fn units() -> Reading<Units> {
    // sd_booted(3).
    if !Path::new("/run/systemd/system").is_dir() {
        return Err(Unknown::NotApplicable("systemd does not run this machine".into()));
    }
    let directories = UNIT_DIRECTORIES.map(PathBuf::from);
    let enabled = enabled(&directories);
    let state = |unit: &str| match (is_masked(&directories, unit), enabled.contains(unit)) {
        (true, _) => State::Masked,
        (false, true) => State::Enabled,
        (false, false) => State::Disabled,
    };
    let flushes = fs::read_to_string("/etc/nftables.conf").is_ok_and(|text| flushes(&text));
    Ok(Units {
        lock: state(LOCK),
        daemon: state(DAEMON),
        lock_failed: has_failed(LOCK),
        nftables_flush: flushes && state("nftables.service") == State::Enabled,
        early: early(&directories, &enabled),
    })
}

fn flushes(rules: &str) -> bool {
    rules.lines().any(|line| line.trim_start().starts_with("flush ruleset"))
}

/// Without an answer it has not: that the lock holds is read from the kernel.
fn has_failed(unit: &str) -> bool {
    let asked = Command::new("systemctl")
        .args(["is-failed", "--quiet", unit])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

/// What is started at boot, by what wants or requires it. Whether that is itself started is not
/// looked at: it is better to name a unit too many.
fn enabled(directories: &[PathBuf]) -> BTreeSet<String> {
    let mut units = BTreeSet::new();
    for entry in directories.iter().filter_map(|it| fs::read_dir(it).ok()).flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".wants") || name.ends_with(".requires") {
            let wanted = fs::read_dir(entry.path()).into_iter().flatten().flatten();
            units.extend(wanted.map(|it| it.file_name().to_string_lossy().into_owned()));
        }
    }
    units
}

fn is_masked(directories: &[PathBuf], unit: &str) -> bool {
    let file = directories.iter().map(|it| it.join(unit)).find(|it| it.symlink_metadata().is_ok());
    file.is_some_and(|file| fs::read_link(file).is_ok_and(|to| to == Path::new("/dev/null")))
}

/// The text of a unit and its drop-ins.
fn text_of(directories: &[PathBuf], unit: &str) -> Option<String> {
    let mut text = directories.iter().find_map(|it| fs::read_to_string(it.join(unit)).ok())?;
    let mut drop_ins = BTreeMap::new();
    for directory in directories.iter().rev() {
        let entries = fs::read_dir(directory.join(format!("{unit}.d"))).into_iter().flatten();
        drop_ins.extend(entries.flatten().map(|it| (it.file_name(), it.path())));
    }
    for path in drop_ins.values() {
        text += "\n[Unit]\n";
        text += &fs::read_to_string(path).unwrap_or_default();
    }
    Some(text)
}

fn early(directories: &[PathBuf], enabled: &BTreeSet<String>) -> Vec<Early> {
    let lock = text_of(directories, LOCK).unwrap_or_default();
    let after_lock = values(&lock, "Before");
    enabled
        .iter()
        .filter(|unit| unit.ends_with(".service") && !after_lock.contains(unit.as_str()))
        .filter(|unit| ![LOCK, DAEMON].contains(&unit.as_str()))
        .filter_map(|unit| {
            let program = early_program(&text_of(directories, unit)?)?;
            Some(Early { unit: unit.clone(), program })
        })
        .collect()
}

/// The program by which a unit uses the network although nothing orders it after the lock.
///
/// Not what only filters (nft, iptables), nor what only listens.
fn early_program(text: &str) -> Option<String> {
    const TOOLS: [&str; 18] = [
        "arping",
        "curl",
        "dhclient",
        "dhcpcd",
        "ifconfig",
        "ifup",
        "ip",
        "iwconfig",
        "nc",
        "ncat",
        "netcat",
        "ntpdate",
        "ping",
        "rsync",
        "ssh",
        "udhcpc",
        "wget",
        "wpa_supplicant",
    ];
    /// Units that come after the lock.
    const LATER: [&str; 9] = [
        "killswitch-lock.service",
        "network-pre.target",
        "network.target",
        "network-online.target",
        "sysinit.target",
        "basic.target",
        "systemd-networkd.service",
        "NetworkManager.service",
        "networking.service",
    ];
    let text = &joined(text);
    let early =
        values(text, "DefaultDependencies").iter().any(|it| ["no", "false", "0"].contains(it));
    if !early || LATER.iter().any(|unit| values(text, "After").contains(unit)) {
        return None;
    }
    let commands = text.lines().filter_map(|line| {
        let (key, value) = line.trim().split_once('=')?;
        ["ExecStart", "ExecStartPre", "ExecStartPost", "ExecCondition"]
            .contains(&key.trim())
            .then_some(value)
    });
    let words = commands.flat_map(|it| it.split([' ', '\t', ';', '&', '|', '"', '\'', '(', ')']));
    let mut names = words
        .filter_map(|word| word.trim_start_matches(['-', '@', '+', '!', ':']).rsplit('/').next());
    names.find(|name| TOOLS.contains(name)).map(str::to_owned)
}

/// Without comments, and with lines that go on after a backslash as one (systemd.syntax(7)).
fn joined(text: &str) -> String {
    let is_comment = |line: &&str| line.trim_start().starts_with(['#', ';']);
    text.lines().filter(|line| !is_comment(line)).fold(String::new(), |text, line| {
        match line.strip_suffix('\\') {
            Some(line) => text + line + " ",
            None => text + line + "\n",
        }
    })
}

/// The words of every line of this key.
fn values<'a>(text: &'a str, key: &str) -> BTreeSet<&'a str> {
    let lines = text.lines().filter_map(|line| line.trim().split_once('='));
    lines
        .filter(|(name, _)| name.trim() == key)
        .flat_map(|(_, value)| value.split_whitespace())
        .collect()
}

/// Debian's way to bring the network up in an initrd, and dracut's.
pub(super) fn initrd() -> Reading<Initrd> {
    const HOOKS: [(&str, &str); 3] = [
        ("/usr/share/initramfs-tools/hooks/dropbear", "/etc/dropbear/initramfs"),
        ("/usr/share/initramfs-tools/hooks/dropbear", "/etc/dropbear-initramfs"),
        ("/usr/share/initramfs-tools/hooks/clevis", "/usr/share/initramfs-tools/hooks/clevis"),
    ];
    const CONFIGURATIONS: &str = "/etc/initramfs-tools/conf.d";
    let command_line = fs::read_to_string("/proc/cmdline")
        .map_err(|error| Unknown::of("/proc/cmdline", &error))?;
    let mut network: Vec<String> = network_words(&command_line)
        .map(|word| format!("{word} on the kernel's command line"))
        .collect();
    for (hook, sign) in HOOKS {
        if Path::new(hook).exists() && Path::new(sign).exists() {
            network.push(hook.to_owned());
        }
    }
    let files = fs::read_dir(CONFIGURATIONS).into_iter().flatten().flatten().map(|it| it.path());
    for file in files.chain(["/etc/initramfs-tools/initramfs.conf".into()]) {
        let text = fs::read_to_string(&file).unwrap_or_default();
        if text.lines().any(brings_network_up) {
            network.push(file.display().to_string());
        }
    }
    network.dedup();
    Ok(Initrd { locked: Path::new("/etc/killswitch/initrd.toml").exists(), network })
}

/// initramfs-tools(7), dracut.cmdline(7).
fn network_words(command_line: &str) -> impl Iterator<Item = &str> {
    const OFF: [&str; 3] = ["ip=off", "ip=none", "rd.neednet=0"];
    let asks = |word: &&str| word.starts_with("ip=") || word.starts_with("rd.neednet");
    command_line.split_whitespace().filter(asks).filter(|word| !OFF.contains(word))
}

/// initramfs.conf(5): IP= of a file that everything reads.
fn brings_network_up(line: &str) -> bool {
    line.trim()
        .strip_prefix("IP=")
        .is_some_and(|value| !["", "off", "none"].contains(&value.trim_matches(['"', '\''])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_early_if_nothing_orders_it() {
        let unit = |lines: &str| early_program(&format!("[Unit]\n{lines}"));
        let runs = "[Service]\nExecStart=-/usr/sbin/ip link set eth0 up";
        assert_eq!(unit(&format!("DefaultDependencies=no\n{runs}")).as_deref(), Some("ip"));
        assert_eq!(unit(runs), None, "it comes after sysinit.target");
        assert_eq!(
            unit(&format!("DefaultDependencies=no\nAfter=a network-pre.target\n{runs}")),
            None
        );
        assert_eq!(unit("DefaultDependencies=no\n[Service]\nExecStart=/usr/sbin/nft -f x"), None);
        let shell = "DefaultDependencies=no\n[Service]\nExecStart=/bin/sh -c 'a; curl x'";
        assert_eq!(unit(shell).as_deref(), Some("curl"));
        let long =
            "DefaultDependencies=no\n[Service]\nExecStart=/bin/sh -c 'a; \\\n# no \\\n curl x'";
        assert_eq!(unit(long).as_deref(), Some("curl"));
        let after = format!("DefaultDependencies=no\nAfter=a \\\n network-pre.target\n{runs}");
        assert_eq!(unit(&after), None);
    }

    #[test]
    fn the_command_line_brings_the_network_up() {
        assert_eq!(network_words("root=/dev/vda ip=dhcp quiet").collect::<Vec<_>>(), ["ip=dhcp"]);
        assert_eq!(network_words("ip=off rd.neednet=0 zip=1").count(), 0);
        assert_eq!(network_words("rd.neednet=1").count(), 1);
        assert!(brings_network_up("IP=192.168.1.2::192.168.1.1:255.255.255.0"));
        assert!(!brings_network_up("IP=\"\"") && !brings_network_up("# IP=dhcp"));
    }

    #[test]
    fn nftables_flushes_what_a_line_says() {
        assert!(flushes("#!/usr/sbin/nft -f\n\nflush ruleset\n"));
        assert!(!flushes("# flush ruleset\ntable inet filter {}"));
    }
}
