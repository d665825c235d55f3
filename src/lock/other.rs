//! A guard that is not what the configuration compiles to, and whether it is one of ours all the
//! same: the file was edited, and is not loaded yet.
//!
//! What the sets hold, the mark and the names of links are a configuration's own. A guard that
//! differs in these alone cannot be told from one of another configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use smallvec::smallvec;

use crate::netfilter::live::DORMANT;
use crate::netfilter::{self, LiveTable};
use crate::netlink::Link;
use crate::policy::{Inbound, LinkPattern, MessageShape, Policy, Protocol, Server, Tunnel};
use crate::ruleset::expression::{lower, raise};
use crate::ruleset::model::{LinkView, Packet, Verdict};
use crate::ruleset::{self, Chain, Family, Field, Match, Rule, Ruleset, Table, Test};

/// A guard whose every rule is of a form that ours have.
pub(super) struct OtherGuard(Table);

impl OtherGuard {
    /// `None`: it sleeps, or something stands in it that no configuration puts there, or something
    /// is gone that all have.
    pub(super) fn of(live: &LiveTable) -> Option<Self> {
        if live.flags & DORMANT != 0 || !live.objects.is_empty() || !live.flowtables.is_empty() {
            return None;
        }
        let forms = forms();
        let chains = live.chains.iter().map(|(name, chain)| {
            let base = match &chain.base {
                Some(base) => Some(base.raise(Family::Netdev)?),
                None => None,
            };
            let rules = chain.rules.iter().map(|rule| {
                raise(&rule.expressions, &rule.comment).filter(|it| forms.contains(&form(it)))
            });
            Some(Chain { name: name.clone(), base, rules: rules.collect::<Option<_>>()? })
        });
        let sets = live.sets.iter().map(|(name, set)| set.raise(name));
        let table = Table {
            family: Family::Netdev,
            sets: sets.collect::<Option<_>>()?,
            chains: chains.collect::<Option<_>>()?,
        };
        has_what_all_have(&table).then_some(OtherGuard(table))
    }

    /// Those of the links that it hooks as ours do, and where it stops what no rule lets pass.
    pub(super) fn holding_on(&self, links: &[Link]) -> Vec<Link> {
        let widest = widest();
        let forms = [None, Some(&netfilter::references(links)[..])].map(|links| {
            let guard = ruleset::guard(&widest, links);
            [guard.clone().without_log(), guard]
        });
        let wanted = || forms.iter().flatten().flat_map(|table| &table.chains);
        let hooks = |link: &&Link| {
            let names = ["egress".to_owned(), format!("egress_{}", link.index)];
            let mut bases = self.0.chains.iter().filter(|chain| names.contains(&chain.name));
            bases.any(|base| wanted().any(|it| it == base) && self.drops(base, link))
        };
        links.iter().filter(hooks).cloned().collect()
    }

    fn drops(&self, base: &Chain, link: &Link) -> bool {
        let others = self.0.chains.iter().filter(|chain| chain.base.is_none());
        let chains = others.chain([base]).cloned().collect();
        let ruleset = Ruleset {
            inet: Table { family: Family::Inet, sets: Vec::new(), chains: Vec::new() },
            egress: Some(Table { chains, ..self.0.clone() }),
        };
        ruleset.judge_frame(&strange_frame(link)).verdict == Verdict::Drop
    }
}

/// Every rule of the strictest guard is one of any guard.
fn has_what_all_have(table: &Table) -> bool {
    let strictest = ruleset::guard(&Policy::strictest(), None);
    strictest.chains.iter().filter(|chain| chain.base.is_none()).all(|chain| {
        let there = table.chain(&chain.name).map_or(&[][..], |it| &it.rules);
        chain.rules.iter().all(|rule| there.contains(rule))
    })
}

