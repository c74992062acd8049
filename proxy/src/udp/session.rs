//! A client and its task, for as long as they talk.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::Interest,
    net::UdpSocket,
    task::AbortHandle,
    time::{Instant, sleep},
};
use weir_mesh::{Ident, Timeouts, install::Via};

use super::{
    Entrance, Gate, Newcomer,
    batch::{self, Datagrams},
    kept::{self, Kept},
    send_behind,
};
use crate::{
    backend::{Backend, Flow},
    counters::Reason,
    handover::{LeftSession, SessionState},
    header::{self, Addresses, Version},
    port::Port,
    relay::Envelope,
    shared::Shared,
    source::Source,
    sys,
    tcp::{out_of_files, target},
};

/// What a task says: answers, or the ICMP error of a port that is closed, which alone makes a socket not
/// readable.
const SAID: Interest = Interest::READABLE.add(Interest::ERROR);

/// Which session a datagram belongs to: addresses as the socket shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) client: SocketAddr,
    /// The address of this node that the client used.
    pub(super) asked: IpAddr,
    /// Whom the client says it speaks for, if it is trusted in that.
    pub(super) speaks_for: Option<SocketAddr>,
    /// The task, where a client has a session with each.
    pub(super) task: Option<Ident>,
}

/// One session.
pub(super) struct Session {
    socket: UdpSocket,
    peer: SocketAddr,
    backend: Arc<Backend>,
    /// Only where the flow entered the mesh here.
    port: Option<Arc<Port>>,
    /// What goes before each datagram.
    header: Vec<u8>,
    timeouts: Timeouts,
    /// When something was last said, in milliseconds since the start of the proxy.
    last: AtomicU64,
    answered: AtomicBool,
    refused: AtomicBool,
    /// Until something was answered.
    kept: Mutex<Option<Kept>>,
}

/// A session in the table of its gate. Dropping it ends the session.
pub(super) struct Stored {
    session: Arc<Session>,
    answers: AbortHandle,
}

impl Stored {
    /// Begins to bring the answers back.
    fn new(session: Arc<Session>, gate: &Arc<Gate>, key: Key, counted: Counted) -> Self {
        let answers = tokio::spawn(session.clone().answers(gate.clone(), key, counted));
        Self { session, answers: answers.abort_handle() }
    }

