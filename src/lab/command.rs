use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::{demo, namespaces};

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
}

/// `killswitch-lab`.
pub fn main() -> ExitCode {
    // First of all threads: namespaces are entered by one.
    let Arguments { command: Command::Demo { json, program } } = Arguments::parse();
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
