//! UDP: sessions between a client's address and a task, each with a connected socket of its own.
//!
//! A published port has one socket a worker; a client always meets the same one, since the kernel
//! spreads datagrams by their addresses. [`Gate`] takes what clients send; each [`session`] brings
//! back what its task answers.

mod batch;
mod kept;
mod session;

use std::{
    borrow::Cow,
    io::{self, IoSlice},
    net::SocketAddr,
    num::NonZeroUsize,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
};

use lru::LruCache;
use socket2::SockRef;
use tokio::{io::Interest, net::UdpSocket, sync::watch};
use tracing::debug;
use weir_mesh::{Ident, Protocol};

pub(crate) use self::session::Inherited;
use self::{
    batch::Datagrams,
    kept::{Kept, Origin, TRIES},
    session::{Key, Session, Stored},
};
use crate::{
    address::plain,
    backend::Backend,
    counters::Reason,
    handover::{Left, Place, Word},
    header,
    port::Port,
    relay::{self, Envelope},
    route::Among,
    shared::Shared,
    tcp::Entry,
};

/// Where datagrams come in.
pub(crate) enum Entrance {
    /// From clients, at a published port.
    Port(Arc<Port>),
    /// From other nodes, each datagram in an envelope.
    Relay,
}

/// One socket with its sessions.
pub(crate) struct Gate {
    socket: UdpSocket,
    entrance: Entrance,
    shared: Arc<Shared>,
    /// Used by one worker only, so nobody waits for the lock.
    sessions: Mutex<LruCache<Key, Stored>>,
}

/// A flow that has no session yet.
struct Newcomer {
    port: Arc<Port>,
    backend: Arc<Backend>,
    entry: Entry,
    hopped: bool,
}

