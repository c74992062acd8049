//! Questions and answers on connections (RFC 7766): many on one, answered in any order.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};
use tracing::debug;

use super::Shared;
use crate::{
    counters::Drop,
    handler::{Ends, Outcome, Pending, Transport},
    wire::{rcode, u16_at},
};

/// A message must be there so soon after its length, and an answer must be taken so soon.
const PATIENCE: Duration = Duration::from_secs(5);
/// The idle time while most places for connections are taken.
const CROWDED: Duration = Duration::from_secs(3);
/// Questions of one connection that others are being asked.
const UNDER_WAY: usize = 64;
/// Answers that wait for the client to take them.
const WAITING: usize = 64;

/// Accepts until its task is ended.
pub(super) async fn serve(listener: TcpListener, shared: Shared) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => admit(stream, client, &shared),
            Err(error) => {
                // Out of file descriptors, most likely; trying again at once would only spin.
                debug!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn admit(stream: TcpStream, client: SocketAddr, shared: &Shared) {
    let counters = &shared.handler.counters;
    if shared.handler.directory.load().asker(client.ip()).is_none() {
        return counters.drop(Drop::NotAllowed);
    }
    match shared.limits.connection(client.ip()) {
        Err(why) => counters.drop(why),
        Ok(permit) => {
            let shared = shared.clone();
            tokio::spawn(async move {
                if let Err(error) = converse(stream, client, shared).await {
                    debug!(%client, %error, "a connection ended early");
                }
                drop(permit);
            });
        }
    }
}

async fn converse(stream: TcpStream, client: SocketAddr, shared: Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (from, to) = stream.into_split();
    let (answers, waiting) = mpsc::channel(WAITING);
    let listening = listen(from, client, shared, answers);
    let (heard, told) = tokio::join!(listening, tell(to, waiting));
    heard.and(told)
}

/// Reads questions until there are no more, or there is one that is none.
async fn listen(
    mut from: OwnedReadHalf,
    client: SocketAddr,
    shared: Shared,
    answers: mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(UNDER_WAY));
    let ends = Ends { client, transport: Transport::Tcp };
    let mut packet = Vec::new();
    loop {
        let idle = if shared.limits.is_crowded() { CROWDED } else { shared.settings.idle };
        let length = match timeout(idle, from.read_u16()).await {
            Ok(Ok(length)) => length,
            // The client has no more questions, and may still be waiting for answers.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        packet.resize(usize::from(length), 0);
        timeout(PATIENCE, from.read_exact(&mut packet)).await??;
        let begun = Instant::now();
        let mut reply = Vec::new();
        match shared.handler.answer(&packet, ends, begun, &mut reply) {
            Outcome::Reply(_) => {
                let bad = u16_at(&reply, 2).is_some_and(|flags| flags & 0xf == rcode::FORMERR);
                shared.handler.counters.local.count(begun.elapsed(), 1);
                if answers.send(reply).await.is_err() || bad {
                    return Ok(());
                }
            }
            Outcome::Nothing(_) => return Ok(()),
            Outcome::Forward(pending) => match shared.limits.question(client.ip()) {
                Err(why) => {
                    shared.handler.refuse(&pending, why, &mut reply);
                    if answers.send(reply).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(permit) => {
                    // Further questions are read when there is room again.
                    let Ok(place) = room.clone().acquire_owned().await else { return Ok(()) };
                    let asking = ask(shared.clone(), *pending, answers.clone());
                    tokio::spawn(async move {
                        asking.await;
                        drop((permit, place));
                    });
                }
            },
        }
    }
}

async fn ask(shared: Shared, pending: Pending, answers: mpsc::Sender<Vec<u8>>) {
    let begun = Instant::now();
    let said = shared.handler.forwarder.resolve(&pending.question).await;
    let mut reply = Vec::new();
    shared.handler.complete(&pending, &said, Instant::now(), &mut reply);
    shared.handler.counters.forwarded.count(begun.elapsed(), 1);
    // The client may have gone.
    answers.send(reply).await.ok();
}

/// Writes answers until no more can come.
async fn tell(mut to: OwnedWriteHalf, mut waiting: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(answer) = waiting.recv().await {
        // An answer is never longer.
        let length = u16::try_from(answer.len()).unwrap_or(u16::MAX).to_be_bytes();
        let framed = [&length[..], &answer].concat();
        timeout(PATIENCE, to.write_all(&framed)).await??;
    }
    to.shutdown().await
}
