//! What the daemon tells of itself.

use std::collections::BTreeSet;

use super::{Daemon, system};
use crate::daemon::calls::{Event, Report};
use crate::engine::{Candidate, State};
use crate::evidence::{What, clipped};

impl Daemon {
    pub(super) fn announce(&mut self) {
        let report = self.report();
        let words = report.words();
        tracing::info!(STATE = report.state, SERVER = report.server, "{words}");
        self.board.tell(Event::State(report));
    }

    /// For whoever looks, without asking.
    pub(super) fn publish(&mut self) {
        let report = self.report();
        let words = report.words();
        if words != self.told {
            system::status(&words);
            self.told = words;
        }
        self.record_changes(&report);
        // The engine knows nothing of them, and whoever follows must.
        if report.exceptions != self.board.facts().report.exceptions {
            self.board.tell(Event::State(report.clone()));
        }
        self.board.update(|facts| {
            facts.report = report;
            facts.configured = self.policy.clone();
            facts.policy = self.effective.clone();
            facts.config = self.config.clone();
            facts.complaint = self.complaint.clone();
            facts.revision = self.revision;
            facts.open = self.opened && !self.held;
        });
    }

    /// Of state and of what is degraded, against what was recorded last.
    fn record_changes(&mut self, report: &Report) {
        let Report { state, tunnel, locked, intact, .. } = report.clone();
        let what = What::State { state, tunnel, locked, intact };
        if self.recorded_state.as_ref() != Some(&what) {
            self.board.record(what.clone());
            self.recorded_state = Some(what);
        }
        let new: BTreeSet<String> = report.degraded.iter().map(|it| clipped(it)).collect();
        let old = std::mem::take(&mut self.recorded_degraded);
        for reason in new.difference(&old) {
            self.board.record(What::Degraded { reason: reason.clone() });
        }
        for reason in old.difference(&new) {
            self.board.record(What::DegradedEnded { reason: reason.clone() });
        }
        self.recorded_degraded = new;
    }

    fn report(&self) -> Report {
        let (tunnel, candidate) = match *self.engine.state() {
            State::Open | State::Disconnected | State::External { up: false } => ("off", None),
            State::Waiting => ("waiting", None),
            State::Connecting(candidate) => ("connecting", Some(candidate)),
            State::Connected(candidate) => ("connected", Some(candidate)),
            State::External { up: true } => ("connected", None),
        };
        let open = *self.engine.state() == State::Open;
        // Never from memory: not before it was seen in the kernel.
        let locked = !open && self.ready;
        let intact = locked && self.held && self.whole && !self.disturbed;
        let state = match (open, intact, tunnel) {
            (true, ..) => "open",
            (false, false, _) => "damaged",
            (false, true, "off") => "blocked",
            (false, true, "waiting") => "connecting",
            (false, true, other) => other,
        };
        let server = |it: Candidate| {
            self.config.as_ref()?.servers.get(it.server).map(|server| server.name.clone())
        };
        Report {
            state: state.into(),
            tunnel: tunnel.into(),
            locked,
            intact,
            server: candidate.and_then(server),
            endpoint: candidate.map(|it| it.endpoint.to_string()),
            degraded: self.degraded(),
            repairs: self.repairs,
            exceptions: self.exceptions_in_words(),
        }
    }

    fn degraded(&self) -> Vec<String> {
        let mut all: Vec<String> = self.complaint.iter().cloned().collect();
        all.extend(self.lock_degraded.iter().cloned());
        all.extend(self.link_degraded.iter().cloned());
        all.extend(self.control_degraded.iter().cloned());
        all.extend(self.blocked_degraded.iter().cloned());
        all.extend(self.engine.degraded());
        all.extend(self.evidence.borrow().clone());
        all
    }
}
