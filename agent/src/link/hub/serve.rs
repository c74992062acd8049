//! The door of the hub: connections, handshakes, limits.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::channel::Channel;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, server::conn::http2, service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::server::Acceptor;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tracing::{info, warn};

use super::{
    Hub,
    strangers::{Stranger, Strangers},
};
use crate::link::{
    MAX_AGE,
    identity::{Role, Who},
    keeper::Known,
    status::{Counters, lock},
    stream::{End, Inflow},
    tls::{self, Tls, fit_to_join},
    wire::{ANY_VERSION, Head, PATH},
};

/// Connections at once. Each is one node; more wait at the door.
const MOST_CONNECTIONS: usize = 4096;
/// Each for the first word, from the handshake to the request, and for the last word.
const OPENING: Duration = Duration::from_secs(3);
/// For an answer to be on its way, before the connection is closed behind it.
const LAST_ANSWER: Duration = Duration::from_millis(50);
/// For the handshake, once it has begun: of a thousand nodes that come at once the last waits long,
/// and if it were let go it would come again.
const SHAKING: Duration = Duration::from_secs(10);
/// Between attempts to listen.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);

/// Opens the hub while this node is a manager, and closes it when it is none.
#[derive(Debug)]
pub struct Serving {
    hub: Arc<Hub>,
    address: SocketAddr,
    known: watch::Receiver<Known>,
    bound: Mutex<Result<SocketAddr, String>>,
}

impl Serving {
    /// Will listen at `address`.
    pub fn new(hub: Arc<Hub>, address: SocketAddr, known: watch::Receiver<Known>) -> Arc<Self> {
        let bound = Mutex::new(Err("not opened yet".to_owned()));
        Arc::new(Self { hub, address, known, bound })
    }

    /// Where it listens, or why it does not.
    pub fn bound(&self) -> Result<SocketAddr, String> {
        lock(&self.bound).clone()
    }

    /// Serves until the identity's keeper ends.
    pub async fn run(self: Arc<Self>) {
        let mut known = self.known.clone();
        loop {
            let tls = known.borrow_and_update().tls.clone();
            let closed = match tls.map(|tls| tls.who.clone()) {
                None => "no certificates".to_owned(),
                Some(who) if who.role == Role::Worker => "this node is a worker".to_owned(),
                Some(who) => {
                    // Dropping this closes the door and every connection.
                    tokio::select! {
                        closed = self.listen() => closed,
                        () = until_another(&mut known, &who) => continue,
                    }
                }
            };
            *lock(&self.bound) = Err(closed);
            tokio::select! {
                changed = known.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LISTEN_AGAIN) => {}
            }
        }
    }

    async fn listen(&self) -> String {
        let listener = match TcpListener::bind(self.address).await {
            Ok(listener) => listener,
            Err(error) => {
                let trouble = format!("link.listen = \"{}\": {error}", self.address);
                if self.bound().as_ref() != Err(&trouble) {
                    warn!(%trouble, "the hub cannot listen");
                }
                return trouble;
            }
        };
        *lock(&self.bound) = listener.local_addr().map_err(|error| error.to_string());
        info!(address = %self.address, "the hub listens");
        let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let strangers = Arc::new(Strangers::default());
        let mut guests = tokio::task::JoinSet::new();
        loop {
            while guests.try_join_next().is_some() {}
            let Ok(seat) = room.clone().acquire_owned().await else { return String::new() };
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // The newest identity: certificates rotate.
            let Some(tls) = self.known.borrow().tls.clone() else { continue };
            let hub = self.hub.clone();
            let Some(stranger) = strangers.admit(from.ip()) else {
                hub.counters.refuse(&from.ip().to_string(), "too many connections at the door");
                continue;
            };
            guests.spawn(async move {
                if let Err(reason) = hub.clone().welcome(stream, &tls, stranger).await {
                    hub.counters.refuse(&from.ip().to_string(), &reason);
                }
                drop(seat);
            });
        }
    }
}

/// Until this node is somebody else: of another cluster, or no manager any more.
async fn until_another(known: &mut watch::Receiver<Known>, who: &Who) {
    let same = |now: &Known| {
        now.tls.as_ref().is_some_and(|tls| {
            let now = &tls.who;
            (&now.node, now.role, &now.cluster) == (&who.node, who.role, &who.cluster)
        })
    };
    while known.changed().await.is_ok() {
        if !same(&known.borrow_and_update()) {
            return;
        }
    }
}

/// The handshake. Whoever says nothing is let go soon.
async fn shake_hands(stream: TcpStream, tls: &Tls) -> Result<TlsStream<TcpStream>, String> {
    let begun = LazyConfigAcceptor::new(Acceptor::default(), stream);
    let begun = tokio::time::timeout(OPENING, begun).await;
    let begun = begun.map_err(|_| "nothing was said in time")?;
    let begun = begun.map_err(|error| tls::reason(&error))?;
    let shaken = tokio::time::timeout(SHAKING, begun.into_stream(tls.server.clone())).await;
    shaken.map_err(|_| "no handshake in time")?.map_err(|error| tls::reason(&error))
}

