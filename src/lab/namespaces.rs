//! Leaves the machine's own network before anything else happens, and refuses to work in it.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::OnceLock;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::error::{Context, Error, Result};

/// Which network namespace a thread is in: the text of its link in /proc, `net:[4026531840]`.
pub type Identity = String;

/// The namespace that the program was started in, recorded on leaving it.
static LEFT: OnceLock<Identity> = OnceLock::new();

/// Moves the process into network and mount namespaces of its own.
///
/// To be called first in `main`, while there is one thread: only the caller and the threads it
/// starts afterwards are moved. Root needs no more; anyone else becomes root of a user namespace.
/// /run is then an empty tmpfs, /var/lib another, /sys shows the new namespace's links, and /dev/net/tun can be
/// opened if the caller may create it (see [`tun_device`]).
///
/// # Errors
/// What forbids it, and what to do about it. Nothing was changed outside the namespaces.
pub fn enter_private() -> Result<()> {
    if LEFT.get().is_some() {
        return Ok(());
    }
    let before = current()?;
    unshare_everything()?;
    let after = current()?;
    if after == before {
        return Err(Error::new("the kernel left us in the network namespace we started in"));
    }
    let _ = LEFT.set(before);
    assert_private()?;
    set_up_mounts()
}

/// Fails unless the calling thread has left the machine's own network.
///
/// # Errors
/// If it has not, or if [`enter_private`] was never called.
pub fn assert_private() -> Result<()> {
    let refusal = "refusing to touch the machine's own network";
    let Some(left) = LEFT.get() else {
        return Err(Error::new(format!("{refusal}: lab::namespaces::enter_private comes first")));
    };
    let here = current()?;
    // Process 1 is readable by root only; the namespace that we left is known in any case.
    let first = fs::read_link("/proc/1/ns/net").ok().map(|link| link.display().to_string());
    if here == *left || Some(&here) == first.as_ref() {
        return Err(Error::new(format!("{refusal} ({here})")));
    }
    Ok(())
}

/// The network namespace of the calling thread.
///
/// # Errors
/// If /proc is not there.
pub fn current() -> Result<Identity> {
    let link = fs::read_link("/proc/thread-self/ns/net").during("/proc/thread-self/ns/net")?;
    Ok(link.display().to_string())
}

/// Whether tun devices can be made here.
///
/// # Errors
/// Why not, and what to do about it.
pub fn tun_device() -> Result<()> {
    let path = "/dev/net/tun";
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::new(format!(
            "{path}: {error}; the tunnel needs it. Load it with `modprobe tun`, and let everybody \
             open it as distributions do with `chmod 666 {path}`, or run this as root"
        ))),
    }
}

fn unshare_everything() -> Result<()> {
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if nix::unistd::geteuid().is_root() && unshare(own).is_ok() {
        return Ok(());
    }
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(own | CloneFlags::CLONE_NEWUSER).map_err(user_namespaces_forbidden)?;
    // Without this the kernel takes no gid_map from the unprivileged (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny").during("/proc/self/setgroups")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1")).map_err(|error| {
        // AppArmor lets the namespace be made and then takes its capabilities away.
        Error::new(format!("/proc/self/uid_map: {error}{}", user_namespace_advice()))
    })?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1")).during("/proc/self/gid_map")
}

fn user_namespaces_forbidden(error: nix::Error) -> Error {
    Error::new(format!(
        "this machine does not let us make a private network (unshare: {error}){}",
        user_namespace_advice()
    ))
}

fn user_namespace_advice() -> String {
    let is = |file: &str, value: &str| {
        fs::read_to_string(Path::new("/proc/sys").join(file))
            .is_ok_and(|content| content.trim() == value)
    };
    let setting = if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "kernel.apparmor_restrict_unprivileged_userns=0"
    } else if is("kernel/unprivileged_userns_clone", "0") {
        "kernel.unprivileged_userns_clone=1"
    } else if is("user/max_user_namespaces", "0") {
        "user.max_user_namespaces=10000"
    } else {
        return "; run it as root, or allow unprivileged user namespaces".into();
    };
    format!("; run it as root, or allow unprivileged user namespaces: `sysctl -w {setting}`")
}

fn set_up_mounts() -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .during("making the mounts private")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755"))
        .during("mounting /run")?;
    // Or the machine's own evidence would tell of the laboratory. What is mounted is not empty.
    mount(Some("tmpfs"), "/var/lib", Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755"))
        .during("mounting /var/lib")?;
    fs::create_dir("/var/lib/laboratory").during("/var/lib/laboratory")?;
    remount_sysfs();
    replace_tun_device();
    bring_loopback_up()
}

/// Programs that read /sys/class/net see the private links. Best effort: a container may not let
/// us, and everything here speaks netlink. The control groups stay: rules may match on them.
fn remount_sysfs() {
    let none = None::<&str>;
    let (groups, kept) = ("/sys/fs/cgroup", "/run/cgroup");
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    let saved = fs::create_dir(kept).is_ok() && mount(Some(groups), kept, none, bind, none).is_ok();
    if mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).is_ok() && saved {
        let _ = mount(Some(kept), groups, none, bind, none);
    }
    if saved {
        let _ = umount2(kept, MntFlags::MNT_DETACH);
    }
}

/// Root may have a tun device of its own, in a tmpfs that nobody else sees. Nothing is reported:
/// not everything needs one, and [`tun_device`] explains.
fn replace_tun_device() {
    let usable = fs::metadata("/dev/net/tun").is_ok_and(|file| file.file_type().is_char_device())
        && tun_device().is_ok();
    let directory = "/dev/net";
    if usable || !Path::new(directory).is_dir() {
        return;
    }
    let made = "/run/killswitch-lab-tun";
    // 10, 200: Documentation/admin-guide/devices.txt
    if mknod(made, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(10, 200)).is_err() {
        return;
    }
    let none = None::<&str>;
    if mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::MS_NOSUID, none).is_ok()
        && fs::write("/dev/net/tun", "").is_ok()
    {
        let _ = mount(Some(made), "/dev/net/tun", none, MsFlags::MS_BIND, none);
    }
}

fn bring_loopback_up() -> Result<()> {
    super::host::run_here("ip", &["link", "set", "lo", "up"]).map(drop)
}