/// A frame that no rule asks for.
fn strange_frame(link: &Link) -> Packet {
    /// Local experimental EtherType 2 (IEEE 802).
    const ETHERTYPE: u16 = 0x88b6;
    Packet {
        ethertype: ETHERTYPE,
        source: Ipv4Addr::UNSPECIFIED.into(),
        destination: Ipv4Addr::UNSPECIFIED.into(),
        protocol: 0,
        ports: None,
        icmp_type: None,
        hop_limit: 0,
        later_fragment: false,
        payload: Vec::new(),
        mark: 0,
        iif: None,
        oif: Some(LinkView {
            name: link.name.clone(),
            kind: link.kind.clone(),
            loopback: link.loopback,
        }),
        from_this_machine: true,
        to_this_machine: false,
        from_where_it_came: true,
        to_where_it_came: false,
        connection: None,
    }
}

/// Every form that a rule of a guard may have, as it is raised from the kernel.
fn forms() -> Vec<Rule> {
    let rules = ruleset::guard(&widest(), None).chains.into_iter().flat_map(|chain| chain.rules);
    rules.filter_map(|rule| raise(&lower(&rule), &rule.comment)).map(|rule| form(&rule)).collect()
}

/// The rule without what a configuration chooses.
fn form(rule: &Rule) -> Rule {
    let mut form = rule.clone();
    for Match { fields, test } in &mut form.matches {
        let chosen = [Field::MetaMark, Field::MetaOifname];
        if fields.iter().any(|it| chosen.contains(it)) {
            *test = match test {
                Test::StartsWith(_) => Test::StartsWith(smallvec![]),
                _ => Test::Is(smallvec![]),
            };
        }
    }
    form
}

