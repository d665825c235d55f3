//! A system bus for the client, where a machine's system bus is.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::error::{Context, Error, Result};
use super::host::{Host, Process};

/// Where programs look for it. Private to the mount namespace, in its tmpfs.
const SOCKET: &str = "/run/dbus/system_bus_socket";
const DIRECTORY: &str = "/run/dbus";
const FILE: &str = "/run/killswitch-lab-bus.conf";
/// For it to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Everybody may everything: who may what is decided by polkit and by the packaged policy.
const CONFIGURATION: &str = "<busconfig>
    <type>system</type>
    <listen>unix:path=/run/dbus/system_bus_socket</listen>
    <auth>EXTERNAL</auth>
    <policy context=\"default\">
        <allow send_destination=\"*\" eavesdrop=\"true\"/>
        <allow eavesdrop=\"true\"/>
        <allow own=\"*\"/>
        <allow user=\"*\"/>
    </policy>
</busconfig>";

/// A `dbus-daemon`; killed when dropped.
pub struct Bus {
    host: Host,
    process: Option<Process>,
}

impl Bus {
    /// Its address.
    pub const ADDRESS: &str = "unix:path=/run/dbus/system_bus_socket";

    /// Starts it, and waits until it listens.
    ///
    /// # Errors
    /// If it cannot be started, or does not listen within half a minute.
    pub fn start(host: &Host) -> Result<Self> {
        let mut bus = Bus { host: host.clone(), process: None };
        bus.again()?;
        Ok(bus)
    }

    /// Kills it if it runs, and starts it anew.
    ///
    /// # Errors
    /// As of [`Bus::start`].
    pub fn again(&mut self) -> Result<()> {
        self.stop();
        fs::write(FILE, CONFIGURATION).during(FILE)?;
        fs::create_dir_all(DIRECTORY).during(DIRECTORY)?;
        let mut command = Command::new("dbus-daemon");
        command.args(["--nofork", "--nopidfile", "--config-file", FILE]);
        // It complains of limits that it may not raise here.
        command.stdin(Stdio::null()).stderr(Stdio::null());
        self.process = Some(self.host.start(command)?);
        let begin = Instant::now();
        while UnixStream::connect(SOCKET).is_err() {
            if begin.elapsed() > PATIENCE {
                return Err(Error::new("the bus does not listen"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Kills it.
    pub fn stop(&mut self) {
        self.process = None;
        // Nobody shall take it for one that listens.
        let _ = fs::remove_file(SOCKET);
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.stop();
    }
}
