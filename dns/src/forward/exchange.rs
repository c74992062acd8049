//! One question to one server.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RecordType},
    serialize::binary::{BinDecodable, BinDecoder},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::Question;
use crate::wire::{EDNS_UDP, MOST, rcode};

/// Why a server did not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It said nothing in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// It was not reached.
    #[error("{0}")]
    Unreached(#[from] io::Error),
    /// It answered that it cannot say.
    #[error("it answers {0}")]
    Unable(ResponseCode),
    /// What it said is no answer.
    #[error("its answer over TCP is none to the question")]
    Nonsense,
    /// What is asked for cannot be written.
    #[error("the question cannot be written")]
    Unwritable,
}

/// One server gets so long for one question.
const PATIENCE: Duration = Duration::from_secs(2);

/// What servers say that do not know EDNS.
const UNKNOWING: [u16; 3] = [rcode::FORMERR, rcode::NOTIMP, rcode::BADVERS];

/// Asks, over TCP if the answer does not fit a datagram, and without EDNS if the server does not
/// know it.
pub(super) async fn exchange(server: SocketAddr, question: &Question) -> Result<Message, Failure> {
    let silent = |_| Failure::Silent(PATIENCE);
    timeout(PATIENCE, async {
        let with_edns = write(question, true)?;
        let mut said = by_datagram(server, &with_edns).await?;
        let mut asked = with_edns;
        if UNKNOWING.contains(&u16::from(said.metadata.response_code)) {
            asked = write(question, false)?;
            said = by_datagram(server, &asked).await?;
        }
        if said.metadata.truncation {
            said = by_stream(server, &asked).await?;
        }
        match said.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(said),
            unable => Err(Failure::Unable(unable)),
        }
    })
    .await
    .map_err(silent)?
}

/// A question as it is sent.
struct Written {
    id: u16,
    query: Query,
    bytes: Vec<u8>,
}

fn write(question: &Question, edns: bool) -> Result<Written, Failure> {
    let mut name = question.name.to_vec();
    name.push(0);
    let name = Name::read(&mut BinDecoder::new(&name)).map_err(|_| Failure::Unwritable)?;
    let mut query = Query::query(name, RecordType::from(question.rtype));
    query.set_query_class(DNSClass::IN);
    // Whoever wants to be believed must guess this and the port (RFC 5452).
    let id = rand::random();
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.checking_disabled;
    message.add_query(query.clone());
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_UDP as u16).set_dnssec_ok(question.dnssec_ok);
        message.set_edns(edns);
    }
    let bytes = message.to_vec().map_err(|_| Failure::Unwritable)?;
    Ok(Written { id, query, bytes })
}

async fn by_datagram(server: SocketAddr, asked: &Written) -> Result<Message, Failure> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A socket for each question: a port that nobody can foresee, and answers from nobody else.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(&asked.bytes).await?;
    // Larger than asked for: some send more, and mean well.
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What is no answer to this question may be a lie: the true one may still come.
        if let Some(said) = read(&buffer[..length], asked) {
            return Ok(said);
        }
    }
}

async fn by_stream(server: SocketAddr, asked: &Written) -> Result<Message, Failure> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(asked.bytes.len()).map_err(|_| Failure::Unwritable)?;
    stream.write_all(&[&length.to_be_bytes()[..], &asked.bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length).min(MOST)];
    stream.read_exact(&mut buffer).await?;
    read(&buffer, asked).filter(|said| !said.metadata.truncation).ok_or(Failure::Nonsense)
}

