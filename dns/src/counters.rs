//! What is counted, and where it is read.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::wire::rtype;

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Our own names, or a refusal.
    Local,
    /// The cache.
    Cache,
    /// The cache, after its time, since nobody else answered.
    Stale,
    /// A server that was asked.
    Upstream,
}

/// Why something was not answered, or was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// Too short, or it came from where no answer can go.
    Malformed,
    /// It was an answer.
    Response,
    /// From an address that may not ask.
    NotAllowed,
    /// All places of questions under way are taken: refused.
    Busy,
    /// The client has as many questions under way as one may have: refused.
    ClientBusy,
    /// The socket took no more answers.
    SendFailed,
    /// A connection more than there may be, or than one client may have.
    Connections,
    /// A question that came back to us from a server that we asked.
    Loop,
}

macro_rules! words {
    ($kind:ident { $($variant:ident => $word:literal),* $(,)? }) => {
        impl $kind {
            /// All, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word in metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }
    };
}

words!(From { Local => "local", Cache => "cache", Stale => "stale", Upstream => "upstream" });
words!(Drop {
    Malformed => "malformed",
    Response => "response",
    NotAllowed => "not_allowed",
    Busy => "busy",
    ClientBusy => "client_busy",
    SendFailed => "send_failed",
    Connections => "connections",
    Loop => "loop",
});

/// The types that are counted by name; what is none of them is `other`.
pub const TYPES: [(u16, &str); 8] = [
    (rtype::A, "A"),
    (rtype::AAAA, "AAAA"),
    (rtype::SRV, "SRV"),
    (rtype::PTR, "PTR"),
    (rtype::TXT, "TXT"),
    (rtype::SOA, "SOA"),
    (rtype::NS, "NS"),
    (0, "other"),
];

/// The codes that are counted by name; what is none of them is `OTHER`.
pub const CODES: [(u16, &str); 8] = [
    (0, "NOERROR"),
    (1, "FORMERR"),
    (2, "SERVFAIL"),
    (3, "NXDOMAIN"),
    (4, "NOTIMP"),
    (5, "REFUSED"),
    (16, "BADVERS"),
    (u16::MAX, "OTHER"),
];

/// Bounds of the histograms of time, in seconds.
pub const BOUNDS: [f64; 12] =
    [0.000_05, 0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// How long something took.
#[derive(Debug, Default)]
pub struct Times {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

/// Times as they were read.
#[derive(Clone, Debug, PartialEq)]
pub struct TimesRead {
    /// By bound; the last is for what took longer.
    pub buckets: Vec<(f64, u64)>,
    /// Of all.
    pub seconds: f64,
    /// How many.
    pub count: u64,
}

/// All counters of a server.
#[derive(Debug, Default)]
pub struct Counters {
    queries: [AtomicU64; TYPES.len()],
    answers: [[AtomicU64; CODES.len()]; 4],
    drops: [AtomicU64; 8],
    transports: [AtomicU64; 2],
    truncated: AtomicU64,
    /// From a packet's arrival to the answer, for local names and what was in the cache.
    pub local: Times,
    /// The same, where somebody else had to be asked.
    pub forwarded: Times,
}

impl Times {
    /// Counts one, or several that took as long.
    pub fn count(&self, took: Duration, times: u64) {
        let seconds = took.as_secs_f64();
        let at = BOUNDS.partition_point(|bound| *bound < seconds);
        self.buckets[at].fetch_add(times, Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds.saturating_mul(times), Relaxed);
    }

    /// What was counted.
    pub fn read(&self) -> TimesRead {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let counts = self.buckets.iter().map(|bucket| bucket.load(Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        TimesRead { buckets, seconds: self.nanoseconds.load(Relaxed) as f64 / 1e9, count }
    }
}

impl Counters {
    /// A question was read.
    pub fn query(&self, rtype: u16, tcp: bool) {
        let at = TYPES.iter().position(|(known, _)| *known == rtype).unwrap_or(TYPES.len() - 1);
        self.queries[at].fetch_add(1, Relaxed);
        self.transports[usize::from(tcp)].fetch_add(1, Relaxed);
    }

    /// A packet was answered.
    pub fn answer(&self, from: From, rcode: u16) {
        let at = CODES.iter().position(|(known, _)| *known == rcode).unwrap_or(CODES.len() - 1);
        self.answers[from as usize][at].fetch_add(1, Relaxed);
    }

    /// An answer had to leave something out.
    pub fn truncate(&self) {
        self.truncated.fetch_add(1, Relaxed);
    }

    /// Something was dropped or refused.
    pub fn drop(&self, why: Drop) {
        self.drops[why as usize].fetch_add(1, Relaxed);
    }

    /// Questions by type.
    pub fn queries(&self) -> impl Iterator<Item = (&'static str, u64)> {
        TYPES.iter().zip(&self.queries).map(|((_, name), count)| (*name, count.load(Relaxed)))
    }

    /// Questions by transport.
    pub fn transports(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.transports.iter().map(|count| count.load(Relaxed));
        ["udp", "tcp"].into_iter().zip(counts)
    }

    /// Answers by where they came from, and by code.
    pub fn answers(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        From::ALL.iter().zip(&self.answers).flat_map(|(from, counts)| {
            let codes = CODES.iter().zip(counts);
            codes.map(|((_, code), count)| (from.as_str(), *code, count.load(Relaxed)))
        })
    }

    /// What was dropped or refused, by reason.
    pub fn drops(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Drop::ALL.iter().zip(&self.drops).map(|(why, count)| (why.as_str(), count.load(Relaxed)))
    }

    /// Answers that left something out.
    pub fn truncated(&self) -> u64 {
        self.truncated.load(Relaxed)
    }
}
