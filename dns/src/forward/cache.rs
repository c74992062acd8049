//! What is remembered of answers, within a number of bytes.
//!
//! Two halves: answers go into the young one, and when that is full it becomes the old one and what
//! was in the old one is forgotten. Whatever is asked for goes to the young half again, so that what
//! is forgotten has not been asked for in the time in which half of the cache was filled.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Answered, Freshness, Question, Stored};
use crate::{counters::From, name::show};

/// Answers by question.
#[derive(Debug)]
pub(super) struct Cache {
    young: Half,
    old: Half,
    half: usize,
    stale: Duration,
    hits: u64,
    misses: u64,
}

#[derive(Debug, Default)]
struct Half {
    entries: HashMap<Question, Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    stored: Arc<Stored>,
    hits: u32,
    /// Nobody answered: until then the stale answer is given at once.
    recheck: Option<Instant>,
}

/// A cache as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheRead {
    /// Answers.
    pub entries: usize,
    /// Their bytes, roughly.
    pub bytes: usize,
    /// The most bytes there may be.
    pub capacity: usize,
    /// Questions that were answered from it.
    pub hits: u64,
    /// Questions that were not.
    pub misses: u64,
    /// What is in it, by name.
    pub names: Vec<CachedName>,
}

/// An answer as it was read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CachedName {
    /// The name that was asked for.
    pub name: String,
    /// The type that was asked for.
    pub rtype: u16,
    /// Its code.
    pub rcode: u16,
    /// Records in it.
    pub records: usize,
    /// Seconds that are left; negative when its time is over.
    pub ttl: i64,
    /// Times that it was given.
    pub hits: u32,
}

/// What is asked for so often is asked for again before its time is over, when less than this part of
/// the time is left.
const POPULAR: u32 = 2;
const LAST_PART: u32 = 10;

impl Cache {
    pub fn new(bytes: usize, stale: Duration) -> Self {
        let (young, old) = Default::default();
        Self { young, old, half: bytes / 2, stale, hits: 0, misses: 0 }
    }

    /// An answer that may be given, and whether it should be asked for again.
    pub fn look(&mut self, question: &Question, now: Instant) -> Option<(Answered, bool)> {
        let Some(entry) = self.find(question) else {
            self.misses += 1;
            return None;
        };
        let (age, ttl) = (entry.stored.age(now), entry.stored.ttl);
        let stored = entry.stored.clone();
        if age < ttl {
            entry.hits = entry.hits.saturating_add(1);
            let popular = entry.hits >= POPULAR && !stored.is_failure();
            let refresh = popular && (ttl - age) * LAST_PART < ttl;
            self.hits += 1;
            let answered = Answered { stored, from: From::Cache, freshness: Freshness::Fresh };
            return Some((answered, refresh));
        }
        let waiting = entry.recheck.is_some_and(|recheck| now < recheck);
        if waiting && age < ttl + self.stale {
            self.hits += 1;
            return Some((
                Answered { stored, from: From::Stale, freshness: Freshness::Stale },
                false,
            ));
        }
        self.misses += 1;
        None
    }

    /// An answer whose time is over, for when nobody answers.
    pub fn stale(&mut self, question: &Question, now: Instant) -> Option<Answered> {
        let most = self.stale;
        let stored = self.find(question)?.stored.clone();
        let useful = !stored.is_failure() && stored.age(now) < stored.ttl + most;
        useful.then_some(Answered { stored, from: From::Stale, freshness: Freshness::Stale })
    }

    /// Gives the stale answer at once until then.
    pub fn recheck_later(&mut self, question: &Question, recheck: Instant) {
        if let Some(entry) = self.find(question) {
            entry.recheck = Some(recheck);
        }
    }

    /// Remembers an answer. That nobody answers does not replace a stale answer.
    pub fn put(&mut self, question: &Question, stored: Arc<Stored>) {
        let now = stored.at;
        if stored.is_failure() && self.stale(question, now).is_some() {
            return;
        }
        self.young.remove(question);
        self.old.remove(question);
        self.insert(question.clone(), Entry { stored, hits: 0, recheck: None });
    }

    pub fn clear(&mut self) {
        (self.young, self.old) = Default::default();
    }

    pub fn read(&self, now: Instant) -> CacheRead {
        let entries = self.young.entries.iter().chain(&self.old.entries);
        let names = entries.map(|(question, entry)| {
            let age = i64::try_from(entry.stored.age(now).as_secs()).unwrap_or(i64::MAX);
            let ttl = i64::try_from(entry.stored.ttl.as_secs()).unwrap_or(i64::MAX);
            CachedName {
                name: show(&question.name),
                rtype: question.rtype,
                rcode: entry.stored.rcode,
                records: entry.stored.places.len(),
                ttl: ttl.saturating_sub(age),
                hits: entry.hits,
            }
        });
        let mut names: Vec<CachedName> = names.collect();
        names.sort();
        CacheRead {
            entries: names.len(),
            bytes: self.young.bytes + self.old.bytes,
            capacity: 2 * self.half,
            hits: self.hits,
            misses: self.misses,
            names,
        }
    }

    /// An entry, which is young from now on.
    fn find(&mut self, question: &Question) -> Option<&mut Entry> {
        if !self.young.entries.contains_key(question) {
            let entry = self.old.remove(question)?;
            self.insert(question.clone(), entry);
        }
        self.young.entries.get_mut(question)
    }

    fn insert(&mut self, question: Question, entry: Entry) {
        let size = size(&question, &entry);
        if size > self.half {
            return;
        }
        if self.young.bytes + size > self.half {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.bytes += size;
        self.young.entries.insert(question, entry);
    }
}

impl Half {
    fn remove(&mut self, question: &Question) -> Option<Entry> {
        let entry = self.entries.remove(question)?;
        self.bytes = self.bytes.saturating_sub(size(question, &entry));
        Some(entry)
    }
}

fn size(question: &Question, entry: &Entry) -> usize {
    question.name.len() + size_of::<Question>() + size_of::<Entry>() + entry.stored.size()
}