fn read(bytes: &[u8], asked: &Written) -> Option<Message> {
    let said = Message::from_vec(bytes).ok()?;
    let head = &said.metadata;
    let ours = head.id == asked.id
        && head.message_type == MessageType::Response
        && head.op_code == OpCode::Query;
    let repeated = match said.queries.as_slice() {
        [query] => *query == asked.query,
        // Servers that understood nothing repeat nothing.
        [] => {
            head.response_code != ResponseCode::NoError
                && head.response_code != ResponseCode::NXDomain
        }
        _ => false,
    };
    (ours && repeated).then_some(said)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use hickory_proto::{
        rr::{RData, Record, rdata},
        serialize::binary::BinEncodable,
    };

    use super::*;
    use crate::{
        counters::From,
        forward::{Answered, Freshness, Relay, Stored},
        name::from_text,
        reply::Tail,
        wire,
    };

    fn asked(kind: u16) -> Question {
        let name = from_text("www.example.net").unwrap();
        Question { name, rtype: kind, dnssec_ok: false, checking_disabled: false }
    }

    /// Answers as servers give them: a chain of aliases, a service with addresses, that there is
    /// nothing, and a text that is long.
    fn answers(asked: &Written) -> Vec<Vec<u8>> {
        let name = |text: &str| Name::from_ascii(text).unwrap();
        let alias = |from: &str, to: &str| {
            Record::from_rdata(name(from), 60, RData::CNAME(rdata::CNAME(name(to))))
        };
        let address =
            |of: &str| Record::from_rdata(name(of), 30, RData::A(rdata::A::new(198, 51, 100, 7)));
        let soa = rdata::SOA::new(name("ns.example.net."), name("h.example.net."), 1, 2, 3, 4, 5);
        let srv = rdata::SRV::new(1, 2, 80, name("a.example.net."));
        let mut chain = vec![alias("www.example.net.", "cdn.example.net.")];
        chain.push(alias("cdn.example.net.", "a.example.net."));
        chain.push(address("a.example.net."));
        let text = rdata::TXT::new(vec!["x".repeat(255), "y".repeat(255), "z".repeat(200)]);
        let own = name("www.example.net.");
        let sections = [
            (chain, vec![], vec![]),
            (
                vec![Record::from_rdata(own.clone(), 9, RData::SRV(srv))],
                vec![],
                vec![address("a.example.net.")],
            ),
            (vec![], vec![Record::from_rdata(name("example.net."), 7, RData::SOA(soa))], vec![]),
            (vec![Record::from_rdata(own, 1, RData::TXT(text))], vec![], vec![]),
        ];
        let answer = |(answers, authorities, additionals)| {
            let mut message = Message::new(asked.id, MessageType::Response, OpCode::Query);
            message.metadata.recursion_available = true;
            message.add_query(asked.query.clone());
            message.answers = answers;
            message.authorities = authorities;
            message.additionals = additionals;
            let plain = message.to_bytes().unwrap();
            message.set_edns(Edns::new());
            [plain, message.to_bytes().unwrap()]
        };
        sections.into_iter().flat_map(answer).collect()
    }

    /// What is made of an answer, if anything is: as whole as an answer must be, and to the question.
    fn check(bytes: &[u8], asked: &Written, question: &Question) -> bool {
        let Some(said) = read(bytes, asked) else { return false };
        let now = Instant::now();
        let Some(stored) = Stored::read(&said, question, now) else { return false };
        let freshness = Freshness::Fresh;
        let answered = Answered { stored: Arc::new(stored), from: From::Upstream, freshness };
        let end = wire::question_end(&asked.bytes).unwrap();
        for (limit, tail) in [(512, None), (1232, Some(Tail::default())), (wire::MOST, None)] {
            let relay = Relay { question: &asked.bytes[..end], limit, tail };
            let mut into = Vec::new();
            relay.write(&answered, now, &mut into);
            assert!(into.len() <= limit, "{} bytes of {limit}", into.len());
            assert_eq!(into[..2], asked.bytes[..2], "another id");
            assert_eq!(into[12..end], asked.bytes[12..end], "another question");
            assert!(wire::places(&into).is_some(), "not whole: {into:?} from {bytes:?}");
        }
        true
    }

    #[test]
    fn answers_of_servers_that_are_cut_or_damaged_are_survived_and_never_given_to_another_question()
    {
        let mut taken = 0;
        for kind in [wire::rtype::A, wire::rtype::SRV] {
            let question = asked(kind);
            let asked = write(&question, true).unwrap();
            for answer in answers(&asked) {
                assert!(check(&answer, &asked, &question), "{answer:?}");
                for end in 0..answer.len() {
                    check(&answer[..end], &asked, &question);
                }
                for bit in 0..answer.len() * 8 {
                    let mut damaged = answer.clone();
                    damaged[bit / 8] ^= 1 << (bit % 8);
                    taken += usize::from(check(&damaged, &asked, &question));
                }
                for at in 0..answer.len() - 1 {
                    // A pointer to everywhere: to itself, forward, in circles.
                    let mut damaged = answer.clone();
                    damaged[at] = 0xc0;
                    damaged[at + 1] = at as u8;
                    check(&damaged, &asked, &question);
                }
            }
        }
        assert!(taken > 100, "the sweep reached nothing: {taken}");
    }

    #[test]
    fn an_answer_with_another_id_or_question_is_none() {
        let question = asked(wire::rtype::A);
        let asked = write(&question, false).unwrap();
        let answer = answers(&asked).swap_remove(0);
        let mut other = answer.clone();
        other[1] ^= 1;
        assert!(!check(&other, &asked, &question));
        let mut other = answer.clone();
        other[13] = b'x';
        assert!(!check(&other, &asked, &question));
        assert!(check(&answer, &asked, &question));
    }
}
