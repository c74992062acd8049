//! From node to node: a task is reached only on its own node, so whoever enters elsewhere is handed
//! over there.
//!
//! A connection to the relay port begins with an [`Envelope`], and is answered by one byte before
//! anything is copied: until then the sender may try another task. It is the tunnel of the kernel
//! plane in other clothes: the tag names the task, the receiver gives a second chance, and only
//! addresses of nodes are heard.

mod envelope;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use weir_mesh::install::{NodeIndex, Via};

pub(crate) use envelope::Envelope;

use crate::{
    backend::Backend,
    counters::Reason,
    header::HeaderError,
    port::Port,
    route::{Among, Route},
    shared::Shared,
    source::Source,
    tcp::{self, Opened},
};

/// How long a node may take to say who is handed over.
const PATIENCE: Duration = Duration::from_secs(3);
/// Connections that the other node may try before it gives up, each as long as ours.
const THEIR_TRIES: u32 = 3;
const TAKEN: u8 = 1;

/// Hands a connection over to a node; answers when a task there has accepted.
pub(crate) async fn dial(
    shared: &Shared,
    node: IpAddr,
    envelope: Envelope,
) -> Result<TcpStream, Reason> {
    let target = SocketAddr::new(node, shared.settings.relay_port);
    let mut stream = tcp::connect(shared, target, Source::Node(shared.settings.address)).await?;
    let wait = shared.settings.connect_timeout * THEIR_TRIES;
    let asked = async {
        stream.write_all(&envelope.encode()).await?;
        stream.read_u8().await
    };
    match timeout(wait, asked).await {
        Ok(Ok(TAKEN)) => Ok(stream),
        Ok(Ok(refusal)) => Err(refused(refusal)),
        Ok(Err(_)) => Err(Reason::TaskRefused),
        Err(_) => Err(Reason::TaskTimeout),
    }
}

/// Refusals on the wire. Never renumbered.
const REFUSALS: [(u8, Reason); 4] = [
    (2, Reason::NoBackend),
    (3, Reason::ConnectFailed),
    (4, Reason::NotPublished),
    (5, Reason::HopLimit),
];

fn refused(byte: u8) -> Reason {
    let known = REFUSALS.iter().find(|(number, _)| *number == byte);
    known.map_or(Reason::TaskRefused, |(_, reason)| *reason)
}

/// Takes what another node hands over, to the end.
pub(crate) async fn serve(mut stream: TcpStream, from: SocketAddr, shared: Arc<Shared>) {
    let Some(_permit) = shared.permit() else { return tcp::reset(&stream) };
    // Other nodes may have heard of this one before it has heard of them. What is not known in time is
    // refused, so that they try elsewhere.
    timeout(PATIENCE, shared.settled.wait()).await.ok();
    let Some(sender) = shared.directory.sender(from.ip()) else {
        shared.tally.count(Reason::UnknownSender);
        return tcp::reset(&stream);
    };
    let envelope = match timeout(PATIENCE, read(&mut stream)).await {
        Ok(Ok(envelope)) => envelope,
        Ok(Err(_)) | Err(_) => {
            shared.tally.count(Reason::Malformed);
            return tcp::reset(&stream);
        }
    };
    let Some(port) = shared.directory.port(envelope.entry.frontend) else {
        shared.tally.count(Reason::NotPublished);
        return refuse(stream, Reason::NotPublished).await;
    };
    let route = port.route.load_full();
    match open(&shared, &route, envelope, sender).await {
        Ok(opened) => {
            if stream.write_all(&[TAKEN]).await.is_ok() {
                let Opened { stream: task, backend, .. } = opened;
                let idle = route.record.timeouts.tcp_established;
                // As in `tcp::serve`.
                drop((route, port));
                tcp::carry(stream, task, &backend, idle, None, &shared).await;
            }
        }
        Err(reason) => {
            shared.tally.count(reason);
            refuse(stream, reason).await;
        }
    }
}

async fn refuse(mut stream: TcpStream, reason: Reason) {
    let number =
        REFUSALS.iter().find(|(_, known)| *known == reason).map_or(3, |(number, _)| *number);
    // Whoever has gone meanwhile needs no answer.
    stream.write_all(&[number]).await.ok();
}

