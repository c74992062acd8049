//! A PROXY header that a trusted sender begins with.

use std::{io, time::Duration};

use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use crate::{
    address::plain,
    header::{self, Addresses},
};

/// How long a sender may take to say for whom it speaks.
const PATIENCE: Duration = Duration::from_secs(3);
/// More than any sender has to say.
const LONGEST: usize = 4096;

/// Reads the header and nothing behind it; `None` if the sender speaks for itself.
pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Option<Addresses>> {
    timeout(PATIENCE, read_patiently(stream)).await?
}

async fn read_patiently(stream: &mut TcpStream) -> io::Result<Option<Addresses>> {
    let mut bytes = vec![0; 256];
    let mut filled = 0;
    loop {
        let seen = stream.peek(&mut bytes[filled..]).await?;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let parsed = header::parse(&bytes[..filled + seen]).map_err(io::Error::other)?;
        let found = parsed.map(|header| (header.addresses, header.length));
        // Without a whole header all that came belongs to it.
        let end = found.map_or(filled + seen, |(_, length)| length);
        stream.read_exact(&mut bytes[filled..end]).await?;
        filled = end;
        if let Some((addresses, _)) = found {
            let addresses = addresses.map(|(_, addresses)| addresses);
            return Ok(addresses.map(|Addresses { source, destination }| Addresses {
                source: plain(source),
                destination: plain(destination),
            }));
        }
        if filled == LONGEST {
            return Err(io::Error::other("the PROXY header does not end"));
        }
        if filled == bytes.len() {
            bytes.resize(LONGEST, 0);
        }
    }
}