/// Takes datagrams until it is told to stop, and ends all sessions then, or leaves them to whoever
/// takes the socket. `inherited` are sessions that were left with it.
pub(crate) async fn run(
    socket: std::net::UdpSocket,
    entrance: Entrance,
    inherited: Vec<Inherited>,
    shared: Arc<Shared>,
    mut word: watch::Receiver<Word>,
) {
    let socket = match UdpSocket::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return debug!(%error, "a worker cannot follow a socket"),
    };
    let most = NonZeroUsize::new(shared.settings.udp_sessions).unwrap_or(NonZeroUsize::MIN);
    // Room is taken as sessions come.
    let sessions = Mutex::new(LruCache::unbounded());
    sessions.lock().unwrap_or_else(PoisonError::into_inner).resize(most);
    let gate = Arc::new(Gate { socket, entrance, shared, sessions });
    gate.inherit(inherited);
    loop {
        tokio::select! {
            biased;
            _ = word.wait_for(|word| !word.is_go()) => break,
            ready = gate.readable() => if ready.is_err() { break },
        }
        // The buffer is for all sockets of the worker: after each batch others get their turn.
        match gate.receive() {
            Ok(()) => tokio::task::consume_budget().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => debug!(%error, "a datagram was not received"),
        }
    }
    if let Word::Leave(heir) = &*word.borrow() {
        match gate.leave() {
            // An heir that has gone meanwhile needs nothing.
            Ok(left) => drop(heir.send(left)),
            Err(error) => debug!(%error, "a socket cannot be left to anybody"),
        }
    }
    gate.lock().clear();
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, LruCache<Key, Stored>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with sessions of the process before; what they were sent meanwhile waits in their
    /// sockets.
    fn inherit(self: &Arc<Self>, inherited: Vec<Inherited>) {
        let mut sessions = self.lock();
        for session in inherited {
            match Session::inherit(self, session) {
                Ok((key, stored)) => drop(sessions.push(key, stored)),
                Err(error) => debug!(%error, "a session is not gone on with"),
            }
        }
    }

    /// The socket and its sessions, for somebody else. Nothing must be taken from them here any more.
    fn leave(&self) -> io::Result<Left> {
        let place = match &self.entrance {
            Entrance::Port(port) => Place::Port(port.frontend),
            Entrance::Relay => Place::Relay(Protocol::Udp),
        };
        let sessions = self.lock();
        // The one that was silent for longest first, as they are to be entered again.
        let left = sessions
            .iter()
            .rev()
            .filter_map(|(key, stored)| stored.session().leave(*key, &self.shared));
        let socket = self.socket.as_fd().try_clone_to_owned()?;
        Ok(Left { place, socket, sessions: left.collect() })
    }

    /// Datagrams of other nodes wait in the socket until these are known: nobody repeats them.
    async fn readable(&self) -> io::Result<()> {
        if matches!(self.entrance, Entrance::Relay) {
            self.shared.settled.wait().await;
        }
        self.socket.readable().await
    }

    /// Takes one batch.
    fn receive(self: &Arc<Self>) -> io::Result<()> {
        batch::with(|batch| {
            let count = batch.receive(&self.shared.batches, &self.socket, Interest::READABLE)?;
            batch.take(count, |meta, datagrams| {
                let asked = meta.dst_ip.unwrap_or(meta.addr.ip());
                let key = Key { client: meta.addr, asked, speaks_for: None, task: None };
                self.take(key, datagrams);
            });
            Ok(())
        })
    }

    /// Datagrams of one client that arrived together.
    fn take(self: &Arc<Self>, key: Key, datagrams: Datagrams<'_>) {
        match &self.entrance {
            Entrance::Port(port) => {
                let asked = SocketAddr::new(key.asked, port.frontend.port.get());
                let (client, asked) = (plain(key.client), plain(asked));
                let entry = Entry { client, asked, frontend: port.frontend };
                let (trusted, per_packet) = {
                    let route = port.route.load();
                    let wishes = route.service.wishes.load();
                    (wishes.trusts(client.ip()), wishes.per_packet)
                };
                let origin = Origin::Client(Cow::Borrowed(port), entry);
                match (trusted, per_packet) {
                    (true, _) => datagrams
                        .each()
                        .for_each(|one| self.take_said(port, key, entry, one, per_packet)),
                    (false, true) => {
                        datagrams.each().for_each(|one| self.pass_alone(key, one, &origin));
                    }
                    (false, false) => self.pass(key, datagrams, &origin),
                }
            }
            Entrance::Relay => {
                let Some(sender) = self.shared.directory.sender(plain(key.client).ip()) else {
                    return self.shared.tally.count(Reason::UnknownSender);
                };
                for datagram in datagrams.each() {
                    let Ok(Some((envelope, length))) = Envelope::parse(datagram) else {
                        self.shared.tally.count(Reason::Malformed);
                        continue;
                    };
                    let datagram = Datagrams::one(&datagram[length..]);
                    self.pass(key, datagram, &Origin::Node(envelope, sender));
                }
            }
        }
    }

    /// A datagram of a sender that says before each whom it speaks for.
    fn take_said(
        self: &Arc<Self>,
        port: &Arc<Port>,
        key: Key,
        entry: Entry,
        datagram: &[u8],
        per_packet: bool,
    ) {
        let Ok(Some(header)) = header::parse(datagram) else {
            return self.shared.tally.count(Reason::ProxyHeader);
        };
        let (mut key, mut entry) = (key, entry);
        if let Some((_, said)) = header.addresses {
            key.speaks_for = Some(said.source);
            (entry.client, entry.asked) = (plain(said.source), plain(said.destination));
        }
        let datagram = &datagram[header.length..];
        let origin = Origin::Client(Cow::Borrowed(port), entry);
        match per_packet {
            true => self.pass_alone(key, datagram, &origin),
            false => self.pass(key, Datagrams::one(datagram), &origin),
        }
    }

    /// A task for a flow, other than those that were tried.
    fn newcomer(&self, origin: &Origin<'_>, tried: &[Ident]) -> Result<Newcomer, Reason> {
        let fresh = |backend: &Backend| !tried.contains(&backend.ident);
        match origin {
            Origin::Client(port, entry) => {
                let route = port.route.load();
                if !route.allows(entry.client.ip()) {
                    return Err(Reason::Denied);
                }
                let backend = route.choose(Among::All, entry.client, fresh);
                let backend = backend.ok_or_else(|| route.nobody())?;
                Ok(Newcomer { port: Arc::clone(port), backend, entry: *entry, hopped: false })
            }
            Origin::Node(envelope, sender) => {
                let (port, backend) = relay::recipient(&self.shared, envelope, *sender, fresh)?;
                Ok(Newcomer { port, backend, entry: envelope.entry, hopped: true })
            }
        }
    }

    /// To the task of the session; a client whose task has gone, or refuses, gets another one for
    /// this very datagram, and for what was refused.
    fn pass(self: &Arc<Self>, key: Key, datagrams: Datagrams<'_>, origin: &Origin<'_>) {
        let mut sessions = self.lock();
        let (mut refused, mut kept) = (None, None);
        if let Some(stored) = sessions.get(&key) {
            let session = stored.session();
            if session.is_usable() {
                match session.send(&self.shared, &datagrams, false) {
                    Ok(()) => return,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        session.note_refusal(&self.shared);
                    }
                    Err(_) => return self.shared.tally.add(Reason::SendFailed, datagrams.count()),
                }
            }
            refused = session.refused_by();
            kept = session.take_kept().filter(|_| refused.is_some());
            sessions.pop(&key);
        }
        if kept.is_some_and(|kept| self.send_again(&mut sessions, key, kept, refused)) {
            // The client has a session with another task now.
            drop(sessions);
            return self.pass(key, datagrams, origin);
        }
        let tried = Vec::from_iter(refused);
        let fresh = self.newcomer(origin, &tried).or_else(|reason| match tried[..] {
            // Better the one that refused than nobody: it may be back.
            [_, ..] => self.newcomer(origin, &[]),
            [] => Err(reason),
        });
        let begun = fresh.and_then(|newcomer| Session::begin(self, key, newcomer, false));
        match begun {
            Ok(stored) => {
                self.enter(&mut sessions, key, stored, &datagrams, (origin, tried), false);
            }
            Err(reason) => self.shared.tally.add(reason, datagrams.count()),
        }
    }

    /// To whichever task has its turn, by a session that the client has with that task alone: answers
    /// come back by it.
    fn pass_alone(self: &Arc<Self>, key: Key, datagram: &[u8], origin: &Origin<'_>) {
        let datagram = Datagrams::one(datagram);
        let mut sessions = self.lock();
        let mut tried = Vec::new();
        loop {
            let newcomer = match self.newcomer(origin, &tried) {
                Ok(newcomer) => newcomer,
                Err(reason) => return self.shared.tally.count(reason),
            };
            let task = newcomer.backend.ident;
            let key = Key { task: Some(task), ..key };
            let known = sessions.get(&key).map(|stored| stored.session().clone());
            if let Some(session) = known.filter(|session| session.is_usable()) {
                match session.send(&self.shared, &datagram, false) {
                    Ok(()) => return,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        session.note_refusal(&self.shared);
                        sessions.pop(&key);
                    }
                    Err(_) => return self.shared.tally.count(Reason::SendFailed),
                }
            } else {
                // One that refused before is asked again: it may be back.
                match Session::begin(self, key, newcomer, false) {
                    Ok(stored) => {
                        let from = (origin, tried);
                        return self.enter(&mut sessions, key, stored, &datagram, from, false);
                    }
                    Err(reason) => self.shared.tally.count(reason),
                }
            }
            tried.push(task);
            if tried.len() >= TRIES {
                return;
            }
        }
    }

    /// A session that begins with these. `tried`: who has refused what the client sent; `again`: these
    /// as well.
    fn enter(
        self: &Arc<Self>,
        sessions: &mut LruCache<Key, Stored>,
        key: Key,
        stored: Stored,
        datagrams: &Datagrams<'_>,
        (origin, tried): (&Origin<'_>, Vec<Ident>),
        again: bool,
    ) {
        let session = stored.session().clone();
        let before = sessions.push(key, stored);
        // Another one than that which it takes the place of.
        if before.is_some_and(|(known, _)| known != key) {
            self.shared.tally.count(Reason::SessionEvicted);
        }
        match session.send(&self.shared, datagrams, again) {
            Ok(()) => session.keep(Kept::new(datagrams, origin, tried, &self.shared)),
            // The first of several was refused before the last was sent.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                session.note_refusal(&self.shared);
                if let Some(kept) = Kept::new(datagrams, origin, tried, &self.shared) {
                    self.send_again(sessions, key, kept, session.refused_by());
                }
            }
            Err(_) => self.shared.tally.add(Reason::SendFailed, datagrams.count()),
        }
    }

    /// Sends what a task refused to another one, if there is one, in a session in place of the one before.
    fn send_again(
        self: &Arc<Self>,
        sessions: &mut LruCache<Key, Stored>,
        mut key: Key,
        mut kept: Kept,
        refused: Option<Ident>,
    ) -> bool {
        kept.tried.extend(refused);
        if kept.tried.len() >= TRIES {
            return false;
        }
        let Ok(newcomer) = self.newcomer(&kept.origin, &kept.tried) else { return false };
        key.task = key.task.and(Some(newcomer.backend.ident));
        // The client may have talked with that task all along.
        let known = key.task.and_then(|_| sessions.get(&key)).map(|it| it.session().clone());
        if let Some(session) = known.filter(|session| session.is_usable()) {
            return session.send(&self.shared, &kept.datagrams(), true).is_ok();
        }
        let Ok(stored) = Session::begin(self, key, newcomer, true) else { return false };
        let tried = std::mem::take(&mut kept.tried);
        self.enter(sessions, key, stored, &kept.datagrams(), (&kept.origin, tried), true);
        true
    }

    /// The task of a session has refused what it was sent.
    fn refused(self: &Arc<Self>, key: Key, session: &Arc<Session>) {
        session.note_refusal(&self.shared);
        let mut sessions = self.lock();
        // Another one may have taken its place meanwhile.
        if !sessions.peek(&key).is_some_and(|stored| Arc::ptr_eq(stored.session(), session)) {
            return;
        }
        if let Some(kept) = session.take_kept() {
            self.send_again(&mut sessions, key, kept, session.refused_by());
        }
    }

    /// Answers to a client, from the address that it asked.
    fn answer(&self, session: &Session, key: Key, datagrams: &Datagrams<'_>) {
        let (state, asked) = (&self.shared.batches, Some(key.asked));
        let sent = datagrams.transmit(state, &self.socket, key.client, asked);
        if sent.is_err() {
            return self.shared.tally.add(Reason::SendFailed, datagrams.count());
        }
        session.note_answer(&self.shared, datagrams);
    }

    fn forget(&self, key: Key, session: &Arc<Session>) {
        let mut sessions = self.lock();
        if sessions.peek(&key).is_some_and(|stored| Arc::ptr_eq(stored.session(), session)) {
            sessions.pop(&key);
        }
    }
}

/// Sends one datagram behind a header.
fn send_behind(socket: &UdpSocket, header: &[u8], datagram: &[u8]) -> io::Result<()> {
    let parts = [IoSlice::new(header), IoSlice::new(datagram)];
    SockRef::from(socket).send_vectored(&parts).map(drop)
}

impl Port {
    fn note_session(&self, begins: bool) {
        match begins {
            true => self.sessions.fetch_add(1, Relaxed),
            false => self.sessions.fetch_sub(1, Relaxed),
        };
    }
}
