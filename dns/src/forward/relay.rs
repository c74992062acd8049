//! Giving on what somebody else has said, in the terms of whoever asked.

use std::time::Instant;

use super::{Answered, Freshness};
use crate::{
    reply::Tail,
    request::Request,
    wire::{HEADER, ede, flag, u16_at, u32_at},
};

/// Who asked, and how the answer must be.
pub struct Relay<'p> {
    /// Their packet, up to the end of the question.
    pub question: &'p [u8],
    /// The bytes that it may have.
    pub limit: usize,
    /// What is said by EDNS.
    pub tail: Option<Tail>,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its code.
    pub rcode: u16,
    /// Whether something was left out.
    pub truncated: bool,
}

/// What a stale record says of its time (RFC 8767 section 4).
const STALE: u32 = 30;

impl<'p> Relay<'p> {
    /// For a request.
    pub fn of(request: &Request<'p>, limit: usize, tail: Option<Tail>) -> Self {
        Self { question: &request.packet[..request.question_end], limit, tail }
    }

    /// Writes the answer: with the question as it was asked, and times as they are by now.
    pub fn write(&self, said: &Answered, now: Instant, into: &mut Vec<u8>) -> Written {
        let stored = &said.stored;
        let mut tail = self.tail.clone();
        if let Some(tail) = &mut tail {
            tail.ede = match said.freshness {
                Freshness::Stale => Some((ede::STALE_ANSWER, "no server answers")),
                Freshness::Fresh if stored.is_failure() && stored.places.is_empty() => {
                    Some((ede::NO_REACHABLE_AUTHORITY, "no server answers"))
                }
                Freshness::Fresh => None,
            };
        }
        let limit = self.limit.saturating_sub(tail.as_ref().map_or(0, Tail::len));
        let question_end = stored.question_end();
        let fits = stored.places.iter().take_while(|place| place.end <= limit).count();
        let kept = &stored.places[..fits];
        let end = kept.last().map_or(question_end, |place| place.end);
        into.clear();
        into.extend_from_slice(&stored.message[..end]);
        // The same name, in the letters of whoever asks.
        if self.question.len() == question_end {
            into[HEADER..question_end].copy_from_slice(&self.question[HEADER..]);
        }
        into[..2].copy_from_slice(&self.question[..2]);
        let age = u32::try_from(stored.age(now).as_secs()).unwrap_or(u32::MAX);
        for place in kept {
            let ttl = u32_at(into, place.ttl_at).unwrap_or_default();
            let left = match said.freshness {
                Freshness::Fresh => ttl.saturating_sub(age),
                Freshness::Stale => STALE,
            };
            into[place.ttl_at..place.ttl_at + 4].copy_from_slice(&left.to_be_bytes());
        }
        for section in 0..3 {
            let count = kept.iter().filter(|place| place.section == section).count() as u16;
            into[6 + 2 * section..8 + 2 * section].copy_from_slice(&count.to_be_bytes());
        }
        let cut = &stored.places[fits..];
        let truncated = cut.iter().any(|place| place.section == 0);
        self.finish(stored.rcode, truncated, tail, into);
        Written { rcode: stored.rcode, truncated }
    }

    fn finish(&self, rcode: u16, truncated: bool, tail: Option<Tail>, into: &mut Vec<u8>) {
        let said = u16_at(into, 2).unwrap_or_default();
        let asked = u16_at(self.question, 2).unwrap_or_default();
        // That somebody has validated it means something to those who ask for it (RFC 6840 5.8).
        let wants =
            asked & flag::AUTHENTIC != 0 || tail.as_ref().is_some_and(|tail| tail.dnssec_ok);
        let mut flags = flag::RESPONSE | flag::RECURSION_AVAILABLE | rcode & 0xf;
        flags |= asked & (flag::RECURSION_DESIRED | flag::CHECKING_DISABLED);
        flags |= if wants { said & flag::AUTHENTIC } else { 0 };
        flags |= if truncated { flag::TRUNCATED } else { 0 };
        into[2..4].copy_from_slice(&flags.to_be_bytes());
        if let Some(tail) = tail {
            tail.write(rcode, into);
            let additional = u16_at(into, 10).unwrap_or_default().saturating_add(1);
            into[10..12].copy_from_slice(&additional.to_be_bytes());
        }
    }
}
