//! What one side has to say, kept so that any number of readers at any speed can be told: each key
//! has its newest value only, at the sequence number of its last change. A reader is a number. One
//! that is slow skips what has been overtaken; nothing is ever queued for it.

mod frames;

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    reading::Place,
    wire::{BATCH, Head, Item, Key, Span},
};
use frames::Frames;

/// Keys that are gone are remembered, so that readers hear of it; at most so many. A reader that
/// is further behind begins again.
const MOST_GRAVES: usize = 4096;

/// Keys, values, and the order in which they changed.
#[derive(Debug, Default)]
pub struct Table {
    head: u64,
    entries: BTreeMap<Key, Entry>,
    order: BTreeMap<u64, Key>,
    graves: BTreeMap<u64, Key>,
    /// Graves up to here have been forgotten.
    floor: u64,
    frames: Frames,
    dropped: u64,
    packs: bool,
}

#[derive(Debug)]
struct Entry {
    sequence: u64,
    item: Item,
    bytes: Bytes,
}

// === impl Table ===

impl Table {
    /// One whose frames are packed: a hub's.
    pub fn packing() -> Self {
        Self { packs: true, ..Self::default() }
    }

    /// The sequence number of the last change.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Keys that have a value.
    pub fn len(&self) -> usize {
        self.entries.len() - self.graves.len()
    }

