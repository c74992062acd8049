//! One listener behind all published TCP ports, where the kernel can be told which ports lead to it.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use tokio::{net::TcpStream, sync::watch};
use tracing::warn;
use weir_mesh::{Protocol, PublishedPort, install::Frontend};

use crate::{
    address::plain,
    counters::Reason,
    handover::{Place, Word},
    listen,
    port::Port,
    shared::Shared,
    tcp,
    worker::Worker,
};

/// Leads clients of published TCP ports to one listener.
pub trait Dispatch: Send {
    /// Makes `listener` the one. It is a socket of a group that shares its port, among which the kernel
    /// spreads clients. `before` are the files of a dispatch to the same listener that is gone on with.
    ///
    /// # Errors
    /// What the kernel lacks, or this process may not do.
    fn begin(
        &mut self,
        listener: BorrowedFd<'_>,
        before: Option<Vec<OwnedFd>>,
    ) -> Result<(), String>;

    /// Clients of a port are led to the listener from now on.
    ///
    /// # Errors
    /// When the kernel refuses it.
    fn lead(&self, port: PublishedPort) -> io::Result<()>;

    /// New clients of a port are not led any more.
    ///
    /// # Errors
    /// When the kernel refuses it.
    fn leave(&self, port: PublishedPort) -> io::Result<()>;

    /// What another process needs to go on; as long as somebody has them, clients are led.
    fn into_files(self: Box<Self>) -> Vec<OwnedFd>;
}

/// The listener, with what leads to it.
pub(crate) struct Door {
    pub(crate) dispatch: Box<dyn Dispatch>,
    /// Told to all its sockets.
    pub(crate) word: watch::Sender<Word>,
}

impl Door {
    /// With the sockets and the files of the process before, if there was one.
    pub(crate) fn open(
        mut dispatch: Box<dyn Dispatch>,
        sockets: Option<Vec<TcpListener>>,
        before: Option<Vec<OwnedFd>>,
        shared: &Arc<Shared>,
        workers: &[Worker],
    ) -> Result<Self, String> {
        // What was led to other sockets says nothing of new ones.
        let before = before.filter(|_| sockets.is_some());
        let sockets = match sockets {
            Some(sockets) => sockets,
            None => listen::door(workers.len(), &shared.settings)
                .map_err(|error| format!("cannot listen: {error}"))?,
        };
        let first = sockets.first().ok_or("there are no workers")?;
        dispatch.begin(first.as_fd(), before)?;
        let word = watch::Sender::<Word>::default();
        for (worker, socket) in workers.iter().cycle().zip(sockets) {
            let ours = shared.clone();
            let enter = move |stream, from| match port_of(&stream, &ours) {
                Some((port, asked)) => {
                    tokio::spawn(tcp::serve(stream, (from, asked), port, ours.clone()));
                }
                None => {
                    ours.tally.count(Reason::NotPublished);
                    tcp::reset(&stream);
                }
            };
            let (shared, word) = (shared.clone(), word.subscribe());
            worker.spawn(async move {
                let mut other_word = word.clone();
                // Clients of the process before wait in the socket until their ports are known.
                tokio::select! {
                    biased;
                    _ = shared.settled.wait() => {}
                    _ = other_word.wait_for(|word| !word.is_go()) => {}
                }
                tcp::accept(socket, Place::Door, shared, word, enter).await;
            });
        }
        Ok(Self { dispatch, word })
    }

    pub(crate) fn lead(&self, frontend: Frontend) -> io::Result<()> {
        self.dispatch.lead(frontend.port)
    }

    pub(crate) fn leave(&self, frontend: Frontend) {
        if let Err(error) = self.dispatch.leave(frontend.port) {
            warn!(%error, port = %frontend, "clients of a port without a task wait to be refused");
        }
    }
}

/// The published port that a client connected to, and at which address.
fn port_of(stream: &TcpStream, shared: &Shared) -> Option<(Arc<Port>, SocketAddr)> {
    let asked = plain(stream.local_addr().ok()?);
    let frontend = Frontend { protocol: Protocol::Tcp, port: PublishedPort::new(asked.port())? };
    Some((shared.directory.port(frontend)?, asked))
}
