//! One direction of a connection each: frames in from a body, frames out of a table.

use std::time::Duration;

use futures_util::FutureExt;
use http_body_util::{BodyExt, channel::Sender};
use hyper::body::{Bytes, Incoming};
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    status::Counters,
    tls,
    wire::{Decoder, Frame, Garbled},
};

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The other side ended it.
    #[error("the other node ended the connection")]
    Closed,
    /// The transport failed.
    #[error("{0}")]
    Broken(String),
    /// Nothing came for too long.
    #[error("nothing was heard for {} ms", .0.as_millis())]
    Silent(Duration),
    /// The other side does not read.
    #[error("the other node has not read anything for {} s", STUCK.as_secs())]
    Stuck,
    /// What came is no frame.
    #[error("the other node sent {0}")]
    Garbled(#[from] Garbled),
    /// The other side has refused this one.
    #[error("refused by the other node: {0}")]
    Refused(String),
    /// This side refuses the other.
    #[error("{0}")]
    Lied(String),
    /// Ended by this side, to begin anew.
    #[error("{0}")]
    Renewed(&'static str),
}

impl End {
    /// The other side says why it ends; its words are cut to what a log should take.
    pub fn refused(reason: &str) -> Self {
        let plain = reason.chars().map(|c| if c.is_control() { ' ' } else { c });
        Self::Refused(plain.take(MOST_REASON).collect())
    }
}

/// Longest reason of another node that is repeated, in characters.
const MOST_REASON: usize = 500;

/// How long a frame may wait for a reader that takes nothing.
pub const STUCK: Duration = Duration::from_secs(10);

/// Frames from a body.
#[derive(Debug)]
pub struct Inflow {
    body: Incoming,
    decoder: Decoder,
    /// Found by looking ahead, and told once all that came before it has been taken.
    over: Option<End>,
}

/// What a body brings next: its bytes, or its end.
type Arrived = Option<Result<hyper::body::Frame<Bytes>, hyper::Error>>;

/// Frames into a body, one at a time, and news no faster than the other side should be told.
#[derive(Debug)]
pub struct Outflow<'a> {
    body: &'a mut Sender<Bytes>,
    counters: &'a Counters,
    /// Before then no more news.
    due: Instant,
}

/// A patience is waited out in so many parts.
const PARTS: u32 = 4;

// === impl Inflow ===

impl Inflow {
    /// Reads what a node says.
    pub fn of_node(body: Incoming) -> Self {
        Self { body, decoder: Decoder::default(), over: None }
    }

    /// Reads what a hub says.
    pub fn of_hub(body: Incoming) -> Self {
        Self { body, decoder: Decoder::unpacking(), over: None }
    }

    /// Whether there is more that can be taken at once. Looks at what has arrived, and does not wait.
    pub fn has_more(&mut self) -> bool {
        while self.over.is_none() && !self.decoder.has_frame() {
            let Some(arrived) = self.body.frame().now_or_never() else { return false };
            if let Err(end) = self.take(arrived) {
                self.over = Some(end);
            }
        }
        self.decoder.has_frame()
    }

    fn take(&mut self, arrived: Arrived) -> Result<(), End> {
        match arrived {
            None => Err(End::Closed),
            Some(Err(error)) => Err(End::Broken(tls::reason(&error))),
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    self.decoder.push(&bytes);
                }
                Ok(())
            }
        }
    }

    /// What arrives next, within `patience`: a frame, or `None` for a part of one, which is a sign of
    /// life as well. May be cancelled without loss.
    pub async fn next(&mut self, patience: Duration) -> Result<Option<Frame>, End> {
        if let Some(frame) = self.decoder.frame()? {
            return Ok(Some(frame));
        }
        if let Some(end) = self.over.take() {
            return Err(end);
        }
        // In parts: when this process was held up, its timer is over before it has looked into its
        // socket. That ends one part, and then it looks.
        for _ in 0..PARTS {
            let Ok(arrived) = timeout(patience / PARTS, self.body.frame()).await else { continue };
            self.take(arrived)?;
            return Ok(self.decoder.frame()?);
        }
        Err(End::Silent(patience))
    }
}

// === impl Outflow ===

impl<'a> Outflow<'a> {
    /// Writes a body.
    pub fn new(body: &'a mut Sender<Bytes>, counters: &'a Counters) -> Self {
        Self { body, counters, due: Instant::now() }
    }

    /// Hands a frame to the connection when there is room: at most one waits.
    pub async fn send(&mut self, frame: Bytes) -> Result<(), End> {
        Counters::add(&self.counters.sent_bytes, frame.len());
        Counters::add(&self.counters.sent_frames, 1);
        match timeout(STUCK, self.body.send_data(frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Closed),
            Err(_) => Err(End::Stuck),
        }
    }

    /// The other side is up to date: what changes within `pace` from now is told together.
    pub fn rest(&mut self, pace: Duration) {
        self.due = Instant::now() + pace;
    }

    /// Whether news may be sent now.
    pub fn is_due(&self) -> bool {
        Instant::now() >= self.due
    }

    /// Until news may be sent.
    pub async fn until_due(&self) {
        sleep_until(self.due).await;
    }
}
