use zbus::DBusError;

/// Why a call was not done: `org.killswitch1.Error.*`. Each says what, where, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, DBusError)]
#[zbus(prefix = "org.killswitch1.Error")]
pub enum Error {
    /// It was tried, and failed. The lock is as it was.
    Failed(String),
    /// The caller may not.
    NotAuthorized(String),
    /// The configuration cannot be used. The lock is as it was.
    BadConfiguration(String),
    /// The configuration has no server of this name.
    UnknownServer(String),
    /// Something else brings the tunnel up: `tunnel.kind = "external"`.
    NotManaged(String),
    /// There is no exception of this number, or it has ended.
    UnknownException(String),
    /// The lock is open, and this means nothing then.
    NotLocked(String),
    /// An argument that means nothing.
    InvalidArgument(String),
    /// Too many calls at the same time, or one that excludes another is under way.
    Busy(String),
}

impl Error {
    /// The words.
    pub fn message(&self) -> &str {
        match self {
            Error::Failed(words)
            | Error::NotAuthorized(words)
            | Error::BadConfiguration(words)
            | Error::UnknownServer(words)
            | Error::NotManaged(words)
            | Error::UnknownException(words)
            | Error::NotLocked(words)
            | Error::InvalidArgument(words)
            | Error::Busy(words) => words,
        }
    }

    /// The same error, from its name and words.
    pub(super) fn named(name: &str, words: String) -> Self {
        let kind = match name.strip_prefix("org.killswitch1.Error.") {
            Some("NotAuthorized") => Error::NotAuthorized,
            Some("BadConfiguration") => Error::BadConfiguration,
            Some("UnknownServer") => Error::UnknownServer,
            Some("NotManaged") => Error::NotManaged,
            Some("UnknownException") => Error::UnknownException,
            Some("NotLocked") => Error::NotLocked,
            Some("InvalidArgument") => Error::InvalidArgument,
            Some("Busy") => Error::Busy,
            _ => Error::Failed,
        };
        kind(words)
    }
}
