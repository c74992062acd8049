//! Something that is not as it was asked for, while the rest goes on.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Something that was left out of the mesh or replaced by a default, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Note {
    /// What it is about (`service web`).
    pub about: String,
    /// The label, port or field; may be empty.
    pub key: String,
    /// The value as it was written, if there is one.
    pub value: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.about)?;
        match (&self.value, self.key.is_empty()) {
            (Some(value), false) => write!(f, "{} = {value}: ", self.key)?,
            (None, false) => write!(f, "{}: ", self.key)?,
            (_, true) => {}
        }
        write!(f, "{}; {}", self.problem, self.remedy)
    }
}