impl Hub {
    /// One connection, from the handshake to its end.
    async fn welcome(
        self: Arc<Self>,
        stream: TcpStream,
        tls: &Tls,
        stranger: Stranger,
    ) -> Result<(), String> {
        stream.set_nodelay(true).ok();
        let stream = shake_hands(stream, tls).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let leaf = chain.first().ok_or("the other node showed no certificate")?;
        let guest = Who::of(leaf)?;
        let barred = fit_to_join(&guest, &tls.who.cluster).err();
        let (opened_in, mut opened) = mpsc::channel::<()>(1);
        // Dropped when the conversation is over.
        let (talking, mut over) = mpsc::channel::<Infallible>(1);
        let talking = Mutex::new(Some(talking));
        let age = MAX_AGE.min(guest.left().max(OPENING));
        let answer = service_fn(|request| {
            opened_in.try_send(()).ok();
            let talking = lock(&talking).take();
            let response = self.clone().answer(&guest, barred.clone(), request, talking);
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(2)
            .max_header_list_size(8 << 10)
            .max_send_buf_size(128 << 10)
            .initial_stream_window_size(256 << 10)
            .initial_connection_window_size(512 << 10)
            .serve_connection(TokioIo::new(stream), answer);
        let mut connection = pin!(connection);
        tokio::select! {
            ended = &mut connection => return match ended {
                Err(error) if guest.node != tls.who.node => Err(tls::reason(&error)),
                // This node itself needs no more than to see that it is itself.
                _ => Ok(()),
            },
            asked = tokio::time::timeout(OPENING, opened.recv()) => {
                asked.map_err(|_| format!("{} asked for nothing in time", guest.node))?;
            }
        }
        drop(stranger);
        let gone = |ended: Result<(), hyper::Error>| {
            if let Err(error) = ended {
                // Who was there and has gone was not refused.
                let reason = tls::reason(&error);
                tracing::debug!(node = %guest.node, reason, "a connection ended");
            }
        };
        tokio::select! {
            ended = &mut connection => {
                gone(ended);
                return Ok(());
            }
            // So that certificates are looked at again.
            () = tokio::time::sleep(age) => return Ok(()),
            // A node has one conversation, and one connection for it.
            _ = over.recv() => {}
        }
        // The last answer goes out before the word that nothing more is taken: a client that hears that
        // word first may give up what it asked for.
        if let Ok(ended) = tokio::time::timeout(LAST_ANSWER, &mut connection).await {
            gone(ended);
            return Ok(());
        }
        connection.as_mut().graceful_shutdown();
        if let Ok(ended) = tokio::time::timeout(OPENING, connection).await {
            gone(ended);
        }
        Ok(())
    }

    fn answer(
        self: Arc<Self>,
        guest: &Who,
        barred: Option<String>,
        request: Request<Incoming>,
        talking: Option<mpsc::Sender<Infallible>>,
    ) -> Response<Channel<Bytes>> {
        let path = request.uri().path();
        let refusal = if let Some(reason) = barred {
            Some((StatusCode::FORBIDDEN, reason))
        } else if self.is_barred(&guest.node) {
            let reason = format!("{} did not keep to the rules a moment ago", guest.node);
            Some((StatusCode::TOO_MANY_REQUESTS, reason))
        } else if path != PATH && path.starts_with(ANY_VERSION) {
            let reason = format!("this agent speaks {PATH}, not {path}: use one version of weir");
            Some((StatusCode::UPGRADE_REQUIRED, reason))
        } else if path != PATH {
            Some((StatusCode::NOT_FOUND, format!("nothing here but {PATH}")))
        } else if request.method() != Method::POST {
            Some((StatusCode::METHOD_NOT_ALLOWED, "use POST".to_owned()))
        } else if talking.is_none() {
            Some((StatusCode::CONFLICT, "one conversation for each connection".to_owned()))
        } else {
            None
        };
        let (mut out, body) = Channel::new(1);
        let mut response = Response::new(body);
        if let Some((status, reason)) = refusal {
            self.counters.refuse(guest.node.as_str(), &reason);
            out.try_send(hyper::body::Frame::data(Bytes::from(reason))).ok();
            *response.status_mut() = status;
            return response;
        }
        let node = guest.node.clone();
        tokio::spawn(async move {
            let end = self.converse(&node, Inflow::of_node(request.into_body()), &mut out).await;
            match &end {
                End::Lied(_) | End::Garbled(_) => {
                    let reason = end.to_string();
                    self.bar(&node);
                    self.counters.refuse(node.as_str(), &reason);
                    let frame = Head::Refused { reason }.frame();
                    let wait = tokio::time::timeout(OPENING, out.send_data(frame));
                    wait.await.ok();
                }
                other => {
                    Counters::add(&self.counters.ended, 1);
                    info!(%node, reason = %other, "a node's connection ended");
                }
            }
            drop(talking);
        });
        response
    }
}
