//! systemd-resolved: org.freedesktop.resolve1(5).

use std::net::IpAddr;

use futures_util::StreamExt;
use zbus::Connection;
use zbus::proxy::CacheProperties;

use super::{Error, Resolvers, in_time};

const NAME: &str = "org.freedesktop.resolve1";
const WHO: &str = "systemd-resolved";

/// AF_INET or AF_INET6, and the address in network order.
type Address = (i32, Vec<u8>);

#[zbus::proxy(
    interface = "org.freedesktop.resolve1.Manager",
    default_service = "org.freedesktop.resolve1",
    default_path = "/org/freedesktop/resolve1"
)]
trait Manager {
    #[zbus(name = "SetLinkDNS")]
    fn set_link_dns(&self, link: i32, servers: &[Address]) -> zbus::Result<()>;
    /// Domain, and whether it only routes.
    fn set_link_domains(&self, link: i32, domains: &[(&str, bool)]) -> zbus::Result<()>;
    fn set_link_default_route(&self, link: i32, enable: bool) -> zbus::Result<()>;
    fn revert_link(&self, link: i32) -> zbus::Result<()>;
    fn get_link(&self, link: i32) -> zbus::Result<zbus::OwnedObjectPath>;
}

#[zbus::proxy(
    interface = "org.freedesktop.resolve1.Link",
    default_service = "org.freedesktop.resolve1"
)]
trait Link {
    #[zbus(property, name = "DNS")]
    fn dns(&self) -> zbus::Result<Vec<Address>>;
    #[zbus(property)]
    fn domains(&self) -> zbus::Result<Vec<(String, bool)>>;
    #[zbus(property)]
    fn default_route(&self) -> zbus::Result<bool>;
}

/// Every name is asked of the tunnel's resolvers, and of no other link's.
pub(super) async fn set(link: u32, resolvers: &Resolvers) -> Result<(), Error> {
    let link = signed(link)?;
    let outcome = in_time(WHO, async {
        let manager = manager().await?;
        manager.set_link_dns(link, &addresses(resolvers)).await?;
        manager.set_link_domains(link, &domains(resolvers)).await?;
        manager.set_link_default_route(link, true).await?;
        Ok(())
    })
    .await;
    if outcome.is_err() {
        let _ = in_time(WHO, async { Ok(manager().await?.revert_link(link).await?) }).await;
    }
    outcome
}

pub(super) async fn is_set(link: u32, resolvers: &Resolvers) -> Result<bool, Error> {
    let link = signed(link)?;
    in_time(WHO, async {
        let manager = manager().await?;
        let link = LinkProxy::builder(manager.inner().connection())
            .path(manager.get_link(link).await?)
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        let found = link.domains().await?;
        let found: Vec<_> = found.iter().map(|(name, routes)| (name.as_str(), *routes)).collect();
        Ok(link.dns().await? == addresses(resolvers)
            && found == domains(resolvers)
            && link.default_route().await?)
    })
    .await
}

pub(super) async fn revert(link: u32) -> Result<(), Error> {
    let link = signed(link)?;
    in_time(WHO, async { Ok(manager().await?.revert_link(link).await?) }).await
}

/// Tells when systemd-resolved has started anew: it may then have forgotten the tunnel's resolvers.
pub struct Restarts {
    owners: zbus::fdo::NameOwnerChangedStream,
}

impl Restarts {
    /// Begins to listen; holds one connection to the bus.
    ///
    /// # Errors
    /// If there is no bus, or it does not answer.
    pub async fn listen() -> Result<Self, Error> {
        in_time("D-Bus", async {
            let connection = Connection::system().await?;
            let bus = zbus::fdo::DBusProxy::new(&connection).await?;
            let owners = bus.receive_name_owner_changed_with_args(&[(0, NAME)]).await?;
            Ok(Restarts { owners })
        })
        .await
    }

    /// Waits until it has started (anew). `None`: the bus is gone; listen anew later. May be
    /// dropped and called again: nothing is lost.
    pub async fn next(&mut self) -> Option<()> {
        while let Some(change) = self.owners.next().await {
            if change.args().is_ok_and(|args| args.new_owner().is_some()) {
                return Some(());
            }
        }
        None
    }
}

async fn manager() -> Result<ManagerProxy<'static>, Error> {
    let connection = Connection::system().await?;
    // Nothing is cached: no property is asked of this object, and its signals are not wanted.
    let builder = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No);
    Ok(builder.build().await?)
}

fn addresses(resolvers: &Resolvers) -> Vec<Address> {
    let address = |server: &IpAddr| match server {
        IpAddr::V4(server) => (nix::libc::AF_INET, server.octets().to_vec()),
        IpAddr::V6(server) => (nix::libc::AF_INET6, server.octets().to_vec()),
    };
    resolvers.servers.iter().map(address).collect()
}

/// "~." routes every name to the link (systemd.network(5), `Domains=`).
fn domains(resolvers: &Resolvers) -> Vec<(&str, bool)> {
    let search = resolvers.search.iter().map(|domain| (domain.as_str(), false));
    std::iter::once((".", true)).chain(search).collect()
}

fn signed(link: u32) -> Result<i32, Error> {
    i32::try_from(link).map_err(|_| zbus::Error::Failure("no link has this index".into()).into())
}
