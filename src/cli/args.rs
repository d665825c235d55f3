//! The command line, from which help and completions are made; a test holds the manual to it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::EXCEPTION_KINDS;
use crate::evidence::chain::Head;
use crate::exceptions::DURATION;
use crate::explain::Words;

/// What an exit status means; `status` and `plan --exit-code` have their own.
pub const EXIT_STATUS: [(u8, &str); 5] =
    [(0, "done"), (1, "failed"), (2, "usage"), (4, "not permitted"), (78, "bad configuration")];
/// What `status` says by its exit status.
pub const STATUS_EXIT_STATUS: [(u8, &str); 4] = [
    (0, "connected and intact"),
    (10, "locked without a tunnel"),
    (20, "open"),
    (30, "damaged or cannot tell"),
];
/// What `evidence verify` says by its exit status.
pub const VERIFY_EXIT_STATUS: [(u8, &str); 3] = [(0, "whole"), (1, "broken"), (30, "cannot tell")];
/// What `leaktest` says by its exit status.
pub const LEAKTEST_EXIT_STATUS: [(u8, &str); 3] =
    [(0, "nothing came out"), (20, "something leaked, or it is open"), (30, "cannot tell")];
/// What `plan --exit-code` says by its exit status.
pub const PLAN_EXIT_STATUS: [(u8, &str); 3] =
    [(0, "no change"), (3, "no line loosens"), (5, "a line loosens")];

/// What `audit` says by its exit status.
pub const AUDIT_EXIT_STATUS: [(u8, &str); 5] = [
    (0, "nothing found"),
    (10, "warnings"),
    (20, "something critical"),
    (30, "nothing found, but a check could not be made"),
    (4, "not permitted"),
];

const EVERYWHERE: &str = "Options of all commands";

/// A VPN kill switch: while locked, nothing leaves this machine but through the tunnel.
///
/// The kernel keeps the promise, not this program: the rules depend on nothing but the
/// configuration, and nothing but `killswitch unlock` opens them.
#[derive(Debug, Parser)]
#[command(
    name = "killswitch",
    version,
    after_help = "First steps:\n  \
        1. write /etc/killswitch.toml:         [tunnel]\n                                         \
        config = \"/etc/wireguard/wg0.conf\"\n  \
        2. killswitch check                    is it right?\n  \
        3. killswitch plan                     what would it change?\n  \
        4. killswitch lock                     lock now\n  \
        5. killswitch status                   does it hold?\n  \
        6. systemctl enable --now killswitch   lock at every boot, and stay connected\n\n\
        Open again, the daemon dead or alive: killswitch unlock\n\
        See it all and touch nothing: killswitch demo\n\n\
        Exit status: 0 done, 1 failed, 2 usage, 4 not permitted, 78 bad configuration.\n\
        See also: killswitch COMMAND --help, killswitch(8), killswitch.toml(5)."
)]
pub struct CommandLine<C: Subcommand> {
    /// The configuration; drop-ins are read from the directory of the same name with .d for .toml.
    #[arg(long, global = true, value_name = "FILE", help_heading = EVERYWHERE,
          default_value = crate::config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// Print one JSON document instead of text, also of a failure.
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: C,
}

/// The whole command line.
pub type Arguments = CommandLine<Command>;

/// What an open machine waits for. Building the grammar of all commands takes a twentieth of the time
/// until the lock holds, so it is read by its own first.
#[derive(Debug, Subcommand)]
enum Urgent {
    Lock(Lock),
}

