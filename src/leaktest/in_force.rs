//! Which policy is in force: while a test runs somebody may reload the configuration, lock by another
//! one, or open an exception.
//!
//! The kernel says what is in force, and the configuration and the daemon what it means: a policy
//! counts from when the table is what it compiles to. As long as it is neither the old one's nor the
//! new one's, the old one counts.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::frame::Frame;
use super::judge::{Judgement, judge};
use crate::config;
use crate::dbus::client::Daemon;
use crate::lock::{self, Status};
use crate::netfilter::live;
use crate::netlink::{Family, Socket};
use crate::policy::Policy;
use crate::status;
use crate::watch::TABLE_GROUPS;

/// The policy in force.
pub struct InForce {
    policy: Policy,
    /// Until this moment; what is seen in it may be of either.
    before: Option<Policy>,
    /// Where it comes from; `None`: nobody changes it.
    configuration: Option<PathBuf>,
    /// Of the rules when they were looked at.
    generation: Option<u32>,
    /// Since when they are nobody's.
    unclear: Option<Instant>,
    /// Absent where the kernel has no nf_tables.
    kernel: Option<Socket>,
    events: Option<Socket>,
}

impl InForce {
    /// Begins with this policy, of this file.
    pub fn new(policy: Policy, configuration: Option<PathBuf>) -> Self {
        let kernel = Socket::open(Family::Netfilter).ok();
        let events = Socket::open_subscribed(Family::Netfilter, &TABLE_GROUPS).ok();
        let (before, generation, unclear) = (None, None, None);
        InForce { policy, before, configuration, generation, unclear, kernel, events }
    }

    /// What may leave.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Readable when a table changes.
    pub fn events(&self) -> Option<&Socket> {
        self.events.as_ref()
    }

    /// What a frame is that was seen since [`InForce::follow`].
    pub fn judge(&self, frame: &Frame<'_>) -> Judgement {
        match (judge(&self.policy, frame), &self.before) {
            (Judgement::Leaked, Some(before)) => judge(before, frame),
            (judgement, _) => judgement,
        }
    }

    /// From now on no frame is of before the last change.
    pub fn settle(&mut self) {
        self.before = None;
    }

    /// Whether another policy is in force than when this was asked last.
    pub fn follow(&mut self) -> bool {
        /// Whoever changes the rules says so a little later.
        const TRIES: u32 = 20;
        const PAUSE: Duration = Duration::from_millis(25);
        /// Or much later, or never: then it is damage.
        const AGAIN: Duration = Duration::from_secs(1);
        if let Some(events) = &self.events {
            events.discard_pending();
        }
        let generation = self.kernel.as_ref().and_then(|it| live::generation(it).ok());
        let known = generation == self.generation;
        let is_due = self.unclear.is_some_and(|it| it.elapsed() >= AGAIN);
        if self.configuration.is_none() || (known && !is_due) {
            return false;
        }
        (self.generation, self.unclear) = (generation, None);
        for _ in 0..if known { 1 } else { TRIES } {
            let Ok(live) = lock::read() else { break };
            let is_in_force = |it: &Policy| Status::of(&live, it, None).layers.table;
            if is_in_force(&self.policy) {
                return false;
            }
            if let Some(new) = self.configured().filter(is_in_force) {
                self.before = Some(std::mem::replace(&mut self.policy, new));
                return true;
            }
            std::thread::sleep(PAUSE);
        }
        self.unclear = Some(Instant::now());
        false
    }

    /// What the configuration and the daemon's exceptions allow now.
    fn configured(&self) -> Option<Policy> {
        const PATIENCE: Duration = Duration::from_millis(250);
        let path = self.configuration.as_ref()?;
        let Ok(config) = config::load(path) else { return Some(Policy::strictest()) };
        let told = Daemon::report_within(PATIENCE).map(|it| it.exceptions).unwrap_or_default();
        Some(status::with_exceptions(&Policy::from_config(&config), Some(&config), &told))
    }
}
