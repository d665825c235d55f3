//! `/etc/resolv.conf` itself: replaced whole, its original kept beside it.
//!
//! The original is kept by a second hard link, `resolv.conf.before-killswitch`: contents, mode,
//! owner, attributes and symbolic links come back exactly, need no room on the disk, and live as
//! long as the file does, across crashes and restarts of the machine.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Error, Manager};

/// How our first line begins. The digest after it is that of all later lines.
const HEADER: &str = "# Written by killswitch ";

/// Said on our first line if there was no file before.
const NO_ORIGINAL: &str = "; there was no file before";

/// More than resolv.conf(5) can need; a larger file is not ours.
const LARGEST: u64 = 64 << 10;

/// The file and its companions in one directory.
#[derive(Debug, Clone)]
pub struct ResolvConf {
    directory: PathBuf,
    file: PathBuf,
    original: PathBuf,
    new: PathBuf,
}

/// What [`ResolvConf::restore`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The file was not ours, and nothing was kept: nothing to do.
    Nothing,
    /// The original is back.
    Original,
    /// Somebody else's file took the place of ours, and stays. The original is forgotten.
    Foreign,
}

/// What stands at the file's place.
enum Found {
    Absent,
    /// Ours as we wrote it; whether there was a file before.
    Ours {
        had_original: bool,
    },
    /// Anything else, a symbolic link included.
    Theirs,
}

impl ResolvConf {
    /// The file in a directory, e.g. `/etc`.
    pub fn within(directory: &Path) -> Self {
        ResolvConf {
            directory: directory.into(),
            file: directory.join("resolv.conf"),
            original: directory.join("resolv.conf.before-killswitch"),
            new: directory.join(".resolv.conf.killswitch"),
        }
    }

    /// Who keeps it; nobody while it is ours.
    ///
    /// # Errors
    /// If it is there but cannot be read.
    pub fn manager(&self) -> Result<Manager, Error> {
        let link = match fs::read_link(&self.file) {
            Ok(target) => Some(target),
            Err(error) if error.kind() == ErrorKind::InvalidInput => None,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Manager::Nobody),
            Err(error) => return Err(self.error("read", &self.file, error)),
        };
        // A link may dangle: its keeper has not started yet.
        let contents = fs::read(&self.file).unwrap_or_default();
        Ok(Manager::of(link.as_deref(), &String::from_utf8_lossy(&contents)))
    }

    /// Whether the file is ours and says exactly this.
    pub fn holds(&self, text: &str) -> bool {
        matches!(self.found(), Ok(Found::Ours { .. }))
            && fs::read(&self.file).is_ok_and(|all| body(&all) == text.as_bytes())
    }

    /// Puts our file in its place, keeping what is there unless that is ours already.
    ///
    /// # Errors
    /// Those of the file system; then the file is as before.
    pub fn replace(&self, text: &str) -> Result<(), Error> {
        let had_original = match self.found()? {
            Found::Ours { had_original } => had_original,
            Found::Absent => self.forget_original().map(|()| false)?,
            Found::Theirs => self.keep_original().map(|()| true)?,
        };
        self.write_new(text, had_original)
            .and_then(|()| {
                fs::rename(&self.new, &self.file)
                    .map_err(|error| self.error("replace", &self.file, error))
            })
            .inspect_err(|_| self.undo_half())?;
        self.sync()
    }

    /// Puts the original back, if ours still stands in its place.
    ///
    /// # Errors
    /// Those of the file system; [`Error::OriginalLost`]. Then the file is as before.
    pub fn restore(&self) -> Result<Kept, Error> {
        let _ = fs::remove_file(&self.new);
        let kept = match self.found()? {
            Found::Ours { had_original: true } => {
                if fs::symlink_metadata(&self.original).is_err() {
                    return Err(Error::OriginalLost(self.original.clone()));
                }
                fs::rename(&self.original, &self.file)
                    .map_err(|error| self.error("restore", &self.file, error))?;
                Kept::Original
            }
            Found::Ours { had_original: false } => {
                fs::remove_file(&self.file)
                    .map_err(|error| self.error("remove", &self.file, error))?;
                Kept::Original
            }
            Found::Absent | Found::Theirs => match fs::symlink_metadata(&self.original) {
                Ok(original) => {
                    // Killed between keeping and replacing: both names are the original's.
                    let same = fs::symlink_metadata(&self.file)
                        .is_ok_and(|it| (it.dev(), it.ino()) == (original.dev(), original.ino()));
                    self.forget_original()?;
                    if same { Kept::Original } else { Kept::Foreign }
                }
                Err(_) => return Ok(Kept::Nothing),
            },
        };
        self.sync()?;
        Ok(kept)
    }

    fn found(&self) -> Result<Found, Error> {
        let metadata = match fs::symlink_metadata(&self.file) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Absent),
            Err(error) => return Err(self.error("read", &self.file, error)),
        };
        if !metadata.is_file() || metadata.len() > LARGEST {
            return Ok(Found::Theirs);
        }
        let all = fs::read(&self.file).map_err(|error| self.error("read", &self.file, error))?;
        let end = all.iter().position(|&byte| byte == b'\n').unwrap_or(all.len());
        let first = String::from_utf8_lossy(&all[..end]);
        let ours =
            first.strip_prefix(HEADER).is_some_and(|rest| rest.starts_with(&digest(body(&all))));
        if ours {
            Ok(Found::Ours { had_original: !first.ends_with(NO_ORIGINAL) })
        } else {
            Ok(Found::Theirs)
        }
    }

    fn keep_original(&self) -> Result<(), Error> {
        self.forget_original()?;
        fs::hard_link(&self.file, &self.original)
            .map_err(|error| self.error("keep", &self.file, error))
    }

    fn forget_original(&self) -> Result<(), Error> {
        match fs::remove_file(&self.original) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(self.error("remove", &self.original, error))
            }
            _ => Ok(()),
        }
    }

    fn write_new(&self, text: &str, had_original: bool) -> Result<(), Error> {
        let before = if had_original {
            format!("; {} is what was here before", self.original.display())
        } else {
            NO_ORIGINAL.into()
        };
        let all = format!("{HEADER}{}{before}\n{text}", digest(text.as_bytes()));
        // Left by one who was killed.
        let _ = fs::remove_file(&self.new);
        let write = |file: &mut File| {
            file.write_all(all.as_bytes())?;
            // Whatever the process's umask: everybody resolves names.
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.sync_all()
        };
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.new)
            .and_then(|mut file| write(&mut file))
            .map_err(|error| self.error("write", &self.new, error))
    }

    /// After a failure: nothing of ours stays, unless an earlier file of ours is in place.
    fn undo_half(&self) {
        let _ = fs::remove_file(&self.new);
        if !matches!(self.found(), Ok(Found::Ours { .. })) {
            let _ = fs::remove_file(&self.original);
        }
    }

    /// The names on the disk, too.
    fn sync(&self) -> Result<(), Error> {
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| self.error("sync", &self.directory, error))
    }

    fn error(&self, doing: &'static str, path: &Path, source: io::Error) -> Error {
        Error::File { doing, path: path.into(), source }
    }
}

/// All but the first line.
fn body(all: &[u8]) -> &[u8] {
    match all.iter().position(|&byte| byte == b'\n') {
        Some(end) => &all[end + 1..],
        None => &[],
    }
}

/// FNV-1a: tells an edited file from an untouched one; it need not resist anybody.
fn digest(bytes: &[u8]) -> String {
    let mix = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix))
}