impl Arguments {
    /// # Errors
    ///
    /// What is typed is wrong, or asks for help or the version.
    pub fn read(typed: &[OsString]) -> Result<Self, clap::Error> {
        match CommandLine::try_parse_from(typed) {
            Ok(CommandLine { config, json, command: Urgent::Lock(options) }) => {
                Ok(CommandLine { config, json, command: Command::Lock(options) })
            }
            Err(_) => CommandLine::try_parse_from(typed),
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lock now: nothing leaves but through the tunnel.
    ///
    /// What is there already stays; what differs is replaced in place, so nothing slips through
    /// meanwhile. It needs no daemon, no network and no tunnel.
    #[command(after_help = "Examples:\n  \
        killswitch lock                 lock by /etc/killswitch.toml\n  \
        killswitch lock --yes           also if that cuts off this SSH session")]
    Lock(Lock),
    /// Open the lock: everything may leave in clear.
    ///
    /// Until the next `lock` or `reload`, or start of the daemon. Asks at a terminal; scripts say
    /// --yes. It works with the daemon stopped, dead or hung.
    #[command(after_help = "To take the tunnel down, and stay locked: killswitch disconnect")]
    Unlock(Unlock),
    /// Apply the configuration, as it is now in the file.
    ///
    /// Also to an open machine. If the file cannot be used the old lock stays as it is.
    #[command(after_help = "See first what it would do: killswitch plan")]
    Reload(Reload),
    /// Bring the tunnel up, and wait until it is.
    ///
    /// Through the servers in the configuration's order, what worked on this network first. Waits
    /// for 60 seconds at most; the daemon goes on trying after that. The lock stays all the while.
    #[command(after_help = "Examples:\n  \
        killswitch connect              through whichever server answers first\n  \
        killswitch connect se-sto-1     through this one, if it answers")]
    Connect(Connect),
    /// Take the tunnel down. The lock stays: nothing leaves.
    #[command(after_help = "To use the network without the tunnel: killswitch unlock")]
    Disconnect,
    /// Make a fresh handshake, with the present server first; wait for it.
    Reconnect,
    /// Open something for a while, as a key of allow in the configuration could.
    ///
    /// The daemon closes it at its end, and before that at `lock`, `unlock` and `reload`, and when it
    /// stops or starts: exceptions live in its memory alone. What passes by one ends with it, also
    /// connections that are established.
    #[command(subcommand)]
    Exception(ExceptionCommand),
    /// Say what the kernel holds, the daemon dead or alive.
    ///
    /// Exit status: 0 connected and intact, 10 locked without a tunnel, 20 open, 30 damaged or
    /// cannot tell.
    #[command(after_help = "Examples:\n  \
        killswitch status --watch                   a live view; q quits\n  \
        killswitch --json status | jq -r .state     connected, connecting, blocked, open, damaged\n  \
        killswitch status || [ $? = 10 ]            does it hold, with or without a tunnel?")]
    Status(Status),
    /// Print what happens, as it happens, until interrupted.
    ///
    /// The tunnel's state, changes to the lock by others and their repair, what fails. With --json
    /// one document to a line.
    #[command(after_help = "Example: killswitch --json monitor | jq --unbuffered -r .event")]
    Monitor,
    /// Validate a configuration; name what is legal but unwise.
    #[command(after_help = "Examples:\n  \
        killswitch check                is /etc/killswitch.toml right?\n  \
        killswitch check new.toml       is this one, before it is put in its place?")]
    Check(File),
    /// Show what a configuration would change, each line marked "tightens" or "loosens".
    ///
    /// Against the live rules. With --exit-code the exit status is 0: no change, 3: no line
    /// loosens, 5: a line loosens.
    #[command(after_help = "Examples:\n  \
        killswitch plan                                      what would a reload change?\n  \
        killswitch plan --exit-code new.toml || [ $? = 3 ]   is there no line that loosens?")]
    Plan(Plan),
    /// Print the compiled ruleset.
    #[command(after_help = "Examples:\n  \
        killswitch rules                         to be held against: nft list table inet killswitch\n  \
        killswitch rules --strictest             what is loaded if the configuration is broken")]
    Rules(Rules),
    /// Say which rule of the configuration decides on a packet, and why.
    ///
    /// Also which line of the configuration is behind it, what every other layer would do, and what to
    /// add if it should pass. It asks what the configuration compiles to, not the kernel.
    #[command(after_help = "Examples:\n  \
        a DNS query past the tunnel:  killswitch explain --out eth0 --to 1.1.1.1 --proto udp --port 53\n  \
        through the tunnel:           killswitch explain --out wg0 --to 1.1.1.1\n  \
        somebody knocks at SSH:       killswitch explain --in eth0 --port 22\n  \
        a container's packet:         killswitch explain --in docker0 --out eth0 --to 1.1.1.1\n  \
        a line of a capture:          killswitch explain --out eth0 --line 'IP 192.0.2.1 > 1.1.1.1: ICMP echo request'\n  \
        all that is blocked:          killswitch --json monitor | killswitch explain --line -")]
    Explain(Explain),
    /// Say what on this machine could weaken the lock, and what to do about it.
    ///
    /// It reads the kernel, processes and files, and disturbs nothing: the lock's layers, other
    /// tables, XDP and tc, other namespaces, containers, capabilities, packet sockets, settings,
    /// rules and routes, resolvers, files, the clock, units, and the initrd. killswitch(8) has every
    /// finding. What the lock makes harmless is a note.
    ///
    /// Exit status: 0 nothing found, 10 warnings, 20 something critical, 30 nothing found, but a
    /// check could not be made, 4 not permitted.
    #[command(after_help = "Examples:\n  \
        killswitch audit                                          what is there to mend?\n  \
        killswitch --json audit | jq -r '.findings[] | .id'       for monitoring")]
    Audit,
    /// Show, verify or export the journal of what happened to the lock.
    ///
    /// Every change of state, command, request, refusal, tampering and repair: who, from where, why. Its
    /// lines are chained by hashes, so that an edit shows.
    #[command(subcommand)]
    Evidence(EvidenceCommand),
    /// Print numbers for Prometheus, read from the kernel.
    ///
    /// In the format of node_exporter's textfile collector.
    #[command(after_help = "Examples:\n  \
        killswitch metrics | promtool check metrics\n  \
        killswitch metrics --output /var/lib/prometheus/node-exporter/killswitch.prom")]
    Metrics(Metrics),
    /// Try every way out of this machine, and say whether anything came out.
    ///
    /// Sends canaries: packets of every kind that say what they are, to networks where nobody is.
    /// What gets past the lock is a real leak, of one packet that dies within a few hops. A machine
    /// that is not locked is told so, and sends none. Without options nothing is disturbed, and it
    /// takes a few seconds; offline and over SSH, too.
    ///
    /// Exit status: 0 nothing came out, 20 something leaked, or it is open, 30 cannot tell.
    #[command(after_help = "Examples:\n  \
        killswitch leaktest                         does it hold?\n  \
        killswitch --json leaktest | jq .verdict    the same for scripts: held, leaked, cannot_tell\n  \
        killswitch leaktest --disrupt               does it hold while everything goes wrong?\n  \
        killswitch leaktest --self-check            would it see a leak?")]
    Leaktest(Leaktest),
    /// Show the whole thing in private network namespaces: nothing on this machine is touched.
    ///
    /// First the leak without the lock, then none with it, through a series of faults. No root is
    /// needed where user namespaces are allowed.
    Demo,
    /// Keep the lock and the tunnel: what killswitch.service runs.
    ///
    /// SIGHUP reads the configuration anew. SIGTERM ends it; the lock stays.
    #[command(after_help = "Usually: systemctl enable --now killswitch")]
    Daemon,
    /// Print a completion script for a shell.
    #[command(
        hide = true,
        after_help = "Packages install them. By hand, in ~/.bashrc:\n  \
        eval \"$(killswitch completions bash)\""
    )]
    Completions {
        /// Which shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Give back what a killed `leaktest --disrupt` had taken.
    #[command(hide = true)]
    LeaktestRestore,
    /// Print the names of the configuration's servers, one to a line: for completions.
    #[command(hide = true)]
    Servers,
}

/// Options of `explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// The packet in words.
    #[command(flatten)]
    pub words: Words,
    /// A line that shows the packet, of tcpdump, tshark, `killswitch monitor`, `killswitch leaktest`
    /// or the kernel's LOG; - reads lines from standard input. What the line does not tell may be
    /// said besides.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["to", "from", "proto", "port", "sport", "icmp_type"])]
    pub line: Option<String>,
}