/// What a configuration can allow, one of each.
fn widest() -> Policy {
    let addresses: [IpAddr; 2] = [Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::LOCALHOST.into()];
    let shapes = [
        (Protocol::Udp, MessageShape::Wireguard),
        (Protocol::Udp, MessageShape::Any),
        (Protocol::Tcp, MessageShape::Any),
    ];
    let server = |address: IpAddr, (protocol, shape)| {
        let endpoint = (address, 1).into();
        Server { endpoint, protocol, shape }
    };
    let inbound =
        |protocol, address: IpAddr| Inbound { protocol, port: 1, from: IpNet::from(address) };
    let names = [LinkPattern::Exact("a".into()), LinkPattern::Prefix("b".into())];
    Policy {
        tunnel: Some(Tunnel {
            interface: "wg0".into(),
            kinds: ["tun", "wireguard"].into(),
            addresses: addresses.into(),
        }),
        servers: addresses.iter().flat_map(|it| shapes.map(|shape| server(*it, shape))).collect(),
        dhcp: true,
        lan: addresses.map(IpNet::from).into(),
        lan_dns: addresses.into(),
        ntp: addresses.into(),
        inbound: [Protocol::Udp, Protocol::Tcp]
            .into_iter()
            .flat_map(|protocol| addresses.map(|it| inbound(protocol, it)))
            .collect(),
        internal: names.clone().into(),
        internal_ports: names.into(),
        forward_into_tunnel: true,
        ..Policy::strictest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::live::{LiveChain, LiveRule, LiveSet};

    fn link(name: &str, kind: Option<&str>) -> Link {
        Link { index: 2, name: name.into(), kind: kind.map(str::to_owned), ..Link::default() }
    }

    /// As the kernel would hold it; of the sets only their names.
    fn live(table: &Table) -> LiveTable {
        let chains = table.chains.iter().map(|chain| {
            let rules = chain.rules.iter().map(|rule| LiveRule {
                expressions: lower(rule),
                comment: rule.comment.clone(),
                counted: None,
            });
            let base = chain.base.as_ref().map(Into::into);
            (chain.name.clone(), LiveChain { base, rules: rules.collect() })
        });
        let sets = table.sets.iter().map(|set| {
            let (key_type, key_length, flags) = (0, 0, 0);
            let elements = set.elements.clone();
            (set.name.clone(), LiveSet { key_type, key_length, flags, elements, foreign: false })
        });
        LiveTable { chains: chains.collect(), sets: sets.collect(), ..LiveTable::default() }
    }

    fn holds(live: &LiveTable, link: &Link) -> bool {
        OtherGuard::of(live).is_some_and(|it| !it.holding_on(std::slice::from_ref(link)).is_empty())
    }

    /// The widest with one thing less or another, and the strictest.
    fn configurations() -> Vec<Policy> {
        let changes: [fn(&mut Policy); 16] = [
            |_| {},
            |it| it.mark = 7,
            |it| it.tunnel.as_mut().expect("a tunnel").interface = "tun7".into(),
            |it| it.tunnel.as_mut().expect("a tunnel").kinds = ["tun"].into(),
            |it| it.tunnel.as_mut().expect("a tunnel").addresses.retain(IpAddr::is_ipv4),
            |it| it.tunnel.as_mut().expect("a tunnel").addresses.retain(IpAddr::is_ipv6),
            |it| it.servers.retain(|server| server.endpoint.is_ipv6()),
            |it| it.servers.retain(|server| server.shape == MessageShape::Wireguard),
            |it| it.dhcp = false,
            |it| it.lan.clear(),
            |it| it.lan_dns.clear(),
            |it| it.ntp.clear(),
            |it| it.inbound.clear(),
            |it| it.internal = [LinkPattern::Prefix("docker".into())].into(),
            |it| it.internal_ports.clear(),
            |it| *it = Policy::strictest(),
        ];
        let changed = changes.map(|change| {
            let mut policy = widest();
            change(&mut policy);
            policy
        });
        changed.into()
    }

    #[test]
    fn a_guard_of_any_configuration_is_ours() {
        let nic = link("eth0", None);
        for policy in configurations() {
            let links = netfilter::references(std::slice::from_ref(&nic));
            for links in [None, Some(&links[..])] {
                let guard = ruleset::guard(&policy, links);
                assert!(holds(&live(&guard), &nic), "{policy:?}");
                assert!(holds(&live(&guard.without_log()), &nic), "{policy:?}");
            }
        }
    }

    #[test]
    fn a_link_that_it_spares_or_does_not_hook_is_not_guarded() {
        let guard = live(&ruleset::guard(&widest(), None));
        assert!(!holds(&guard, &link("wg0", Some("wireguard"))));
        assert!(!holds(&guard, &link("a", Some("bridge"))));
        assert!(holds(&guard, &link("wg0", None)));
        let other = [ruleset::LinkRef { index: 3, name: "eth1".into() }];
        assert!(!holds(&live(&ruleset::guard(&widest(), Some(&other))), &link("eth0", None)));
    }

    #[test]
    fn one_that_was_tampered_with_is_not_ours() {
        use crate::ruleset::expression::Expression;
        let accept = |comment: &str| LiveRule {
            expressions: vec![Expression::Verdict { code: 1, chain: None }],
            comment: comment.into(),
            counted: None,
        };
        let tamperings: [&dyn Fn(&mut LiveTable); 9] = [
            &|it| it.flags = DORMANT,
            &|it| it.chains.get_mut("frames").unwrap().rules.insert(0, accept("")),
            &|it| it.chains.get_mut("frames").unwrap().rules.push(accept("arp")),
            &|it| it.chains.get_mut("egress").unwrap().rules.insert(0, accept("loopback")),
            &|it| it.chains.get_mut("egress").unwrap().base.as_mut().unwrap().policy = 1,
            &|it| it.chains.get_mut("egress").unwrap().rules.clear(),
            &|it| it.chains.get_mut("frames").unwrap().rules.clear(),
            &|it| it.chains.values_mut().for_each(|chain| chain.rules.clear()),
            &|it| it.sets.values_mut().for_each(|set| set.foreign = true),
        ];
        for (number, tamper) in tamperings.into_iter().enumerate() {
            let mut guard = live(&ruleset::guard(&widest(), None));
            tamper(&mut guard);
            assert!(!holds(&guard, &link("eth0", None)), "number {number}");
        }
    }
}
