//! What can go wrong, said so that the reader knows what to do.

use std::fmt::Display;

/// A failure of the data plane: what was tried, with the value, why it failed, and the way out.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}{}", if .remedy.is_empty() { String::new() } else { format!(" ({})", .remedy) })]
pub struct Error {
    /// What was tried (`attach nic_in to eth9`).
    pub what: String,
    /// Why it failed (`no such interface`).
    pub cause: String,
    /// What to do about it; may be empty.
    pub remedy: String,
}

impl Error {
    pub(crate) fn new(what: impl Into<String>, cause: impl Display) -> Self {
        Self { what: what.into(), cause: cause.to_string(), remedy: String::new() }
    }

    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

/// Adds what was tried to an error of a lower layer.
pub(crate) trait Tried<T> {
    /// `what` is what was tried.
    fn tried(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Display> Tried<T> for Result<T, E> {
    fn tried(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|cause| Error::new(what(), cause))
    }
}
