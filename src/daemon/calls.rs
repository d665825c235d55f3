//! What the loop is asked, and what it tells: its only way to the outside, whoever speaks there.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, oneshot, watch};

use crate::config::Config;
use crate::dbus::Error;
use crate::evidence::{Caller, Recorder, What, clipped};
use crate::policy::{Exception, Policy};
use crate::watch::Blocked;

/// A request that waits for its answer.
#[derive(Debug)]
pub(crate) struct Call {
    pub request: Request,
    pub answer: Answer,
}

/// To whom an answer is owed.
pub(crate) type Answer = oneshot::Sender<Result<Done, Error>>;

/// What is asked of the daemon, by somebody who may.
#[derive(Debug)]
pub(crate) enum Request {
    /// Close the lock, as it was configured last; mend it where it is closed.
    Lock {
        /// Who asked: for the journal and the evidence, as of all others.
        by: Caller,
    },
    /// Open the lock.
    Unlock { by: Caller, why: String },
    /// Apply this configuration, also to an open machine.
    Reload {
        config: Box<Config>,
        /// What it was weighed against: if that is no longer so, it must be weighed anew.
        revision: u64,
        by: Caller,
    },
    /// Open this for a while.
    Except { exception: Exception, duration: Duration, by: Caller },
    /// Close the exception of this number before its time.
    EndException { id: u32, by: Caller },
    /// Bring the tunnel up; through this server first, if one is named.
    Connect { server: Option<String> },
    /// Take the tunnel down; the lock stays.
    Disconnect,
    /// A fresh handshake, with the present server first.
    Reconnect,
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Done {
    /// It was done.
    Yes {
        /// Whether anything had to be changed.
        changed: bool,
        /// What is weaker than asked.
        degraded: Vec<String>,
    },
    /// This exception is open now.
    Excepted { id: u32 },
    /// What the request was weighed against has changed.
    Stale,
}

/// What the daemon knows that the kernel does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// As [`crate::lock::State`]: "connected", "connecting", "blocked", "open" or "damaged".
    pub state: String,
    /// What the daemon does for the tunnel: "off", "waiting" (for a network), "connecting" or
    /// "connected".
    pub tunnel: String,
    /// Whether the lock is closed.
    pub locked: bool,
    /// Whether all of it was found as it shall be, and nobody has changed it since.
    pub intact: bool,
    /// The server in use or being tried.
    pub server: Option<String>,
    /// Its endpoint.
    pub endpoint: Option<String>,
    /// What does not work as it should.
    pub degraded: Vec<String>,
    /// How often somebody else's change to the lock was undone.
    pub repairs: u64,
    /// What is open for a while besides the configuration.
    pub exceptions: Vec<Excepted>,
}

/// An exception that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excepted {
    /// Its number.
    pub id: u32,
    /// One of [`crate::config::EXCEPTION_KINDS`].
    pub kind: String,
    /// As [`Exception`] writes it.
    pub what: String,
    /// When it ends, in microseconds of CLOCK_BOOTTIME.
    pub ends: u64,
}

impl Report {
    /// One line for people.
    pub fn words(&self) -> String {
        let through = match (&self.server, &self.endpoint) {
            (Some(server), Some(endpoint)) => format!(" {server} ({endpoint})"),
            _ => String::new(),
        };
        let lock = match (self.state.as_str(), self.locked, self.intact) {
            ("open", ..) => "OPEN: an administrator unlocked",
            (_, false, _) => "CANNOT TELL: the lock was not yet seen whole in the kernel",
            (_, true, false) => "locked, being mended",
            (_, true, true) => "locked",
        };
        let tunnel = match (self.locked, self.tunnel.as_str()) {
            (false, _) => String::new(),
            (true, "connected") => format!(", connected{through}"),
            (true, "connecting") => format!(", connecting to{through}"),
            (true, "waiting") => ", waiting for a network".to_owned(),
            (true, _) => ", not connected".to_owned(),
        };
        let mut words = format!("{lock}{tunnel}");
        if !self.exceptions.is_empty() {
            words.push_str(&format!("; exceptions: {}", self.exceptions.len()));
        }
        if let [first, rest @ ..] = self.degraded.as_slice() {
            words.push_str(&format!("; degraded: {first}"));
            if !rest.is_empty() {
                words.push_str(&format!(" and {} more", rest.len()));
            }
        }
        words
    }
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
    /// The listener was too slow for this many events.
    Missed {
        /// How many.
        events: u64,
    },
}

