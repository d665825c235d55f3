//! A userspace WireGuard: a program of its own that outlives us.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Error, uapi};

/// An absolute path that is run instead of looking for a program: for the laboratory.
pub(super) const OVERRIDE: &str = "KILLSWITCH_WIREGUARD";
/// Those that take `-f INTERFACE` and serve the socket, best first.
const NAMES: [&str; 2] = ["wireguard-go", "boringtun-cli"];
/// Not $PATH: it runs as root.
const DIRECTORIES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// For a program to come up; a healthy one takes 20 ms.
const PATIENCE: Duration = Duration::from_secs(15);

/// The program to run.
pub(super) fn find() -> Result<PathBuf, Error> {
    let candidates = NAMES
        .iter()
        .flat_map(|name| DIRECTORIES.iter().map(move |directory| Path::new(directory).join(name)));
    candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| Error::NoProgram {
        searched: format!("{} in {}", NAMES.join(", "), DIRECTORIES.join(", ")),
    })
}

/// Those not yet reaped, whichever device they were started for.
static CHILDREN: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// Takes note of those that ended: until then they are zombies. One that was killed takes its time,
/// waiting for the kernel to be done with its link.
pub(super) fn reap() {
    let mut children = CHILDREN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
}

/// Starts a program, waits until it answers, and returns its process.
///
/// It gets no key, nothing of our environment, and no descriptor of ours, and is no part of our
/// process group: it lives on when we are killed.
pub(super) fn start(program: &Path, interface: &str) -> Result<u32, Error> {
    let not_started = |reason: String| Error::NotStarted { program: program.into(), reason };
    end(interface, false);
    make_place(interface).map_err(|error| not_started(format!("{}: {error}", uapi::DIRECTORY)))?;
    let said = Said::new().map_err(|error| not_started(error.to_string()))?;
    let mut child = Command::new(program)
        .args(["-f", interface])
        .env_clear()
        // boringtun otherwise becomes a user who may not mark packets.
        .env("WG_SUDO", "1")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said.writer().map_err(|error| not_started(error.to_string()))?)
        .process_group(0)
        .spawn()
        .map_err(|error| not_started(error.to_string()))?;
    let outcome = wait_until_it_answers(&mut child, interface);
    said.seal();
    match outcome {
        Ok(()) => {
            let process = child.id();
            CHILDREN.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(child);
            Ok(process)
        }
        Err(reason) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(not_started(format!("{reason}{}", said.read())))
        }
    }
}

fn wait_until_it_answers(child: &mut Child, interface: &str) -> Result<(), String> {
    let start = Instant::now();
    loop {
        let error = match uapi::get(interface) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        match child.try_wait() {
            Ok(Some(status)) => return Err(format!("it ended ({status})")),
            Ok(None) if start.elapsed() < PATIENCE => {}
            Ok(None) => return Err(format!("its socket does not answer ({error})")),
            Err(error) => return Err(error.to_string()),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The directory, and no socket of a program that is gone: some refuse to start over one.
fn make_place(interface: &str) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(uapi::DIRECTORY) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match fs::remove_file(uapi::path(interface)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The process that serves the link's socket, if it also holds the tun link of this name: both
/// together are the tunnel, whoever started it. `None` where /proc does not let us see.
pub(super) fn owner(interface: &str) -> Option<Pid> {
    uapi::listener(interface).filter(|&process| holds_tun(process, interface))
}

/// Ends the program that serves a link's socket, however it hangs, if it holds that link, has lost
/// the one it had, or is known to be `ours`. A tun link goes with its program.
///
/// It gets no chance to clean up: it would remove the socket of the program that comes next.
pub(super) fn end(interface: &str, ours: bool) {
    const PATIENCE: Duration = Duration::from_secs(3);
    let Some(process) = uapi::listener(interface) else { return };
    if !ours && !holds_tun(process, interface) && !holds_tun(process, "") {
        return;
    }
    let start = Instant::now();
    let _ = kill(process, Signal::SIGKILL);
    while uapi::listener(interface) == Some(process) && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = fs::remove_file(uapi::path(interface));
}

/// Gives a foreign program's socket the name that its link has now, so that it goes on and `wg`
/// finds it.
pub(super) fn move_socket(interface: &str, renamed: &str) {
    if uapi::listener(interface).is_some() {
        let _ = fs::rename(uapi::path(interface), uapi::path(renamed));
    }
}

/// Whether a process has a tun device open whose link has this name; empty: whose link is gone.
fn holds_tun(process: Pid, name: &str) -> bool {
    // tun_chr_show_fdinfo() of drivers/net/tun.c
    let wanted = format!("iff:\t{name}");
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/net")).ok();
    if namespace(&process.to_string()) != namespace("thread-self") {
        // Sockets are found by path: it may serve a link of this name in another namespace.
        return false;
    }
    let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fdinfo")) else { return false };
    descriptors
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .any(|text| text.lines().any(|line| line == wanted))
}

/// What a program says on standard error while it starts.
///
/// A file in memory: a pipe would kill the program when we end, and a log would grow.
struct Said(File);

impl Said {
    fn new() -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        Ok(Said(memfd_create("wireguard", flags)?.into()))
    }

    fn writer(&self) -> io::Result<Stdio> {
        self.0.try_clone().map(Stdio::from)
    }

    /// From now on it does not grow: writing fails, which nobody minds.
    fn seal(&self) {
        let _ = fcntl(&self.0, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW));
    }

    /// The last of it, on one line.
    fn read(&self) -> String {
        const SHOWN: usize = 300;
        let (mut file, mut text) = (&self.0, Vec::new());
        if file.rewind().is_err() || file.read_to_end(&mut text).is_err() {
            return String::new();
        }
        let text = String::from_utf8_lossy(&text);
        let words: Vec<&str> = text.split_whitespace().collect();
        let line: String = words.join(" ").chars().filter(|it| !it.is_control()).collect();
        let skipped = line.chars().count().saturating_sub(SHOWN);
        let last: String = line.chars().skip(skipped).collect();
        if last.is_empty() { last } else { format!(": {last}") }
    }
}
