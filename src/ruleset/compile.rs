//! Policy in, whole ruleset out: design section 3, rule by rule.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    Action, Base, Chain, ChainKind, ChainPolicy, Element, Family, Field, Hook, Match, Rejection,
    Rule, Set, Table, Test, ValueKind,
};
use crate::policy::{LinkPattern, MessageShape, Policy, Protocol};

/// The links that an egress chain hooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// Not an egress chain.
    None,
    /// Every link, present and future: kernel 6.18 and later.
    Every,
    /// These, by name.
    Named(Vec<String>),
}

/// A link as the egress guard sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkRef {
    /// Its index; part of its chain's name, since a link's name may hold anything.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// LOOPBACK_IFINDEX (include/net/flow.h): only `lo` has it, whatever links are called. Not
/// ARPHRD_LOOPBACK, which who holds a tap may give it (TUNSETLINK).
const LOOPBACK: u32 = 1;
/// ARPHRD_ETHER (include/uapi/linux/if_arp.h).
const ETHERNET: u16 = 1;
/// RTN_LOCAL (include/uapi/linux/rtnetlink.h).
const RTN_LOCAL: u32 = 2;
/// IPS_DST_NAT (include/uapi/linux/netfilter/nf_conntrack_common.h).
const IPS_DST_NAT: u32 = 1 << 5;
/// NF_CT_STATE_BIT(IP_CT_ESTABLISHED), as nft_ct reports it.
const CT_ESTABLISHED: u32 = 1 << 1;
/// NF_CT_STATE_BIT(IP_CT_RELATED).
const CT_RELATED: u32 = 1 << 2;
const CT_REPLY: u8 = 1;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_ARP: u16 = 0x0806;
/// Local experimental EtherType 1 (IEEE 802): the guard's own probe.
pub const PROBE_ETHERTYPE: u16 = 0x88b5;
/// The mark of the guard's own probe on loopback: "kspr" in ASCII.
pub const PROBE_MARK: u32 = 0x6b73_7072;
/// 802.1X: without it a link with port authentication never comes up.
const ETH_P_PAE: u16 = 0x888e;
const ETH_P_8021Q: u16 = 0x8100;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const ICMP: u8 = 1;
const IGMP: u8 = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// RFC 2131, section 3.
const DHCP_COOKIE: u32 = 0x6382_5363;
/// Before conntrack (-200), so that a probe of the tunnel's address leaves no trace (threat 9).
const BEFORE_CONNTRACK: i32 = -310;
/// NF_IP_PRI_MANGLE: after conntrack, before routing.
const MANGLE: i32 = -150;
/// NF_IP_PRI_FILTER; after a foreign DNAT (-100), so the true destination is judged (threat 34).
const FILTER: i32 = 0;
/// NF_IP_PRI_NAT_SRC.
const SOURCE_NAT: i32 = 100;
/// After everything else, so that the link is the true last one (threats 35, 36).
const LAST: i32 = i32::MAX;

/// The two address families, each with its own names for the same things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ip {
    V4,
    V6,
}

const BOTH: [Ip; 2] = [Ip::V4, Ip::V6];

/// Compiles a policy to the `inet` table.
pub fn compile(policy: &Policy) -> Table {
    let build = Build { policy, family: Family::Inet };
    let mut chains = Vec::new();
    chains.extend(build.lan_chain());
    chains.extend(build.internal_chain("to_internal", Field::MetaOifname));
    chains.extend(build.internal_chain("from_internal", Field::MetaIifname));
    chains.extend(build.tunnel_chain("into_tunnel", Ip::saddr, "into the tunnel"));
    chains.extend(build.tunnel_chain("from_tunnel", Ip::daddr, "from the tunnel"));
    chains.push(build.leave_chain());
    chains.push(build.output());
    chains.push(build.postrouting());
    chains.extend(build.forward_chains());
    chains.push(build.input());
    chains.extend(build.prerouting());
    chains.extend(build.mark_replies());
    chains.extend(build.source_nat());
    Table { family: Family::Inet, sets: build.sets(), chains }
}

/// Compiles a policy to the egress guard, on the given links: `None` for every link there is or
/// will be (kernel 6.18 and later).
pub fn guard(policy: &Policy, links: Option<&[LinkRef]>) -> Table {
    let build = Build { policy, family: Family::Netdev };
    let mut chains = Vec::new();
    chains.extend(build.lan_chain());
    chains.extend(build.internal_chain("to_internal", Field::MetaOifname));
    chains.extend(build.port_chain());
    chains.extend(build.honest_chain());
    chains.push(build.frames_chain());
    match links {
        None => chains.push(build.egress("egress".into(), Devices::Every)),
        Some(links) => chains.extend(links.iter().map(|link| {
            build.egress(format!("egress_{}", link.index), Devices::Named(vec![link.name.clone()]))
        })),
    }
    Table { family: Family::Netdev, sets: build.sets(), chains }
}

struct Build<'a> {
    policy: &'a Policy,
    family: Family,
}

