//! TCP: a client's connection, one to a task, and bytes in both directions.

pub(crate) mod copy;
mod open;
mod pipe;
mod said;

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};
use tracing::debug;

pub(crate) use open::{Entry, Opened, connect, dial, open, target};

use crate::{
    address::plain,
    backend::Backend,
    counters::Reason,
    handover::{Left, Place, Word},
    port::Port,
    shared::Shared,
};

/// After an accept that failed for want of files or memory: long enough that some may be freed.
const PAUSE: Duration = Duration::from_millis(20);

/// Accepts clients until it is told to stop. What the kernel has accepted by then is still served, or
/// left to whoever takes the listener.
pub(crate) async fn accept(
    listener: std::net::TcpListener,
    place: Place,
    shared: Arc<Shared>,
    word: watch::Receiver<Word>,
    serve: impl Fn(TcpStream, SocketAddr),
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return debug!(%error, "a worker cannot follow a listener"),
    };
    let mut waiting = word.clone();
    let mut stopped = pin!(waiting.wait_for(|word| !word.is_go()));
    loop {
        // There may always be one more.
        if matches!(*word.borrow(), Word::Leave(_)) {
            break;
        }
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            _ = &mut stopped => break,
        };
        match accepted {
            Ok((stream, from)) => serve(stream, plain(from)),
            Err(error) => {
                debug!(%error, "a connection was not accepted");
                if out_of_files(&error) {
                    shared.tally.count(Reason::NoDescriptors);
                    sleep(PAUSE).await;
                }
            }
        }
    }
    if let Word::Leave(heir) = &*word.borrow() {
        match listener.into_std() {
            // An heir that has gone meanwhile needs nothing.
            Ok(listener) => {
                heir.send(Left { place, socket: listener.into(), sessions: Vec::new() }).ok();
            }
            Err(error) => debug!(%error, "a listener cannot be left to anybody"),
        }
    }
}

/// Whether there were no more files, or no memory, for a socket.
pub(crate) fn out_of_files(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Serves a client of a published port to the end. It has come from one address, and asked another.
pub(crate) async fn serve(
    mut client: TcpStream,
    (from, asked): (SocketAddr, SocketAddr),
    port: Arc<Port>,
    shared: Arc<Shared>,
) {
    let Some(_permit) = shared.permit() else { return reset(&client) };
    let route = port.route.load_full();
    let mut entry = Entry { client: from, asked, frontend: port.frontend };
    if route.service.wishes.load().trusts(from.ip()) {
        match said::read(&mut client).await {
            Ok(Some(said)) => (entry.client, entry.asked) = (said.source, said.destination),
            Ok(None) => {}
            Err(error) => {
                debug!(%error, %from, "a sender that is trusted did not say who the client is");
                shared.tally.count(Reason::ProxyHeader);
                return reset(&client);
            }
        }
    }
    if !route.allows(entry.client.ip()) {
        shared.tally.count(Reason::Denied);
        return reset(&client);
    }
    let _admission = match route.service.admit(entry.client.ip()) {
        Ok(admission) => admission,
        Err(reason) => {
            shared.tally.count(reason);
            return reset(&client);
        }
    };
    match open(&shared, &route, entry).await {
        Ok(Opened { stream, backend, flow }) => {
            port.traffic.opened();
            backend.traffic.opened();
            let _flow = flow;
            let idle = route.record.timeouts.tcp_established;
            // Its tables may be large, and the connection may outlive them by hours.
            drop(route);
            carry(client, stream, &backend, idle, Some(&port), &shared).await;
        }
        Err(reason) => {
            shared.tally.count(reason);
            reset(&client);
        }
    }
}

/// Copies both ways until both sides have ended, one of them fails, or the task may have no flows
/// any more.
pub(crate) async fn carry(
    client: TcpStream,
    task: TcpStream,
    backend: &Backend,
    idle: Duration,
    port: Option<&Port>,
    shared: &Shared,
) {
    let mut pair = copy::Pair::new(client, task);
    let end = copy::run(&mut pair, backend, (idle, &shared.settings), |up, down| {
        if let Some(port) = port {
            port.traffic.up(0, up);
            port.traffic.down(0, down);
            backend.traffic.up(0, up);
            backend.traffic.down(0, down);
        }
    })
    .await;
    let reason = match end {
        copy::End::Whole => return,
        copy::End::Failed => Reason::Broken,
        copy::End::TaskGone => Reason::BackendGone,
        copy::End::Idle => Reason::Idle,
    };
    shared.tally.count(reason);
    // Neither side may take what it has for the whole.
    pair.streams().into_iter().for_each(reset);
}

/// Lets a stream end with a reset when it is dropped.
pub(crate) fn reset(stream: &TcpStream) {
    // A socket that refuses is one that has ended.
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).ok();
}
