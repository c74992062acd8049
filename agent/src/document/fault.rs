//! One mistake in a document, and the collection of all of them.

use std::{cell::RefCell, fmt, path::Path};

use serde::Serialize;

use super::Value;

/// Where something was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// A line of a file; lines count from 1.
    Line {
        /// The file, as the user named it.
        file: String,
        /// The line.
        line: usize,
    },
    /// A file as a whole.
    File(String),
    /// A command-line flag.
    Flag(String),
    /// An environment variable.
    Variable(String),
    /// What the host said where nothing was set.
    Host,
    /// Something in the Swarm (`service web`).
    Swarm(String),
}

/// One mistake: where, what, and the way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Where it stands.
    pub place: Place,
    /// The key, with what it belongs to (`service web: task web.1: node`); may be empty.
    pub key: String,
    /// The offending value as written, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// Collects the faults of one document.
#[derive(Debug)]
pub struct Findings<'i> {
    file: &'i str,
    text: &'i str,
    found: RefCell<Vec<Found>>,
}

#[derive(Debug)]
enum At {
    Offset(usize),
    Known(Place),
}

#[derive(Debug)]
struct Found {
    at: At,
    key: String,
    value: Option<String>,
    problem: String,
    remedy: String,
}

// === impl Findings ===

impl<'i> Findings<'i> {
    /// Nothing found yet in the text of `file`.
    pub fn new(file: &'i str, text: &'i str) -> Self {
        Self { file, text, found: RefCell::default() }
    }

    /// The whole text.
    pub fn text(&self) -> &'i str {
        self.text
    }

    /// The line on which `offset` lies, counted from 1.
    pub fn line_of(&self, offset: usize) -> usize {
        line_at(self.text, offset)
    }

    /// Notes a mistake at a byte offset.
    pub fn note(
        &self,
        offset: usize,
        key: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.push(At::Offset(offset), key.into(), None, problem.into(), remedy.into());
    }

    /// Notes a mistake that the host, not the document, is the cause of.
    pub fn note_host(&self, key: &str, problem: impl Into<String>, remedy: impl Into<String>) {
        self.push(At::Known(Place::Host), key.into(), None, problem.into(), remedy.into());
    }

    pub(super) fn note_syntax(&self, offset: usize, message: &str) {
        let remedy = "mend the TOML there; a string needs quotes, a table a header in brackets";
        self.note(offset, "", format!("not valid TOML: {message}"), remedy);
    }

    pub(super) fn note_value(&self, value: &Value<'_, '_>, problem: String, remedy: String) {
        let at = match value.place() {
            Some(place) => At::Known(place.clone()),
            None => At::Offset(value.offset()),
        };
        self.push(at, value.key(), Some(value.as_written()), problem, remedy);
    }

    fn push(&self, at: At, key: String, value: Option<String>, problem: String, remedy: String) {
        self.found.borrow_mut().push(Found { at, key, value, problem, remedy });
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.found.borrow().is_empty()
    }

    /// The faults in the order of their lines; those from elsewhere come first.
    pub fn into_faults(self) -> Vec<Fault> {
        let mut found = self.found.into_inner();
        found.sort_by_key(|found| match found.at {
            At::Known(_) => 0,
            At::Offset(offset) => offset + 1,
        });
        let (mut line, mut counted) = (1, 0);
        let bytes = self.text.as_bytes();
        let mut faults: Vec<Fault> = found
            .into_iter()
            .map(|found| {
                let place = match found.at {
                    At::Known(place) => place,
                    At::Offset(offset) => {
                        let end = offset.clamp(counted, bytes.len());
                        line += newlines(&bytes[counted..end]);
                        counted = end;
                        Place::Line { file: self.file.to_owned(), line }
                    }
                };
                Fault {
                    place,
                    key: found.key,
                    value: found.value,
                    problem: found.problem,
                    remedy: found.remedy,
                }
            })
            .collect();
        faults.dedup();
        faults
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + newlines(&text.as_bytes()[..offset.min(text.len())])
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

// === impl Fault ===

impl Fault {
    /// A fault of a file as a whole (it cannot be read, it is empty).
    pub fn of_file(path: &Path, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            place: Place::File(path.display().to_string()),
            key: String::new(),
            value: None,
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        match (&self.value, self.key.is_empty()) {
            (Some(value), false) => write!(f, "{} = {value}: ", self.key)?,
            (None, false) => write!(f, "{}: ", self.key)?,
            (_, true) => {}
        }
        f.write_str(&self.problem)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{file}:{line}"),
            Self::File(file) => f.write_str(file),
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Variable(variable) => f.write_str(variable),
            Self::Host => f.write_str("this host"),
            Self::Swarm(about) => f.write_str(about),
        }
    }
}
