//! Who has which name. A lookup is one hash, and no name is an allocation of its own.

use std::hash::{BuildHasher, RandomState};

use super::{Holder, Part, What};

/// The text of names, and who has them.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// One name after the other, as on the wire. A name above another is the end of it.
    text: Vec<u8>,
    hasher: RandomState,
    /// By hash, then by name.
    claims: Vec<Claim>,
    /// Where the claims of each bucket begin; at the end, where those of the last end.
    buckets: Vec<u32>,
    /// How many names there are.
    count: usize,
}

/// That somebody has a name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    /// Tells most names apart without a look at their text.
    hash: u32,
    text: Part,
    pub(super) holder: Holder,
}

impl Names {
    /// Keeps the text of a name.
    pub(super) fn keep(&mut self, name: &[u8]) -> Part {
        Part::append(&mut self.text, name.iter().copied())
    }

    /// Somebody has a name; those above it have at least names below them.
    pub(super) fn add(&mut self, mut text: Part, mut holder: Holder) {
        while let [length, ..] = self.text(text) {
            let above = text.from + 1 + u32::from(*length);
            let hash = self.hash(self.text(text));
            self.claims.push(Claim { hash, text, holder });
            text.from = above;
            holder.what = What::Parent;
        }
    }

    /// Makes all that was added known to [`Names::get`].
    pub(super) fn settle(&mut self) {
        let mut claims = std::mem::take(&mut self.claims);
        claims.sort_unstable_by(|a, b| (self.key(a), a.holder).cmp(&(self.key(b), b.holder)));
        claims.dedup_by(|a, b| self.key(a) == self.key(b) && a.holder == b.holder);
        claims.shrink_to_fit();
        self.count = claims.chunk_by(|a, b| self.key(a) == self.key(b)).count();
        self.buckets = vec![0; self.count + 1];
        for claim in &claims {
            let next = self.bucket(claim.hash) + 1;
            self.buckets[next] += 1;
        }
        for next in 1..self.buckets.len() {
            self.buckets[next] += self.buckets[next - 1];
        }
        self.claims = claims;
        self.text.shrink_to_fit();
    }

    /// Who has a name.
    pub(super) fn get(&self, name: &[u8]) -> Option<&[Claim]> {
        let hash = self.hash(name);
        let bucket = self.bucket(hash);
        let within = Part { from: *self.buckets.get(bucket)?, to: *self.buckets.get(bucket + 1)? };
        let within = within.of(&self.claims);
        // A bucket has one name more often than not, and a name one claim.
        let same = |claim: &Claim| claim.hash == hash && self.text(claim.text) == name;
        let found = &within[within.iter().position(same)?..];
        Some(&found[..found.iter().position(|claim| !same(claim)).unwrap_or(found.len())])
    }

    /// A name that was kept.
    pub(super) fn text(&self, name: Part) -> &[u8] {
        name.of(&self.text)
    }

    /// All names with those who have them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], Holder)> {
        self.claims.iter().map(|claim| (self.text(claim.text), claim.holder))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    fn key(&self, claim: &Claim) -> (u32, &[u8]) {
        (claim.hash, self.text(claim.text))
    }

    fn hash(&self, name: &[u8]) -> u32 {
        self.hasher.hash_one(name) as u32
    }

    /// There are as many as names. What is in the order of hashes is in that of buckets.
    fn bucket(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.count as u64) >> 32) as usize
    }
}
