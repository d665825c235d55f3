//! How the command line talks to the daemon: root by the control socket, others over the system bus.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use nix::sys::signal::{self, Signal};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Pid, geteuid};
use tokio::runtime::Runtime;
use zbus::connection::Builder;
use zbus::proxy::{CacheProperties, MethodFlags};
use zbus::{DynamicType, Proxy, fdo};

use super::document::{Document, value};
use super::{Error as Refusal, INTERFACE, NAME, PATH, SOCKET};
use crate::daemon::calls::{Event, Excepted, Report};
use crate::lock::{Outcome, Status};
use crate::unix_socket;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("the daemon does not run")]
    NotRunning,
    /// It listens, but does not answer in time.
    #[error("the daemon does not answer")]
    Silent,
    /// It refuses, and says why.
    #[error("{}", .0.message())]
    Refused(Refusal),
    /// It runs with another configuration than the caller means.
    #[error("the daemon runs with {theirs}, not with {ours}\nhelp: --config {theirs}, or none")]
    OtherFile {
        /// Its file.
        theirs: String,
        /// The caller's.
        ours: String,
    },
    /// Only root can reach it without a bus.
    #[error(
        "not permitted: this needs root (CAP_NET_ADMIN) where there is no system bus: {0}\nhelp: run this as root"
    )]
    NoBus(zbus::Error),
    /// Everything else.
    #[error("talking to the daemon: {0}")]
    Io(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NotRunning,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Silent,
            _ => Error::Io(error),
        }
    }
}

impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        match error {
            // Nobody has the name on the bus; the first of them where it cannot be started either.
            zbus::Error::FDO(error)
                if matches!(
                    *error,
                    fdo::Error::ServiceUnknown(_) | fdo::Error::NameHasNoOwner(_)
                ) =>
            {
                Error::NotRunning
            }
            zbus::Error::MethodError(name, words, _) => {
                Error::Refused(Refusal::named(name.as_str(), words.unwrap_or_default()))
            }
            zbus::Error::InputOutput(error) => match error.kind() {
                // It ended while we asked.
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset => Error::NotRunning,
                kind => Error::from(io::Error::new(kind, error)),
            },
            other => Error::Io(io::Error::other(other)),
        }
    }
}

/// The daemon, as it can be reached.
pub struct Daemon {
    runtime: Runtime,
    proxy: Proxy<'static>,
    patience: Duration,
    /// For a call that may ask somebody for a password.
    longest: Duration,
}

/// Longer than the daemon waits for a person.
const LONGEST: Duration = Duration::from_secs(310);

impl Daemon {
    /// Reaches it; `patience` holds for this and for every call.
    ///
    /// # Errors
    /// [`Error`]
    pub fn reach(patience: Duration) -> Result<Self, Error> {
        let root = geteuid().is_root();
        // Before all else, since mostly there is either an answer or nobody to ask.
        let socket = root.then(|| unix_socket::connect(Path::new(SOCKET), patience)).transpose()?;
        let longest = if root { patience } else { LONGEST };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let proxy = match socket {
            Some(stream) => {
                // tokio's sockets must not block.
                stream.set_nonblocking(true)?;
                runtime.block_on(in_time(patience, async {
                    let connection = Builder::unix_stream(stream).p2p().build().await?;
                    Ok(proxy(&connection).await?)
                }))?
            }
            None => runtime.block_on(in_time(patience, async {
                let connection = Builder::system().build().await.map_err(Error::NoBus)?;
                Ok(proxy(&connection).await?)
            }))?,
        };
        Ok(Daemon { runtime, proxy, patience, longest })
    }

    /// What it knows, in time reckoned from the first step: a hung daemon costs `patience` in all.
    ///
    /// # Errors
    /// [`Error`]
    pub fn report_within(patience: Duration) -> Result<Report, Error> {
        let begin = Instant::now();
        let mut daemon = Daemon::reach(patience)?;
        daemon.patience = patience.saturating_sub(begin.elapsed());
        daemon.report()
    }

    /// Whether it is this configuration that it reads.
    ///
    /// # Errors
    /// [`Error::OtherFile`], if not.
    pub fn reads(&self, file: &Path) -> Result<(), Error> {
        let theirs = self.configuration_file()?;
        match file == Path::new(&theirs) {
            true => Ok(()),
            false => Err(Error::OtherFile { theirs, ours: file.display().to_string() }),
        }
    }

    /// Has the configuration read anew and applied.
    ///
    /// # Errors
    /// [`Error`]
    pub fn reload(&self) -> Result<Outcome, Error> {
        self.outcome("Reload")
    }

    /// What it says of a packet: the document of `killswitch --json explain`.
    ///
    /// # Errors
    /// [`Error`]
    pub fn explain(&self, packet: &BTreeMap<&str, String>) -> Result<serde_json::Value, Error> {
        self.call("Explain", packet).map(value)
    }

    /// Has the lock closed as it was configured last.
    ///
    /// # Errors
    /// [`Error`]
    pub fn lock(&self) -> Result<Outcome, Error> {
        self.outcome("Lock")
    }