/// Shells with a completion script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash.
    Bash,
    /// Z shell.
    Zsh,
    /// Fish.
    Fish,
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
    /// Why, for the journal and the evidence.
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub reason: String,
}

/// Options of `connect`.
#[derive(Debug, Args)]
pub struct Connect {
    /// The server to try before all others, by its name in the configuration.
    pub server: Option<String>,
}

/// What to do with exceptions.
#[derive(Debug, Subcommand)]
pub enum ExceptionCommand {
    /// Open it, for 24 hours at most.
    ///
    /// Held to the same checks as the configuration.
    #[command(after_help = "Examples:\n  \
        killswitch exception add lan 192.168.1.0/24 --for 10m                    a printer\n  \
        killswitch exception add ntp 192.168.1.1 --for 30s                       the time\n  \
        killswitch exception add inbound tcp/22 from 192.168.1.0/24 --for 1h     SSH")]
    Add(AddException),
    /// Print what is open, its number first, and for how long.
    #[command(after_help = "Example: killswitch --json exception list | jq .exceptions")]
    List,
    /// Close it before its time.
    #[command(after_help = "Example: killswitch exception remove 1")]
    Remove {
        /// Its number, which `exception list` prints first.
        id: u32,
    },
}

/// Options of `exception add`.
#[derive(Debug, Args)]
pub struct AddException {
    /// A key of allow in the configuration.
    #[arg(value_parser = PossibleValuesParser::new(EXCEPTION_KINDS))]
    pub kind: String,
    /// A local network; an NTP server's address; PROTOCOL/PORT from NETWORK.
    #[arg(required = true, num_args = 1..=3)]
    pub what: Vec<String>,
    /// How long: e.g. 90s, 10m, 1h30m.
    #[arg(long = "for", value_name = "DURATION", value_parser = seconds)]
    pub duration: u32,
}

