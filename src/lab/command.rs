use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::error::{Error, Result};
use super::{demo, namespaces, setup, wireguard};
use crate::dns::{Resolvers, Restarts};

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
    /// For tests in a container: sets or restores the container's own resolvers.
    #[command(hide = true)]
    Dns {
        /// What to do.
        action: Dns,
        /// The tunnel's link.
        interface: String,
        /// Resolvers.
        servers: Vec<IpAddr>,
        /// A search domain.
        #[arg(long)]
        search: Vec<String>,
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

#[derive(Clone, Copy, clap::ValueEnum)]
enum Dns {
    /// Prints which way was used.
    Set,
    /// Prints what was found.
    Restore,
    /// Prints true or false.
    IsSet,
    /// Sets, and sets again after each restart of systemd-resolved, until killed.
    Keep,
}

/// `killswitch-lab`.
pub fn main() -> ExitCode {
    match Arguments::parse_from(arguments()).command {
        Command::Demo { json, program } => show(json, program),
        Command::Dns { action, interface, servers, search } => {
            let state_dir = "/var/lib/killswitch".into();
            dns(action, Resolvers { interface, servers, search, state_dir })
        }
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

fn dns(action: Dns, resolvers: Resolvers) -> ExitCode {
    // systemd writes it in every container that it manages (systemd.io/CONTAINER_INTERFACE).
    if !Path::new("/run/systemd/container").exists() {
        eprintln!("killswitch-lab: refusing to change the resolvers of anything but a container");
        return ExitCode::FAILURE;
    }
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(change(action, &resolvers)));
    match outcome {
        Ok(words) => {
            println!("{words}");
            ExitCode::SUCCESS
        }
        Err(words) => {
            eprintln!("killswitch-lab: {words}");
            ExitCode::FAILURE
        }
    }
}

async fn change(action: Dns, resolvers: &Resolvers) -> std::result::Result<String, String> {
    let words = |error: crate::dns::Error| error.to_string();
    let set = async || {
        let link = nix::net::if_::if_nametoindex(resolvers.interface.as_str())
            .map_err(|error| format!("{}: {error}", resolvers.interface))?;
        resolvers.set(link).await.map_err(words)
    };
    match action {
        Dns::Set => set().await.map(|used| used.to_string()),
        Dns::Restore => resolvers.restore().await.map(|it| format!("{it:?}")).map_err(words),
        Dns::IsSet => Ok(resolvers.is_set().await.to_string()),
        Dns::Keep => {
            let mut restarts = Restarts::listen().await.map_err(words)?;
            set().await?;
            while restarts.next().await.is_some() {
                set().await?;
            }
            Err("the bus is gone".into())
        }
    }
}
