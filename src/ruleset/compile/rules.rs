//! The rules that both tables ask, and what only `input` and `mark_replies` do: from servers, and
//! neighbours and leases that come in.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::super::{Action, Family, Field, Match, Rule};
use super::words::*;
use super::{Build, TunnelLink};
use crate::policy::MessageShape;

#[allow(clippy::wrong_self_convention, reason = "from_ and to_ say where packets come from and go")]
impl Build<'_> {
    pub(super) fn to_tunnel(&self) -> Vec<Rule> {
        let jump = |link: TunnelLink| {
            rule(link.outward(), Action::Jump("into_tunnel".into()), "the tunnel's link")
        };
        self.tunnel_links().into_iter().map(jump).collect()
    }

    /// Where the link has no address of its own, the kernel takes another link's for what leaves by
    /// it (`inet_select_addr`): the tunnel's, which nobody outside may learn (threat 71).
    pub(super) fn tunnel_address_outside(&self) -> Vec<Rule> {
        let stop = |ip: Ip| {
            let matches = self.of(ip, [is_in(ip.saddr(), ip.set("tunnel"))]);
            counted(matches, Action::Return, "blocked: from the tunnel's address")
        };
        self.tunnel_families().into_iter().map(stop).collect()
    }

    pub(super) fn to_servers(&self) -> Vec<Rule> {
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
    pub(super) fn from_servers(&self, action: &Action) -> Vec<Rule> {
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
    pub(super) fn icmp_errors(&self, ip: Ip) -> impl Iterator<Item = Vec<Match>> {
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

    pub(super) fn address_resolution(&self) -> Vec<Rule> {
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

    pub(super) fn neighbours_and_leases(&self) -> Vec<Rule> {
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
            let mut matches = self.of(Ip::V4, lease_request());
            matches.extend([
                to,
                is(Field::BootpOp, [1]),
                is(Field::BootpCookie, DHCP_COOKIE.to_be_bytes()),
            ]);
            rules.push(rule(matches, Action::Accept, "dhcp"));
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

    pub(super) fn neighbours_and_leases_in(&self) -> Vec<Rule> {
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
    pub(super) fn neighbour_discovery(&self, first: u8, last: u8, to: Field, why: &str) -> Rule {
        let mut rule = self.neighbour_discovery_in(first, last, why);
        rule.matches.push(is_in(to, "link_scope6".into()));
        rule
    }

    pub(super) fn neighbour_discovery_in(&self, first: u8, last: u8, why: &str) -> Rule {
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

    pub(super) fn to_ntp(&self) -> Vec<Rule> {
        BOTH.into_iter()
            .filter(|&ip| self.has_ntp(ip))
            .map(|ip| {
                let mut matches = self.of(ip, to_ntp(ip));
                // To another address a server's answer would tell of us.
                if self.family == Family::Inet {
                    matches.push(from_own_address());
                }
                rule(matches, Action::Accept, "ntp")
            })
            .collect()
    }

    /// The direction keeps local programs from starting anything from a service's port; the
    /// `netdev` hook knows no connections.
    pub(super) fn inbound_replies(&self) -> Vec<Rule> {
        BOTH.into_iter()
            .filter(|&ip| self.has_inbound(ip))
            .map(|ip| {
                let mut matches = self.from_service(ip);
                if self.family == Family::Inet {
                    matches.extend([is_reply(), from_own_address()]);
                }
                rule(matches, Action::Accept, "reply of an inbound service")
            })
            .collect()
    }

    /// Dropped, not rejected: a connection that is older than our table is unknown to conntrack, which
    /// takes the service's next word for its beginning. A reset would end it; without one the client's
    /// next packet makes it known as what it is.
    pub(super) fn not_yet_replies(&self) -> Vec<Rule> {
        let why = "blocked: from an inbound service's port, no reply";
        BOTH.into_iter()
            .filter(|&ip| self.has_inbound(ip))
            .map(|ip| counted(self.from_service(ip), Action::Drop, why))
            .collect()
    }

    pub(super) fn from_service(&self, ip: Ip) -> Vec<Match> {
        let service = [ip.daddr(), Field::MetaL4proto, Field::ThSport];
        self.of(ip, [concat(service, &ip.set("inbound"))])
    }

    pub(super) fn to_lan(&self) -> Vec<Rule> {
        if self.policy.lan.is_empty() {
            return Vec::new();
        }
        let jump =
            |matches: Vec<Match>| rule(matches, Action::Jump("lan".into()), "local networks");
        match self.family {
            Family::Netdev => vec![jump(Vec::new())],
            // What a LAN's client asked through the tunnel is answered under a foreign address.
            Family::Inet if self.policy.forward_into_tunnel => {
                vec![jump(vec![from_own_address()]), jump(vec![is_reply()])]
            }
            Family::Inet => vec![jump(vec![from_own_address()])],
        }
    }

    /// IGMP and MLD reports: only with a LAN, since the groups are a fingerprint.
    pub(super) fn multicast_membership(&self) -> Vec<Rule> {
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

    pub(super) fn to_internal(&self) -> Vec<Rule> {
        let bridge = rule(
            [is_kind(Field::MetaOifkind, "bridge")],
            Action::Jump("to_internal".into()),
            "internal bridges",
        );
        self.internal_is_allowed().then_some(bridge).into_iter().collect()
    }
}