    pub(super) fn session(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

impl Session {
    /// Opens a session and begins to bring its answers back. `again`: the flow has begun before, with
    /// another task.
    pub(super) fn begin(
        gate: &Arc<Gate>,
        key: Key,
        newcomer: Newcomer,
        again: bool,
    ) -> Result<Stored, Reason> {
        let shared = &gate.shared;
        let Newcomer { port, backend, entry, hopped } = newcomer;
        let record = backend.record();
        let route = port.route.load();
        let (peer, header) = match record.via {
            Via::Tunnel { node } => {
                let node = shared.directory.node(node).ok_or(Reason::TaskTimeout)?;
                let envelope = Envelope { entry, tag: record.tag, hopped };
                (SocketAddr::new(node, shared.settings.relay_port), envelope.encode())
            }
            _ => {
                let peer = target(&record, &route, entry.client.ip());
                let header = match route.service.wishes.load().header {
                    None => Vec::new(),
                    // Version 1 knows no datagrams.
                    Some(Version::V1 | Version::V2) => {
                        let addresses =
                            Addresses { source: entry.client, destination: entry.asked };
                        header::encode(Version::V2, entry.frontend.protocol, addresses)
                    }
                };
                (peer.ok_or(Reason::TaskRefused)?, header)
            }
        };
        let source = match record.via {
            Via::Tunnel { .. } => Source::Node(shared.settings.address),
            _ => Source::towards_task(shared, &route.service, entry.client.ip()),
        };
        let socket = connect(peer, source).map_err(|error| match out_of_files(&error) {
            true => Reason::NoDescriptors,
            // There is no way to it.
            false => Reason::TaskTimeout,
        })?;
        let entered = matches!(gate.entrance, Entrance::Port(_)).then_some(port.clone());
        let counted = Counted::new(entered.as_ref(), &backend);
        let session = Arc::new(Self {
            socket,
            peer,
            backend,
            port: entered,
            header,
            timeouts: route.record.timeouts,
            last: AtomicU64::new(shared.now()),
            answered: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            kept: Mutex::default(),
        });
        if let Some(port) = &session.port {
            if !again {
                port.traffic.opened();
            }
            session.backend.traffic.opened();
        }
        Ok(Stored::new(session, gate, key, counted))
    }

    /// Goes on with a session of the process before.
    pub(super) fn inherit(gate: &Arc<Gate>, inherited: Inherited) -> io::Result<(Key, Stored)> {
        let Inherited { left: LeftSession { state, socket }, backend, counted } = inherited;
        let SessionState { client, asked, speaks_for, alone, peer, header, timeouts, .. } = state;
        let task = alone.then_some(backend.ident);
        let socket: std::net::UdpSocket = socket.into();
        let last = gate.shared.now().saturating_sub(state.silent_ms);
        let session = Arc::new(Self {
            socket: UdpSocket::from_std(socket)?,
            peer,
            backend,
            port: counted.port.clone(),
            header,
            timeouts,
            last: AtomicU64::new(last),
            answered: AtomicBool::new(state.answered),
            refused: AtomicBool::new(false),
            kept: Mutex::default(),
        });
        let key = Key { client, asked, speaks_for, task };
        Ok((key, Stored::new(session, gate, key, counted)))
    }

    /// What another process needs to go on with it; `None` if the client's next datagram would begin
    /// another session anyway.
    pub(super) fn leave(&self, key: Key, shared: &Shared) -> Option<LeftSession> {
        if !self.is_usable() {
            return None;
        }
        let Key { client, asked, speaks_for, task } = key;
        let state = SessionState {
            client,
            asked,
            speaks_for,
            alone: task.is_some(),
            task: (self.backend.ident, self.backend.record().generation),
            peer: self.peer,
            header: self.header.clone(),
            timeouts: self.timeouts,
            silent_ms: shared.now().saturating_sub(self.last.load(Relaxed)),
            answered: self.answered.load(Relaxed),
        };
        // Without a file more to open the client begins another session.
        let socket = self.socket.as_fd().try_clone_to_owned().ok()?;
        Some(LeftSession { state, socket })
    }

    /// Whether the next datagram may go there.
    pub(super) fn is_usable(&self) -> bool {
        !self.backend.is_gone() && !self.refused.load(Relaxed)
    }

    /// The task, if it refused.
    pub(super) fn refused_by(&self) -> Option<Ident> {
        self.refused.load(Relaxed).then_some(self.backend.ident)
    }

    pub(super) fn keep(&self, kept: Option<Kept>) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }

    /// What it was sent first, if nothing was answered yet.
    pub(super) fn take_kept(&self) -> Option<Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn note_refusal(&self, shared: &Shared) {
        if !self.refused.swap(true, Relaxed) {
            shared.tally.count(Reason::TaskRefused);
        }
    }

    /// `again`: the client has sent them once, and they were counted where they came in.
    pub(super) fn send(
        &self,
        shared: &Shared,
        datagrams: &Datagrams<'_>,
        again: bool,
    ) -> io::Result<()> {
        self.last.store(shared.now(), Relaxed);
        let sent = if !self.header.is_empty() {
            let mut each = datagrams.each();
            each.try_for_each(|one| send_behind(&self.socket, &self.header, one))
        } else if datagrams.count() > 1 {
            datagrams.transmit(&shared.batches, &self.socket, self.peer, None)
        } else {
            SockRef::from(&self.socket).send(datagrams.bytes).map(drop)
        };
        // What was refused is sent, and counted, elsewhere.
        let refused =
            matches!(&sent, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused);
        if let Some(port) = self.port.as_ref().filter(|_| !refused) {
            let (packets, bytes) = (datagrams.count(), datagrams.bytes.len() as u64);
            if !again {
                port.traffic.up(packets, bytes);
            }
            self.backend.traffic.up(packets, bytes);
        }
        sent
    }

    pub(super) fn note_answer(&self, shared: &Shared, datagrams: &Datagrams<'_>) {
        self.last.store(shared.now(), Relaxed);
        if !self.answered.swap(true, Relaxed) {
            self.keep(None);
        }
        if let Some(port) = &self.port {
            let (packets, bytes) = (datagrams.count(), datagrams.bytes.len() as u64);
            port.traffic.down(packets, bytes);
            self.backend.traffic.down(packets, bytes);
        }
    }

    /// How long the session may go on if nothing more is said.
    fn left(&self, shared: &Shared) -> Duration {
        let silence = match self.answered.load(Relaxed) {
            true => self.timeouts.udp_both_ways,
            false => self.timeouts.udp_one_way,
        };
        let since = Duration::from_millis(shared.now().saturating_sub(self.last.load(Relaxed)));
        silence.saturating_sub(since)
    }

    /// Brings answers back until the session has been silent for too long or its task is gone.
    async fn answers(self: Arc<Self>, gate: Arc<Gate>, key: Key, _counted: Counted) {
        let mut gone = pin!(self.backend.ended());
        let mut timer = pin!(sleep(self.left(&gate.shared).min(kept::PATIENCE)));
        loop {
            let ready = tokio::select! {
                biased;
                ready = self.socket.ready(SAID) => match ready {
                    // One at a time: for several, `try_io` never calls.
                    Ok(ready) if ready.is_readable() => Interest::READABLE,
                    Ok(_) => Interest::ERROR,
                    Err(_) => break,
                },
                () = &mut gone => break,
                () = &mut timer => {
                    self.keep(None);
                    let left = self.left(&gate.shared);
                    if left.is_zero() {
                        break;
                    }
                    timer.as_mut().reset(Instant::now() + left);
                    continue;
                }
            };
            match self.receive(&gate, key, ready) {
                Ok(()) => tokio::task::consume_budget().await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    // If nobody takes what was sent, the session stays until the client's next datagram,
                    // which tries again.
                    gate.refused(key, &self);
                }
                Err(_) => gate.shared.tally.count(Reason::SendFailed),
            }
        }
        gate.forget(key, &self);
    }

