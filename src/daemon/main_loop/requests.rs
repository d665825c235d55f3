//! What is asked of the daemon, by somebody who may.

use super::{Coming, Daemon, system};
use crate::config::{self, Config};
use crate::daemon::calls::{Answer, Call, Done, Request};
use crate::daemon::lanes::Lane;
use crate::dbus::Error;
use crate::engine::{Command, Event, Layer, State};
use crate::evidence::{Caller, Through, What};
use crate::policy::Policy;

/// The same to all; a caller may have gone.
pub(super) fn answer(to: &mut Vec<Answer>, answer: &Result<Done, Error>) {
    for caller in to.drain(..) {
        let _ = caller.send(answer.clone());
    }
}

pub(super) const DONE: Done = Done::Yes { changed: true, degraded: Vec::new() };

impl Daemon {
    pub(super) fn called(&mut self, call: Call) {
        let Call { request, answer } = call;
        let reply = match request {
            Request::Lock { by } => return self.lock(by, answer),
            Request::Unlock { by, why } => return self.unlock(by, why, answer),
            Request::Reload { revision, .. } if revision != self.revision => Ok(Done::Stale),
            Request::Reload { config, by, .. } => {
                self.board.record(What::Reload { by });
                return self.replace(*config, Some(answer));
            }
            Request::Except { exception, duration, by } => {
                return self.except(exception, duration, by, answer);
            }
            Request::EndException { id, by } => return self.end_exception(id, by, answer),
            Request::Connect { server } => self.connect(server),
            Request::Disconnect => self.command(Command::Disconnect),
            Request::Reconnect => self.command(Command::Reconnect),
        };
        let _ = answer.send(reply);
    }

    fn lock(&mut self, by: Caller, answer: Answer) {
        let through = Through::Daemon;
        let (changed, ruleset, degraded) = (None, None, Vec::new());
        self.board.record(What::Lock { by, through, changed, ruleset, degraded });
        let before = self.holds_asked;
        if *self.engine.state() == State::Open {
            self.decide(Event::Command(Command::Lock));
        } else if self.end_all_exceptions("locked") {
            // The configuration, and nothing besides.
            return self.tighten(Some(answer));
        } else {
            // Closed as far as we know: it is read, and mended.
            self.decide(Event::Disturbed(Layer::Tables));
        }
        // One that is under way may have begun before this: then the engine asks for another after it.
        self.wait_for_closed.push((before + 1, answer));
    }

    /// One hold has ended so: whoever asked before it began is answered.
    pub(super) fn closed(&mut self, result: &Result<Done, Error>) {
        self.holds_ended += 1;
        let ended = self.holds_ended;
        for (_, caller) in self.wait_for_closed.extract_if(.., |(hold, _)| *hold <= ended) {
            let _ = caller.send(result.clone());
        }
    }

    /// The lock was opened: what was yet to close it is not wanted any more.
    pub(super) fn give_up_closing(&mut self) {
        let asked = self.holds_asked;
        let opened = || Err(Error::Failed("the lock was opened meanwhile".into()));
        for (_, caller) in self.wait_for_closed.extract_if(.., |(hold, _)| *hold > asked) {
            let _ = caller.send(opened());
        }
    }

    fn unlock(&mut self, by: Caller, why: String, answer: Answer) {
        let who = by.to_string();
        tracing::warn!(WHO = who, REASON = why, "asked to unlock by {who}: {why:?}");
        let through = Through::Daemon;
        self.board.record(What::Unlock { by, through, reason: why, changed: None });
        self.wait_for_open.push(answer);
        // What is being weighed now was asked before.
        self.revision += 1;
        if let Some(coming) = &mut self.coming {
            coming.unlocked = true;
        }
        self.decide(Event::Command(Command::Unlock));
        // The next lock shall know of none.
        if self.end_all_exceptions("unlocked") {
            self.tighten(None);
        }
    }

    /// On SIGHUP: only root can send it.
    pub(super) fn reload(&mut self) {
        match config::load(&self.path) {
            Ok(config) => self.replace(config, None),
            Err(error) => tracing::error!("not reloaded, the old lock stays: {error}"),
        }
    }

    fn replace(&mut self, config: Config, answer: Option<Answer>) {
        if self.coming.is_some() {
            let words = "another reload is under way; the lock is as it was";
            tracing::error!("not reloaded: {words}");
            if let Some(answer) = answer {
                let _ = answer.send(Err(Error::Busy(words.into())));
            }
            return;
        }
        if self.ready {
            system::reloading();
        }
        self.begin(Lane::Lock);
        self.lanes.replace(Policy::from_config(&config));
        self.coming = Some(Coming { config, answer, unlocked: false });
    }

    fn command(&mut self, command: Command) -> Result<Done, Error> {
        /// Far more than anybody waits for.
        const MOST_UNDER_WAY: usize = 64;
        self.managed()?;
        if self.under_way.len() > MOST_UNDER_WAY {
            return Err(Error::Busy("much is under way yet; try again".into()));
        }
        self.decide(Event::Command(command));
        Ok(DONE)
    }

    fn managed(&self) -> Result<&Config, Error> {
        let config = self.config.as_deref().ok_or_else(|| {
            Error::BadConfiguration("the configuration cannot be used; mend it and reload".into())
        })?;
        match config.tunnel.is_managed() {
            true => Ok(config),
            false => Err(Error::NotManaged(
                "tunnel.kind is \"external\": something else brings the tunnel up".into(),
            )),
        }
    }

    fn connect(&mut self, server: Option<String>) -> Result<Done, Error> {
        let config = self.managed()?;
        let position = server
            .map(|name| config.server_named(&name).map_err(Error::UnknownServer))
            .transpose()?;
        self.command(Command::Connect(position))
    }
}
