//! Questions and answers on connections (RFC 7766): many on one, answered in any order.

use std::{io, net::SocketAddr, pin::pin, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinSet, yield_now},
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use super::{Shared, limits::Permit};
use crate::{
    counters::Drop,
    handler::{Ends, Outcome, Pending, Transport},
    wire::{PLAIN_UDP, rcode, u16_at},
};

/// A message must be there so soon after its length, and an answer must be taken so soon.
const PATIENCE: Duration = Duration::from_secs(5);
/// The idle time while most places for connections are taken.
const CROWDED: Duration = Duration::from_secs(3);
/// Questions of one connection that others are being asked.
const UNDER_WAY: usize = 64;
/// Room for what is read by one call.
const ROOM: usize = 2048;
/// Answers of so many bytes are written before there are more.
const FULL: usize = 16_384;

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
    let ends = Ends { client, transport: Transport::Tcp };
    let mut talk = Conversation { stream, ends, shared, said: Vec::new(), asked: JoinSet::new() };
    let talked = match talk.listen().await {
        Ok(()) => talk.end().await,
        Err(error) => Err(error),
    };
    // What others say is remembered, even if the client has gone.
    talk.asked.detach_all();
    talked
}

/// A connection. All of it is one task: what has arrived is read by one call, and answered by one.
struct Conversation {
    stream: TcpStream,
    ends: Ends,
    shared: Shared,
    /// Answers that are not written yet, each after its length.
    said: Vec<u8>,
    /// Answers that others are being asked for.
    asked: JoinSet<Vec<u8>>,
}

impl Conversation {
    /// Answers questions until there are no more, or there is one that is none. Fails when nothing can
    /// be written any more.
    async fn listen(&mut self) -> io::Result<()> {
        let mut heard = Vec::new();
        // Whether the length of a message is there, and not all of the message.
        let mut begun = false;
        let mut silence = pin!(sleep(self.patience(begun)));
        loop {
            let full = heard.len() == heard.capacity();
            let mut at = 0;
            while let Some(packet) = message(&heard[at..]) {
                at += size_of::<u16>() + packet.len();
                if !self.answer(packet).await? {
                    return Ok(());
                }
            }
            self.tell().await?;
            heard.drain(..at);
            let begins = heard.len() >= size_of::<u16>();
            if at > 0 || begins != begun {
                begun = begins;
                silence.as_mut().reset(Instant::now() + self.patience(begun));
            }
            if full && at > 0 {
                // Others of this thread have waited for as much as is read by one call.
                yield_now().await;
            }
            heard.reserve(ROOM);
            tokio::select! {
                biased;
                Some(answer) = self.asked.join_next() => self.say(answer.ok()),
                read = self.stream.read_buf(&mut heard) => if read? == 0 {
                    // The client has no more questions, and may still be waiting for answers.
                    return Ok(());
                },
                () = &mut silence => return Ok(()),
            }
        }
    }

    /// Answers a packet, now or when others have answered. `false`: it is the last that is taken.
    async fn answer(&mut self, packet: &[u8]) -> io::Result<bool> {
        let handler = &self.shared.handler;
        let now = std::time::Instant::now();
        let mut reply = Vec::with_capacity(PLAIN_UDP);
        match handler.answer(packet, self.ends, now, &mut reply) {
            Outcome::Reply(_) => {
                let bad = u16_at(&reply, 2).is_some_and(|flags| flags & 0xf == rcode::FORMERR);
                handler.counters.local.count(now.elapsed(), 1);
                self.say(Some(reply));
                if self.said.len() >= FULL {
                    self.tell().await?;
                }
                return Ok(!bad);
            }
            Outcome::Nothing(_) => return Ok(false),
            Outcome::Forward(pending) => {
                match self.shared.limits.question(self.ends.client.ip()) {
                    Err(why) => {
                        handler.refuse(&pending, why, &mut reply);
                        self.say(Some(reply));
                    }
                    Ok(permit) => {
                        // Further questions are looked at when there is room again.
                        while self.asked.len() >= UNDER_WAY {
                            self.tell().await?;
                            let answer = self.asked.join_next().await;
                            self.say(answer.and_then(Result::ok));
                        }
                        self.asked.spawn(ask(self.shared.clone(), *pending, permit));
                    }
                }
            }
        }
        Ok(true)
    }

    fn say(&mut self, answer: Option<Vec<u8>>) {
        let Some(answer) = answer else { return };
        // An answer is never longer.
        let length = u16::try_from(answer.len()).unwrap_or(u16::MAX);
        self.said.extend(length.to_be_bytes());
        self.said.extend_from_slice(&answer);
    }

    /// Writes what is to be said.
    async fn tell(&mut self) -> io::Result<()> {
        if !self.said.is_empty() {
            timeout(PATIENCE, self.stream.write_all(&self.said)).await??;
            self.said.clear();
            self.said.shrink_to(FULL);
        }
        Ok(())
    }

    /// Writes the answers that are still to come.
    async fn end(&mut self) -> io::Result<()> {
        self.tell().await?;
        while let Some(answer) = self.asked.join_next().await {
            self.say(answer.ok());
            self.tell().await?;
        }
        self.stream.shutdown().await
    }

    /// How long there may be silence.
    fn patience(&self, begun: bool) -> Duration {
        match begun {
            true => PATIENCE,
            false if self.shared.limits.is_crowded() => CROWDED,
            false => self.shared.settings.idle,
        }
    }
}

/// The first message, if all of it is there.
fn message(heard: &[u8]) -> Option<&[u8]> {
    let length = usize::from(u16_at(heard, 0)?);
    heard.get(size_of::<u16>()..)?.get(..length)
}

async fn ask(shared: Shared, pending: Pending, permit: Permit) -> Vec<u8> {
    let begun = std::time::Instant::now();
    let said = shared.handler.forwarder.resolve(&pending.question).await;
    let mut reply = Vec::new();
    shared.handler.complete(&pending, &said, std::time::Instant::now(), &mut reply);
    shared.handler.counters.forwarded.count(begun.elapsed(), 1);
    drop(permit);
    reply
}
