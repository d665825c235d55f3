//! What is asked of the daemon, by somebody who may.

use super::{Coming, Daemon, now, system};
use crate::config::{self, Config};
use crate::daemon::calls::{Answer, Call, Done, Request};
use crate::daemon::lanes::Lane;
use crate::dbus::Error;
use crate::engine::{Command, Effect, Event, State};
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
            Request::Lock => return self.lock(answer),
            Request::Unlock { who, why } => return self.unlock(&who, &why, answer),
            Request::Reload { revision, .. } if revision != self.revision => Ok(Done::Stale),
            Request::Reload { config, .. } => return self.replace(*config, Some(answer)),
            Request::Except { exception, duration, who } => {
                return self.except(exception, duration, &who, answer);
            }
            Request::EndException { id, who } => return self.end_exception(id, &who, answer),
            Request::Connect { server } => self.connect(server),
            Request::Disconnect => self.command(Command::Disconnect),
            Request::Reconnect => self.command(Command::Reconnect),
        };
        let _ = answer.send(reply);
    }

    fn lock(&mut self, answer: Answer) {
        if *self.engine.state() == State::Open {
            self.wait_for_closed.push(answer);
            return self.decide(Event::Command(Command::Lock));
        }
        // The configuration, and nothing besides.
        if self.end_all_exceptions("locked") {
            return self.tighten(Some(answer));
        }
        // Closed as far as we know: it is read, and mended.
        self.wait_for_closed.push(answer);
        self.perform(Effect::HoldLock);
    }

    fn unlock(&mut self, who: &str, why: &str, answer: Answer) {
        tracing::warn!(WHO = who, REASON = why, "asked to unlock by {who}: {why:?}");
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
        self.under_way.push((Lane::Lock, now()));
        self.lanes.replace(Policy::from_config(&config));
        self.coming = Some(Coming { config, answer, unlocked: false });
    }

    fn command(&mut self, command: Command) -> Result<Done, Error> {
        self.managed()?;
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
