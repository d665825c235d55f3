//! Pages for a browser: one look for every report that is written as HTML.
//!
//! A page is one file: no script, no font, image or style from elsewhere, and its own
//! Content-Security-Policy forbids them. What others chose goes through [`text`] or [`lines`], and
//! `maud` escapes it.

use std::time::{Duration, UNIX_EPOCH};

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::harmless::harmless;

/// No source but the page's own style; nothing is sent, framed or rebased either.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
const STYLE: &str = include_str!("html.css");

/// A whole page; `body` begins with its one `h1`, the sections in it with an `h2`.
pub fn page(title: &str, body: &Markup) -> String {
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="referrer" content="no-referrer";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (text(title, 200)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main { (body) }
                footer {
                    "Written by killswitch " (env!("CARGO_PKG_VERSION"))
                    ". This page is one file: it loads nothing and runs no script."
                }
            }
        }
    };
    document.into_string()
}

/// How something is to be taken; each has a colour, a shape and a word, never a colour alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// To be heeded.
    Heed,
    /// Bad.
    Bad,
    /// Unknown.
    Unsure,
}

impl Tone {
    /// The class in the style.
    pub const fn class(self) -> &'static str {
        match self {
            Tone::Good => "good",
            Tone::Heed => "heed",
            Tone::Bad => "bad",
            Tone::Unsure => "unsure",
        }
    }

    /// A shape of its own: a disc with a tick, a square with an arrow, an octagon with a cross, a
    /// triangle with an exclamation mark.
    fn icon(self) -> Markup {
        let (outline, sign) = match self {
            Tone::Good => ("M12 1a11 11 0 1 0 .01 0z", "M6.5 12.5l4 4 7-8.5"),
            Tone::Heed => ("M2 2h20v20H2z", "M6 12h11m-5-5l5 5-5 5"),
            Tone::Bad => ("M7.5 1h9L23 7.5v9L16.5 23h-9L1 16.5v-9z", "M7.5 7.5l9 9m0-9l-9 9"),
            Tone::Unsure => ("M12 1L24 23H0z", "M12 9v6.5m0 2.9v.2"),
        };
        html! {
            svg class="icon" viewBox="0 0 24 24" aria-hidden="true" {
                path class="shape" d=(outline) {}
                path class="sign" d=(sign) {}
            }
        }
    }
}

/// A word with its shape, in its colour.
pub fn badge(tone: Tone, word: &str) -> Markup {
    html! { span class={ "badge " (tone.class()) } { (tone.icon()) " " (word) } }
}

/// The heading of a page: what it comes to in a word or two, and as a sentence.
pub fn headline(tone: Tone, kicker: &str, word: &str, sentence: &str) -> Markup {
    html! {
        header class={ "headline " (tone.class()) } {
            (tone.icon())
            div {
                h1 { span class="kicker" { (kicker) ": " } (word) }
                p { (text(sentence, 600)) }
            }
        }
    }
}

/// A section with its heading; `id` is unique in the page.
pub fn section(id: &str, heading: &str, content: &Markup) -> Markup {
    html! {
        section aria-labelledby=(id) { h2 id=(id) { (heading) } (content) }
    }
}

/// Names and what they are; a table with a header in each row.
pub fn facts(caption: &str, rows: &[(&str, Markup)]) -> Markup {
    html! {
        table class="facts" {
            caption class="hidden" { (caption) }
            tbody {
                @for (name, value) in rows {
                    tr { th scope="row" { (name) } td { (value) } }
                }
            }
        }
    }
}

/// A table with a header in each column; the first cell of a row is the row's header. A column whose
/// heading begins with "#" holds numbers.
pub fn table(caption: &str, columns: &[&str], rows: &[Vec<Markup>]) -> Markup {
    let numeric = |index: usize| columns.get(index).is_some_and(|it| it.starts_with('#'));
    let class = |index: usize| if numeric(index) { "number" } else { "words" };
    html! {
        // A wide one is scrolled by itself, also with the keyboard.
        div class="scroll" tabindex="0" role="region" aria-label=(caption) {
            table class="grid" {
                caption { (caption) }
                thead {
                    tr {
                        @for (index, name) in columns.iter().enumerate() {
                            th scope="col" class=(class(index)) { (name.trim_start_matches('#')) }
                        }
                    }
                }
                tbody {
                    @for row in rows {
                        tr {
                            @for (index, cell) in row.iter().enumerate() {
                                @if index == 0 {
                                    th scope="row" class=(class(index)) { (cell) }
                                } @else {
                                    td class=(class(index)) { (cell) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A list of sentences that others may have a word in.
pub fn list(sentences: &[String], most: usize) -> Markup {
    let left_out = sentences.len().saturating_sub(most);
    html! {
        ul {
            @for sentence in sentences.iter().take(most) { li { (text(sentence, 600)) } }
            @if left_out > 0 { li { "and " (left_out) " more" } }
        }
    }
}

/// Text that others chose, as it may be shown: harmless, on one line, and cut so that it takes no
/// more than `most` bytes of the page.
pub fn text(chosen: &str, most: usize) -> String {
    cut(&harmless(chosen).replace('\n', "\\n"), most)
}

/// As [`text`], of several lines.
pub fn lines(chosen: &str, most: usize) -> String {
    cut(&harmless(&chosen.replace('\t', "    ")), most)
}

fn cut(plain: &str, most: usize) -> String {
    let mut size = 0;
    for (at, character) in plain.char_indices() {
        size += match character {
            '&' => "&amp;".len(),
            '<' | '>' => "&lt;".len(),
            '"' => "&quot;".len(),
            other => other.len_utf8(),
        };
        if size > most {
            return format!("{} […]", &plain[..at]);
        }
    }
    plain.to_owned()
}

/// A moment, in seconds since 1970, as RFC 3339 has it in UTC.
pub fn moment(seconds: u64) -> String {
    /// 9999-12-31T23:59:59Z, the last that RFC 3339 can write.
    const LAST: u64 = 253_402_300_799;
    let time = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// A number with its thousands apart.
pub fn number(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push('\u{a0}');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_chose_is_neither_markup_nor_direction() {
        let hostile = "<script>alert(1)</script> \"' & \u{202e}x\u{0}\ny";
        let page = page(hostile, &html! { h1 title=(text(hostile, 500)) { (text(hostile, 500)) } });
        assert!(!page.contains("<script") && !page.contains('\u{202e}') && !page.contains('\0'));
        assert!(page.contains(
            "<title>&lt;script&gt;alert(1)&lt;/script&gt; &quot;' &amp; \\u{202e}x\\u{0}\\ny"
        ));
        assert!(page.contains("title=\"&lt;script&gt;alert(1)&lt;/script&gt; &quot;"));
    }

    #[test]
    fn text_is_cut_by_what_it_takes() {
        assert_eq!(text("short", 5), "short");
        assert_eq!(text("longer", 5), "longe […]");
        assert_eq!(text("\"\"\"", 13), "\"\" […]");
        assert_eq!(text("äöü", 5), "äö […]");
    }

    #[test]
    fn numbers_and_moments_are_read_by_people() {
        let numbers = [0, 999, 1000, 1_234_567].map(number);
        assert_eq!(numbers, ["0", "999", "1\u{a0}000", "1\u{a0}234\u{a0}567"]);
        assert_eq!(moment(1_763_772_327), "2025-11-22T00:45:27Z");
        assert_eq!(moment(u64::MAX), "9999-12-31T23:59:59Z");
    }
}
