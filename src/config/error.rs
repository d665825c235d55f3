//! What is said when a configuration cannot be used.

use std::fmt;
use std::path::PathBuf;

use super::text;

/// More than these are only counted: they would not be read, and noting them would take long.
pub(super) const MOST_PROBLEMS: usize = 50;

/// A place in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1; absent where the file as a whole is meant.
    pub line: Option<u32>,
    /// Column in characters, from 1; absent where the line as a whole is meant.
    pub column: Option<u32>,
}

impl Location {
    /// A file as a whole.
    pub fn file(file: impl Into<PathBuf>) -> Self {
        Location { file: file.into(), line: None, column: None }
    }
}

impl fmt::Display for Location {
    /// `FILE:LINE`, or `FILE` alone.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&text::printable(&self.file.to_string_lossy()))?;
        self.line.map_or(Ok(()), |line| write!(out, ":{line}"))
    }
}

/// One reason why a configuration cannot be used.
///
/// No part of it ever holds a key: what may be one is shown as asterisks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub location: Location,
    /// The key with its table, e.g. `tunnel.addresses[1]`.
    pub key: Option<Box<str>>,
    /// What is wrong.
    pub message: String,
    /// What to do next; may have several lines.
    pub help: Option<String>,
    /// The line in question.
    pub excerpt: Option<Box<Excerpt>>,
    /// Nothing is known to be wrong: this user may not read the file.
    pub forbidden: bool,
}

/// A line of a file with a part of it marked, fit for a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// The line, or a part of a long one.
    pub text: String,
    /// Characters before the marked part.
    pub start: usize,
    /// Characters in the marked part; at least one.
    pub width: usize,
}

impl Problem {
    /// A problem of a file as a whole.
    pub(super) fn of_file(file: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Problem {
            location: Location::file(file),
            key: None,
            message: message.into(),
            help: None,
            excerpt: None,
            forbidden: false,
        }
    }

    /// A file or directory that this user may not read.
    pub(super) fn forbidden(file: impl Into<PathBuf>) -> Self {
        let problem = Problem::of_file(file, "may not be read by this user");
        Problem { forbidden: true, ..problem.help("run this as root, e.g. with sudo") }
    }

    pub(super) fn help(self, help: impl Into<String>) -> Self {
        Problem { help: Some(help.into()), ..self }
    }

    /// For a line in which anything may stand, a piece of a key as well.
    pub(super) fn without_excerpt(self) -> Self {
        Problem { excerpt: None, ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: ", self.location)?;
        if let Some(key) = &self.key {
            write!(out, "{key}: ")?;
        }
        out.write_str(&self.message)?;
        if let (Some(line), Some(excerpt)) = (self.location.line, &self.excerpt) {
            let gutter = line.to_string();
            let (indent, marks) = (" ".repeat(excerpt.start), "^".repeat(excerpt.width));
            write!(out, "\n  {gutter} | {}", excerpt.text)?;
            write!(out, "\n  {:1$} | {indent}{marks}", "", gutter.len())?;
        }
        for (number, line) in self.help.iter().flat_map(|help| help.lines()).enumerate() {
            let label = if number == 0 { "help:" } else { "     " };
            write!(out, "\n{}", format!("{label} {line}").trim_end())?;
        }
        Ok(())
    }
}

/// Why a configuration cannot be used: one problem or more, in the order of the files and lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    problems: Vec<Problem>,
    /// How many there are besides.
    more: usize,
}

impl Error {
    /// What was found, up to a number that nobody reads on from; at least one.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Nothing is known to be wrong: this user may not read all of it.
    pub fn is_forbidden(&self) -> bool {
        self.problems.iter().all(|problem| problem.forbidden)
    }

    /// The first problem in one line.
    pub fn summary(&self) -> String {
        let first = self.problems.first().map(ToString::to_string).unwrap_or_default();
        first.lines().next().unwrap_or_default().to_owned()
    }

    /// Where the first problem is, and nothing of what stands there.
    pub fn place(&self) -> Location {
        self.problems.first().map(|problem| problem.location.clone()).unwrap_or_default()
    }

    /// `None` if there is no problem; `more`: how many there are besides.
    pub(super) fn from_problems(problems: Vec<Problem>, more: usize) -> Option<Self> {
        (!problems.is_empty()).then_some(Error { problems, more })
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Error { problems: vec![problem], more: 0 }
    }
}

impl fmt::Display for Error {
    /// The problems, an empty line between them; no trailing newline, no colours.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let gap = if index == 0 { "" } else { "\n\n" };
            write!(out, "{gap}{problem}")?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(out, "\n\n{more} more like these are not shown"),
        }
    }
}

impl std::error::Error for Error {}
