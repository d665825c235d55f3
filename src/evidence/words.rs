//! An entry in words, whatever is in it: a newer program may have written it.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value};

/// What stands in columns of its own, or is of no interest to people.
const APART: [&str; 7] = ["seq", "previous", "time", "event", "boot_id", "boottime_us", "writer"];

/// On a line.
pub fn line(entry: &Map<String, Value>) -> String {
    let (seq, time) = (number(entry, "seq"), time(entry));
    let line = format!("{seq:>6}  {time}  {:<17} {}", event(entry), details(entry));
    line.trim_end().to_owned()
}

/// When, in UTC.
pub fn time(entry: &Map<String, Value>) -> String {
    /// The end of the year 9999: beyond it there is no such text.
    const LAST: u64 = 253_402_300_799;
    let seconds = entry.get("time").and_then(Value::as_u64).unwrap_or_default().min(LAST);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// What happened.
pub fn event(entry: &Map<String, Value>) -> String {
    entry.get("event").and_then(Value::as_str).unwrap_or("?").replace('_', " ")
}

/// A number.
pub fn number(entry: &Map<String, Value>, key: &str) -> String {
    entry.get(key).map(plain).unwrap_or_default()
}

/// The beginning of a hash.
pub fn short(entry: &Map<String, Value>, key: &str) -> String {
    entry.get(key).map(plain).unwrap_or_default().chars().take(12).collect()
}

/// Everything else: "by uid 0, user root; changed true".
pub fn details(entry: &Map<String, Value>) -> String {
    let rest = entry.iter().filter(|(key, _)| !APART.contains(&key.as_str()));
    let words: Vec<String> = rest.map(|(key, value)| format!("{key} {}", plain(value))).collect();
    words.join("; ")
}

fn plain(value: &Value) -> String {
    match value {
        // What others chose must not pass for more words of ours: "x; by user root".
        Value::String(text) if text.contains([';', ',', '[', ']', '"']) => format!("{text:?}"),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(", "))
        }
        Value::Object(entries) => {
            let pair = |(key, value): (&String, &Value)| format!("{key} {}", plain(value));
            entries.iter().map(pair).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_pass_for_other_words() {
        let entry =
            serde_json::json!({ "by": { "program": "x, user root", "uid": 7 }, "to": "a b" });
        let Value::Object(entry) = entry else { panic!("an object") };
        assert_eq!(details(&entry), "by program \"x, user root\", uid 7; to a b");
    }
}