/// As many as an exception may last.
fn seconds(text: &str) -> Result<u32, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration.subsec_nanos() != 0 || !DURATION.contains(&duration) {
        return Err("it lasts a whole number of seconds, up to 24 hours".into());
    }
    u32::try_from(duration.as_secs()).map_err(|error| error.to_string())
}

/// What to do with the evidence.
#[derive(Debug, Subcommand)]
pub enum EvidenceCommand {
    /// Print what happened, the oldest first.
    #[command(after_help = "Examples:\n  \
        killswitch evidence show --since 2h               the last two hours\n  \
        killswitch evidence show --since 2026-11-22       since that day, UTC\n  \
        killswitch --json evidence show | jq 'select(.event == \"unlock\") | .by, .reason'")]
    Show(ShowEvidence),
    /// Say whether the journal is whole, and where it is not.
    ///
    /// Exit status: 0 whole, 1 broken, 30 cannot tell.
    #[command(after_help = "Examples:\n  \
        killswitch evidence verify                        this machine's\n  \
        killswitch evidence verify export.jsonl           one that was exported")]
    Verify(VerifyEvidence),
    /// Write the journal to one file, or print it.
    #[command(after_help = "Examples:\n  \
        killswitch evidence export --output evidence.jsonl\n  \
        killswitch evidence export --format html --output evidence.html")]
    Export(ExportEvidence),
}

/// Options of `evidence show`.
#[derive(Debug, Args)]
pub struct ShowEvidence {
    /// Only what happened since: a duration, e.g. 2h, or a time in UTC, e.g. "2026-11-22 08:00:00".
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only so many, the last ones.
    #[arg(long, value_name = "NUMBER")]
    pub last: Option<usize>,
}

