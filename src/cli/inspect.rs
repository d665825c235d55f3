//! `check`, `plan`, `rules`: what changes nothing.

use serde::Serialize;

use super::args::{Arguments, File, Format, Rules};
use super::output::{Style, json, say, styled, warning};
use super::{BAD_CONFIGURATION, Failure};
use crate::config::{self, Notice};
use crate::lock;
use crate::netfilter::{self, LiveTable};
use crate::policy::Policy;
use crate::ruleset::plan::{Change, Described, Effect, changes};
use crate::ruleset::{self, Family, Ruleset, Table, expression, text};

pub(super) fn check(arguments: &Arguments, options: &File) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Report {
        valid: bool,
        errors: Vec<String>,
        warnings: Vec<String>,
        notices: Vec<String>,
    }
    let path = options.file.as_ref().unwrap_or(&arguments.config);
    let loaded = config::load(path);
    let words = |list: &[Notice]| {
        list.iter().map(|it| format!("{}: {}", it.location, it.message)).collect::<Vec<_>>()
    };
    if arguments.json {
        let report = match &loaded {
            Ok(config) => Report {
                valid: true,
                errors: Vec::new(),
                warnings: words(&config::check::warnings(config)),
                notices: words(&config.notices),
            },
            Err(error) => Report {
                valid: false,
                errors: error.problems().iter().map(ToString::to_string).collect(),
                warnings: Vec::new(),
                notices: Vec::new(),
            },
        };
        json(&report);
        return Ok(if report.valid { 0 } else { BAD_CONFIGURATION });
    }
    let config = loaded?;
    for line in words(&config::check::warnings(&config)) {
        warning(&line);
    }
    for line in words(&config.notices) {
        say(&format!("note: {line}"));
    }
    say(&format!("{}: {}", path.display(), styled(Style::Green, "valid")));
    Ok(0)
}

pub(super) fn rules(arguments: &Arguments, options: &Rules) -> Result<u8, Failure> {
    let policy = match options.strictest {
        true => Policy::strictest(),
        false => Policy::from_config(&config::load(&arguments.config)?),
    };
    let egress = (policy.egress_guard && !options.strictest).then(|| live_guard(&policy));
    let ruleset = Ruleset { inet: ruleset::compile(&policy), egress };
    if arguments.json || options.format == Format::Json {
        json(&ruleset.tables().map(table_json).collect::<Vec<_>>());
        return Ok(0);
    }
    let scripts: Vec<String> = ruleset.tables().map(text::script).collect();
    say(scripts.join("\n").trim_end());
    Ok(0)
}

/// The guard in the form that is loaded, or as the newest kernels take it.
fn live_guard(policy: &Policy) -> Table {
    let live = lock::read().ok();
    let per_link = live.as_ref().and_then(|live| {
        let table = live.egress.as_ref()?;
        (!table.chains.contains_key("egress")).then(|| netfilter::guarded(policy, &live.links))
    });
    match per_link {
        Some(links) => ruleset::guard(policy, Some(&netfilter::references(&links))),
        None => ruleset::guard(policy, None),
    }
}

fn table_json(table: &Table) -> serde_json::Value {
    let sets = table.sets.iter().map(|set| {
        let elements: Vec<String> =
            set.elements.iter().map(|it| text::element(&set.key, it)).collect();
        let key: Vec<&str> = set.key.iter().map(|kind| kind.set_type_name()).collect();
        serde_json::json!({ "name": set.name, "type": key, "elements": elements })
    });
    let chains = table.chains.iter().map(|chain| {
        let rules: Vec<serde_json::Value> = chain
            .rules
            .iter()
            .map(|rule| {
                serde_json::json!({
                    "match": rule.matches.iter().map(text::condition).collect::<Vec<_>>(),
                    "action": text::action(&rule.action),
                    "reason": rule.comment,
                })
            })
            .collect();
        let hook = chain.base.as_ref().map(|base| base.hook.name());
        let priority = chain.base.as_ref().map(|base| base.priority);
        serde_json::json!({
            "name": chain.name, "hook": hook, "priority": priority, "rules": rules,
        })
    });
    serde_json::json!({
        "family": table.family.to_string(),
        "name": ruleset::TABLE,
        "sets": sets.collect::<Vec<_>>(),
        "chains": chains.collect::<Vec<_>>(),
    })
}

