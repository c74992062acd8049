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

/// Datagrams up to this size are brought together. Longer ones may be longer than a packet can be, and the
/// kernel takes none apart into fragments.
const MERGED: usize = 1400;

/// Room for a batch.
pub(super) struct Batch {
    bytes: Box<[u8]>,
    metas: [RecvMeta; BUFFERS],
    /// Where datagrams are brought together.
    run: Box<[u8]>,
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
        Self { bytes: vec![0; BUFFERS * SIZE].into(), metas, run: vec![0; SIZE].into() }
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

    /// Goes through the buffers that were filled. What follows on each other from one sender is brought
    /// together as the kernel would have done it: then it goes on with one system call, too.
    pub(super) fn take(&mut self, count: usize, mut taken: impl FnMut(&RecvMeta, Datagrams<'_>)) {
        let Self { bytes, metas, run } = self;
        let mut rest = metas.iter().zip(bytes.chunks(SIZE)).take(count).peekable();
        while let Some((meta, bytes)) = rest.next() {
            let bytes = &bytes[..meta.len.min(SIZE)];
            let mut filled = 0;
            let mut end = !is_short(meta);
            while !end && let Some((next, more)) = rest.next_if(|(next, _)| follows(meta, next)) {
                if filled == 0 {
                    run[..bytes.len()].copy_from_slice(bytes);
                    filled = bytes.len();
                }
                run[filled..filled + next.len].copy_from_slice(&more[..next.len]);
                filled += next.len;
                // Only the last may be shorter.
                end = next.len < meta.len;
            }
            let bytes = if filled > 0 { &run[..filled] } else { bytes };
            taken(meta, Datagrams { bytes, size: meta.stride });
        }
    }
}

/// Whether it is one datagram, of those that are brought together. All that fit into a batch have room.
fn is_short(meta: &RecvMeta) -> bool {
    const { assert!(BUFFERS * MERGED <= SIZE) };
    meta.len == meta.stride && (1..=MERGED).contains(&meta.len)
}

/// Whether a datagram may go behind another one.
fn follows(first: &RecvMeta, next: &RecvMeta) -> bool {
    let same = first.addr == next.addr && first.dst_ip == next.dst_ip;
    same && is_short(next) && next.len <= first.len
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

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(port: u16, len: usize, stride: usize) -> RecvMeta {
        let mut meta = RecvMeta::default();
        meta.addr = SocketAddr::from(([10, 0, 0, 1], port));
        (meta.len, meta.stride) = (len, stride);
        meta.dst_ip = Some([10, 0, 0, 2].into());
        meta
    }

    /// What a batch of these becomes: who sent it, and the datagrams.
    fn taken(metas: &[RecvMeta]) -> Vec<(u16, Vec<Vec<u8>>)> {
        let mut batch = Batch::new();
        for (at, meta) in metas.iter().enumerate() {
            batch.metas[at] = *meta;
            let bytes = &mut batch.bytes[at * SIZE..][..meta.len];
            for (position, byte) in bytes.iter_mut().enumerate() {
                *byte = at as u8 + 1 + (position / meta.stride.max(1)) as u8 * 100;
            }
        }
        let mut all = Vec::new();
        batch.take(metas.len(), |meta, datagrams| {
            let each: Vec<Vec<u8>> = datagrams.each().map(<[u8]>::to_vec).collect();
            assert_eq!(each.len() as u64, datagrams.count());
            all.push((meta.addr.port(), each));
        });
        all
    }

    #[test]
    fn datagrams_of_one_sender_go_on_together_with_one_that_is_shorter_at_the_end() {
        let [a, b] = [|len| meta(1, len, len), |len| meta(2, len, len)];
        let got = taken(&[a(3), a(3), a(2), a(3), b(3), a(3), a(4)]);
        let want = vec![
            (1, vec![vec![1; 3], vec![2; 3], vec![3; 2]]),
            (1, vec![vec![4; 3]]),
            (2, vec![vec![5; 3]]),
            (1, vec![vec![6; 3]]),
            (1, vec![vec![7; 4]]),
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn datagrams_that_the_kernel_merged_are_empty_or_long_stay_as_they_are() {
        let merged = meta(1, 5, 3);
        let long = meta(1, MERGED + 1, MERGED + 1);
        let got = taken(&[merged, meta(1, 0, 0), meta(1, 3, 3), merged, long, long]);
        let sizes: Vec<Vec<usize>> =
            got.iter().map(|(_, each)| each.iter().map(Vec::len).collect()).collect();
        let alone = vec![MERGED + 1];
        assert_eq!(sizes, [vec![3, 2], vec![0], vec![3], vec![3, 2], alone.clone(), alone]);
        assert_eq!(got[0].1, [vec![1; 3], vec![101; 2]]);
    }

    #[test]
    fn a_whole_batch_of_the_longest_goes_on_together() {
        let got = taken(&[meta(1, MERGED, MERGED); BUFFERS]);
        assert_eq!((got.len(), got[0].1.len()), (1, BUFFERS));
        let mut other_address = meta(1, 3, 3);
        other_address.dst_ip = None;
        assert_eq!(taken(&[meta(1, 3, 3), other_address]).len(), 2);
    }
}
