//! A node that speaks and listens as an agent does, and keeps nothing of what it hears.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{
    BodyExt,
    channel::{Channel, Sender},
};
use hyper::{Request, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use miniz_oxide::inflate::decompress_to_vec_with_limit;
use rustls::pki_types::ServerName;
use tokio::{
    net::TcpSocket,
    sync::{mpsc, watch},
    time::timeout,
};
use weir::link::{
    client::backoff::Backoff,
    reading::Place,
    table::Table,
    tls::Tls,
    view::report_changes,
    wire::{Head, Item, PATH, Span},
};
use weir_mesh::cluster::{Life, NodeId, Report, TaskId};

/// What all light nodes share.
#[derive(Debug)]
pub struct Watched {
    /// The change that is waited for.
    pub wanted: watch::Sender<Option<(TaskId, Life)>>,
    /// Who has heard of it, and when.
    pub seen: mpsc::UnboundedSender<Instant>,
    /// Bytes that were heard.
    pub heard: AtomicU64,
    /// Connections that were made.
    pub connects: AtomicU64,
    /// Why connections ended, and how many for that reason.
    pub ends: Mutex<BTreeMap<String, usize>>,
}

/// One light node.
#[derive(Debug)]
pub struct Light {
    /// What it reports.
    pub report: watch::Sender<Arc<Report>>,
    /// Whether it has heard everything since it was last set to false.
    pub whole: Arc<AtomicBool>,
}

struct Node {
    tls: Arc<Tls>,
    hub: SocketAddr,
    from: Ipv4Addr,
    report: watch::Receiver<Arc<Report>>,
    whole: Arc<AtomicBool>,
    watched: Arc<Watched>,
}

/// As an agent's.
const WINDOW: u32 = 256 << 10;
const BEAT: Duration = Duration::from_millis(250);
const SILENT: Duration = Duration::from_secs(10);

impl Light {
    /// Starts one, whose connections come from the address `from`.
    pub fn start(
        tls: Arc<Tls>,
        (hub, from): (SocketAddr, Ipv4Addr),
        report: Arc<Report>,
        watched: Arc<Watched>,
    ) -> Self {
        let (report_in, report) = watch::channel(report);
        let whole = Arc::new(AtomicBool::new(false));
        let node = Node { tls, hub, from, report, whole: whole.clone(), watched };
        tokio::spawn(async move {
            let mut backoff = Backoff::default();
            loop {
                let begun = Instant::now();
                // Whatever ended it, it is tried again, as by an agent.
                if let Err(end) = node.converse().await {
                    let mut ends = node.watched.ends.lock().unwrap_or_else(PoisonError::into_inner);
                    *ends.entry(format!("{end:#}")).or_default() += 1;
                }
                if begun.elapsed() > Duration::from_secs(4) {
                    backoff.reset();
                }
                tokio::time::sleep(backoff.wait()).await;
            }
        });
        Self { report: report_in, whole }
    }
}

impl Node {
    async fn converse(&self) -> Result<()> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.from, 0).into())?;
        let stream = timeout(SILENT, socket.connect(self.hub)).await??;
        stream.set_nodelay(true)?;
        let name = ServerName::IpAddress(self.hub.ip().into());
        let shaken =
            tokio_rustls::TlsConnector::from(self.tls.client.clone()).connect(name, stream);
        let stream = timeout(SILENT, shaken).await??;
        let (mut requests, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake::<_, Channel<Bytes>>(TokioIo::new(stream))
            .await?;
        let (mut out, body) = Channel::new(1);
        let request = Request::post(format!("https://weir{PATH}")).body(body)?;
        let talk = async {
            let response = timeout(SILENT, requests.send_request(request)).await??;
            if !response.status().is_success() {
                bail!("{}", response.status());
            }
            self.watched.connects.fetch_add(1, Ordering::Relaxed);
            tokio::select! {
                end = self.hear(response.into_body()) => end,
                end = self.tell(&mut out) => end,
            }
        };
        tokio::select! {
            end = talk => end,
            end = connection => Ok(end?),
        }
    }

    async fn tell(&self, out: &mut Sender<Bytes>) -> Result<()> {
        let node: &NodeId = &self.tls.who.node;
        let (mut table, mut place, mut report) =
            (Table::default(), Place::default(), self.report.clone());
        let mut told: Option<Arc<Report>> = None;
        out.send_data(Head::Listen { epoch: 0, at: 0 }.frame()).await?;
        let mut beat = tokio::time::interval(BEAT);
        loop {
            let now = report.borrow_and_update().clone();
            for item in report_changes(node, told.as_deref(), &now) {
                table.set(item);
            }
            told = Some(now);
            while let Some(frame) = table.next(&mut place) {
                out.send_data(frame).await?;
            }
            tokio::select! {
                _ = beat.tick() => out.send_data(Head::Beat { ready: true }.frame()).await?,
                changed = report.changed() => changed?,
            }
        }
    }

    async fn hear(&self, mut body: Incoming) -> Result<()> {
        let (mut buffer, mut whole) = (BytesMut::new(), false);
        loop {
            let arrived = timeout(SILENT, body.frame()).await?.context("the hub ended it")??;
            let Ok(bytes) = arrived.into_data() else { continue };
            self.watched.heard.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            buffer.extend_from_slice(&bytes);
            while let Some(frame) = cut(&mut buffer) {
                let mut rest: &[u8] = &frame;
                let head: Head = rmp_serde::decode::from_read(&mut rest)?;
                let Some((span, items)) = unpack(head, rest)? else { continue };
                // Of a snapshot nothing is kept, so that nothing of it needs to be read.
                if whole {
                    self.look(&items)?;
                }
                if span.whole && !whole {
                    whole = true;
                    self.whole.store(true, Ordering::SeqCst);
                }
            }
        }
    }

    fn look(&self, mut rest: &[u8]) -> Result<()> {
        let wanted = self.watched.wanted.borrow().clone();
        while !rest.is_empty() {
            let item: Item = rmp_serde::decode::from_read(&mut rest)?;
            if let (Item::Report(_, task, Some(value)), Some((wanted, life))) = (item, &wanted)
                && task == *wanted
                && value.life == *life
            {
                self.watched.seen.send(Instant::now()).ok();
            }
        }
        Ok(())
    }
}

/// The items of a batch, which are unpacked as an agent does it.
fn unpack(head: Head, rest: &[u8]) -> Result<Option<(Span, Cow<'_, [u8]>)>> {
    Ok(match head {
        Head::Batch(span) => Some((span, rest.into())),
        Head::Packed { span, length } => {
            let items = decompress_to_vec_with_limit(rest, length);
            Some((span, items.map_err(|error| anyhow::anyhow!("{error}"))?.into()))
        }
        Head::Refused { reason } => bail!("refused: {reason}"),
        Head::Again => bail!("the hub asks for everything again"),
        _ => None,
    })
}

fn cut(buffer: &mut BytesMut) -> Option<BytesMut> {
    let length = u32::from_be_bytes(*buffer.first_chunk::<4>()?) as usize;
    if buffer.len() < 4 + length {
        return None;
    }
    buffer.advance(4);
    Some(buffer.split_to(length))
}
