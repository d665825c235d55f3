//! The ways out that are tried.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use nix::sys::socket::LinkAddr;

use super::canary::{self, HOPS, Run};
use super::frame::{Packet, TCP};
use super::guest::{self, Guest};
use super::shot::{Fired, Shot, Sockets, Way, connected};
use super::surroundings::Surroundings;
use crate::netlink::{Link, hardware_addresses};
use crate::policy::Policy;

/// So many links are tried; a machine with more is a gateway whose links are alike.
pub(super) const LINKS: usize = 16;

/// One way out.
#[derive(Debug)]
pub struct Probe {
    /// In one word.
    pub name: &'static str,
    /// What is sent, how, and by which link.
    pub title: &'static str,
    /// The numbers of SECURITY.md's threats that it tries.
    pub threats: &'static [u8],
    /// Its number in this run, and its place.
    pub number: u8,
    /// What it sends each time.
    pub shots: Vec<Shot>,
    /// Canaries handed to the kernel.
    pub sent: u64,
    /// Of these, refused at once.
    pub refused: u64,
    /// Why one could not be tried.
    pub failed: Option<String>,
}

impl Probe {
    /// Sends everything once, by the sockets of this round.
    pub fn fire(&mut self, sockets: &mut Sockets) {
        for shot in &self.shots {
            match shot.fire(sockets) {
                Fired::Sent => self.sent += 1,
                Fired::Refused => {
                    self.sent += 1;
                    self.refused += 1;
                }
                Fired::Absent => {}
                Fired::Failed(why) => {
                    self.failed.get_or_insert(why);
                }
            }
        }
    }
}

/// Sends everything of all probes once.
pub fn fire(probes: &mut [Probe]) {
    let mut sockets = Sockets::default();
    probes.iter_mut().for_each(|it| it.fire(&mut sockets));
}

/// Whereto each probe begins TCP connections: there is no room for a token in their first packets.
#[derive(Debug, Clone, Default)]
pub struct Aims(Vec<(usize, SocketAddr)>);

impl Aims {
    /// Those of these probes.
    pub fn of(probes: &[Probe]) -> Self {
        let tcp = |probe: &Probe| {
            let shots = probe.shots.iter().filter(|it| matches!(it.way, Way::Tcp));
            shots.map(|it| (usize::from(probe.number), it.to)).collect::<Vec<_>>()
        };
        Aims(probes.iter().flat_map(tcp).collect())
    }

    /// Which probe sent this, by the token in it, or by whereto it is.
    pub fn sender(&self, run: &Run, packet: Option<&Packet<'_>>, bytes: &[u8]) -> Option<usize> {
        if let Some(number) = run.find(bytes) {
            return Some(number.into());
        }
        let packet = packet.filter(|it| it.hops == HOPS && it.protocol == TCP)?;
        let (_, port) = packet.ports()?;
        let aimed = |to: &SocketAddr| to.ip() == packet.destination && to.port() == port;
        self.0.iter().find(|(_, to)| aimed(to)).map(|it| it.0)
    }
}

/// What can be tried, and what cannot.
pub struct Plan {
    /// What can.
    pub probes: Vec<Probe>,
    /// Why something cannot.
    pub limits: Vec<String>,
    /// Sends what would have to be forwarded.
    pub guest: Option<Guest>,
}

/// Makes the probes.
struct Planner<'a> {
    run: &'a Run,
    here: &'a Surroundings,
    links: Vec<Link>,
    hardware: BTreeMap<String, LinkAddr>,
    plan: Plan,
    /// Probes that have nothing to send.
    idle: Vec<&'static str>,
}

/// What a machine with these surroundings can try. `lasting`: also sockets that are open from now on.
pub fn plan(run: &Run, policy: &Policy, here: &Surroundings, lasting: bool) -> Plan {
    let mut links = here.watched(policy);
    links.retain(|link| link.up);
    // Where there are too many, those that lead to the world.
    links.sort_by_key(|link| here.routers.iter().all(|it| it.0 != link.index));
    let plan = Plan { probes: Vec::new(), limits: Vec::new(), guest: None };
    let hardware = hardware_addresses().unwrap_or_default();
    let mut planner = Planner { run, here, links, hardware, plan, idle: Vec::new() };
    planner.as_routed();
    planner.names();
    planner.by_each_link();
    planner.by_packet_sockets();
    planner.past_the_mark(policy);
    planner.forwarded();
    if lasting {
        planner.older_sockets();
    }
    planner.own_up();
    planner.plan
}

