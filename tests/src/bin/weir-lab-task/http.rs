//! A small HTTP/1.1 server: requests without bodies, keep-alive, pipelining.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::{Server, listen};

/// How long open requests may take after SIGTERM: less than an orchestrator's ten seconds.
const FINISH: Duration = Duration::from_secs(9);
/// How long an idle connection is kept after SIGTERM, so that its next request is answered with
/// `Connection: close` instead of meeting a connection that was closed under it.
const LAST_REQUEST: Duration = Duration::from_secs(1);

pub async fn serve(server: Server) -> Result<()> {
    let listener = listen::tcp(server.listen)?;
    let ending = listen::ending(server.on_term)?;
    let name: &'static str = server.name.leak();
    let mut connections = JoinSet::new();
    let end = listen::end_of_listening(ending.clone(), server.linger);
    accept_until(end, listener, name, &ending, &mut connections).await;
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(FINISH, all).await;
    // With the process its network namespace ends, and with that what was not acknowledged yet.
    sleep(Duration::from_millis(server.linger)).await;
    Ok(())
}

/// The listener is dropped at the end: from then on the port refuses.
async fn accept_until(
    end: impl Future<Output = ()>,
    listener: TcpListener,
    name: &'static str,
    ending: &watch::Receiver<bool>,
    connections: &mut JoinSet<()>,
) {
    let mut end = pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return,
            accepted = listener.accept() => if let Ok((stream, client)) = accepted {
                let connection = Connection { stream, name, client: listen::client(client) };
                connections.spawn(connection.serve(ending.clone()));
            },
            Some(_) = connections.join_next() => (),
        }
    }
}

struct Connection {
    stream: TcpStream,
    name: &'static str,
    client: SocketAddr,
}

impl Connection {
    /// Ends with the client, at an error, after a request that asks for it, or when the server
    /// ends and no request comes any more.
    async fn serve(mut self, mut ending: watch::Receiver<bool>) {
        let _ = self.stream.set_nodelay(true);
        let mut received = Vec::with_capacity(1024);
        loop {
            while let Some(end) = end_of_head(&received) {
                let request = Request::parse(&received[..end]);
                received.drain(..end);
                let close = request.close || *ending.borrow();
                let answered = self.answer(&request, close, &ending).await;
                if answered.is_err() || close {
                    return;
                }
            }
            let read = tokio::select! {
                read = self.stream.read_buf(&mut received) => read,
                () = idle_end(&mut ending), if received.is_empty() => return,
            };
            if !matches!(read, Ok(1..)) {
                return;
            }
        }
    }

    async fn answer(
        &mut self,
        request: &Request,
        close: bool,
        ending: &watch::Receiver<bool>,
    ) -> std::io::Result<()> {
        if let Some(pause) = request.pause {
            sleep(pause).await;
        }
        let close = close || *ending.borrow();
        let body = match request.bytes {
            Some(bytes) => "x".repeat(bytes),
            None => format!("{} {}\n", self.name, self.client),
        };
        let connection = if close { "close" } else { "keep-alive" };
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
             Connection: {connection}\r\n\r\n{body}"
        );
        self.stream.write_all(answer.as_bytes()).await
    }
}

async fn idle_end(ending: &mut watch::Receiver<bool>) {
    let _ = ending.wait_for(|ended| *ended).await;
    sleep(LAST_REQUEST).await;
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|position| position + 4)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Request {
    close: bool,
    pause: Option<Duration>,
    bytes: Option<usize>,
}

impl Request {
    fn parse(head: &[u8]) -> Self {
        let text = String::from_utf8_lossy(head);
        let path = text.split(' ').nth(1).unwrap_or("/");
        let number = |prefix| path.strip_prefix(prefix).and_then(|rest| rest.parse().ok());
        Self {
            close: text.to_ascii_lowercase().contains("\r\nconnection: close"),
            pause: number("/slow/").map(Duration::from_millis),
            bytes: number("/bytes/").and_then(|bytes| usize::try_from(bytes).ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_says_what_to_do() {
        let slow = Request::parse(b"GET /slow/50 HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(slow.pause, Some(Duration::from_millis(50)));
        let bytes = Request::parse(b"GET /bytes/7 HTTP/1.1\r\nConnection: close\r\n\r\n");
        assert_eq!((bytes.bytes, bytes.close), (Some(7), true));
        assert_eq!(Request::parse(b"GET / HTTP/1.1\r\n\r\n"), Request::default());
    }
}
