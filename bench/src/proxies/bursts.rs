//! Datagrams in bursts: what a stream of them is to a proxy, where several wait at a time.

use std::{
    io::{self, IoSliceMut},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use weir_tests::Client;

/// Sockets, each with a burst on its way.
const SOCKETS: usize = 16;
/// Datagrams of a burst.
const BURST: usize = 16;
/// Bytes of a datagram: a voice packet's.
const SIZE: usize = 160;
/// After that the rest of a burst is lost.
const PATIENCE_MS: u8 = 200;

/// How many came back, and how many did not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Answers.
    pub back: u64,
    /// Datagrams without one.
    pub lost: u64,
}

/// Sends bursts from a client for so long, each after the answers to the last.
pub fn run(client: &Client, target: SocketAddr, time: Duration) -> Result<Counted> {
    let until = Instant::now() + time;
    let sockets: Vec<UdpSocket> = client.run(|| -> io::Result<_> {
        let open = |_| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(target)?;
            Ok(socket)
        };
        (0..SOCKETS).map(open).collect()
    })?;
    let talking: Vec<_> = sockets
        .into_iter()
        .map(|socket| thread::spawn(move || talk(&socket, target, until)))
        .collect();
    let mut all = Counted::default();
    for thread in talking {
        let counted = thread.join().map_err(|_| anyhow!("a thread of the load panicked"))??;
        all.back += counted.back;
        all.lost += counted.lost;
    }
    Ok(all)
}

fn talk(socket: &UdpSocket, target: SocketAddr, until: Instant) -> io::Result<Counted> {
    const BUFFER: usize = 64 << 10;
    let state = UdpSocketState::new(socket.into())?;
    // The kernel takes a burst apart, so that the load does not cost a system call for each datagram.
    let contents = [b'.'; SIZE * BURST];
    let transmit = Transmit {
        destination: target,
        ecn: None,
        contents: &contents,
        segment_size: Some(SIZE),
        src_ip: None,
    };
    let mut bytes = vec![0; BURST * BUFFER];
    let mut counted = Counted::default();
    while Instant::now() < until {
        state.try_send(socket.into(), &transmit)?;
        let mut back = 0;
        while back < BURST {
            // A call that waits would wait for as many datagrams as there are buffers.
            let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            if poll(&mut waiting, PollTimeout::from(PATIENCE_MS))? == 0 {
                break;
            }
            let mut metas = [RecvMeta::default(); BURST];
            let mut parts = bytes.chunks_mut(BUFFER).map(IoSliceMut::new);
            let mut parts: [IoSliceMut<'_>; BURST] =
                std::array::from_fn(|_| parts.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
            match state.recv(socket.into(), &mut parts, &mut metas) {
                Ok(filled) => {
                    let of_buffer = |meta: &RecvMeta| meta.len.div_ceil(meta.stride.max(1));
                    back += metas[..filled].iter().map(of_buffer).sum::<usize>();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        counted.back += back as u64;
        // An answer that comes late is one of the next burst, and may be one too many.
        counted.lost += BURST.saturating_sub(back) as u64;
    }
    Ok(counted)
}
