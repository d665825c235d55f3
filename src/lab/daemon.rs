//! The daemon under test, in the client.

use std::fs::{self, File, OpenOptions};
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::{Context, Result};
use super::host::{Host, Process};
use super::setup;
use super::topology::Lab;

/// Where systemd would listen. Private to the mount namespace, in its tmpfs.
const NOTIFY: &str = "/run/killswitch-lab/notify";
/// For it to say that it is ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running `killswitch daemon`; killed (SIGKILL) when dropped, and its tunnel with it.
pub struct Daemon {
    program: PathBuf,
    configuration: PathBuf,
    client: Host,
    /// Where it says that it is ready, if anybody waits for that.
    notifications: Option<UnixDatagram>,
    process: Option<Process>,
}

/// Its tunnel would outlive it, and with it the whole laboratory.
impl Drop for Daemon {
    fn drop(&mut self) {
        self.process = None;
        end_wireguards(&self.client);
    }
}

/// Kills every userspace WireGuard of the client, whatever its link is called by now.
fn end_wireguards(client: &Host) {
    let Ok(namespace) = fs::read_link(client.path()) else { return };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.map(|entry| entry.path()) {
        let here = fs::read_link(process.join("ns/net")).is_ok_and(|it| it == namespace);
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        let id = process.file_name().and_then(|name| name.to_str()?.parse().ok());
        if here
            && words.starts_with(setup::directory_name().as_bytes())
            && let Some(id) = id
        {
            let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}

impl Daemon {
    /// What it says. Private to the mount namespace, in its tmpfs.
    pub const LOG: &str = "/run/killswitch-lab/daemon.log";

    /// Starts it in the client, with the laboratory's userspace WireGuard.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(lab: &Lab, program: &Path, configuration: &Path) -> Result<Self> {
        Self::start_with(lab, program, configuration, None)
    }

    /// As [`Daemon::start`], but waits until it is ready, now and at every later start, as systemd
    /// does.
    ///
    /// # Errors
    /// If it cannot be started, or is not ready within half a minute.
    pub fn start_and_wait(lab: &Lab, program: &Path, configuration: &Path) -> Result<Self> {
        let _ = fs::remove_file(NOTIFY);
        let notifications = UnixDatagram::bind(NOTIFY).during(NOTIFY)?;
        notifications.shutdown(Shutdown::Write).during(NOTIFY)?;
        notifications.set_read_timeout(Some(PATIENCE)).during(NOTIFY)?;
        Self::start_with(lab, program, configuration, Some(notifications))
    }

    fn start_with(
        lab: &Lab,
        program: &Path,
        configuration: &Path,
        notifications: Option<UnixDatagram>,
    ) -> Result<Self> {
        let mut daemon = Daemon {
            program: program.to_owned(),
            configuration: configuration.to_owned(),
            client: lab.client.clone(),
            notifications,
            process: None,
        };
        daemon.again(lab)?;
        Ok(daemon)
    }

    /// Kills it (SIGKILL) if it runs, and starts it anew, as systemd would.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn again(&mut self, lab: &Lab) -> Result<()> {
        self.again_with(lab, "", &[])
    }

    /// As [`Daemon::again`]; it crashes after this many effects.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn again_until(&mut self, lab: &Lab, effects: u32) -> Result<()> {
        self.again_with(lab, "", &[("KILLSWITCH_CRASH_AFTER", effects.to_string())])
    }

    /// As [`Daemon::again`], in mounts of its own, after these commands of a shell.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn again_after(&mut self, lab: &Lab, commands: &str) -> Result<()> {
        self.again_with(lab, commands, &[])
    }

    fn again_with(
        &mut self,
        lab: &Lab,
        commands: &str,
        environment: &[(&str, String)],
    ) -> Result<()> {
        self.process = None;
        let log = Self::LOG;
        let log = OpenOptions::new().append(true).create(true).open(log).during(log)?;
        let mut command = match commands {
            "" => Command::new(&self.program),
            commands => {
                let mut shell = Command::new("unshare");
                shell.args(["-m", "sh", "-ec", &format!("{commands}\nexec \"$@\""), "sh"]);
                shell.arg(&self.program);
                shell
            }
        };
        command
            .arg("--config")
            .arg(&self.configuration)
            .arg("daemon")
            .env("KILLSWITCH_WIREGUARD", setup::wireguard()?)
            .env_remove("JOURNAL_STREAM")
            .env_remove("NOTIFY_SOCKET")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if self.notifications.is_some() {
            command.env("NOTIFY_SOCKET", NOTIFY);
        }
        self.process = Some(lab.client.start(command)?);
        self.notifications.as_ref().map_or(Ok(()), wait_until_ready)
    }

    /// Kills it (SIGKILL), as a crash or the kernel's memory killer would.
    pub fn crash(&mut self) {
        self.process = None;
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(|it| matches!(it.child().try_wait(), Ok(None)))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// Those of `kill(2)`; nothing happens if it does not run.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let id = Pid::from_raw(process.child().id().cast_signed());
        kill(id, signal).during("signalling the daemon")
    }

    /// Its process id, if it runs.
    pub fn id(&mut self) -> Option<u32> {
        self.process.as_mut().map(|process| process.child().id())
    }

    /// The end of what it said.
    ///
    /// # Errors
    /// Those of files.
    pub fn log(&self) -> Result<String> {
        Self::log_of(|_| true)
    }

    /// As [`Daemon::log`], of the lines without this.
    ///
    /// # Errors
    /// Those of files.
    pub fn log_without(&self, noise: &str) -> Result<String> {
        Self::log_of(|line| !line.contains(noise))
    }

    fn log_of(wanted: impl Fn(&str) -> bool) -> Result<String> {
        const MOST: usize = 4000;
        let file = File::open(Self::LOG).during(Self::LOG)?;
        let text = std::io::read_to_string(file).during(Self::LOG)?;
        let lines = text.split_inclusive('\n').filter(|line| wanted(line));
        let text: String = lines.collect();
        let start = text.len().saturating_sub(MOST);
        let start = (start..).find(|&at| text.is_char_boundary(at)).unwrap_or(start);
        Ok(text[start..].to_owned())
    }
}

fn wait_until_ready(notifications: &UnixDatagram) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let length = notifications.recv(&mut buffer).during("waiting for READY")?;
        if buffer[..length].split(|it| *it == b'\n').any(|line| line == b"READY=1") {
            return Ok(());
        }
    }
}
