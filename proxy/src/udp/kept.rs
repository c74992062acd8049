//! What a session was sent first, kept until its task has answered: a task whose port is closed says so
//! by an ICMP error, and another one gets it.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use weir_mesh::{Ident, install::NodeIndex};

use super::batch::Datagrams;
use crate::{port::Port, relay::Envelope, shared::Shared, tcp::Entry};

/// How long it is kept. A port that is closed says so at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Tasks that are sent the same, as for a connection.
pub(super) const TRIES: usize = 4;
/// Bytes of all sessions together: one that finds no room goes on without.
const ROOM: usize = 4 << 20;

/// How a flow came to this node.
#[derive(Debug)]
pub(super) enum Origin<'a> {
    /// From a client, at a published port. Borrowed for as long as nothing is kept: all workers would
    /// count its holders at every batch.
    Client(Cow<'a, Arc<Port>>, Entry),
    /// From another node.
    Node(Envelope, NodeIndex),
}

impl Origin<'_> {
    fn to_owned(&self) -> Origin<'static> {
        match self {
            Self::Client(port, entry) => Origin::Client(Cow::Owned(Arc::clone(port)), *entry),
            Self::Node(envelope, sender) => Origin::Node(*envelope, *sender),
        }
    }
}

/// Datagrams, and what it takes to send them to another task.
pub(super) struct Kept {
    bytes: Box<[u8]>,
    size: usize,
    pub(super) origin: Origin<'static>,
    /// Who has refused them.
    pub(super) tried: Vec<Ident>,
    shared: Arc<Shared>,
}

impl Kept {
    /// `None` if there is no room.
    pub(super) fn new(
        datagrams: &Datagrams<'_>,
        origin: &Origin<'_>,
        tried: Vec<Ident>,
        shared: &Arc<Shared>,
    ) -> Option<Self> {
        let length = datagrams.bytes.len();
        if shared.kept.fetch_add(length, Relaxed) + length > ROOM {
            shared.kept.fetch_sub(length, Relaxed);
            return None;
        }
        let (bytes, size) = (datagrams.bytes.into(), datagrams.size);
        Some(Self { bytes, size, origin: origin.to_owned(), tried, shared: shared.clone() })
    }

    pub(super) fn datagrams(&self) -> Datagrams<'_> {
        Datagrams { bytes: &self.bytes, size: self.size }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.shared.kept.fetch_sub(self.bytes.len(), Relaxed);
    }
}
