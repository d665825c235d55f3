//! Why a command did not do what was asked: for people on standard error, with `--json` for scripts
//! on standard output besides.

use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Map, Value};

use super::output;

/// Why a command ends without having done what was asked.
#[derive(Debug)]
pub struct Failure {
    /// The exit status.
    pub(super) code: u8,
    /// What, where, and after "help:" what to do next.
    pub(super) message: String,
    /// What the command's document has besides the error.
    pub(super) report: Map<String, Value>,
}

pub(super) const FAILED: u8 = 1;
pub(super) const USAGE: u8 = 2;
pub(super) const NOT_PERMITTED: u8 = 4;
pub(super) const BAD_CONFIGURATION: u8 = 78;

/// How a JSON document is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Document {
    /// The only one, indented.
    Whole,
    /// One of many, on a line.
    Line,
}

/// What a script reads.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Error<'a> {
    code: u8,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<&'a str>,
}

impl Failure {
    pub(super) fn new(code: u8, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), report: Map::new() }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Failure::new(USAGE, message)
    }

    /// With one more thing to do next.
    pub(super) fn helped(mut self, help: &str) -> Self {
        self.message = format!("{}\nhelp: {help}", self.message);
        self
    }

    /// With the command's own document, which gets the error as one more key.
    pub(super) fn with(mut self, report: &impl Serialize) -> Self {
        if let Ok(Value::Object(keys)) = serde_json::to_value(report) {
            self.report = keys;
        }
        self
    }

    /// `{"error": {"code", "message", "help"}}`, after the keys of the command's own document.
    pub(super) fn document(&self) -> Value {
        let (message, help) = without_help(&self.message);
        let error = Error { code: self.code, message: &message, help: help.as_deref() };
        let mut document = self.report.clone();
        document.insert("error".into(), serde_json::to_value(error).unwrap_or_default());
        Value::Object(document)
    }

    /// Says it, and gives the exit status. Scripts read standard output, people standard error.
    pub(super) fn tell(&self, document: Option<Document>) -> ExitCode {
        match document {
            Some(Document::Whole) => output::json(&self.document()),
            Some(Document::Line) => output::say(&self.document().to_string()),
            None => {}
        }
        output::error(&self.message);
        self.code.into()
    }
}

/// A message's help apart from it: lines that begin with "help:", and those below that are indented
/// as much.
fn without_help(text: &str) -> (String, Option<String>) {
    const LABEL: &str = "help: ";
    const INDENT: &str = "      ";
    let (mut message, mut help) = (Vec::new(), Vec::new());
    let mut helping = false;
    for line in text.lines() {
        let below = if helping { line.strip_prefix(INDENT) } else { None };
        match line.strip_prefix(LABEL).or(below) {
            Some(words) => help.push(words),
            None => message.push(line),
        }
        helping = line.starts_with(LABEL) || below.is_some();
    }
    (message.join("\n"), (!help.is_empty()).then(|| help.join("\n")))
}

impl From<crate::lock::Error> for Failure {
    fn from(error: crate::lock::Error) -> Self {
        let code = match &error {
            crate::lock::Error::Netfilter(crate::netfilter::Error::NotPermitted) => NOT_PERMITTED,
            _ => FAILED,
        };
        Failure::new(code, error.to_string())
    }
}

impl From<crate::config::Error> for Failure {
    fn from(error: crate::config::Error) -> Self {
        let code = if error.is_forbidden() { NOT_PERMITTED } else { BAD_CONFIGURATION };
        Failure::new(code, error.to_string())
    }
}

impl From<crate::dbus::client::Error> for Failure {
    fn from(error: crate::dbus::client::Error) -> Self {
        use crate::dbus::Error as Refusal;
        use crate::dbus::client::Error::{Io, NoBus, NotRunning, OtherFile, Refused, Silent};
        match error {
            NotRunning => Failure::new(
                FAILED,
                "the daemon does not run\nhelp: systemctl start killswitch; the lock does not need it",
            ),
            Silent => Failure::new(
                FAILED,
                "the daemon does not answer\nhelp: systemctl restart killswitch; the lock stays",
            ),
            Refused(refusal) => {
                let code = match &refusal {
                    Refusal::NotAuthorized(_) => NOT_PERMITTED,
                    Refusal::BadConfiguration(_) => BAD_CONFIGURATION,
                    Refusal::InvalidArgument(_) => USAGE,
                    _ => FAILED,
                };
                Failure::new(code, refusal.message())
            }
            NoBus(_) => Failure::new(NOT_PERMITTED, error.to_string()),
            Io(ref io) if io.kind() == std::io::ErrorKind::PermissionDenied => {
                Failure::new(NOT_PERMITTED, "only root may talk to the daemon")
            }
            OtherFile { .. } | Io(_) => Failure::new(FAILED, error.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::new(FAILED, error.to_string())
    }
}

impl From<clap::Error> for Failure {
    /// As clap says it, with what it says below as help.
    fn from(error: clap::Error) -> Self {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
        let (message, below) = text.split_once("\n\n").unwrap_or((text, ""));
        let below: Vec<&str> =
            below.lines().filter(|line| !line.is_empty()).map(str::trim).collect();
        match below.is_empty() {
            true => Failure::usage(message),
            false => Failure::usage(format!("{message}\nhelp: {}", below.join("\n      "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_stands_apart() {
        let error = |text: &str| Failure::new(1, text).document()["error"].clone();
        let json = |message: &str, help: Option<&str>| {
            let mut error = serde_json::json!({ "code": 1, "message": message });
            if let Some(help) = help {
                error["help"] = help.into();
            }
            error
        };
        assert_eq!(error("it failed"), json("it failed", None));
        assert_eq!(error("it failed\nhelp: try again"), json("it failed", Some("try again")));
        assert_eq!(
            error("a: bad\n  1 | b\n    | ^\nhelp: c\n      d\nas it was"),
            json("a: bad\n  1 | b\n    | ^\nas it was", Some("c\nd"))
        );
        assert_eq!(
            error("a\nhelp: b\n\nc\n      indented\nhelp: d"),
            json("a\n\nc\n      indented", Some("b\nd"))
        );
    }

    #[test]
    fn a_report_gets_the_error_as_one_more_key() {
        let failure = Failure::new(78, "no").with(&serde_json::json!({ "valid": false }));
        let document = serde_json::json!({
            "valid": false, "error": { "code": 78, "message": "no" },
        });
        assert_eq!(failure.document(), document);
    }
}