async fn read(stream: &mut TcpStream) -> io::Result<Envelope> {
    let mut bytes = [0; envelope::LONGEST];
    let mut filled = 0;
    loop {
        // Exactly the header: what follows it belongs to the task.
        let wanted = envelope::wanted(&bytes[..filled]);
        let Some(room) = bytes.get_mut(filled..wanted) else {
            return Err(bad(HeaderError::TooLong));
        };
        stream.read_exact(room).await?;
        filled = wanted;
        if let Some((envelope, _)) = Envelope::parse(&bytes[..filled]).map_err(bad)? {
            return Ok(envelope);
        }
    }
}

fn bad(error: HeaderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The task that the sender chose; else another one here; else, once, one elsewhere.
async fn open(
    shared: &Shared,
    route: &Route,
    envelope: Envelope,
    sender: NodeIndex,
) -> Result<Opened, Reason> {
    let mut tried = Vec::new();
    let entry = envelope.entry;
    for (attempt, among) in
        [None, Some(Among::Here), Some(Among::Here), Some(Among::All)].into_iter().enumerate()
    {
        let fresh = |backend: &Backend| !tried.contains(&backend.ident);
        let backend = match among {
            None => tagged(shared, route, &envelope),
            Some(Among::Here) => route.choose(Among::Here, entry.client, fresh),
            Some(Among::All) if envelope.hopped => return Err(given_up(&tried, Reason::HopLimit)),
            Some(Among::All) => elsewhere(route, &envelope, sender, fresh),
        };
        let Some(backend) = backend else { continue };
        if attempt > 0 {
            shared.tally.count(Reason::SecondChance);
        }
        match tcp::dial(shared, route, &backend, entry, true).await {
            Ok(stream) => return Ok(Opened { stream, backend, flow: None }),
            Err(reason) => shared.tally.count(reason),
        }
        tried.push(backend.ident);
    }
    Err(given_up(&tried, Reason::NoBackend))
}

fn given_up<T>(tried: &[T], otherwise: Reason) -> Reason {
    if tried.is_empty() { otherwise } else { Reason::ConnectFailed }
}

/// The task of this node that the sender chose, if it takes new flows.
pub(crate) fn tagged(shared: &Shared, route: &Route, envelope: &Envelope) -> Option<Arc<Backend>> {
    let tagged = shared.directory.tagged(route.record.service, envelope.tag);
    tagged.filter(|backend| backend.is_active() && !backend.is_remote())
}

/// A task of another node, if possible not of the one that sent the flow.
pub(crate) fn elsewhere(
    route: &Route,
    envelope: &Envelope,
    sender: NodeIndex,
    fresh: impl Fn(&Backend) -> bool,
) -> Option<Arc<Backend>> {
    let back = Via::Tunnel { node: sender };
    let client = envelope.entry.client;
    let forth =
        |backend: &Backend| fresh(backend) && backend.is_remote() && backend.record().via != back;
    let any = |backend: &Backend| fresh(backend) && backend.is_remote();
    route.choose(Among::All, client, forth).or_else(|| route.choose(Among::All, client, any))
}

/// What a datagram of another node is for.
pub(crate) fn recipient(
    shared: &Shared,
    envelope: &Envelope,
    sender: NodeIndex,
    fresh: impl Fn(&Backend) -> bool,
) -> Result<(Arc<Port>, Arc<Backend>), Reason> {
    let port = shared.directory.port(envelope.entry.frontend).ok_or(Reason::NotPublished)?;
    let route = port.route.load();
    if let Some(backend) = tagged(shared, &route, envelope).filter(|backend| fresh(backend)) {
        return Ok((port.clone(), backend));
    }
    let here = route.choose(Among::Here, envelope.entry.client, &fresh);
    let backend = match here {
        Some(backend) => backend,
        None if envelope.hopped => return Err(Reason::HopLimit),
        None => elsewhere(&route, envelope, sender, fresh).ok_or(Reason::NoBackend)?,
    };
    shared.tally.count(Reason::SecondChance);
    Ok((port.clone(), backend))
}
