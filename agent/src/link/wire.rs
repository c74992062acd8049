//! What travels on the link: frames of a length, a head, and items. MessagePack with field names,
//! so that a field that one side does not know yet disturbs nobody. What a hub tells a thousand nodes
//! is packed.

mod packing;

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use weir_mesh::cluster::{
    DeclaredNetwork, DeclaredNode, DeclaredService, DeclaredTask, NetworkId, NodeId, ReportedNode,
    ReportedTask, ServiceId, TaskId,
};

/// The path of the request, with the version of the protocol at its end.
pub const PATH: &str = "/weir/link/2";
/// What every version's path begins with.
pub const ANY_VERSION: &str = "/weir/link/";
/// Longest frame, in bytes. Whoever sends a longer one is cut off.
pub const MOST_FRAME: usize = 1 << 20;
/// Longest item, in bytes. A longer one is not sent, and not taken.
pub const MOST_ITEM: usize = 256 << 10;
/// A batch ends with the item that reaches this length.
pub const BATCH: usize = 64 << 10;

/// One entry of the table: a key, and what it has now. `None`: it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    /// A node of the cluster; said by managers.
    #[serde(rename = "n")]
    Node(NodeId, Option<Arc<DeclaredNode>>),
    /// A service; said by managers.
    #[serde(rename = "s")]
    Service(ServiceId, Option<Arc<DeclaredService>>),
    /// A task that should be; said by managers.
    #[serde(rename = "t")]
    Task(TaskId, Option<Arc<DeclaredTask>>),
    /// A network; said by managers.
    #[serde(rename = "w")]
    Network(NetworkId, Option<Arc<DeclaredNetwork>>),
    /// A node about itself.
    #[serde(rename = "r")]
    Reporter(NodeId, Option<ReportedNode>),
    /// A node about one of its tasks.
    #[serde(rename = "k")]
    Report(NodeId, TaskId, Option<Arc<ReportedTask>>),
    /// Whether a node has been heard of late; said by managers.
    #[serde(rename = "a")]
    Alive(NodeId, Option<bool>),
}

/// What an item is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// See [`Item::Node`].
    Node(NodeId),
    /// See [`Item::Service`].
    Service(ServiceId),
    /// See [`Item::Task`].
    Task(TaskId),
    /// See [`Item::Network`].
    Network(NetworkId),
    /// See [`Item::Reporter`].
    Reporter(NodeId),
    /// See [`Item::Report`].
    Report(NodeId, TaskId),
    /// See [`Item::Alive`].
    Alive(NodeId),
}

/// What a frame is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Head {
    /// The hub's first word: which table this is. Another start of the hub is another one.
    Hello {
        /// Drawn by chance.
        epoch: u64,
    },
    /// Items, and which stretch of the table they are.
    Batch(Span),
    /// The same with items that are packed. Only hubs send it.
    Packed {
        /// Which stretch of the table they are.
        span: Span,
        /// Bytes of the items once they are unpacked.
        length: usize,
    },
    /// A sign of life.
    Beat {
        /// Whether the sender can tell a whole view.
        ready: bool,
    },
    /// To a hub: send the view.
    Listen {
        /// Of which table `at` is a place; 0: of none.
        epoch: u64,
        /// What the listener already has.
        at: u64,
    },
    /// To a hub: send the view no more.
    Deafen,
    /// A batch is missing: begin again with a snapshot.
    Again,
    /// The sender ends the connection for this reason.
    Refused {
        /// In words.
        reason: String,
    },
}

/// A stretch of a table: from after one sequence number up to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// What the reader must have; 0 for the first of a snapshot.
    pub from: u64,
    /// What it then has.
    pub to: u64,
    /// A snapshot begins: what was known before counts no more.
    pub first: bool,
    /// All is said for now.
    pub whole: bool,
}

/// A frame, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub head: Head,
    /// The items of a batch.
    pub items: Vec<Item>,
    /// Bytes that it was long, its items unpacked.
    pub length: usize,
}

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub enum Garbled {
    /// Too long.
    #[error("a frame of {length} bytes; at most {MOST_FRAME} are taken")]
    Long {
        /// What it claims.
        length: usize,
    },
    /// An item that is too long.
    #[error("an item of {length} bytes; at most {MOST_ITEM} are taken")]
    LongItem {
        /// How long it is.
        length: usize,
    },
    /// Packed items from one who may not pack.
    #[error("packed items; only a hub may send these")]
    Packed,
    /// Packed items that are not what they claim to be.
    #[error("packed items that cannot be unpacked: {0}")]
    Packing(String),
    /// Not what this version knows.
    #[error("a frame that cannot be read: {0}")]
    Content(#[from] rmp_serde::decode::Error),
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    unpacks: bool,
}

// === impl Item ===

impl Item {
    /// What it is about.
    pub fn key(&self) -> Key {
        match self {
            Self::Node(id, _) => Key::Node(id.clone()),
            Self::Service(id, _) => Key::Service(id.clone()),
            Self::Task(id, _) => Key::Task(id.clone()),
            Self::Network(id, _) => Key::Network(id.clone()),
            Self::Reporter(id, _) => Key::Reporter(id.clone()),
            Self::Report(node, task, _) => Key::Report(node.clone(), task.clone()),
            Self::Alive(id, _) => Key::Alive(id.clone()),
        }
    }

    /// Whether it says that its key is gone.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Node(_, value) => value.is_none(),
            Self::Service(_, value) => value.is_none(),
            Self::Task(_, value) => value.is_none(),
            Self::Network(_, value) => value.is_none(),
            Self::Reporter(_, value) => value.is_none(),
            Self::Report(_, _, value) => value.is_none(),
            Self::Alive(_, value) => value.is_none(),
        }
    }

    /// Its bytes; `None` if it is longer than [`MOST_ITEM`].
    pub fn encode(&self) -> Option<Bytes> {
        let mut bytes = Vec::with_capacity(256);
        rmp_serde::encode::write_named(&mut bytes, self).ok()?;
        (bytes.len() <= MOST_ITEM).then(|| bytes.into())
    }
}

