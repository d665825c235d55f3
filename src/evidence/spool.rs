//! What waits to be folded in: lines without numbers, in memory, where no disk is waited for.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg, OFlag};

use super::Places;

/// Bytes that may wait, while /var is full or not there.
const MOST: u64 = 1 << 20;
/// For others who write a line, which takes microseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// Adds a line.
///
/// # Errors
/// Those of files; [`ErrorKind::StorageFull`] if too much waits already.
pub(super) fn append(places: &Places, body: &str) -> io::Result<()> {
    append_within(places, body, MOST)
}

/// As [`append`], for whoever is about to take what waits.
pub(super) fn append_whatever_waits(places: &Places, body: &str) -> io::Result<()> {
    append_within(places, body, u64::MAX)
}

fn append_within(places: &Places, body: &str, most: u64) -> io::Result<()> {
    private_directory(&places.run)?;
    let pending = places.pending();
    let mut file = own_turn(&pending)?;
    let length = file.metadata()?.len();
    if length + body.len() as u64 > most {
        let words = format!("{} is full: what waits there cannot be written", pending.display());
        return Err(io::Error::new(ErrorKind::StorageFull, words));
    }
    // After a writer that died within a line; what is left of it is recorded when it is folded in.
    let end = if ends_within_a_line(&mut file, length)? { "\n" } else { "" };
    file.write_all(format!("{end}{body}\n").as_bytes())
}

/// Takes what waits, for folding in; nothing, if nothing does. What was taken before comes first.
pub(super) fn take(places: &Places) -> io::Result<Vec<u8>> {
    let folding = places.folding();
    if !folding.exists() {
        match places.pending().exists() {
            // Nobody may be within a line, and whoever waits for a turn looks at the name again.
            true => {
                let _turn = own_turn(&places.pending())?;
                fs::rename(places.pending(), &folding)?;
            }
            false => return Ok(Vec::new()),
        }
    }
    read_private(&folding)
}

/// The file of this name, for us alone.
fn own_turn(path: &Path) -> io::Result<Flock<File>> {
    let begin = Instant::now();
    loop {
        let file = open_private(OpenOptions::new().read(true).append(true), path)?;
        let turn = lock_within(file, PATIENCE.saturating_sub(begin.elapsed()))?;
        let named = fs::symlink_metadata(path).map(|it| (it.dev(), it.ino())).ok();
        let held = turn.metadata()?;
        if named == Some((held.dev(), held.ino())) {
            return Ok(turn);
        }
    }
}

fn ends_within_a_line(file: &mut File, length: u64) -> io::Result<bool> {
    let Some(last) = length.checked_sub(1) else { return Ok(false) };
    let mut byte = [0];
    file.seek(SeekFrom::Start(last))?;
    file.read_exact(&mut byte)?;
    Ok(byte != *b"\n")
}

/// Opens or makes a file that only root reads; never through a link, nor what might keep us waiting,
/// as a FIFO does.
pub(super) fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    open_regular(options.create(true).mode(0o600), path)
}

/// What such a file has.
pub(super) fn read_private(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(OpenOptions::new().read(true), path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(irregular(path)),
    }
}

/// A directory, to lock it; nothing else, as a FIFO that would keep us waiting.
pub(super) fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

pub(super) fn irregular(path: &Path) -> io::Error {
    let words = format!("{} is no regular file: remove it", path.display());
    io::Error::new(ErrorKind::InvalidInput, words)
}

/// Makes a directory that only root enters, unless it is there.
pub(super) fn private_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// A turn, if it comes in time: whoever hangs must not make others hang.
///
/// # Errors
/// [`ErrorKind::TimedOut`].
pub(super) fn lock_within(mut file: File, patience: Duration) -> io::Result<Flock<File>> {
    const PAUSE: Duration = Duration::from_millis(2);
    let begin = Instant::now();
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(turn) => return Ok(turn),
            Err(_) if begin.elapsed() > patience => {
                return Err(io::Error::new(ErrorKind::TimedOut, "another process writes"));
            }
            Err((file, _)) => file,
        };
        std::thread::sleep(PAUSE);
    }
}
