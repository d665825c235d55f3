//! How effects ended.

use std::sync::Arc;

use super::requests::answer;
use super::{Coming, Daemon, Plan, device, system};
use crate::config::{self, Config};
use crate::daemon::calls::{self, Done};
use crate::daemon::lanes::{Lane, Report};
use crate::dbus;
use crate::engine::{Command, Effect, Event, Layer, State};
use crate::evidence::{What, clipped, ruleset_hash};
use crate::lock::Outcome;
use crate::ruleset::plan;

impl Daemon {
    pub(super) fn reported(&mut self, report: Report) {
        match report {
            Report::LinkReady(degraded) => self.link_degraded = degraded,
            Report::Read(reading) => self.decide(Event::Tunnel(reading)),
            Report::ResolversLost => self.decide(Event::ResolversLost),
            Report::Held(result) => {
                self.ended(Lane::Lock);
                self.held(result);
            }
            Report::Unlocked(result) => {
                self.ended(Lane::Lock);
                self.unlocked(result);
            }
            Report::Replaced(result) => {
                self.ended(Lane::Lock);
                self.replaced(result);
            }
            Report::Loosened(id, result, answer) => {
                self.ended(Lane::Lock);
                self.loosened(id, result, answer);
            }
            Report::Tightened(ids, result, answers) => {
                self.ended(Lane::Lock);
                self.tightened(&ids, result, answers);
            }
            Report::Done(effect) => {
                let asked = self.ended(Lane::of(&effect));
                self.failing.remove(&name(&effect));
                if asked {
                    self.decide(Event::Done(effect));
                }
                self.set_doubted_routes();
            }
            Report::Failed(effect, why) => {
                let asked = self.ended(Lane::of(&effect));
                self.failed(&effect, &why);
                if asked {
                    self.decide(Event::Failed(effect, why));
                }
                self.set_doubted_routes();
            }
        }
    }

    /// A lane does one thing after the other. Whether the engine asked for it.
    fn ended(&mut self, lane: Lane) -> bool {
        let oldest = self.under_way.iter().position(|it| it.lane == lane);
        oldest.is_none_or(|at| self.under_way.remove(at).asked)
    }

    /// What the lock's lane says of the lock that it has just held or applied.
    pub(super) fn take(&mut self, outcome: &Outcome) {
        self.whole = !outcome.broken;
        self.opened = false;
        self.lock_degraded = outcome.degraded.clone();
    }

    fn held(&mut self, result: Result<Outcome, String>) {
        let effect = Effect::HoldLock;
        match result {
            Ok(outcome) => {
                if outcome.changed && std::mem::take(&mut self.disturbed) {
                    self.repairs += 1;
                    tracing::warn!(
                        REPAIRS = self.repairs,
                        "the lock was changed by others: mended"
                    );
                    self.board.tell(calls::Event::Repaired { repairs: self.repairs });
                }
                self.disturbed = false;
                self.forget_unclosed_exceptions();
                if !std::mem::replace(&mut self.held, true) {
                    self.revision += 1;
                }
                self.take(&outcome);
                self.closed(&Ok(Done::Yes {
                    changed: outcome.changed,
                    degraded: outcome.degraded,
                }));
                if !std::mem::replace(&mut self.ready, true) {
                    system::ready();
                }
                match outcome.failing {
                    // The table holds, but not all of the lock does.
                    Some(why) => {
                        self.failed(&effect, &why);
                        self.decide(Event::Failed(effect, why));
                    }
                    None => {
                        self.failing.remove(&name(&effect));
                        self.decide(Event::Done(effect));
                    }
                }
            }
            Err(why) => {
                // Nobody can tell until it is read again.
                self.held = false;
                self.closed(&Err(dbus::Error::Failed(why.clone())));
                self.failed(&effect, &why);
                self.decide(Event::Failed(effect, why));
            }
        }
    }

    fn unlocked(&mut self, result: Result<bool, String>) {
        let effect = Effect::Unlock;
        match result {
            Ok(changed) => {
                tracing::warn!("unlocked: everything may leave in clear");
                (self.held, self.opened) = (false, true);
                self.revision += 1;
                self.give_up_closing();
                self.lock_degraded.clear();
                self.failing.remove(&name(&effect));
                let done = Done::Yes { changed, degraded: Vec::new() };
                answer(&mut self.wait_for_open, &Ok(done));
                self.decide(Event::Done(effect));
            }
            Err(why) => {
                // Some of it may be gone.
                self.held = false;
                self.revision += 1;
                answer(&mut self.wait_for_open, &Err(dbus::Error::Failed(why.clone())));
                self.failed(&effect, &why);
                self.decide(Event::Failed(effect, why));
            }
        }
    }

