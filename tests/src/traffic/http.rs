//! HTTP/1.1 load with plain sockets: the client must be cheaper than what it measures.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Attempt, FailureKind, Job, Report, Running, Shape, tick};
use crate::netns::Netns;

/// A load of HTTP requests. Default: a new connection per request, 8 at a time, until stopped.
#[derive(Debug, Clone)]
pub struct HttpLoad {
    shape: Shape,
    keep_alive: bool,
    path: String,
}

impl HttpLoad {
    /// Load from a namespace to these addresses, in turn.
    pub fn new(netns: &Netns, targets: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self { shape: Shape::new(netns, targets), keep_alive: false, path: "/".to_owned() }
    }

    /// Keeps connections: each stays with its target until it ends or fails.
    pub fn keep_alive(self) -> Self {
        Self { keep_alive: true, ..self }
    }

    /// What is asked for: the task program knows `/`, `/slow/MS` and `/bytes/N`.
    pub fn path(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    /// How many requests are in flight at most.
    pub fn connections(mut self, connections: usize) -> Self {
        self.shape.workers = connections;
        self
    }

    /// Ends after so many requests.
    pub fn requests(mut self, requests: u64) -> Self {
        self.shape.requests = Some(requests);
        self
    }

    /// Requests a second over all connections; default is as many as go.
    pub fn rate(mut self, per_second: u64) -> Self {
        self.shape.rate = Some(per_second);
        self
    }

    /// How long the connection, and then the answer, may take. Default 2 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.shape.timeout = timeout;
        self
    }

    /// Starts it.
    pub fn start(self) -> Result<Running> {
        let Self { shape, keep_alive, path } = self;
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: weir\r\nConnection: {connection}\r\n\r\n");
        let request: &'static str = request.leak(); // one small string per load of a test
        match keep_alive {
            true => Job::start(shape, async move |job, index| kept(job, index, request).await),
            false => Job::start(shape, async move |job, index| fresh(job, index, request).await),
        }
    }

    /// Makes the given number of requests and waits for the answers.
    pub fn run(self) -> Result<Report> {
        self.start()?.wait()
    }
}

async fn fresh(job: &Job, index: usize, request: &str) {
    let mut pace = job.pace(index);
    let mut turn = index;
    while job.take() {
        tick(&mut pace).await;
        drop(request_once(job, turn, None, request).await);
        turn += 1;
    }
}

async fn kept(job: &Job, index: usize, request: &str) {
    let mut pace = job.pace(index);
    let (mut turn, mut connection) = (index, None);
    while job.take() {
        tick(&mut pace).await;
        connection = request_once(job, turn, connection, request).await;
        if connection.is_none() {
            turn += 1;
        }
    }
}

/// Makes one request and counts it; gives back the connection when it can be used again.
async fn request_once(
    job: &Job,
    turn: usize,
    connection: Option<Connection>,
    request: &str,
) -> Option<Connection> {
    let (since, limit) = (Instant::now(), job.shape.timeout);
    let target = connection.as_ref().map_or_else(|| job.target(turn), |open| open.target);
    let mut attempt = Attempt { target, local: None, since };
    let mut connection = match connection {
        Some(open) => open,
        None => match timeout(limit, Connection::open(target)).await {
            Ok(Ok(open)) => open,
            Ok(Err(error)) => {
                job.failure(FailureKind::of(&error), attempt, error.to_string());
                return None;
            }
            Err(_) => {
                job.failure(FailureKind::ConnectTimeout, attempt, "connect".to_owned());
                return None;
            }
        },
    };
    attempt.local = connection.local;
    match timeout(limit, connection.exchange(request)).await {
        Ok(Ok(Answer { body, reusable })) => {
            job.success(&body, since);
            reusable.then_some(connection)
        }
        Ok(Err(error)) => {
            job.failure(connection.kind_of(&error), attempt, error.to_string());
            None
        }
        Err(_) => {
            job.failure(FailureKind::AnswerTimeout, attempt, "answer".to_owned());
            None
        }
    }
}

struct Connection {
    stream: TcpStream,
    target: SocketAddr,
    local: Option<SocketAddr>,
    answers: u64,
    received: Vec<u8>,
}

struct Answer {
    body: String,
    reusable: bool,
}

impl Connection {
    async fn open(target: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr().ok();
        Ok(Self { stream, target, local, answers: 0, received: Vec::with_capacity(1024) })
    }

    async fn exchange(&mut self, request: &str) -> io::Result<Answer> {
        self.received.clear();
        self.stream.write_all(request.as_bytes()).await?;
        let head = self.read_until_head().await?;
        while self.received.len() < head.end + head.length {
            self.read_some().await?;
        }
        let body = &self.received[head.end..head.end + head.length];
        let body = String::from_utf8_lossy(body).into_owned();
        self.answers += 1;
        Ok(Answer { body, reusable: !head.close })
    }

    async fn read_until_head(&mut self) -> io::Result<Head> {
        loop {
            if let Some(head) = Head::parse(&self.received)? {
                return Ok(head);
            }
            self.read_some().await?;
        }
    }

    async fn read_some(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.received).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    fn kind_of(&self, error: &io::Error) -> FailureKind {
        match FailureKind::of(error) {
            FailureKind::Closed if self.answers > 0 && self.received.is_empty() => {
                FailureKind::ClosedWhenReused
            }
            kind => kind,
        }
    }
}

/// The part of an answer's head that matters here.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    end: usize,
    length: usize,
    close: bool,
}

impl Head {
    fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let bad = || io::Error::new(io::ErrorKind::InvalidData, text.clone());
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).ok_or_else(bad)?;
        if status != "200" {
            return Err(bad());
        }
        let headers: Vec<_> = lines.filter_map(|line| line.split_once(':')).collect();
        let value = |name| headers.iter().find(|(key, _)| *key == name).map(|(_, v)| v.trim());
        let length = value("content-length").and_then(|v| v.parse().ok()).ok_or_else(bad)?;
        Ok(Some(Self { end: end + 4, length, close: value("connection") == Some("close") }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
        assert_eq!(Head::parse(&text[..20]).unwrap(), None);
        let head = Head::parse(text).unwrap().unwrap();
        assert_eq!(head, Head { end: text.len() - 5, length: 5, close: true });
    }

    #[test]
    fn another_status_is_a_bad_answer() {
        let error = Head::parse(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").unwrap_err();
        assert_eq!(FailureKind::of(&error), FailureKind::BadAnswer);
    }
}
