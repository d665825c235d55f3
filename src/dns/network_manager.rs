//! NetworkManager, where it writes resolv.conf itself: `GlobalDnsConfiguration` of
//! org.freedesktop.NetworkManager(5) takes the place of every connection's resolvers, and is kept
//! across restarts in NetworkManager-intern.conf. A device of its own for the tunnel would not do:
//! NetworkManager only adds the resolvers of devices that it activates.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedVariant, Variant};

use super::{Error, Resolvers, in_time};

const WHO: &str = "NetworkManager";

type Dictionary = BTreeMap<String, OwnedVariant>;

#[zbus::proxy(
    interface = "org.freedesktop.NetworkManager",
    default_service = "org.freedesktop.NetworkManager",
    default_path = "/org/freedesktop/NetworkManager"
)]
trait NetworkManager {
    #[zbus(property)]
    fn global_dns_configuration(&self) -> zbus::Result<Dictionary>;
    #[zbus(property)]
    fn set_global_dns_configuration(&self, value: &Dictionary) -> zbus::Result<()>;
}

/// What we set, as noted in a file: by it we know ours again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    searches: Vec<String>,
    servers: Vec<String>,
}

pub(super) async fn set(resolvers: &Resolvers) -> Result<(), Error> {
    let wanted = Note::of(resolvers);
    let proxy = in_time(WHO, proxy()).await?;
    let found = in_time(WHO, async { Ok(proxy.global_dns_configuration().await?) }).await?;
    let file = note_file(&resolvers.state_dir);
    if !found.is_empty() && read(&file).await?.is_none_or(|note| !note.is(&found)) {
        return Err(Error::NotOurs);
    }
    // Before the deed: whoever finds a note looks whether it was done.
    let note = wanted.clone();
    on_disk(move || write(&file, &note)).await?;
    let outcome = in_time(WHO, async {
        Ok(proxy.set_global_dns_configuration(&wanted.dictionary()?).await?)
    })
    .await;
    if outcome.is_err() && found.is_empty() {
        let _ = restore(&resolvers.state_dir).await;
    }
    outcome
}

pub(super) async fn is_set(resolvers: &Resolvers) -> Result<bool, Error> {
    in_time(WHO, async {
        let found = proxy().await?.global_dns_configuration().await?;
        Ok(Note::of(resolvers).is(&found))
    })
    .await
}

/// Does nothing unless there is a note; somebody else's configuration stays.
pub(super) async fn restore(state_dir: &Path) -> Result<(), Error> {
    let file = note_file(state_dir);
    let Some(note) = read(&file).await? else { return Ok(()) };
    in_time(WHO, async {
        let proxy = proxy().await?;
        if note.is(&proxy.global_dns_configuration().await?) {
            proxy.set_global_dns_configuration(&Dictionary::new()).await?;
        }
        Ok(())
    })
    .await?;
    on_disk(|| match fs::remove_file(&file) {
        Ok(()) => Ok(()),
        Err(source) => Err(Error::File { doing: "remove", path: file, source }),
    })
    .await
}

async fn proxy() -> Result<NetworkManagerProxy<'static>, Error> {
    let connection = Connection::system().await?;
    let builder = NetworkManagerProxy::builder(&connection).cache_properties(CacheProperties::No);
    Ok(builder.build().await?)
}

impl Note {
    fn of(resolvers: &Resolvers) -> Self {
        Note {
            searches: resolvers.search.clone(),
            servers: resolvers.servers.iter().map(ToString::to_string).collect(),
        }
    }

    fn dictionary(&self) -> Result<Dictionary, Error> {
        let servers = Variant::from(self.servers.clone());
        let all_names = Variant::from(BTreeMap::from([("servers", servers)]));
        let domains = Variant::from(BTreeMap::from([("*", all_names)]));
        let searches = Variant::from(self.searches.clone());
        let owned = |value: Variant<'_>| OwnedVariant::try_from(value);
        Ok(Dictionary::from([
            ("searches".into(), owned(searches)?),
            ("domains".into(), owned(domains)?),
        ]))
    }

    fn is(&self, found: &Dictionary) -> bool {
        Note::read(found).is_some_and(|found| found == *self)
    }

    fn read(found: &Dictionary) -> Option<Self> {
        let words = |value: &OwnedVariant| Vec::<String>::try_from(value.clone()).ok();
        let nested = |value: &OwnedVariant| Dictionary::try_from(value.clone()).ok();
        let searches = found.get("searches").map_or(Some(Vec::new()), words)?;
        let domains = nested(found.get("domains")?)?;
        let servers = words(nested(domains.get("*")?)?.get("servers")?)?;
        (domains.len() == 1).then_some(Note { searches, servers })
    }
}

fn note_file(state_dir: &Path) -> PathBuf {
    state_dir.join("networkmanager-dns.json")
}

/// Off the daemon's one thread, and not for ever: below /var may be a disk that never answers.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    const DISK: &str = "the disk below /var/lib";
    /// One at a time: who hangs there is not joined by others.
    static BUSY: AtomicBool = AtomicBool::new(false);
    if BUSY.swap(true, Ordering::AcqRel) {
        return Err(Error::TimedOut(DISK));
    }
    let (done, outcome) = oneshot::channel();
    std::thread::spawn(move || {
        let result = work();
        BUSY.store(false, Ordering::Release);
        done.send(result)
    });
    in_time(DISK, async { outcome.await.unwrap_or(Err(Error::TimedOut(DISK))) }).await
}

async fn read(file: &Path) -> Result<Option<Note>, Error> {
    let file = file.to_owned();
    on_disk(move || match fs::read(&file) {
        // Half a note is none: what it would have told of was not done yet.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { doing: "read", path: file, source }),
    })
    .await
}

fn write(file: &Path, note: &Note) -> Result<(), Error> {
    let new = file.with_extension("new");
    let error = |source| Error::File { doing: "write", path: file.into(), source };
    let text = serde_json::to_vec(note).map_err(|source| error(source.into()))?;
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).map_err(error)?;
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, file))
        .map_err(error)
}
