//! Text of files made fit to be shown: without keys, without control characters, not too long.

use std::ops::Range;

use super::error::Excerpt;
use super::schema;

/// Longest part of a line that is shown, in characters.
const LONGEST_EXCERPT: usize = 100;
/// Longest quotation inside a message, in characters.
const LONGEST_QUOTATION: usize = 80;

/// Replaces what would act on a terminal or reorder the text: control and bidirectional characters.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|character| match character {
            '\t' => ' ',
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                '\u{fffd}'
            }
            character if character.is_control() => '\u{fffd}',
            character => character,
        })
        .collect()
}

/// Text of a file in double quotes, for a message.
pub(super) fn quote(text: &str) -> String {
    format!("\"{}\"", clip(&printable(&hide_keys(text))))
}

/// Text of a file that is no longer than anybody reads.
pub(super) fn clip(text: &str) -> String {
    match text.char_indices().nth(LONGEST_QUOTATION) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The same text with `*` for every character of what may be a key in base64.
pub(super) fn hide_keys(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let belongs = is_base64(first);
        let end = rest.find(|character| is_base64(character) != belongs).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        if !belongs {
            shown.push_str(run);
        } else if run.starts_with('/') {
            // A path, unless a part of it is too long for one.
            let parts: Vec<String> = run.split('/').map(hide_key).collect();
            shown.push_str(&parts.join("/"));
        } else {
            shown.push_str(&hide_key(run));
        }
        rest = after;
    }
    shown
}

fn is_base64(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '+' | '/' | '=')
}

fn hide_key(run: &str) -> String {
    if may_be_key(run) { "*".repeat(run.len()) } else { run.to_owned() }
}

/// Whether a run of base64 characters may be a key or a piece of one: sixteen random ones are of
/// both cases but once in two thousand times, and half a key in hexadecimal is longer than any other
/// number. That hides some names and paths as well, which costs less than a shown key.
fn may_be_key(run: &str) -> bool {
    const HALF_A_KEY_IN_HEX: usize = 32;
    let has = |is: fn(&u8) -> bool| run.bytes().any(|byte| is(&byte));
    let is_known = schema::WG_INTERFACE.contains(&run) || schema::WG_PEER.contains(&run);
    let mut numbers = run.split(|it: char| !it.is_ascii_hexdigit());
    numbers.any(|number| number.len() >= HALF_A_KEY_IN_HEX)
        || run.len() >= 16
            && has(u8::is_ascii_uppercase)
            && has(u8::is_ascii_lowercase)
            && !is_known
}

/// Whether a key may begin on this line.
pub(super) fn may_hold_a_key(line: &str) -> bool {
    let name = line.split(['=', ' ', '\t']).find(|word| !word.is_empty()).unwrap_or_default();
    schema::may_name_a_secret(name) || hide_keys(line) != line
}

/// Whether nothing stands on this line that could not be in the midst of a key, or at its end.
pub(super) fn may_be_piece_of_a_key(line: &str) -> bool {
    let text = line.trim().trim_matches(['"', '\'']).trim_end_matches('=');
    !text.is_empty() && text.chars().all(|it| is_base64(it) && it != '=')
}

/// So many characters of the line, after those skipped, with `*` for what may be a secret: by the
/// look of the value, or by the name of its key.
fn hide_secrets(line: &str, skipped: usize, count: usize) -> String {
    let indent = line.len() - line.trim_start().len();
    let name = line[indent..].find(['=', ' ', '\t']).map(|length| line[..indent + length].len());
    let secret = name.filter(|&end| schema::may_name_a_secret(line[..end].trim()));
    let at = |number: usize| line.char_indices().nth(number).map_or(line.len(), |(at, _)| at);
    let shown = at(skipped)..at(skipped + count);
    // A run that begins or ends outside is judged as a whole; of the rest nothing is looked at.
    let first = line[..shown.start].rfind(|it| !is_base64(it)).map_or(0, |at| at + next(line, at));
    let last = line[shown.end..].find(|it| !is_base64(it)).map_or(line.len(), |at| shown.end + at);
    let hidden = hide_keys(&line[first..last]);
    let hidden = hidden[shown.start - first..shown.end - first].chars();
    let hide = |((at, character), hidden): ((usize, char), char)| match character {
        _ if secret.is_none_or(|end| shown.start + at < end) => hidden,
        ' ' | '\t' | '=' | '"' => character,
        _ => '*',
    };
    line[shown.clone()].char_indices().zip(hidden).map(hide).collect()
}

/// How many bytes the character at `at` has.
fn next(line: &str, at: usize) -> usize {
    line[at..].chars().next().map_or(0, char::len_utf8)
}