#[allow(clippy::wrong_self_convention, reason = "from_ and to_ say where packets come from and go")]
impl Build<'_> {
    // Chains.

    /// What may leave, on whichever link it goes: asked by output and by postrouting. The frequent
    /// stands first; all accept, so their order decides nothing.
    fn leave_chain(&self) -> Chain {
        let mut rules =
            vec![rule([is_loopback(Field::MetaOif), fib_local()], Action::Accept, "loopback")];
        rules.extend(self.to_tunnel());
        rules.extend(self.to_servers());
        rules.extend(self.to_lan());
        rules.extend(self.inbound_replies());
        rules.extend(self.to_internal());
        rules.extend(self.to_ntp());
        rules.extend(self.neighbours_and_leases());
        chain("leave", rules)
    }

    /// LAN traffic without name look-ups; returns where it does not decide.
    fn lan_chain(&self) -> Option<Chain> {
        if self.policy.lan.is_empty() {
            return None;
        }
        let mut rules = Vec::new();
        for ip in BOTH.into_iter().filter(|&ip| self.has_lan_dns(ip)) {
            rules.push(rule(
                self.of(ip, [is_in(ip.daddr(), ip.set("lan_dns"))]),
                Action::Accept,
                "lan dns",
            ));
        }
        rules.push(counted(
            [concat([Field::MetaL4proto, Field::ThDport], "name_services")],
            Action::Return,
            "name look-up to the lan",
        ));
        for ip in BOTH.into_iter().filter(|&ip| self.has_lan(ip)) {
            rules.push(rule(
                self.of(ip, [is_in(ip.daddr(), ip.set("lan"))]),
                Action::Accept,
                "lan",
            ));
        }
        rules.extend(self.multicast_membership());
        Some(chain("lan", rules))
    }

    fn output(&self) -> Chain {
        let mut rules = Vec::new();
        if self.internal_is_allowed() {
            // A published port: the hook's link is stale after DNAT, postrouting judges the true one.
            rules.push(rule(
                [
                    is_loopback(Field::MetaOif),
                    any_of(Field::CtStatus, IPS_DST_NAT.to_ne_bytes().to_vec()),
                ],
                Action::Accept,
                "published port: postrouting decides",
            ));
        }
        rules.push(rule([], Action::Jump("leave".into()), "what may leave"));
        rules.push(counted(
            [protocol(TCP)],
            Action::Reject(Rejection::TcpReset),
            "blocked: local tcp",
        ));
        rules.push(counted([], Action::Reject(Rejection::AdminProhibited), "blocked: local"));
        self.base("output", Hook::Output, FILTER, rules)
    }

    fn postrouting(&self) -> Chain {
        let rules = vec![rule([], Action::Jump("leave".into()), "what may leave")];
        self.base("postrouting", Hook::Postrouting, LAST, rules)
    }

    /// Bridges that never leave the machine, by name; their kind is asked before.
    fn internal_chain(&self, name: &str, field: Field) -> Option<Chain> {
        let rules = self
            .policy
            .internal
            .iter()
            .map(|pattern| rule([named(field, pattern)], Action::Accept, "internal bridge"))
            .collect();
        self.internal_is_allowed().then(|| chain(name, rules))
    }

    /// Guests' ports of those bridges, by name; their kind is asked before.
    fn port_chain(&self) -> Option<Chain> {
        let why = "port of an internal bridge";
        let ports = &self.policy.internal_ports;
        let rules = ports
            .iter()
            .map(|pattern| rule([named(Field::MetaOifname, pattern)], Action::Accept, why))
            .collect();
        (!ports.is_empty()).then(|| chain("to_port", rules))
    }

    fn forward_chains(&self) -> Vec<Chain> {
        let mut chains = Vec::new();
        let mut forward = Vec::new();
        if self.internal_is_allowed() {
            let mut rules = self.to_internal();
            if self.policy.forward_into_tunnel {
                rules.extend(
                    self.tunnel_links()
                        .into_iter()
                        .map(|link| rule(link.outward(), Action::Accept, "guest into the tunnel")),
                );
            }
            chains.push(chain("forward_internal", rules));
            forward.extend(self.policy.internal.iter().map(|pattern| {
                rule(
                    [is_kind(Field::MetaIifkind, "bridge"), named(Field::MetaIifname, pattern)],
                    Action::Jump("forward_internal".into()),
                    "from an internal bridge",
                )
            }));
        }
        if self.policy.forward_into_tunnel {
            forward.extend(self.forward_lan_and_replies());
        }
        chains.push(self.base("forward", Hook::Forward, FILTER, forward));
        chains
    }

    /// LAN clients into the tunnel, and what comes back out of it.
    fn forward_lan_and_replies(&self) -> Vec<Rule> {
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
    fn tunnel_chain(&self, name: &str, field: impl Fn(Ip) -> Field, why: &str) -> Option<Chain> {
        let own = |ip: Ip| {
            let address = is_in(field(ip), ip.set("tunnel"));
            rule(self.of(ip, [address]), Action::Accept, why)
        };
        let rules = self.tunnel_families().into_iter().map(own).collect();
        self.policy.tunnel.is_some().then(|| chain(name, rules))
    }

    fn input(&self) -> Chain {
        let mut rules = vec![rule([is_loopback(Field::MetaIif)], Action::Accept, "loopback")];
        rules.extend(self.tunnel_links().into_iter().map(|link| {
            rule(link.inward(), Action::Jump("from_tunnel".into()), "the tunnel's link")
        }));
        rules.extend(self.from_servers(&Action::Accept));
        rules.extend(self.from_lan());
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

    fn from_ntp(&self) -> Vec<Rule> {
        let from = |ip: Ip| {
            let server = is_in(ip.saddr(), ip.set("ntp"));
            let port = is(Field::UdpSport, 123u16.to_be_bytes());
            rule(self.of(ip, [protocol(UDP), port, server]), Action::Accept, "ntp")
        };
        BOTH.into_iter().filter(|&ip| self.has_ntp(ip)).map(from).collect()
    }

    fn to_inbound(&self) -> Vec<Rule> {
        let to = |ip: Ip| {
            let fields = [ip.saddr(), Field::MetaL4proto, Field::ThDport];
            let service = concat(fields, &ip.set("inbound"));
            rule(self.of(ip, [service]), Action::Accept, "inbound service")
        };
        BOTH.into_iter().filter(|&ip| self.has_inbound(ip)).map(to).collect()
    }

    fn from_lan(&self) -> Vec<Rule> {
        let from =
            |ip: Ip| rule(self.of(ip, [is_in(ip.saddr(), ip.set("lan"))]), Action::Accept, "lan");
        BOTH.into_iter().filter(|&ip| self.has_lan(ip)).map(from).collect()
    }

    /// CVE-2019-14899: a neighbour must not find the tunnel's address by asking a link for it.
    fn prerouting(&self) -> Option<Chain> {
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
        Some(Chain {
            name: "prerouting".into(),
            base: Some(base(Hook::Prerouting, BEFORE_CONNTRACK, ChainPolicy::Accept)),
            rules,
        })
    }

    /// Reverse-path validation looks replies up by our mark (threat 52; src_valid_mark, ip-sysctl).
    fn mark_replies(&self) -> Option<Chain> {
        if !self.policy.routing_guard || self.policy.servers.is_empty() {
            return None;
        }
        Some(Chain {
            name: "mark_replies".into(),
            base: Some(base(Hook::Prerouting, MANGLE, ChainPolicy::Accept)),
            rules: self.from_servers(&Action::SetMark(self.policy.mark)),
        })
    }

    fn source_nat(&self) -> Option<Chain> {
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

    /// What may be handed to a link's driver.
    fn frames_chain(&self) -> Chain {
        let probe = is(Field::MetaMark, PROBE_MARK.to_ne_bytes());
        let mut rules = vec![
            rule(
                [is_loopback(Field::MetaOif), probe],
                Action::Drop,
                "probe of the guard on loopback",
            ),
            rule([is_loopback(Field::MetaOif)], Action::Accept, "loopback"),
        ];
        for link in self.tunnel_links() {
            rules.push(rule(link.outward(), Action::Accept, "tunnel"));
        }
        rules.extend(self.to_internal());
        if !self.policy.internal_ports.is_empty() {
            rules.extend(["veth", "tun"].map(|kind| {
                rule(
                    [is_kind(Field::MetaOifkind, kind)],
                    Action::Jump("to_port".into()),
                    "ports of internal bridges",
                )
            }));
        }
        if self.policy.tunnel.is_some() {
            rules.push(rule(
                [is_ethernet()],
                Action::Jump("honest".into()),
                "is it of the type that it says",
            ));
        }
        rules.extend(self.frames_to_servers());
        rules.extend(self.to_lan());
        rules.extend(self.inbound_replies());
        if self.policy.tunnel.is_some() {
            rules.extend(self.address_resolution());
        }
        rules.extend(self.to_ntp());
        rules.extend(self.neighbours_and_leases());
        rules.push(rule(
            [is(Field::MetaProtocol, PROBE_ETHERTYPE.to_be_bytes())],
            Action::Drop,
            "probe of the guard",
        ));
        chain("frames", rules)
    }

    /// Returns a frame whose EtherType on the wire is the one that the kernel was told, which all
    /// other rules go by: a packet socket may tell any, and pass IP off as ARP (threat 69).
    ///
    /// Of a tagged frame the network header's place is told too: where a socket's own tag stands in
    /// it, its first byte is the tag's, which for IP must then be 0x40 or more.
    fn honest_chain(&self) -> Option<Chain> {
        self.policy.tunnel.as_ref()?;
        let says = |kind: u16| is(Field::MetaProtocol, kind.to_be_bytes());
        let on_wire = |kind: u16| is(Field::EtherType, kind.to_be_bytes());
        let in_tag = |kind: u16| is(Field::VlanType, kind.to_be_bytes());
        let mut rules: Vec<Rule> = [ETH_P_IP, ETH_P_IPV6, ETH_P_ARP, ETH_P_PAE]
            .into_iter()
            .map(|kind| rule([says(kind), on_wire(kind)], Action::Return, "untagged"))
            .collect();
        let tagged = |kind: u16| vec![says(kind), on_wire(ETH_P_8021Q), in_tag(kind)];
        for (kind, version) in [(ETH_P_IP, 0x40), (ETH_P_IPV6, 0x60)] {
            let mut matches = tagged(kind);
            matches.push(between(Field::VlanPriority, [0], [0x3f]));
            matches.push(between(Field::IpVersion, [version], [version | 0x0f]));
            rules.push(rule(matches, Action::Return, "tagged"));
        }
        rules.push(rule(tagged(ETH_P_ARP), Action::Return, "tagged"));
        rules.push(counted([], Action::Drop, "blocked: frame of another type than it says"));
        Some(chain("honest", rules))
    }

    /// As in the table, and the later fragments of an outer packet, which have no port (threat 43).
    fn frames_to_servers(&self) -> Vec<Rule> {
        let mut rules = self.to_servers();
        for ip in BOTH.into_iter().filter(|&ip| self.has_server(ip)) {
            let mut matches = vec![self.mark()];
            matches.extend(self.of(ip, later_fragment(ip)));
            matches.push(concat([ip.daddr(), Field::MetaL4proto], &ip.set("server_host")));
            rules.push(rule(matches, Action::Accept, "fragment to a server"));
        }
        rules
    }

    fn egress(&self, name: String, devices: Devices) -> Chain {
        let rules = vec![
            rule([], Action::Jump("frames".into()), "what may leave"),
            counted([], Action::Drop, "blocked: frame"),
        ];
        Chain {
            name,
            base: Some(Base { devices, ..base(Hook::Egress, FILTER, ChainPolicy::Drop) }),
            rules,
        }
    }

    // Rules, in the order of design section 3.

    fn to_tunnel(&self) -> Vec<Rule> {
        let jump = |link: TunnelLink| {
            rule(link.outward(), Action::Jump("into_tunnel".into()), "the tunnel's link")
        };
        self.tunnel_links().into_iter().map(jump).collect()
    }

    fn to_servers(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for ip in BOTH {
            if self.has_shape(ip, MessageShape::Wireguard) {
                let mut matches = vec![self.mark()];
                matches.extend(self.of(
                    ip,
                    [
                        protocol(UDP),
                        concat([ip.daddr(), Field::UdpDport], &ip.set("wireguard")),
                        between(Field::WireguardType, [1], [4]),
                        is(Field::WireguardReserved, [0; 3]),
                    ],
                ));
                rules.push(rule(matches, Action::Accept, "wireguard to a server"));
            }
            if self.has_shape(ip, MessageShape::Any) {
                let mut matches = vec![self.mark()];
                matches.extend(self.of(
                    ip,
                    [concat([ip.daddr(), Field::MetaL4proto, Field::ThDport], &ip.set("server"))],
                ));
                rules.push(rule(matches, Action::Accept, "to a server"));
            }
        }
        rules
    }

    /// What comes from a server, and ICMP errors about what we sent it (path MTU).
    fn from_servers(&self, action: &Action) -> Vec<Rule> {
        let mut rules = Vec::new();
        for ip in BOTH {
            if self.has_shape(ip, MessageShape::Wireguard) {
                rules.push(rule(
                    self.of(
                        ip,
                        [
                            protocol(UDP),
                            concat([ip.saddr(), Field::UdpSport], &ip.set("wireguard")),
                        ],
                    ),
                    action.clone(),
                    "from a server",
                ));
                rules.extend(self.icmp_errors(ip).map(|mut matches| {
                    matches.push(is(Field::CtProtocol, [UDP]));
                    matches.push(concat(
                        [ip.ct_original_daddr(), Field::CtOriginalProtoDst],
                        &ip.set("wireguard"),
                    ));
                    rule(matches, action.clone(), "icmp error of the outer flow")
                }));
            }
            if self.has_shape(ip, MessageShape::Any) {
                rules.push(rule(
                    self.of(
                        ip,
                        [concat(
                            [ip.saddr(), Field::MetaL4proto, Field::ThSport],
                            &ip.set("server"),
                        )],
                    ),
                    action.clone(),
                    "from a server",
                ));
                rules.extend(self.icmp_errors(ip).map(|mut matches| {
                    matches.push(concat(
                        [ip.ct_original_daddr(), Field::CtProtocol, Field::CtOriginalProtoDst],
                        &ip.set("server"),
                    ));
                    rule(matches, action.clone(), "icmp error of the outer flow")
                }));
            }
        }
        rules
    }

    /// ICMP: 3 unreachable, 11 time exceeded, 12 parameter problem. ICMPv6: 1 to 4.
    fn icmp_errors(&self, ip: Ip) -> impl Iterator<Item = Vec<Match>> {
        let (number, types) = match ip {
            Ip::V4 => (ICMP, vec![(3, 3), (11, 12)]),
            Ip::V6 => (ICMPV6, vec![(1, 4)]),
        };
        let family = self.family;
        types.into_iter().map(move |(first, last)| {
            let mut matches = of_family(family, ip, [protocol(number)]);
            matches.push(match first == last {
                true => is(ip.icmp_type(), [first]),
                false => between(ip.icmp_type(), [first], [last]),
            });
            matches.push(ct_state(CT_RELATED));
            matches
        })
    }

    fn address_resolution(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        let arp = is(Field::MetaProtocol, ETH_P_ARP.to_be_bytes());
        if self.tunnel_families().contains(&Ip::V4) {
            // Who asks a link for the tunnel's address must get no answer (MLLVD-CR-24-03).
            rules.push(counted(
                [arp.clone(), is_in(Field::ArpSaddrIp, Ip::V4.set("tunnel"))],
                Action::Drop,
                "blocked: arp for the tunnel address",
            ));
        }
        // Only there is it known that the frame is what it says.
        rules.push(rule([is_ethernet(), arp], Action::Accept, "arp"));
        rules.push(rule(
            [is_ethernet(), is(Field::MetaProtocol, ETH_P_PAE.to_be_bytes())],
            Action::Accept,
            "802.1x",
        ));
        rules
    }

    fn neighbours_and_leases(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.policy.tunnel.is_none() {
            return rules;
        }
        rules.push(self.neighbour_discovery(135, 136, Field::Ip6Daddr, "neighbour discovery"));
        if !self.policy.dhcp {
            return rules;
        }
        rules.push(self.neighbour_discovery(133, 133, Field::Ip6Daddr, "router solicitation"));
        // A first lease and a rebinding go to everybody, a renewal to the server (RFC 2131, 4.3.2).
        for to in [
            is(Field::IpDaddr, Ipv4Addr::BROADCAST.octets()),
            is_in(Field::IpDaddr, "lease_servers".into()),
        ] {
            rules.push(rule(
                self.of(
                    Ip::V4,
                    [
                        protocol(UDP),
                        is(Field::UdpSport, 68u16.to_be_bytes()),
                        is(Field::UdpDport, 67u16.to_be_bytes()),
                        to,
                        is(Field::BootpOp, [1]),
                        is(Field::BootpCookie, DHCP_COOKIE.to_be_bytes()),
                    ],
                ),
                Action::Accept,
                "dhcp",
            ));
        }
        // All_DHCP_Relay_Agents_and_Servers (RFC 8415, 7.1).
        let everyone = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
        rules.push(rule(
            self.of(
                Ip::V6,
                [
                    protocol(UDP),
                    is(Field::UdpSport, 546u16.to_be_bytes()),
                    is(Field::UdpDport, 547u16.to_be_bytes()),
                    link_local(Field::Ip6Saddr),
                    is(Field::Ip6Daddr, everyone.octets()),
                ],
            ),
            Action::Accept,
            "dhcpv6",
        ));
        rules
    }

    fn neighbours_and_leases_in(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.policy.tunnel.is_none() {
            return rules;
        }
        rules.push(self.neighbour_discovery_in(135, 136, "neighbour discovery"));
        if !self.policy.dhcp {
            return rules;
        }
        rules.push(self.neighbour_discovery_in(134, 134, "router advertisement"));
        rules.push(rule(
            self.of(
                Ip::V4,
                [
                    protocol(UDP),
                    is(Field::UdpSport, 67u16.to_be_bytes()),
                    is(Field::UdpDport, 68u16.to_be_bytes()),
                ],
            ),
            Action::Accept,
            "dhcp",
        ));
        rules.push(rule(
            self.of(
                Ip::V6,
                [
                    protocol(UDP),
                    is(Field::UdpSport, 547u16.to_be_bytes()),
                    is(Field::UdpDport, 546u16.to_be_bytes()),
                    link_local(Field::Ip6Saddr),
                ],
            ),
            Action::Accept,
            "dhcpv6",
        ));
        rules
    }

    /// RFC 4861, 7.1: hop limit 255 shows that no router passed it on.
    fn neighbour_discovery(&self, first: u8, last: u8, to: Field, why: &str) -> Rule {
        let mut rule = self.neighbour_discovery_in(first, last, why);
        rule.matches.push(is_in(to, "link_scope6".into()));
        rule
    }

    fn neighbour_discovery_in(&self, first: u8, last: u8, why: &str) -> Rule {
        let kind = match first == last {
            true => is(Field::Icmpv6Type, [first]),
            false => between(Field::Icmpv6Type, [first], [last]),
        };
        rule(
            self.of(Ip::V6, [protocol(ICMPV6), kind, is(Field::Ip6Hoplimit, [255])]),
            Action::Accept,
            why,
        )
    }

    fn to_ntp(&self) -> Vec<Rule> {
        BOTH.into_iter()
            .filter(|&ip| self.has_ntp(ip))
            .map(|ip| {
                rule(
                    self.of(
                        ip,
                        [
                            protocol(UDP),
                            is(Field::UdpDport, 123u16.to_be_bytes()),
                            is_in(ip.daddr(), ip.set("ntp")),
                        ],
                    ),
                    Action::Accept,
                    "ntp",
                )
            })
            .collect()
    }

    /// The direction keeps local programs from starting anything from a service's port; the
    /// `netdev` hook knows no connections.
    fn inbound_replies(&self) -> Vec<Rule> {
        BOTH.into_iter()
            .filter(|&ip| self.has_inbound(ip))
            .map(|ip| {
                let mut matches = self.of(
                    ip,
                    [concat([ip.daddr(), Field::MetaL4proto, Field::ThSport], &ip.set("inbound"))],
                );
                if self.family == Family::Inet {
                    matches.push(is(Field::CtDirection, [CT_REPLY]));
                }
                rule(matches, Action::Accept, "reply of an inbound service")
            })
            .collect()
    }

    fn to_lan(&self) -> Vec<Rule> {
        match self.policy.lan.is_empty() {
            true => Vec::new(),
            false => vec![rule([], Action::Jump("lan".into()), "local networks")],
        }
    }

    /// IGMP and MLD reports: only with a LAN, since the groups are a fingerprint.
    fn multicast_membership(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.has_lan(Ip::V4) {
            let groups: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4);
            rules.push(rule(
                self.of(
                    Ip::V4,
                    [
                        protocol(IGMP),
                        is(Field::IpTtl, [1]),
                        masked(Field::IpDaddr, &IpNet::V4(groups)),
                    ],
                ),
                Action::Accept,
                "multicast membership",
            ));
        }
        if self.has_lan(Ip::V6) {
            let groups = Ipv6Net::new_assert(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0), 16);
            for (first, last) in [(131, 132), (143, 143)] {
                let kind = match first == last {
                    true => is(Field::Icmpv6Type, [first]),
                    false => between(Field::Icmpv6Type, [first], [last]),
                };
                rules.push(rule(
                    self.of(
                        Ip::V6,
                        [
                            protocol(ICMPV6),
                            kind,
                            is(Field::Ip6Hoplimit, [1]),
                            masked(Field::Ip6Daddr, &IpNet::V6(groups)),
                        ],
                    ),
                    Action::Accept,
                    "multicast membership",
                ));
            }
        }
        rules
    }

    fn to_internal(&self) -> Vec<Rule> {
        let bridge = rule(
            [is_kind(Field::MetaOifkind, "bridge")],
            Action::Jump("to_internal".into()),
            "internal bridges",
        );
        self.internal_is_allowed().then_some(bridge).into_iter().collect()
    }

    // What the policy has.

    /// Only the egress guard keeps a bridge with a NIC in it from leaking.
    fn internal_is_allowed(&self) -> bool {
        self.policy.egress_guard && !self.policy.internal.is_empty()
    }

    fn tunnel_links(&self) -> Vec<TunnelLink> {
        let Some(tunnel) = &self.policy.tunnel else { return Vec::new() };
        tunnel
            .kinds
            .iter()
            .map(|&kind| TunnelLink { name: tunnel.interface.clone(), kind })
            .collect()
    }

    fn tunnel_families(&self) -> Vec<Ip> {
        let addresses = self.policy.tunnel.iter().flat_map(|tunnel| &tunnel.addresses);
        families(addresses.copied())
    }

    fn has_server(&self, ip: Ip) -> bool {
        self.policy.servers.iter().any(|server| ip.has(server.endpoint.ip()))
    }

    fn has_shape(&self, ip: Ip, shape: MessageShape) -> bool {
        self.policy
            .servers
            .iter()
            .any(|server| server.shape == shape && ip.has(server.endpoint.ip()))
    }

    fn has_lan(&self, ip: Ip) -> bool {
        self.policy.lan.iter().any(|net| ip.has(net.addr()))
    }

    fn has_lan_dns(&self, ip: Ip) -> bool {
        self.policy.lan_dns.iter().any(|&address| ip.has(address))
    }

    fn has_ntp(&self, ip: Ip) -> bool {
        self.policy.ntp.iter().any(|&address| ip.has(address))
    }

    fn has_inbound(&self, ip: Ip) -> bool {
        self.policy.inbound.iter().any(|service| ip.has(service.from.addr()))
    }

    fn mark(&self) -> Match {
        is(Field::MetaMark, self.policy.mark.to_ne_bytes())
    }

    /// Matches of one address family, which they say first: the kernel would otherwise read an
    /// IPv6 packet's bytes as IPv4's.
    fn of(&self, ip: Ip, matches: impl IntoIterator<Item = Match>) -> Vec<Match> {
        of_family(self.family, ip, matches)
    }

    fn base(&self, name: &str, hook: Hook, priority: i32, mut rules: Vec<Rule>) -> Chain {
        // Explicit, besides the policy: a new chain's policy takes effect after its rules, and
        // until then it accepts (measured: design section 2).
        rules.push(counted([], Action::Drop, &format!("blocked: {name}")));
        Chain { name: name.into(), base: Some(base(hook, priority, ChainPolicy::Drop)), rules }
    }

    // Sets.

    fn sets(&self) -> Vec<Set> {
        let mut sets = Vec::new();
        for ip in BOTH {
            let (host, port) = (ip.kind(), ValueKind::Port);
            let protocol = ValueKind::Protocol;
            let tunnel = self.policy.tunnel.iter().flat_map(|tunnel| &tunnel.addresses);
            sets.push(values(ip.set("tunnel"), vec![host], ip.select(tunnel)));
            sets.push(values(ip.set("wireguard"), vec![host, port], self.wireguard(ip)));
            sets.push(values(ip.set("server"), vec![host, protocol, port], self.other(ip)));
            if self.family == Family::Netdev {
                sets.push(values(
                    ip.set("server_host"),
                    vec![host, protocol],
                    self.server_hosts(ip),
                ));
            }
            sets.push(values(ip.set("ntp"), vec![host], ip.select(&self.policy.ntp)));
            sets.push(values(ip.set("lan_dns"), vec![host], ip.select(&self.policy.lan_dns)));
            sets.push(Set {
                name: ip.set("lan"),
                key: vec![host],
                interval: true,
                elements: ranges(self.policy.lan.iter().filter(|net| ip.has(net.addr()))),
            });
            sets.push(Set {
                name: ip.set("inbound"),
                key: vec![host, protocol, port],
                interval: true,
                elements: self.inbound(ip),
            });
        }
        sets.extend(self.constant_sets());
        sets.retain(|set| !set.elements.is_empty());
        sets
    }

    fn constant_sets(&self) -> Vec<Set> {
        let mut sets = Vec::new();
        if self.policy.tunnel.is_some() {
            sets.push(Set {
                name: "link_scope6".into(),
                key: vec![ValueKind::Ipv6],
                interval: true,
                elements: ranges(&[
                    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)),
                    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0), 16)),
                ]),
            });
        }
        if self.policy.tunnel.is_some() && self.policy.dhcp {
            sets.push(Set {
                name: "lease_servers".into(),
                key: vec![ValueKind::Ipv4],
                interval: true,
                elements: ranges(&[
                    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8)),
                    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16)),
                    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12)),
                    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16)),
                ]),
            });
        }
        if !self.policy.lan.is_empty() {
            let ports = [53u16, 853, 5353, 5355];
            let elements = [TCP, UDP]
                .into_iter()
                .flat_map(|protocol| {
                    ports.map(|port| joined([&[protocol][..], &port.to_be_bytes()]))
                })
                .collect();
            sets.push(values(
                "name_services".into(),
                vec![ValueKind::Protocol, ValueKind::Port],
                elements,
            ));
        }
        sets
    }

    fn wireguard(&self, ip: Ip) -> Vec<Vec<u8>> {
        self.policy
            .servers
            .iter()
            .filter(|server| server.shape == MessageShape::Wireguard)
            .filter(|server| ip.has(server.endpoint.ip()))
            .map(|server| {
                let port = server.endpoint.port().to_be_bytes();
                joined([&octets(server.endpoint.ip())[..], &port])
            })
            .collect()
    }

    fn other(&self, ip: Ip) -> Vec<Vec<u8>> {
        self.policy
            .servers
            .iter()
            .filter(|server| server.shape == MessageShape::Any)
            .filter(|server| ip.has(server.endpoint.ip()))
            .map(|server| {
                let port = server.endpoint.port().to_be_bytes();
                joined([&octets(server.endpoint.ip())[..], &[number(server.protocol)], &port])
            })
            .collect()
    }

    fn server_hosts(&self, ip: Ip) -> Vec<Vec<u8>> {
        self.policy
            .servers
            .iter()
            .filter(|server| ip.has(server.endpoint.ip()))
            .map(|server| joined([&octets(server.endpoint.ip())[..], &[number(server.protocol)]]))
            .collect()
    }

    fn inbound(&self, ip: Ip) -> Vec<Element> {
        let mut elements: Vec<Element> = disjoint(
            self.policy.inbound.iter().filter(|service| ip.has(service.from.addr())).collect(),
        )
        .into_iter()
        .map(|service| {
            let rest = [number(service.protocol)];
            let port = service.port.to_be_bytes();
            let edge = |address: IpAddr| joined([&octets(address)[..], &rest, &port]);
            Element { first: edge(service.from.network()), last: edge(service.from.broadcast()) }
        })
        .collect();
        elements.sort();
        elements
    }
}