    fn replaced(&mut self, result: Result<Outcome, String>) {
        let Some(Coming { config, answer, unlocked }) = self.coming.take() else { return };
        let reply = match result {
            Ok(outcome) => {
                let plan = Plan::of(config);
                let (tightens, loosens) = plan::counts(&self.policy, &plan.policy);
                let ruleset = ruleset_hash(&plan.policy);
                self.board.record(What::Reloaded { ruleset, tightens, loosens });
                if *self.policy != plan.policy || !self.held {
                    self.revision += 1;
                }
                self.policy = Arc::new(plan.policy);
                self.reloaded(true);
                self.held = !unlocked;
                self.complaint = None;
                self.take(&outcome);
                let mut anew = false;
                if let Some(config) = &plan.config {
                    self.lanes.configure(config);
                    self.device = device(config);
                    anew = self.config.as_ref().is_some_and(|old| ends_session(old, config));
                }
                let first = self.config.is_none();
                let no_tunnel = plan.settings.managed && !plan.settings.connect_at_start;
                self.config = plan.config.map(Arc::new);
                self.decide(Event::Configured(plan.settings));
                // Of a daemon that was killed: so far nothing told which link was the tunnel's.
                if first && no_tunnel {
                    self.decide(Event::Command(Command::Disconnect));
                }
                if anew && matches!(self.engine.state(), State::Connecting(_) | State::Connected(_))
                {
                    self.decide(Event::Command(Command::Reconnect));
                }
                // `reload` locks an open machine.
                if !unlocked {
                    self.decide(Event::Command(Command::Lock));
                }
                if outcome.failing.is_some() {
                    self.decide(Event::Disturbed(Layer::Tables));
                }
                tracing::info!("reloaded");
                self.board.tell(calls::Event::Reloaded);
                Ok(Done::Yes { changed: outcome.changed, degraded: outcome.degraded })
            }
            Err(why) => {
                tracing::error!("not reloaded, the old lock stays: {why}");
                let what = "reloading".to_owned();
                self.board.record(What::Failed { what, why: clipped(&why) });
                self.reloaded(false);
                // It may have got half-way.
                self.held = false;
                self.decide(Event::Disturbed(Layer::Tables));
                Err(dbus::Error::Failed(format!("{why}\nthe lock is as it was")))
            }
        };
        if let Some(answer) = answer {
            let _ = answer.send(reply);
        }
        if self.ready {
            system::ready();
        }
    }

    pub(super) fn failed(&mut self, effect: &Effect, why: &str) {
        let what = name(effect);
        tracing::warn!(EFFECT = what, "{what} failed, to be tried again: {why}");
        if self.failing.insert(what.clone()) {
            self.board.tell(calls::Event::Failed { what, why: why.into() });
        }
    }
}

/// Whether a session made under one configuration cannot go on under the other.
fn ends_session(old: &Config, new: &Config) -> bool {
    let key = |config: &Config| config.tunnel.private_key.clone();
    let peers = |config: &Config| -> Vec<_> {
        let servers = config.servers.iter();
        let peer = |server: &config::Server| {
            let server = server.clone();
            let (name, keepalive) = (server.name, server.persistent_keepalive);
            (name, server.public_key, server.preshared_key, server.allowed_ips, keepalive)
        };
        servers.map(peer).collect()
    };
    key(old) != key(new) || peers(old) != peers(new)
}

fn name(effect: &Effect) -> String {
    match effect {
        Effect::HoldLock => "holding the lock",
        Effect::Unlock => "unlocking",
        Effect::EnsureLink => "making the tunnel's link",
        Effect::RemoveLink => "removing the tunnel's link",
        Effect::SetPeer(_) => "setting the server",
        Effect::EnsureRoutes => "routing into the tunnel",
        Effect::SetDns => "setting the resolvers",
        Effect::RestoreDns => "restoring the resolvers",
        Effect::Probe => "probing the server",
        Effect::ReadTunnel => "reading the tunnel",
        Effect::WatchTraffic => "watching the traffic",
        Effect::Announce(_) => "announcing",
    }
    .into()
}
