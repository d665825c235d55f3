//! `completions`: clap's scripts, and in them the names of servers, which the program itself is
//! asked for. The configuration is root's alone, so to others none are offered.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::generate;
use clap_complete::shells::{Bash, Fish, Zsh};

use super::Failure;
use super::args::{Arguments, Shell};
use super::output;
use crate::config;

/// What a script runs. Names are letters, digits, ".", "_" and "-": no shell expands them.
const ASK: &str = "killswitch servers 2>/dev/null";

pub(super) fn completions(shell: Shell) -> Result<u8, Failure> {
    output::say(script(shell).trim_end());
    Ok(0)
}

pub(super) fn servers(path: &Path) -> Result<u8, Failure> {
    for server in config::load(path)?.servers {
        output::say(&server.name);
    }
    Ok(0)
}

fn script(shell: Shell) -> String {
    let mut bytes = Vec::new();
    let (command, name) = (&mut visible(), "killswitch");
    match shell {
        Shell::Bash => generate(Bash, command, name, &mut bytes),
        Shell::Zsh => generate(Zsh, command, name, &mut bytes),
        Shell::Fish => generate(Fish, command, name, &mut bytes),
    }
    with_servers(shell, &String::from_utf8_lossy(&bytes))
}

/// Without the commands that help does not show.
fn visible() -> clap::Command {
    let whole = Arguments::command();
    let shown = whole.get_subcommands().filter(|it| !it.is_hide_set()).cloned();
    clap::Command::new("killswitch")
        .version(env!("CARGO_PKG_VERSION"))
        .args(whole.get_arguments().cloned())
        .subcommands(shown)
}

fn with_servers(shell: Shell, script: &str) -> String {
    match shell {
        Shell::Bash => {
            let case = "__connect)\n            opts=\"";
            script.replacen(case, &format!("{case}$({ASK}) "), 1)
        }
        Shell::Zsh => {
            let place = ":_default' \\";
            let asking = format!(":{{compadd -- $({ASK})}}' \\");
            let (before, after) = script.split_at(script.find("'::server -- ").unwrap_or(0));
            format!("{before}{}", after.replacen(place, &asking, 1))
        }
        Shell::Fish => format!(
            "{script}complete -c killswitch -n \"__fish_killswitch_using_subcommand connect\" \
             -f -a \"({ASK})\"\n"
        ),
    }
}