/// The tunnel's link: its name proves nothing without its kind (threat 37), which is asked first,
/// since hardware has none.
struct TunnelLink {
    name: String,
    kind: &'static str,
}

impl TunnelLink {
    fn outward(&self) -> Vec<Match> {
        vec![is_kind(Field::MetaOifkind, self.kind), is(Field::MetaOifname, padded(&self.name))]
    }

    fn inward(&self) -> Vec<Match> {
        vec![is_kind(Field::MetaIifkind, self.kind), is(Field::MetaIifname, padded(&self.name))]
    }
}

impl Ip {
    fn has(self, address: IpAddr) -> bool {
        (self == Ip::V4) == address.is_ipv4()
    }

    fn select<'a>(self, addresses: impl IntoIterator<Item = &'a IpAddr>) -> Vec<Vec<u8>> {
        addresses.into_iter().filter(|&&address| self.has(address)).map(|&a| octets(a)).collect()
    }

    fn set(self, name: &str) -> String {
        match self {
            Ip::V4 => format!("{name}4"),
            Ip::V6 => format!("{name}6"),
        }
    }

    fn kind(self) -> ValueKind {
        match self {
            Ip::V4 => ValueKind::Ipv4,
            Ip::V6 => ValueKind::Ipv6,
        }
    }

    fn saddr(self) -> Field {
        match self {
            Ip::V4 => Field::IpSaddr,
            Ip::V6 => Field::Ip6Saddr,
        }
    }

    fn daddr(self) -> Field {
        match self {
            Ip::V4 => Field::IpDaddr,
            Ip::V6 => Field::Ip6Daddr,
        }
    }

    fn ct_original_daddr(self) -> Field {
        match self {
            Ip::V4 => Field::CtOriginalIpDaddr,
            Ip::V6 => Field::CtOriginalIp6Daddr,
        }
    }

    fn icmp_type(self) -> Field {
        match self {
            Ip::V4 => Field::IcmpType,
            Ip::V6 => Field::Icmpv6Type,
        }
    }
}

