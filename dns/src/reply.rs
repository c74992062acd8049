//! Writing answers. What fits is written, whole record by whole record.

use std::{net::IpAddr, time::Duration};

use crate::wire::{EDNS_UDP, HEADER, flag, rtype};

/// An answer being written.
pub struct Reply<'b> {
    into: &'b mut Vec<u8>,
    /// Bytes that it may have, without what the end needs.
    limit: usize,
    flags: u16,
    rcode: u16,
    counts: [u16; 3],
    tail: Option<Tail>,
}

/// What is said by EDNS.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    /// Whether signatures were wanted.
    pub dnssec_ok: bool,
    /// The name of this server, where it was asked for.
    pub nsid: Option<Vec<u8>>,
    /// Why the answer is what it is.
    pub ede: Option<(u16, &'static str)>,
}

/// The part of an answer that a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// What was asked for.
    Answer,
    /// Who says so.
    Authority,
    /// What will be asked for next.
    Additional,
}

/// Whose record it is.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'n> {
    /// What stands at this place of the message: [`Owner::QUESTION`], or a part of it.
    At(usize),
    /// A name in full, without the root's byte.
    Name(&'n [u8]),
}

impl Owner<'_> {
    /// The name that was asked for.
    pub const QUESTION: Self = Self::At(HEADER);
    /// The root.
    pub const ROOT: Self = Self::Name(&[]);
}

/// The largest place that a pointer can name.
const FARTHEST: usize = 0x3fff;

impl Tail {
    pub(crate) fn len(&self) -> usize {
        let nsid = self.nsid.as_ref().map_or(0, |nsid| 4 + nsid.len());
        11 + nsid + self.ede.map_or(0, |(_, text)| 6 + text.len())
    }

    pub(crate) fn write(&self, rcode: u16, into: &mut Vec<u8>) {
        into.push(0);
        push(into, rtype::OPT);
        push(into, EDNS_UDP as u16);
        into.extend([(rcode >> 4) as u8, 0, if self.dnssec_ok { 0x80 } else { 0 }, 0]);
        push(into, (self.len() - 11) as u16);
        if let Some(nsid) = &self.nsid {
            push(into, 3);
            push(into, nsid.len() as u16);
            into.extend_from_slice(nsid);
        }
        if let Some((code, text)) = self.ede {
            push(into, 15);
            push(into, 2 + text.len() as u16);
            push(into, code);
            into.extend_from_slice(text.as_bytes());
        }
    }
}

impl<'b> Reply<'b> {
    /// Begins an answer to `packet`, of which the question ends at `question_end`, with at most
    /// `limit` bytes. The question is repeated byte for byte.
    pub fn begin(
        into: &'b mut Vec<u8>,
        packet: &[u8],
        question_end: Option<usize>,
        limit: usize,
        tail: Option<Tail>,
    ) -> Self {
        into.clear();
        let head = packet.get(..4).unwrap_or(&[0; 4]);
        into.extend_from_slice(head);
        into.resize(HEADER, 0);
        let question = question_end.and_then(|end| packet.get(HEADER..end));
        if let Some(question) = question {
            into[5] = 1;
            into.extend_from_slice(question);
        }
        let asked = u16::from_be_bytes([head[2], head[3]]);
        // The opcode, and what a server repeats.
        let kept = 0x7800 | flag::RECURSION_DESIRED | flag::CHECKING_DISABLED;
        let flags = flag::RESPONSE | asked & kept;
        let limit = limit.saturating_sub(tail.as_ref().map_or(0, Tail::len));
        Self { into, limit, flags, rcode: 0, counts: [0; 3], tail }
    }

    /// Sets flags of the header.
    pub fn set(&mut self, flags: u16) {
        self.flags |= flags;
    }

    /// Sets the code.
    pub fn rcode(&mut self, rcode: u16) {
        self.rcode = rcode;
    }

    /// Says why, where EDNS was used.
    pub fn explain(&mut self, code: u16, text: &'static str) {
        if let Some(tail) = &mut self.tail {
            let before = tail.len();
            tail.ede = Some((code, text));
            self.limit = (self.limit + before).saturating_sub(tail.len());
        }
    }

    /// Writes a record if it fits as a whole. What was asked for and does not fit is said to be
    /// missing. Answers where its data begins.
    pub fn record(
        &mut self,
        section: Section,
        owner: Owner<'_>,
        rtype: u16,
        ttl: Duration,
        data: &[u8],
    ) -> Option<usize> {
        let owner_len = match owner {
            Owner::At(place) if place <= FARTHEST => 2,
            Owner::At(_) => return None,
            Owner::Name(name) => name.len() + 1,
        };
        let counted = &mut self.counts[section as usize];
        let fits = self.into.len() + owner_len + 10 + data.len() <= self.limit;
        if !fits || *counted == u16::MAX {
            if section == Section::Answer {
                self.flags |= flag::TRUNCATED;
            }
            return None;
        }
        *counted += 1;
        match owner {
            Owner::At(place) => push(self.into, 0xc000 | place as u16),
            Owner::Name(name) => {
                self.into.extend_from_slice(name);
                self.into.push(0);
            }
        }
        push(self.into, rtype);
        push(self.into, crate::wire::class::IN);
        let ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        self.into.extend(ttl.to_be_bytes());
        push(self.into, data.len() as u16);
        let begin = self.into.len();
        self.into.extend_from_slice(data);
        Some(begin)
    }

    /// Writes the address of a name.
    pub fn address(&mut self, section: Section, owner: Owner<'_>, ttl: Duration, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.record(section, owner, rtype::A, ttl, &v4.octets()),
            IpAddr::V6(v6) => self.record(section, owner, rtype::AAAA, ttl, &v6.octets()),
        };
    }

    /// Whether something that was asked for did not fit.
    pub fn is_truncated(&self) -> bool {
        self.flags & flag::TRUNCATED != 0
    }

    /// Whether nothing has been answered to what was asked.
    pub fn is_empty(&self) -> bool {
        self.counts[0] == 0
    }

    /// The class of all records is IN; answers of another class are written here.
    pub fn class(&mut self, begin: Option<usize>, class: u16) {
        if let Some(at) = begin.and_then(|begin| begin.checked_sub(8))
            && let Some(place) = self.into.get_mut(at..at + 2)
        {
            place.copy_from_slice(&class.to_be_bytes());
        }
    }

    /// Ends the answer, and answers its code.
    pub fn finish(self) -> u16 {
        let mut additional = self.counts[2];
        if let Some(tail) = &self.tail {
            tail.write(self.rcode, self.into);
            additional += 1;
        }
        let head = &mut self.into[2..HEADER];
        head[..2].copy_from_slice(&(self.flags | self.rcode & 0xf).to_be_bytes());
        for (at, count) in [self.counts[0], self.counts[1], additional].into_iter().enumerate() {
            head[4 + 2 * at..6 + 2 * at].copy_from_slice(&count.to_be_bytes());
        }
        self.rcode
    }
}

fn push(into: &mut Vec<u8>, number: u16) {
    into.extend(number.to_be_bytes());
}
