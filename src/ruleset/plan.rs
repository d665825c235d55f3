//! What a new ruleset would change, and whether each change tightens or loosens.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::BitOr;

use super::{
    Action, Chain, ChainKind, ChainPolicy, Field, Rule, Table, Test, compile, guard, text,
};
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
    /// Neither: a mark, a log, what goes with that which asked it.
    Neutral,
}

/// A table in words: what it lets through and what it stops, one line each.
///
/// Both the compiled table and the live one are brought into this form, so that a rule which only
/// moved is no change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Described {
    /// (place, text)
    lines: BTreeMap<(String, String), Does>,
    /// Chains that filter what passes a hook: before there is one, all passes there.
    filters: BTreeSet<String>,
    /// Sets, chains without a hook, chains that translate: nothing is stopped by them alone.
    inner: BTreeSet<String>,
    /// Whether a LAN or a service's clients are answered.
    answers: bool,
}

/// What a line is for. An element of a set may be for both: the tunnel's addresses may use the
/// tunnel, and no other link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Does {
    /// Something passes because of it.
    opens: bool,
    /// Something is stopped because of it.
    closes: bool,
    /// As long as somebody outside is answered, something is stopped because of it.
    closes_answers: bool,
}

const NOTHING: Does = Does { opens: false, closes: false, closes_answers: false };
const OPENS: Does = Does { opens: true, ..NOTHING };
const CLOSES: Does = Does { closes: true, ..NOTHING };
const CLOSES_ANSWERS: Does = Does { closes_answers: true, ..NOTHING };

impl Does {
    fn opposite(self) -> Self {
        Does { opens: self.closes, closes: self.opens, ..NOTHING }
    }
}

impl BitOr for Does {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Does {
            opens: self.opens || other.opens,
            closes: self.closes || other.closes,
            closes_answers: self.closes_answers || other.closes_answers,
        }
    }
}

impl Described {
    /// A table of ours in words.
    pub fn of(table: &Table) -> Self {
        let mut described = Described::default();
        for chain in &table.chains {
            described.add_chain(table, chain);
        }
        for set in &table.sets {
            let place = format!("{} set {}", table.family, set.name);
            let does = set_does(table, &set.name);
            for element in &set.elements {
                described.add(&place, text::element(&set.key, element), does);
            }
            described.answers |= set.name.starts_with("lan") || is_of_services(&set.name);
            described.inner.insert(place);
        }
        described
    }

    fn add_chain(&mut self, table: &Table, chain: &Chain) {
        let place = format!("{} chain {}", table.family, chain.name);
        if let Some(base) = &chain.base {
            let does = match base.policy {
                ChainPolicy::Drop => CLOSES,
                ChainPolicy::Accept => NOTHING,
            };
            self.add(&place, text::hook(base), does);
        }
        for (at, rule) in chain.rules.iter().enumerate() {
            self.add(&place, text::rule(rule), rule_does(table, chain, at));
        }
        let filters = chain.base.as_ref().is_some_and(|base| base.kind == ChainKind::Filter);
        let places = if filters { &mut self.filters } else { &mut self.inner };
        places.insert(place);
    }

    fn add(&mut self, place: &str, text: String, does: Does) {
        let line = self.lines.entry((place.to_owned(), text)).or_default();
        *line = *line | does;
    }

    /// Adds a line for something that is in no ruleset of ours: its removal tightens.
    pub fn add_foreign(&mut self, place: String, text: String) {
        self.add(&place, text, OPENS);
    }
}

/// Whether nothing passes: a drop before such rules only keeps the sender from being told.
fn refuses_all(rules: &[Rule]) -> bool {
    rules.iter().all(|rule| matches!(rule.action, Action::Drop | Action::Reject(_)))
        && rules.iter().any(|rule| rule.matches.is_empty())
}

fn is_of_services(set: &str) -> bool {
    set.starts_with("inbound")
}

/// Whether a rule only narrows what another one opens, and is there as long as that one: alone it is no
/// wish of the configuration's, and with the other it goes unmissed.
pub fn narrows(rule: &Rule) -> bool {
    let asks_set = |wanted: fn(&str) -> bool| {
        rule.matches.iter().any(|it| matches!(&it.test, Test::In(set) if wanted(set)))
    };
    match rule.action {
        Action::Drop => asks(rule, Field::FibDaddrIif) || asks_set(|set| set == "lease_servers"),
        Action::Return => asks_set(is_of_services),
        _ => false,
    }
}

