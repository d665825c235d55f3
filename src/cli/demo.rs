//! `demo`: hands over to the laboratory, a program of its own.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use super::args::Arguments;
use super::{FAILED, Failure};

const LABORATORY: &str = "killswitch-lab";

pub(super) fn demo(arguments: &Arguments) -> Result<u8, Failure> {
    let mut command = Command::new(beside_us().unwrap_or_else(|| LABORATORY.into()));
    command.arg("demo");
    if arguments.json {
        command.arg("--json");
    }
    // Only returns if it could not be started.
    let error = command.exec();
    Err(Failure::new(
        FAILED,
        format!(
            "cannot run {LABORATORY}: {error}\n\
             help: it comes with the source: `make demo` there builds and runs it"
        ),
    ))
}

fn beside_us() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name(LABORATORY);
    path.exists().then_some(path)
}
