//! The served object.

#![allow(clippy::disallowed_types, reason = "zbus' macro writes HashMap")]

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::oneshot;
use tokio::time::timeout;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, Variant};

use super::authority::{Action, Authority, Peer, Permit};
use super::document::{Document, document};
use super::kernel::Kernel;
use super::packet::Packet;
use super::{Daemon, Error, INTERFACE, PATH};
use crate::config;
use crate::daemon::calls::{Call, Done, Event, Excepted, Facts, Request};
use crate::evidence::{What, clipped};
use crate::exceptions;
use crate::explain;
use crate::lock::Status;
use crate::policy::Exception;
use crate::ruleset::plan;

/// One for each connection.
#[derive(Debug, Clone)]
pub(super) struct Manager {
    daemon: Daemon,
    authority: Authority,
    kernel: Kernel,
}

impl Manager {
    pub(super) fn new(daemon: Daemon, authority: Authority) -> Self {
        Manager { daemon, authority, kernel: Kernel::default() }
    }

    /// For a connection of the control socket.
    pub(super) fn for_peer(self, peer: Peer) -> Self {
        Manager { authority: Authority::Root(peer), ..self }
    }

    fn facts(&self) -> Arc<Facts> {
        self.daemon.board.facts()
    }

    async fn permit(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        action: Action,
    ) -> Result<Permit, Error> {
        let permitted = self.authority.permit(connection, header, action).await;
        permitted.map_err(|(error, by)| {
            if let (Error::NotAuthorized(why), Some(by)) = (&error, by) {
                let (action, why) = (action.id().to_owned(), clipped(why));
                self.daemon.board.record(What::Refused { action, by, why });
            }
            error
        })
    }

    async fn ask(&self, request: Request) -> Result<Done, Error> {
        let stopping = || Error::Failed("the daemon is stopping; the lock stays".into());
        let (answer, reply) = oneshot::channel();
        let call = Call { request, answer };
        self.daemon.calls.send(call).await.map_err(|_| stopping())?;
        reply.await.map_err(|_| stopping())?
    }

    /// What this caller may read of why a configuration cannot be used: it quotes the file.
    fn refuse_configuration(&self, error: &config::Error) -> Error {
        tracing::error!("not reloaded, the old lock stays: {error}");
        let words = match &self.authority {
            Authority::Root(_) => error.to_string(),
            Authority::Polkit(_) => {
                format!("{}: it cannot be used; `killswitch check` says why", error.place())
            }
        };
        Error::BadConfiguration(format!("{words}\nnothing is changed"))
    }

    async fn read_kernel(&self) -> Result<Arc<Status>, Error> {
        let _place = self.authority.admit()?;
        self.kernel.status(self.facts()).await
    }

    async fn status_document(&self) -> Result<Document, Error> {
        let status = self.read_kernel().await?;
        let value = serde_json::to_value(&*status)
            .map_err(|error| Error::Failed(format!("the status has no document: {error}")))?;
        Ok(document(value))
    }
}

