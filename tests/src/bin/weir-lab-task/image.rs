//! The task of the lab's Docker images: HTTP and echo in one process, and a health check.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use tokio::time::sleep;

use crate::{OnTerm, Server, echo, http};

const HTTP: u16 = 80;
/// There while the health check is to fail.
const SICK: &str = "/sick";

/// What a container of the image does.
#[derive(Debug, Args)]
pub struct Serve {
    /// What the image says of itself; the answers begin with `VERSION@HOSTNAME`
    #[arg(long, env = "VERSION", default_value = "v1")]
    version: String,
    /// Milliseconds from the start until it listens
    #[arg(long, env = "START_AFTER", default_value_t = 0)]
    start_after: u64,
    /// What to do on SIGTERM
    #[arg(long, env = "ON_TERM", value_enum, default_value_t = OnTerm::Finish)]
    on_term: OnTerm,
    /// For how many milliseconds it goes on taking connections and datagrams after SIGTERM. dockerd tells
    /// of the signal once it has sent it, so nobody can know before the task does
    #[arg(long, env = "LINGER", default_value_t = 1000)]
    linger: u64,
    /// The TCP and UDP port of the echo server
    #[arg(long, env = "ECHO", default_value_t = 53)]
    echo: u16,
}

/// HTTP at port 80, and echo.
pub async fn serve(settings: Serve) -> Result<()> {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").context("host name")?;
    let name = format!("{}@{}", settings.version, host.trim());
    let Serve { on_term, linger, .. } = settings;
    let server = |listen| Server { name: name.clone(), listen, on_term, linger };
    sleep(Duration::from_millis(settings.start_after)).await;
    let (web, echo) =
        tokio::join!(http::serve(server(HTTP)), echo::serve(server(settings.echo), true));
    web.and(echo)
}

/// Ends well when the server answers and nobody has asked for the opposite.
pub fn health() -> Result<()> {
    ensure!(!Path::new(SICK).exists(), "sick on request");
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, HTTP))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(())
}

/// From now on the health check fails, or no longer.
pub fn set_sick(sick: bool) -> Result<()> {
    if sick {
        return fs::write(SICK, "").context(SICK);
    }
    match fs::remove_file(SICK) {
        Err(error) if error.kind() != ErrorKind::NotFound => bail!("{SICK}: {error}"),
        _ => Ok(()),
    }
}
