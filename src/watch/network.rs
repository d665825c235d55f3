//! The ways out, read anew each time.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags,
    RouteType, RouteVia,
};
use netlink_sys::AsyncSocket;

use crate::engine::{Network, TunnelLink, Uplink};
use crate::netlink::{self, Address, Family, Link, Socket};
use crate::policy::Tunnel;

/// Reads links, addresses and routes. Within a tokio runtime with I/O enabled.
pub struct Observer {
    socket: Socket,
    routes: rtnetlink::Handle,
    connection: tokio::task::JoinHandle<()>,
    seen: Option<BTreeSet<Identity>>,
}

/// How it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The ways out, and the tunnel's link.
    pub network: Network,
    /// A link came, went, or changed in what the guards match it by, since the last reading: hold
    /// them. The first reading says so, too.
    pub links_changed: bool,
}

/// What the guards match a link by. A new link has a new index, even under an old name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Identity {
    index: u32,
    name: String,
    kind: Option<String>,
    group: u32,
    master: Option<u32>,
    /// The kernel drops the routes that refuse IPv6 when loopback goes down (fib6_ifdown).
    loopback_up: bool,
}

impl Observer {
    /// Ready to read the caller's namespace.
    ///
    /// # Errors
    /// Those of sockets.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::open(Family::Route)?;
        let (mut connection, routes, _) = rtnetlink::new_connection()?;
        // Kernels before 4.20 lack strict checking: they list every table.
        let _ = connection.socket_mut().socket_mut().set_netlink_get_strict_chk(true);
        Ok(Observer { socket, routes, connection: tokio::spawn(connection), seen: None })
    }

    /// Reads; `tunnel`: which link is the tunnel.
    ///
    /// # Errors
    /// The kernel's refusal: open anew. Interrupted: too much changed meanwhile; [`super::Watch`]
    /// tells of it, so read then.
    pub async fn observe(&mut self, tunnel: Option<&Tunnel>) -> io::Result<Observed> {
        let routes = self.default_routes().await?;
        let links = netlink::links(&self.socket)?;
        let addresses = netlink::addresses(&self.socket)?;
        let seen = Some(links.iter().map(Identity::of).collect());
        let links_changed = self.seen != seen;
        self.seen = seen;
        let network = network(&links, &addresses, &routes, tunnel);
        Ok(Observed { network, links_changed })
    }

    /// And the halves of what a default route leads to.
    async fn default_routes(&self) -> io::Result<Vec<RouteMessage>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            request.header.table = RouteHeader::RT_TABLE_MAIN;
            request.header.kind = RouteType::Unicast;
            let mut routes = std::pin::pin!(self.routes.route().get(request).execute());
            while let Some(route) = routes.try_next().await.map_err(io::Error::other)? {
                // Without IPv6 the kernel answers with IPv4 once more.
                if route.header.address_family == family && part(&route).is_some() {
                    found.push(route);
                }
            }
        }
        Ok(found)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Identity {
    fn of(link: &Link) -> Self {
        Identity {
            index: link.index,
            name: link.name.clone(),
            kind: link.kind.clone(),
            group: link.group,
            master: link.master,
            loopback_up: link.loopback && link.up,
        }
    }
}

/// Of all addresses. Some have two halves for a default route, so as to keep another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    LowerHalf,
    UpperHalf,
}

/// What a route of table main leads to, if it is as much.
fn part(route: &RouteMessage) -> Option<Part> {
    let header = &route.header;
    if header.kind != RouteType::Unicast
        || table(route) != u32::from(RouteHeader::RT_TABLE_MAIN)
        || header.destination_prefix_length > 1
    {
        return None;
    }
    let upper = route.attributes.iter().any(|it| match it {
        RouteAttribute::Destination(RouteAddress::Inet(it)) => it.octets()[0] >= 128,
        RouteAttribute::Destination(RouteAddress::Inet6(it)) => it.octets()[0] >= 128,
        _ => false,
    });
    Some(match (header.destination_prefix_length, upper) {
        (0, _) => Part::All,
        (_, false) => Part::LowerHalf,
        (_, true) => Part::UpperHalf,
    })
}

fn table(route: &RouteMessage) -> u32 {
    let long = route.attributes.iter().find_map(|it| match it {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    long.unwrap_or(route.header.table.into())
}

/// Of what was read.
fn network(
    links: &[Link],
    addresses: &[Address],
    routes: &[RouteMessage],
    tunnel: Option<&Tunnel>,
) -> Network {
    let name = tunnel.map(|tunnel| tunnel.interface.as_str());
    let ways = |index: u32| {
        links
            .iter()
            .any(|it| it.index == index && it.running && !it.loopback && Some(&*it.name) != name)
    };
    let best = |family, wanted| {
        let (_, link, gateway) = routes
            .iter()
            .filter(|route| route.header.address_family == family && part(route) == Some(wanted))
            .filter_map(|route| first_hop(route, ways))
            .min_by_key(|&(metric, link, _)| (metric, link))?;
        Some((link, gateway))
    };
    let uplink = |family| {
        let halves = || {
            let lower = best(family, Part::LowerHalf)?;
            (best(family, Part::UpperHalf) == Some(lower)).then_some(lower)
        };
        let (link, gateway) = best(family, Part::All).or_else(halves)?;
        let addresses = addresses
            .iter()
            .filter(|it| it.link == link && it.usable && of(it.address) == family)
            .map(|it| it.address)
            .collect();
        Some(Uplink { link, gateway, addresses })
    };
    Network {
        v4: uplink(AddressFamily::Inet),
        v6: uplink(AddressFamily::Inet6),
        tunnel: tunnel.map_or(TunnelLink::Absent, |tunnel| tunnel_link(links, tunnel)),
    }
}

fn of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn tunnel_link(links: &[Link], tunnel: &Tunnel) -> TunnelLink {
    let Some(link) = links.iter().find(|link| link.name == tunnel.interface) else {
        return TunnelLink::Absent;
    };
    match link.kind.as_deref().is_some_and(|kind| tunnel.kinds.contains(kind)) {
        false => TunnelLink::Foreign,
        true if link.up => TunnelLink::Up,
        true => TunnelLink::Down,
    }
}

/// A route's metric and the link and router of its first hop that is alive.
fn first_hop(
    route: &RouteMessage,
    ways: impl Fn(u32) -> bool,
) -> Option<(u32, u32, Option<IpAddr>)> {
    let (mut metric, mut link, mut hops) = (0, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::MultiPath(list) => hops = Some(list),
            _ => {}
        }
    }
    if let Some(hops) = hops {
        let dead = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
        let hop =
            hops.iter().find(|hop| !hop.flags.intersects(dead) && ways(hop.interface_index))?;
        return Some((metric, hop.interface_index, gateway(&hop.attributes)));
    }
    let dead = RouteFlags::Dead | RouteFlags::Linkdown;
    let link = link.filter(|&it| !route.header.flags.intersects(dead) && ways(it))?;
    Some((metric, link, gateway(&route.attributes)))
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|it| match it {
        RouteAttribute::Gateway(RouteAddress::Inet(it))
        | RouteAttribute::Via(RouteVia::Inet(it)) => Some((*it).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(it))
        | RouteAttribute::Via(RouteVia::Inet6(it)) => Some((*it).into()),
        _ => None,
    })
}
