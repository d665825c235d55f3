//! Files that are safe to read, and places in them.

use std::cell::Cell;
use std::fs::{File, Metadata};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use zeroize::Zeroizing;

use super::error::{Location, MOST_PROBLEMS, Problem};
use super::text;

/// Largest file that is read, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

const GROUP_OR_OTHER_READ: u32 = 0o044;
const GROUP_OR_OTHER_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// The text of one file. It may hold keys, so it is wiped when dropped.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: Zeroizing<String>,
    /// Where each line begins.
    lines: Vec<usize>,
    mode: u32,
    /// How many problems were found in it.
    problems: Cell<usize>,
}

impl Source {
    /// Opens and reads a file that only root can have written.
    ///
    /// All checks are made on the open file, and it is found through its open directory, so that
    /// nothing can be exchanged between check and use.
    pub(super) fn read(path: &Path) -> Result<Rc<Self>, Problem> {
        let fail = |message: String| Problem::of_file(path, message);
        let (file, metadata) = open_checked(path)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(metadata.len() as usize + 1));
        file.take(LARGEST_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| fail(format!("cannot be read: {error}")))?;
        if bytes.len() as u64 > LARGEST_FILE {
            return Err(too_large(path, bytes.len() as u64));
        }
        let text = std::str::from_utf8(&bytes).ok().filter(|text| !text.contains('\0'));
        let Some(text) = text else {
            return Err(fail("not a text file (not UTF-8, or with zero bytes)".into()));
        };
        let after_newlines = text.match_indices('\n').map(|(newline, _)| newline + 1);
        Ok(Rc::new(Source {
            path: path.to_owned(),
            lines: std::iter::once(0).chain(after_newlines).collect(),
            text: Zeroizing::new(text.to_owned()),
            mode: metadata.mode(),
            problems: Cell::new(0),
        }))
    }

    /// Refuses a file that holds a secret and can be read by others than root.
    pub(super) fn require_private(&self) -> Result<(), Problem> {
        if self.mode & GROUP_OR_OTHER_READ == 0 {
            return Ok(());
        }
        let message =
            format!("holds a key but others may read it (mode {:04o})", self.mode & 0o7777);
        Err(Problem::of_file(&self.path, message)
            .help(format!("chmod 600 {}", text::printable(&self.path.to_string_lossy()))))
    }

    /// The number of the line that holds a byte, from 1, and where the line begins.
    fn line_at(&self, byte: usize) -> (usize, usize) {
        let number = self.lines.partition_point(|&start| start <= byte).max(1);
        (number, self.lines[number - 1])
    }

    /// Whether the line that holds a byte may be the rest of a key that a line before began.
    fn goes_on_with_a_key(&self, byte: usize) -> bool {
        /// A key has 44 characters: more lines would be no accident.
        const FARTHEST: usize = 4;
        let (number, _) = self.line_at(byte);
        let line = |number: usize| {
            let end = self.lines.get(number).copied().unwrap_or(self.text.len());
            &self.text[self.lines[number - 1]..end]
        };
        let before = (1..number).rev().take(FARTHEST).map(line);
        let mut begin = before.skip_while(|it| it.trim().is_empty() || is_plain_piece(it));
        text::may_be_piece_of_a_key(line(number)) && begin.next().is_some_and(text::may_hold_a_key)
    }

    /// A path that this file names: absolute, or relative to the directory of this file.
    pub(super) fn resolve(&self, path: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }
}

/// A part of a file, with the key that stands there.
#[derive(Clone)]
pub(super) struct Place {
    source: Rc<Source>,
    span: Option<Range<usize>>,
    pub(super) key: String,
}

impl Place {
    /// The file as a whole.
    pub(super) fn file(source: &Rc<Source>) -> Self {
        Place { source: Rc::clone(source), span: None, key: String::new() }
    }

    /// A byte range of the file; one that does not lie on character boundaries is moved there.
    pub(super) fn new(source: &Rc<Source>, span: Range<usize>, key: impl Into<String>) -> Self {
        let text = &source.text;
        let start = boundary(text, span.start);
        let end = boundary(text, span.end).max(start);
        Place { source: Rc::clone(source), span: Some(start..end), key: key.into() }
    }

    /// The same place under another key.
    pub(super) fn with_key(&self, key: impl Into<String>) -> Self {
        Place { key: key.into(), ..self.clone() }
    }

    /// Whether the line may be the rest of a key that a line before began.
    pub(super) fn goes_on_with_a_key(&self) -> bool {
        self.span.as_ref().is_some_and(|span| self.source.goes_on_with_a_key(span.start))
    }

    pub(super) fn source(&self) -> &Rc<Source> {
        &self.source
    }

    pub(super) fn location(&self) -> Location {
        let Some(span) = &self.span else { return self.line() };
        let (_, start) = self.source.line_at(span.start);
        let column = self.source.text[start..span.start].chars().count() + 1;
        Location { column: u32::try_from(column).ok(), ..self.line() }
    }

    /// The location without its column, which takes time on a long line.
    pub(super) fn line(&self) -> Location {
        let line = self.span.as_ref().map(|span| self.source.line_at(span.start).0);
        Location {
            line: line.and_then(|line| u32::try_from(line).ok()),
            ..Location::file(&self.source.path)
        }
    }

