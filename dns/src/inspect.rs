//! Asking the server from within: what `weir dns query` shows.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, Query},
    rr::{Name, Record, RecordType},
};

use crate::{
    counters::From,
    handler::{Ends, Handler, Outcome, Transport},
};

/// An answer, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// The code, in words.
    pub code: String,
    /// Where it comes from.
    pub from: From,
    /// Whether the name is ours.
    pub authoritative: bool,
    /// What was asked for, a record a line.
    pub answers: Vec<String>,
    /// Who says so.
    pub authority: Vec<String>,
    /// What may be asked for next.
    pub additional: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

/// Why nothing is answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unasked {
    /// The name is none.
    #[error("\"{0}\" is no name; write labels of at most 63 characters, with dots between")]
    Name(String),
    /// The type is none.
    #[error("\"{0}\" is no type of record; write A, AAAA, SRV, PTR, TXT or the like")]
    Type(String),
    /// Whoever is to have asked may not.
    #[error(
        "{0} may not ask: it is no container of this node that is attached to a network, and not in \
         dns.allow"
    )]
    Stranger(IpAddr),
    /// The answer cannot be read.
    #[error("the answer cannot be read: {0}")]
    Answer(String),
}

/// Asks as somebody at `from` would, without a limit of size.
pub async fn ask(
    handler: &Arc<Handler>,
    name: &str,
    kind: &str,
    from: Option<IpAddr>,
) -> Result<Said, Unasked> {
    let packet = packet(name, kind)?;
    let client = from.unwrap_or(Ipv4Addr::LOCALHOST.into());
    let ends = Ends { client: SocketAddr::new(client, 1), transport: Transport::Tcp };
    let begun = Instant::now();
    let mut reply = Vec::new();
    let from = match handler.answer(&packet, ends, begun, &mut reply) {
        Outcome::Reply(from) => from,
        Outcome::Nothing(_) => return Err(Unasked::Stranger(client)),
        Outcome::Forward(pending) => {
            let said = handler.forwarder.resolve(&pending.question).await;
            handler.complete(&pending, &said, Instant::now(), &mut reply);
            said.from
        }
    };
    let took = begun.elapsed();
    let message = Message::from_vec(&reply).map_err(|error| Unasked::Answer(error.to_string()))?;
    let lines = |records: &[Record]| records.iter().map(ToString::to_string).collect();
    Ok(Said {
        code: message.metadata.response_code.to_string(),
        from,
        authoritative: message.metadata.authoritative,
        answers: lines(&message.answers),
        authority: lines(&message.authorities),
        additional: lines(&message.additionals),
        took,
    })
}

fn packet(name: &str, kind: &str) -> Result<Vec<u8>, Unasked> {
    let no_name = || Unasked::Name(name.to_owned());
    let mut asked = Name::from_ascii(name).map_err(|_| no_name())?;
    asked.set_fqdn(true);
    let kind: RecordType =
        kind.to_uppercase().parse().map_err(|_| Unasked::Type(kind.to_owned()))?;
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(asked, kind));
    message.set_edns(Edns::new());
    message.to_vec().map_err(|_| no_name())
}
