//! Asks the agent over its admin socket.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;

use super::{Failed, SocketArgs};
use crate::{
    api,
    config::{DEFAULT_PATH, DEFAULT_SOCKET, Overrides, Settings},
};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the agent for a path of its API.
pub(super) fn get<T: DeserializeOwned>(agent: &SocketArgs, path: &str) -> Result<T, Failed> {
    ask(agent, "GET", path, TIMEOUT)
}

/// Asks the agent for a path, and gives the answer as it is.
pub(super) fn text(agent: &SocketArgs, path: &str) -> Result<String, Failed> {
    String::from_utf8(body(agent, "GET", path, TIMEOUT)?).map_err(|error| error.to_string())
}

/// Has the agent do something at once.
pub(super) fn post<T: DeserializeOwned>(agent: &SocketArgs, path: &str) -> Result<T, Failed> {
    ask(agent, "POST", path, TIMEOUT)
}

/// Has the agent do something that may take some time.
pub(super) fn post_patiently<T: DeserializeOwned>(
    agent: &SocketArgs,
    path: &str,
    most: Duration,
) -> Result<T, Failed> {
    ask(agent, "POST", path, most)
}

fn ask<T: DeserializeOwned>(
    agent: &SocketArgs,
    method: &str,
    path: &str,
    most: Duration,
) -> Result<T, Failed> {
    let body = body(agent, method, path, most)?;
    serde_json::from_slice(&body).map_err(|error| {
        let socket = socket_path(agent);
        format!("the agent at {} answers in another version's terms: {error}", socket.display())
    })
}

fn body(agent: &SocketArgs, method: &str, path: &str, most: Duration) -> Result<Vec<u8>, Failed> {
    let socket = socket_path(agent);
    let answer =
        exchange(&socket, method, path, most).map_err(|error| unreachable(&socket, &error))?;
    let (head, body) = split(&answer).ok_or_else(|| foreign(&socket))?;
    let ok = head.split(' ').nth(1) == Some("200");
    if !ok {
        let failure = serde_json::from_slice::<api::Failure>(body).map(|failure| failure.error);
        return Err(failure.unwrap_or_else(|_| foreign(&socket)));
    }
    Ok(body.to_owned())
}

fn exchange(socket: &Path, method: &str, path: &str, most: Duration) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(most))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // HTTP/1.0: the answer ends where the stream ends, and is never chunked.
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: weir\r\nContent-Length: 0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

fn split(answer: &[u8]) -> Option<(&str, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    Some((head.lines().next()?, &answer[end + 4..]))
}

/// The flag or variable, else what the default configuration says, else the default.
fn socket_path(agent: &SocketArgs) -> PathBuf {
    let configured = || {
        let path = Path::new(DEFAULT_PATH);
        let text = std::fs::read_to_string(path).ok()?;
        Settings::read(path, &text, &Overrides::default()).ok()?.socket
    };
    agent.socket.clone().or_else(configured).unwrap_or_else(|| DEFAULT_SOCKET.into())
}

/// A part of a query; names need no escapes.
pub(super) fn value(key: &str, text: &str) -> Result<String, Failed> {
    let sendable = text.bytes().all(|byte| byte.is_ascii_graphic() && !b"&#%".contains(&byte));
    match sendable && !text.is_empty() {
        true => Ok(format!("&{key}={text}")),
        false => Err(format!("\"{text}\" is no {key}")),
    }
}

fn foreign(socket: &Path) -> Failed {
    format!("whoever listens on {} is no weir agent; name another with --socket", socket.display())
}

fn unreachable(socket: &Path, error: &io::Error) -> Failed {
    let (why, remedy) = match error.kind() {
        io::ErrorKind::NotFound => (
            "no such file",
            "start the agent (weir agent --config /etc/weir/weir.toml), or name the socket of a \
             running one with --socket PATH",
        ),
        io::ErrorKind::PermissionDenied => {
            ("permission denied", "run this as root, or as a member of the socket's group")
        }
        io::ErrorKind::ConnectionRefused => (
            "nobody listens there any more: the agent has ended without cleaning up",
            "start it again (weir agent --config /etc/weir/weir.toml); forwarding goes on meanwhile",
        ),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ("it did not answer in time", "look at the agent's log")
        }
        _ => return format!("cannot reach the agent at {}: {error}", socket.display()),
    };
    format!("cannot reach the agent at {}: {why}; {remedy}", socket.display())
}
