use std::fmt::{Display, Formatter};

/// What failed in the laboratory, in words.
#[derive(Debug, Clone)]
pub struct Error(String);

/// Of everything here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// From words.
    pub fn new(what: impl Display) -> Self {
        Error(what.to_string())
    }
}

impl Display for Error {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// "`what`: the error".
    ///
    /// # Errors
    /// Those of the value.
    fn during(self, what: impl Display) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn during(self, what: impl Display) -> Result<T> {
        self.map_err(|error| Error(format!("{what}: {error}")))
    }
}
