//! Whether a lock would cut off the SSH session in which it is typed.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::OnceLock;

use serde_json::Value;

use crate::explain::{self, Words};
use crate::netlink::{self, Address, Family, Link, Route, Socket};
use crate::policy::Policy;
use crate::process::{self, Stat};
use crate::routing;

/// A packet as `explain` takes it.
type Pairs = BTreeMap<&'static str, String>;

/// An SSH session: `SSH_CONNECTION` of sshd(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    client: (IpAddr, u16),
    server: (IpAddr, u16),
}

/// How this machine reaches a session's client.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Way {
    /// Over loopback.
    local: bool,
    /// By a route that the routing guard does not find too wide.
    near: bool,
    /// By this link.
    link: String,
}

/// This process's SSH session, if the policy would cut it off.
pub fn session_cut_off_by(policy: &Policy) -> Option<Session> {
    let explain = |packet: &Pairs| {
        let words = packet.iter().map(|(&name, value)| (name.to_owned(), value.clone()));
        let words = Words::from_pairs(&words.collect())?;
        explain::decide(&words, policy, None).map(|answer| answer.document(false))
    };
    session().filter(|session| !session.survives(explain).unwrap_or(false))
}

impl Session {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let mut end = || Some((address(words.next()?)?, words.next()?.parse().ok()?));
        Some(Session { client: end()?, server: end()? })
    }

    /// Where it comes from.
    pub fn client(&self) -> IpAddr {
        self.client.0
    }

    /// Whether its server's replies may leave, by the document in which `explain` says what becomes of
    /// one.
    ///
    /// # Errors
    /// Those of `explain`.
    pub fn survives<E>(&self, explain: impl FnOnce(&Pairs) -> Result<Value, E>) -> Result<bool, E> {
        // Where the kernel does not tell, a route is taken for granted: `explain` does, too.
        let unknown = |_| Way { local: false, near: true, link: ANY_LINK.into() };
        self.survives_by(&self.way().unwrap_or_else(unknown), explain)
    }

    fn survives_by<E>(
        &self,
        way: &Way,
        explain: impl FnOnce(&Pairs) -> Result<Value, E>,
    ) -> Result<bool, E> {
        if way.local || self.client.0.is_loopback() {
            return Ok(true);
        }
        let answer = explain(&self.reply(&way.link))?;
        let lets = |layer: &Value| {
            layer["verdict"] == "accept" && (way.near || layer["reason"] != explain::NEAR_ROUTE)
        };
        Ok(answer["layers"].as_array().is_some_and(|layers| layers.iter().all(lets)))
    }

    fn way(&self) -> io::Result<Way> {
        let socket = Socket::open(Family::Route)?;
        let links = netlink::links(&socket)?;
        let addresses = netlink::addresses(&socket)?;
        let route = netlink::main_route(&socket, self.client.0)?;
        Ok(self.way_among(&links, &addresses, route.as_ref()))
    }

    fn way_among(&self, links: &[Link], addresses: &[Address], route: Option<&Route>) -> Way {
        let (client, server) = (self.client.0, self.server.0);
        let own = addresses.iter().find(|it| it.address == server);
        let of_index = |index: u32| links.iter().find(|link| link.index == index);
        // Table main knows neither of the way into the tunnel nor which link a link-local address is on.
        let of_server = own.and_then(|it| of_index(it.link)).filter(|link| {
            netlink::is_link_local(server)
                || link.kind.as_deref().is_some_and(|kind| TUNNEL_KINDS.contains(&kind))
        });
        let link = of_server.or_else(|| of_index(route?.link?));
        Way {
            local: addresses.iter().any(|it| it.address == client),
            near: route.is_some_and(|route| routing::is_near(route.destination)),
            link: link.map_or(ANY_LINK.into(), |link| link.name.clone()),
        }
    }

    /// Its server's reply.
    fn reply(&self, link: &str) -> Pairs {
        let ((client, client_port), (server, server_port)) = (self.client, self.server);
        BTreeMap::from([
            ("out", link.to_owned()),
            ("proto", "tcp".to_owned()),
            ("from", server.to_string()),
            ("to", client.to_string()),
            ("sport", server_port.to_string()),
            ("port", client_port.to_string()),
            ("reply", "true".to_owned()),
        ])
    }

    /// What would happen, and what to write so that it does not.
    pub fn explain(&self) -> String {
        let (client, port) = (self.client.0, self.server.1);
        let length = if client.is_ipv4() { 32 } else { 128 };
        format!(
            "this would cut off your SSH session from {client}\n\
             help: allow it in the configuration:\n\
             \x20     [allow]\n\
             \x20     inbound = [{{ proto = \"tcp\", port = {port}, from = [\"{client}/{length}\"] }}]\n\
             \x20     or say --yes to be cut off"
        )
    }
}

