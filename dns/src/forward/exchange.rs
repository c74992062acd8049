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
