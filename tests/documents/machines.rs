//! SECURITY.md's table of scenarios is made from tests/vm/results; what no run has recorded says so.

use std::collections::{BTreeMap, BTreeSet};

use super::{read, root};

const BEGIN: &str = "<!-- begin of tests/vm/results -->\n";
const END: &str = "<!-- end of tests/vm/results -->\n";
const SUITES: [&str; 3] = ["bookworm", "trixie", "sid"];

#[test]
fn the_table_of_scenarios_is_what_was_seen() {
    let text = read("SECURITY.md");
    let (before, rest) = text.split_once(BEGIN).expect("the begin of the table");
    let (table, after) = rest.split_once(END).expect("the end of the table");
    let seen = seen(&read("tests/vm/results"));
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        let new = format!("{before}{BEGIN}{seen}{END}{after}");
        std::fs::write(root().join("SECURITY.md"), new).expect("SECURITY.md");
        return;
    }
    assert_eq!(table, seen, "UPDATE_EXPECTED=1 cargo test --test documents writes it anew");
}

/// A row for each scenario, a column for each release.
fn seen(results: &str) -> String {
    let mut cells = BTreeMap::new();
    let scenarios = scenarios();
    for line in results.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [suite, scenario, rest @ ..] = fields.as_slice() else { panic!("{line}") };
        assert!(scenarios.contains(*scenario), "tests/vm has no scenario {scenario}");
        cells.insert((*suite, *scenario), cell(rest));
    }
    let mut table = format!("\n| scenario | {} |\n| --- | --- | --- | --- |\n", SUITES.join(" | "));
    for scenario in scenarios {
        let row = SUITES.map(|suite| {
            cells.get(&(suite, scenario.as_str())).cloned().unwrap_or_else(|| "not run".into())
        });
        table.push_str(&format!("| {} | {} |\n", scenario.replace('_', " "), row.join(" | ")));
    }
    table + "\n"
}

/// Their names, as tests/vm writes them.
fn scenarios() -> BTreeSet<String> {
    let named = |file: &str, before: &'static str| -> Vec<String> {
        let text = read(file);
        let parts = text.split(before).skip(1).filter_map(|part| part.split('"').next());
        parts.map(str::to_owned).collect()
    };
    let mut names = BTreeSet::from_iter(named("tests/vm/events.rs", "Event::new(\""));
    names.extend(named("tests/vm/boots.rs", "\n    (\""));
    names
}

fn cell(fields: &[&str]) -> String {
    match fields {
        ["held", control, "0", back] => format!("0 of {control}; {back} s"),
        ["held", control, excused, back] => format!("{excused} of {control} (limit); {back} s"),
        ["impossible", why] => (*why).to_owned(),
        other => panic!("{other:?}"),
    }
}
