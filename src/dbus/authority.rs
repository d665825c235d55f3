//! Who may: by the caller's name as the bus knows it, never by anything that the caller says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zbus::fdo::{ConnectionCredentials, DBusProxy};
use zbus::message::{Flags, Header};
use zbus::names::BusName;
use zbus::{Connection, Variant};

use super::Error;
use crate::evidence::Caller;

/// What a caller wants to do: polkit's actions of packaging/polkit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Close the lock, apply what tightens, take an exception back.
    Tighten,
    /// Bring the tunnel up or down; the lock stays.
    Connect,
    /// Let more leave than now.
    Loosen,
}

impl Action {
    pub(super) fn id(self) -> &'static str {
        match self {
            Action::Tighten => "org.killswitch1.tighten",
            Action::Connect => "org.killswitch1.connect",
            Action::Loosen => "org.killswitch1.loosen",
        }
    }
}

/// Decides on callers of one way in.
#[derive(Debug, Clone)]
pub(super) enum Authority {
    /// The control socket: whoever got so far is root. As the kernel knows the other end.
    Root(Peer),
    /// The system bus: root may, of others polkit knows.
    Polkit(Callers),
}

/// The other end of a control socket's connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Peer {
    pub pid: Option<u32>,
}

/// A caller who may; holds a place among those who are being served.
#[derive(Debug)]
pub(super) struct Permit {
    /// For the journal and the evidence.
    pub by: Caller,
    _place: Option<Place>,
}

/// Why not, and to whom that was said, as far as it is known.
pub(super) type Refusal = (Error, Option<Caller>);

impl Authority {
    /// A place among all calls that are being read or answered, however many come: they would take
    /// memory without bound. Not while somebody types a password.
    pub(super) fn admit(&self) -> Result<Option<OwnedSemaphorePermit>, Error> {
        let Authority::Polkit(callers) = self else { return Ok(None) };
        let place = callers.crowd.clone().try_acquire_owned();
        place
            .map(Some)
            .map_err(|_| Error::Busy(format!("{MOST_AT_ONCE} calls are being served; try again")))
    }

    /// Waits for polkit and, if the caller allows it, for the user to prove who they are.
    pub(super) async fn permit(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        action: Action,
    ) -> Result<Permit, Refusal> {
        let callers = match self {
            Authority::Polkit(callers) => callers,
            Authority::Root(peer) => {
                return Ok(Permit { by: Caller::of(Some(0), peer.pid, None), _place: None });
            }
        };
        let by_nobody = |error: Error| (error, None);
        let (uid, by) = self.identify(connection, header).await.map_err(by_nobody)?;
        let by_caller = |error: Error| (error, Some(by.clone()));
        let place = Some(callers.place(uid).map_err(by_caller)?);
        // Root needs no polkit, which may be missing.
        if uid != 0 {
            consent(connection, header, action).await.map_err(by_caller)?;
        }
        Ok(Permit { by, _place: place })
    }

    /// By what the bus knows.
    async fn identify(
        &self,
        connection: &Connection,
        header: &Header<'_>,
    ) -> Result<(u32, Caller), Error> {
        let sender = header.sender().ok_or_else(|| refusal("the bus does not say who calls"))?;
        let admitted = self.admit()?;
        let credentials = credentials(connection, header).await?;
        drop(admitted);
        let uid = credentials
            .unix_user_id()
            .ok_or_else(|| refusal("the bus does not know whose process calls"))?;
        let pid = credentials.process_id();
        Ok((uid, Caller::of(Some(uid), pid, Some(sender.to_string()))))
    }
}

/// Of polkit and, if the caller allows it, of a person who is asked.
async fn consent(
    connection: &Connection,
    header: &Header<'_>,
    action: Action,
) -> Result<(), Error> {
    let sender = header.sender().ok_or_else(|| refusal("the bus does not say who calls"))?;
    let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
    ask_polkit(connection, sender.as_str(), action, interactive).await?;
    // What somebody agreed to who has gone meanwhile (or gave up waiting) is no longer wanted.
    // The bus gives a name to nobody else.
    if interactive {
        credentials(connection, header).await?;
    }
    Ok(())
}

async fn credentials(
    connection: &Connection,
    header: &Header<'_>,
) -> Result<ConnectionCredentials, Error> {
    let unknown = |error: zbus::Error| refusal(&format!("the bus does not say who calls: {error}"));
    let sender = header.sender().ok_or_else(|| refusal("the bus does not say who calls"))?;
    let bus = DBusProxy::new(connection).await.map_err(unknown)?;
    bus.get_connection_credentials(BusName::Unique(sender.to_owned()))
        .await
        .map_err(|error| unknown(error.into()))
}

