//! How things are said: colour only on terminals, JSON where asked.

use std::io::{Error, ErrorKind, IsTerminal, Write};
use std::sync::OnceLock;

use serde::Serialize;

pub use crate::harmless::{harmless, one_line};

/// A style that is used only on a terminal, and not under `NO_COLOR` (https://no-color.org).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Good.
    Green,
    /// To be heeded.
    Yellow,
    /// Bad.
    Red,
}

/// The text in a style, if standard output takes it.
pub fn styled(style: Style, text: &str) -> String {
    paint(style, text, std::io::stdout().is_terminal())
}

fn paint(style: Style, text: &str, terminal: bool) -> String {
    let plain = !terminal || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if plain {
        return text.to_owned();
    }
    let code = match style {
        Style::Green => "32",
        Style::Yellow => "33",
        Style::Red => "31",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// An error on standard error.
pub fn error(message: &str) {
    let label = paint(Style::Red, "error:", std::io::stderr().is_terminal());
    say_aside(&format!("{label} {}", harmless(message)));
}

/// A warning on standard error.
pub fn warning(message: &str) {
    let label = paint(Style::Yellow, "warning:", std::io::stderr().is_terminal());
    say_aside(&format!("{label} {}", harmless(message)));
}

fn say_aside(text: &str) {
    // Nobody is left to tell if standard error is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Why something could not be written to standard output: the first reason.
static LOST: OnceLock<Error> = OnceLock::new();

/// Keeps the reason for [`lost`]. Who closes a pipe has read what they want.
pub fn keep(written: std::io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        // The first tells the most.
        let _ = LOST.set(error);
    }
}

/// Why what was said did not all get to standard output.
pub fn lost() -> Option<&'static Error> {
    LOST.get()
}

/// A line on standard output; a closed pipe ends nothing.
pub fn say(text: &str) {
    keep(write(text.as_bytes(), b"\n"));
}

/// A whole document on standard output, as it is.
pub fn document(bytes: &[u8]) {
    keep(write(bytes, b""));
}

fn write(bytes: &[u8], end: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.write_all(end)?;
    out.flush()
}

/// A line of a stream, at once.
///
/// # Errors
/// Nobody reads any more, or nothing more can be written: the stream has an end.
pub fn stream(text: &str) -> std::io::Result<()> {
    write(text.as_bytes(), b"\n").map_err(|error| {
        let end = Error::from(error.kind());
        keep(Err(error));
        end
    })
}

/// A count of bytes for people: "1.5 KiB".
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// One JSON document on standard output.
pub fn json(value: &impl Serialize) {
    let text = serde_json::to_string_pretty(value).expect("our documents have string keys");
    say(&text);
}
