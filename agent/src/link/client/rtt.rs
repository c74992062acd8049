//! How far a manager is.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

/// A second hold on the socket of a connection, which TLS and HTTP have taken.
#[derive(Debug)]
pub(super) struct Probe(OwnedFd);

impl Probe {
    /// For as long as the connection is.
    pub(super) fn new(socket: BorrowedFd<'_>) -> io::Result<Self> {
        socket.try_clone_to_owned().map(Self)
    }

    /// There and back, smoothed (`tcpi_rtt` of tcp(7), in microseconds).
    pub(super) fn rtt(&self) -> io::Result<Duration> {
        // SAFETY: all zeroes is a tcp_info.
        let mut info: libc::tcp_info = unsafe { mem::zeroed() };
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        let (level, option) = (libc::IPPROTO_TCP, libc::TCP_INFO);
        let to = (&raw mut info).cast();
        // SAFETY: the descriptor is open, and no more than `length` is written.
        let answer = unsafe {
            libc::getsockopt(self.0.as_fd().as_raw_fd(), level, option, to, &raw mut length)
        };
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Duration::from_micros(info.tcpi_rtt.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn what_has_been_to_and_fro_has_taken_some_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"a").unwrap();
        server.read_exact(&mut [0]).unwrap();
        let rtt = Probe::new(client.as_fd()).unwrap().rtt().unwrap();
        assert!(rtt > Duration::ZERO && rtt < Duration::from_secs(1), "{rtt:?}");
        let file = tempfile::tempfile().unwrap();
        assert!(Probe::new(file.as_fd()).unwrap().rtt().is_err());
    }
}
