//! Reading the journal, and saying whether it is whole.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::Flock;

use super::chain::{Fault, Follower, Head};
use super::{Places, journal, spool};

/// What was found.
#[derive(Debug)]
pub struct Verdict {
    /// How many lines follow one another.
    pub entries: u64,
    /// The last of them.
    pub head: Option<Head>,
    /// What is odd, but breaks no chain.
    pub notes: Vec<String>,
    /// Where the chain breaks; `None`: it is whole.
    pub broken: Option<Broken>,
}

/// Where and why a chain breaks.
#[derive(Debug)]
pub struct Broken {
    /// In which file; `None`: only the whole shows it.
    pub file: Option<PathBuf>,
    /// In which line of it, from 1.
    pub line: Option<u64>,
    /// Why.
    pub why: Fault,
}

/// Nobody folds while these are held: neither of this system nor of another one with the same journal.
/// `None`, if somebody does for long, or nothing was ever folded here.
pub fn turn(places: &Places) -> [Option<Flock<File>>; 2] {
    const PATIENCE: Duration = Duration::from_secs(2);
    let own = spool::open_regular(OpenOptions::new().write(true), &places.turn());
    [own, spool::open_directory(&places.journal)]
        .map(|it| spool::lock_within(it.ok()?, PATIENCE).ok())
}

/// Follows the chain through these files, in their order, and holds it against heads that were noted.
///
/// # Errors
/// Those of files, with the file's name.
pub fn verify(files: &[PathBuf], noted: &[Head]) -> io::Result<Verdict> {
    let mut follower = Follower::expecting(noted);
    let mut entries = 0;
    let mut broken = None;
    'files: for path in files {
        let of_file =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        for (number, line) in (1..).zip(lines(path).map_err(of_file)?) {
            if let Err(why) = follower.take(&line.map_err(of_file)?) {
                broken = Some(Broken { file: Some(path.clone()), line: Some(number), why });
                break 'files;
            }
            entries += 1;
        }
    }
    let of_the_whole = || {
        let why = follower.finish(noted).err()?;
        Some(Broken { file: None, line: None, why })
    };
    let broken = broken.or_else(of_the_whole);
    let notes = follower.notes().to_vec();
    Ok(Verdict { entries, head: follower.head().cloned(), notes, broken })
}

/// The lines of a file, each with its end.
///
/// # Errors
/// Those of files; a line of more than a megabyte, which is none of ours, is cut in pieces.
pub fn lines(path: &Path) -> io::Result<impl Iterator<Item = io::Result<Vec<u8>>>> {
    const LONGEST: u64 = 1 << 20;
    let mut reader = BufReader::new(File::open(path)?);
    Ok(std::iter::from_fn(move || {
        let mut line = Vec::new();
        match io::Read::take(&mut reader, LONGEST).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(Ok(line)),
            Err(error) => Some(Err(error)),
        }
    }))
}

/// What waits to be folded in, as lines without numbers.
pub fn waiting(places: &Places) -> Vec<Vec<u8>> {
    let files = [places.folding(), places.pending()];
    let bytes = files.iter().filter_map(|path| spool::read_private(path).ok());
    let split = |bytes: Vec<u8>| -> Vec<Vec<u8>> {
        bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
    };
    bytes.flat_map(split).collect()
}

/// The journal's files; [`Places::journal`], oldest first.
///
/// # Errors
/// Those of the directory.
pub fn files(places: &Places) -> io::Result<Vec<PathBuf>> {
    journal::files(&places.journal)
}
