//! Text that others chose, made fit to be shown.

/// What others chose (a link may be called almost anything) must not steer a terminal or turn the
/// writing of a page: control characters and those that set its direction are spelt out.
pub fn harmless(text: &str) -> String {
    let steers = |character: char| {
        (character.is_control() && character != '\n')
            || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match steers(character) {
            true => plain.extend(character.escape_default()),
            false => plain.push(character),
        }
    }
    plain
}

/// The same on one line: a name with a line's end in it must not pass for a line of ours.
pub fn one_line(text: &str) -> String {
    harmless(text).replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::{harmless, one_line};

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        assert_eq!(
            harmless("eth0 \u{1b}[2J\u{9b}1m\r\u{202e}x"),
            "eth0 \\u{1b}[2J\\u{9b}1m\\r\\u{202e}x"
        );
        assert_eq!(harmless("größe\nzwei"), "größe\nzwei");
        assert_eq!(one_line("a\nb\u{1b}"), "a\\nb\\u{1b}");
    }
}
