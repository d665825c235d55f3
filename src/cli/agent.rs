//! Asks the user at the terminal for a password, when polkit wants one: as systemctl(1) does.

use std::io::{self, IsTerminal, Read};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::{Failure, NOT_PERMITTED, output};

/// Polkit's own program (pkttyagent(1)) for this process, or nobody. Ends when dropped.
pub(super) struct Agent(Option<Child>);

impl Agent {
    /// For calls that may need an administrator; ready when this returns. There is none for root,
    /// who needs none, nor without a terminal.
    fn start() -> io::Result<Self> {
        if geteuid().is_root() || !io::stdin().is_terminal() {
            return Ok(Agent(None));
        }
        let mut child = Command::new("pkttyagent")
            .arg("--process")
            .arg(std::process::id().to_string())
            // A desktop's own agent is asked first.
            .arg("--fallback")
            // Closed once it is registered, or has failed. It talks to the terminal itself.
            .args(["--notify-fd", "1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        if let Some(mut registered) = child.stdout.take() {
            // However it ends: polkit says whether anybody can be asked.
            let _ = registered.read_to_end(&mut Vec::new());
        }
        Ok(Agent(Some(child)))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let Some(child) = &mut self.0 else { return };
        // Not SIGKILL: it switches the terminal's echo on again.
        if kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).is_ok() {
            let _ = child.wait();
        }
    }
}

/// Does what may need an administrator, who is asked at the terminal.
pub(super) fn with_agent<T>(act: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let agent = Agent::start();
    let outcome = act();
    let Err(error) = agent else { return outcome };
    outcome.map_err(|failure| match (failure.code, error.kind()) {
        (NOT_PERMITTED, io::ErrorKind::NotFound) => {
            let words = "pkttyagent, which would ask for a password here, is not installed";
            failure.helped(&format!("{words}: install polkit's, or run this as root"))
        }
        (NOT_PERMITTED, _) => {
            output::warning(&format!("pkttyagent, which would ask for a password: {error}"));
            failure
        }
        _ => failure,
    })
}