    /// Has the lock opened; whether it was closed.
    ///
    /// # Errors
    /// [`Error`]
    pub fn unlock(&self, reason: &str) -> Result<bool, Error> {
        self.call("Unlock", &(reason,))
    }

    /// Has opened for so many seconds what [`crate::policy::Exception`] writes so; its number.
    ///
    /// # Errors
    /// [`Error`]
    pub fn add_exception(&self, kind: &str, what: &str, seconds: u32) -> Result<u32, Error> {
        self.call("AddException", &(kind, what, seconds))
    }

    /// Has an exception closed before its time.
    ///
    /// # Errors
    /// [`Error`]
    pub fn remove_exception(&self, id: u32) -> Result<(), Error> {
        self.call("RemoveException", &(id,))
    }

    /// Has the tunnel brought up; through this server first, if one is named. It takes its time.
    ///
    /// # Errors
    /// [`Error`]
    pub fn connect(&self, server: Option<&str>) -> Result<(), Error> {
        self.call("Connect", &(server.unwrap_or_default(),))
    }

    /// Has the tunnel taken down.
    ///
    /// # Errors
    /// [`Error`]
    pub fn disconnect(&self) -> Result<(), Error> {
        self.call("Disconnect", &())
    }

    /// Has a fresh handshake made. It takes its time.
    ///
    /// # Errors
    /// [`Error`]
    pub fn reconnect(&self) -> Result<(), Error> {
        self.call("Reconnect", &())
    }

    fn configuration_file(&self) -> Result<String, Error> {
        self.runtime.block_on(in_time(self.patience, async {
            Ok(self.proxy.get_property("ConfigurationFile").await?)
        }))
    }

    /// What it knows that the kernel does not tell.
    ///
    /// # Errors
    /// [`Error`]
    pub fn report(&self) -> Result<Report, Error> {
        self.runtime.block_on(in_time(self.patience, self.read_report()))
    }

    /// Asked all at once: one round trip.
    async fn read_report(&self) -> Result<Report, Error> {
        let known = |text: String| (!text.is_empty()).then_some(text);
        let proxy = &self.proxy;
        let (state, tunnel, locked, intact, server, endpoint, degraded, repairs, exceptions) = tokio::try_join!(
            proxy.get_property("State"),
            proxy.get_property("Tunnel"),
            proxy.get_property("Locked"),
            proxy.get_property("Intact"),
            proxy.get_property("Server"),
            proxy.get_property("Endpoint"),
            proxy.get_property("Degraded"),
            proxy.get_property("Repairs"),
            self.read_exceptions(),
        )?;
        let (server, endpoint) = (known(server), known(endpoint));
        Ok(Report {
            state,
            tunnel,
            locked,
            intact,
            server,
            endpoint,
            degraded,
            repairs,
            exceptions,
        })
    }

    async fn read_exceptions(&self) -> zbus::Result<Vec<Excepted>> {
        type Parts = (u32, String, String, u64);
        let all: Vec<Parts> = self.proxy.get_property("Exceptions").await?;
        let whole = |(id, kind, what, ends): Parts| Excepted { id, kind, what, ends };
        Ok(all.into_iter().map(whole).collect())
    }

    /// What the kernel holds, for those who may not read it themselves.
    ///
    /// # Errors
    /// [`Error`]
    pub fn status(&self) -> Result<Status, Error> {
        let document: Document = self.call("Status", &())?;
        let mut status: Status = serde_json::from_value(value(document))
            .map_err(|error| Error::Io(io::Error::other(error)))?;
        // The document does not say whether there should be one.
        status.routing_guard = status.layers.routes || !status.intact;
        Ok(status)
    }

    /// Hands on every event from now on, until `tell` fails or the daemon ends.
    ///
    /// # Errors
    /// [`Error`]; of `tell`, as [`Error::Io`].
    pub fn events(&self, mut tell: impl FnMut(Event) -> io::Result<()>) -> Result<(), Error> {
        self.runtime.block_on(async {
            let (mut signals, mut owners) = in_time(self.patience, async {
                let signals = self.proxy.receive_all_signals().await?;
                Ok((signals, self.proxy.receive_owner_changed().await?))
            })
            .await?;
            loop {
                let signal = tokio::select! {
                    signal = signals.next() => signal,
                    owner = owners.next() => match owner {
                        // On the bus, another daemon's signals would follow.
                        Some(None) => None,
                        _ => continue,
                    },
                };
                let Some(signal) = signal else { return Ok(()) };
                match event(&signal) {
                    // The properties say more than the signal.
                    Some(Event::State(_)) => tell(Event::State(self.read_report().await?)),
                    Some(other) => tell(other),
                    None => Ok(()),
                }
                .map_err(Error::Io)?;
            }
        })
    }

    fn outcome(&self, method: &str) -> Result<Outcome, Error> {
        let (changed, degraded) = self.call(method, &())?;
        Ok(Outcome { changed, degraded, ..Outcome::default() })
    }