fn of_family(family: Family, ip: Ip, matches: impl IntoIterator<Item = Match>) -> Vec<Match> {
    let first = match (family, ip) {
        (Family::Inet, Ip::V4) => is(Field::MetaNfproto, [NFPROTO_IPV4]),
        (Family::Inet, Ip::V6) => is(Field::MetaNfproto, [NFPROTO_IPV6]),
        (Family::Netdev, Ip::V4) => is(Field::MetaProtocol, ETH_P_IP.to_be_bytes()),
        (Family::Netdev, Ip::V6) => is(Field::MetaProtocol, ETH_P_IPV6.to_be_bytes()),
    };
    std::iter::once(first).chain(matches).collect()
}

/// Its offset is not zero. In IPv6 only where the fragment header stands first, as ours does.
fn later_fragment(ip: Ip) -> Vec<Match> {
    /// NEXTHDR_FRAGMENT (RFC 8200, 4.5).
    const FRAGMENT: u8 = 44;
    match ip {
        Ip::V4 => vec![any_of(Field::IpFragOff, 0x1fff_u16.to_be_bytes().to_vec())],
        Ip::V6 => vec![
            is(Field::Ip6Nexthdr, [FRAGMENT]),
            any_of(Field::Ip6FragOff, 0xfff8_u16.to_be_bytes().to_vec()),
        ],
    }
}