/// The kill switch: while locked, nothing leaves this machine but through the tunnel.
///
/// Reading is open to everybody. What changes something asks polkit, and what lets more leave than
/// before asks for an administrator every time. Call with interactive authorization allowed where a
/// person can be asked.
#[zbus::interface(name = "org.killswitch1.Manager")]
impl Manager {
    /// Closes the lock as it was configured last, without exceptions, and mends it where it is closed.
    /// Action org.killswitch1.tighten.
    #[zbus(out_args("changed", "degraded"))]
    async fn lock(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(bool, Vec<String>), Error> {
        let permit = self.permit(connection, &header, Action::Tighten).await?;
        let by = permit.by.clone();
        done(self.ask(Request::Lock { by }).await?)
    }

    /// Opens the lock: everything may leave in clear until it is closed again. `reason` goes to the
    /// journal. Action org.killswitch1.loosen.
    #[zbus(out_args("changed"))]
    async fn unlock(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
        reason: &str,
    ) -> Result<bool, Error> {
        /// Bytes, which go to the journal.
        const LONGEST_REASON: usize = 1000;
        if reason.len() > LONGEST_REASON || reason.chars().any(char::is_control) {
            return Err(Error::InvalidArgument(format!(
                "a reason is one line of at most {LONGEST_REASON} bytes"
            )));
        }
        let permit = self.permit(connection, &header, Action::Loosen).await?;
        let (by, why) = (permit.by.clone(), reason.to_owned());
        Ok(done(self.ask(Request::Unlock { by, why }).await?)?.0)
    }

    /// Reads the configuration anew and applies it, without exceptions, also to an open machine. On
    /// an error the old lock stays, with them. Action org.killswitch1.tighten, and
    /// org.killswitch1.loosen besides if anything of it loosens.
    #[zbus(out_args("changed", "degraded"))]
    async fn reload(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(bool, Vec<String>), Error> {
        /// While this one was weighed, another changed what it was weighed against.
        const TRIES: u32 = 3;
        let was_locked = self.facts().report.locked;
        let permit = self.permit(connection, &header, Action::Tighten).await?;
        let who = permit.by.to_string();
        tracing::info!(WHO = who, "asked to reload by {who}");
        for _ in 0..TRIES {
            let facts = self.facts();
            if was_locked && !facts.report.locked {
                let words = "the lock was opened after this was asked for: it stays open";
                return Err(Error::Failed(words.into()));
            }
            let path = facts.path.clone();
            let config = tokio::task::spawn_blocking(move || config::load(&path))
                .await
                .map_err(|error| Error::Failed(error.to_string()))?
                .map_err(|error| self.refuse_configuration(&error))?;
            let policy = crate::policy::Policy::from_config(&config);
            // Not against the exceptions: what is open for a while is not to stay so unasked.
            let opens = !facts.open && plan::loosens(&facts.configured, &policy);
            let _permit = match opens {
                true => Some(self.permit(connection, &header, Action::Loosen).await?),
                false => None,
            };
            let by = permit.by.clone();
            let request =
                Request::Reload { config: Box::new(config), revision: facts.revision, by };
            match self.ask(request).await? {
                Done::Stale => {}
                outcome => return done(outcome),
            }
        }
        Err(Error::Busy("others keep changing the lock; try again".into()))
    }

    /// Brings the tunnel up: through the servers in their order, or through this one first if a name
    /// is given. Returns at once: follow the property Tunnel. Action org.killswitch1.connect.
    async fn connect(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
        server: &str,
    ) -> Result<(), Error> {
        /// Bytes; it is kept while somebody is asked for a password.
        const LONGEST_NAME: usize = 256;
        if server.len() > LONGEST_NAME {
            let words = format!("no server has a name of more than {LONGEST_NAME} bytes");
            return Err(Error::InvalidArgument(words));
        }
        let _permit = self.permit(connection, &header, Action::Connect).await?;
        let server = (!server.is_empty()).then(|| server.to_owned());
        self.ask(Request::Connect { server }).await.map(drop)
    }

    /// Takes the tunnel down. The lock stays: nothing leaves. Action org.killswitch1.connect.
    async fn disconnect(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let _permit = self.permit(connection, &header, Action::Connect).await?;
        self.ask(Request::Disconnect).await.map(drop)
    }

    /// A fresh handshake, with the present server first. Returns at once. Action
    /// org.killswitch1.connect.
    async fn reconnect(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let _permit = self.permit(connection, &header, Action::Connect).await?;
        self.ask(Request::Reconnect).await.map(drop)
    }

    /// Opens for `seconds` (1 to 86400, sleep included) what a key of the configuration's [allow]
    /// could: `kind` "lan" and `what` "192.168.1.0/24", "ntp" and "192.0.2.123", or "inbound" and
    /// "tcp/22 from 192.168.1.0/24". The same checks hold as in the configuration. It ends before its
    /// time by RemoveException, Lock, Unlock and Reload, and when the daemon stops or starts; and with
    /// it its connections. The same may be open twice, until the later end. Action
    /// org.killswitch1.loosen.
    #[zbus(out_args("id"))]
    async fn add_exception(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
        kind: &str,
        what: &str,
        seconds: u32,
    ) -> Result<u32, Error> {
        let exception = Exception::parse(kind, what).map_err(Error::InvalidArgument)?;
        let duration = Duration::from_secs(seconds.into());
        if !exceptions::DURATION.contains(&duration) {
            let (shortest, longest) = exceptions::DURATION.into_inner();
            let (shortest, longest) = (shortest.as_secs(), longest.as_secs());
            return Err(Error::InvalidArgument(format!(
                "an exception lasts {shortest} to {longest} seconds, not {seconds}"
            )));
        }
        let permit = self.permit(connection, &header, Action::Loosen).await?;
        let by = permit.by.clone();
        match self.ask(Request::Except { exception, duration, by }).await? {
            Done::Excepted { id } => Ok(id),
            _ => Err(Error::Failed("the daemon does not say its number".into())),
        }
    }

    /// Closes an exception before its time. Action org.killswitch1.tighten.
    async fn remove_exception(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
        id: u32,
    ) -> Result<(), Error> {
        let permit = self.permit(connection, &header, Action::Tighten).await?;
        let by = permit.by.clone();
        self.ask(Request::EndException { id, by }).await.map(drop)
    }

    /// What the kernel holds, read now: the JSON document of `killswitch status`.
    #[zbus(out_args("status"))]
    async fn status(&self) -> Result<Document, Error> {
        self.status_document().await
    }

    /// Which rule decides on a packet, and why: the JSON document of `killswitch explain`. The
    /// packet is described by that command's options without their dashes, e.g. {"out": "eth0",
    /// "to": "1.1.1.1", "proto": "udp", "port": "53"}; an option that takes no value has "true".
    #[zbus(out_args("decision"))]
    async fn explain(&self, packet: Packet) -> Result<Document, Error> {
        let _place = self.authority.admit()?;
        let facts = self.facts();
        tokio::task::spawn_blocking(move || {
            let words = explain::Words::from_pairs(&packet.0).map_err(Error::InvalidArgument)?;
            let strictest = facts.config.is_none();
            let answer = explain::decide(&words, &facts.policy, facts.config.as_deref())
                .map_err(Error::InvalidArgument)?;
            Ok(document(answer.document(strictest)))
        })
        .await
        .map_err(|error| Error::Failed(error.to_string()))?
    }

    /// The configured servers in their order: name, endpoints, and whether it is the one in use or
    /// being tried.
    #[zbus(out_args("servers"))]
    fn list_servers(&self) -> Vec<(String, Vec<String>, bool)> {
        let facts = self.facts();
        let servers = facts.config.iter().flat_map(|config| &config.servers);
        servers
            .map(|server| {
                let endpoints = server.endpoints.iter().map(ToString::to_string).collect();
                let current = facts.report.server.as_ref() == Some(&server.name);
                (server.name.clone(), endpoints, current)
            })
            .collect()
    }

    /// "connected", "connecting", "blocked" (locked, no tunnel), "open" or "damaged".
    #[zbus(property)]
    fn state(&self) -> String {
        self.facts().report.state.clone()
    }

    /// What the daemon does for the tunnel: "off", "waiting" (for a network), "connecting" or
    /// "connected".
    #[zbus(property)]
    fn tunnel(&self) -> String {
        self.facts().report.tunnel.clone()
    }

    /// Whether the lock is closed.
    #[zbus(property)]
    fn locked(&self) -> bool {
        self.facts().report.locked
    }

    /// Whether the kernel holds exactly what the configuration compiles to, with the exceptions: read
    /// back when it was applied, and no change by others has been seen since.
    #[zbus(property)]
    fn intact(&self) -> bool {
        self.facts().report.intact
    }

    /// The server in use or being tried; empty if none is.
    #[zbus(property)]
    fn server(&self) -> String {
        self.facts().report.server.clone().unwrap_or_default()
    }

    /// The endpoint of Server; empty if there is none.
    #[zbus(property)]
    fn endpoint(&self) -> String {
        self.facts().report.endpoint.clone().unwrap_or_default()
    }

    /// What is weaker than asked, or does not work as it should; in words.
    #[zbus(property)]
    fn degraded(&self) -> Vec<String> {
        self.facts().report.degraded.clone()
    }

    /// How often somebody else's change to the lock was undone since the daemon started.
    #[zbus(property)]
    fn repairs(&self) -> u64 {
        self.facts().report.repairs
    }

    /// What is open for a while: number, kind, what, and when it ends, in microseconds of
    /// CLOCK_BOOTTIME (the first number of /proc/uptime, which goes on in sleep and is not set).
    #[zbus(property)]
    fn exceptions(&self) -> Vec<(u32, String, String, u64)> {
        self.facts().report.exceptions.iter().map(in_parts).collect()
    }

    /// When the last handshake was, in microseconds since 1970; 0 if there was none. Read when asked.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn last_handshake(&self) -> Result<u64, Error> {
        let status = self.read_kernel().await?;
        let age = status.tunnel.as_ref().and_then(|tunnel| tunnel.last_handshake_age_s);
        Ok(age.map_or(0, |age| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            now.saturating_sub(Duration::from_secs(age)).as_micros() as u64
        }))
    }