    pub(super) fn problem(&self, message: impl Into<String>) -> Problem {
        // Looking at a long line takes time; of more than these nothing is shown.
        let is_shown = self.source.problems.replace(self.source.problems.get() + 1) < MOST_PROBLEMS;
        let line = self.span.clone().filter(|_| is_shown && !self.goes_on_with_a_key());
        let excerpt = line.map(|span| {
            let text = &self.source.text;
            let (_, start) = self.source.line_at(span.start);
            let end = text[span.start..].find('\n').map_or(text.len(), |end| span.start + end);
            let line = text[start..end].trim_end_matches('\r');
            let limit = |at: usize| (at - start).min(line.len());
            Box::new(text::excerpt(line, limit(span.start)..limit(span.end)))
        });
        Problem {
            location: if is_shown { self.location() } else { self.line() },
            key: (!self.key.is_empty()).then(|| self.key.as_str().into()),
            message: message.into(),
            help: None,
            excerpt,
            forbidden: false,
        }
    }
}

/// A value with the place that it was read from.
#[derive(Clone)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// A piece of a key that does not show by itself that it is one.
fn is_plain_piece(line: &str) -> bool {
    text::may_be_piece_of_a_key(line) && !text::may_hold_a_key(line)
}

/// The last character boundary at or before `index`.
fn boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

fn open_checked(path: &Path) -> Result<(File, Metadata), Problem> {
    let fail = |message: String| Problem::of_file(path, message);
    let Some(name) = path.file_name() else { return Err(fail("not the path of a file".into())) };
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let directory = open(parent, flags | OFlag::O_DIRECTORY, Mode::empty())
        .map_err(|errno| describe_errno(path, errno))?;
    let file =
        openat(&directory, name, flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK, Mode::empty())
            .map_err(|errno| describe_errno(path, errno))?;
    let inspect =
        |file: &File| file.metadata().map_err(|error| fail(format!("cannot be examined: {error}")));
    let file = File::from(file);
    let metadata = inspect(&file)?;
    check_file(path, &metadata)?;
    check_directory(parent, &inspect(&File::from(directory))?)?;
    Ok((file, metadata))
}

fn check_file(path: &Path, metadata: &Metadata) -> Result<(), Problem> {
    let fail = |message: String| Problem::of_file(path, message);
    let shown = text::printable(&path.to_string_lossy());
    if metadata.is_dir() {
        return Err(fail("a directory, where a file is expected".into()));
    }
    if !metadata.is_file() {
        return Err(fail("not a regular file".into()));
    }
    if metadata.uid() != 0 {
        return Err(fail(format!("belongs to user {}, not to root", metadata.uid()))
            .help(format!("look through it, then: chown root:root {shown}")));
    }
    if metadata.mode() & GROUP_OR_OTHER_WRITE != 0 {
        let mode = metadata.mode() & 0o7777;
        return Err(fail(format!("others than root may write to it (mode {mode:04o})"))
            .help(format!("look through it, then: chmod go-w {shown}")));
    }
    if metadata.len() > LARGEST_FILE {
        return Err(too_large(path, metadata.len()));
    }
    Ok(())
}

fn check_directory(path: &Path, metadata: &Metadata) -> Result<(), Problem> {
    let fail = |message: String| Problem::of_file(path, message);
    let shown = text::printable(&path.to_string_lossy());
    let mode = metadata.mode() & 0o7777;
    if metadata.uid() != 0 {
        return Err(fail(format!(
            "this directory belongs to user {}, not to root, who can exchange the files in it",
            metadata.uid()
        ))
        .help("keep the files in a directory of root's, e.g. /etc/killswitch"));
    }
    if mode & GROUP_OR_OTHER_WRITE != 0 && mode & STICKY == 0 {
        return Err(fail(format!(
            "others than root may write to this directory (mode {mode:04o}) and exchange the \
             files in it"
        ))
        .help(format!("chmod go-w {shown}")));
    }
    Ok(())
}

fn describe_errno(path: &Path, errno: Errno) -> Problem {
    let problem = |message: String| Problem::of_file(path, message);
    match errno {
        Errno::ENOENT => problem("no such file".into()),
        // open(2): O_NOFOLLOW and the last component is a symbolic link.
        Errno::ELOOP => problem("a symbolic link, which is not followed".into()).help(format!(
            "name the file that it points to, or put the file itself there (the link points to {})",
            std::fs::read_link(path).map_or("an unknown place".into(), |target| {
                text::printable(&target.to_string_lossy())
            })
        )),
        Errno::EACCES | Errno::EPERM => Problem::forbidden(path),
        Errno::ENXIO => problem("not a regular file".into()),
        Errno::ENOTDIR => problem("a part of the path is not a directory".into()),
        other => problem(format!("cannot be opened: {}", other.desc())),
    }
}

fn too_large(path: &Path, size: u64) -> Problem {
    let message = format!("too large: {size} bytes, where at most {LARGEST_FILE} are read");
    Problem::of_file(path, message).help("is this the right file?")
}
