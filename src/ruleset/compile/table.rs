//! The chains of the `inet` table.

use std::net::Ipv6Addr;

use super::super::{
    Action, Base, Chain, ChainKind, ChainPolicy, Field, Hook, Match, Rejection, Rule,
};
use super::Build;
use super::words::*;

#[allow(clippy::wrong_self_convention, reason = "from_ and to_ say where packets come from and go")]
impl Build<'_> {
    /// What may leave, on whichever link it goes: asked by output and by postrouting. First the links
    /// that stay on this machine or lead into the tunnel; then what no other link may see; then what
    /// it may, the frequent first.
    pub(super) fn leave_chain(&self) -> Chain {
        let mut rules = self.loopback();
        rules.extend(self.to_tunnel());
        rules.extend(self.to_internal());
        rules.extend(self.tunnel_address_outside());
        rules.extend(self.to_servers());
        rules.extend(self.to_lan());
        rules.extend(self.inbound_replies());
        rules.extend(self.to_ntp());
        rules.extend(self.neighbours_and_leases());
        chain("leave", rules)
    }

    /// Who knocked at a service under a foreign address would from then on have what the service says
    /// leave to that address, as a reply (threat 72). Under one comes only the reset of what was
    /// refused, which conntrack calls a reply. The kernel does not look up whose a link-local address
    /// is on another link than its own; it forwards none (RFC 4291, 2.5.6).
    fn loopback(&self) -> Vec<Rule> {
        let stays = |last: Vec<Match>| {
            let matches = [vec![is_loopback(Field::MetaOif), to_own_address()], last].concat();
            rule(matches, Action::Accept, "loopback")
        };
        if self.policy.tunnel.is_none() {
            return vec![stays(Vec::new())];
        }
        let mut link_local_alone = vec![is_loopback(Field::MetaOif)];
        let ends = [Field::Ip6Saddr, Field::Ip6Daddr].map(link_local);
        link_local_alone.extend(self.of(Ip::V6, ends));
        vec![
            stays(vec![from_own_address()]),
            stays(vec![is_reply()]),
            stays(self.of(Ip::V6, [link_local(Field::Ip6Saddr)])),
            rule(link_local_alone, Action::Accept, "loopback"),
        ]
    }

    /// LAN traffic without name look-ups; returns where it does not decide. Where a port should stand
    /// something must: what is cut short before it, or hides it behind extension headers that cannot
    /// be read, may be a look-up. Of what is sent in fragments the first one is asked.
    pub(super) fn lan_chain(&self) -> Option<Chain> {
        if self.policy.lan.is_empty() {
            return None;
        }
        let mut rules = Vec::new();
        for ip in BOTH.into_iter().filter(|&ip| self.has_lan_dns(ip)) {
            let to_it = is_in(ip.daddr(), ip.set("lan_dns"));
            rules.push(rule(self.of_true(ip, [to_it]), Action::Accept, "lan dns"));
        }
        let to_lan = |ip: Ip| is_in(ip.daddr(), ip.set("lan"));
        // First, since kernels read a port even where a later fragment has none.
        for ip in BOTH.into_iter().filter(|&ip| self.has_lan(ip)) {
            let mut later = later_fragment(ip);
            later.push(to_lan(ip));
            rules.push(rule(self.of_true(ip, later), Action::Accept, "lan"));
        }
        rules.push(counted(
            [concat([Field::MetaL4proto, Field::ThDport], "name_services")],
            Action::Return,
            "name look-up to the lan",
        ));
        for ip in BOTH.into_iter().filter(|&ip| self.has_lan(ip)) {
            let any_port = between(Field::ThDport, u16::MIN.to_be_bytes(), u16::MAX.to_be_bytes());
            rules.push(rule(self.of(ip, [to_lan(ip), any_port]), Action::Accept, "lan"));
        }
        rules.extend(self.multicast_membership());
        Some(chain("lan", rules))
    }

    pub(super) fn output(&self) -> Chain {
        let mut rules = Vec::new();
        if self.internal_is_allowed() {
            // A published port: the hook's link is stale after DNAT, postrouting judges the true one.
            rules.push(rule(
                [is_loopback(Field::MetaOif), any_of(Field::CtStatus, IPS_DST_NAT.to_ne_bytes())],
                Action::Accept,
                "published port: postrouting decides",
            ));
        }
        rules.push(rule([], Action::Jump("leave".into()), "what may leave"));
        // While the sender's socket is known; also of what is dropped below, of which the sender is
        // not told.
        rules.extend(self.log_blocked());
        rules.extend(self.not_yet_replies());
        rules.extend(self.refusals());
        self.base("output", Hook::Output, FILTER, rules)
    }

    /// They go to where the packet says it comes from: with a foreign address to somebody else
    /// (threat 73).
    fn refusals(&self) -> [Rule; 2] {
        let own = self.policy.tunnel.is_some().then(from_own_address);
        let refuse = |first: Option<Match>, rejection: Rejection, why: &str| {
            let matches: Vec<Match> = first.into_iter().chain(own.clone()).collect();
            counted(matches, Action::Reject(rejection), why)
        };
        [
            refuse(Some(protocol(TCP)), Rejection::TcpReset, "blocked: local tcp"),
            refuse(None, Rejection::AdminProhibited, "blocked: local"),
        ]
    }

    pub(super) fn postrouting(&self) -> Chain {
        let mut rules = vec![rule([], Action::Jump("leave".into()), "what may leave")];
        rules.extend(self.log_blocked());
        self.base("postrouting", Hook::Postrouting, LAST, rules)
    }

    /// To internal bridges, where one that has got a NIC shows all that it is given. The guard at that
    /// NIC knows no connections, so here, too, what a service's port says must be a reply (threat 74).
    pub(super) fn to_internal_chains(&self) -> Vec<Chain> {
        let Some(bridges) = self.internal_chain("internal_bridges", Field::MetaOifname) else {
            return Vec::new();
        };
        let to_bridges = |matches: Vec<Match>| {
            rule(matches, Action::Jump("internal_bridges".into()), "internal bridges")
        };
        let why = "from an inbound service's port, no reply";
        let mut rules = Vec::new();
        for ip in BOTH.into_iter().filter(|&ip| self.has_inbound(ip)) {
            let service = self.from_service(ip);
            rules.push(to_bridges([service.clone(), vec![is_reply()]].concat()));
            rules.push(rule(service, Action::Return, why));
        }
        rules.push(to_bridges(Vec::new()));
        let to_internal = chain("to_internal", rules);
        vec![bridges, to_internal]
    }

    /// Bridges that never leave the machine, by name; their kind is asked before.
    pub(super) fn internal_chain(&self, name: &str, field: Field) -> Option<Chain> {
        let rules = self
            .policy
            .internal
            .iter()
            .map(|pattern| rule([named(field, pattern)], Action::Accept, "internal bridge"))
            .collect();
        self.internal_is_allowed().then(|| chain(name, rules))
    }

    /// Guests' ports of those bridges, by name; their kind is asked before.
    pub(super) fn port_chain(&self) -> Option<Chain> {
        let why = "port of an internal bridge";
        let ports = &self.policy.internal_ports;
        let rules = ports
            .iter()
            .map(|pattern| rule([named(Field::MetaOifname, pattern)], Action::Accept, why))
            .collect();
        (!ports.is_empty()).then(|| chain("to_port", rules))
    }

    pub(super) fn forward_chains(&self) -> Vec<Chain> {
        let mut chains = Vec::new();
        let mut forward = Vec::new();
        if self.internal_is_allowed() {
            let mut rules = self.guests_outside();
            rules.extend(self.to_internal());
            if self.policy.forward_into_tunnel {
                rules.extend(
                    self.tunnel_links()
                        .into_iter()
                        .map(|link| rule(link.outward(), Action::Accept, "guest into the tunnel")),
                );
            }
            chains.push(chain("forward_internal", rules));
            forward.extend(self.from_bridges("forward_internal"));
        }
        if self.policy.forward_into_tunnel {
            forward.extend(self.forward_lan_and_replies());
        }
        forward.extend(self.log_blocked());
        chains.push(self.base("forward", Hook::Forward, FILTER, forward));
        chains
    }

    /// By an internal bridge that has got a NIC, whose guard would let it out. A lease is asked of no
    /// other bridge; who asks in vain asks everybody (RFC 2131, 4.4.5).
    fn guests_outside(&self) -> Vec<Rule> {
        let stop = |ip: Ip, outside: &[Match], why: &str| {
            let mut matches = vec![is_kind(Field::MetaOifkind, "bridge")];
            matches.extend(self.of(ip, outside.iter().cloned()));
            counted(matches, Action::Drop, &format!("blocked: a guest to {why}"))
        };
        let is_elsewhere = is_elsewhere(Field::FibDaddrIif);
        let mut rules = Vec::new();
        for ip in BOTH {
            if self.has_lan(ip) {
                let to_lan = is_in(ip.daddr(), ip.set("lan"));
                rules.push(stop(ip, &[to_lan, is_elsewhere.clone()], "the lan"));
            }
            if self.has_ntp(ip) {
                let [udp, port, server] = to_ntp(ip);
                rules.push(stop(ip, &[udp, port, server, is_elsewhere.clone()], "a time server"));
            }
        }
        if self.policy.tunnel.is_some() && self.policy.dhcp {
            let [udp, from, to] = lease_request();
            let server = is_in(Field::IpDaddr, "lease_servers".into());
            rules.push(stop(Ip::V4, &[udp, from, to, server], "a dhcp server"));
        }
        rules
    }

    /// LAN clients into the tunnel, and what comes back out of it.
    pub(super) fn forward_lan_and_replies(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for link in self.tunnel_links() {
            for ip in BOTH.into_iter().filter(|&ip| self.has_lan(ip)) {
                let mut into = self.of(ip, [is_in(ip.saddr(), ip.set("lan"))]);
                into.extend(link.outward());
                rules.push(rule(into, Action::Accept, "lan client into the tunnel"));
                let mut back = self.of(ip, [is_in(ip.daddr(), ip.set("lan"))]);
                back.extend(link.inward());
                back.push(ct_state(CT_ESTABLISHED | CT_RELATED));
                rules.push(rule(back, Action::Accept, "reply to a lan client"));
            }
            if self.internal_is_allowed() {
                let mut back = link.inward();
                back.push(is_kind(Field::MetaOifkind, "bridge"));
                back.push(ct_state(CT_ESTABLISHED | CT_RELATED));
                rules.push(rule(back, Action::Jump("to_internal".into()), "reply to a guest"));
            }
        }
        rules
    }

    /// Into the tunnel from its own addresses, out of it to them; the link is asked before.
    pub(super) fn tunnel_chain(
        &self,
        name: &str,
        field: impl Fn(Ip) -> Field,
        why: &str,
    ) -> Option<Chain> {
        let own = |ip: Ip| {
            let address = is_in(field(ip), ip.set("tunnel"));
            rule(self.of(ip, [address]), Action::Accept, why)
        };
        let rules = self.tunnel_families().into_iter().map(own).collect();
        self.policy.tunnel.is_some().then(|| chain(name, rules))
    }

    /// Its outer packets, should another program delete the rules that keep them out, would go round
    /// and round in it, and grow each time.
    pub(super) fn into_tunnel(&self) -> Option<Chain> {
        let mut chain = self.tunnel_chain("into_tunnel", Ip::saddr, "into the tunnel")?;
        let outer = counted([self.mark()], Action::Drop, "blocked: the tunnel into itself");
        chain.rules.insert(0, outer);
        Some(chain)
    }

    pub(super) fn input(&self) -> Chain {
        let mut rules = vec![rule([is_loopback(Field::MetaIif)], Action::Accept, "loopback")];
        rules.extend(self.tunnel_links().into_iter().map(|link| {
            rule(link.inward(), Action::Jump("from_tunnel".into()), "the tunnel's link")
        }));
        rules.extend(self.from_lan());
        rules.extend(self.from_servers(&Action::Accept));
        rules.extend(self.to_inbound());
        if self.internal_is_allowed() {
            rules.push(rule(
                [is_kind(Field::MetaIifkind, "bridge")],
                Action::Jump("from_internal".into()),
                "internal bridges",
            ));
        }
        rules.extend(self.from_ntp());
        rules.extend(self.neighbours_and_leases_in());
        self.base("input", Hook::Input, FILTER, rules)
    }

    pub(super) fn from_ntp(&self) -> Vec<Rule> {
        let from = |ip: Ip| {
            let server = is_in(ip.saddr(), ip.set("ntp"));
            let port = is(Field::UdpSport, 123u16.to_be_bytes());
            rule(self.of(ip, [protocol(UDP), port, server]), Action::Accept, "ntp")
        };
        BOTH.into_iter().filter(|&ip| self.has_ntp(ip)).map(from).collect()
    }

    pub(super) fn to_inbound(&self) -> Vec<Rule> {
        let to = |ip: Ip| {
            let fields = [ip.saddr(), Field::MetaL4proto, Field::ThDport];
            let service = concat(fields, &ip.set("inbound"));
            rule(self.of(ip, [service]), Action::Accept, "inbound service")
        };
        BOTH.into_iter().filter(|&ip| self.has_inbound(ip)).map(to).collect()
    }

    pub(super) fn from_lan(&self) -> Vec<Rule> {
        let from =
            |ip: Ip| rule(self.of(ip, [is_in(ip.saddr(), ip.set("lan"))]), Action::Accept, "lan");
        BOTH.into_iter().filter(|&ip| self.has_lan(ip)).map(from).collect()
    }

    /// CVE-2019-14899: a neighbour must not find the tunnel's address by asking a link for it.
    pub(super) fn prerouting(&self) -> Option<Chain> {
        self.policy.tunnel.as_ref()?;
        let mut rules = vec![rule([is_loopback(Field::MetaIif)], Action::Return, "loopback")];
        for link in self.tunnel_links() {
            rules.push(rule(link.inward(), Action::Return, "from the tunnel"));
        }
        for ip in self.tunnel_families() {
            rules.push(counted(
                self.of(ip, [is_in(ip.daddr(), ip.set("tunnel"))]),
                Action::Drop,
                "blocked: tunnel address from outside",
            ));
        }
        if self.asks_guests() {
            rules.extend(self.from_bridges("from_guest"));
        }
        Some(Chain {
            name: "prerouting".into(),
            base: Some(base(Hook::Prerouting, BEFORE_CONNTRACK, ChainPolicy::Accept)),
            rules,
        })
    }

    /// What comes from an internal bridge, to that chain.
    fn from_bridges(&self, chain: &'static str) -> impl Iterator<Item = Rule> {
        self.policy.internal.iter().map(move |pattern| {
            let bridge =
                [is_kind(Field::MetaIifkind, "bridge"), named(Field::MetaIifname, pattern)];
            rule(bridge, Action::Jump(chain.into()), "from an internal bridge")
        })
    }

    /// With or without the egress guard.
    fn asks_guests(&self) -> bool {
        let answers_outside = !(self.policy.lan.is_empty() && self.policy.inbound.is_empty());
        self.policy.tunnel.is_some() && !self.policy.internal.is_empty() && answers_outside
    }

    /// This machine's answer would go to the LAN, or as a service's reply anywhere (threat 75).
    pub(super) fn from_guest(&self) -> Option<Chain> {
        let without_address = is(Field::Ip6Saddr, Ipv6Addr::UNSPECIFIED.octets());
        let rules = vec![
            rule(self.of(Ip::V6, [without_address]), Action::Return, "no address yet"),
            counted(
                [is_elsewhere(Field::FibSaddrIif)],
                Action::Drop,
                "blocked: a guest under a foreign address",
            ),
        ];
        self.asks_guests().then(|| chain("from_guest", rules))
    }

    /// Reverse-path validation looks replies up by our mark (threat 52; src_valid_mark, ip-sysctl).
    pub(super) fn mark_replies(&self) -> Option<Chain> {
        if !self.policy.routing_guard || self.policy.servers.is_empty() {
            return None;
        }
        Some(Chain {
            name: "mark_replies".into(),
            base: Some(base(Hook::Prerouting, MANGLE, ChainPolicy::Accept)),
            rules: self.from_servers(&Action::SetMark(self.policy.mark)),
        })
    }

    pub(super) fn source_nat(&self) -> Option<Chain> {
        if !self.policy.forward_into_tunnel {
            return None;
        }
        let mut rules = Vec::new();
        for ip in self.tunnel_families() {
            rules.push(rule(
                self.of(ip, [is_in(ip.saddr(), ip.set("tunnel"))]),
                Action::Return,
                "our own",
            ));
        }
        for link in self.tunnel_links() {
            rules.push(rule(link.outward(), Action::Masquerade, "forwarded into the tunnel"));
        }
        Some(Chain {
            name: "source_nat".into(),
            base: Some(Base {
                kind: ChainKind::Nat,
                ..base(Hook::Postrouting, SOURCE_NAT, ChainPolicy::Accept)
            }),
            rules,
        })
    }
}
