//! What a new ruleset would change, and whether each change tightens or loosens.

use std::collections::BTreeSet;

use super::{Action, Table, compile, guard, text};
use crate::policy::Policy;

/// One difference between the live table and the compiled one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Change {
    /// What it means for what may leave or enter.
    pub effect: Effect,
    /// Whether it is added or removed.
    pub added: bool,
    /// Which table, chain or set.
    pub place: String,
    /// The rule or the element, in nft's words.
    pub text: String,
}

/// What a change means for what may leave or enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Less passes than before.
    Tightens,
    /// More passes than before.
    Loosens,
    /// Neither: a jump, a mark, a log.
    Neutral,
}

/// A table in words: what it lets through and what it stops, one line each.
///
/// Both the compiled table and the live one are brought into this form, so that a rule which only
/// moved is no change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Described {
    /// (place, text, opens)
    lines: BTreeSet<(String, String, Opens)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Opens {
    Yes,
    No,
    Neither,
}

impl Described {
    /// A table of ours in words.
    pub fn of(table: &Table) -> Self {
        let mut described = Described::default();
        for chain in &table.chains {
            let place = format!("{} chain {}", table.family, chain.name);
            if let Some(base) = &chain.base {
                let opens = match base.policy {
                    super::ChainPolicy::Drop => Opens::No,
                    super::ChainPolicy::Accept => Opens::Neither,
                };
                described.lines.insert((place.clone(), text::hook(base), opens));
            }
            for rule in &chain.rules {
                let opens = opens(&rule.action);
                described.lines.insert((place.clone(), text::rule(rule), opens));
            }
        }
        for set in &table.sets {
            // Every set of ours is asked by accepting rules; "tunnel" also by blocking ones, which
            // only makes its growth stricter elsewhere.
            let opens = if set.name == "name_services" { Opens::No } else { Opens::Yes };
            for element in &set.elements {
                let place = format!("{} set {}", table.family, set.name);
                described.lines.insert((place, text::element(&set.key, element), opens));
            }
        }
        described
    }

    /// Adds a line for something that is in no ruleset of ours: its removal tightens.
    pub fn add_foreign(&mut self, place: String, text: String) {
        self.lines.insert((place, text, Opens::Yes));
    }
}

fn opens(action: &Action) -> Opens {
    match action {
        Action::Accept => Opens::Yes,
        Action::Drop | Action::Reject(_) => Opens::No,
        Action::Jump(_)
        | Action::Return
        | Action::SetMark(_)
        | Action::Masquerade
        | Action::Log { .. } => Opens::Neither,
    }
}

/// The changes that lead from one to the other, in a fixed order.
pub fn changes(from: &Described, to: &Described) -> Vec<Change> {
    let removed = from.lines.difference(&to.lines).map(|line| change(line, false));
    let added = to.lines.difference(&from.lines).map(|line| change(line, true));
    let mut changes: Vec<Change> = removed.chain(added).collect();
    changes.sort();
    changes
}

/// Whether any line of the change from one policy to the other loosens. To be on the safe side, what
/// blocked something that passes under neither counts, too.
pub fn loosens(old: &Policy, new: &Policy) -> bool {
    let tables = |policy| {
        let guard = guard(policy, None);
        [Described::of(&compile(policy)), Described::of(&guard)]
    };
    let more = tables(old)
        .iter()
        .zip(&tables(new))
        .any(|(old, new)| changes(old, new).iter().any(|change| change.effect == Effect::Loosens));
    more || (old.egress_guard && !new.egress_guard) || (old.routing_guard && !new.routing_guard)
}

/// How many lines of that change tighten, and how many loosen.
pub fn counts(old: &Policy, new: &Policy) -> (usize, usize) {
    let tables = |policy: &Policy| {
        let guard = policy.egress_guard.then(|| Described::of(&guard(policy, None)));
        [Described::of(&compile(policy)), guard.unwrap_or_default()]
    };
    let all: Vec<Change> =
        tables(old).iter().zip(&tables(new)).flat_map(|(old, new)| changes(old, new)).collect();
    let count = |effect| all.iter().filter(|it| it.effect == effect).count();
    (count(Effect::Tightens), count(Effect::Loosens))
}

fn change((place, text, opens): &(String, String, Opens), added: bool) -> Change {
    let effect = match (opens, added) {
        (Opens::Yes, true) | (Opens::No, false) => Effect::Loosens,
        (Opens::Yes, false) | (Opens::No, true) => Effect::Tightens,
        (Opens::Neither, _) => Effect::Neutral,
    };
    Change { effect, added, place: place.clone(), text: text.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lets_more_out_loosens() {
        let tunnel = crate::policy::Tunnel {
            interface: "wg0".into(),
            kinds: BTreeSet::from(["wireguard"]),
            addresses: BTreeSet::from(["10.64.0.2".parse().unwrap()]),
        };
        let strict = Policy { tunnel: Some(tunnel), ..Policy::strictest() };
        let mut lan = strict.clone();
        lan.lan = vec!["192.168.1.0/24".parse().unwrap()];
        assert!(loosens(&strict, &lan));
        assert!(!loosens(&lan, &lan));
        for change in [
            |policy: &mut Policy| policy.egress_guard = false,
            |policy: &mut Policy| policy.routing_guard = false,
            |policy: &mut Policy| policy.dhcp = true,
        ] {
            let mut other = strict.clone();
            change(&mut other);
            assert!(loosens(&strict, &other), "{other:?}");
        }
    }
}