/// polkit(8), `org.freedesktop.PolicyKit1.Authority`.
#[zbus::proxy(
    interface = "org.freedesktop.PolicyKit1.Authority",
    default_service = "org.freedesktop.PolicyKit1",
    default_path = "/org/freedesktop/PolicyKit1/Authority"
)]
trait Polkit {
    /// Answers whether the subject may, and whether it could by proving who it is.
    fn check_authorization(
        &self,
        subject: &(&str, BTreeMap<&str, Variant<'_>>),
        action: &str,
        details: BTreeMap<&str, &str>,
        flags: u32,
        cancellation: &str,
    ) -> zbus::Result<(bool, bool, BTreeMap<String, String>)>;
}

async fn ask_polkit(
    connection: &Connection,
    sender: &str,
    action: Action,
    interactive: bool,
) -> Result<(), Error> {
    /// AllowUserInteraction.
    const INTERACTIVE: u32 = 1;
    /// For polkit itself, which answers at once if nobody is to be asked.
    const PATIENCE: Duration = Duration::from_secs(10);
    /// For a person who types a password.
    const LONGEST: Duration = Duration::from_secs(300);
    let missing =
        |error: zbus::Error| refusal(&format!("polkit cannot be asked, so only root may: {error}"));
    let subject = ("system-bus-name", BTreeMap::from([("name", Variant::from(sender))]));
    let check = async {
        let polkit = PolkitProxy::builder(connection)
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await?;
        let flags = if interactive { INTERACTIVE } else { 0 };
        polkit.check_authorization(&subject, action.id(), BTreeMap::new(), flags, "").await
    };
    let patience = if interactive { LONGEST } else { PATIENCE };
    match tokio::time::timeout(patience, check).await {
        Ok(Ok((true, ..))) => Ok(()),
        Ok(Ok((false, true, _))) if !interactive => Err(refusal(&format!(
            "an administrator must agree to {}, and this call does not let anybody be asked: call \
             it with interactive authorization allowed, or as root",
            action.id()
        ))),
        Ok(Ok((false, true, _))) => Err(refusal(&format!(
            "an administrator must agree to {}, and there is nobody to ask: start an \
             authentication agent (pkttyagent), or call as root",
            action.id()
        ))),
        Ok(Ok((false, false, _))) => Err(refusal(&format!("{} is refused", action.id()))),
        Ok(Err(error)) => Err(missing(error)),
        Err(_) => Err(refusal("nobody agreed in time")),
    }
}

fn refusal(words: &str) -> Error {
    Error::NotAuthorized(words.into())
}

/// Who is being served: nobody can take all places.
#[derive(Debug, Clone)]
pub(super) struct Callers {
    /// How many calls of each user.
    users: Arc<Mutex<BTreeMap<u32, usize>>>,
    /// See [`Authority::admit`].
    crowd: Arc<Semaphore>,
}

/// Calls of one user at the same time, passwords being typed included.
const MOST_OF_ONE_USER: usize = 16;
/// Calls of all users that are being read or answered.
const MOST_AT_ONCE: usize = 128;

impl Default for Callers {
    fn default() -> Self {
        Callers { users: Arc::default(), crowd: Arc::new(Semaphore::new(MOST_AT_ONCE)) }
    }
}

impl Callers {
    fn place(&self, uid: u32) -> Result<Place, Error> {
        let mut places = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let count = places.entry(uid).or_default();
        if *count >= MOST_OF_ONE_USER {
            return Err(Error::Busy(format!(
                "{count} calls of uid {uid} are being served; wait for one to end"
            )));
        }
        *count += 1;
        Ok(Place { callers: self.clone(), uid })
    }
}

#[derive(Debug)]
struct Place {
    callers: Callers,
    uid: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.callers.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = places.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                places.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_all_places() {
        let callers = Callers::default();
        let mut places: Vec<_> =
            (0..MOST_OF_ONE_USER).map(|_| callers.place(1000).unwrap()).collect();
        assert!(matches!(callers.place(1000), Err(Error::Busy(_))));
        callers.place(1001).unwrap();
        places.pop();
        callers.place(1000).unwrap();
        drop(places);
        assert!(callers.users.lock().unwrap().is_empty());
    }

    #[test]
    fn a_crowd_is_not_let_in() {
        let authority = Authority::Polkit(Callers::default());
        let mut places: Vec<_> = (0..MOST_AT_ONCE).map(|_| authority.admit().unwrap()).collect();
        assert!(matches!(authority.admit(), Err(Error::Busy(_))));
        places.pop();
        assert!(authority.admit().unwrap().is_some());
        assert!(Authority::Root(Peer::default()).admit().unwrap().is_none());
    }
}
