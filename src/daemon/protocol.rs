//! What goes over the control socket: one JSON document to a line, a request and its replies.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::watch::Blocked;

/// Where the daemon listens; its directory is root's alone.
pub const SOCKET: &str = "/run/killswitch/control";

/// What an administrator asks of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Request {
    /// Bring the tunnel up; through this server first, if one is named.
    Connect {
        /// Its name.
        server: Option<String>,
    },
    /// Take the tunnel down; the lock stays.
    Disconnect,
    /// A fresh handshake, with the present server first.
    Reconnect,
    /// Open the lock.
    Unlock,
    /// Read the configuration anew and apply it, also to an open machine.
    Reload {
        /// The file that the caller means; it must be the daemon's.
        config: PathBuf,
    },
    /// What the daemon knows.
    Status,
    /// Every event from now on, one to a line.
    Monitor,
}

/// The daemon's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "lowercase")]
pub enum Reply {
    /// Done.
    Done {
        /// Whether anything changed.
        changed: bool,
        /// What is weaker than asked.
        degraded: Vec<String>,
    },
    /// Not done.
    Refused {
        /// What, where, and what to do next.
        error: String,
        /// The exit status that says so.
        code: u8,
    },
    /// The answer to [`Request::Status`].
    Status(Report),
}

/// What the daemon knows that the kernel does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// "open", "disconnected", "waiting", "connecting" or "connected".
    pub state: String,
    /// The server in use or being tried.
    pub server: Option<String>,
    /// Its endpoint.
    pub endpoint: Option<String>,
    /// What does not work as it should.
    pub degraded: Vec<String>,
    /// How often somebody else's change to the lock was undone.
    pub repairs: u64,
}

/// What happened: what `killswitch monitor` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// The daemon's state changed.
    State(Report),
    /// Somebody else changed our part of the kernel.
    Tampered {
        /// "tables" or "routing".
        layer: String,
        /// Who, if the kernel tells.
        pid: Option<u32>,
        /// Its name.
        process: Option<String>,
    },
    /// A packet wanted to leave, and the lock blocked it.
    Blocked(Blocked),
    /// It was undone.
    Repaired {
        /// How often so far.
        repairs: u64,
    },
    /// Something could not be done; it is tried again.
    Failed {
        /// What.
        what: String,
        /// Why.
        why: String,
    },
    /// The configuration was read anew.
    Reloaded,
    /// The reader was too slow for this many events.
    Missed {
        /// How many.
        events: u64,
    },
}

/// An [`Event`] and when it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Seconds since 1970, by the machine's clock.
    pub time: f64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}
