//! What was seen, for the table in SECURITY.md.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use killswitch::lab::{Context, Result};

use super::plan::Suite;

/// One scenario on one kernel.
pub enum Seen {
    Held {
        /// Frames that the machine without the kill switch sent and must not.
        control: u64,
        /// Frames of the kinds that this kernel is known not to stop.
        excused: u64,
        /// From its end to the next answer from the Internet.
        back: Duration,
    },
    /// It cannot happen there, and why.
    Impossible(&'static str),
}

/// Adds a line to target/tmp/vm/results: release, scenario, what was seen. With UPDATE_EXPECTED it
/// takes its place in tests/vm/results, too, from which SECURITY.md's table is made.
///
/// # Errors
/// Those of the file.
pub fn write(suite: Suite, scenario: &str, seen: &Seen) -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _lock = ONE_AT_A_TIME.lock();
    let path = super::disks::work().join("results");
    let words = match seen {
        Seen::Held { control, excused, back } => {
            format!("held\t{control}\t{excused}\t{:.1}", back.as_secs_f64())
        }
        Seen::Impossible(why) => format!("impossible\t{why}"),
    };
    println!("{suite} {scenario}: {words}");
    let mut file =
        OpenOptions::new().create(true).append(true).open(&path).during(path.display())?;
    writeln!(file, "{suite}\t{scenario}\t{words}").during(path.display())?;
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        keep(suite, scenario, Some(&words))?;
    }
    Ok(())
}

/// With UPDATE_EXPECTED: what was seen before counts no more.
///
/// # Errors
/// Those of the file.
pub fn forget(suite: Suite, scenario: &str) -> Result<()> {
    match std::env::var_os("UPDATE_EXPECTED") {
        Some(_) => keep(suite, scenario, None),
        None => Ok(()),
    }
}

fn keep(suite: Suite, scenario: &str, words: Option<&str>) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/results");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let mut lines: BTreeMap<(&str, &str), &str> = text
        .lines()
        .filter_map(|line| {
            let (suite, rest) = line.split_once('\t')?;
            let (scenario, words) = rest.split_once('\t')?;
            Some(((suite, scenario), words))
        })
        .collect();
    match words {
        Some(words) => lines.insert((suite, scenario), words),
        None => lines.remove(&(suite, scenario)),
    };
    let text: String = lines
        .iter()
        .map(|((suite, scenario), words)| format!("{suite}\t{scenario}\t{words}\n"))
        .collect();
    std::fs::write(&path, text).during(path.display())
}
