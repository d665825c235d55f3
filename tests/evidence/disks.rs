//! A full disk and one that cannot be written: the lock does not care, and nothing is lost.

use std::fs;
use std::os::fd::AsRawFd;

use killswitch::evidence::chain;
use killswitch::lab::harness::{Failed, Outcome, Test, eventually};
use killswitch::lab::{Daemon, Lab, Result, setup};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use serde_json::json;

use crate::journal::{DIRECTORY, PENDING, begin_anew, events, files, last};
use crate::machine::Machine;

pub const TESTS: &[Test] = &[
    ("disks::a_full_disk_costs_no_command_anything", full_for_commands),
    ("disks::a_full_disk_costs_the_daemon_nothing", full_for_the_daemon),
    ("disks::a_disk_that_cannot_be_written", read_only),
    ("disks::memory_that_is_full", full_memory),
    ("disks::a_writer_that_hangs_keeps_nobody_waiting", hung),
    ("disks::a_disk_that_never_answers_keeps_nobody_waiting", never_answers),
    ("disks::a_long_journal_takes_little_memory", long),
];

/// A disk of its own for the journal; gone when dropped.
struct Disk(&'static str);

impl Disk {
    fn new(place: &'static str, size: &str) -> Result<Self> {
        fs::create_dir_all(place).map_err(killswitch::lab::Error::new)?;
        run(&["mount", "-t", "tmpfs", "-o", size, "tmpfs", place])?;
        Ok(Disk(place))
    }

    fn of_the_journal(size: &str) -> Result<Self> {
        Disk::new("/var/lib/killswitch", size)
    }

    fn fill(&self) {
        let _ = fs::write(format!("{}/filler", self.0), vec![0; 4 << 20]);
        let more = fs::write(format!("{}/more", self.0), [0; 4096]);
        assert!(more.is_err(), "the disk is not full");
    }

    fn empty(&self) {
        for name in ["filler", "more"] {
            let _ = fs::remove_file(format!("{}/{name}", self.0));
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run(&["umount", "-l", self.0]);
    }
}

/// A file system of which nobody serves what is asked: whoever asks waits for as long as this lives.
struct Hanging {
    server: Option<fs::File>,
    place: &'static str,
}

impl Hanging {
    fn new(place: &'static str) -> Result<Self> {
        killswitch::lab::namespaces::assert_private()?;
        let server = fs::File::options().read(true).write(true).open("/dev/fuse");
        let server = server.map_err(killswitch::lab::Error::new)?;
        let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
        let options =
            format!("fd={},rootmode=40000,user_id={user},group_id={group}", server.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        fs::create_dir_all(place).map_err(killswitch::lab::Error::new)?;
        mount(Some("nobody"), place, Some("fuse"), flags, Some(options.as_str()))
            .map_err(killswitch::lab::Error::new)?;
        Ok(Hanging { server: Some(server), place })
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        // Whoever waits gets an error now.
        self.server = None;
        let _ = run(&["umount", "-l", self.place]);
    }
}

/// In the mounts of this process, which are private.
fn run(words: &[&str]) -> Result<()> {
    killswitch::lab::namespaces::assert_private()?;
    let status = std::process::Command::new(words[0]).args(&words[1..]).status();
    match status.map_err(killswitch::lab::Error::new)?.success() {
        true => Ok(()),
        false => Err(killswitch::lab::Error::new(format!("{words:?} failed"))),
    }
}

fn full_for_commands() -> Outcome {
    let machine = Machine::new()?;
    begin_anew()?;
    let disk = Disk::of_the_journal("size=64k")?;
    machine.killswitch(&["lock"])?.exits(0);
    disk.fill();
    for number in 0..100 {
        let reason = format!("{number} {}", "x".repeat(900));
        let unlocked = machine.killswitch(&["unlock", "--yes", "--reason", &reason])?.exits(0);
        assert!(unlocked.err.is_empty(), "{unlocked:?}");
    }
    machine.killswitch(&["lock"])?.exits(0);
    machine.killswitch(&["status"])?.exits(10);
    disk.empty();
    // There is not room for all of it: the rest waits on.
    let unlocked = || Ok::<_, Failed>(events()?.iter().filter(|it| *it == "unlock").count());
    machine.killswitch(&["lock"])?.exits(0);
    machine.killswitch(&["evidence", "verify"])?.exits(0);
    assert!(unlocked()? < 100);
    run(&["mount", "-o", "remount,size=1m", "/var/lib/killswitch"])?;
    machine.killswitch(&["lock"])?.exits(0);
    machine.killswitch(&["evidence", "verify"])?.exits(0);
    assert_eq!(unlocked()?, 100);
    Ok(())
}

fn full_for_the_daemon() -> Outcome {
    let lab = Lab::with_servers()?;
    begin_anew()?;
    let configuration = setup::write_configuration(&lab, "")?;
    let program = setup::program()?;
    let disk = Disk::of_the_journal("size=256k")?;
    let _daemon = Daemon::start_and_wait(&lab, &program, &configuration)?;
    let ask = |arguments: &[&str]| setup::killswitch(&lab, &program, &configuration, arguments);
    eventually("the start is recorded", || Ok(events()?.contains(&"daemon_started".to_owned())))?;
    disk.fill();
    let degraded = || -> Result<bool> {
        let text = ask(&["status"])?.stdout;
        Ok(String::from_utf8_lossy(&text).contains("evidence waits in memory"))
    };
    assert!(!degraded()?);
    // Until a file of the journal needs another page.
    for _ in 0..20 {
        assert!(ask(&["reload", "--yes"])?.status.success());
    }
    assert!(ask(&["unlock", "--yes"])?.status.success());
    assert_eq!(ask(&["status"])?.status.code(), Some(20));
    assert!(ask(&["lock", "--yes"])?.status.success());
    eventually("it is reported", degraded)?;
    assert_ne!(ask(&["status"])?.status.code(), Some(20));
    disk.empty();
    for event in ["unlock", "degraded", "degraded_ended"] {
        eventually(&format!("{event} is recorded"), || Ok(events()?.contains(&event.to_owned())))?;
    }
    assert!(!events()?.contains(&"lost".to_owned()));
    let verified = ask(&["evidence", "verify"])?;
    assert!(verified.status.success(), "{verified:?}");
    Ok(())
}

fn read_only() -> Outcome {
    let machine = Machine::new()?;
    begin_anew()?;
    let _disk = Disk::of_the_journal("size=64k")?;
    run(&["mount", "-o", "remount,ro", "/var/lib/killswitch"])?;
    let locked = machine.killswitch(&["--json", "lock"])?.exits(0);
    assert!(locked.err.is_empty() && locked.json()["degraded"] == json!([]), "{locked:?}");
    machine.killswitch(&["unlock", "--yes"])?.exits(0);
    assert!(fs::read_to_string(PENDING).is_ok() || fs::metadata(DIRECTORY).is_err());
    run(&["mount", "-o", "remount,rw", "/var/lib/killswitch"])?;
    machine.killswitch(&["lock"])?.exits(0);
    assert_eq!(events()?, ["command", "lock", "command", "unlock", "command", "lock"]);
    machine.killswitch(&["evidence", "verify"])?.exits(0);
    Ok(())
}

/// Where not even memory takes it, that is said, and the command does what it does.
fn full_memory() -> Outcome {
    let machine = Machine::new()?;
    begin_anew()?;
    let memory = Disk::new("/run/killswitch", "size=64k")?;
    memory.fill();
    let locked = machine.killswitch(&["lock"])?.exits(0);
    assert!(locked.err.contains("not recorded as evidence"), "{locked:?}");
    machine.killswitch(&["status"])?.exits(10);
    memory.empty();
    machine.killswitch(&["unlock", "--yes"])?.exits(0);
    assert_eq!(last("unlock")?["changed"], true);
    Ok(())
}

/// It never lets go here: whoever waited for it would not end.
fn hung() -> Outcome {
    let lab = Lab::with_servers()?;
    begin_anew()?;
    let configuration = setup::write_configuration(&lab, "")?;
    let program = setup::program()?;
    let ask = |arguments: &[&str]| setup::killswitch(&lab, &program, &configuration, arguments);
    assert!(ask(&["lock", "--yes"])?.status.success());
    let before = events()?;
    let turn = fs::OpenOptions::new().write(true).open("/run/killswitch/evidence.lock")?;
    let turn = Flock::lock(turn, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    assert!(ask(&["unlock", "--yes"])?.status.success());
    assert_eq!(ask(&["status"])?.status.code(), Some(20));
    let daemon = Daemon::start_and_wait(&lab, &program, &configuration)?;
    for arguments in [&["unlock", "--yes"][..], &["lock", "--yes"], &["reload", "--yes"]] {
        assert!(ask(arguments)?.status.success());
    }
    assert_eq!(events()?, before);
    drop(turn);
    eventually("all is recorded", || {
        let events = events()?;
        let has = |event: &str| events.iter().filter(|it| *it == event).count();
        Ok((has("unlock"), has("reloaded"), has("daemon_started")) == (2, 2, 1))
    })?;
    drop(daemon);
    assert!(ask(&["evidence", "verify"])?.status.success());
    Ok(())
}

/// An NFS server that is gone, a disk that dies: nothing of the lock waits for it, and no command for
/// ever.
fn never_answers() -> Outcome {
    let lab = Lab::with_servers()?;
    begin_anew()?;
    let configuration = setup::write_configuration(&lab, "")?;
    let program = setup::program()?;
    let disk = Hanging::new("/var/lib/killswitch")?;
    let words = |path: &std::path::Path| path.display().to_string();
    let (program_words, file) = (words(&program), words(&configuration));
    let ask = |arguments: &[&str]| {
        let line = ["300", &program_words, "--config", &file];
        lab.client.output("timeout", &[&line[..], arguments].concat())
    };
    for (arguments, state) in [(&["lock", "--yes"][..], 10), (&["unlock", "--yes"], 20)] {
        assert_eq!(ask(arguments)?.status.code(), Some(0), "{arguments:?}");
        assert_eq!(ask(&["status"])?.status.code(), Some(state), "{arguments:?}");
    }
    let daemon = Daemon::start_and_wait(&lab, &program, &configuration)?;
    for (arguments, open) in [
        (&["unlock", "--yes"][..], true),
        (&["lock", "--yes"], false),
        (&["reload", "--yes"], false),
    ] {
        assert_eq!(ask(arguments)?.status.code(), Some(0), "{arguments:?}");
        assert_eq!(ask(&["status"])?.status.code() == Some(20), open, "{arguments:?}");
    }
    drop(daemon);
    drop(disk);
    assert!(ask(&["lock", "--yes"])?.status.success());
    let unlocked = events()?.iter().filter(|it| *it == "unlock").count();
    assert_eq!(unlocked, 2, "{:?}", events()?);
    assert!(ask(&["evidence", "verify"])?.status.success());
    Ok(())
}

/// Twice as long as one can be, in less memory than its entries take in parts; a page is made in more.
fn long() -> Outcome {
    const BYTES: usize = 64 << 20;
    let machine = Machine::new()?;
    begin_anew()?;
    machine.killswitch(&["lock"])?.exits(0);
    let path = files().pop().ok_or("no journal")?;
    let mut lines = fs::read_to_string(&path)?;
    let last = lines.lines().last().ok_or("no entry")?.to_owned();
    let body = last.split_once("\",").ok_or("no entry")?.1.to_owned();
    let mut seq = lines.lines().count();
    let mut previous = chain::hash(format!("{last}\n").as_bytes());
    while lines.len() < BYTES {
        seq += 1;
        let line = format!("{{\"seq\":{seq},\"previous\":\"{previous}\",{body}\n");
        previous = chain::hash(line.as_bytes());
        lines += &line;
    }
    fs::write(&path, lines)?;
    let page = machine.path("page.html").display().to_string();
    for (arguments, kilobytes) in [
        (&["evidence", "show"][..], 250_000),
        (&["evidence", "verify"], 100_000),
        (&["evidence", "export", "--format", "html", "--output", &page], 650_000),
    ] {
        let mut shell = machine.command(arguments);
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &format!("ulimit -v {kilobytes}; exec \"$@\" >/dev/null"), "sh"]);
        command.arg(shell.get_program()).args(shell.get_args());
        shell = command;
        machine.run(shell)?.exits(0);
    }
    Ok(())
}