/// Where nobody knows which: no rule is for a link of this name.
const ANY_LINK: &str = "eth0";
/// What a tunnel's link may be (`Tunnel::kinds`).
const TUNNEL_KINDS: [&str; 2] = ["wireguard", "tun"];

/// A link-local address has its link after it; a socket of both families has IPv4 in IPv6 form.
fn address(text: &str) -> Option<IpAddr> {
    Some(text.split('%').next()?.parse::<IpAddr>().ok()?.to_canonical())
}

/// This process's SSH session; looked up once, since the lock waits for it and the evidence asks again.
pub fn session() -> Option<Session> {
    static SESSION: OnceLock<Option<Session>> = OnceLock::new();
    *SESSION.get_or_init(look_up)
}

/// sudo drops the variable: then an ancestor has it.
fn look_up() -> Option<Session> {
    if let Some(session) =
        std::env::var("SSH_CONNECTION").ok().and_then(|text| Session::parse(&text))
    {
        return Some(session);
    }
    let mut process = std::os::unix::process::parent_id();
    let mut buffer = vec![0; 1 << 20];
    // Deep enough for any shell within sudo within tmux; a cycle is impossible, a limit is cheap.
    for _ in 0..32 {
        if process <= 1 {
            return None;
        }
        let found = process::read(format!("/proc/{process}/environ"), &mut buffer)
            .split(|&byte| byte == 0)
            .filter_map(|entry| entry.strip_prefix(b"SSH_CONNECTION="))
            .find_map(|value| Session::parse(&String::from_utf8_lossy(value)));
        if found.is_some() {
            return found;
        }
        process = Stat::of(process)?.parent;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::Here;
    use crate::policy::{Inbound, LinkPattern, Protocol, Tunnel};

    fn policy_with(inbound: &[(&str, u16)]) -> Policy {
        Policy {
            inbound: inbound
                .iter()
                .map(|(net, port)| Inbound {
                    protocol: Protocol::Tcp,
                    port: *port,
                    from: net.parse().expect("a prefix"),
                })
                .collect(),
            ..Policy::strictest()
        }
    }

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        Link {
            index,
            name: name.into(),
            kind: kind.map(Into::into),
            ethernet: true,
            up: true,
            running: true,
            mtu: 1500,
            ..Link::default()
        }
    }

    fn own(index: u32, address: &str) -> Address {
        let address = address.parse().expect("an address");
        Address { link: index, address, prefix_len: 24, peer: address, usable: true }
    }

    fn session(text: &str) -> Session {
        Session::parse(text).expect("a session")
    }

    /// On a machine with a NIC, a bridge of guests and a tunnel; the route's destination and link.
    fn survives(policy: &Policy, text: &str, route: Option<(&str, u32)>) -> bool {
        let links =
            [link(2, "nic", None), link(3, "br-x", Some("bridge")), link(4, "wg0", Some("tun"))];
        let addresses = [
            own(2, "192.168.1.2"),
            own(2, "fe80::2"),
            own(3, "172.18.0.1"),
            own(3, "fe80::3"),
            own(4, "10.64.0.2"),
        ];
        let route = route.map(|(destination, link)| Route {
            destination: destination.parse().expect("a prefix"),
            link: Some(link),
        });
        let session = session(text);
        let way = session.way_among(&links, &addresses, route.as_ref());
        let explain = |packet: &Pairs| {
            let words = packet.iter().map(|(name, value)| (name.to_string(), value.clone()));
            let words = Words::from_pairs(&words.collect())?;
            let here = Here { links: links.to_vec(), addresses: Vec::new() };
            let answer = explain::decide_at(&here, &words, policy, None)?;
            Ok::<_, String>(answer.document(false))
        };
        session.survives_by(&way, explain).expect("an answer")
    }

    const DEFAULT: Option<(&str, u32)> = Some(("0.0.0.0/0", 2));

    #[test]
    fn a_session_survives_only_where_it_is_allowed() {
        let text = "192.168.1.7 50123 192.168.1.2 22";
        let near = Some(("192.168.1.0/24", 2));
        assert!(!survives(&policy_with(&[]), text, near));
        assert!(!survives(&policy_with(&[("192.168.1.0/24", 2222)]), text, near));
        assert!(!survives(&policy_with(&[("192.168.2.0/24", 22)]), text, near));
        assert!(survives(&policy_with(&[("192.168.1.0/24", 22)]), text, near));
        assert!(session(text).explain().contains("from = [\"192.168.1.7/32\"]"));
        let link_local = "fe80::1%nic 50123 fe80::2%nic 22";
        let near = Some(("fe80::/64", 2));
        assert!(!survives(&policy_with(&[]), link_local, near));
        assert!(survives(&policy_with(&[("fe80::/10", 22)]), link_local, near));
    }

    #[test]
    fn behind_the_gateway_only_a_service_reaches() {
        let text = "10.9.0.5 50123 192.168.1.2 22";
        let lan = Policy { lan: vec!["10.0.0.0/8".parse().unwrap()], ..Policy::strictest() };
        assert!(survives(&lan, text, Some(("10.9.0.0/24", 2))));
        for wide in [DEFAULT, Some(("8.0.0.0/5", 2)), None] {
            assert!(!survives(&lan, text, wide), "{wide:?}");
        }
        // Something else routes.
        assert!(survives(&Policy { routing_guard: false, ..lan.clone() }, text, DEFAULT));
        let named = Policy { lan: lan.lan, ..policy_with(&[("10.9.0.5/32", 22)]) };
        assert!(survives(&named, text, DEFAULT));
    }

    #[test]
    fn a_guests_session_stays_on_its_bridge() {
        let internal =
            Policy { internal: [LinkPattern::Exact("br-x".into())].into(), ..Policy::strictest() };
        let guest = "172.18.0.5 50123 172.18.0.1 22";
        let near = Some(("172.18.0.0/16", 3));
        assert!(survives(&internal, guest, near));
        assert!(!survives(&policy_with(&[]), guest, near));
        // Another address of ours is reached from there, too, and the bridge's from elsewhere.
        assert!(survives(&internal, "172.18.0.5 50123 192.168.1.2 22", near));
        assert!(!survives(&internal, "192.168.1.7 50123 172.18.0.1 22", DEFAULT));
        // Every link has a route for its link-local addresses.
        let near = Some(("fe80::/64", 3));
        assert!(!survives(&internal, "fe80::1%nic 50123 fe80::2%nic 22", near));
        assert!(survives(&internal, "fe80::1%br-x 50123 fe80::3%br-x 22", near));
    }

    #[test]
    fn a_session_through_the_tunnel_survives() {
        let tunnel = Tunnel {
            interface: "wg0".into(),
            kinds: ["tun"].into(),
            addresses: ["10.64.0.2".parse().unwrap()].into(),
        };
        let policy = Policy { tunnel: Some(tunnel), ..Policy::strictest() };
        assert!(survives(&policy, "10.99.0.7 50123 10.64.0.2 22", DEFAULT));
        assert!(!survives(&policy, "10.99.0.7 50123 192.168.1.2 22", DEFAULT));
    }

    #[test]
    fn a_session_with_this_machine_itself_survives() {
        assert!(survives(&policy_with(&[]), "192.168.1.2 50123 192.168.1.2 22", None));
        assert!(survives(&policy_with(&[]), "127.0.0.1 50123 127.0.0.1 22", None));
    }

    /// As sshd(8) writes it that listens with one socket for both families.
    #[test]
    fn ipv4_in_ipv6_form_is_ipv4() {
        let mapped = "::ffff:192.168.1.7 50123 ::ffff:192.168.1.2 22";
        assert_eq!(session(mapped), session("192.168.1.7 50123 192.168.1.2 22"));
        assert!(session(mapped).explain().contains("from = [\"192.168.1.7/32\"]"));
    }
}
