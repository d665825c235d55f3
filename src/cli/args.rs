//! The command line, from which help and completions are made; a test holds the manual to it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::explain::Words;

/// A VPN kill switch: while locked, nothing leaves this machine but through the tunnel.
///
/// The kernel keeps the promise, not this program: the rules depend on nothing but the
/// configuration, and nothing but `killswitch unlock` opens them.
#[derive(Debug, Parser)]
#[command(
    name = "killswitch",
    version,
    after_help = "First steps:\n  \
        1. write /etc/killswitch.toml:  [tunnel]\n                                  \
        config = \"/etc/wireguard/wg0.conf\"\n  \
        2. killswitch check             is it right?\n  \
        3. killswitch plan              what would it change?\n  \
        4. killswitch lock              lock now\n  \
        5. systemctl enable --now killswitch   lock at every boot, and stay connected\n\n\
        Exit status: 0 done, 1 failed, 2 usage, 4 not permitted, 78 bad configuration.\n\
        See also: killswitch(8), killswitch.toml(5)."
)]
pub struct Arguments {
    /// The configuration; drop-ins are read from the directory of the same name with .d for .toml.
    #[arg(long, global = true, value_name = "FILE", default_value = crate::config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// Print one JSON document instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lock now: nothing leaves but through the tunnel.
    Lock(Lock),
    /// Open the lock: everything may leave in clear.
    Unlock(Unlock),
    /// Apply the configuration, also to an open machine; if it cannot be used the old lock stays.
    Reload(Reload),
    /// Bring the tunnel up, and wait until it is: through the servers in their order, or this one
    /// first.
    Connect(Connect),
    /// Take the tunnel down. The lock stays: nothing leaves.
    Disconnect,
    /// A fresh handshake, with the present server first; wait for it.
    Reconnect,
    /// Say what the kernel holds, the daemon dead or alive.
    ///
    /// Exit status: 0 connected and intact, 10 locked without a tunnel, 20 open, 30 damaged or
    /// cannot tell.
    Status(Status),
    /// Print what happens, as it happens, until interrupted; with --json one document to a line.
    Monitor,
    /// Validate a configuration; name what is legal but unwise.
    Check(File),
    /// Show what a configuration would change, each line marked "tightens" or "loosens".
    Plan(File),
    /// Print the compiled ruleset.
    Rules(Rules),
    /// Say which rule of the configuration decides on a packet, and why.
    ///
    /// It asks the rules that the configuration compiles to, not the kernel's, and not the routing
    /// guard. Example: killswitch explain --out eth0 --to 1.1.1.1 --proto udp --port 53
    Explain(Words),
    /// Show the whole thing in private network namespaces: nothing on this machine is touched, and no
    /// root is needed where user namespaces are allowed.
    Demo,
    /// Keep the lock and the tunnel: what killswitch.service runs.
    ///
    /// SIGHUP reads the configuration anew. SIGTERM ends it; the lock stays.
    Daemon,
    /// Print a completion script for a shell.
    #[command(hide = true)]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Options of `lock`.
#[derive(Debug, Args)]
pub struct Lock {
    /// As the boot unit does: an unusable configuration leads to the strictest lock and a non-zero
    /// exit status; `lock.at_boot = false` to nothing.
    #[arg(long)]
    pub boot: bool,
    /// Lock even if that cuts off the SSH session it is typed in.
    #[arg(long)]
    pub yes: bool,
}

/// Options of `unlock`.
#[derive(Debug, Args)]
pub struct Unlock {
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
    /// Why, for the journal.
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub reason: String,
}

/// Options of `connect`.
#[derive(Debug, Args)]
pub struct Connect {
    /// Its name in the configuration.
    pub server: Option<String>,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Show it anew once a second, until interrupted.
    #[arg(long)]
    pub watch: bool,
}

/// Options of `reload`.
#[derive(Debug, Args)]
pub struct Reload {
    /// Apply even if that cuts off the SSH session it is typed in.
    #[arg(long)]
    pub yes: bool,
}

/// A configuration other than `--config`.
#[derive(Debug, Args)]
pub struct File {
    /// The configuration to look at instead of the one in use.
    pub file: Option<PathBuf>,
}

/// Options of `rules`.
#[derive(Debug, Args)]
pub struct Rules {
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Nft)]
    pub format: Format,
    /// The lock for a configuration that cannot be used, as in nft/lock.nft.
    #[arg(long)]
    pub strictest: bool,
}

/// How `rules` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// As `nft -f` reads it.
    Nft,
    /// Tables, sets, chains and rules as JSON.
    Json,
}
