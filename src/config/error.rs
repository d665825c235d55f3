use std::path::PathBuf;

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1; absent where the file as a whole is meant.
    pub line: Option<usize>,
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Where.
    pub location: Location,
    /// What.
    pub message: String,
}
