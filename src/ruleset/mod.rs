//! The ruleset: a [`Policy`](crate::policy::Policy) in nftables' terms. Pure: no I/O, no clock.
//!
//! One [`Ruleset`] value gives the kernel's messages ([`crate::netfilter`]), the text that
//! `killswitch rules` prints ([`text`]) and the model that `explain` asks ([`model`]), so they
//! cannot drift.

use std::fmt;

use smallvec::SmallVec;

mod compile;
mod digest;
pub mod expression;
mod field;
pub mod model;
pub mod plan;
pub mod text;

pub(crate) use compile::successor;
pub use compile::{Devices, LOG_COMMENT, LinkRef, PROBE_ETHERTYPE, PROBE_MARK, compile, guard};
pub use digest::{print, sha256};
pub use field::{Field, Load, ValueKind};

/// The name of both our tables.
pub const TABLE: &str = "killswitch";
/// The group of nfnetlink_log that is told what wanted to leave and was blocked: "ks" in ASCII.
pub const LOG_GROUP: u16 = 0x6b73;

/// One nftables table of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `inet` or `netdev`.
    pub family: Family,
    /// Named sets, in order of creation.
    pub sets: Vec<Set>,
    /// Chains, in order of creation: a chain stands before those that jump to it.
    pub chains: Vec<Chain>,
}

/// The whole lock in nftables' terms.
///
/// Two tables in two transactions, so that a kernel without `netdev` egress chains cannot cost the
/// `inet` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// Output, postrouting, forward, input, prerouting.
    pub inet: Table,
    /// The last gate on every link that is not the tunnel.
    pub egress: Option<Table>,
}

impl Ruleset {
    /// Both tables, the one that must hold first.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        std::iter::once(&self.inet).chain(&self.egress)
    }
}

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// Frames of one link or of all.
    Netdev,
}

impl Family {
    /// NFPROTO_* (include/uapi/linux/netfilter.h).
    pub const fn number(self) -> u8 {
        match self {
            Family::Inet => 1,
            Family::Netdev => 5,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Family::Inet => "inet",
            Family::Netdev => "netdev",
        })
    }
}

/// A named set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name, unique in the table.
    pub name: String,
    /// What an element is made of; more than one: a concatenation.
    pub key: Vec<ValueKind>,
    /// Whether elements are ranges.
    pub interval: bool,
    /// Sorted; ranges do not overlap.
    pub elements: Vec<Element>,
}

/// One element of a set, in network byte order, each part padded to four bytes if there are several.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// The value, or the first of a range.
    pub first: Vec<u8>,
    /// The last of a range, inclusive; equal to `first` for a single value.
    pub last: Vec<u8>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name, unique in the table.
    pub name: String,
    /// Where it hooks in; `None`: only jumped to.
    pub base: Option<Base>,
    /// In order of evaluation.
    pub rules: Vec<Rule>,
}

/// Where a base chain hooks in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Filter or source translation.
    pub kind: ChainKind,
    /// The hook.
    pub hook: Hook,
    /// Lower runs earlier.
    pub priority: i32,
    /// What happens at the chain's end.
    pub policy: ChainPolicy,
    /// The links of an egress chain.
    pub devices: Devices,
}

/// The type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Accepts and drops.
    Filter,
    /// Translates addresses.
    Nat,
}

/// A hook of the network stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// All that arrives, before routing.
    Prerouting,
    /// What arrives for this machine.
    Input,
    /// What passes through.
    Forward,
    /// What this machine sends, before the last routing decision.
    Output,
    /// All that leaves, on its true last link.
    Postrouting,
    /// Frames handed to a link's driver, whoever sent them.
    Egress,
}

impl Hook {
    /// NF_INET_* or NF_NETDEV_EGRESS.
    pub const fn number(self) -> u32 {
        match self {
            Hook::Prerouting => 0,
            Hook::Input => 1,
            Hook::Forward => 2,
            Hook::Output => 3,
            Hook::Postrouting => 4,
            Hook::Egress => 1,
        }
    }

    /// The name in nft's language.
    pub const fn name(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
            Hook::Egress => "egress",
        }
    }
}

/// The verdict at the end of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainPolicy {
    /// Let it pass.
    Accept,
    /// Drop it.
    Drop,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub matches: Vec<Match>,
    /// Count what gets here.
    pub counter: bool,
    /// What is done.
    pub action: Action,
    /// Why, in a word or two; shown by `nft`, `explain` and `status`.
    pub comment: String,
}

/// What a rule does to a packet that matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Let it go on to the next hook.
    Accept,
    /// Drop it.
    Drop,
    /// Drop it and tell the local sender at once.
    Reject(Rejection),
    /// Evaluate another chain.
    Jump(String),
    /// Leave this chain.
    Return,
    /// Set the firewall mark and go on.
    SetMark(u32),
    /// Send it under the address of the outgoing link.
    Masquerade,
    /// Show it to whoever reads [`LOG_GROUP`], at most so often, and go on.
    Log {
        /// Packets per second, in the long run.
        rate: u64,
        /// As many at once.
        burst: u32,
    },
}

/// How a local sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// ICMP or ICMPv6 "administratively prohibited".
    AdminProhibited,
    /// A TCP reset.
    TcpReset,
}

/// What one of the kernel's registers holds, in place: they are most of what rules are made of.
pub type Value = SmallVec<[u8; 16]>;

/// A condition on a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// What is looked at; more than one only with [`Test::In`].
    pub fields: SmallVec<[Field; 4]>,
    /// What it must be.
    pub test: Test,
}

/// What a field must be. Values are as the kernel's registers hold them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// Exactly this.
    Is(Value),
    /// Within these bounds, both included.
    Between(Value, Value),
    /// Equal under a mask: a prefix.
    Masked {
        /// Bits that count.
        mask: Value,
        /// What they must be.
        value: Value,
    },
    /// At least one bit of the mask is set.
    AnyOf(Value),
    /// Begins with these bytes.
    StartsWith(Value),
    /// Is an element of a set.
    In(String),
}

impl Table {
    /// The same without the rules that log, for a kernel that cannot: no verdict differs.
    pub fn without_log(mut self) -> Self {
        for chain in &mut self.chains {
            chain.rules.retain(|rule| !matches!(rule.action, Action::Log { .. }));
        }
        self
    }

    /// The set of that name.
    pub fn set(&self, name: &str) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == name)
    }

    /// The chain of that name.
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }
}