fn families(addresses: impl Iterator<Item = IpAddr> + Clone) -> Vec<Ip> {
    BOTH.into_iter().filter(|ip| addresses.clone().any(|address| ip.has(address))).collect()
}

fn chain(name: &str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), base: None, rules }
}

fn base(hook: Hook, priority: i32, policy: ChainPolicy) -> Base {
    Base { kind: ChainKind::Filter, hook, priority, policy, devices: Devices::None }
}

fn rule(matches: impl Into<Vec<Match>>, action: Action, comment: &str) -> Rule {
    Rule { matches: matches.into(), counter: false, action, comment: comment.into() }
}

fn counted(matches: impl Into<Vec<Match>>, action: Action, comment: &str) -> Rule {
    Rule { counter: true, ..rule(matches, action, comment) }
}

fn single(field: Field, test: Test) -> Match {
    Match { fields: vec![field], test }
}

fn is(field: Field, value: impl Into<Vec<u8>>) -> Match {
    single(field, Test::Is(value.into()))
}

fn between<const N: usize>(field: Field, first: [u8; N], last: [u8; N]) -> Match {
    single(field, Test::Between(first.into(), last.into()))
}

fn any_of(field: Field, mask: Vec<u8>) -> Match {
    single(field, Test::AnyOf(mask))
}

