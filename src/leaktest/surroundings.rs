//! What the machine has to send with: links, addresses, routers, resolvers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netfilter;
use crate::netlink::{self, Address, Family, Link, Socket};
use crate::policy::Policy;

/// Links and addresses of one moment.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Every link.
    pub links: Vec<Link>,
    /// Every address.
    pub addresses: Vec<Address>,
    /// Routers of default routes, with the index of their link.
    pub routers: Vec<(u32, IpAddr)>,
    /// The system's resolvers, loopback's left out.
    pub resolvers: Vec<IpAddr>,
}

impl Surroundings {
    /// Reads them.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn read() -> io::Result<Self> {
        let socket = Socket::open(Family::Route)?;
        let links = netlink::links(&socket)?;
        // /proc/net is the whole process's; a thread may have a namespace of its own.
        let table = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        let named = |name: &str| links.iter().find(|link| link.name == name).map(|it| it.index);
        let mut routers = ipv4_routers(&table("route").unwrap_or_default(), named);
        // Without IPv6 there is no such file.
        routers.extend(ipv6_routers(&table("ipv6_route").unwrap_or_default(), named));
        let resolvers = resolvers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        let addresses = netlink::addresses(&socket)?;
        Ok(Surroundings { links, addresses, routers, resolvers })
    }

    /// Index of the tunnel's link.
    pub fn tunnel(&self, policy: &Policy) -> Option<u32> {
        self.tunnel_link(policy).map(|link| link.index)
    }

    /// The tunnel's link, by name and kind.
    pub fn tunnel_link(&self, policy: &Policy) -> Option<&Link> {
        let tunnel = policy.tunnel.as_ref()?;
        self.links.iter().find(|link| {
            link.name == tunnel.interface
                && link.kind.as_deref().is_some_and(|kind| tunnel.kinds.contains(kind))
        })
    }

    /// Links on which nothing may leave but what the policy says.
    pub fn watched(&self, policy: &Policy) -> Vec<Link> {
        netfilter::guarded(policy, &self.links)
    }

    /// Links that stay on the machine, as the configuration says: not watched.
    pub fn internal(&self, policy: &Policy) -> Vec<&Link> {
        let watched = self.watched(policy);
        let tunnel = self.tunnel(policy);
        let skipped =
            |it: &&Link| !it.loopback && Some(it.index) != tunnel && !watched.contains(it);
        self.links.iter().filter(skipped).collect()
    }

    /// The link's addresses of one family.
    pub fn addresses_of(&self, link: u32, v4: bool) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |it| it.link == link && it.address.is_ipv4() == v4)
    }
}

/// /proc/net/route: interface, destination, gateway, flags, ..., mask; addresses in hexadecimal as
/// they lie in memory.
fn ipv4_routers(text: &str, index: impl Fn(&str) -> Option<u32>) -> Vec<(u32, IpAddr)> {
    let router = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[name, "00000000", gateway, _, _, _, _, "00000000", ..] = &words[..] else {
            return None;
        };
        let gateway = u32::from_str_radix(gateway, 16).ok().filter(|it| *it != 0)?;
        Some((index(name)?, Ipv4Addr::from(gateway.to_ne_bytes()).into()))
    };
    text.lines().filter_map(router).collect()
}

/// /proc/net/ipv6_route: destination, its length, source, its length, next hop, ..., interface.
fn ipv6_routers(text: &str, index: impl Fn(&str) -> Option<u32>) -> Vec<(u32, IpAddr)> {
    let router = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[_, "00", _, _, hop, .., name] = &words[..] else { return None };
        let hop = u128::from_str_radix(hop, 16).ok().filter(|it| *it != 0)?;
        Some((index(name)?, Ipv6Addr::from(hop).into()))
    };
    text.lines().filter_map(router).collect()
}

/// resolv.conf(5).
fn resolvers(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let address = line.trim().strip_prefix("nameserver")?.trim();
        address.parse::<IpAddr>().ok().filter(|it| !it.is_loopback())
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routers_of_default_routes() {
        let index = |name: &str| (name == "eth0").then_some(2);
        let v4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                  eth0\t00000000\tPLACE\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let place = format!("{:08X}", u32::from_ne_bytes([192, 168, 1, 1]));
        let router = (2, "192.168.1.1".parse().unwrap());
        assert_eq!(ipv4_routers(&v4.replace("PLACE", &place), index), [router]);
        let zeros = "0".repeat(32);
        let hop = format!("fe80{}1", "0".repeat(27));
        let v6 = format!(
            "{zeros} 00 {zeros} 00 {hop} 00000400 1 0 00450003 eth0\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 1 0 00200200 lo\n"
        );
        assert_eq!(ipv6_routers(&v6, index), [(2, "fe80::1".parse().unwrap())]);
        let text = "# a\nnameserver 127.0.0.53\nnameserver 10.64.0.1\nsearch x\n";
        assert_eq!(resolvers(text), ["10.64.0.1".parse::<IpAddr>().unwrap()]);
    }
}
