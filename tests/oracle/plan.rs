//! What `plan` says of a change, against what the model lets pass before and after it.

use killswitch::dice::Dice;
use killswitch::policy::Policy;
use killswitch::ruleset::{Rule, Ruleset, Table, plan};
use proptest::prelude::*;

use crate::packets::{self, Step};
use crate::{SMALLER, links, model, policies};

/// Packets near each of both policies.
const PACKETS: usize = 150;

/// Takes over a part of another policy.
type Takeover = fn(&mut Policy, &Policy);

const PARTS: [Takeover; 13] = [
    |it, other| it.mark = other.mark,
    |it, other| it.tunnel.clone_from(&other.tunnel),
    |it, other| tunnels(it, other, |it, other| it.interface.clone_from(&other.interface)),
    |it, other| tunnels(it, other, |it, other| it.kinds.clone_from(&other.kinds)),
    |it, other| tunnels(it, other, |it, other| it.addresses.clone_from(&other.addresses)),
    |it, other| it.servers.clone_from(&other.servers),
    |it, other| it.dhcp = other.dhcp,
    |it, other| {
        it.lan.clone_from(&other.lan);
        it.lan_dns.clone_from(&other.lan_dns);
    },
    |it, other| it.ntp.clone_from(&other.ntp),
    |it, other| it.inbound.clone_from(&other.inbound),
    |it, other| {
        it.internal.clone_from(&other.internal);
        it.internal_ports.clone_from(&other.internal_ports);
    },
    |it, other| it.forward_into_tunnel = other.forward_into_tunnel,
    |it, other| it.egress_guard = other.egress_guard,
];

fn tunnels(
    it: &mut Policy,
    other: &Policy,
    take: fn(&mut killswitch::policy::Tunnel, &killswitch::policy::Tunnel),
) {
    if let (Some(it), Some(other)) = (&mut it.tunnel, &other.tunnel) {
        take(it, other);
    }
}

/// A policy, and what becomes of it by a small change.
fn change(dice: &mut Dice) -> (Policy, Policy) {
    let mut old = policies::policy(dice);
    // Where more may leave without one is said whatever the tables say.
    old.routing_guard = true;
    let other = policies::policy(dice);
    let mut new = old.clone();
    for _ in 0..=dice.below(2) {
        dice.pick(&PARTS)(&mut new, &other);
    }
    (old, new)
}

/// Without what only narrows an allowance, or is asked for one's sake that the new policy has not: it
/// goes with the allowance, and is no loosening.
fn unnarrowed(old: &Policy, new: &Policy) -> Ruleset {
    let answers = !new.lan.is_empty() || !new.inbound.is_empty();
    let is_missed = |rule: &Rule| !plan::narrows(rule) && (answers || !plan::closes_answers(rule));
    let widen = |table: &mut Table| {
        table.chains.iter_mut().for_each(|chain| chain.rules.retain(is_missed));
    };
    let mut ruleset = model::ruleset(old);
    widen(&mut ruleset.inet);
    ruleset.egress.iter_mut().for_each(widen);
    ruleset
}

/// A packet that passes by the new policy only.
fn let_in(dice: &mut Dice, old: &Policy, new: &Policy) -> Option<Step> {
    let (before, after) = (unnarrowed(old, new), model::ruleset(new));
    let steps = [old, new].map(|policy| packets::steps(dice, policy, &links(), PACKETS));
    steps.into_iter().flatten().find(|Step { packet, way, .. }| {
        !model::may_pass(&before, packet, *way) && model::may_pass(&after, packet, *way)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_lets_a_packet_pass_loosens(seed in any::<u64>()) {
        let mut dice = Dice::new(seed);
        let (old, new) = change(&mut dice);
        if !plan::loosens(&old, &new) {
            let passes = let_in(&mut dice, &old, &new);
            prop_assert!(passes.is_none(), "{passes:#?}\n{old:#?}\n{new:#?}");
        }
    }

    #[test]
    fn what_is_only_taken_away_does_not_loosen(seed in any::<u64>()) {
        let old = policies::policy(&mut Dice::new(seed));
        for (what, take) in SMALLER {
            let mut new = old.clone();
            take(&mut new);
            // Whoever is behind such a bridge may then call itself what it likes (threat 75).
            let asks_guests = !old.lan.is_empty() || !old.inbound.is_empty();
            if what == "internal" && asks_guests {
                continue;
            }
            prop_assert!(!plan::loosens(&old, &new), "{what}: {old:#?}");
        }
    }
}

/// A generator whose changes all loosen would prove nothing.
#[test]
fn changes_lie_on_both_sides() {
    const CHANGES: usize = 200;
    let mut dice = Dice::new(1);
    let loosening =
        (0..CHANGES).map(|_| change(&mut dice)).filter(|(old, new)| plan::loosens(old, new));
    let count = loosening.count();
    assert!((CHANGES / 5..CHANGES * 4 / 5).contains(&count), "{count}");
}
