//! `/etc/resolv.conf` replaced and given back, in mounts of this process alone. What keeps the
//! file on real machines is tried in a container: see `run` beside this.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use killswitch::dns::file::{Kept, ResolvConf};
use killswitch::dns::{Resolvers, Restarts, Restored, Used};
use killswitch::lab::harness::{self, Outcome};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

const THEIRS: &str = "# by hand\nnameserver 192.168.1.1\n";
const OURS: &str = "nameserver 10.64.0.1\n";
const ETC: &str = "/etc";

/// A tmpfs over a directory, for as long as this lives. The mounts are private to this process
/// (`lab::harness`); without that, mounting over /etc would be refused here.
struct Covered(PathBuf);

impl Covered {
    fn new(directory: &str, options: &str) -> Result<Self, harness::Failed> {
        killswitch::lab::namespaces::assert_private()?;
        mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some(options))?;
        Ok(Covered(directory.into()))
    }

    fn read_only(&self) -> Outcome {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        Ok(mount(None::<&str>, &self.0, None::<&str>, flags, None::<&str>)?)
    }
}

impl Drop for Covered {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn folder() -> Result<(TempDir, ResolvConf, PathBuf), harness::Failed> {
    let folder = TempDir::new()?;
    let (conf, file) = (ResolvConf::within(folder.path()), folder.path().join("resolv.conf"));
    Ok((folder, conf, file))
}

fn names(folder: &Path) -> Result<Vec<String>, harness::Failed> {
    let mut names: Vec<String> = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()?;
    names.sort();
    Ok(names)
}

fn an_ordinary_file_comes_back_as_it_was() -> Outcome {
    let (folder, conf, file) = folder()?;
    fs::write(&file, THEIRS)?;
    fs::set_permissions(&file, Permissions::from_mode(0o640))?;
    // In a user namespace there is nobody else to own it.
    let _ = chown(&file, Some(1234), Some(4321));
    let before = fs::metadata(&file)?;
    conf.replace(OURS)?;
    assert!(conf.holds(OURS));
    assert!(!conf.holds("nameserver 10.64.0.2\n"));
    assert_eq!(fs::metadata(&file)?.mode() & 0o777, 0o644);
    assert!(fs::read_to_string(&file)?.ends_with(OURS));
    assert_eq!(conf.restore()?, Kept::Original);
    let after = fs::metadata(&file)?;
    assert_eq!(fs::read_to_string(&file)?, THEIRS);
    let of = |it: &fs::Metadata| {
        (it.ino(), it.mode(), it.uid(), it.gid(), it.nlink(), it.mtime(), it.mtime_nsec())
    };
    assert_eq!(of(&after), of(&before));
    assert_eq!(names(folder.path())?, ["resolv.conf"]);
    assert_eq!(conf.restore()?, Kept::Nothing);
    Ok(())
}

fn a_link_comes_back_as_it_was() -> Outcome {
    for dangles in [false, true] {
        let (folder, conf, file) = folder()?;
        let target = folder.path().join("elsewhere");
        if !dangles {
            fs::write(&target, THEIRS)?;
        }
        symlink("elsewhere", &file)?;
        conf.replace(OURS)?;
        assert!(fs::symlink_metadata(&file)?.is_file());
        assert!(conf.holds(OURS));
        if !dangles {
            assert_eq!(fs::read_to_string(&target)?, THEIRS);
        }
        assert_eq!(conf.restore()?, Kept::Original);
        assert_eq!(fs::read_link(&file)?, Path::new("elsewhere"));
        assert_eq!(names(folder.path())?.contains(&"elsewhere".into()), !dangles);
    }
    Ok(())
}

fn no_file_is_no_file_again() -> Outcome {
    let (folder, conf, _) = folder()?;
    conf.replace(OURS)?;
    assert!(conf.holds(OURS));
    assert_eq!(conf.restore()?, Kept::Original);
    assert!(names(folder.path())?.is_empty());
    Ok(())
}

fn other_resolvers_take_our_place_and_the_first_original_comes_back() -> Outcome {
    let (_folder, conf, file) = folder()?;
    fs::write(&file, THEIRS)?;
    conf.replace(OURS)?;
    conf.replace("nameserver fd00:64::1\n")?;
    assert!(conf.holds("nameserver fd00:64::1\n"));
    assert_eq!(conf.restore()?, Kept::Original);
    assert_eq!(fs::read_to_string(&file)?, THEIRS);
    Ok(())
}

/// What a daemon leaves that is killed between any two steps, and what the next one makes of it.
fn a_crash_anywhere_is_mended() -> Outcome {
    let steps: [fn(&Path) -> std::io::Result<()>; 3] =
        [killed_after_keeping, killed_after_writing, killed_after_replacing];
    for (step, leave) in steps.iter().enumerate() {
        for sets_again in [false, true] {
            let (folder, _, file) = folder()?;
            fs::write(&file, THEIRS)?;
            leave(folder.path())?;
            // Another process knows nothing but the directory.
            let conf = ResolvConf::within(folder.path());
            if sets_again {
                conf.replace(OURS)?;
                assert!(conf.holds(OURS), "{step}");
            }
            assert_eq!(conf.restore()?, Kept::Original, "{step}");
            assert_eq!(fs::read_to_string(&file)?, THEIRS, "{step}");
            assert_eq!(names(folder.path())?, ["resolv.conf"], "{step}");
        }
    }
    Ok(())
}

fn killed_after_keeping(folder: &Path) -> std::io::Result<()> {
    fs::hard_link(folder.join("resolv.conf"), folder.join("resolv.conf.before-killswitch"))
}

fn killed_after_writing(folder: &Path) -> std::io::Result<()> {
    killed_after_keeping(folder)?;
    fs::write(folder.join(".resolv.conf.killswitch"), "# Written by kills")
}

fn killed_after_replacing(folder: &Path) -> std::io::Result<()> {
    ResolvConf::within(folder).replace(OURS).map_err(std::io::Error::other)
}

fn what_somebody_else_wrote_meanwhile_stays() -> Outcome {
    type Change = fn(&Path) -> std::io::Result<()>;
    let changes: [Change; 4] = [
        |file| fs::write(file, "nameserver 172.16.0.1\n"),
        |file| {
            fs::write(file.with_extension("dhclient"), "nameserver 172.16.0.1\n")?;
            fs::rename(file.with_extension("dhclient"), file)
        },
        // Ours, but for a line at its end.
        |file| fs::write(file, fs::read_to_string(file)? + "nameserver 172.16.0.1\n"),
        |file| fs::remove_file(file),
    ];
    for (number, change) in changes.iter().enumerate() {
        let (folder, conf, file) = folder()?;
        fs::write(&file, THEIRS)?;
        conf.replace(OURS)?;
        change(&file)?;
        let changed = fs::read_to_string(&file).ok();
        assert!(!conf.holds(OURS), "{number}");
        assert_eq!(conf.restore()?, Kept::Foreign, "{number}");
        assert_eq!(fs::read_to_string(&file).ok(), changed, "{number}");
        assert!(!folder.path().join("resolv.conf.before-killswitch").exists(), "{number}");
        // Set again instead, theirs is what comes back.
        conf.replace(OURS)?;
        change(&file)?;
        let changed = fs::read_to_string(&file).ok();
        conf.replace(OURS)?;
        assert!(conf.holds(OURS), "{number}");
        assert_eq!(conf.restore()?, Kept::Original, "{number}");
        assert_eq!(fs::read_to_string(&file).ok(), changed, "{number}");
    }
    Ok(())
}

fn a_lost_original_is_said() -> Outcome {
    let (folder, conf, file) = folder()?;
    fs::write(&file, THEIRS)?;
    conf.replace(OURS)?;
    fs::remove_file(folder.path().join("resolv.conf.before-killswitch"))?;
    let error = conf.restore().expect_err("an error");
    assert!(error.to_string().contains("before-killswitch is gone"), "{error}");
    assert!(conf.holds(OURS));
    Ok(())
}

fn a_read_only_etc_is_an_error_and_stays_as_it_is() -> Outcome {
    let etc = Covered::new(ETC, "mode=0755")?;
    fs::write("/etc/resolv.conf", THEIRS)?;
    etc.read_only()?;
    let error = wait(resolvers(&[], "10.64.0.1").set(1)).expect_err("an error");
    assert!(error.to_string().contains("Read-only file system"), "{error}");
    assert!(!wait(resolvers(&[], "10.64.0.1").is_set()));
    assert_eq!(fs::read_to_string("/etc/resolv.conf")?, THEIRS);
    assert_eq!(names(Path::new(ETC))?, ["resolv.conf"]);
    // Nothing was set, so nothing is to be restored.
    assert_eq!(wait(resolvers(&[], "10.64.0.1").restore())?, Restored::AsBefore);
    Ok(())
}

/// Pages, inodes: either can run out.
fn a_full_disk_is_an_error_and_never_half_a_file() -> Outcome {
    for (options, fill) in [("size=8k,mode=0755", true), ("nr_inodes=3,mode=0755", false)] {
        let _etc = Covered::new(ETC, options)?;
        fs::write("/etc/resolv.conf", THEIRS)?;
        if fill {
            let _ = fs::write("/etc/filler", vec![0; 64 << 10]);
        } else {
            fs::write("/etc/filler", "")?;
        }
        let resolvers = resolvers(&[], "10.64.0.1");
        let error = wait(resolvers.set(1)).expect_err(options);
        assert!(error.to_string().contains("No space left on device"), "{error}");
        assert_eq!(fs::read_to_string("/etc/resolv.conf")?, THEIRS);
        assert_eq!(names(Path::new(ETC))?, ["filler", "resolv.conf"]);
        // With room again it works; and restoring needs none.
        fs::remove_file("/etc/filler")?;
        let used = wait(resolvers.set(1));
        if fill {
            assert_eq!(used?, Used::File);
            let _ = fs::write("/etc/filler", vec![0; 64 << 10]);
            assert_eq!(wait(resolvers.restore())?, Restored::AsBefore);
            assert_eq!(fs::read_to_string("/etc/resolv.conf")?, THEIRS);
        }
    }
    Ok(())
}

/// No bus, no resolvconf: its keeper's file is replaced all the same, and given back.
fn without_its_keeper_the_file_is_replaced() -> Outcome {
    for theirs in ["nameserver 127.0.0.53\n", "# Generated by NetworkManager\n", THEIRS] {
        let _etc = Covered::new(ETC, "mode=0755")?;
        fs::write("/etc/resolv.conf", theirs)?;
        let resolvers = resolvers(&["example.com", "example.net"], "fd00:64::1");
        assert!(!wait(resolvers.is_set()));
        assert_eq!(wait(resolvers.set(1))?, Used::File);
        assert!(wait(resolvers.is_set()));
        let text = fs::read_to_string("/etc/resolv.conf")?;
        assert!(
            text.ends_with("\nnameserver fd00:64::1\nsearch example.com example.net\n"),
            "{text}"
        );
        assert_eq!(wait(resolvers.set(1))?, Used::File);
        assert_eq!(wait(resolvers.restore())?, Restored::AsBefore);
        assert_eq!(wait(resolvers.restore())?, Restored::AsBefore);
        assert_eq!(fs::read_to_string("/etc/resolv.conf")?, theirs);
        assert_eq!(names(Path::new(ETC))?, ["resolv.conf"]);
    }
    Ok(())
}

fn no_resolvers_change_nothing() -> Outcome {
    let _etc = Covered::new(ETC, "mode=0755")?;
    fs::write("/etc/resolv.conf", THEIRS)?;
    let none = Resolvers { servers: Vec::new(), ..resolvers(&[], "10.64.0.1") };
    assert_eq!(wait(none.set(1))?, Used::Nothing);
    assert!(wait(none.is_set()));
    assert_eq!(names(Path::new(ETC))?, ["resolv.conf"]);
    assert_eq!(fs::read_to_string("/etc/resolv.conf")?, THEIRS);
    Ok(())
}

fn without_a_bus_there_is_nothing_to_listen_to() -> Outcome {
    assert!(wait(Restarts::listen()).is_err());
    Ok(())
}

/// A bus that accepts and never answers holds nobody up for long.
fn a_mute_bus_is_given_up() -> Outcome {
    let _etc = Covered::new(ETC, "mode=0755")?;
    fs::create_dir_all("/run/dbus")?;
    let listener = std::os::unix::net::UnixListener::bind("/run/dbus/system_bus_socket")?;
    fs::write("/etc/resolv.conf", "nameserver 127.0.0.53\n")?;
    let resolvers = resolvers(&[], "10.64.0.1");
    assert_eq!(wait(resolvers.set(1))?, Used::File);
    assert_eq!(wait(resolvers.restore())?, Restored::AsBefore);
    drop(listener);
    fs::remove_file("/run/dbus/system_bus_socket")?;
    Ok(())
}

fn resolvers(search: &[&str], server: &str) -> Resolvers {
    Resolvers {
        interface: "wg0".into(),
        servers: server.parse().into_iter().collect(),
        search: search.iter().map(ToString::to_string).collect(),
        state_dir: "/run/killswitch-dns".into(),
    }
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

fn main() -> std::process::ExitCode {
    harness::run(&[
        ("an_ordinary_file_comes_back_as_it_was", an_ordinary_file_comes_back_as_it_was),
        ("a_link_comes_back_as_it_was", a_link_comes_back_as_it_was),
        ("no_file_is_no_file_again", no_file_is_no_file_again),
        (
            "other_resolvers_take_our_place_and_the_first_original_comes_back",
            other_resolvers_take_our_place_and_the_first_original_comes_back,
        ),
        ("a_crash_anywhere_is_mended", a_crash_anywhere_is_mended),
        ("what_somebody_else_wrote_meanwhile_stays", what_somebody_else_wrote_meanwhile_stays),
        ("a_lost_original_is_said", a_lost_original_is_said),
        (
            "a_read_only_etc_is_an_error_and_stays_as_it_is",
            a_read_only_etc_is_an_error_and_stays_as_it_is,
        ),
        (
            "a_full_disk_is_an_error_and_never_half_a_file",
            a_full_disk_is_an_error_and_never_half_a_file,
        ),
        ("without_its_keeper_the_file_is_replaced", without_its_keeper_the_file_is_replaced),
        ("no_resolvers_change_nothing", no_resolvers_change_nothing),
        ("a_mute_bus_is_given_up", a_mute_bus_is_given_up),
        (
            "without_a_bus_there_is_nothing_to_listen_to",
            without_a_bus_there_is_nothing_to_listen_to,
        ),
    ])
}