fn is_in(field: Field, set: String) -> Match {
    single(field, Test::In(set))
}

fn concat(fields: impl Into<Vec<Field>>, set: &str) -> Match {
    Match { fields: fields.into(), test: Test::In(set.into()) }
}

fn masked(field: Field, net: &IpNet) -> Match {
    single(field, Test::Masked { mask: octets(net.netmask()), value: octets(net.network()) })
}

fn link_local(field: Field) -> Match {
    let net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
    masked(field, &IpNet::V6(net))
}

fn protocol(number: u8) -> Match {
    is(Field::MetaL4proto, [number])
}

fn is_loopback(field: Field) -> Match {
    is(field, LOOPBACK.to_ne_bytes())
}

fn is_ethernet() -> Match {
    is(Field::MetaOiftype, ETHERNET.to_ne_bytes())
}

/// A foreign DNAT of 127.x must not get out (threat 35).
fn fib_local() -> Match {
    is(Field::FibDaddrType, RTN_LOCAL.to_ne_bytes())
}

fn ct_state(mask: u32) -> Match {
    any_of(Field::CtState, mask.to_ne_bytes().to_vec())
}

fn is_kind(field: Field, kind: &str) -> Match {
    is(field, padded(kind))
}

fn named(field: Field, pattern: &LinkPattern) -> Match {
    match pattern {
        LinkPattern::Exact(name) => is(field, padded(name)),
        LinkPattern::Prefix(start) => single(field, Test::StartsWith(start.as_bytes().to_vec())),
    }
}

