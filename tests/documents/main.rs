//! The documents are true: what they name exists, and what exists is named.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

mod interface;
mod machines;
mod manual;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join(folder)).expect(folder) {
        let path = entry.expect("an entry").path();
        let name = path.strip_prefix(root()).expect("below the root").display().to_string();
        if path.is_dir() {
            found.extend(sources(&name));
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
    found
}

/// The numbers of the tests named `tNN_...`.
fn threat_tests() -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    for path in sources("tests").into_iter().chain(sources("src")) {
        let text = std::fs::read_to_string(&path).expect("a source");
        for after in text.split("fn t").skip(1) {
            let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
            if digits.len() >= 2 && after[digits.len()..].starts_with('_') {
                numbers.insert(digits.parse().expect("digits"));
            }
        }
    }
    numbers
}

/// (number, last column) of SECURITY.md's table of threats.
fn threat_rows() -> Vec<(u32, String)> {
    let text = read("SECURITY.md");
    let table = text.split("## Threats").nth(1).expect("the table of threats");
    table
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            Some((cells.first()?.parse().ok()?, (*cells.last()?).to_owned()))
        })
        .collect()
}

#[test]
fn every_threat_has_a_row_and_every_row_its_test() {
    let rows = threat_rows();
    let numbers: Vec<u32> = rows.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=77).collect::<Vec<_>>());
    let tests = threat_tests();
    for (number, test) in &rows {
        if let Some(named) = test.strip_prefix("`t").and_then(|it| it.strip_suffix('`'))
            && let Ok(named) = named.parse::<u32>()
        {
            assert_eq!(named, *number);
            assert!(tests.contains(number), "SECURITY.md names t{number:02}, which is no test");
        } else {
            assert!(!tests.contains(number), "SECURITY.md does not name the test t{number:02}");
        }
    }
}

#[test]
fn the_readme_gives_commands_that_exist() {
    let makefile = read("Makefile");
    let readme = read("README.md");
    for target in ["demo", "test"] {
        assert!(readme.contains(&format!("make {target}")), "README.md lacks make {target}");
        assert!(makefile.contains(&format!("\n{target}:")), "the Makefile lacks {target}");
    }
}

/// What decides does no I/O and reads no clock.
#[test]
fn the_core_does_not_import_the_edges() {
    let forbidden = [
        "std::fs",
        "std::io",
        "std::process",
        "Instant",
        "SystemTime",
        "std::env",
        "std::thread",
        "UdpSocket",
        "TcpStream",
        "tokio",
        "nix::",
        "netlink",
        "crate::netfilter",
        "crate::routing",
        "crate::lock",
        "crate::cli",
        "crate::lab",
    ];
    let core = ["src/ruleset", "src/engine"].into_iter().flat_map(sources);
    let core = core
        .chain(["src/policy.rs", "src/exceptions.rs", "src/dice.rs"].map(|file| root().join(file)));
    for path in core {
        let text = std::fs::read_to_string(&path).expect("a source");
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            for word in forbidden {
                assert!(!line.contains(word), "{}: {line}", path.display());
            }
        }
    }
}

/// Every module of the program has its row, every folder of tests its words.
#[test]
fn the_architecture_names_every_part() {
    let text = read("ARCHITECTURE.md");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    for line in read("src/lib.rs").lines() {
        let Some(name) = line.strip_suffix(';').and_then(|it| it.split_once("mod ")) else {
            continue;
        };
        let name = format!("`{}`", name.1);
        let first = |row: &&str| row.split('|').nth(1).is_some_and(|cell| cell.contains(&name));
        assert!(rows.iter().any(first), "ARCHITECTURE.md has no row for {name}");
    }
    let tests = text.split("## Around the program").nth(1).expect("what is around");
    for entry in std::fs::read_dir(root().join("tests")).expect("tests") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        assert!(tests.contains(&format!("`{name}`")), "ARCHITECTURE.md does not name tests/{name}");
    }
}

/// Every check that docs/neighbours.md names is one of the script's.
#[test]
fn what_is_said_of_neighbours_is_checked() {
    let script = read("tests/container/neighbours");
    let text = read("docs/neighbours.md");
    let spans = text.split('`').skip(1).step_by(2);
    let named = spans.filter_map(|span| span.split_once(": ").map(|it| (span, it)));
    let mut checks = 0;
    for (span, (case, check)) in named {
        assert!(script.contains(&format!("\ncase_{case}() {{")), "there is no case for {span}");
        assert!(script.contains(&format!("\"{check}\"")), "there is no check {span}");
        checks += 1;
    }
    assert!(checks > 30, "only {checks} checks are named");
}