/// Whether a rule stops what comes from where its sender is not, which is asked only as long as somebody
/// outside is answered.
pub fn closes_answers(rule: &Rule) -> bool {
    matches!(rule.action, Action::Drop) && asks(rule, Field::FibSaddrIif)
}

fn asks(rule: &Rule, field: Field) -> bool {
    rule.matches.iter().any(|it| it.fields.contains(&field))
}

/// What leaves a chain early is spared what the rest of it does.
fn rule_does(table: &Table, chain: &Chain, at: usize) -> Does {
    let (rule, rest) = (&chain.rules[at], &chain.rules[at + 1..]);
    match rule.action {
        Action::Drop if refuses_all(rest) => NOTHING,
        Action::Return if !narrows(rule) => verdicts(table, rest).opposite(),
        _ => verdict(table, rule),
    }
}

/// The verdicts that these rules, and the chains that they jump to, can end in. The kernel refuses
/// chains that jump in a circle.
fn verdicts(table: &Table, rules: &[Rule]) -> Does {
    rules.iter().map(|rule| verdict(table, rule)).fold(NOTHING, BitOr::bitor)
}

fn verdict(table: &Table, rule: &Rule) -> Does {
    match &rule.action {
        _ if narrows(rule) => NOTHING,
        _ if closes_answers(rule) => CLOSES_ANSWERS,
        // What is masqueraded gets the source that the tunnel asks for.
        Action::Accept | Action::Masquerade => OPENS,
        Action::Drop | Action::Reject(_) => CLOSES,
        Action::Jump(target) => {
            table.chain(target).map_or(NOTHING, |chain| verdicts(table, &chain.rules))
        }
        Action::Return | Action::SetMark(_) | Action::Log { .. } => NOTHING,
    }
}

/// What the rules do that ask a set.
fn set_does(table: &Table, set: &str) -> Does {
    let asks = |rule: &Rule| {
        rule.matches.iter().any(|it| matches!(&it.test, Test::In(name) if name == set))
    };
    let rules = |chain: &Chain| {
        let asking = chain.rules.iter().enumerate().filter(|(_, rule)| asks(rule));
        asking.map(|(at, _)| rule_does(table, chain, at)).fold(NOTHING, BitOr::bitor)
    };
    table.chains.iter().map(rules).fold(NOTHING, BitOr::bitor)
}

/// The changes that lead from one table to the other, in a fixed order. Where there was none all
/// passed, so that nothing loosens.
pub fn changes(from: Option<&Described>, to: Option<&Described>) -> Vec<Change> {
    let none = Described::default();
    let (old, new) = (from.unwrap_or(&none), to.unwrap_or(&none));
    // Whether that stops anything is told by the jumps and look-ups that come or go with it.
    let is_whole = |place: &String| old.inner.contains(place) != new.inner.contains(place);
    let removed = old.lines.iter().filter(|(line, _)| !new.lines.contains_key(*line));
    let removed = removed.map(|(line, does)| {
        let closes = does.closes || (does.closes_answers && new.answers);
        change(line, false, closes && !is_whole(&line.0), does.opens)
    });
    let added = new.lines.iter().filter(|(line, _)| !old.lines.contains_key(*line));
    let added = added.map(|(line, does)| {
        let is_new_filter = new.filters.contains(&line.0) && !old.filters.contains(&line.0);
        change(line, true, does.opens && !is_new_filter, does.closes && !is_whole(&line.0))
    });
    let mut changes: Vec<Change> = removed.chain(added).collect();
    if from.is_none() {
        changes.iter_mut().for_each(|change| change.effect = Effect::Tightens);
    }
    changes.sort();
    changes
}

fn change((place, text): &(String, String), added: bool, loosens: bool, tightens: bool) -> Change {
    let effect = match (loosens, tightens) {
        (true, _) => Effect::Loosens,
        (false, true) => Effect::Tightens,
        (false, false) => Effect::Neutral,
    };
    Change { effect, added, place: place.clone(), text: text.clone() }
}