    fn receive(&self, gate: &Gate, key: Key, ready: Interest) -> io::Result<()> {
        batch::with(|batch| {
            let count = batch.receive(&gate.shared.batches, &self.socket, ready)?;
            batch.take(count, |_, datagrams| gate.answer(self, key, &datagrams));
            Ok(())
        })
    }
}

/// A live session, counted until its task is dropped.
pub(crate) struct Counted {
    port: Option<Arc<Port>>,
    _flow: Option<Flow>,
}

/// A session of the process before, and what it means here. It counts already: its port stays open.
pub(crate) struct Inherited {
    left: LeftSession,
    backend: Arc<Backend>,
    counted: Counted,
}

impl Inherited {
    /// `port`: where the flow entered the mesh, if that was here.
    pub(crate) fn new(left: LeftSession, backend: Arc<Backend>, port: Option<&Arc<Port>>) -> Self {
        let counted = Counted::new(port, &backend);
        Self { left, backend, counted }
    }
}

impl Counted {
    fn new(port: Option<&Arc<Port>>, backend: &Arc<Backend>) -> Self {
        let port = port.cloned();
        let flow = port.as_ref().and_then(|_| Flow::begin(backend, u64::MAX));
        port.iter().for_each(|port| port.note_session(true));
        Self { port, _flow: flow }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.port.iter().for_each(|port| port.note_session(false));
    }
}

/// A socket that speaks with the peer alone, from the node's address if the peer is a node.
fn connect(peer: SocketAddr, source: Source) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(peer), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    source.bind(&socket, peer)?;
    socket.connect(&peer.into())?;
    if peer.is_ipv6() {
        sys::take_without_checksum(&socket)?;
    }
    // Without it answers come one by one.
    sys::merge_datagrams(&socket).ok();
    UdpSocket::from_std(socket.into())
}
