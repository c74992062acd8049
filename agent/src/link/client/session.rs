//! One connection to the agent on a manager.

use std::{net::SocketAddr, os::fd::AsFd as _, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited, channel::Channel};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_rustls::TlsConnector;
use tracing::info;
use weir_mesh::cluster::NodeId;

use super::{Choice, Client, Heard, Peer, rtt::Probe};
use crate::link::{
    MAX_AGE,
    identity::Who,
    keeper::Known,
    reading::{Place, Step},
    status::{Counters, lock},
    stream::{End, Inflow, Outflow},
    tls::{self, Tls},
    view::{From, Replica},
    wire::{Frame, Head, Item, PATH, Span},
};

/// For the connection.
const CONNECTING: Duration = Duration::from_secs(2);
/// For the handshake, and for the answer: a hub that has just started has a thousand of them to do,
/// and whoever does not wait has to begin again, behind all the others.
const OPENING: Duration = Duration::from_secs(10);
/// How often the way to a manager is measured.
const MEASURED: Duration = Duration::from_secs(1);
/// What a node tells is told no faster than this.
const PACE: Duration = Duration::from_millis(5);
/// A hub that is silent is not listened to any more; its connection is kept at least so long.
const LEAST_PATIENCE: Duration = Duration::from_secs(3);
/// Bytes that a hub may be ahead of this node. What waits here is old by the time it is read, where
/// the hub would tell the newest; a batch of a snapshot is about 12 kB.
const WINDOW: u32 = 256 << 10;
/// While there is more to take at once, the view is shown no faster than this: showing it makes the
/// next change copy what everybody holds.
const SHOW: Duration = Duration::from_millis(50);
/// Values that a view may have. A hub that sends more is cut off.
const MOST_VALUES: usize = 2_000_000;

