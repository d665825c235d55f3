//! What was seen, for the table in SECURITY.md.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use killswitch::lab::{Context, Result};

use super::stage::Suite;

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

/// Adds a line to target/tmp/vm/results: release, scenario, what was seen.
///
/// # Errors
/// Those of the file.
pub fn write(suite: Suite, scenario: &str, seen: &Seen) -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _lock = ONE_AT_A_TIME.lock();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm/results");
    let words = match seen {
        Seen::Held { control, excused, back } => {
            format!("held\t{control}\t{excused}\t{:.1}", back.as_secs_f64())
        }
        Seen::Impossible(why) => format!("impossible\t{why}"),
    };
    println!("{suite} {scenario}: {words}");
    let mut file =
        OpenOptions::new().create(true).append(true).open(&path).during(path.display())?;
    writeln!(file, "{suite}\t{scenario}\t{words}").during(path.display())
}
