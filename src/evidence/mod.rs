//! What happened to the lock, for whoever asks later: an append-only journal, chained by hashes.
//!
//! ```text
//! record -> spool (/run, never blocks) -> fold: chain -> journal (/var, may be full, slow or not there)
//! ```
//!
//! Whoever changes something writes a line to the `spool` first; what folds the spool into the
//! [`journal`] is the daemon's thread (`recorder`), or a command where no daemon runs. So neither the
//! lock nor the daemon's loop ever waits for a disk, an entry survives the death of its writer, and a
//! machine whose /var is not mounted yet has evidence, too. [`chain`] is pure: what makes a line follow
//! another, and what is wrong where it does not.

use std::path::PathBuf;

mod caller;
pub mod chain;
pub mod html;
pub mod journal;
mod limit;
mod record;
mod recorder;
mod spool;
pub mod verify;
pub mod words;

pub use caller::Caller;
pub(crate) use record::clipped;
pub use record::{Record, Through, What, ruleset_hash};
pub(crate) use recorder::{Recorder, Trouble};

/// Where evidence is kept.
#[derive(Debug, Clone)]
pub struct Places {
    /// Of this boot, in memory: what waits, the locks, and the head as it was noted last.
    pub run: PathBuf,
    /// What must be a directory that has something in it: a mount point on which nothing is mounted
    /// yet is empty, and what is written there is hidden later.
    pub mounted: PathBuf,
    /// Below it: the journal's files.
    pub journal: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Places {
            run: "/run/killswitch".into(),
            mounted: "/var/lib".into(),
            journal: "/var/lib/killswitch/evidence".into(),
        }
    }
}

impl Places {
    /// What is yet to be folded in.
    pub fn pending(&self) -> PathBuf {
        self.run.join("evidence-pending.jsonl")
    }

    /// What is being folded in, or was when somebody died.
    pub fn folding(&self) -> PathBuf {
        self.run.join("evidence-folding.jsonl")
    }

    /// Held by whoever folds.
    fn turn(&self) -> PathBuf {
        self.run.join("evidence.lock")
    }

    /// The journal's end, as `SEQ:HASH`.
    pub fn head(&self) -> PathBuf {
        self.run.join("evidence-head")
    }
}

/// Notes something for the journal, as a command does: in memory, at once.
///
/// # Errors
/// Those of files; the caller's work must not fail for it.
pub fn note(what: What) -> std::io::Result<()> {
    spool::append(&Places::default(), &Record::now(what).body())
}

/// Folds in what waits, as a command does where no daemon does it: without waiting for the disk.
///
/// # Errors
/// Those of files; then it waits on.
pub fn fold() -> std::io::Result<()> {
    journal::fold(&Places::default(), journal::OF_COMMANDS).map(drop)
}
