//! Many datagrams with one system call.

use std::{
    cell::RefCell,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::{io::Interest, net::UdpSocket};

/// Buffers of a worker, each as large as what the kernel merges at most: with a smaller one the rest
/// would be cut off.
const BUFFERS: usize = 16;
const SIZE: usize = 64 << 10;

thread_local! {
    static BATCH: RefCell<Batch> = RefCell::new(Batch::new());
}

/// Room for a batch.
pub(super) struct Batch {
    bytes: Box<[u8]>,
    metas: [RecvMeta; BUFFERS],
}

/// Datagrams of one sender: all of one size but the last, which may be shorter.
pub(super) struct Datagrams<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) size: usize,
}

/// Uses this worker's batch. Not to be used by what is called meanwhile.
pub(super) fn with<T>(work: impl FnOnce(&mut Batch) -> T) -> T {
    BATCH.with_borrow_mut(work)
}

impl Batch {
    fn new() -> Self {
        let metas = std::array::from_fn(|_| RecvMeta::default());
        Self { bytes: vec![0; BUFFERS * SIZE].into(), metas }
    }

    /// How many buffers were filled, of a socket that is `ready`.
    pub(super) fn receive(
        &mut self,
        state: &UdpSocketState,
        socket: &UdpSocket,
        ready: Interest,
    ) -> io::Result<usize> {
        let mut parts = self.bytes.chunks_mut(SIZE).map(IoSliceMut::new);
        let mut parts: [IoSliceMut<'_>; BUFFERS] =
            std::array::from_fn(|_| parts.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
        let mut filled = 0;
        let received = socket.try_io(ready, || {
            filled = state.recv(socket.into(), &mut parts, &mut self.metas)?;
            match filled {
                BUFFERS => Ok(()),
                // The kernel had no more: to hear that again would be one system call more for each wakeup.
                _ => Err(io::ErrorKind::WouldBlock.into()),
            }
        });
        match received {
            Err(_) if filled > 0 => Ok(filled),
            other => other.map(|()| filled),
        }
    }

    /// What came in.
    pub(super) fn received(&self, count: usize) -> impl Iterator<Item = (&RecvMeta, &[u8])> {
        let filled = self.metas.iter().zip(self.bytes.chunks(SIZE)).take(count);
        filled.map(|(meta, bytes)| (meta, &bytes[..meta.len.min(SIZE)]))
    }
}

impl<'a> Datagrams<'a> {
    pub(super) fn one(bytes: &'a [u8]) -> Self {
        Self { bytes, size: bytes.len() }
    }

    /// Each for itself. One that is empty is a datagram, too.
    pub(super) fn each(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let alone = self.bytes.is_empty().then_some(&[][..]);
        alone.into_iter().chain(self.bytes.chunks(self.size.max(1)))
    }

    pub(super) fn count(&self) -> u64 {
        self.bytes.len().div_ceil(self.size.max(1)).max(1) as u64
    }

    /// Sends them as one, if the kernel can take them apart, else one by one. What a socket does
    /// not take at once is lost, as in any queue that is full.
    pub(super) fn transmit(
        &self,
        state: &UdpSocketState,
        socket: &UdpSocket,
        destination: SocketAddr,
        src_ip: Option<IpAddr>,
    ) -> io::Result<()> {
        let count = self.count() as usize;
        let transmit = |contents, segment_size| {
            let ecn = None;
            Transmit { destination, ecn, contents, segment_size, src_ip }
        };
        if count > 1 && count <= state.max_gso_segments() {
            let whole = state.try_send(socket.into(), &transmit(self.bytes, Some(self.size)));
            match whole {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::EIO)) => {}
                other => return other,
            }
        }
        self.each().try_for_each(|one| state.try_send(socket.into(), &transmit(one, None)))
    }
}
