//! What is open for a while besides the configuration.
//!
//! The lock's lane does one thing after the other, and every change of the book gives it the book's
//! whole policy: so the kernel ends up with what the book says last.

use std::sync::Arc;
use std::time::Duration;

use super::requests::{self, DONE};
use super::{Daemon, now};
use crate::daemon::calls::{Answer, Done, Excepted};
use crate::daemon::lanes::Lane;
use crate::dbus::Error;
use crate::engine::{Event, Layer, State};
use crate::evidence::{Caller, What, clipped};
use crate::exceptions::{Entry, MOST};
use crate::lock::Outcome;
use crate::policy::Exception;

impl Daemon {
    pub(super) fn except(
        &mut self,
        exception: Exception,
        duration: Duration,
        by: Caller,
        answer: Answer,
    ) {
        let id = match self.note_exception(&exception, duration) {
            Ok(id) => id,
            Err(refusal) => return drop(answer.send(Err(refusal))),
        };
        let (kind, seconds) = (exception.kind(), duration.as_secs());
        let who = by.to_string();
        tracing::warn!(
            WHO = who,
            EXCEPTION = id,
            "exception {id}: {kind} {exception} for {seconds} s, asked for by {who}"
        );
        let (kind, what) = (kind.to_owned(), exception.to_string());
        self.board.record(What::ExceptionOpened { id, kind, what, seconds, by });
        self.begin(Lane::Lock);
        self.lanes.loosen(self.policy.with(self.exceptions.wanted()), id, answer);
    }

    /// Its number.
    fn note_exception(&mut self, exception: &Exception, duration: Duration) -> Result<u32, Error> {
        if *self.engine.state() == State::Open {
            return Err(Error::NotLocked("the lock is open: everything may leave anyway".into()));
        }
        if self.coming.is_some() {
            return Err(Error::Busy("a reload is under way; try again".into()));
        }
        let config = self.config.as_deref().ok_or_else(|| {
            Error::BadConfiguration("the configuration cannot be used; mend it and reload".into())
        })?;
        exception.check(config).map_err(Error::InvalidArgument)?;
        self.exceptions.add(exception.clone(), now() + duration).ok_or_else(|| {
            Error::Busy(format!("there are {MOST} exceptions already; remove one, or reload"))
        })
    }

    pub(super) fn end_exception(&mut self, id: u32, by: Caller, answer: Answer) {
        match self.exceptions.end(id) {
            Some(_) => {
                let who = by.to_string();
                tracing::info!(WHO = who, EXCEPTION = id, "exception {id} ends: removed by {who}");
                let why = "removed".to_owned();
                self.board.record(What::ExceptionClosed { id, why, by: Some(by) });
                self.tighten(Some(answer));
            }
            None => {
                let words = format!("there is no exception {id}: it may have ended");
                let _ = answer.send(Err(Error::UnknownException(words)));
            }
        }
    }

    /// The next one's time has come.
    pub(super) fn end_due_exceptions(&mut self) {
        let due = self.exceptions.due(now());
        if self.end_exceptions(&due, "its time is over") {
            self.tighten(None);
        }
    }

    /// Whether there was any.
    pub(super) fn end_all_exceptions(&mut self, why: &str) -> bool {
        let all = self.exceptions.all();
        self.end_exceptions(&all, why)
    }

    fn end_exceptions(&mut self, ids: &[u32], why: &str) -> bool {
        for &id in ids {
            self.exceptions.end(id);
            tracing::info!(EXCEPTION = id, "exception {id} ends: {why}");
            self.board.record(What::ExceptionClosed { id, why: why.to_owned(), by: None });
        }
        !ids.is_empty()
    }

    /// Has closed what has ended, and what could not be opened. A reload that is under way closes all,
    /// or else it is done after it: the lane has the new policy by then, or the old one.
    pub(super) fn tighten(&mut self, answer: Option<Answer>) {
        self.wait_for_tightened.extend(answer);
        if self.coming.is_some() {
            self.tighten_after_reload = true;
            return;
        }
        self.begin(Lane::Lock);
        let answers = std::mem::take(&mut self.wait_for_tightened);
        let policy = self.policy.with(self.exceptions.wanted());
        self.lanes.tighten(policy, self.exceptions.closing(), answers);
    }

    pub(super) fn loosened(&mut self, id: u32, result: Result<Outcome, String>, answer: Answer) {
        let reply = match result {
            Ok(outcome) => {
                self.exceptions.opened(id);
                self.take(&outcome);
                Ok(Done::Excepted { id })
            }
            Err(why) => {
                tracing::error!(EXCEPTION = id, "exception {id} could not be opened: {why}");
                let words = format!("it could not be opened: {}", clipped(&why));
                self.board.record(What::ExceptionClosed { id, why: words, by: None });
                self.exceptions.failed(id);
                // Others that were asked for after it have it in their policy.
                self.tighten(None);
                Err(Error::Failed(format!("{why}\nthe lock is as it was")))
            }
        };
        self.know_exceptions();
        let _ = answer.send(reply);
    }

    pub(super) fn tightened(
        &mut self,
        ids: &[u32],
        result: Result<Outcome, String>,
        answers: Vec<Answer>,
    ) {
        let reply = match result {
            Ok(outcome) => {
                self.exceptions.closed(ids);
                if self.held {
                    self.take(&outcome);
                }
                Ok(Done::Yes { changed: true, degraded: outcome.degraded })
            }
            Err(why) => {
                tracing::error!("exceptions are open past their end, to be tried again: {why}");
                self.held = false;
                self.unclosed.extend(ids);
                self.decide(Event::Disturbed(Layer::Tables));
                Err(Error::Failed(why))
            }
        };
        self.know_exceptions();
        for answer in answers {
            let _ = answer.send(reply.clone());
        }
    }

    /// After a reload: none of the old policy's is left; or they are as they were.
    pub(super) fn reloaded(&mut self, applied: bool) {
        let owed = std::mem::take(&mut self.tighten_after_reload);
        if applied {
            self.end_all_exceptions("reloaded");
            let closing = self.exceptions.closing();
            self.exceptions.closed(&closing);
            self.unclosed.clear();
            self.know_exceptions();
            requests::answer(&mut self.wait_for_tightened, &Ok(DONE));
        } else if owed {
            self.tighten(None);
        }
    }

    /// What could not be closed is closed by the next hold, since the lane has the policy without it.
    pub(super) fn forget_unclosed_exceptions(&mut self) {
        let closed = std::mem::take(&mut self.unclosed);
        if !closed.is_empty() {
            self.exceptions.closed(&closed);
            self.know_exceptions();
        }
    }

    /// What others see of them.
    fn know_exceptions(&mut self) {
        let held = self.exceptions.held().map(|(_, entry)| &entry.exception);
        self.effective = Arc::new(self.policy.with(held));
        self.publish();
    }

    pub(super) fn exceptions_in_words(&self) -> Vec<Excepted> {
        let words = |(id, entry): (u32, &Entry)| Excepted {
            id,
            kind: entry.exception.kind().into(),
            what: entry.exception.to_string(),
            ends: entry.ends.as_micros() as u64,
        };
        self.exceptions.held().map(words).collect()
    }
}
