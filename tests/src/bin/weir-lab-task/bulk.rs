//! Bulk data in either direction, every byte checked: a lost, doubled or swapped segment shows.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

/// The pattern repeats after a prime number of bytes, so that it fits no segment size.
const PERIOD: usize = 65_521;
const CHUNK: usize = 256 * 1024;

/// Who starts the connection.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Peer {
    /// Wait for connections on this port
    #[arg(long)]
    listen: Option<u16>,
    /// Connect to this address
    #[arg(long)]
    to: Option<SocketAddr>,
}

impl Peer {
    /// Calls `work` for the one connection that we make, or for each that we get.
    fn each(&self, work: impl Fn(TcpStream) -> Result<()> + Copy + Send + 'static) -> Result<()> {
        if let Some(to) = self.to {
            return work(TcpStream::connect(to).with_context(|| format!("connect {to}"))?);
        }
        let port = self.listen.context("neither --listen nor --to")?;
        for stream in TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?.incoming() {
            let stream = stream?;
            std::thread::spawn(move || {
                if let Err(error) = work(stream) {
                    eprintln!("{error:#}");
                }
            });
        }
        Ok(())
    }
}

/// Swallows everything, prints `bytes=N intact=true|false seconds=S`, and tells the sender so.
pub fn sink(peer: &Peer) -> Result<()> {
    peer.each(|mut stream| {
        let start = Instant::now();
        let (bytes, broken_at) = swallow(&mut stream)?;
        let intact = broken_at.is_none();
        let line = format!("bytes={bytes} intact={intact} seconds={:.3}\n", seconds(start));
        print!("{line}");
        let _ = stream.write_all(line.as_bytes());
        Ok(())
    })
}

/// Sends so many bytes, ends its direction, and prints what the receiver says.
pub fn source(peer: &Peer, bytes: u64) -> Result<()> {
    peer.each(move |mut stream| {
        let pattern = pattern();
        let mut sent = 0;
        while sent < bytes {
            let room = usize::try_from(bytes - sent).unwrap_or(CHUNK).min(CHUNK);
            let from = (sent % PERIOD as u64) as usize;
            stream.write_all(&pattern[from..from + room])?;
            sent += room as u64;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        println!("sent={sent} {}", said.trim());
        Ok(())
    })
}

fn seconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}

/// The number of bytes, and where they first differ from the pattern.
fn swallow(stream: &mut impl Read) -> Result<(u64, Option<u64>)> {
    let (pattern, mut buffer) = (pattern(), vec![0; CHUNK]);
    let (mut bytes, mut broken_at) = (0_u64, None);
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok((bytes, broken_at));
        }
        let from = (bytes % PERIOD as u64) as usize;
        if broken_at.is_none() && buffer[..length] != pattern[from..from + length] {
            broken_at = Some(bytes);
        }
        bytes += length as u64;
    }
}

/// Long enough that a chunk fits behind any position of the first period.
fn pattern() -> Vec<u8> {
    (0..PERIOD + CHUNK).map(|at| ((at % PERIOD).wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_byte_is_noticed() {
        let mut data = [pattern()[..PERIOD].to_vec(), pattern()[..1000].to_vec()].concat();
        assert_eq!(swallow(&mut data.as_slice()).unwrap(), (66_521, None));
        data.remove(70);
        assert!(swallow(&mut data.as_slice()).unwrap().1.is_some());
    }
}
