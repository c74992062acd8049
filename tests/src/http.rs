//! One HTTP request, by hand: enough for probes and assertions, without a client library.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// How long a single request may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body as text.
    pub body: String,
    /// Our own address of the connection, to compare with what the task saw.
    pub local: Option<SocketAddr>,
}

impl Netns {
    /// `GET path` over a new TCP connection from inside the namespace.
    pub fn http_get(&self, target: SocketAddr, path: &str) -> Result<Answer> {
        self.run(|| -> Result<Answer> {
            let stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            let local = stream.local_addr()?;
            Ok(Answer { local: Some(local), ..exchange(stream, path)? })
        })
        .with_context(|| format!("GET http://{target}{path}"))
    }
}

/// `GET path` over a unix socket, as the agent's API is asked.
pub fn unix_get(socket: &Path, path: &str) -> Result<Answer> {
    let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    exchange(stream, path).with_context(|| format!("GET {path} at {}", socket.display()))
}

fn exchange(mut stream: impl Read + Write, path: &str) -> Result<Answer> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&String::from_utf8_lossy(&bytes))
}

fn parse(text: &str) -> Result<Answer> {
    let (head, body) = text.split_once("\r\n\r\n").context("no end of the head")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("no status in {head:?}"))?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { dechunked(body) } else { body.to_owned() };
    Ok(Answer { status, body, local: None })
}

/// The data of a chunked body; ends at the last whole chunk.
fn dechunked(mut body: &str) -> String {
    let mut data = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else { break };
        let (Some(chunk), false) = (rest.get(..size), size == 0) else { break };
        data.push_str(chunk);
        body = rest.get(size + 2..).unwrap_or_default();
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_bodies_are_read() {
        let plain = parse("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").unwrap();
        assert_eq!((plain.status, plain.body.as_str()), (200, "hi"));
        let head = "HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunked = parse(&format!("{head}2\r\nhi\r\n3\r\n you\r\n0\r\n\r\n")).unwrap();
        assert_eq!(chunked.status, 503);
        assert_eq!(dechunked("2\r\nhi\r\n4\r\n you\r\n0\r\n\r\n"), "hi you");
    }
}
