//! Numbers of the wire format that the standards fix, and walking over the records of a message.

/// Bytes of a header.
pub const HEADER: usize = 12;
/// The largest answer over UDP to a question without EDNS (RFC 1035 4.2.1).
pub const PLAIN_UDP: usize = 512;
/// The largest answer over UDP that we send or ask for: passes every common link without fragments
/// (DNS flag day 2020, RFC 9715).
pub const EDNS_UDP: usize = 1232;
/// The largest message at all: TCP gives it 16 bits of length.
pub const MOST: usize = 65_535;

/// Types of records.
pub mod rtype {
    #![expect(missing_docs, reason = "each is the record type of that name")]
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const HINFO: u16 = 13;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const OPT: u16 = 41;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;
}

/// Classes.
pub mod class {
    #![expect(missing_docs, reason = "each is the class of that name")]
    pub const IN: u16 = 1;
    pub const CH: u16 = 3;
}

/// Codes of answers.
pub mod rcode {
    #![expect(missing_docs, reason = "each is the response code of that name")]
    pub const NOERROR: u16 = 0;
    pub const FORMERR: u16 = 1;
    pub const SERVFAIL: u16 = 2;
    pub const NXDOMAIN: u16 = 3;
    pub const NOTIMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const BADVERS: u16 = 16;
}

/// Extended errors (RFC 8914): why an answer is what it is, for whoever looks.
pub mod ede {
    #![expect(missing_docs, reason = "each is the extended error of that name")]
    pub const STALE_ANSWER: u16 = 3;
    pub const CACHED_ERROR: u16 = 13;
    pub const NOT_READY: u16 = 14;
    pub const PROHIBITED: u16 = 18;
    pub const NO_REACHABLE_AUTHORITY: u16 = 22;
    pub const NETWORK_ERROR: u16 = 23;
}

/// Bits of the third and fourth byte of a header.
pub mod flag {
    /// It is an answer.
    pub const RESPONSE: u16 = 0x8000;
    /// From a server that owns the name.
    pub const AUTHORITATIVE: u16 = 0x0400;
    /// There is more, over TCP.
    pub const TRUNCATED: u16 = 0x0200;
    /// Whoever asks wants names of other servers looked up.
    pub const RECURSION_DESIRED: u16 = 0x0100;
    /// That is done here.
    pub const RECURSION_AVAILABLE: u16 = 0x0080;
    /// Whoever answers has validated it.
    pub const AUTHENTIC: u16 = 0x0020;
    /// Whoever asks validates by itself.
    pub const CHECKING_DISABLED: u16 = 0x0010;
}

/// A record's place in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where its owner begins.
    pub start: usize,
    /// Its type.
    pub rtype: u16,
    /// Where its TTL stands.
    pub ttl_at: usize,
    /// Where the next one begins.
    pub end: usize,
    /// 0 answer, 1 authority, 2 additional.
    pub section: usize,
}

/// A 16-bit number at `at`.
pub fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// A 32-bit number at `at`.
pub fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    let bytes: [u8; 4] = message.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_be_bytes(bytes))
}

/// Where the question that begins after the header ends.
pub fn question_end(message: &[u8]) -> Option<usize> {
    let end = name_end(message, HEADER)? + 4;
    (end <= message.len()).then_some(end)
}

/// All records of a message with one question. `None` if it is not whole.
pub fn places(message: &[u8]) -> Option<Vec<Place>> {
    let mut at = question_end(message)?;
    let mut places = Vec::new();
    for section in 0..3 {
        for _ in 0..u16_at(message, 6 + 2 * section)? {
            let place = place(message, at, section)?;
            at = place.end;
            places.push(place);
        }
    }
    (at == message.len()).then_some(places)
}

fn place(message: &[u8], start: usize, section: usize) -> Option<Place> {
    let fixed = name_end(message, start)?;
    let length = usize::from(u16_at(message, fixed + 8)?);
    let end = fixed + 10 + length;
    let rtype = u16_at(message, fixed)?;
    (end <= message.len()).then_some(Place { start, rtype, ttl_at: fixed + 4, end, section })
}

/// Where a name ends that begins at `at`; what a pointer in it points at is not looked at.
fn name_end(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length >= 0xc0 => return (at + 2 <= message.len()).then_some(at + 2),
            length if length >= 0x40 => return None,
            length => at += 1 + usize::from(length),
        }
    }
}
