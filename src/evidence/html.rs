//! The journal as a page for a browser. Every value is escaped by maud.

use maud::{Markup, html};
use serde_json::{Map, Value};

use crate::html::{self, Tone};

/// Bytes of the page that one entry's details may take.
const DETAILS: usize = 2000;

/// The page; `broken`: where and why the chain is.
pub fn page(
    entries: impl IntoIterator<Item = Map<String, Value>>,
    head: Option<&str>,
    broken: Option<&str>,
) -> String {
    let heading = match (broken, head) {
        (Some(why), _) => html::headline(Tone::Bad, "Evidence", "Broken", why),
        (None, Some(head)) => {
            let upto = format!("Every entry follows from the one before, up to {head}.");
            html::headline(Tone::Good, "Evidence", "Whole", &upto)
        }
        (None, None) => html::headline(Tone::Good, "Evidence", "Whole", "Nothing is recorded yet."),
    };
    let rows: Vec<Vec<Markup>> = entries.into_iter().map(|entry| row(&entry)).collect();
    let columns = ["#Number", "Time (UTC)", "Event", "Details", "Follows"];
    let body = html! {
        (heading)
        (html::section("entries", "What happened", &html::table(
            &format!("{} entries, the oldest first", rows.len()), &columns, &rows,
        )))
    };
    html::page("Evidence of killswitch", &body)
}

fn row(entry: &Map<String, Value>) -> Vec<Markup> {
    use super::words::{details, event, number, short, time};
    vec![
        html! { (number(entry, "seq")) },
        html! { (time(entry)) },
        html! { (html::text(&event(entry), DETAILS)) },
        html! { (html::text(&details(entry), DETAILS)) },
        html! { code { (html::text(&short(entry, "previous"), DETAILS)) } },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_escaped() {
        let evil = "<script>alert(1)</script>";
        let entry = serde_json::json!({
            "seq": 1, "previous": evil, "time": 0, "event": evil, "reason": evil,
            "by": { "program": evil }, evil: evil,
        });
        let Value::Object(entry) = entry else { panic!("an object") };
        let page = page([entry], Some(evil), Some(evil));
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("&lt;script&gt;"), "{page}");
    }
}
