//! Files that are there whole, or not at all.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A file that is written beside its place, and moved there when it is whole: whoever reads it sees
/// the old one or the new one.
pub(super) struct NewFile {
    place: PathBuf,
    beside: PathBuf,
    file: File,
}

impl NewFile {
    /// So that what cannot be written is known before there is anything to write. `mode`: whatever
    /// the umask.
    ///
    /// # Errors
    /// Those of files, with the file's name; so has [`NewFile::put`].
    pub(super) fn open(place: &Path, mode: u32) -> io::Result<Self> {
        let fail = |error| cannot_be_written(place, &error);
        if place.is_dir() {
            return Err(fail(ErrorKind::IsADirectory.into()));
        }
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        // Neither taken for a finished one, nor met by another process.
        let beside = place.with_file_name(format!(".{name}.{}.new", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside);
        let new = NewFile { place: place.to_owned(), beside, file: file.map_err(fail)? };
        new.file.set_permissions(Permissions::from_mode(mode)).map_err(fail)?;
        Ok(new)
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// The old one then stays.
    pub(super) fn put(mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_all());
        let moved = written.and_then(|()| fs::rename(&self.beside, &self.place));
        moved.map_err(|error| cannot_be_written(&self.place, &error))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // It is not there any more if it was moved.
        let _ = fs::remove_file(&self.beside);
    }
}

fn cannot_be_written(place: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: cannot be written: {error}", place.display()))
}
