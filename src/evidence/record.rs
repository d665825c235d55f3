//! What is recorded, and how it is written.
//!
//! Never a key, and never which server or which network: a list of visited networks on disk would
//! harm those whom this protects.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::Caller;
use crate::daemon;
use crate::policy::Policy;
use crate::process;
use crate::ruleset::{self, Ruleset};

/// One thing that happened, with when and by which process it was noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Seconds since 1970, UTC, by a clock that may be set.
    pub time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// CLOCK_BOOTTIME in microseconds, which nobody sets.
    pub boottime_us: u64,
    /// The process that noted it.
    pub writer: u32,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// The daemon began.
    DaemonStarted {
        /// This program's version.
        version: String,
        /// SHA-256 of the ruleset that it holds, as `killswitch rules` prints it.
        ruleset: String,
    },
    /// The daemon ends as it was told to.
    DaemonStopped,
    /// Root typed a command that changes something; what came of it follows.
    Command {
        /// Which.
        command: String,
        /// Who typed it, and where.
        by: Caller,
        /// Why, if that was said.
        #[serde(skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// The lock was closed, or read and mended; by the daemon: was asked for by somebody who may.
    Lock {
        /// Who asked.
        by: Caller,
        /// Who did it.
        through: Through,
        /// Whether anything had to be changed.
        #[serde(skip_serializing_if = "Option::is_none")]
        changed: Option<bool>,
        /// SHA-256 of the ruleset.
        #[serde(skip_serializing_if = "Option::is_none")]
        ruleset: Option<String>,
        /// What is weaker than asked.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        degraded: Vec<String>,
    },
    /// The lock was opened; by the daemon: was asked for by somebody who may.
    Unlock {
        /// Who asked.
        by: Caller,
        /// Who did it.
        through: Through,
        /// Why, if that was said.
        #[serde(skip_serializing_if = "String::is_empty")]
        reason: String,
        /// Whether there was a lock.
        #[serde(skip_serializing_if = "Option::is_none")]
        changed: Option<bool>,
    },
    /// A new configuration was asked for by somebody who may.
    Reload {
        /// Who asked.
        by: Caller,
    },
    /// A new configuration holds.
    Reloaded {
        /// SHA-256 of the ruleset.
        ruleset: String,
        /// How many lines of the plan tighten.
        tightens: usize,
        /// How many loosen.
        loosens: usize,
    },
    /// Something was let through for a while.
    ExceptionOpened {
        /// Its number.
        id: u32,
        /// Of which kind.
        kind: String,
        /// As it is typed.
        what: String,
        /// For how many seconds at most.
        seconds: u64,
        /// Who asked.
        by: Caller,
    },
    /// It is not wanted any more.
    ExceptionClosed {
        /// Its number.
        id: u32,
        /// Why.
        why: String,
        /// Who asked, if anybody did.
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<Caller>,
    },
    /// The daemon's state changed.
    State {
        /// As `status` has it.
        state: String,
        /// What the daemon does for the tunnel.
        tunnel: String,
        /// Whether the lock is closed.
        locked: bool,
        /// Whether all of it is as it shall be.
        intact: bool,
    },
    /// Something does not work as it should from now on.
    Degraded {
        /// What.
        reason: String,
    },
    /// It does again.
    DegradedEnded {
        /// What.
        reason: String,
    },
    /// Somebody else changed our part of the kernel.
    Tampered {
        /// "tables" or "routing".
        layer: String,
        /// Who, where the kernel tells.
        #[serde(skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
        /// Its name.
        #[serde(skip_serializing_if = "Option::is_none")]
        process: Option<String>,
    },
    /// It was undone.
    Repaired {
        /// How often since the daemon started.
        repairs: u64,
    },
    /// Something could not be done.
    Failed {
        /// What.
        what: String,
        /// Why.
        why: String,
    },
    /// Somebody asked who may not.
    Refused {
        /// polkit's action.
        action: String,
        /// Who.
        by: Caller,
        /// Why not.
        why: String,
    },
    /// So many entries could not be kept.
    Lost {
        /// How many.
        entries: u64,
    },
    /// So many of a kind of which there were too many were left out.
    LeftOut {
        /// How many.
        entries: u64,
    },
    /// The end of a file was no whole line: its writer died. It was put into a file of its own.
    Torn {
        /// In which file it was.
        file: String,
        /// Where it is now.
        kept: String,
        /// How long it is.
        bytes: u64,
        /// Its SHA-256.
        sha256: String,
    },
    /// The journal ends elsewhere than was noted when it was last written in this boot: somebody cut or
    /// edited it.
    Cut {
        /// The end that was noted, `SEQ:HASH`.
        noted: String,
        /// The end that was found.
        found: String,
    },
    /// There is room for new entries: the oldest file goes.
    Rotated {
        /// Which.
        removed: String,
        /// Its end, `SEQ:HASH`.
        last: String,
    },
}

/// Who changes the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Through {
    /// The daemon.
    Daemon,
    /// The command itself.
    Kernel,
    /// The command that runs before the network comes up.
    Boot,
}

impl Record {
    /// Now, by this process.
    pub fn now(what: What) -> Self {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut buffer = [0; 64];
        let boot_id = process::read("/proc/sys/kernel/random/boot_id", &mut buffer);
        Record {
            time,
            boot_id: String::from_utf8_lossy(boot_id).trim().to_owned(),
            boottime_us: daemon::now().as_micros() as u64,
            writer: std::process::id(),
            what,
        }
    }

    /// A line without its end, and without what chains it.
    pub(super) fn body(&self) -> String {
        let text = serde_json::to_string(self).expect("our documents have string keys");
        match text.len() <= LONGEST {
            true => text,
            // Nothing of ours is so long; what others chose might be.
            false => {
                let why = format!("an entry of {} bytes was left out", text.len());
                let what = What::Failed { what: "recording".into(), why };
                Record { what, ..self.clone() }.body()
            }
        }
    }
}

/// Bytes of a line at most.
pub(super) const LONGEST: usize = 32 << 10;

/// As much of somebody else's words as a line takes.
pub(crate) fn clipped(text: &str) -> String {
    const MOST: usize = 1000;
    text.chars().take(MOST).collect()
}

/// SHA-256 of what `killswitch rules` prints of this policy, where the kernel takes a guard for every
/// link at once.
pub fn ruleset_hash(policy: &Policy) -> String {
    let egress = policy.egress_guard.then(|| ruleset::guard(policy, None));
    ruleset::sha256(&Ruleset { inet: ruleset::compile(policy), egress })
}