// === impl Key ===

impl Key {
    /// The word that this is gone.
    pub fn gone(&self) -> Item {
        match self.clone() {
            Self::Node(id) => Item::Node(id, None),
            Self::Service(id) => Item::Service(id, None),
            Self::Task(id) => Item::Task(id, None),
            Self::Network(id) => Item::Network(id, None),
            Self::Reporter(id) => Item::Reporter(id, None),
            Self::Report(node, task) => Item::Report(node, task, None),
            Self::Alive(id) => Item::Alive(id, None),
        }
    }

    /// The node that may say this about itself; `None`: only managers may say it.
    pub fn speaker(&self) -> Option<&NodeId> {
        match self {
            Self::Reporter(node) | Self::Report(node, _) => Some(node),
            Self::Node(_)
            | Self::Service(_)
            | Self::Task(_)
            | Self::Network(_)
            | Self::Alive(_) => None,
        }
    }
}

// === impl Head ===

impl Head {
    /// A frame without items.
    pub fn frame(&self) -> Bytes {
        self.frame_with(std::iter::empty())
    }

    /// A frame with items that are bytes already.
    pub fn frame_with<'b>(&self, items: impl Iterator<Item = &'b [u8]>) -> Bytes {
        let mut buffer = BytesMut::with_capacity(128).writer();
        buffer.get_mut().put_u32(0);
        // Writing to memory cannot fail, and a head has nothing that has no encoding.
        rmp_serde::encode::write_named(&mut buffer, self).ok();
        let mut buffer = buffer.into_inner();
        items.for_each(|item| buffer.extend_from_slice(item));
        let length = u32::try_from(buffer.len() - 4).unwrap_or(u32::MAX);
        buffer[..4].copy_from_slice(&length.to_be_bytes());
        buffer.freeze()
    }
}

// === impl Span ===

impl Span {
    /// A frame with items that are bytes already; packed if that makes it shorter.
    pub fn packed_frame(self, items: &[&[u8]]) -> Bytes {
        let items = items.concat();
        match packing::pack(&items) {
            Some(packed) => {
                let head = Head::Packed { span: self, length: items.len() };
                head.frame_with(std::iter::once(packed.as_slice()))
            }
            None => Head::Batch(self).frame_with(std::iter::once(items.as_slice())),
        }
    }
}

// === impl Decoder ===

impl Decoder {
    /// One that takes packed items, too: of a hub's frames.
    pub fn unpacking() -> Self {
        Self { unpacks: true, ..Self::default() }
    }

    /// Takes what has arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether [`Decoder::frame`] has something to say at once: a whole frame is there, or the
    /// beginning of one that is too long to be waited for.
    pub fn has_frame(&self) -> bool {
        let length = self.length();
        self.buffer.len() >= 4 && (length > MOST_FRAME || self.buffer.len() - 4 >= length)
    }

    fn length(&self) -> usize {
        self.buffer.first_chunk::<4>().map_or(0, |length| u32::from_be_bytes(*length) as usize)
    }

    /// The next frame, if it is there as a whole.
    pub fn frame(&mut self) -> Result<Option<Frame>, Garbled> {
        let length = self.length();
        if length > MOST_FRAME {
            return Err(Garbled::Long { length });
        }
        if !self.has_frame() {
            return Ok(None);
        }
        self.buffer.advance(4);
        let bytes = self.buffer.split_to(length);
        let mut rest: &[u8] = &bytes;
        let mut head = rmp_serde::decode::from_read(&mut rest)?;
        let (unpacked, mut length) = (packing::unpack(&head, rest, self.unpacks)?, length);
        if let Some((span, items)) = &unpacked {
            (head, rest, length) = (Head::Batch(*span), items, items.len());
        }
        let mut items = Vec::new();
        while !rest.is_empty() {
            let before = rest.len();
            let item = rmp_serde::decode::from_read(&mut rest)?;
            let length = before - rest.len();
            if length > MOST_ITEM {
                return Err(Garbled::LongItem { length });
            }
            items.push(item);
        }
        Ok(Some(Frame { head, items, length }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_claims_too_much_is_refused_as_soon_as_it_says_so() {
        let claim = (MOST_FRAME as u32 + 1).to_be_bytes();
        let mut decoder = Decoder::default();
        decoder.push(&claim[..3]);
        assert!(!decoder.has_frame() && matches!(decoder.frame(), Ok(None)));
        decoder.push(&claim[3..]);
        assert!(decoder.has_frame(), "nobody looks for more of it");
        let end = decoder.frame();
        assert!(matches!(end, Err(Garbled::Long { length }) if length > MOST_FRAME), "{end:?}");
    }

    #[test]
    fn a_frame_is_waited_for_until_its_last_byte() {
        let bytes = Head::Beat { ready: true }.frame();
        let mut decoder = Decoder::default();
        for byte in &bytes {
            assert!(!decoder.has_frame() && matches!(decoder.frame(), Ok(None)));
            decoder.push(&[*byte]);
        }
        assert!(decoder.has_frame());
        let frame = decoder.frame().expect("a frame").expect("a whole one");
        assert_eq!(frame.head, Head::Beat { ready: true });
    }
}
