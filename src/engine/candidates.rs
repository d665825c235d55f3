//! Which candidate comes first, and what worked where.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use super::{Candidate, Server, Uplink};

/// How many networks are remembered; the oldest goes.
const PLACES: usize = 32;

/// What moves a candidate from its place in the configuration.
#[derive(Debug, Clone, Default)]
pub(super) struct Wishes {
    /// Before all others.
    pub first: Option<Candidate>,
    /// The server that an administrator asked for.
    pub asked: Option<usize>,
    /// What worked last on this network.
    pub remembered: Option<Candidate>,
    /// What worked until now, elsewhere.
    pub present: Option<Candidate>,
    /// What was found dead since anything worked: after all others, the last one last.
    pub left: Vec<Candidate>,
}

impl Wishes {
    fn rank(&self, candidate: Candidate) -> usize {
        let is = |wish: Option<Candidate>| wish == Some(candidate);
        let asked = self.asked == Some(candidate.server);
        if let Some(at) = self.left.iter().position(|it| *it == candidate) {
            6 + at
        } else if is(self.first) {
            0
        } else if asked && is(self.remembered) {
            1
        } else if asked {
            2
        } else if is(self.remembered) {
            3
        } else if is(self.present) {
            4
        } else {
            5
        }
    }
}

/// Every usable candidate, in the order in which to try them.
pub(super) fn order(
    servers: &[Server],
    wishes: &Wishes,
    usable: impl Fn(Candidate) -> bool,
) -> Vec<Candidate> {
    let of_server = |(server, it): (usize, &Server)| {
        let candidate = move |endpoint| Candidate { server, endpoint };
        it.endpoints.clone().into_iter().map(candidate)
    };
    let mut all: Vec<_> =
        servers.iter().enumerate().flat_map(of_server).filter(|one| usable(*one)).collect();
    all.sort_by_key(|one| wishes.rank(*one));
    all
}

/// The candidate's server and endpoint, if this is one of these servers'.
pub(super) fn known(servers: &[Server], candidate: Candidate) -> bool {
    servers.get(candidate.server).is_some_and(|it| it.endpoints.contains(&candidate.endpoint))
}

/// The same server (by name) and endpoint among other servers.
pub(super) fn same(servers: &[Server], name: &str, endpoint: SocketAddr) -> Option<Candidate> {
    let server = servers.iter().position(|it| it.name == name)?;
    let candidate = Candidate { server, endpoint };
    known(servers, candidate).then_some(candidate)
}

/// A network as far as it can be told apart: its link and router.
type Place = (u32, Option<IpAddr>);

/// What worked where, latest last. In memory only: a list of the networks that this machine has
/// visited, left on disk, would harm the very people whom a kill switch protects.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(VecDeque<(Place, String, SocketAddr)>);

impl Memory {
    pub(super) fn remember(&mut self, uplink: &Uplink, name: &str, endpoint: SocketAddr) {
        self.forget(uplink);
        if self.0.len() == PLACES {
            self.0.pop_front();
        }
        self.0.push_back((place(uplink), name.to_owned(), endpoint));
    }

    pub(super) fn forget(&mut self, uplink: &Uplink) {
        self.0.retain(|(one, ..)| *one != place(uplink));
    }

    /// What worked last over one of these uplinks.
    pub(super) fn recall<'a>(
        &self,
        uplinks: impl IntoIterator<Item = &'a Uplink>,
        servers: &[Server],
    ) -> Option<Candidate> {
        let places: Vec<_> = uplinks.into_iter().map(place).collect();
        let here = |(one, ..): &&(Place, _, _)| places.contains(one);
        let (_, name, endpoint) = self.0.iter().rev().find(here)?;
        same(servers, name, *endpoint)
    }
}