impl Planner<'_> {
    /// `content`: of a token.
    fn add(
        &mut self,
        (name, title, threats): (&'static str, &'static str, &'static [u8]),
        shots: impl FnOnce(&Self, String) -> Vec<Shot>,
    ) {
        let number = u8::try_from(self.plan.probes.len()).unwrap_or(u8::MAX);
        let shots = shots(self, self.run.token(number));
        if shots.is_empty() {
            self.idle.push(name);
            return;
        }
        let (sent, refused, failed) = (0, 0, None);
        let probe = Probe { name, title, threats, number, shots, sent, refused, failed };
        self.plan.probes.push(probe);
    }

    /// What was left out.
    fn own_up(&mut self) {
        if !self.idle.is_empty() {
            let names = self.idle.join(", ");
            let why = "this machine has no link, address, router or server for it";
            self.plan.limits.push(format!("{names}: not tried: {why}"));
        }
        let more = self.links.len().saturating_sub(LINKS);
        if more > 0 {
            let why = format!("nothing was sent by {more} of {} links, only", self.links.len());
            self.plan.limits.push(format!("{why} watched what others send"));
        }
    }

    /// To both families, as routed.
    fn both(&self, port: u16, make: impl Fn(SocketAddr) -> Shot) -> Vec<Shot> {
        self.run.destinations().map(|ip| make(SocketAddr::new(ip, port))).into()
    }

    /// To both families, by each link.
    fn each(&self, port: u16, make: impl Fn(SocketAddr) -> Shot) -> Vec<Shot> {
        let by = |link: &Link| self.both(port, |to| make(to).bound_to(&link.name));
        self.links.iter().take(LINKS).flat_map(by).collect()
    }

    fn as_routed(&mut self) {
        self.add(("tcp", "TCP connections, port 443, as routed", &[5]), |it, _| {
            it.both(443, |to| Shot::new(Way::Tcp, to, Vec::new()))
        });
        self.add(("udp", "UDP, as routed", &[5]), |it, token| {
            it.both(4433, |to| Shot::new(Way::Udp, to, token.clone().into()))
        });
        self.add(("quic", "UDP in QUIC's shape, port 443", &[5]), |it, token| {
            it.both(443, |to| Shot::new(Way::Udp, to, canary::quic_initial(&token)))
        });
        self.add(("icmp", "ICMP echo requests, as routed", &[5, 6]), |it, token| {
            it.both(0, |to| Shot::new(Way::Icmp, to, canary::echo_request(to.is_ipv4(), &token)))
        });
        self.add(("ntp", "UDP in NTP's shape, port 123", &[5]), |it, token| {
            it.both(123, |to| Shot::new(Way::Udp, to, canary::ntp_request(&token)))
        });
        self.add(("stun", "STUN binding requests, as WebRTC sends them", &[67]), |it, token| {
            it.both(3478, |to| Shot::new(Way::Udp, to, canary::stun_request(&token)))
        });
        let title = "raw sockets that bring their own IP header, under each link's address";
        self.add(("raw-ip", title, &[5, 50]), |it, token| {
            let mut shots = Vec::new();
            for (link, from) in it.sources(true) {
                let ([to, _], IpAddr::V4(from)) = (it.run.destinations(), from) else { continue };
                let IpAddr::V4(target) = to else { continue };
                let packet = canary::ipv4_datagram(from, target, HOPS, token.as_bytes());
                let shot = || Shot::new(Way::Header, SocketAddr::new(to, 0), packet.clone());
                shots.extend([shot(), shot().bound_to(&link)]);
            }
            shots
        });
        let title = "UDP from every IPv6 address of every link, as routed and bound";
        self.add(("ipv6-sources", title, &[5, 20, 71]), |it, token| {
            let mut shots = Vec::new();
            for (link, from) in it.sources(false) {
                let [_, to] = it.run.destinations();
                let shot = || {
                    Shot::new(Way::Udp, SocketAddr::new(to, 4434), token.clone().into()).from(from)
                };
                shots.extend([shot(), shot().bound_to(&link)]);
            }
            shots
        });
    }

    /// Each link's addresses of one family that reach further than the link.
    fn sources(&self, v4: bool) -> Vec<(String, IpAddr)> {
        let of = |link: &Link| {
            let usable = self.here.addresses_of(link.index, v4).filter(|it| it.usable);
            usable.map(|it| (link.name.clone(), it.address)).collect::<Vec<_>>()
        };
        self.links.iter().take(LINKS).flat_map(of).collect()
    }

    /// Who is asked for names by mistake: routers and resolvers, by each link and as routed.
    fn resolvers(&self, port: u16, make: impl Fn(SocketAddr) -> Shot) -> Vec<Shot> {
        let mut shots = Vec::new();
        for link in self.links.iter().take(LINKS) {
            let routers = self.here.routers.iter().filter(|it| it.0 == link.index).map(|it| it.1);
            let all: BTreeSet<IpAddr> =
                routers.chain(self.here.resolvers.iter().copied()).collect();
            let ends = all.into_iter().map(|ip| on_link(ip, port, link.index));
            shots.extend(ends.map(|to| make(to).bound_to(&link.name)));
            shots.extend(self.both(port, |to| make(to).bound_to(&link.name)));
        }
        let near = self.here.routers.iter().map(|&(link, ip)| on_link(ip, port, link));
        shots.extend(near.map(make));
        shots
    }

    fn names(&mut self) {
        let title =
            "DNS to routers and resolvers past the tunnel, as routed and bound to each link";
        self.add(("dns", title, &[48, 67]), |it, token| {
            it.resolvers(53, |to| Shot::new(Way::Udp, to, canary::dns_query(&token, "invalid")))
        });
        self.add(("dot", "DNS over TLS to the same, port 853", &[48]), |it, _| {
            it.resolvers(853, |to| Shot::new(Way::Tcp, to, Vec::new()))
        });
        self.add(("mdns", "multicast DNS by each link", &[48, 50]), |it, token| {
            let query = canary::dns_query(&token, "local");
            it.to_groups(5353, ([224, 0, 0, 251], 0xfb), &query)
        });
        self.add(("llmnr", "LLMNR by each link", &[48, 50]), |it, token| {
            let query = canary::dns_query(&token, "invalid");
            it.to_groups(5355, ([224, 0, 0, 252], 0x1_0003), &query)
        });
    }

    /// To a group of both families by each link (RFC 6762, RFC 4795).
    fn to_groups(&self, port: u16, (v4, v6): ([u8; 4], u32), content: &[u8]) -> Vec<Shot> {
        let group = u128::from(v6) | 0xff02 << 112;
        let to = |link: &Link| {
            let ends = [Ipv4Addr::from(v4).into(), Ipv6Addr::from(group).into()];
            ends.map(|ip| {
                let end = on_link(ip, port, link.index);
                Shot::new(Way::Udp, end, content.into()).bound_to(&link.name)
            })
        };
        self.links.iter().take(LINKS).flat_map(to).collect()
    }

    fn by_each_link(&mut self) {
        self.add(("bound-udp", "UDP, bound to each link", &[50]), |it, token| {
            it.each(4435, |to| Shot::new(Way::Udp, to, token.clone().into()))
        });
        self.add(("bound-tcp", "TCP connections, port 80, bound to each link", &[50]), |it, _| {
            it.each(80, |to| Shot::new(Way::Tcp, to, Vec::new()))
        });
        self.add(("bound-icmp", "ICMP echo, bound to each link", &[50]), |it, token| {
            it.each(0, |to| Shot::new(Way::Icmp, to, canary::echo_request(to.is_ipv4(), &token)))
        });
        self.add(("broadcast", "IPv4 broadcast by each link", &[50]), |it, token| {
            let to = SocketAddr::from((Ipv4Addr::BROADCAST, 4436));
            let by =
                |link: &Link| Shot::new(Way::Udp, to, token.clone().into()).bound_to(&link.name);
            it.links.iter().take(LINKS).map(by).collect()
        });
    }

    /// Each frame goes to the link's own hardware address: no neighbour takes it up.
    fn by_packet_sockets(&mut self) {
        let title = "whole frames by a packet socket on each Ethernet link";
        self.add(("packet-socket", title, &[1]), |it, token| {
            it.frames(&token, |address, packet| [&address[..], &address, &[8, 0], packet].concat())
        });
        let title = "the same behind a VLAN tag";
        self.add(("packet-socket-vlan", title, &[1]), |it, token| {
            it.frames(&token, |address, packet| {
                [&address[..], &address, &[0x81, 0, 0, 1, 8, 0], packet].concat()
            })
        });
    }

    fn frames(&self, token: &str, wrap: impl Fn([u8; 6], &[u8]) -> Vec<u8>) -> Vec<Shot> {
        let [to, _] = self.run.destinations();
        let mut shots = Vec::new();
        for link in self.links.iter().take(LINKS).filter(|it| it.ethernet) {
            let address = self.here.addresses_of(link.index, true).map(|it| it.address).next();
            let from = match address {
                Some(IpAddr::V4(from)) => from,
                _ => Ipv4Addr::UNSPECIFIED,
            };
            let (IpAddr::V4(target), Some(place)) = (to, self.hardware.get(&link.name)) else {
                continue;
            };
            let packet = canary::ipv4_datagram(from, target, HOPS, token.as_bytes());
            let frame = wrap(place.addr().unwrap_or_default(), &packet);
            shots.push(Shot::new(Way::Frame(*place), SocketAddr::new(to, 0), frame));
        }
        shots
    }

    /// In clear to the addresses that encrypted packets may go to.
    fn past_the_mark(&mut self, policy: &Policy) {
        /// A configuration may have hundreds; they are alike.
        const SERVERS: usize = 4;
        let title = "UDP in clear and without our mark to servers, their port and others";
        self.add(("server-udp", title, &[29, 33]), |it, token| {
            let mut shots = Vec::new();
            for server in policy.servers.iter().take(SERVERS) {
                let other = SocketAddr::new(server.endpoint.ip(), 443);
                let shaped = canary::wireguard_message(&token);
                let clear = Shot::new(Way::Udp, server.endpoint, token.clone().into());
                shots.push(clear);
                shots.push(Shot::new(Way::Udp, other, token.clone().into()));
                for link in it.links.iter().take(LINKS) {
                    let by = |to, content| Shot::new(Way::Udp, to, content).bound_to(&link.name);
                    shots.push(by(server.endpoint, token.clone().into()));
                    shots.push(by(server.endpoint, shaped.clone()));
                    shots.push(by(other, shaped.clone()));
                }
            }
            shots
        });
        self.add(("server-tcp", "TCP to servers' addresses, port 443", &[33]), |it, _| {
            let mut shots = Vec::new();
            for server in policy.servers.iter().take(SERVERS) {
                let to = SocketAddr::new(server.endpoint.ip(), 443);
                shots.push(Shot::new(Way::Tcp, to, Vec::new()));
                let by = |link: &Link| Shot::new(Way::Tcp, to, Vec::new()).bound_to(&link.name);
                shots.extend(it.links.iter().take(LINKS).map(by));
            }
            shots
        });
    }

    /// Its own link is no way out; what gets past it is seen on the others.
    fn forwarded(&mut self) {
        if !guest::machine_forwards() {
            let why = "forwarded: not tried: this machine forwards nothing (net.ipv4.ip_forward, \
                       net.ipv6.conf.all.forwarding)";
            self.plan.limits.push(why.into());
            return;
        }
        let title = "what a throw-away network namespace sends, as a container does";
        let mut made = Ok(());
        let mut guest = None;
        self.add(("forwarded", title, &[12]), |it, token| match Guest::new(it.run, &token) {
            Ok(mut new) => {
                let shots = std::mem::take(&mut new.shots);
                guest = Some(new);
                shots
            }
            Err(error) => {
                made = Err(error);
                Vec::new()
            }
        });
        self.plan.guest = guest;
        if let Err(error) = made {
            self.idle.pop();
            let why = format!("no namespace of its own: {error}");
            let number = u8::try_from(self.plan.probes.len()).unwrap_or(u8::MAX);
            let (name, threats) = ("forwarded", &[12][..]);
            let (shots, sent, refused, failed) = (Vec::new(), 0, 0, Some(why));
            let probe = Probe { name, title, threats, number, shots, sent, refused, failed };
            self.plan.probes.push(probe);
        }
    }

    fn older_sockets(&mut self) {
        let title = "UDP sockets that were connected before the test disturbed anything";
        self.add(("old-socket", title, &[18, 20]), |it, token| {
            let mut shots = Vec::new();
            let names = it.links.iter().take(LINKS).map(|link| Some(link.name.as_str()));
            for link in std::iter::once(None).chain(names) {
                for ip in it.run.destinations() {
                    let to = SocketAddr::new(ip, 4437);
                    if let Ok(socket) = connected(to, link) {
                        shots.push(Shot::new(Way::Socket(socket), to, token.clone().into()));
                    }
                }
            }
            shots
        });
    }
}

/// A link-local address means nothing without its link.
fn on_link(ip: IpAddr, port: u16, link: u32) -> SocketAddr {
    match ip {
        IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_multicast() => {
            SocketAddrV6::new(v6, port, 0, link).into()
        }
        _ => SocketAddr::new(ip, port),
    }
}
