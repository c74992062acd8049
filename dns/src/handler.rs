//! From a packet to its answer, or to the question that others must be asked. Does no I/O.

mod local;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use arc_swap::ArcSwap;

use self::local::{Local, Owned};
use crate::{
    counters::{Counters, Drop, From},
    directory::{Asker, Directory},
    forward::{Answered, Forwarder, Question, Relay},
    reply::{Reply, Tail},
    request::{Bad, Request},
    wire::{MOST, PLAIN_UDP, ede, flag, rcode},
};

/// What a question came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A connection.
    Tcp,
}

/// Who this server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The node's name: what `id.server` and NSID say.
    pub node: String,
    /// What `version.bind` says.
    pub version: String,
}

/// What all sockets answer from.
pub struct Handler {
    /// Names and askers, swapped whole.
    pub directory: ArcSwap<Directory>,
    /// Who is asked for other names.
    pub forwarder: Arc<Forwarder>,
    /// What is counted.
    pub counters: Counters,
    /// Who this is.
    pub identity: Identity,
}

/// What becomes of a packet.
#[derive(Debug)]
pub enum Outcome {
    /// The answer has been written; from this it comes.
    Reply(From),
    /// Somebody else must be asked.
    Forward(Box<Pending>),
    /// Nothing is answered.
    Nothing(Drop),
}

/// A question under way, with all that its answer needs.
#[derive(Debug)]
pub struct Pending {
    /// What is asked.
    pub question: Question,
    packet: Vec<u8>,
    limit: usize,
    tail: Option<Tail>,
}

/// The ends of a question.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Who asks.
    pub client: SocketAddr,
    /// By what.
    pub transport: Transport,
}

impl Handler {
    /// Answers from this until something else is swapped in.
    pub fn new(directory: Directory, forwarder: Arc<Forwarder>, identity: Identity) -> Self {
        let directory = ArcSwap::from_pointee(directory);
        Self { directory, forwarder, counters: Counters::default(), identity }
    }

    /// Answers `packet` into `into` if that takes nobody else.
    pub fn answer(&self, packet: &[u8], ends: Ends, now: Instant, into: &mut Vec<u8>) -> Outcome {
        let directory = self.directory.load();
        if ends.client.port() == 0 || !is_unicast(ends.client.ip()) {
            return self.nothing(Drop::Malformed);
        }
        match directory.asker(ends.client.ip()) {
            Some(asker) => self.answer_to(packet, (&directory, &asker), ends, now, into),
            None => self.nothing(Drop::NotAllowed),
        }
    }

    /// The same for somebody who is known already.
    pub fn answer_to(
        &self,
        packet: &[u8],
        (directory, asker): (&Directory, &Asker),
        ends: Ends,
        now: Instant,
        into: &mut Vec<u8>,
    ) -> Outcome {
        let tcp = ends.transport == Transport::Tcp;
        let request = match Request::read(packet) {
            Ok(request) => request,
            Err(bad) => return self.reject(packet, bad, into),
        };
        self.counters.query(request.rtype, tcp);
        let limit = if tcp { MOST } else { request.udp_limit() };
        let tail = request.edns.map(|edns| Tail {
            dnssec_ok: edns.dnssec_ok,
            nsid: edns.nsid.then(|| self.identity.node.clone().into_bytes()),
            ede: None,
        });
        let routed = self.forwarder.has_route(&request.name);
        let useful = asker.forward && self.forwarder.is_useful(&request.name);
        let mut reply = Reply::begin(into, packet, Some(request.question_end), limit, tail.clone());
        if useful {
            reply.set(flag::RECURSION_AVAILABLE);
        }
        let identity = &self.identity;
        let local = Local { directory, asker, identity, request: &request, routed };
        if local.answer(&mut reply) == Owned::Answered {
            return self.finish(reply);
        }
        if !useful && asker.forward {
            reply.rcode(rcode::SERVFAIL);
            reply.explain(ede::NO_REACHABLE_AUTHORITY, "no server is known that could be asked");
            return self.finish(reply);
        }
        let question = Question::of(&request);
        let looping = self.forwarder.is_loop(&question, ends.client);
        if looping {
            self.counters.drop(Drop::Loop);
        }
        if looping || !useful {
            reply.rcode(rcode::REFUSED);
            reply.explain(ede::PROHIBITED, "this is not looked up for whoever asks");
            return self.finish(reply);
        }
        if let Some(known) = self.forwarder.look(&question, now) {
            self.relay(&Relay::of(&request, limit, tail), &known, now, into);
            return Outcome::Reply(known.from);
        }
        if !request.recursion_desired() {
            reply.rcode(rcode::REFUSED);
            return self.finish(reply);
        }
        let packet = packet[..request.question_end].to_vec();
        Outcome::Forward(Box::new(Pending { question, packet, limit, tail }))
    }

    /// Writes what somebody else has said.
    pub fn complete(&self, pending: &Pending, said: &Answered, now: Instant, into: &mut Vec<u8>) {
        let Pending { packet, limit, tail, .. } = pending;
        let relay = Relay { question: packet, limit: *limit, tail: tail.clone() };
        self.relay(&relay, said, now, into);
    }

    /// Writes that there is no room for the question.
    pub fn refuse(&self, pending: &Pending, why: Drop, into: &mut Vec<u8>) {
        self.counters.drop(why);
        let Pending { packet, limit, tail, .. } = pending;
        let mut reply = Reply::begin(into, packet, Some(packet.len()), *limit, tail.clone());
        reply.set(flag::RECURSION_AVAILABLE);
        reply.rcode(rcode::REFUSED);
        reply.explain(ede::PROHIBITED, "too many questions are under way");
        self.finish(reply);
    }

    fn relay(&self, relay: &Relay<'_>, said: &Answered, now: Instant, into: &mut Vec<u8>) {
        let written = relay.write(said, now, into);
        if written.truncated {
            self.counters.truncate();
        }
        self.counters.answer(said.from, written.rcode);
    }

    /// A packet that is no question, or none that is understood.
    fn reject(&self, packet: &[u8], bad: Bad, into: &mut Vec<u8>) -> Outcome {
        match bad {
            Bad::Short => self.nothing(Drop::Malformed),
            Bad::Response => self.nothing(Drop::Response),
            Bad::Rejected { rcode, question_end, edns } => {
                let tail = edns.then(Tail::default);
                let mut reply = Reply::begin(into, packet, question_end, PLAIN_UDP, tail);
                reply.rcode(rcode);
                self.finish(reply)
            }
        }
    }

    fn finish(&self, reply: Reply<'_>) -> Outcome {
        if reply.is_truncated() {
            self.counters.truncate();
        }
        self.counters.answer(From::Local, reply.finish());
        Outcome::Reply(From::Local)
    }

    fn nothing(&self, why: Drop) -> Outcome {
        self.counters.drop(why);
        Outcome::Nothing(why)
    }
}

/// What an answer can be sent to.
fn is_unicast(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => !(v4.is_broadcast() || v4.is_multicast() || v4.is_unspecified()),
        IpAddr::V6(v6) => !(v6.is_multicast() || v6.is_unspecified()),
    }
}
