//! One direction of a connection each: frames in from a body, frames out of a table.

use std::time::Duration;

use http_body_util::{BodyExt, channel::Sender};
use hyper::body::{Bytes, Incoming};

use super::{
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

/// How long a frame may wait for a reader that takes nothing.
pub const STUCK: Duration = Duration::from_secs(10);

/// Frames from a body.
#[derive(Debug)]
pub struct Inflow {
    body: Incoming,
    decoder: Decoder,
}

impl Inflow {
    /// Reads a body.
    pub fn new(body: Incoming) -> Self {
        Self { body, decoder: Decoder::default() }
    }

    /// Whether there is more that can be taken at once.
    pub fn has_more(&self) -> bool {
        self.decoder.has_frame()
    }

    /// The next frame, within `patience`. May be cancelled without loss.
    pub async fn next(&mut self, patience: Duration) -> Result<Frame, End> {
        let silent = |_| End::Silent(patience);
        tokio::time::timeout(patience, self.frame()).await.map_err(silent)?
    }

    async fn frame(&mut self) -> Result<Frame, End> {
        loop {
            if let Some(frame) = self.decoder.frame()? {
                return Ok(frame);
            }
            match self.body.frame().await {
                None => return Err(End::Closed),
                Some(Err(error)) => return Err(End::Broken(tls::reason(&error))),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.decoder.push(&bytes);
                    }
                }
            }
        }
    }
}

/// Hands a frame to the connection when there is room: at most one waits.
pub async fn send(out: &mut Sender<Bytes>, frame: Bytes) -> Result<(), End> {
    match tokio::time::timeout(STUCK, out.send_data(frame)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::Closed),
        Err(_) => Err(End::Stuck),
    }
}