    /// How many packets the lock has stopped, all reasons together. Read when asked.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn dropped_packets(&self) -> Result<u64, Error> {
        let status = self.read_kernel().await?;
        Ok(status.dropped.values().flat_map(|chain| chain.values()).map(|it| it.packets).sum())
    }

    /// The file that is read by Reload.
    #[zbus(property(emits_changed_signal = "const"))]
    fn configuration_file(&self) -> String {
        self.facts().path.display().to_string()
    }

    /// The daemon's version.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    /// Something of State, Tunnel, Server or Endpoint changed.
    #[zbus(signal, name = "StateChanged")]
    async fn says_state(
        emitter: &SignalEmitter<'_>,
        state: &str,
        tunnel: &str,
        server: &str,
        endpoint: &str,
    ) -> zbus::Result<()>;

    /// Somebody else changed our part of the kernel ("tables" or "routing"); it is being mended.
    /// `pid` is 0 and `process` empty where the kernel does not tell who it was.
    #[zbus(signal)]
    async fn tampered(
        emitter: &SignalEmitter<'_>,
        layer: &str,
        pid: u32,
        process: &str,
    ) -> zbus::Result<()>;

    /// A packet wanted to leave, and was blocked. `packet` has, as far as the kernel tells: "link" (s),
    /// "source" (s), "source_port" (t), "destination" (s), "port" (t), "protocol" (s), "uid" (t) and
    /// "cgroup" (s) of the sender, and "suppressed" (t): how many like it went untold before. The same
    /// is told at most once in ten seconds.
    #[zbus(signal)]
    async fn leak_blocked(emitter: &SignalEmitter<'_>, packet: Document) -> zbus::Result<()>;

    /// The lock is whole again; how often this was so since the daemon started.
    #[zbus(signal)]
    async fn repaired(emitter: &SignalEmitter<'_>, repairs: u64) -> zbus::Result<()>;

    /// Something could not be done, and will be tried again.
    #[zbus(signal)]
    async fn failed(emitter: &SignalEmitter<'_>, what: &str, why: &str) -> zbus::Result<()>;

    /// The configuration was read anew and applied.
    #[zbus(signal)]
    async fn reloaded(emitter: &SignalEmitter<'_>) -> zbus::Result<()>;

    /// So many signals were left out, since they were not read fast enough.
    #[zbus(signal)]
    async fn missed(emitter: &SignalEmitter<'_>, signals: u64) -> zbus::Result<()>;
}

fn in_parts(it: &Excepted) -> (u32, String, String, u64) {
    (it.id, it.kind.clone(), it.what.clone(), it.ends)
}

fn done(done: Done) -> Result<(bool, Vec<String>), Error> {
    match done {
        Done::Yes { changed, degraded } => Ok((changed, degraded)),
        Done::Excepted { .. } => Ok((true, Vec::new())),
        Done::Stale => Err(Error::Busy("the lock was changed meanwhile; try again".into())),
    }
}

/// For a listener that does not read; then it is left.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells this connection of every change and event, until it breaks.
pub(super) async fn tell(connection: &Connection, daemon: &Daemon) -> zbus::Result<()> {
    let emitter = SignalEmitter::new(connection, PATH)?;
    let mut facts = daemon.board.follow();
    let mut events = daemon.board.listen();
    let mut told = facts.borrow_and_update().clone();
    loop {
        let telling = tokio::select! {
            changed = facts.changed() => match changed {
                Ok(()) => {
                    let new = facts.borrow_and_update().clone();
                    let old = std::mem::replace(&mut told, new.clone());
                    timeout(PATIENCE, tell_changes(&emitter, &old, &new)).await
                }
                Err(_) => return Ok(()),
            },
            event = events.recv() => match event {
                Ok(event) => timeout(PATIENCE, tell_event(&emitter, event)).await,
                Err(RecvError::Lagged(signals)) => timeout(PATIENCE, Manager::missed(&emitter, signals)).await,
                Err(RecvError::Closed) => return Ok(()),
            },
            () = connection.closed() => return Ok(()),
        };
        telling.map_err(|_| zbus::Error::Failure("it does not read".into()))??;
    }
}

/// `org.freedesktop.DBus.Properties.PropertiesChanged`, once for all of them.
async fn tell_changes(emitter: &SignalEmitter<'_>, old: &Facts, new: &Facts) -> zbus::Result<()> {
    let (old, new) = (&old.report, &new.report);
    let text = |text: &Option<String>| Variant::from(text.clone().unwrap_or_default());
    let exceptions: Vec<_> = new.exceptions.iter().map(in_parts).collect();
    let all: [(bool, &str, Variant<'_>); 9] = [
        (old.state != new.state, "State", new.state.as_str().into()),
        (old.tunnel != new.tunnel, "Tunnel", new.tunnel.as_str().into()),
        (old.locked != new.locked, "Locked", new.locked.into()),
        (old.intact != new.intact, "Intact", new.intact.into()),
        (old.server != new.server, "Server", text(&new.server)),
        (old.endpoint != new.endpoint, "Endpoint", text(&new.endpoint)),
        (old.degraded != new.degraded, "Degraded", new.degraded.clone().into()),
        (old.repairs != new.repairs, "Repairs", new.repairs.into()),
        (old.exceptions != new.exceptions, "Exceptions", exceptions.into()),
    ];
    let changed: std::collections::BTreeMap<&str, Variant<'_>> =
        all.into_iter().filter(|it| it.0).map(|(_, name, value)| (name, value)).collect();
    if changed.is_empty() {
        return Ok(());
    }
    let none: [&str; 0] = [];
    emitter
        .emit(
            "org.freedesktop.DBus.Properties",
            "PropertiesChanged",
            &(INTERFACE, changed, &none[..]),
        )
        .await
}

async fn tell_event(emitter: &SignalEmitter<'_>, event: Event) -> zbus::Result<()> {
    match event {
        Event::State(report) => {
            let [server, endpoint] =
                [report.server, report.endpoint].map(Option::unwrap_or_default);
            Manager::says_state(emitter, &report.state, &report.tunnel, &server, &endpoint).await
        }
        Event::Tampered { layer, pid, process } => {
            let process = process.unwrap_or_default();
            Manager::tampered(emitter, &layer, pid.unwrap_or_default(), &process).await
        }
        Event::Blocked(blocked) => {
            let packet = serde_json::to_value(&blocked)
                .map_err(|error| zbus::Error::Failure(error.to_string()))?;
            Manager::leak_blocked(emitter, document(packet)).await
        }
        Event::Repaired { repairs } => Manager::repaired(emitter, repairs).await,
        Event::Failed { what, why } => Manager::failed(emitter, &what, &why).await,
        Event::Reloaded => Manager::reloaded(emitter).await,
        Event::Missed { events } => Manager::missed(emitter, events).await,
    }
}
