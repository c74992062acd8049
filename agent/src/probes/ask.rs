//! One probe: a question to a task, and what is wrong with the answer.

use std::{io, net::SocketAddr, time::Duration};

use http_body_util::Empty;
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time};
use weir_mesh::health::{Check, CheckKind};

/// Asks a task; an error says what is wrong, in a few words that begin with what was asked.
pub(super) async fn ask(address: SocketAddr, check: &Check) -> Result<(), String> {
    let answer = match &check.kind {
        CheckKind::Tcp => within(check.timeout, connect(address)).await.map(drop),
        CheckKind::Http { path } => within(check.timeout, http(address, path)).await,
    };
    answer.map_err(|problem| format!("{} {problem}", check.kind))
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let late = |_| Err(format!("did not answer within {limit:?}"));
    time::timeout(limit, work).await.unwrap_or_else(late)
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused the connection".to_owned(),
        _ => format!("did not connect: {error}"),
    })
}

async fn http(address: SocketAddr, path: &str) -> Result<(), String> {
    let stream = connect(address).await?;
    let broken = |error: hyper::Error| format!("answered no HTTP: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .header(USER_AGENT, concat!("weir/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("cannot be asked: {error}"))?;
    let answer = sender.send_request(request);
    // Driven only until the head of the answer is there: nobody wants the body.
    tokio::pin!(answer, connection);
    let status = tokio::select! {
        biased;
        answer = &mut answer => answer.map_err(broken)?.status(),
        ended = &mut connection => {
            ended.map_err(broken)?;
            answer.await.map_err(broken)?.status()
        }
    };
    judge(status)
}

fn judge(status: StatusCode) -> Result<(), String> {
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(format!("answered {}", status.as_u16()))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn check(kind: CheckKind) -> Check {
        Check { timeout: Duration::from_millis(300), ..Check::new(kind) }
    }

    fn http_check() -> Check {
        check(CheckKind::Http { path: "/healthz".to_owned() })
    }

    /// A server that reads a request and answers with these bytes; what it was asked comes back.
    async fn server(answer: &'static [u8]) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer).await.unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        (address, task)
    }

    #[tokio::test]
    async fn a_task_that_listens_passes_a_tcp_check() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(ask(address, &check(CheckKind::Tcp)).await, Ok(()));
        drop(listener);
        let refused = ask(address, &check(CheckKind::Tcp)).await;
        assert_eq!(refused, Err("tcp refused the connection".to_owned()));
    }

    #[tokio::test]
    async fn an_http_check_asks_for_the_path_and_judges_by_the_status() {
        let (address, asked) = server(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(ask(address, &http_check()).await, Ok(()));
        let asked = asked.await.unwrap().to_ascii_lowercase();
        assert!(asked.starts_with("get /healthz http/1.1\r\n"), "{asked}");
        assert!(asked.contains(&format!("\r\nhost: {address}\r\n")), "{asked}");
        let (address, _) = server(b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n").await;
        assert_eq!(ask(address, &http_check()).await, Ok(()));
        let (address, _) =
            server(b"HTTP/1.1 503 No\r\nContent-Length: 1000\r\n\r\nthe rest never comes").await;
        let answered = ask(address, &http_check()).await;
        assert_eq!(answered, Err("http /healthz answered 503".to_owned()));
    }

    #[tokio::test]
    async fn what_is_no_http_and_what_is_late_is_said() {
        let (address, _) = server(b"SSH-2.0-OpenSSH_9.9\r\n").await;
        let answered = ask(address, &http_check()).await.unwrap_err();
        assert!(answered.starts_with("http /healthz answered no HTTP: "), "{answered}");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answered = ask(listener.local_addr().unwrap(), &http_check()).await;
        assert_eq!(answered, Err("http /healthz did not answer within 300ms".to_owned()));
    }
}
