//! Many datagrams by one call to the kernel: `recvmmsg` and `sendmmsg`.

use std::{io, mem::MaybeUninit, net::SocketAddr, os::fd::AsRawFd};

use socket2::{SockAddr, SockAddrStorage};

/// Datagrams of one call.
pub(super) const MOST: usize = 32;
/// Room for one. No question is longer; what is longer is cut, and then it is none.
const ROOM: usize = 2048;

/// Datagrams that have arrived.
pub(super) struct Inbox {
    data: Vec<[u8; ROOM]>,
    senders: Vec<Option<SockAddr>>,
    lengths: [usize; MOST],
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self { data: vec![[0; ROOM]; MOST], senders: vec![None; MOST], lengths: [0; MOST] }
    }

    /// Takes what has arrived, without waiting; answers how many.
    pub(super) fn receive(&mut self, socket: &impl AsRawFd) -> io::Result<usize> {
        let mut names = [const { MaybeUninit::<SockAddrStorage>::uninit() }; MOST];
        let mut heads = [const { MaybeUninit::<libc::mmsghdr>::zeroed() }; MOST];
        let mut slices = [const { MaybeUninit::<libc::iovec>::zeroed() }; MOST];
        for at in 0..MOST {
            let slice = slices[at]
                .write(libc::iovec { iov_base: self.data[at].as_mut_ptr().cast(), iov_len: ROOM });
            // SAFETY: all fields are numbers and pointers, for which zeros are values.
            let head = unsafe { &mut heads[at].assume_init_mut().msg_hdr };
            head.msg_iov = slice;
            head.msg_iovlen = 1;
            head.msg_name = names[at].as_mut_ptr().cast();
            head.msg_namelen = size_of::<SockAddrStorage>() as libc::socklen_t;
        }
        // SAFETY: every header points at memory of its own that outlives the call, and says how much
        // there is of it.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                heads.as_mut_ptr().cast(),
                MOST as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for at in 0..received {
            // SAFETY: written above.
            let head = unsafe { heads[at].assume_init_ref() };
            let cut = head.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            self.lengths[at] = if cut { 0 } else { (head.msg_len as usize).min(ROOM) };
            // SAFETY: the kernel has written the sender's address there, of this length.
            self.senders[at] = Some(unsafe {
                SockAddr::new(names[at].assume_init_read(), head.msg_hdr.msg_namelen)
            });
        }
        Ok(received)
    }

    /// A datagram and who has sent it.
    pub(super) fn get(&self, at: usize) -> Option<(&[u8], SocketAddr)> {
        let sender = self.senders.get(at)?.as_ref()?.as_socket()?;
        Some((&self.data[at][..self.lengths[at]], sender))
    }

    /// Answers the senders of the datagrams at these places. Answers how many were sent.
    pub(super) fn reply(&self, socket: &impl AsRawFd, replies: &[Reply]) -> usize {
        let mut heads = [const { MaybeUninit::<libc::mmsghdr>::zeroed() }; MOST];
        let mut slices = [const { MaybeUninit::<libc::iovec>::zeroed() }; MOST];
        let mut count = 0;
        for reply in replies.iter().take(MOST) {
            let Some(Some(to)) = self.senders.get(reply.to) else { continue };
            let slice = slices[count].write(libc::iovec {
                iov_base: reply.data.as_ptr().cast_mut().cast(),
                iov_len: reply.data.len(),
            });
            // SAFETY: all fields are numbers and pointers, for which zeros are values.
            let head = unsafe { &mut heads[count].assume_init_mut().msg_hdr };
            head.msg_iov = slice;
            head.msg_iovlen = 1;
            head.msg_name = to.as_ptr().cast_mut().cast();
            head.msg_namelen = to.len();
            count += 1;
        }
        let mut sent = 0;
        while sent < count {
            // SAFETY: every header points at memory that outlives the call; the kernel writes only
            // to the headers.
            let more = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    heads.as_mut_ptr().add(sent).cast(),
                    (count - sent) as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                )
            };
            match usize::try_from(more) {
                Ok(more) if more > 0 => sent += more,
                // Of the first that is left; the others may be for somebody who can be reached.
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() == io::ErrorKind::WouldBlock {
                        return sent;
                    }
                    heads.copy_within(sent + 1..count, sent);
                    count -= 1;
                }
            }
        }
        sent
    }
}

/// An answer to the datagram at a place of the inbox.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) to: usize,
    pub(super) data: Vec<u8>,
}