/// What there is to know without asking the loop.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub report: Report,
    /// The configuration's: what is held after `lock`.
    pub configured: Arc<Policy>,
    /// With the exceptions: what is held now.
    pub policy: Arc<Policy>,
    /// `None`: it cannot be used.
    pub config: Option<Arc<Config>>,
    /// Why the policy is the strictest.
    pub complaint: Option<String>,
    /// Where the configuration is read from.
    pub path: std::path::PathBuf,
    /// The kernel's lock has been opened, and nothing has closed it since.
    pub open: bool,
    /// Grows whenever the lock's policy changes, and when it is opened or closed.
    pub revision: u64,
}

/// Where the loop puts what it tells, for whoever reads there.
#[derive(Debug)]
pub(crate) struct Board {
    facts: watch::Sender<Arc<Facts>>,
    events: broadcast::Sender<Event>,
    evidence: Recorder,
}

/// Events that a slow reader may fall behind by, before some are left out for it.
const BACKLOG: usize = 256;

impl Board {
    pub(crate) fn new(facts: Facts, evidence: Recorder) -> Self {
        let facts = watch::Sender::new(Arc::new(facts));
        Board { facts, events: broadcast::channel(BACKLOG).0, evidence }
    }

    /// As they are now.
    pub(crate) fn facts(&self) -> Arc<Facts> {
        self.facts.borrow().clone()
    }

    /// For whoever waits for changes.
    pub(crate) fn follow(&self) -> watch::Receiver<Arc<Facts>> {
        self.facts.subscribe()
    }

    /// Every event from now on.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Changes the facts; whoever follows hears of it if the report or the revision differ.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Facts)) {
        let mut new = (*self.facts()).clone();
        change(&mut new);
        let told = |facts: &Facts| (facts.report.clone(), facts.revision);
        self.facts.send_if_modified(|facts| {
            let differs = told(facts) != told(&new);
            *facts = Arc::new(new);
            differs
        });
    }

    /// Records it as evidence.
    pub(crate) fn record(&self, what: What) {
        self.evidence.record(what);
    }

    /// Waits until what was recorded outlives this process, but not for long.
    pub(crate) fn finish_recording(&self) {
        self.evidence.finish();
    }

    pub(crate) fn tell(&self, event: Event) {
        if let Some(what) = evidence_of(&event) {
            self.record(what);
        }
        // An error only says that nobody listens.
        let _ = self.events.send(event);
    }
}

/// What of an event is recorded. States are as they change, not as they are told; packets never are.
fn evidence_of(event: &Event) -> Option<What> {
    Some(match event {
        Event::Tampered { layer, pid, process } => {
            What::Tampered { layer: layer.clone(), pid: *pid, process: process.clone() }
        }
        Event::Repaired { repairs } => What::Repaired { repairs: *repairs },
        Event::Failed { what, why } => What::Failed { what: what.clone(), why: clipped(why) },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On kernels where the tables have an owner nobody else can change them: so by hand.
    #[test]
    fn the_culprit_reaches_the_evidence() {
        let (layer, process) = ("tables".to_owned(), Some("nft".to_owned()));
        let event =
            Event::Tampered { layer: layer.clone(), pid: Some(7), process: process.clone() };
        let what = What::Tampered { layer, pid: Some(7), process };
        assert_eq!(evidence_of(&event), Some(what));
        assert_eq!(evidence_of(&Event::State(Report::default())), None);
    }
}