/// A link's name as the kernel compares it: IFNAMSIZ bytes.
fn padded(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    }
}

/// A concatenation: each part begins on a register of four bytes.
fn joined<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn values(name: String, key: Vec<ValueKind>, values: Vec<Vec<u8>>) -> Set {
    let mut elements: Vec<Element> =
        values.into_iter().map(|value| Element { last: value.clone(), first: value }).collect();
    elements.sort();
    elements.dedup();
    Set { name, key, interval: false, elements }
}

/// Neighbouring prefixes become one range: the kernel's tree holds ranges, and so does the listing.
fn ranges<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> Vec<Element> {
    let mut elements: Vec<Element> = nets
        .into_iter()
        .map(|net| Element { first: octets(net.network()), last: octets(net.broadcast()) })
        .collect();
    elements.sort();
    let mut merged: Vec<Element> = Vec::new();
    for element in elements {
        match merged.last_mut() {
            Some(before) if element.first <= successor(&before.last) => {
                before.last = before.last.clone().max(element.last);
            }
            _ => merged.push(element),
        }
    }
    merged
}

/// The next address; the last one is its own successor.
pub(crate) fn successor(value: &[u8]) -> Vec<u8> {
    let mut next = value.to_vec();
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return next;
        }
    }
    value.to_vec()
}

/// Drops services that a wider network already allows: a set refuses overlapping ranges.
fn disjoint(services: Vec<&crate::policy::Inbound>) -> Vec<&crate::policy::Inbound> {
    services
        .iter()
        .filter(|service| {
            !services.iter().any(|other| {
                other != *service
                    && other.protocol == service.protocol
                    && other.port == service.port
                    && other.from.contains(&service.from)
            })
        })
        .copied()
        .collect()
}
