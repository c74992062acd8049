//! Asks dockerd over its socket: one connection for each question, each bounded in time and size.
//!
//! Read-only by construction: nothing but GET. `docs/decisions/0008-own-reader-of-the-docker-api.md`
//! says why this is not a library.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, Response, body::Bytes, body::Incoming, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};

/// The newest version of the API whose answers are known here.
const NEWEST: Version = Version(1, 53);
/// That of Docker 20.10, the oldest with all that is read.
const OLDEST: Version = Version(1, 41);
/// A busy dockerd takes seconds to answer; one that takes longer does not work.
const PATIENCE: Duration = Duration::from_secs(10);
/// 20,000 tasks are about 60 MiB.
const MOST_BYTES: usize = 256 << 20;
/// An event is some hundred bytes.
const MOST_EVENT_BYTES: usize = 1 << 20;

/// Why dockerd was not understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket.
    #[error("no such file")]
    Missing,
    /// The socket may not be used.
    #[error("permission denied")]
    Forbidden,
    /// Nobody listens.
    #[error("nobody listens there")]
    Refused,
    /// It does not answer in time.
    #[error("{question} was not answered within {} s", PATIENCE.as_secs())]
    Slow {
        /// What was asked.
        question: String,
    },
    /// The connection broke.
    #[error("{question}: the answer was cut off: {cause}")]
    Cut {
        /// What was asked.
        question: String,
        /// How.
        cause: String,
    },
    /// It refuses.
    #[error("{question} is answered with {status}: {message}")]
    Status {
        /// What was asked.
        question: String,
        /// The HTTP status.
        status: u16,
        /// What it says about it.
        message: String,
    },
    /// The answer is not what the API promises.
    #[error("{question} is answered with something else: {cause}")]
    Nonsense {
        /// What was asked.
        question: String,
        /// What does not fit.
        cause: String,
    },
    /// Not a version that is understood.
    #[error("its API has the versions {least} to {newest}, and weir speaks 1.41 to 1.53")]
    Version {
        /// The oldest it speaks.
        least: String,
        /// The newest it speaks.
        newest: String,
    },
    /// The stream of events has ended, as it does when dockerd stops.
    #[error("dockerd has ended the stream of events")]
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u16, u16);

/// Asks one dockerd.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    version: Version,
}

/// Events, as they happen.
#[derive(Debug)]
pub struct Events<T> {
    body: Incoming,
    read: Vec<u8>,
    question: String,
    kind: std::marker::PhantomData<fn() -> T>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Versions {
    api_version: String,
    #[serde(rename = "MinAPIVersion")]
    least: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

// === impl Client ===

impl Client {
    /// Agrees with the dockerd behind `socket` on a version of the API.
    pub async fn connect(socket: &Path) -> Result<Self, Error> {
        let client = Self { socket: socket.to_owned(), version: NEWEST };
        let versions: Versions = client.ask("/version").await?;
        let least = versions.least.unwrap_or_else(|| versions.api_version.clone());
        let unfit =
            || Error::Version { least: least.clone(), newest: versions.api_version.clone() };
        let newest = Version::parse(&versions.api_version).ok_or_else(unfit)?;
        let version = newest.min(NEWEST);
        if version < OLDEST || Version::parse(&least).ok_or_else(unfit)? > version.max(OLDEST) {
            return Err(unfit());
        }
        Ok(Self { version, ..client })
    }

    /// The answer to a question such as `/info`.
    pub async fn get<T: DeserializeOwned>(&self, question: &str) -> Result<T, Error> {
        self.ask(&format!("/v{}.{}{question}", self.version.0, self.version.1)).await
    }

    /// The events that pass `filters`, from now on. They are subscribed to when this returns.
    pub async fn events<T: DeserializeOwned>(
        &self,
        filters: &serde_json::Value,
    ) -> Result<Events<T>, Error> {
        let filters = encode(&filters.to_string());
        let question = format!("/v{}.{}/events", self.version.0, self.version.1);
        let asked = format!("{question}?filters={filters}");
        let answer = timeout(PATIENCE, self.send(&asked)).await;
        let answer = answer.map_err(|_| Error::Slow { question: question.clone() })??;
        let body = accepted(answer, &question).await?.into_body();
        Ok(Events { body, read: Vec::new(), question, kind: std::marker::PhantomData })
    }

    async fn ask<T: DeserializeOwned>(&self, question: &str) -> Result<T, Error> {
        let short = question.split('?').next().unwrap_or(question).to_owned();
        let answer = async {
            let answer = accepted(self.send(question).await?, &short).await?;
            whole(answer, &short).await
        };
        let answer = timeout(PATIENCE, answer).await;
        let bytes = answer.map_err(|_| Error::Slow { question: short.clone() })??;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::Nonsense { question: short, cause: error.to_string() })
    }

    async fn send(&self, question: &str) -> Result<Response<Incoming>, Error> {
        let short = question.split('?').next().unwrap_or(question);
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Error::Missing,
                io::ErrorKind::PermissionDenied => Error::Forbidden,
                io::ErrorKind::ConnectionRefused => Error::Refused,
                _ => Error::Cut { question: short.to_owned(), cause: error.to_string() },
            })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| cut(short, &error))?;
        // It ends when the answer has been read or dropped.
        tokio::spawn(connection);
        let request = Request::get(question).header(HOST, "docker").body(Empty::<Bytes>::new());
        let request = request
            .map_err(|error| Error::Cut { question: short.to_owned(), cause: error.to_string() })?;
        sender.send_request(request).await.map_err(|error| cut(short, &error))
    }
}

