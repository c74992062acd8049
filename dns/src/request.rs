//! A packet as a question, checked as far as the standards say that a server must.

use hickory_proto::{
    rr::{RData, Record},
    serialize::binary::{BinDecodable, BinDecoder},
};

use crate::{
    name::Asked,
    wire::{HEADER, PLAIN_UDP, flag, rcode, rtype, u16_at},
};

/// A question that can be answered.
#[derive(Debug)]
pub struct Request<'p> {
    /// The packet.
    pub packet: &'p [u8],
    /// The name that is asked for.
    pub name: Asked,
    /// The type that is asked for.
    pub rtype: u16,
    /// The class that is asked for.
    pub class: u16,
    /// Where the question ends.
    pub question_end: usize,
    /// What was said by EDNS, if it was used.
    pub edns: Option<Edns>,
}

/// What a question says by EDNS (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest answer over UDP that is taken, at least 512.
    pub size: usize,
    /// Wants signatures, too.
    pub dnssec_ok: bool,
    /// Wants to know which server answers (RFC 5001).
    pub nsid: bool,
}

/// Why a packet is no question that can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Too short to be answered.
    Short,
    /// It is itself an answer: answering it could go on for ever.
    Response,
    /// It is told what is wrong.
    Rejected {
        /// The code.
        rcode: u16,
        /// Where the question ends, if it can be repeated.
        question_end: Option<usize>,
        /// Whether EDNS was used.
        edns: bool,
    },
}

const NSID: u16 = 3;

impl<'p> Request<'p> {
    /// Reads a packet.
    pub fn read(packet: &'p [u8]) -> Result<Self, Bad> {
        let (Some(flags), Some(questions)) = (u16_at(packet, 2), u16_at(packet, 4)) else {
            return Err(Bad::Short);
        };
        if packet.len() < HEADER {
            return Err(Bad::Short);
        }
        if flags & flag::RESPONSE != 0 {
            return Err(Bad::Response);
        }
        let rejected = |rcode, question_end| Bad::Rejected { rcode, question_end, edns: false };
        if flags >> 11 & 0xf != 0 {
            return Err(rejected(rcode::NOTIMP, None));
        }
        // More than one question has no meaning (RFC 9619).
        if questions != 1 {
            return Err(rejected(rcode::FORMERR, None));
        }
        let formerr = rejected(rcode::FORMERR, None);
        let (name, end) = Asked::read(packet, HEADER).ok_or(formerr)?;
        let (asked, class) = u16_at(packet, end).zip(u16_at(packet, end + 2)).ok_or(formerr)?;
        let question_end = end + 4;
        let mut request = Self { packet, name, rtype: asked, class, question_end, edns: None };
        request.edns = request.rest()?;
        Ok(request)
    }

    /// The header's id.
    pub fn id(&self) -> u16 {
        u16_at(self.packet, 0).unwrap_or_default()
    }

    /// The header's flags.
    pub fn flags(&self) -> u16 {
        u16_at(self.packet, 2).unwrap_or_default()
    }

    /// Whether names of other servers are to be looked up.
    pub fn recursion_desired(&self) -> bool {
        self.flags() & flag::RECURSION_DESIRED != 0
    }

    /// The largest answer over UDP.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(PLAIN_UDP, |edns| edns.size.min(crate::wire::EDNS_UDP))
    }

    /// What comes after the question: of it all only EDNS is used.
    fn rest(&self) -> Result<Option<Edns>, Bad> {
        let counts = (6..HEADER).step_by(2).map(|at| u16_at(self.packet, at).unwrap_or_default());
        let records: u32 = counts.map(u32::from).sum();
        let question_end = Some(self.question_end);
        let bad = |rcode, edns| Bad::Rejected { rcode, question_end, edns };
        if records == 0 && self.packet.len() == self.question_end {
            return Ok(None);
        }
        let at = u16::try_from(self.question_end).map_err(|_| bad(rcode::FORMERR, false))?;
        let mut decoder = BinDecoder::new(self.packet).clone(at);
        let mut edns = None;
        for _ in 0..records {
            let record: Record<RData> =
                Record::read(&mut decoder).map_err(|_| bad(rcode::FORMERR, edns.is_some()))?;
            if u16::from(record.record_type()) != rtype::OPT {
                continue;
            }
            if edns.is_some() || !record.name.is_root() {
                return Err(bad(rcode::FORMERR, true));
            }
            let version = record.ttl >> 16 & 0xff;
            if version != 0 {
                return Err(bad(rcode::BADVERS, true));
            }
            let nsid =
                matches!(&record.data, RData::OPT(options) if options.get(NSID.into()).is_some());
            edns = Some(Edns {
                size: usize::from(u16::from(record.dns_class)).max(PLAIN_UDP),
                dnssec_ok: record.ttl & 0x8000 != 0,
                nsid,
            });
        }
        if decoder.is_empty() { Ok(edns) } else { Err(bad(rcode::FORMERR, edns.is_some())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A question for `web A IN` with these counts and this after it.
    fn packet(flags: u16, counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0xab, 0xcd];
        [flags, counts[0], counts[1], counts[2], counts[3]]
            .iter()
            .for_each(|number| packet.extend(number.to_be_bytes()));
        packet.extend(b"\x03wEb\x00\x00\x01\x00\x01");
        packet.extend(rest);
        packet
    }

    fn opt(version: u8, size: u16) -> Vec<u8> {
        [&[0, 0, 41][..], &size.to_be_bytes(), &[0, version, 0x80, 0, 0, 0]].concat()
    }

    fn code(packet: &[u8]) -> Option<u16> {
        match Request::read(packet) {
            Err(Bad::Rejected { rcode, .. }) => Some(rcode),
            _ => None,
        }
    }

    #[test]
    fn a_question_is_read_with_its_edns() {
        let packet = packet(0x0100, [1, 0, 0, 1], &opt(0, 4096));
        let request = Request::read(&packet).unwrap();
        assert_eq!(request.name.key(), b"\x03web");
        assert_eq!((request.rtype, request.class, request.question_end), (1, 1, 21));
        assert_eq!(request.edns, Some(Edns { size: 4096, dnssec_ok: true, nsid: false }));
        assert_eq!(request.udp_limit(), 1232);
    }

    #[test]
    fn a_size_below_512_means_512() {
        let packet = packet(0, [1, 0, 0, 1], &opt(0, 12));
        assert_eq!(Request::read(&packet).unwrap().udp_limit(), 512);
    }

    #[test]
    fn what_cannot_be_answered_is_not() {
        assert_eq!(Request::read(&[0; 11]).unwrap_err(), Bad::Short);
        assert_eq!(Request::read(&packet(0x8000, [1, 0, 0, 0], b"")).unwrap_err(), Bad::Response);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let two = [opt(0, 1232), opt(0, 1232)].concat();
        for (wanted, packet) in [
            (rcode::NOTIMP, packet(0x2800, [1, 0, 0, 0], b"")),
            (rcode::FORMERR, packet(0, [0, 0, 0, 0], b"")),
            (rcode::FORMERR, packet(0, [2, 0, 0, 0], b"\x03web\x00\x00\x01\x00\x01")),
            (rcode::BADVERS, packet(0, [1, 0, 0, 1], &opt(1, 1232))),
            (rcode::FORMERR, packet(0, [1, 0, 0, 2], &two)),
            (rcode::FORMERR, packet(0, [1, 0, 0, 1], b"\x00\x00")),
            (rcode::FORMERR, packet(0, [1, 0, 0, 0], b"junk")),
        ] {
            assert_eq!(code(&packet), Some(wanted), "{packet:?}");
        }
    }
}
