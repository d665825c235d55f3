//! `table.txt`: a packet on a line, what is said of it below. `UPDATE_EXPECTED=1` rewrites it.

use std::collections::BTreeMap;
use std::path::Path;

use killswitch::explain::{Answer, Remedy};
use killswitch::ruleset::model::Verdict;

use crate::{Site, packet};

#[test]
fn what_is_said_of_each_packet() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/explain/table.txt");
    let wanted = std::fs::read_to_string(&path).expect("the table");
    let sites: BTreeMap<&str, Site> = ["usual", "bare", "gateway", "none"]
        .into_iter()
        .map(|name| (name, Site::named(name)))
        .collect();
    let mut actual = String::new();
    let asked = wanted.lines().filter(|line| !line.is_empty() && !line.starts_with(' '));
    let mut count = 0;
    for line in asked {
        let (name, text) = line.split_once(": ").expect("CONFIGURATION: PACKET");
        actual.push_str(&format!("{line}\n"));
        for said in said(&sites[name], text) {
            actual.push_str(&format!("    {said}\n"));
        }
        count += 1;
    }
    assert!(count >= 80, "{count} packets");
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(&path, &actual).expect("the table");
        return;
    }
    let differs = actual.lines().zip(wanted.lines()).find(|(actual, wanted)| actual != wanted);
    assert!(actual == wanted, "first difference (now, expected): {differs:#?}");
}

fn said(site: &Site, text: &str) -> Vec<String> {
    let read = match packet(text) {
        Ok(read) => read,
        Err(why) => return vec![format!("unread: {why}")],
    };
    let mut lines = match site.answer(&read.words) {
        Ok(answer) => in_words(site, &answer),
        Err(why) => vec![format!("incomplete: {why}")],
    };
    lines.extend(read.assumed.iter().map(|what| format!("assumed: {what}")));
    lines
}

fn in_words(site: &Site, answer: &Answer) -> Vec<String> {
    let decision = &answer.decision;
    let chain = decision.chain.as_deref().unwrap_or_default();
    let mut lines = vec![
        format!("{:?}: {} ({} {chain})", decision.verdict, decision.reason, decision.layer),
        format!("cause: {}", site.plain(&answer.cause.words)),
    ];
    let stops = answer.layers.iter().filter(|layer| layer.verdict != Verdict::Accept);
    let stops: Vec<String> =
        stops.map(|it| format!("{} {}", it.layer, it.chain.as_deref().unwrap_or("-"))).collect();
    if !stops.is_empty() {
        lines.push(format!("stopped by: {}", stops.join(", ")));
    }
    match &answer.remedy {
        None => {}
        Some(Err(why)) => lines.push(format!("never: {why}")),
        Some(Ok(remedy)) => lines.extend(remedy_in_words(site, remedy)),
    }
    lines
}

fn remedy_in_words(site: &Site, remedy: &Remedy) -> Vec<String> {
    let mut lines = Vec::new();
    for it in &remedy.add {
        let sign = if it.item { "+=" } else { "=" };
        let place =
            it.place.as_ref().map(|place| format!(" at {}", site.plain(place))).unwrap_or_default();
        lines.push(format!("add: {} {sign} {}{place}", it.key, it.value));
    }
    lines.extend(remedy.exception.iter().map(|command| format!("or: {command}")));
    lines.push(format!("risk: {}", remedy.risk));
    lines
}
