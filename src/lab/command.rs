use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::error::{Error, Result};
use super::{demo, namespaces, setup, wireguard};

/// The kill switch's laboratory: everything happens in private network namespaces, nothing on this
/// machine is touched.
#[derive(Parser)]
#[command(name = "killswitch-lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows the leak without the lock, then none with it, through a series of faults.
    Demo {
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
        /// The program to try, if not the one beside this.
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
    },
    /// Is a userspace WireGuard, like wireguard-go. Also when called as killswitch-wireguard.
    #[command(hide = true)]
    Wireguard {
        /// Stays in the foreground, as it does anyway.
        #[arg(short, long)]
        foreground: bool,
        /// The link to make.
        interface: String,
    },
}

/// `killswitch-lab`.
pub fn main() -> ExitCode {
    match Arguments::parse_from(arguments()).command {
        Command::Demo { json, program } => show(json, program),
        Command::Wireguard { interface, .. } => match serve(&interface) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("killswitch-lab: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

/// The command line; a userspace WireGuard has no word for a subcommand.
fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let name = arguments.first().and_then(|program| Path::new(program).file_name());
    if name.is_some_and(|name| name == setup::WIREGUARD) {
        arguments.insert(1, "wireguard".into());
    }
    arguments
}

fn serve(interface: &str) -> Result<()> {
    // Whoever starts it is in a namespace already, so there is none that we left.
    let first = std::fs::read_link("/proc/1/ns/net").ok();
    if first.is_some_and(|link| Some(link.display().to_string()) == namespaces::current().ok()) {
        return Err(Error::new("refusing to touch the machine's own network"));
    }
    wireguard::serve(interface)
}

fn show(json: bool, program: Option<PathBuf>) -> ExitCode {
    // First of all threads: namespaces are entered by one.
    if let Err(error) = namespaces::enter_private() {
        eprintln!("killswitch-lab: {error}");
        return ExitCode::FAILURE;
    }
    let start = std::time::Instant::now();
    let mut tell = |what: &str| {
        if !json {
            println!("{:5.1} s  {what} ...", start.elapsed().as_secs_f64());
        }
    };
    let verdicts = demo::run(demo::Options { program }, &mut tell);
    let mut out = std::io::stdout();
    let written = if json {
        writeln!(out, "{:#}", verdicts.json())
    } else {
        let colour =
            out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        write!(out, "\n{}", verdicts.table(colour))
    };
    if verdicts.all_held() && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
