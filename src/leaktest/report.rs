//! What a leak test found: one value for the terminal, `--json` and `--html`.
//!
//! Times are milliseconds since the test began. Whatever its length, and whatever happens to the
//! machine meanwhile, a report is bounded, so that it stays under 1 MB as JSON and as a page.

use serde::Serialize;

/// At most so many columns of [`Traffic`]; a longer test has wider ones.
pub const BUCKETS: usize = 600;
/// At most so many [`Band`]s: tunnel, daemon, lock, and the links that were there first.
pub const BANDS: usize = 16;
/// At most so many spans in a [`Band`].
pub const SPANS: usize = 150;
/// At most so many [`Phase`]s; the last one then stands for the rest.
pub const PHASES: usize = 64;
/// At most so many leaked frames are kept of a probe; all are counted.
pub const FRAMES: usize = 20;
/// At most so many sentences in [`Report::limits`] and in [`Machine::degraded`].
pub const SENTENCES: usize = 40;
/// Bytes of the document that a sentence may take.
pub const SENTENCE: usize = 400;
/// Bytes of the document that the configuration may take.
pub const CONFIGURATION: usize = 65_536;

/// What a leak test found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Of this document's form; a new number where an old reader would misread it.
    pub format: u32,
    /// The whole test in one word.
    pub verdict: Verdict,
    /// The same as a sentence.
    pub summary: String,
    /// When it began: seconds since 1970, UTC.
    pub began: u64,
    /// How long it took.
    pub duration_ms: u64,
    /// Whether tunnel, link and daemon were disturbed on purpose.
    pub disrupted: bool,
    /// What was tested.
    pub machine: Machine,
    /// What happened when, in order.
    pub phases: Vec<Phase>,
    /// The state of tunnel, links, daemon and lock over time.
    pub bands: Vec<Band>,
    /// Packets over time.
    pub traffic: Traffic,
    /// What was tried, and whether it came out.
    pub probes: Vec<Probe>,
    /// What the test could not look at, and what that means.
    pub limits: Vec<String>,
    /// The command line that repeats it.
    pub repeat: String,
}

/// Whether something came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was tried, and nothing came out.
    Held,
    /// It came out.
    Leaked,
    /// It could not be tried, or not be seen.
    CannotTell,
    /// It comes out because the configuration allows it.
    Allowed,
}

/// What was tested.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The distribution, as /etc/os-release calls it.
    pub system: String,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's architecture.
    pub architecture: String,
    /// This program's version.
    pub killswitch: String,
    /// SHA-256 of the compiled ruleset, as `killswitch rules` prints it, in hexadecimal.
    pub ruleset_sha256: String,
    /// The lock's state at the beginning, as `status` has it.
    pub state: String,
    /// What is weaker than asked, as `status` has it.
    pub degraded: Vec<String>,
    /// The configuration and its drop-ins, with every secret removed.
    pub configuration: String,
}

/// A part of the test.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    /// In one word, e.g. "passive", "link-down".
    pub name: String,
    /// In words, e.g. "eth0 is down".
    pub title: String,
    /// From when.
    pub from_ms: u64,
    /// Until when.
    pub to_ms: u64,
}

/// The state of one thing over time.
#[derive(Debug, Clone, Serialize)]
pub struct Band {
    /// What kind of thing.
    pub kind: BandKind,
    /// Its name: a link's, or "daemon", "lock".
    pub name: String,
    /// In order, without gaps.
    pub spans: Vec<Span>,
}

/// What a [`Band`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BandKind {
    /// The tunnel.
    Tunnel,
    /// Another link.
    Link,
    /// The daemon.
    Daemon,
    /// The lock in the kernel.
    Lock,
}

/// A state and how long it lasted.
#[derive(Debug, Clone, Serialize)]
pub struct Span {
    /// From when.
    pub from_ms: u64,
    /// Until when.
    pub to_ms: u64,
    /// Whether it is good or bad.
    pub level: Level,
    /// In a word or two, e.g. "up", "down", "intact", "stopped".
    pub state: String,
}

/// How a [`Span`] is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Good,
    /// Down or away, which may not cost anything but the connection.
    Away,
    /// The lock itself is weaker than it should be.
    Bad,
}

/// Packets over time, in columns of equal width.
#[derive(Debug, Clone, Serialize)]
pub struct Traffic {
    /// A column's width.
    pub width_ms: u64,
    /// Into the tunnel, in each column.
    pub tunnel: Vec<u64>,
    /// Blocked by the lock (its counters), in each column.
    pub blocked: Vec<u64>,
    /// Leaked, in each column.
    pub leaked: Vec<u64>,
}

/// One way out that was tried.
#[derive(Debug, Clone, Serialize)]
pub struct Probe {
    /// In one word, e.g. "udp", "packet-socket".
    pub name: String,
    /// In words: what was sent, how, and by which link.
    pub title: String,
    /// The numbers of SECURITY.md's threats that it tries.
    pub threats: Vec<u8>,
    /// Whether it came out.
    pub verdict: Verdict,
    /// Why it could not be tried or seen, or which key of the configuration allows it.
    pub reason: Option<String>,
    /// Canaries handed to the kernel.
    pub sent: u64,
    /// Of these, refused at once: the sender got an error.
    pub refused: u64,
    /// Seen to enter the tunnel.
    pub tunnelled: u64,
    /// Frames seen on a link outside of the tunnel that may not be there.
    pub leaked: u64,
    /// The first of these.
    pub frames: Vec<Frame>,
}

/// A frame that may not be there.
#[derive(Debug, Clone, Serialize)]
pub struct Frame {
    /// When it was seen.
    pub at_ms: u64,
    /// The link that it left by.
    pub link: String,
    /// Its length in bytes.
    pub length: u32,
    /// What it is, in words: e.g. "udp 192.0.2.7:40000 -> 1.1.1.1:53".
    pub what: String,
}
