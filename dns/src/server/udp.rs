//! Questions and answers in datagrams.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Instant,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    task::yield_now,
};
use tracing::debug;

use super::{
    Shared,
    batch::{Inbox, MOST, Reply},
};
use crate::{
    counters::Drop,
    handler::{Ends, Outcome, Pending, Transport},
};

/// A socket at one address. Answers come from the address that was asked.
pub(super) struct Door(AsyncFd<Arc<UdpSocket>>);

impl Door {
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        // SAFETY: an `Arc` names the same socket wherever it is, and holds it open as long as it is
        // registered.
        let door = unsafe { AsyncFd::register_with_interest(Arc::new(socket), Interest::READABLE) };
        Ok(Self(door?))
    }

    /// Answers until its task is ended.
    pub(super) async fn serve(self, shared: Shared) {
        let mut inbox = Inbox::new();
        let mut replies: Vec<Reply> = (0..MOST).map(|_| Reply::default()).collect();
        loop {
            let Ok(mut ready) = self.0.readable().await else { return };
            let received = match inbox.receive(self.0.get_ref()) {
                Ok(received) => received,
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        debug!(%error, "cannot receive");
                    }
                    ready.clear_ready();
                    continue;
                }
            };
            if received < MOST {
                ready.clear_ready();
            }
            drop(ready);
            let begun = Instant::now();
            let answered = self.answer(&shared, &inbox, received, begun, &mut replies);
            let sent = inbox.reply(self.0.get_ref(), &replies[..answered]);
            for _ in sent..answered {
                shared.handler.counters.drop(Drop::SendFailed);
            }
            if answered > 0 {
                shared.handler.counters.local.count(begun.elapsed(), answered as u64);
            }
            if received == MOST {
                // Others of this thread have waited for a whole batch.
                yield_now().await;
            }
        }
    }

    /// Answers what can be answered at once; answers how many replies that makes.
    fn answer(
        &self,
        shared: &Shared,
        inbox: &Inbox,
        received: usize,
        now: Instant,
        replies: &mut [Reply],
    ) -> usize {
        let mut answered = 0;
        for at in 0..received {
            let Some((packet, client)) = inbox.get(at) else { continue };
            let ends = Ends { client, transport: Transport::Udp };
            let reply = &mut replies[answered];
            reply.to = at;
            match shared.handler.answer(packet, ends, now, &mut reply.data) {
                Outcome::Reply(_) => answered += 1,
                Outcome::Nothing(_) => {}
                Outcome::Forward(pending) => match shared.limits.question(client.ip()) {
                    Ok(permit) => {
                        let asking =
                            ask(shared.clone(), self.0.get_ref().clone(), client, *pending);
                        tokio::spawn(async move {
                            asking.await;
                            drop(permit);
                        });
                    }
                    Err(why) => {
                        shared.handler.refuse(&pending, why, &mut reply.data);
                        answered += 1;
                    }
                },
            }
        }
        answered
    }
}

async fn ask(shared: Shared, socket: Arc<UdpSocket>, client: SocketAddr, pending: Pending) {
    let begun = Instant::now();
    let said = shared.handler.forwarder.resolve(&pending.question).await;
    let mut reply = Vec::with_capacity(512);
    shared.handler.complete(&pending, &said, Instant::now(), &mut reply);
    if socket.send_to(&reply, client).is_err() {
        shared.handler.counters.drop(Drop::SendFailed);
    }
    shared.handler.counters.forwarded.count(begun.elapsed(), 1);
}
