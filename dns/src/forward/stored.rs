//! An answer in the form in which it is remembered: without EDNS, which is between two hosts only.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::op::Message;

use super::Question;
use crate::{
    counters::From,
    wire::{HEADER, MOST, Place, class, flag, places, question_end, rcode, rtype, u16_at, u32_at},
};

/// An answer that is remembered.
#[derive(Debug)]
pub struct Stored {
    /// The message: header, question in lower case, records.
    pub message: Box<[u8]>,
    /// Its records.
    pub places: Box<[Place]>,
    /// When it came.
    pub at: Instant,
    /// How long it may be given.
    pub ttl: Duration,
    /// Its code, with the part that EDNS carries.
    pub rcode: u16,
}

/// An answer, and where it comes from.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The answer.
    pub stored: Arc<Stored>,
    /// Where it comes from.
    pub from: From,
    /// Whether its time is over.
    pub freshness: Freshness,
}

/// Whether the time of an answer is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It is not.
    Fresh,
    /// It is, and nobody has a newer one.
    Stale,
}

/// Bounds of how long answers are kept: what is there, what is not, what went wrong (RFC 2308,
/// RFC 9520).
const POSITIVE: (u64, u64) = (5, 3600);
const NEGATIVE: (u64, u64) = (1, 1800);
const UNSAID: u64 = 5;
const FAILURE: Duration = Duration::from_secs(2);

impl Answered {
    /// Nobody has answered.
    pub fn failure(question: &Question) -> Self {
        let stored = Arc::new(Stored::failure(question, Instant::now()));
        Self { stored, from: From::Local, freshness: Freshness::Fresh }
    }
}

impl Stored {
    /// From what a server has said to a question. `None` if it is not whole.
    pub fn read(message: &Message, question: &Question, now: Instant) -> Option<Self> {
        let mut plain = message.clone();
        plain.edns = None;
        plain.signature = None;
        let high = message.edns.as_ref().map_or(0, |edns| u16::from(edns.rcode_high()));
        let bytes = plain.to_vec().ok().filter(|bytes| bytes.len() <= MOST)?;
        let bytes = with_question(bytes, question)?;
        let places = places(&bytes)?;
        let rcode = high << 4 | u16_at(&bytes, 2)? & 0xf;
        let ttl = Duration::from_secs(ttl(&bytes, &places, question, rcode)?);
        let places = places.into();
        Some(Self { message: bytes.into(), places, at: now, ttl, rcode })
    }

    /// That nobody has answered, to be remembered for a moment.
    pub fn failure(question: &Question, now: Instant) -> Self {
        let mut message = vec![0; HEADER];
        let flags = flag::RESPONSE | flag::RECURSION_AVAILABLE | rcode::SERVFAIL;
        message[2..4].copy_from_slice(&flags.to_be_bytes());
        message[5] = 1;
        message.extend_from_slice(&question_bytes(question));
        let (message, places) = (message.into(), [].into());
        Self { message, places, at: now, ttl: FAILURE, rcode: rcode::SERVFAIL }
    }

    /// Whether it says only that nothing is known.
    pub fn is_failure(&self) -> bool {
        self.rcode != rcode::NOERROR && self.rcode != rcode::NXDOMAIN
    }

    /// How long it has been there.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at)
    }

    /// Where the question ends.
    pub fn question_end(&self) -> usize {
        question_end(&self.message).unwrap_or(self.message.len())
    }

    /// Roughly the memory that it takes.
    pub fn size(&self) -> usize {
        self.message.len() + size_of_val(&*self.places) + size_of::<Self>()
    }
}

fn question_bytes(question: &Question) -> Vec<u8> {
    let [high, low] = question.rtype.to_be_bytes();
    [&question.name[..], &[0, high, low, 0, class::IN as u8]].concat()
}

/// The message with the question as it was asked. That of the answer has the same length, so that
/// everything stays where it is; what has no question gets one if nothing comes after it.
fn with_question(mut message: Vec<u8>, question: &Question) -> Option<Vec<u8>> {
    let asked = question_bytes(question);
    if u16_at(&message, 4)? == 1 {
        let place = message.get_mut(HEADER..HEADER + asked.len())?;
        place.copy_from_slice(&asked);
        return Some(message);
    }
    if message.len() > HEADER {
        return None;
    }
    message[5] = 1;
    message.extend_from_slice(&asked);
    Some(message)
}

/// Seconds for which it may be given.
fn ttl(message: &[u8], places: &[Place], question: &Question, rcode: u16) -> Option<u64> {
    if rcode != rcode::NOERROR && rcode != rcode::NXDOMAIN {
        return Some(FAILURE.as_secs());
    }
    let seconds = |place: &Place| u32_at(message, place.ttl_at).map(u64::from);
    let answers = places.iter().filter(|place| place.section == 0);
    let answered =
        answers.clone().any(|place| place.rtype == question.rtype || question.rtype == rtype::ANY);
    if answered {
        let least = places.iter().filter_map(seconds).min()?;
        return Some(least.clamp(POSITIVE.0, POSITIVE.1));
    }
    // Of an alias that leads nowhere the alias has its own time.
    let aliases = answers.filter_map(seconds).min();
    let soa = places.iter().find(|place| place.section == 1 && place.rtype == rtype::SOA);
    let negative = match soa {
        // The last field of an SOA is the time for which "no" is true (RFC 2308 section 5).
        Some(soa) => seconds(soa)?.min(u32_at(message, soa.end.checked_sub(4)?)?.into()),
        None => UNSAID,
    };
    Some(aliases.map_or(negative, |own| own.min(negative)).clamp(NEGATIVE.0, NEGATIVE.1))
}
