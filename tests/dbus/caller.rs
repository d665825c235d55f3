//! Somebody who calls the daemon and listens to it.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use killswitch::dbus::{INTERFACE, NAME, PATH, SOCKET};
use killswitch::lab::{Bus, Context, Error, Result};
use tokio::runtime::{Builder, Runtime};
use zbus::wire::DynamicDeserialize;
use zbus::{Connection, DBusError, DynamicType, MatchRule, Message, MessageStream, connection};

/// Calls the daemon, and keeps every signal of it.
pub struct Caller {
    runtime: Runtime,
    connection: Connection,
    /// `None`: there is no bus in between.
    name: Option<&'static str>,
    heard: Arc<Mutex<Vec<Message>>>,
}

impl Caller {
    /// Over the system bus; the daemon need not be there.
    pub fn on_the_bus() -> Result<Self> {
        Self::reach(connection::Builder::address(Bus::ADDRESS), Some(NAME))
    }

    /// As root at the control socket.
    pub fn at_the_socket() -> Result<Self> {
        let stream = UnixStream::connect(SOCKET).during(SOCKET)?;
        stream.set_nonblocking(true).during(SOCKET)?;
        Self::reach(connection::Builder::unix_stream(stream).p2p(), None)
    }

    fn reach(builder: connection::Builder<'_>, name: Option<&'static str>) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.during("runtime")?;
        let heard = Arc::<Mutex<Vec<Message>>>::default();
        let connection = runtime.block_on(async {
            let connection = builder.build().await.during("connecting")?;
            let mut signals = listen(&connection, name).await.during("listening")?;
            let keep = heard.clone();
            tokio::spawn(async move {
                while let Some(Ok(signal)) = signals.next().await {
                    keep.lock().unwrap_or_else(PoisonError::into_inner).push(signal);
                }
            });
            Result::Ok(connection)
        })?;
        Ok(Caller { runtime, connection, name, heard })
    }

    /// Calls a method of any interface of the object.
    pub fn call_of<B, R>(&self, interface: &str, method: &str, arguments: &B) -> zbus::Result<R>
    where
        B: serde::Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        self.runtime.block_on(async {
            let call =
                self.connection.call_method(self.name, PATH, Some(interface), method, arguments);
            call.await?.body().deserialize()
        })
    }

    pub fn call<B, R>(&self, method: &str, arguments: &B) -> zbus::Result<R>
    where
        B: serde::Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        self.call_of(INTERFACE, method, arguments)
    }

    /// Calls methods of no argument or one without waiting in between; whatever comes of each.
    pub fn at_once(&self, calls: &[(&str, Option<&str>)]) {
        let call = |&(method, argument): &(&str, Option<&str>)| {
            let (connection, name) = (self.connection.clone(), self.name);
            let (method, argument) = (method.to_owned(), argument.map(str::to_owned));
            async move {
                let to = (name, PATH, Some(INTERFACE));
                match argument {
                    Some(it) => connection.call_method(to.0, to.1, to.2, method, &it).await,
                    None => connection.call_method(to.0, to.1, to.2, method, &()).await,
                }
            }
        };
        let all = futures_util::future::join_all(calls.iter().map(call));
        drop(self.runtime.block_on(all));
    }

    /// The name and the words of the error that a call must meet.
    pub fn refusal<B>(&self, method: &str, arguments: &B) -> Result<(String, String)>
    where
        B: serde::Serialize + DynamicType,
    {
        let interface = Some(INTERFACE);
        let call = self.connection.call_method(self.name, PATH, interface, method, arguments);
        match self.runtime.block_on(call) {
            Err(zbus::Error::MethodError(name, words, _)) => {
                Ok((name.to_string(), words.unwrap_or_default()))
            }
            // One of the names that every service uses.
            Err(zbus::Error::FDO(error)) => {
                Ok((error.name().to_string(), error.description().unwrap_or_default().into()))
            }
            other => Err(Error::new(format!("{method}: {other:?}"))),
        }
    }

    /// Of the property's own type.
    pub fn property<T>(&self, name: &str) -> zbus::Result<T>
    where
        T: TryFrom<zbus::OwnedVariant>,
        T::Error: std::fmt::Display,
    {
        let value: zbus::OwnedVariant =
            self.call_of("org.freedesktop.DBus.Properties", "Get", &(INTERFACE, name))?;
        T::try_from(value).map_err(|error| zbus::Error::Failure(format!("{name}: {error}")))
    }

    /// The bodies of the signals of this name that came so far.
    pub fn signals<R>(&self, member: &str) -> Result<Vec<R>>
    where
        R: for<'d> DynamicDeserialize<'d>,
    {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard
            .iter()
            .filter(|signal| signal.header().member().is_some_and(|it| it.as_str() == member))
            .map(|signal| signal.body().deserialize().during(member))
            .collect()
    }

    /// Tells everybody on the bus, as another program would.
    pub fn say<B>(&self, member: &str, body: &B) -> zbus::Result<()>
    where
        B: serde::Serialize + DynamicType,
    {
        let nobody = None::<zbus::names::BusName<'_>>;
        let said = self.connection.emit_signal(nobody, "/example", "org.example", member, body);
        self.runtime.block_on(said)
    }

    /// Forgets the signals so far.
    pub fn forget(&self) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

async fn listen(
    connection: &Connection,
    name: Option<&'static str>,
) -> zbus::Result<MessageStream> {
    let Some(name) = name else { return Ok(MessageStream::from(connection)) };
    let rule = MatchRule::builder().msg_type(zbus::message::Type::Signal).sender(name).build()?;
    MessageStream::for_match_rule(rule, connection, std::num::NonZeroUsize::new(4096)).await
}