/// The part of `line` around `marked` (a byte range of it), fit to be shown.
pub(super) fn excerpt(line: &str, marked: Range<usize>) -> Excerpt {
    let start = line[..marked.start].chars().count();
    let width = line[marked].chars().count().max(1);
    let skipped = if start + width.min(LONGEST_EXCERPT / 2) <= LONGEST_EXCERPT {
        0
    } else {
        start - LONGEST_EXCERPT / 4
    };
    let shown = printable(&hide_secrets(line, skipped, LONGEST_EXCERPT));
    let start = start - skipped;
    Excerpt {
        width: width.min(LONGEST_EXCERPT - start).max(1),
        text: shown.trim_end().to_owned(),
        start,
    }
}

/// The candidate that was probably meant.
pub(super) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let plain = |text: &str| -> String {
        text.chars()
            .filter(|c| !matches!(c, '_' | '-' | ' '))
            .flat_map(char::to_lowercase)
            .collect()
    };
    let word = plain(&word.chars().take(64).collect::<String>());
    let distance = |candidate: &str| {
        let candidate = plain(candidate);
        let begins =
            word.len() >= 3 && (candidate.starts_with(&word) || word.starts_with(&candidate));
        let distance = strsim::damerau_levenshtein(&word, &candidate);
        let close = distance <= (word.chars().count() / 3).max(1);
        (close || begins).then_some(distance)
    };
    candidates
        .iter()
        .filter_map(|candidate| distance(candidate).map(|distance| (distance, *candidate)))
        .min()
        .map(|(_, candidate)| candidate)
}

/// `"a", "b" or "c"`.
pub(super) fn alternatives(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "yAnz5TF+lXXJte14tjlAlNrmRAfyiuDJ0vyQqyPSTEk=";

    const HEX: &str = "c809f3e5317e957257b5ed6b63994094dae64407f28ae0c9d2fc90ab23d24c49";

    #[test]
    fn keys_are_hidden_wherever_they_stand() {
        for line in [
            format!("PrivateKey = {KEY}"),
            format!("PrivateKey {KEY}"),
            format!("  private_key = \"{KEY}\""),
            KEY.to_owned(),
            format!("x = [\"{KEY}\", {KEY}]"),
            "PrivateKey = short".to_owned(),
            "privatkey = short".to_owned(),
            "\tPresharedKey=short".to_owned(),
            format!("private_key_file = \"{HEX}\""),
            format!("a = 0x{}", HEX.to_uppercase()),
            format!("{HEX} = 1"),
            format!("/etc/{HEX}/a"),
        ] {
            let shown = excerpt(&line, 0..1).text;
            assert!(!shown.contains("yAnz5T") && !shown.contains("short"), "{shown}");
            assert!(!shown.to_lowercase().contains(&HEX[..16]), "{shown}");
        }
    }

    #[test]
    fn paths_and_addresses_are_shown() {
        for line in [
            "config = \"/etc/NetworkManager/system-connections/mullvad\"",
            "private_key_file = \"/etc/killswitch/private.key\"",
            "Endpoint = [2001:db8::7]:51820",
        ] {
            assert_eq!(excerpt(line, 0..1).text, line);
        }
    }

    #[test]
    fn a_long_line_is_cut_around_its_marked_part() {
        let line = format!("{}here{}", "a ".repeat(5_000), " b".repeat(5_000));
        let shown = excerpt(&line, 10_000..10_004);
        assert_eq!(
            shown.text.chars().skip(shown.start).take(shown.width).collect::<String>(),
            "here"
        );
        assert!(shown.text.len() <= LONGEST_EXCERPT);
    }

    #[test]
    fn a_key_at_the_edge_of_what_is_shown_is_hidden() {
        for before in 0..2 * LONGEST_EXCERPT {
            let line = format!("{}\"{KEY}\" {}here", "b ".repeat(before), "a ".repeat(60));
            for marked in [line.len() - 4, 2 * before + 1, 0] {
                let shown = excerpt(&line, marked..line.len()).text;
                let has = |start: usize| shown.contains(&KEY[start..start + 6]);
                assert!(!(0..KEY.len() - 6).any(has), "{before}, {marked}: {shown}");
            }
        }
    }

    #[test]
    fn control_characters_are_not_passed_on() {
        assert_eq!(quote("a\u{1b}[31m\u{202e}"), "\"a\u{fffd}[31m\u{fffd}\"");
    }

    #[test]
    fn misspelt_words_find_the_nearest() {
        let words = ["addresses", "dns", "private_key_file", "at_boot"];
        assert_eq!(nearest("adresses", &words), Some("addresses"));
        assert_eq!(nearest("private_key", &words), Some("private_key_file"));
        assert_eq!(nearest("at-boot", &words), Some("at_boot"));
        assert_eq!(nearest("AtBoot", &words), Some("at_boot"));
        assert_eq!(nearest("zzz", &words), None);
    }

    #[test]
    fn alternatives_read_as_a_sentence() {
        assert_eq!(alternatives(&["a"]), "\"a\"");
        assert_eq!(alternatives(&["a", "b", "c"]), "\"a\", \"b\" or \"c\"");
    }
}