fn cut(question: &str, error: &hyper::Error) -> Error {
    let question = question.to_owned();
    if error.is_parse() {
        return Error::Nonsense { question, cause: error.to_string() };
    }
    Error::Cut { question, cause: error.to_string() }
}

async fn accepted(answer: Response<Incoming>, question: &str) -> Result<Response<Incoming>, Error> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let text = whole(answer, question).await.unwrap_or_default();
    let message = match serde_json::from_slice::<Refusal>(&text) {
        Ok(refusal) => refusal.message,
        Err(_) => String::from_utf8_lossy(&text).chars().take(200).collect(),
    };
    let message = message.trim().to_owned();
    Err(Error::Status { question: question.to_owned(), status: status.as_u16(), message })
}

async fn whole(answer: Response<Incoming>, question: &str) -> Result<Bytes, Error> {
    let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
    let body = body
        .map_err(|error| Error::Cut { question: question.to_owned(), cause: error.to_string() })?;
    Ok(body.to_bytes())
}

/// For the value of a query: everything but letters and digits is escaped.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

// === impl Events ===

impl<T: DeserializeOwned> Events<T> {
    /// The next event. Nothing is lost when this is dropped before it is ready.
    pub async fn next(&mut self) -> Result<T, Error> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return serde_json::from_slice(&line).map_err(|error| self.nonsense(error));
            }
            if self.read.len() > MOST_EVENT_BYTES {
                return Err(self.nonsense("an event without end"));
            }
            match self.body.frame().await {
                None => return Err(Error::Ended),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(cut(&self.question, &error)),
            }
        }
    }

    fn nonsense(&self, cause: impl ToString) -> Error {
        Error::Nonsense { question: self.question.clone(), cause: cause.to_string() }
    }
}

// === impl Version ===

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

// === impl Error ===

impl Error {
    /// A word for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Forbidden => "forbidden",
            Self::Refused => "refused",
            Self::Slow { .. } => "slow",
            Self::Cut { .. } | Self::Ended => "cut",
            Self::Status { .. } => "refusal",
            Self::Nonsense { .. } => "invalid",
            Self::Version { .. } => "version",
        }
    }

    /// What somebody can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Missing => {
                "start dockerd, mount its socket, or set source.docker.socket to where it is"
            }
            Self::Forbidden => "run the agent as root, or as a member of the socket's group",
            Self::Refused | Self::Ended | Self::Cut { .. } => {
                "see whether dockerd runs (systemctl status docker); weir tries again until it does"
            }
            Self::Slow { .. } => "look at dockerd's log and the load of this host",
            Self::Status { .. } => "look at dockerd's log",
            Self::Nonsense { .. } => "see that source.docker.socket is the socket of a dockerd",
            Self::Version { .. } => "use Docker 20.10 or newer, and a weir that knows it",
        }
    }

    /// Whether dockerd says that there is no such thing.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Status { status: 404, .. })
    }
}