/// Whether any line of the change from one policy to the other loosens.
pub fn loosens(old: &Policy, new: &Policy) -> bool {
    between(old, new).iter().any(|change| change.effect == Effect::Loosens)
        || (old.routing_guard && !new.routing_guard)
}

/// How many lines of that change tighten, and how many loosen.
pub fn counts(old: &Policy, new: &Policy) -> (usize, usize) {
    let all = between(old, new);
    let count = |effect| all.iter().filter(|it| it.effect == effect).count();
    (count(Effect::Tightens), count(Effect::Loosens))
}

/// The changes of both tables.
fn between(old: &Policy, new: &Policy) -> Vec<Change> {
    let inet = |policy| Described::of(&compile(policy));
    let egress = |policy: &Policy| policy.egress_guard.then(|| Described::of(&guard(policy, None)));
    let mut all = changes(Some(&inet(old)), Some(&inet(new)));
    all.extend(changes(egress(old).as_ref(), egress(new).as_ref()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strict() -> Policy {
        let tunnel = crate::policy::Tunnel {
            interface: "wg0".into(),
            kinds: BTreeSet::from(["wireguard"]),
            addresses: ["10.64.0.2", "10.65.0.2"].map(|it| it.parse().unwrap()).into(),
        };
        Policy { tunnel: Some(tunnel), ..Policy::strictest() }
    }

    #[test]
    fn what_lets_more_out_loosens() {
        let strict = strict();
        let mut lan = strict.clone();
        lan.lan = vec!["192.168.1.0/24".parse().unwrap()];
        assert!(loosens(&strict, &lan));
        assert!(!loosens(&lan, &lan));
        let mut service = strict.clone();
        service.inbound.insert(crate::policy::Inbound {
            protocol: crate::policy::Protocol::Tcp,
            port: 22,
            from: "192.168.1.0/24".parse().unwrap(),
        });
        assert!(loosens(&strict, &service));
        assert!(!loosens(&service, &strict), "what is dropped then is rejected");
        // With it goes what closes some of it.
        assert!(!loosens(&lan, &strict));
        // Who is behind such a bridge may then call itself what it likes, if anybody is answered.
        for policy in [&strict, &service] {
            let docker = crate::policy::LinkPattern::Exact("docker0".into());
            let bridge = Policy { internal: [docker].into(), ..policy.clone() };
            assert_eq!(loosens(&bridge, policy), !policy.inbound.is_empty());
        }
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

    /// Its addresses and its link are asked by what opens the tunnel, and by what keeps them off all
    /// other links.
    #[test]
    fn another_tunnel_loosens() {
        let others: [fn(&mut crate::policy::Tunnel); 4] = [
            |it| it.addresses = it.addresses.iter().copied().take(1).collect(),
            |it| it.addresses.extend(["fd00:64::2".parse::<std::net::IpAddr>().unwrap()]),
            |it| it.interface = "wg1".into(),
            |it| it.kinds.extend(["tun"]),
        ];
        for egress_guard in [true, false] {
            let old = Policy { egress_guard, ..strict() };
            for change in others {
                let mut new = old.clone();
                change(new.tunnel.as_mut().unwrap());
                assert!(loosens(&old, &new), "{new:?}");
            }
        }
    }

    #[test]
    fn the_guard_of_another_link_tightens() {
        let links = [(2, "eth0"), (3, "eth1")]
            .map(|(index, name)| super::super::LinkRef { index, name: name.into() });
        let [one, both] =
            [&links[..1], &links].map(|links| Described::of(&guard(&strict(), Some(links))));
        let effects = |from, to| {
            let changes = changes(from, to);
            changes.into_iter().map(|change| change.effect).collect::<BTreeSet<_>>()
        };
        assert!(!effects(Some(&one), Some(&both)).contains(&Effect::Loosens));
        assert!(effects(Some(&both), Some(&one)).contains(&Effect::Loosens));
        assert_eq!(effects(None, Some(&one)), BTreeSet::from([Effect::Tightens]));
        assert!(effects(Some(&one), None).contains(&Effect::Loosens));
    }
}