/// Options of `evidence verify`.
#[derive(Debug, Args)]
pub struct VerifyEvidence {
    /// Files to verify in this order, instead of this machine's journal.
    pub file: Vec<PathBuf>,
    /// The end of the journal as it was noted elsewhere: its number and hash.
    #[arg(long, value_name = "SEQ:HASH", value_parser = head)]
    pub head: Option<Head>,
}

fn head(text: &str) -> Result<Head, String> {
    Head::parse(text).ok_or_else(|| "a number, a colon and 64 hexadecimal digits".into())
}

/// Options of `evidence export`.
#[derive(Debug, Args)]
pub struct ExportEvidence {
    /// How to write it: as it is, a JSON document to a line, or as a page for a browser.
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = ExportFormat::Jsonl)]
    pub format: ExportFormat,
    /// Where to, instead of standard output; for root's eyes only.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// How `evidence export` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// JSON lines, which can be verified.
    Jsonl,
    /// A page for a browser.
    Html,
}

/// Options of `metrics`.
#[derive(Debug, Args)]
pub struct Metrics {
    /// Where to, instead of standard output; the file is replaced at once.
    #[arg(long, value_name = "FILE.prom")]
    pub output: Option<PathBuf>,
}

/// Options of `leaktest`.
#[derive(Debug, Args)]
pub struct Leaktest {
    /// Check the test itself, in a private network: without a lock every way out must be seen, with
    /// one none. This machine's network is not touched.
    #[arg(long, conflicts_with_all = ["html", "disrupt", "duration"])]
    pub self_check: bool,
    /// The honest test: send without end while the tunnel, each link to the network, the daemon and
    /// the tables are taken away, one after the other. Asks first; all is given back, also if it is
    /// interrupted or killed.
    #[arg(long)]
    pub disrupt: bool,
    /// How long the tunnel and each link are away, from 1s to 10m.
    #[arg(long, value_name = "DURATION", default_value = "5s", requires = "disrupt",
          value_parser = down_time)]
    pub down_time: Duration,
    /// Go on for at least so long, up to 24 hours.
    #[arg(long = "for", value_name = "DURATION", value_parser = seconds)]
    pub duration: Option<u32>,
    /// Do not ask; disturb also what this SSH session goes over.
    #[arg(long, requires = "disrupt")]
    pub yes: bool,
    /// Also write the report as a page for a browser; it can be read without a network.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Shorter than a second shows nothing; longer than some minutes is no test.
fn down_time(text: &str) -> Result<Duration, String> {
    let range = Duration::from_secs(1)..=Duration::from_secs(600);
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match range.contains(&duration) {
        true => Ok(duration),
        false => Err("a link is away from 1s to 10m".into()),
    }
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Show it anew once a second, until interrupted: on a terminal a live view, with --json one
    /// document to a line.
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

/// Options of `plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// The configuration to look at instead of the one in use.
    pub file: Option<PathBuf>,
    /// Tell by the exit status: 0 no change, 3 no line loosens, 5 a line loosens.
    #[arg(long)]
    pub exit_code: bool,
}

/// Options of `rules`.
#[derive(Debug, Args)]
pub struct Rules {
    /// How to print it: as nft reads it, or as JSON.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_urgent_is_read_as_all_the_rest() {
        for line in [
            "lock",
            "lock --boot",
            "--json --config /tmp/a.toml lock --yes",
            "lock --yes --config=/tmp/a.toml --json",
            "lock --nonsense",
            "lock lock",
            "lock --help",
            "help lock",
            "lokc",
            "--version",
            "status --watch",
            "unlock --yes",
            "",
        ] {
            let typed: Vec<OsString> =
                ["killswitch"].into_iter().chain(line.split_whitespace()).map(Into::into).collect();
            let read = |it: Result<Arguments, clap::Error>| match it {
                Ok(arguments) => format!("{arguments:?}"),
                Err(error) => error.to_string(),
            };
            assert_eq!(
                read(Arguments::read(&typed)),
                read(Arguments::try_parse_from(&typed)),
                "{line}"
            );
        }
    }
}