impl Client {
    /// Connects, and stays until something ends it.
    pub(super) async fn session(
        &self,
        address: SocketAddr,
        tls: &Arc<Tls>,
        known: &mut watch::Receiver<Known>,
    ) -> End {
        match self.session_on(address, tls, known).await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn session_on(
        &self,
        address: SocketAddr,
        tls: &Arc<Tls>,
        known: &mut watch::Receiver<Known>,
    ) -> Result<End, End> {
        let (host, stream) = shake_hands(address, tls).await?;
        if host.node == tls.who.node {
            // This is the node's own hub, which needs no connection. The address may be another's
            // one day.
            drop(stream);
            self.with_peer(address, |peer| (peer.node, peer.own) = (Some(host.node.clone()), true));
            tokio::time::sleep(MAX_AGE / 60).await;
            return Ok(End::Renewed("this node itself"));
        }
        let probe = Probe::new(stream.get_ref().0.as_fd())
            .map_err(|error| End::Broken(error.to_string()))?;
        let (mut requests, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(8 << 10)
            .max_send_buf_size(128 << 10)
            .handshake::<_, Channel<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let driver = async {
            match connection.await {
                Ok(()) => End::Closed,
                Err(error) => broken(error),
            }
        };
        let (mut out, body) = Channel::new(1);
        // The host is not looked at; the target of a request must be whole in HTTP/2.
        let request = Request::post(format!("https://weir{PATH}"))
            .body(body)
            .map_err(|error| End::Broken(error.to_string()))?;
        let talk = async {
            let answer = tokio::time::timeout(OPENING, requests.send_request(request)).await;
            let response = answer.map_err(|_| End::Silent(OPENING))?.map_err(broken)?;
            let inflow = Inflow::of_hub(accepted(response).await?);
            self.welcome(address, &host);
            let age = MAX_AGE.min(host.left()).mul_f64(rand::random_range(0.5..1.0));
            let (wish, wishes) = watch::channel(Wish::default());
            tokio::select! {
                end = self.hear(address, &host.node, inflow, wish) => end,
                end = self.tell(address, Outflow::new(&mut out, &self.counters), wishes) => end,
                () = self.measure(address, &probe) => Err(End::Closed),
                () = tokio::time::sleep(age) => Err(End::Renewed("certificates are shown anew")),
                () = renewed(known, tls) => Err(End::Renewed("this node's certificate is new")),
            }
        };
        tokio::select! {
            // What the other side said last is worth more than that the connection ended.
            biased;
            end = talk => end,
            end = driver => Err(end),
        }
    }

    fn welcome(&self, address: SocketAddr, host: &Who) {
        info!(%address, node = %host.node, "connected to a manager's agent");
        Counters::add(&self.counters.connects, 1);
        self.with_peer(address, |peer| {
            (peer.node, peer.own) = (Some(host.node.clone()), false);
            (peer.connected, peer.heard) = (true, Some(Instant::now()));
        });
        self.news.notify_one();
    }

    /// Notes how far a manager is, until it is none any more.
    async fn measure(&self, address: SocketAddr, probe: &Probe) {
        let mut tick = tokio::time::interval(MEASURED);
        loop {
            tick.tick().await;
            let rtt = probe.rtt().ok();
            if self.with_peer(address, |peer| peer.rtt = rtt).is_none() {
                return;
            }
        }
    }

    async fn hear(
        &self,
        address: SocketAddr,
        node: &NodeId,
        mut inflow: Inflow,
        wish: watch::Sender<Wish>,
    ) -> Result<End, End> {
        let patience = (self.silence * 3).max(LEAST_PATIENCE);
        // Whether there is something to show, and when something was shown.
        let (mut whole, mut shown) = (false, Instant::now());
        loop {
            let arrived = inflow.next(patience).await?;
            let news = self.with_peer(address, |peer| {
                peer.heard = Some(Instant::now());
                let Some(Frame { head, items, .. }) = arrived else { return Ok(false) };
                let heard = &mut peer.heard_view;
                match head {
                    Head::Hello { epoch } => {
                        if heard.epoch != epoch {
                            *heard = Heard { epoch, ..Heard::default() };
                        }
                        heard.reading.reconnect();
                        wish.send_modify(|wish| wish.greeted = true);
                        Ok(false)
                    }
                    Head::Beat { ready } => Ok(std::mem::replace(&mut peer.ready, ready) != ready),
                    Head::Batch(span) => {
                        match heard.take(span, items) {
                            Ok(Taken::More) => whole = false,
                            Ok(Taken::Whole) => whole = true,
                            Ok(Taken::Gap) => {
                                whole = false;
                                Counters::add(&self.counters.resyncs, 1);
                                wish.send_modify(|wish| wish.again += 1);
                            }
                            Err(lie) => return Err(End::Lied(lie)),
                        }
                        Ok(false)
                    }
                    Head::Again => {
                        wish.send_modify(|wish| wish.restart += 1);
                        Ok(false)
                    }
                    Head::Refused { reason } => Err(End::refused(&reason)),
                    Head::Listen { .. } | Head::Deafen | Head::Packed { .. } => {
                        Err(End::Lied(format!("{node} wants to be told: it is no hub")))
                    }
                }
            });
            match news {
                None => return Err(End::Closed),
                Some(Err(end)) => return Err(end),
                Some(Ok(true)) => self.news.notify_one(),
                Some(Ok(false)) => {}
            }
            if whole && (shown.elapsed() >= SHOW || !inflow.has_more()) {
                self.show(address, node);
                (whole, shown) = (false, Instant::now());
            }
        }
    }

    /// Publishes what was heard, if it is the one that is listened to.
    fn show(&self, address: SocketAddr, node: &NodeId) {
        let from = From::Manager(node.clone());
        let view = self.with_peer(address, |peer| {
            let Heard { whole, coming, .. } = &peer.heard_view;
            whole.as_ref().filter(|_| coming.is_none()).map(|whole| whole.view(from))
        });
        if let Some(Some(view)) = view
            && self.chosen() == Choice::Peer(address)
        {
            self.view.send_replace(view);
        }
    }

    async fn tell(
        &self,
        address: SocketAddr,
        mut out: Outflow<'_>,
        mut wishes: watch::Receiver<Wish>,
    ) -> Result<End, End> {
        let (mut head, mut chosen) = (self.head.subscribe(), self.chosen.subscribe());
        let mut beat = tokio::time::interval(self.silence / 4);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut place = Place::default();
        let (mut listening, mut again, mut restart) = (false, 0, 0);
        loop {
            head.borrow_and_update();
            let wish = *wishes.borrow_and_update();
            let listen = wish.greeted && *chosen.borrow_and_update() == Choice::Peer(address);
            if listen != listening {
                listening = listen;
                let heard = |peer: &mut Peer| (peer.heard_view.epoch, peer.heard_view.reading.at);
                let (epoch, at) = self.with_peer(address, heard).ok_or(End::Closed)?;
                let head = if listen { Head::Listen { epoch, at } } else { Head::Deafen };
                out.send(head.frame()).await?;
                if listen && at > 0 {
                    // What was heard before is shown at once; there may be nothing new.
                    let node = self.with_peer(address, |peer| peer.node.clone()).flatten();
                    if let Some(node) = node {
                        self.show(address, &node);
                    }
                }
            }
            if wish.again != again {
                again = wish.again;
                out.send(Head::Again.frame()).await?;
            }
            if wish.restart != restart {
                (restart, place) = (wish.restart, Place::default());
            }
            let behind = self.own_head().is_some_and(|head| !place.has(head));
            if behind && out.is_due() {
                let (frame, whole) = self.own_next(&mut place);
                if let Some(frame) = frame {
                    out.send(frame).await?;
                }
                if whole {
                    out.rest(PACE);
                }
                continue;
            }
            tokio::select! {
                _ = beat.tick() => out.send(Head::Beat { ready: true }.frame()).await?,
                () = out.until_due(), if behind => {}
                changed = head.changed() => changed.map_err(|_| End::Closed)?,
                changed = chosen.changed() => changed.map_err(|_| End::Closed)?,
                changed = wishes.changed() => changed.map_err(|_| End::Closed)?,
            }
        }
    }

    /// The last change of what this node reports; `None`: it has not reported yet.
    fn own_head(&self) -> Option<u64> {
        let own = lock(&self.own);
        own.report.as_ref().map(|_| own.table.head())
    }

    /// The next frame of what this node reports, and whether that is all.
    fn own_next(&self, place: &mut Place) -> (Option<Bytes>, bool) {
        let table = &mut lock(&self.own).table;
        (table.next(place), place.has(table.head()))
    }
}

/// What the reader of a connection asks of its writer.
#[derive(Clone, Copy, Debug, Default)]
struct Wish {
    /// The hub has said which table it has.
    greeted: bool,
    /// Counts the gaps in what it said.
    again: u64,
    /// Counts the gaps in what it heard.
    restart: u64,
}

impl Heard {
    /// What follows from a stretch. An error: it is too much.
    fn take(&mut self, span: Span, items: Vec<Item>) -> Result<Taken, String> {
        match self.reading.step(&span) {
            Step::Begin => self.coming = Some(Replica::default()),
            Step::Take => {}
            Step::Leave => return Ok(Taken::More),
            Step::Ask => {
                // Until the snapshot is there, what follows the gap is of no use.
                self.coming = None;
                return Ok(Taken::Gap);
            }
        }
        let replica = self.coming.as_mut().or(self.whole.as_mut());
        let replica = replica.ok_or("the other node goes on with what it has not begun")?;
        items.into_iter().for_each(|item| replica.apply(item));
        if replica.len() > MOST_VALUES {
            return Err(format!("the other node tells more than {MOST_VALUES} values"));
        }
        if !span.whole {
            return Ok(Taken::More);
        }
        if let Some(replica) = self.coming.take() {
            self.whole = Some(replica);
        }
        Ok(Taken::Whole)
    }
}

/// What follows from a stretch.
enum Taken {
    /// There is more to come.
    More,
    /// All is said for now.
    Whole,
    /// Something is missing before it.
    Gap,
}

async fn shake_hands(
    address: SocketAddr,
    tls: &Tls,
) -> Result<(Who, tokio_rustls::client::TlsStream<TcpStream>), End> {
    let stream = tokio::time::timeout(CONNECTING, TcpStream::connect(address))
        .await
        .map_err(|_| End::Broken(format!("no connection to {address} in time")))?
        .map_err(|error| End::Broken(error.to_string()))?;
    stream.set_nodelay(true).ok();
    let name = ServerName::IpAddress(address.ip().into());
    let shaken = TlsConnector::from(tls.client.clone()).connect(name, stream);
    let stream = tokio::time::timeout(OPENING, shaken)
        .await
        .map_err(|_| End::Broken("no handshake in time".into()))?
        .map_err(|error| End::Broken(tls::reason(&error)))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let leaf = chain.first().ok_or_else(|| End::Broken("no certificate was shown".into()))?;
    let host = Who::of(leaf).map_err(End::Broken)?;
    Ok((host, stream))
}

async fn accepted(response: Response<Incoming>) -> Result<Incoming, End> {
    let (parts, body) = response.into_parts();
    if parts.status == StatusCode::OK {
        return Ok(body);
    }
    let text = tokio::time::timeout(OPENING, Limited::new(body, 4096).collect()).await;
    let text = text.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    Err(End::refused(&format!("{}: {}", parts.status, String::from_utf8_lossy(&text))))
}

async fn renewed(known: &mut watch::Receiver<Known>, tls: &Arc<Tls>) {
    loop {
        if known.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let now = known.borrow_and_update().tls.clone();
        if now.is_none_or(|now| !Arc::ptr_eq(&now, tls)) {
            return;
        }
    }
}

fn broken(error: hyper::Error) -> End {
    End::Broken(tls::reason(&error))
}
