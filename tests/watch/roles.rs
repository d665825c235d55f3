//! What this program does when a test starts it as another process.

use std::process::{Command, ExitCode};

use killswitch::lock::{self, Keeper};
use killswitch::policy::Policy;
use killswitch::watch::Sleep;

const ROLE: &str = "KILLSWITCH_TEST_ROLE";

/// This program in a role.
pub fn command(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.env(ROLE, role);
    command
}

/// Plays the role, if there is one.
pub fn play() -> Option<ExitCode> {
    let done = match std::env::var(ROLE).ok()?.as_str() {
        "keeper" => keep(),
        "adopter" => adopt(),
        "sleeper" => sleep(),
        "sender" => crate::blocked::send(),
        "waiting sender" => crate::blocked::send_and_wait(),
        other => Err(other.into()),
    };
    if let Err(error) = &done {
        println!("failed: {error}");
    }
    Some(if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

type Done = Result<(), Box<dyn std::error::Error>>;

/// A daemon that holds the strictest lock, parks its socket, and waits to be killed.
fn keep() -> Done {
    let mut keeper = Keeper::open()?;
    let outcome = keeper.hold(&Policy::strictest())?;
    keeper.park()?;
    println!("owned {}", outcome.owned);
    loop {
        std::thread::park();
    }
}

/// The next daemon.
fn adopt() -> Done {
    let parked = lock::parked()?;
    let count = parked.len();
    let mut keeper = Keeper::adopt(parked)?;
    let outcome = keeper.hold(&Policy::strictest())?;
    println!("parked {count} owned {} changed {}", outcome.owned, outcome.changed);
    Ok(())
}

fn sleep() -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut sleep = Sleep::open()?;
        println!("waiting");
        sleep.resumed().await?;
        println!("resumed");
        Ok(())
    })
}
