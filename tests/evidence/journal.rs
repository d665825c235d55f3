//! The journal's files, read as a script would.

use std::fs;
use std::path::{Path, PathBuf};

use killswitch::lab::{Context, Error, Result};
use serde_json::Value;

pub const DIRECTORY: &str = "/var/lib/killswitch/evidence";
pub const PENDING: &str = "/run/killswitch/evidence-pending.jsonl";

/// As on a machine on which nothing was ever recorded.
pub fn begin_anew() -> Result<()> {
    let _ = fs::remove_dir_all(DIRECTORY);
    for entry in fs::read_dir("/run/killswitch").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("evidence") {
            fs::remove_file(entry.path()).during("/run/killswitch")?;
        }
    }
    Ok(())
}

pub fn files() -> Vec<PathBuf> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|it| it == "jsonl"))
        .collect();
    files.sort();
    files
}

/// Every entry of the journal, in order.
pub fn entries() -> Result<Vec<Value>> {
    let mut entries = Vec::new();
    for path in files() {
        for line in fs::read_to_string(&path).during(path.display())?.lines() {
            entries.push(serde_json::from_str(line).during(line)?);
        }
    }
    Ok(entries)
}

/// The last entry of this kind.
pub fn last(event: &str) -> Result<Value> {
    let entries = entries()?;
    let found = entries.iter().rev().find(|entry| entry["event"] == event);
    found.cloned().ok_or_else(|| Error::new(format!("no {event} in {entries:#?}")))
}

pub fn events() -> Result<Vec<String>> {
    let name = |entry: &Value| entry["event"].as_str().unwrap_or_default().to_owned();
    Ok(entries()?.iter().map(name).collect())
}

/// Changes a file by its text.
pub fn edit(path: &Path, change: impl FnOnce(&str) -> String) -> Result<()> {
    let text = fs::read_to_string(path).during(path.display())?;
    let other = change(&text);
    assert_ne!(text, other, "{}: nothing was changed", path.display());
    fs::write(path, other).during(path.display())
}
