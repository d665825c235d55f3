//! The journal as a page for a browser. Every value is escaped by maud.

use maud::{DOCTYPE, Markup, html};
use serde_json::{Map, Value};

/// The page.
pub fn page(entries: &[Map<String, Value>], verdict: &str) -> String {
    skeleton("Evidence of killswitch", &body(entries, verdict)).into_string()
}

/// To be replaced by the one that all reports share.
fn skeleton(title: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { (title) }
                style { (maud::PreEscaped(STYLE)) }
            }
            body { main { h1 { (title) } (body) } }
        }
    }
}

const STYLE: &str = ":root{color-scheme:light dark}body{font:1em/1.4 system-ui,sans-serif;margin:2em}\
table{border-collapse:collapse}th,td{text-align:left;vertical-align:top;padding:.2em .8em .2em 0;\
border-bottom:1px solid #8886}code{font-size:.85em;overflow-wrap:anywhere}";

/// What is below the title.
pub fn body(entries: &[Map<String, Value>], verdict: &str) -> Markup {
    html! {
        p { (verdict) }
        table {
            caption { (entries.len()) " entries" }
            thead {
                tr {
                    th scope="col" { "Number" }
                    th scope="col" { "Time (UTC)" }
                    th scope="col" { "Event" }
                    th scope="col" { "Details" }
                    th scope="col" { "Follows" }
                }
            }
            tbody {
                @for entry in entries {
                    tr {
                        td { (super::words::number(entry, "seq")) }
                        td { (super::words::time(entry)) }
                        td { (super::words::event(entry)) }
                        td { (super::words::details(entry)) }
                        td { code { (super::words::short(entry, "previous")) } }
                    }
                }
            }
        }
    }
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
        let page = page(&[entry], evil);
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("&lt;script&gt;"), "{page}");
    }
}