    fn call<B, R>(&self, method: &str, arguments: &B) -> Result<R, Error>
    where
        B: serde::Serialize + DynamicType,
        R: for<'d> zbus::wire::DynamicDeserialize<'d>,
    {
        let interactive = std::io::stdin().is_terminal();
        let flags = match interactive {
            true => MethodFlags::ALLOW_INTERACTIVE_AUTH,
            false => Default::default(),
        };
        self.runtime.block_on(in_time(self.longest, async {
            let answer = self.proxy.call_with_flags(method, flags, arguments).await?;
            answer.ok_or(Error::Silent)
        }))
    }
}

async fn proxy(connection: &zbus::Connection) -> zbus::Result<Proxy<'static>> {
    zbus::proxy::Builder::new(connection)
        .destination(NAME)
        .path(PATH)
        .interface(INTERFACE)
        .cache_properties(CacheProperties::No)
        .build()
        .await
}

async fn in_time<T>(
    patience: Duration,
    what: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(patience, what).await.unwrap_or(Err(Error::Silent))
}

/// `None`: a signal that a newer daemon has.
fn event(signal: &zbus::Message) -> Option<Event> {
    let header = signal.header();
    let body = signal.body();
    Some(match header.member()?.as_str() {
        "StateChanged" => Event::State(Report::default()),
        "Tampered" => {
            let (layer, pid, process): (String, u32, String) = body.deserialize().ok()?;
            let process = (!process.is_empty()).then_some(process);
            Event::Tampered { layer, pid: (pid != 0).then_some(pid), process }
        }
        "LeakBlocked" => {
            let packet: Document = body.deserialize().ok()?;
            Event::Blocked(serde_json::from_value(value(packet)).ok()?)
        }
        "Repaired" => Event::Repaired { repairs: body.deserialize().ok()? },
        "Failed" => {
            let (what, why) = body.deserialize().ok()?;
            Event::Failed { what, why }
        }
        "Reloaded" => Event::Reloaded,
        "Missed" => Event::Missed { events: body.deserialize().ok()? },
        _ => return None,
    })
}

/// Whether a daemon listens, however it hangs.
pub fn runs() -> bool {
    const PATIENCE: Duration = Duration::from_millis(30);
    matches!(
        unix_socket::connect(Path::new(SOCKET), PATIENCE).map_err(Error::from),
        Ok(_) | Err(Error::Silent)
    )
}

/// The process of the daemon that listens, whatever it is doing.
///
/// # Errors
/// [`Error`]: of one that has hung for long, so many callers may wait that none can come in any more
/// ([`Error::Silent`]).
pub fn process() -> Result<i32, Error> {
    const PATIENCE: Duration = Duration::from_millis(100);
    let stream = unix_socket::connect(Path::new(SOCKET), PATIENCE)?;
    let daemon = getsockopt(&stream, sockopt::PeerCredentials).map_err(io::Error::from)?.pid();
    // kill(2): zero, which stands for a process of another namespace, would be our own group.
    if daemon <= 0 {
        return Err(Error::Io(io::Error::other("the daemon is in another process namespace")));
    }
    Ok(daemon)
}

/// Kills the daemon that listens. The lock outlives it.
///
/// # Errors
/// Those of [`process`], and of `kill(2)`.
pub fn kill() -> Result<(), Error> {
    let daemon = Pid::from_raw(process()?);
    Ok(signal::kill(daemon, Signal::SIGKILL).map_err(io::Error::from)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
    };

    use super::*;

    /// As the bus answers, and zbus reads it.
    #[test]
    fn nobody_on_the_bus_is_no_daemon() {
        let call = zbus::Message::method_call(PATH, "Connect").build(&()).unwrap();
        let answer = |name: &str| {
            let answer = zbus::Message::error(&call.header(), name);
            Error::from(zbus::Error::from(answer.build(&"words").unwrap()))
        };
        for name in ["ServiceUnknown", "NameHasNoOwner"] {
            let error = answer(&format!("org.freedesktop.DBus.Error.{name}"));
            assert!(matches!(error, Error::NotRunning), "{name}: {error:?}");
        }
        let error = answer("org.killswitch1.Error.Busy");
        assert!(matches!(error, Error::Refused(Refusal::Busy(_))), "{error:?}");
    }

    #[test]
    fn nobody_waits_for_ever_where_too_many_wait() {
        let path = std::env::temp_dir().join(format!("killswitch-queue-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let flags = SockFlag::empty();
        let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let patience = Duration::from_millis(50);
        let mut callers = Vec::new();
        let refused = loop {
            match unix_socket::connect(&path, patience) {
                Ok(stream) => callers.push(stream),
                Err(error) => break error,
            }
            assert!(callers.len() < 10, "the queue has no end");
        };
        assert!(!callers.is_empty());
        assert!(matches!(Error::from(refused), Error::Silent));
        drop(listener);
        let refused = unix_socket::connect(&path, patience).unwrap_err();
        assert!(matches!(Error::from(refused), Error::NotRunning));
        std::fs::remove_file(&path).unwrap();
    }
}