    /// Whether no key has a value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Items that were too long to be sent.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The keys that have a value.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.entries.iter().filter(|(_, entry)| !entry.item.is_gone()).map(|(key, _)| key)
    }

    /// Bytes of a key and its value; 0 if there is none.
    pub fn length(&self, key: &Key) -> usize {
        let entry = self.entries.get(key).filter(|entry| !entry.item.is_gone());
        entry.map_or(0, |entry| entry.bytes.len())
    }

    /// Takes a value, or the word that there is none. Whether that changed anything.
    pub fn set(&mut self, item: Item) -> bool {
        let key = item.key();
        match self.entries.get(&key) {
            Some(entry) if entry.item == item => return false,
            None if item.is_gone() => return false,
            _ => {}
        }
        let Some(bytes) = item.encode() else {
            self.dropped += 1;
            return false;
        };
        self.head += 1;
        let sequence = self.head;
        if item.is_gone() {
            self.graves.insert(sequence, key.clone());
        }
        self.order.insert(sequence, key.clone());
        if let Some(old) = self.entries.insert(key, Entry { sequence, item, bytes }) {
            self.order.remove(&old.sequence);
            self.graves.remove(&old.sequence);
            self.frames.moved(old.sequence);
        }
        while self.graves.len() > MOST_GRAVES {
            let Some((sequence, key)) = self.graves.pop_first() else { break };
            self.order.remove(&sequence);
            self.entries.remove(&key);
            self.floor = sequence;
        }
        true
    }

    /// The next frame for a reader, about [`BATCH`] bytes long before it is packed; `None` when it
    /// has everything.
    pub fn next(&mut self, place: &mut Place) -> Option<Bytes> {
        if place.begun && (place.at < self.floor || place.at > self.head) {
            *place = Place::default();
        }
        let Place { at: from, begun } = *place;
        if begun && from == self.head {
            return None;
        }
        let first = !begun;
        if let Some((to, frame)) = self.frames.get(from, first, self.head) {
            *place = Place { at: to, begun: true };
            return Some(frame);
        }
        let mut length = 0;
        let mut to = from;
        let mut picked = Vec::new();
        for (sequence, key) in self.order.range(from + 1..) {
            if length >= BATCH {
                break;
            }
            to = *sequence;
            if let Some(entry) = self.entries.get(key) {
                length += entry.bytes.len();
                picked.push(&*entry.bytes);
            }
        }
        let span = Span { from, to, first, whole: to == self.head };
        let frame = if self.packs {
            span.packed_frame(&picked)
        } else {
            Head::Batch(span).frame_with(picked.into_iter())
        };
        self.frames.keep((from, to), first, self.head, &frame);
        *place = Place { at: to, begun: true };
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use weir_mesh::cluster::NodeId;

    use super::*;
    use crate::link::wire::{Decoder, Frame};

    fn alive(node: usize, alive: bool) -> Item {
        Item::Alive(NodeId::new(format!("n{node}")), Some(alive))
    }

    fn frame(bytes: &Bytes) -> Frame {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        decoder.frame().expect("a frame").expect("a whole frame")
    }

    #[test]
    fn a_slow_reader_gets_only_the_newest_value_of_each_key() {
        let mut table = Table::default();
        let mut place = Place::default();
        table.next(&mut place);
        for turn in 0..10_001 {
            table.set(alive(0, turn % 2 == 0));
        }
        let bytes = table.next(&mut place).expect("news");
        assert_eq!(frame(&bytes).items, [alive(0, true)]);
        assert!(bytes.len() < 100, "{} bytes", bytes.len());
        assert_eq!(table.next(&mut place), None);
        assert_eq!(table.entries.len() + table.order.len(), 2);
    }

    #[test]
    fn a_reader_that_missed_forgotten_graves_begins_again() {
        let mut table = Table::default();
        table.set(alive(0, true));
        let mut place = Place::default();
        table.next(&mut place);
        for node in 1..=MOST_GRAVES + 1 {
            table.set(alive(node, true));
            table.set(alive(node, true).key().gone());
        }
        let bytes = table.next(&mut place).expect("news");
        assert!(matches!(frame(&bytes).head, Head::Batch(Span { first: true, from: 0, .. })));
        assert!(table.graves.len() <= MOST_GRAVES && table.len() == 1);
    }

    #[test]
    fn what_is_long_travels_in_several_frames_of_which_the_last_is_whole() {
        let mut table = Table::default();
        for node in 0..20_000 {
            table.set(alive(node, true));
        }
        let (mut place, mut items, mut wholes) = (Place::default(), 0, Vec::new());
        while let Some(bytes) = table.next(&mut place) {
            let Frame { head, items: more, .. } = frame(&bytes);
            items += more.len();
            let Head::Batch(Span { whole, .. }) = head else { panic!("{head:?}") };
            wholes.push(whole);
        }
        assert_eq!(items, 20_000);
        assert!(wholes.len() > 2);
        assert_eq!(wholes.iter().position(|whole| *whole), Some(wholes.len() - 1));
    }

    #[test]
    fn a_thousand_readers_of_a_snapshot_share_its_frames_and_what_changed_is_made_anew() {
        let mut table = Table::default();
        for node in 0..20_000 {
            table.set(alive(node, true));
        }
        let read = |table: &mut Table| {
            let mut place = Place::default();
            std::iter::from_fn(|| table.next(&mut place)).collect::<Vec<_>>()
        };
        let (one, two) = (read(&mut table), read(&mut table));
        let same = |(a, b): &(&Bytes, &Bytes)| a.as_ptr() == b.as_ptr();
        assert!(one.iter().zip(&two).all(|pair| same(&pair)));
        table.set(alive(0, false));
        let three = read(&mut table);
        let shared = |a: &Bytes| one.iter().any(|b| a.as_ptr() == b.as_ptr());
        assert!(!shared(&three[0]), "its first key has moved");
        let mut known = BTreeMap::new();
        for item in three.iter().flat_map(|bytes| frame(bytes).items) {
            known.insert(item.key(), item);
        }
        assert_eq!(known.len(), 20_000);
        assert_eq!(known[&alive(0, true).key()], alive(0, false));
    }

    #[test]
    fn frames_that_are_kept_are_never_longer_than_the_table() {
        let mut table = Table::default();
        for node in 0..20_000 {
            table.set(alive(node, true));
        }
        let whole: usize = table.entries.values().map(|entry| entry.bytes.len()).sum();
        for turn in 0..200 {
            // Readers at all places while keys move.
            table.set(alive(turn * 97 % 20_000, turn % 2 == 0));
            for begin in [0, turn as u64 * 89] {
                let mut place = Place::after(begin);
                while table.next(&mut place).is_some() {}
            }
            assert!(table.frames.bytes() <= whole + whole / 10, "{}", table.frames.bytes());
        }
    }

    #[test]
    fn a_frame_that_claims_to_be_too_long_is_refused_before_it_arrives() {
        let mut decoder = Decoder::default();
        decoder.push(&u32::MAX.to_be_bytes());
        assert!(decoder.frame().is_err());
    }
}