pub(super) fn plan(arguments: &Arguments, options: &File) -> Result<u8, Failure> {
    let config = config::load(options.file.as_ref().unwrap_or(&arguments.config))?;
    let policy = Policy::from_config(&config);
    let live = lock::read()?;
    let changes = planned(&policy, &live);
    if arguments.json {
        json(&serde_json::json!({ "locked": live.inet.is_some(), "changes": changes }));
        return Ok(0);
    }
    if live.inet.is_none() {
        say("not locked now: everything may leave; locking tightens it to what follows");
    }
    if changes.is_empty() {
        say("no change");
    }
    for change in &changes {
        let effect = match change.effect {
            Effect::Tightens => styled(Style::Green, "tightens"),
            Effect::Loosens => styled(Style::Red, "loosens "),
            Effect::Neutral => "neutral ".to_owned(),
        };
        let sign = if change.added { '+' } else { '-' };
        say(&format!("{effect} {sign} {}: {}", change.place, change.text));
    }
    Ok(0)
}

/// What would change in both tables and in the routing guard.
fn planned(policy: &Policy, live: &lock::Live) -> Vec<Change> {
    let mut all = Vec::new();
    let inet = ruleset::compile(policy);
    all.extend(table_changes(live.inet.as_ref(), Some(&inet), Family::Inet));
    let guard = policy.egress_guard.then(|| live_guard(policy));
    all.extend(table_changes(live.egress.as_ref(), guard.as_ref(), Family::Netdev));
    let guard = crate::routing::Guard::from_policy(policy);
    let routing = |added: bool| {
        move |text: String| Change {
            effect: Effect::Neutral,
            added,
            place: "routing guard".into(),
            text,
        }
    };
    all.extend(live.routing.extra(&guard).into_iter().map(routing(false)));
    all.extend(live.routing.missing(&guard).into_iter().map(routing(true)));
    all
}

/// Against no table at all everything tightens: it was open.
fn table_changes(live: Option<&LiveTable>, table: Option<&Table>, family: Family) -> Vec<Change> {
    let from = live.map(|live| describe(live, family)).unwrap_or_default();
    let to = table.map(Described::of).unwrap_or_default();
    let mut changes = changes(&from, &to);
    if live.is_none() {
        changes.iter_mut().for_each(|change| change.effect = Effect::Tightens);
    }
    changes
}

/// The live table in the compiled one's words; what has none there is foreign.
fn describe(live: &LiveTable, family: Family) -> Described {
    let mut table = Table { family, sets: Vec::new(), chains: Vec::new() };
    let mut foreign = Vec::new();
    for (name, chain) in &live.chains {
        let place = format!("{family} chain {name}");
        let base = chain.base.as_ref().and_then(|base| base.raise(family));
        if base.is_none() && chain.base.is_some() {
            foreign.push((place.clone(), "a base chain of another kind".to_owned()));
        }
        let mut rules = Vec::new();
        for rule in &chain.rules {
            match expression::raise(&rule.expressions, &rule.comment) {
                Some(rule) => rules.push(rule),
                None => foreign.push((place.clone(), format!("a foreign rule {}", rule.comment))),
            }
        }
        table.chains.push(ruleset::Chain { name: name.clone(), base, rules });
    }
    for (name, set) in &live.sets {
        match set.raise(name) {
            Some(set) => table.sets.push(set),
            None => foreign.push((format!("{family} set {name}"), "a foreign set".to_owned())),
        }
    }
    for (_, name) in &live.objects {
        foreign.push((format!("{family} object {name}"), "a foreign object".to_owned()));
    }
    for name in &live.flowtables {
        foreign.push((format!("{family} flowtable {name}"), "a foreign flowtable".to_owned()));
    }
    let mut described = Described::of(&table);
    foreign.into_iter().for_each(|(place, text)| described.add_foreign(place, text));
    described
}
