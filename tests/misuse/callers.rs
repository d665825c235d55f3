//! What this program does when a test starts it as another user's process.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

const ROLE: &str = "KILLSWITCH_TEST_ROLE";
/// nobody.
const USER: u32 = 65534;

/// What `play` comes to.
pub type Done = Result<(), Box<dyn std::error::Error>>;

/// Whether another user's processes can be had here: a user namespace without root has one user.
pub fn can_be_others() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let most = map.split_whitespace().nth(2).and_then(|it| it.parse::<u64>().ok());
    let can = most.is_some_and(|most| most > USER.into());
    if !can {
        println!("skipped: only root can call as another user");
    }
    can
}

/// This program in a role, as a user who may do nothing.
pub fn command(role: &str) -> Command {
    // The way to the file may be closed to that user; the file is not.
    let mut command = Command::new("/proc/self/exe");
    command.env(ROLE, role).uid(USER).gid(USER).current_dir("/").stdin(Stdio::null());
    command
}

/// Plays the role, if there is one.
pub fn play() -> Option<ExitCode> {
    let done = match std::env::var(ROLE).ok()?.as_str() {
        "wrong calls" => crate::wrong::call_wrongly(),
        "flood" => crate::flood::flood(),
        "slow readers" => crate::flood::read_slowly(),
        "vanishing" => crate::flood::vanish(),
        "large calls" => crate::flood::call_at_length(),
        other => Err(other.into()),
    };
    if let Err(error) = &done {
        println!("failed: {error}");
    }
    Some(if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
