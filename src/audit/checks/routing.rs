//! Policy rules and routes beside the routing guard's.

use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv6Net};

use super::known;
use super::lock::judgeable;
use crate::audit::facts::PolicyRule;
use crate::audit::kinds::*;
use crate::audit::{Facts, Found, Unknown, Wanted};
use crate::netlink::Route;
use crate::routing::PREFERENCES;

fn guarded(facts: &Facts, wanted: &Wanted) -> Result<(), Unknown> {
    judgeable(facts, wanted)?;
    match wanted.policy.routing_guard {
        true => Ok(()),
        false => Err(Unknown::NotApplicable("an external tunnel has no routing guard".into())),
    }
}

pub(super) fn rules(facts: &Facts, wanted: &Wanted) -> Result<Found, Unknown> {
    guarded(facts, wanted)?;
    let mut found = Found::default();
    for rule in known(&facts.rules)? {
        let skips = rule.skips_to.is_some_and(|to| to > *PREFERENCES.start());
        if !(rule.table.is_some() || skips) || rule.preference > *PREFERENCES.end() {
            continue;
        }
        let what = describe(rule);
        match is_narrow(rule) {
            true => found
                .note(format!("{what}: only for packets with that mark, or that are forwarded")),
            false => found.find(&RULE_BEFORE_GUARD, what, cure(rule)),
        }
    }
    Ok(found)
}

/// It needs a mark that nothing has by itself, or it is about what comes from elsewhere, which the
/// table does not forward.
fn is_narrow(rule: &PolicyRule) -> bool {
    let marked = rule.mark.is_some_and(|mark| mark.value & mark.mask != 0);
    let forwarded = rule.came_by.as_deref().is_some_and(|link| link != "lo");
    (marked || forwarded) && !rule.inverted
}

fn describe(rule: &PolicyRule) -> String {
    let family = if rule.v6 { 6 } else { 4 };
    let deed = match (rule.table, rule.skips_to) {
        (Some(0), _) => "lookup a VRF".into(),
        (Some(table), _) => format!("lookup table {table}"),
        (None, to) => format!("goto {}", to.unwrap_or_default()),
    };
    format!("IPv{family} rule {}: {deed}", rule.preference)
}

fn cure(rule: &PolicyRule) -> String {
    let family = if rule.v6 { 6 } else { 4 };
    format!("ip -{family} rule del pref {}", rule.preference)
}

const IPV6_MULTICAST: IpNet =
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8));

pub(super) fn routes(facts: &Facts, wanted: &Wanted) -> Result<Found, Unknown> {
    guarded(facts, wanted)?;
    let links = known(&facts.links)?;
    let tunnel = wanted.policy.tunnel.as_ref();
    let is_tunnel = |index: u32| {
        links.iter().any(|link| {
            link.index == index && tunnel.is_some_and(|tunnel| tunnel.interface == link.name)
        })
    };
    let is_loopback = |index: u32| links.iter().any(|it| it.index == index && it.loopback);
    let name = |index: u32| {
        links.iter().find(|link| link.index == index).map_or("?", |link| link.name.as_str())
    };
    let mut found = Found::default();
    for route in known(&facts.local_routes)? {
        let Route { destination, link } = route;
        // Before Linux 5.8 the kernel's own for multicast is one of them.
        let multicast = *destination == IPV6_MULTICAST;
        if multicast || link.is_some_and(|index| is_tunnel(index) || is_loopback(index)) {
            continue;
        }
        let by = link.map(|index| format!(" dev {}", name(index))).unwrap_or_default();
        let cure = format!("ip route del {destination}{by} table local");
        found.find(&ROGUE_ROUTE, format!("route {destination}{by} in table local"), cure);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, ids, wanted};
    use super::*;
    use crate::audit::facts::Mark;

    const RULE: PolicyRule = PolicyRule {
        v6: false,
        preference: 100,
        table: Some(254),
        skips_to: None,
        mark: None,
        came_by: None,
        inverted: false,
    };

    fn with(rule: PolicyRule) -> Vec<&'static str> {
        let mut facts = facts();
        facts.rules = Ok(vec![rule]);
        ids(&facts, &wanted())
    }

    #[test]
    fn rules_before_the_guard_are_found_unless_narrow() {
        assert_eq!(with(RULE), ["rule-before-guard"]);
        assert_eq!(with(PolicyRule { preference: 27_502, ..RULE }), ["rule-before-guard"]);
        assert_eq!(with(PolicyRule { preference: 32_766, ..RULE }), [""; 0]);
        assert_eq!(with(PolicyRule { table: None, ..RULE }), [""; 0]);
        let goto = |to| PolicyRule { table: None, skips_to: Some(to), ..RULE };
        assert_eq!(with(goto(32_766)), ["rule-before-guard"]);
        assert_eq!(with(goto(200)), [""; 0], "still before the guard");
        let marked = PolicyRule { mark: Some(Mark { value: 1, mask: 255 }), ..RULE };
        assert_eq!(with(marked.clone()), [""; 0]);
        assert_eq!(with(PolicyRule { inverted: true, ..marked }), ["rule-before-guard"]);
        let unmarked = PolicyRule { mark: Some(Mark { value: 0, mask: 255 }), ..RULE };
        assert_eq!(with(unmarked), ["rule-before-guard"]);
        assert_eq!(with(PolicyRule { came_by: Some("docker0".into()), ..RULE }), [""; 0]);
        assert_eq!(with(PolicyRule { came_by: Some("lo".into()), ..RULE }), ["rule-before-guard"]);
    }

    #[test]
    fn a_local_route_may_lead_into_the_tunnel_alone() {
        let local = |link, destination: &str| {
            let mut it = facts();
            let destination = destination.parse().unwrap();
            it.local_routes = Ok(vec![Route { destination, link }]);
            ids(&it, &wanted())
        };
        assert_eq!(local(Some(2), "203.0.113.9/32"), ["rogue-route"]);
        assert_eq!(local(None, "203.0.113.9/32"), ["rogue-route"]);
        assert_eq!(local(Some(3), "203.0.113.9/32"), [""; 0]);
        assert_eq!(local(Some(1), "203.0.113.9/32"), [""; 0]);
        assert_eq!(local(Some(2), "ff00::/8"), [""; 0]);
    }
}
