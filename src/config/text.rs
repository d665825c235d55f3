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
    let text = printable(&hide_keys(text));
    match text.char_indices().nth(LONGEST_QUOTATION) {
        Some((end, _)) => format!("\"{}...\"", &text[..end]),
        None => format!("\"{text}\""),
    }
}

/// The same text with `*` for every character of what may be a key in base64.
pub(super) fn hide_keys(text: &str) -> String {
    let is_base64 =
        |character: char| character.is_ascii_alphanumeric() || matches!(character, '+' | '/' | '=');
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let belongs = is_base64(first);
        let end = rest.find(|character| is_base64(character) != belongs).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        if belongs && may_be_key(run) {
            shown.extend(std::iter::repeat_n('*', run.len()));
        } else {
            shown.push_str(run);
        }
        rest = after;
    }
    shown
}

/// Whether a run of base64 characters is likelier a key or a part of one than a path or a name:
/// random characters change their class every 1.6 characters on average, words far more rarely.
fn may_be_key(run: &str) -> bool {
    let class = |byte: u8| match byte {
        b'A'..=b'Z' => 0,
        b'a'..=b'z' => 1,
        b'0'..=b'9' => 2,
        _ => 3,
    };
    let classes: Vec<u8> = run.bytes().map(class).collect();
    let changes = classes.windows(2).filter(|pair| pair[0] != pair[1]).count();
    let restless = classes.contains(&2) || changes * 5 >= run.len() * 2;
    let mixed_case = classes.contains(&0) && classes.contains(&1);
    // A part of a key may stand behind a word, which calms the whole.
    let restless_part = classes.windows(16).any(|part| {
        let changes = part.windows(2).filter(|pair| pair[0] != pair[1]).count();
        part.contains(&0) && part.contains(&1) && changes >= 7
    });
    mixed_case && (run.len() >= 40 || restless_part || (run.len() >= 16 && restless))
}

/// The same line with `*` for what may be a secret: by the look of the value, or by the name of its
/// key.
fn hide_secrets(line: &str) -> String {
    let indent = line.len() - line.trim_start().len();
    let Some(length) = line[indent..].find(['=', ' ', '\t']) else { return hide_keys(line) };
    let (name, value) = line.split_at(indent + length);
    if !schema::may_name_a_secret(name.trim()) {
        return hide_keys(line);
    }
    let hidden = value.chars().map(|character| match character {
        ' ' | '\t' | '=' | '"' => character,
        _ => '*',
    });
    hide_keys(name).chars().chain(hidden).collect()
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
    let shown = printable(&hide_secrets(line));
    let text: String = shown.chars().skip(skipped).take(LONGEST_EXCERPT).collect();
    let start = start - skipped;
    Excerpt {
        width: width.min(LONGEST_EXCERPT - start).max(1),
        text: text.trim_end().to_owned(),
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
        ] {
            let shown = excerpt(&line, 0..1).text;
            assert!(!shown.contains("yAnz5T") && !shown.contains("short"), "{shown}");
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
