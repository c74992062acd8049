//! Bytes in both directions.
//!
//! A connection at rest has no buffer. What arrives is read into a buffer that all connections of
//! the worker use in turn; only what the other side does not take at once is kept for it. A direction
//! that fills the whole buffer moves bulk, and goes on with splice(2) until its reads are small again.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep},
};

use super::pipe::Pipe;
use crate::{backend::Backend, listen::watch_peer, settings::Settings};

/// The buffer that is used in turn.
const BUFFER: usize = 32 << 10;
/// Spliced at once: fewer bytes are no bulk.
const BULK: usize = BUFFER / 2;
/// Reads before other connections get their turn.
const ROUNDS: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into());
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both sides have said all.
    Whole,
    /// A side was reset, or did not answer any more.
    Failed,
    /// The task may have no flows any more.
    TaskGone,
    /// Nothing was said for too long.
    Idle,
}

/// A client and its task.
pub(crate) struct Pair {
    client: TcpStream,
    task: TcpStream,
    up: Half,
    down: Half,
}

/// One direction.
#[derive(Default)]
struct Half {
    /// What was read and not yet taken.
    kept: Option<Kept>,
    bulk: bool,
    /// The source has said all.
    ended: bool,
    /// And the target knows.
    closed: bool,
    moved: u64,
}

enum Kept {
    Bytes { bytes: Box<[u8]>, from: usize },
    Piped(Pipe),
}

impl Pair {
    pub(crate) fn new(client: TcpStream, task: TcpStream) -> Self {
        Self { client, task, up: Half::default(), down: Half::default() }
    }

    pub(crate) fn streams(&self) -> [&TcpStream; 2] {
        [&self.client, &self.task]
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let last = self.down.closed;
        let up = self.up.poll(cx, (&mut self.client, &mut self.task), last)?;
        let last = self.up.closed;
        let down = self.down.poll(cx, (&mut self.task, &mut self.client), last)?;
        if up.is_ready() && down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Bytes moved since the last time, up and down.
    fn take_moved(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.up.moved), std::mem::take(&mut self.down.moved))
    }
}

/// A connection that lives for so long is watched for a task that goes without a word. That takes five
/// system calls, and most connections are over by then.
const WATCHED_AFTER: Duration = Duration::from_secs(1);

/// Copies until the end; tells `moved` how many bytes went up and down.
pub(crate) async fn run(
    pair: &mut Pair,
    backend: &Backend,
    (idle, settings): (Duration, &Settings),
    moved: impl Fn(u64, u64),
) -> End {
    let ends = backend.ends();
    let mut ended = pin!(backend.ended());
    let mut timer = pin!(sleep(idle.min(WATCHED_AFTER)));
    let mut last = Instant::now();
    let (mut watching, mut watched) = (false, false);
    poll_fn(|cx| {
        let state = pair.poll(cx);
        let (up, down) = pair.take_moved();
        if up + down > 0 {
            moved(up, down);
            last = Instant::now();
        }
        match state {
            Poll::Ready(Ok(())) => return Poll::Ready(End::Whole),
            Poll::Ready(Err(_)) => return Poll::Ready(End::Failed),
            Poll::Pending => {}
        }
        // A task's waker stays the same, so what was polled once will wake it.
        if !watching {
            watching = true;
            if ended.as_mut().poll(cx).is_ready() {
                return Poll::Ready(End::TaskGone);
            }
            let _ = timer.as_mut().poll(cx);
        }
        // One that has come back meanwhile wakes nobody a second time.
        if backend.is_gone() || backend.ends() != ends {
            return Poll::Ready(End::TaskGone);
        }
        while timer.is_elapsed() {
            if !watched {
                watched = true;
                // A socket that refuses is one that has ended.
                watch_peer(&SockRef::from(&pair.task), settings).ok();
            }
            if last.elapsed() >= idle {
                return Poll::Ready(End::Idle);
            }
            timer.as_mut().reset(last + idle);
            let _ = timer.as_mut().poll(cx);
        }
        Poll::Pending
    })
    .await
}

impl Half {
    /// `last`: the other direction has come to its end.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (source, target): (&mut TcpStream, &mut TcpStream),
        last: bool,
    ) -> Poll<io::Result<()>> {
        for _ in 0..ROUNDS {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_deliver(cx, target))?;
            if self.ended {
                // Of two ends the second is told by closing the socket, which comes next.
                if !last {
                    // A target that has ended already needs no word.
                    SockRef::from(&*target).shutdown(std::net::Shutdown::Write).ok();
                }
                self.closed = true;
                return Poll::Ready(Ok(()));
            }
            if self.bulk {
                ready!(self.poll_splice(cx, source))?;
            } else {
                ready!(self.poll_copy(cx, source, target))?;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Gives the target what was kept for it.
    fn poll_deliver(
        &mut self,
        cx: &mut Context<'_>,
        target: &mut TcpStream,
    ) -> Poll<io::Result<()>> {
        while let Some(kept) = &mut self.kept {
            match kept {
                Kept::Bytes { bytes, from } => {
                    let taken = ready!(Pin::new(&mut *target).poll_write(cx, &bytes[*from..]))?;
                    *from += taken;
                    self.moved += taken as u64;
                    if *from == bytes.len() {
                        self.kept = None;
                    }
                }
                Kept::Piped(pipe) => {
                    match pipe.drain(target) {
                        Ok(taken) => self.moved += taken as u64,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            ready!(target.poll_write_ready(cx))?;
                        }
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                    if pipe.is_empty()
                        && let Some(Kept::Piped(pipe)) = self.kept.take()
                    {
                        pipe.give_back();
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads into the buffer that is used in turn, and writes at once.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        target: &mut TcpStream,
    ) -> Poll<io::Result<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(source).poll_read(cx, &mut buffer))?;
            let bytes = buffer.filled();
            if bytes.is_empty() {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            self.bulk = bytes.len() == BUFFER;
            let taken = match Pin::new(target).poll_write(cx, bytes) {
                Poll::Ready(taken) => taken?,
                Poll::Pending => 0,
            };
            self.moved += taken as u64;
            if taken < bytes.len() {
                self.kept = Some(Kept::Bytes { bytes: bytes[taken..].into(), from: 0 });
            }
            Poll::Ready(Ok(()))
        })
    }

    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
    ) -> Poll<io::Result<()>> {
        ready!(source.poll_read_ready(cx))?;
        let Ok(mut pipe) = Pipe::take() else {
            // No files left for a pipe: the buffer does it as well.
            self.bulk = false;
            return Poll::Ready(Ok(()));
        };
        match pipe.fill(source) {
            Ok(0) => self.ended = true,
            Ok(filled) => {
                self.bulk = filled >= BULK;
                self.kept = Some(Kept::Piped(pipe));
                return Poll::Ready(Ok(()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.bulk = false,
            Err(error) => return Poll::Ready(Err(error)),
        }
        pipe.give_back();
        Poll::Ready(Ok(()))
    }
}
