//! Every layer that a packet meets, and what each would do to it.

use serde::Serialize;

use super::Direction;
use crate::policy::Policy;
use crate::routing::{Action, Family, Guard};
use crate::ruleset::model::{Decision, Packet, Verdict};
use crate::ruleset::{self, Hook, Ruleset, TABLE, text};

/// What one layer does to the packet, whatever the others do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// "routing guard", or the table: "inet killswitch", "netdev killswitch" (the egress guard).
    pub layer: String,
    /// The chain that decides; of the routing guard none.
    pub chain: Option<String>,
    /// What becomes of the packet there.
    pub verdict: Verdict,
    /// The rule, as nft or `ip rule` writes it; none: the chain's policy.
    pub rule: Option<String>,
    /// Why, in words.
    pub reason: String,
}

/// In the order in which the packet meets them.
pub(super) fn walk(
    policy: &Policy,
    ruleset: &Ruleset,
    packet: &Packet,
    direction: Direction,
) -> Vec<Layer> {
    let mut layers: Vec<(Hook, Layer)> = ruleset
        .walk(direction.hooks(), packet)
        .iter()
        .map(|(hook, decision)| (*hook, of_table(decision)))
        .collect();
    let routed = match direction {
        Direction::Sent => Some(0),
        Direction::Forwarded => layers.iter().position(|(hook, _)| *hook == Hook::Forward),
        Direction::Received | Direction::Frame => None,
    };
    if let Some(at) = routed
        && let Some(layer) = routing(policy, packet)
    {
        layers.insert(at, (Hook::Output, layer));
    }
    layers.into_iter().map(|(_, layer)| layer).collect()
}

pub(super) fn of_table(decision: &Decision<'_>) -> Layer {
    let reason = decision.rule.map(|rule| rule.comment.as_str()).unwrap_or("the chain's policy");
    Layer {
        layer: format!("{} {TABLE}", decision.family),
        chain: Some(decision.chain.to_owned()),
        verdict: decision.verdict,
        rule: decision.rule.map(text::rule),
        reason: reason.to_owned(),
    }
}

/// Why the routing guard lets pass what it lets pass by no default route.
pub const NEAR_ROUTE: &str = "a route of table main, no default one";

/// What the policy rules do, where table main has a route; `None` without a routing guard.
fn routing(policy: &Policy, packet: &Packet) -> Option<Layer> {
    let layer = |verdict, rule: Option<String>, reason: &str| {
        let (layer, reason) = ("routing guard".into(), reason.into());
        Some(Layer { layer, chain: None, verdict, rule, reason })
    };
    let oif = packet.oif.as_ref()?;
    if !policy.routing_guard {
        return None;
    }
    if oif.loopback || packet.to_this_machine {
        return layer(Verdict::Accept, None, "table local comes first");
    }
    if asks_no_rule(packet) {
        return layer(
            Verdict::Accept,
            None,
            "asks no rule: multicast, broadcast or the kernel's own",
        );
    }
    let (tunnel, internal) = (is_tunnel(policy, oif), is_internal(policy, oif));
    let mut from = 0;
    for rule in Guard::from_policy(policy).rules.iter().filter(|rule| holds(rule, packet)) {
        if rule.preference < from {
            continue;
        }
        let verdict = match rule.action {
            Action::Goto(preference) => {
                from = preference;
                continue;
            }
            Action::Main | Action::MainNear => Verdict::Accept,
            Action::MainInternal if internal => Verdict::Accept,
            Action::Table if tunnel => Verdict::Accept,
            Action::MainInternal | Action::Table => continue,
            Action::Unreachable | Action::Other => Verdict::Reject,
        };
        let reason = match verdict {
            Verdict::Accept if tunnel => "a route into the tunnel",
            Verdict::Accept if rule.action == Action::MainNear => NEAR_ROUTE,
            Verdict::Accept => "a route of table main",
            _ => "unreachable but by the tunnel",
        };
        return layer(verdict, Some(rule.to_string()), reason);
    }
    layer(Verdict::Accept, None, "no rule")
}

/// A socket that is bound to its link asks no rule for IPv4 multicast and broadcast; IPv6 multicast has
/// routes in table local; neighbour discovery is the kernel's.
fn asks_no_rule(packet: &Packet) -> bool {
    let to = packet.destination;
    let broadcast = matches!(to, std::net::IpAddr::V4(it) if it.is_broadcast());
    let neighbours = packet.protocol == 58 && matches!(packet.icmp_type, Some(133..=137));
    to.is_multicast() || broadcast || neighbours
}

pub(super) fn is_tunnel(policy: &Policy, link: &ruleset::model::LinkView) -> bool {
    policy.tunnel.as_ref().is_some_and(|it| it.is(&link.name, link.kind.as_deref()))
}

fn is_internal(policy: &Policy, link: &ruleset::model::LinkView) -> bool {
    link.kind.as_deref() == Some("bridge")
        && policy.internal.iter().any(|it| it.matches(&link.name))
}

fn holds(rule: &crate::routing::Rule, packet: &Packet) -> bool {
    rule.family == Family::of(packet.destination)
        && rule.mark.is_none_or(|mark| mark == packet.mark)
        && rule.to.is_none_or(|net| net.contains(&packet.destination))
        && (!rule.local || packet.iif.is_none())
        && rule.protocol.is_none_or(|protocol| protocol == packet.protocol)
        && rule.source_port.is_none_or(|port| packet.ports.is_some_and(|it| it.0 == port))
        && rule.destination_port.is_none_or(|port| packet.ports.is_some_and(|it| it.1 == port))
}