fn place(uplink: &Uplink) -> Place {
    (uplink.link, uplink.gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers() -> Vec<Server> {
        let server = |name: &str, endpoints: &[&str]| Server {
            name: name.to_owned(),
            endpoints: endpoints.iter().map(|one| one.parse().unwrap()).collect(),
        };
        vec![
            server("a", &["192.0.2.1:1", "[2001:db8::1]:1"]),
            server("b", &["192.0.2.2:1", "192.0.2.2:2"]),
            server("c", &["192.0.2.3:1"]),
        ]
    }

    fn candidate(text: &str) -> Candidate {
        let (server, endpoint) = text.split_once('@').unwrap();
        Candidate { server: server.parse().unwrap(), endpoint: endpoint.parse().unwrap() }
    }

    fn listed(wishes: &Wishes, usable: impl Fn(Candidate) -> bool) -> String {
        let all = order(&servers(), wishes, usable);
        let text = |one: Candidate| format!("{}@{}", one.server, one.endpoint);
        all.into_iter().map(text).collect::<Vec<_>>().join(" ")
    }

    fn uplink(link: u32) -> Uplink {
        Uplink { link, gateway: None, addresses: Vec::new() }
    }

    #[test]
    fn goes_as_configured_without_wishes() {
        assert_eq!(
            listed(&Wishes::default(), |_| true),
            "0@192.0.2.1:1 0@[2001:db8::1]:1 1@192.0.2.2:1 1@192.0.2.2:2 2@192.0.2.3:1"
        );
    }

    #[test]
    fn skips_a_family_without_an_uplink() {
        assert_eq!(listed(&Wishes::default(), |one| one.endpoint.is_ipv6()), "0@[2001:db8::1]:1");
        assert_eq!(listed(&Wishes::default(), |_| false), "");
    }

    #[test]
    fn wishes_go_first_and_the_dead_last() {
        let wishes = Wishes {
            first: None,
            asked: Some(1),
            remembered: Some(candidate("1@192.0.2.2:2")),
            present: Some(candidate("2@192.0.2.3:1")),
            left: vec![candidate("0@[2001:db8::1]:1"), candidate("0@192.0.2.1:1")],
        };
        assert_eq!(
            listed(&wishes, |_| true),
            "1@192.0.2.2:2 1@192.0.2.2:1 2@192.0.2.3:1 0@[2001:db8::1]:1 0@192.0.2.1:1"
        );
    }

    #[test]
    fn what_was_asked_for_goes_before_what_worked_here() {
        let remembered = Some(candidate("2@192.0.2.3:1"));
        let wishes = Wishes { asked: Some(1), remembered, ..Wishes::default() };
        assert!(listed(&wishes, |_| true).starts_with("1@192.0.2.2:1 1@192.0.2.2:2 2@"));
        let first = Some(candidate("0@192.0.2.1:1"));
        assert!(listed(&Wishes { first, ..wishes }, |_| true).starts_with("0@192.0.2.1:1 1@"));
    }

    #[test]
    fn remembers_the_latest_of_a_network_and_a_bounded_number_of_networks() {
        let servers = servers();
        let mut memory = Memory::default();
        let (a, c) = (candidate("0@192.0.2.1:1"), candidate("2@192.0.2.3:1"));
        memory.remember(&uplink(1), "a", a.endpoint);
        memory.remember(&uplink(1), "c", c.endpoint);
        assert_eq!(memory.recall([&uplink(1)], &servers), Some(c));
        assert_eq!(memory.recall([&uplink(2)], &servers), None);
        for link in 2..=PLACES as u32 {
            memory.remember(&uplink(link), "a", a.endpoint);
        }
        assert_eq!(memory.recall([&uplink(1)], &servers), Some(c));
        memory.remember(&uplink(99), "a", a.endpoint);
        assert_eq!(memory.recall([&uplink(1)], &servers), None);
        assert_eq!(memory.0.len(), PLACES);
        memory.forget(&uplink(99));
        assert_eq!(memory.recall([&uplink(99)], &servers), None);
    }

    #[test]
    fn finds_a_server_by_name_in_another_configuration() {
        let mut servers = servers();
        servers.reverse();
        let endpoint = "192.0.2.1:1".parse().unwrap();
        assert_eq!(same(&servers, "a", endpoint), Some(Candidate { server: 2, endpoint }));
        assert_eq!(same(&servers, "b", endpoint), None);
        assert_eq!(same(&servers, "d", endpoint), None);
    }
}
