//! What administrators ask for: by commands, or by a new configuration.

use super::{Link, Lost, Phase, Session};
use crate::engine::candidates::{Wishes, same};
use crate::engine::{Candidate, Effect, Engine, Settings, Time};

impl Engine {
    /// Connects, unless the tunnel is already on its way to such a server.
    pub(in crate::engine) fn connect(&mut self, server: Option<usize>, now: Time) {
        if !self.settings.managed {
            return;
        }
        self.wanted = true;
        self.asked = server.filter(|it| *it < self.settings.servers.len());
        let suits = |candidate: Candidate| self.asked.is_none_or(|it| it == candidate.server);
        match self.phase {
            Phase::Trying(attempt) if suits(attempt.candidate) => {}
            Phase::Up(session) if suits(session.candidate) => {}
            Phase::Lost(Lost { session, brief }) => {
                let session = session.filter(|it| suits(it.candidate));
                self.network_while_lost(Lost { session, brief }, now);
            }
            _ => self.begin(Wishes::default()),
        }
    }

    pub(in crate::engine) fn disconnect(&mut self) {
        if self.settings.managed {
            self.take_down();
        }
    }

    pub(in crate::engine) fn reconnect(&mut self, now: Time) {
        if !self.keeps_tunnel() {
            return self.connect(self.asked, now);
        }
        self.mend_what_no_event_tells();
        let first = self.candidate();
        self.begin(Wishes { first, ..Wishes::default() });
    }

    fn take_down(&mut self) {
        self.wanted = false;
        self.phase = Phase::Off;
        self.link = Link::default();
        self.perform_once(Effect::RestoreDns);
        self.perform_once(Effect::RemoveLink);
    }

    /// Keeps a session whose server and endpoint are still configured.
    pub(in crate::engine) fn configured(&mut self, settings: Settings, now: Time) {
        let old = std::mem::replace(&mut self.settings, settings);
        let named = |index: usize| old.servers.get(index).map(|it| it.name.as_str());
        let servers = &self.settings.servers;
        let renamed = |index| servers.iter().position(|it| Some(it.name.as_str()) == named(index));
        let still = |it: Candidate| same(servers, named(it.server)?, it.endpoint);
        let candidate = self.candidate();
        let kept = candidate.and_then(still);
        self.asked = self.asked.and_then(renamed);
        self.plan.left = self.plan.left.iter().copied().filter_map(still).collect();
        if !self.settings.managed {
            if old.managed && self.wanted {
                self.take_down();
            }
        } else if !old.managed {
            self.wanted = self.settings.connect_at_start;
            self.begin(Wishes::default());
        } else if kept.is_none() {
            self.link.built = false;
            self.begin(Wishes::default());
        } else {
            self.keep(kept, candidate == kept, now);
        }
    }

    /// The present candidate stays, as the new configuration counts it; what else that says of the
    /// tunnel (addresses, MTU, resolvers) is set.
    fn keep(&mut self, kept: Option<Candidate>, unmoved: bool, now: Time) {
        let Some(candidate) = kept else { return };
        if !unmoved {
            self.pending.outdate_readings();
        }
        match self.phase {
            Phase::Up(session) => {
                self.set_what_may_differ();
                self.phase = Phase::Up(Session { candidate, ..session });
            }
            Phase::Lost(Lost { session: Some(session), brief }) => {
                self.set_what_may_differ();
                let session = Some(Session { candidate, ..session });
                self.network_while_lost(Lost { session, brief }, now);
            }
            Phase::Trying(_) | Phase::Resting(_) => {
                self.link.built = false;
                self.begin(Wishes { first: Some(candidate), ..Wishes::default() });
            }
            Phase::Off | Phase::Lost(_) => {}
        }
    }

    fn set_what_may_differ(&mut self) {
        self.perform_once(Effect::EnsureLink);
        self.perform_once(Effect::EnsureRoutes);
        self.resolve_again();
    }
}
