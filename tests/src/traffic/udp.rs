//! UDP load: a request, an answer, and what did not come back.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::{Attempt, FailureKind, Job, Report, Running, Shape, tick};
use crate::netns::Netns;

/// A load of UDP requests to echo servers that say their name. Default: a new socket per request,
/// 8 at a time, sockets not connected, until stopped.
#[derive(Debug, Clone)]
pub struct UdpLoad {
    shape: Shape,
    keep_socket: bool,
    connected: bool,
    unused_ports: bool,
    size: usize,
}

impl UdpLoad {
    /// Load from a namespace to these addresses, in turn.
    pub fn new(netns: &Netns, targets: impl IntoIterator<Item = SocketAddr>) -> Self {
        let shape = Shape::new(netns, targets);
        Self { shape, keep_socket: false, connected: false, unused_ports: false, size: 32 }
    }

    /// Keeps sockets, and so flows: each stays with its target until a request fails.
    pub fn keep_socket(self) -> Self {
        Self { keep_socket: true, ..self }
    }

    /// Connects the sockets: ICMP errors are seen ([`FailureKind::Refused`]), answers from a wrong
    /// address are not (they look lost).
    pub fn connected(self) -> Self {
        Self { connected: true, ..self }
    }

    /// Goes through the port numbers in turn, over all loads of a process, so that every request
    /// begins a flow. The kernel
    /// chooses ports by chance, and flow tables remember the last flow of a port for minutes.
    pub fn unused_ports(self) -> Self {
        Self { unused_ports: true, ..self }
    }

    /// The number of bytes in a request, at least 24.
    pub fn size(self, size: usize) -> Self {
        Self { size: size.max(24), ..self }
    }

    /// How many requests are in flight at most.
    pub fn sockets(mut self, sockets: usize) -> Self {
        self.shape.workers = sockets;
        self
    }

    /// Ends after so many requests.
    pub fn requests(mut self, requests: u64) -> Self {
        self.shape.requests = Some(requests);
        self
    }

    /// Requests a second over all sockets; default is as many as go.
    pub fn rate(mut self, per_second: u64) -> Self {
        self.shape.rate = Some(per_second);
        self
    }

    /// When an answer counts as lost. Default 2 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.shape.timeout = timeout;
        self
    }

    /// Starts it.
    pub fn start(self) -> Result<Running> {
        let Self { shape, keep_socket, connected, unused_ports, size } = self;
        let how = How { keep_socket, connected, unused_ports, size };
        Job::start(shape, async move |job, index| worker(job, index, how).await)
    }

    /// Makes the given number of requests and waits for the answers.
    pub fn run(self) -> Result<Report> {
        self.start()?.wait()
    }
}

#[derive(Clone, Copy)]
struct How {
    keep_socket: bool,
    connected: bool,
    unused_ports: bool,
    size: usize,
}

async fn worker(job: &Job, index: usize, how: How) {
    let mut pace = job.pace(index);
    let (mut turn, mut open) = (index, None);
    let (mut sequence, keep_socket) = (0, how.keep_socket);
    while job.take() {
        tick(&mut pace).await;
        sequence += 1;
        let request = payload(index, sequence, how.size);
        let port = if how.unused_ports { next_port() } else { 0 };
        let how = (how.connected, port);
        open = request_once(job, turn, open, &request, how).await.filter(|_| keep_socket);
        if open.is_none() {
            turn += 1;
        }
    }
}

/// Another port every time, until all have been used.
fn next_port() -> u16 {
    const FIRST: u16 = 1024;
    static USED: AtomicU64 = AtomicU64::new(0);
    let used = USED.fetch_add(1, Ordering::Relaxed);
    FIRST + (used % u64::from(u16::MAX - FIRST)) as u16
}

/// Ends in a dot and is padded with dots, so that no request is the end of another one.
fn payload(worker: usize, sequence: u64, size: usize) -> String {
    let mut text = format!(" {worker}:{sequence}.");
    while text.len() < size {
        text.push('.');
    }
    text
}

async fn request_once(
    job: &Job,
    turn: usize,
    open: Option<Socket>,
    request: &str,
    (connected, port): (bool, u16),
) -> Option<Socket> {
    let (since, limit) = (Instant::now(), job.shape.timeout);
    let target = open.as_ref().map_or_else(|| job.target(turn), |open| open.target);
    let mut attempt = Attempt { target, local: None, since };
    let opened = match open {
        Some(open) => Ok(open),
        None => Socket::open(target, connected, port).await,
    };
    let socket = match opened {
        Ok(socket) => socket,
        Err(error) => {
            job.failure(FailureKind::of(&error), attempt, error.to_string());
            return None;
        }
    };
    attempt.local = socket.socket.local_addr().ok();
    match timeout(limit, socket.exchange(request)).await {
        Ok(Ok(Reply::Right(answer))) => {
            job.success(&answer, since);
            return Some(socket);
        }
        Ok(Ok(Reply::From(other))) => {
            job.failure(FailureKind::WrongSource, attempt, format!("answer from {other}"));
        }
        Ok(Err(error)) => job.failure(FailureKind::of(&error), attempt, error.to_string()),
        Err(_) => job.failure(FailureKind::AnswerTimeout, attempt, "no answer".to_owned()),
    }
    None
}

struct Socket {
    socket: UdpSocket,
    target: SocketAddr,
    connected: bool,
}

enum Reply {
    Right(String),
    From(SocketAddr),
}

impl Socket {
    async fn open(target: SocketAddr, connected: bool, port: u16) -> io::Result<Self> {
        let any: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, port)).await?;
        if connected {
            socket.connect(target).await?;
        }
        Ok(Self { socket, target, connected })
    }

    /// Answers to earlier requests, which were counted as lost, are skipped.
    async fn exchange(&self, request: &str) -> io::Result<Reply> {
        match self.connected {
            true => self.socket.send(request.as_bytes()).await?,
            false => self.socket.send_to(request.as_bytes(), self.target).await?,
        };
        let mut buffer = vec![0; 65536];
        loop {
            let (length, source) = self.socket.recv_from(&mut buffer).await?;
            if source != self.target {
                return Ok(Reply::From(source));
            }
            let answer = String::from_utf8_lossy(&buffer[..length]);
            if let Some(said) = answer.strip_suffix(request) {
                return Ok(Reply::Right(said.to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_used_again_only_after_all_others() {
        let ports: std::collections::BTreeSet<_> = (0..60_000).map(|_| next_port()).collect();
        assert_eq!(ports.len(), 60_000);
    }

    #[test]
    fn no_request_is_the_end_of_another() {
        assert_eq!(payload(1, 2, 8), " 1:2....");
        assert!(!payload(0, 12, 24).ends_with(&payload(0, 2, 24)));
    }
}
