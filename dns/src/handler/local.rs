//! Answers from what this node knows: our names, names of addresses, special names, and names of the
//! server itself.

use std::{net::IpAddr, time::Duration};

use rand::seq::SliceRandom;

use super::Identity;
use crate::{
    directory::{Asker, Directory},
    name::Asked,
    reply::{Owner, Reply, Section},
    request::Request,
    special::{self, Special},
    wire::{HEADER, class, ede, flag, rcode, rtype},
    zone::{Addresses, Found, Kind, Reverse, Zone, address_in, is_reverse},
};

/// A question, and all that is known here.
pub(super) struct Local<'a> {
    pub directory: &'a Directory,
    pub asker: &'a Asker,
    pub identity: &'a Identity,
    pub request: &'a Request<'a>,
    /// Whether the configuration says who is asked for the name, whatever it is.
    pub routed: bool,
}

/// Whose a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owned {
    /// Ours, and the answer is written.
    Answered,
    /// Somebody else's.
    Elsewhere,
}

/// Where the zone begins that a name is in.
#[derive(Clone, Copy)]
enum Apex {
    /// At this label of the name.
    Label(usize),
    /// A bare name is in none but the root's.
    Root,
}

/// The name of the server below the domain.
const NS: &[u8] = b"\x02ns";
const HOSTMASTER: &[u8] = b"\x0ahostmaster";
/// Nothing healthy is there now, and somebody is waiting for it.
const SOON: Duration = Duration::from_secs(1);
/// For what never changes.
const LONG: Duration = Duration::from_secs(86_400);
/// SOA fields that only secondary servers read, of which there are none: refresh, retry, expire.
const SECONDARIES: [u32; 3] = [3600, 600, 86_400];

impl Local<'_> {
    pub fn answer(&self, reply: &mut Reply<'_>) -> Owned {
        match (self.request.class, self.request.rtype) {
            // Transfers are for secondary servers.
            (_, rtype::AXFR | rtype::IXFR) => reply.rcode(rcode::REFUSED),
            (_, 0 | rtype::OPT) => reply.rcode(rcode::FORMERR),
            // What is left of RFC 1035's and later meta types is no question about records.
            (_, 128..rtype::ANY) => reply.rcode(rcode::NOTIMP),
            (class::CH, _) => self.chaos(reply),
            (class::IN, _) => return self.internet(reply),
            _ => reply.rcode(rcode::REFUSED),
        }
        Owned::Answered
    }

    fn internet(&self, reply: &mut Reply<'_>) -> Owned {
        let name = &self.request.name;
        if let Some(before) = name.labels_before(self.directory.domain()) {
            self.in_domain(before, reply);
            return Owned::Answered;
        }
        if is_reverse(name) {
            return self.reverse(reply);
        }
        self.bare(reply)
    }

    fn in_domain(&self, before: usize, reply: &mut Reply<'_>) {
        let name = &self.request.name;
        let apex = Apex::Label(before);
        let Some(zone) = &self.directory.zone else { return not_ready(reply) };
        reply.set(flag::AUTHORITATIVE);
        if before == 0 {
            return self.apex(zone, reply);
        }
        if let Some(found) = zone.find(name, before, &self.asker.scope) {
            return self.records(&found, apex, reply);
        }
        if name.part(0, before) == NS {
            self.addresses(&zone.settings().addresses, zone.settings().ttl, reply);
            return self.negative(apex, zone.settings().ttl, reply);
        }
        reply.rcode(rcode::NXDOMAIN);
        self.negative(apex, zone.settings().ttl, reply);
    }

    /// The domain itself. A service of its name has it for addresses.
    fn apex(&self, zone: &Zone, reply: &mut Reply<'_>) {
        let ttl = zone.settings().ttl;
        match self.request.rtype {
            rtype::SOA => drop(self.soa(Section::Answer, Apex::Label(0), ttl, reply)),
            rtype::NS => {
                let target = [NS, zone.domain(), &[0]].concat();
                let at = reply.record(Section::Answer, Owner::QUESTION, rtype::NS, ttl, &target);
                for address in at.iter().flat_map(|_| &zone.settings().addresses) {
                    let owner = Owner::At(at.unwrap_or(HEADER));
                    reply.address(Section::Additional, owner, ttl, *address);
                }
            }
            rtype::TXT => {
                let node = format!("node={}", zone.settings().node);
                let generation = format!("generation={}", zone.generation);
                let text = [character_string(&node), character_string(&generation)].concat();
                reply.record(Section::Answer, Owner::QUESTION, rtype::TXT, ttl, &text);
            }
            _ => {
                let name = &self.request.name;
                match zone.find(name, name.labels(), &self.asker.scope) {
                    Some(found) => self.records(&found, Apex::Label(0), reply),
                    None => self.negative(Apex::Label(0), ttl, reply),
                }
            }
        }
    }

    /// A name outside of the domain: that of a service, or somebody else's.
    fn bare(&self, reply: &mut Reply<'_>) -> Owned {
        let name = &self.request.name;
        let special = special::of(name);
        if special == Some(Special::Localhost) {
            reply.set(flag::AUTHORITATIVE);
            self.addresses(&special::LOCALHOST, LONG, reply);
            self.negative(Apex::Root, LONG, reply);
            return Owned::Answered;
        }
        let one_label = name.labels() == 1;
        let Some(zone) = &self.directory.zone else {
            // Which names are ours is not known; that of one label can be nobody else's.
            if self.routed || !(one_label || is_below_service(name)) {
                return self.otherwise(special, reply);
            }
            not_ready(reply);
            return Owned::Answered;
        };
        let scope = &self.asker.scope;
        // What only has names below it may be a domain of the internet's (`example.com`, if a service
        // is called `www.example.com`).
        let own =
            |found: &Found<'_>| found.kind != Kind::Parent || one_label || is_below_service(name);
        if let Some(found) = zone.find(name, name.labels(), scope).filter(own) {
            reply.set(flag::AUTHORITATIVE);
            self.records(&found, Apex::Root, reply);
            return Owned::Answered;
        }
        if !self.routed && (one_label || self.is_below_ours(zone)) {
            reply.set(flag::AUTHORITATIVE);
            reply.rcode(rcode::NXDOMAIN);
            self.negative(Apex::Root, zone.settings().ttl, reply);
            return Owned::Answered;
        }
        self.otherwise(special, reply)
    }

    /// Whether a name that is not there could only be one of ours.
    fn is_below_ours(&self, zone: &Zone) -> bool {
        let name = &self.request.name;
        let labels = name.labels();
        if labels > 0 && (name.label(labels - 1) == b"tasks" || is_below_service(name)) {
            return true;
        }
        let is_port = |label: &usize| name.label(*label).first() == Some(&b'_');
        let ports = (0..labels).take_while(is_port).count();
        let service = Asked::of(name.part(ports, labels)).filter(|_| ports > 0);
        service.is_some_and(|service| {
            let found = zone.find(&service, service.labels(), &self.asker.scope);
            found.is_some_and(|found| found.kind != Kind::Parent)
        })
    }

    fn otherwise(&self, special: Option<Special>, reply: &mut Reply<'_>) -> Owned {
        if special != Some(Special::Nothing) || self.routed {
            return Owned::Elsewhere;
        }
        reply.rcode(rcode::NXDOMAIN);
        self.negative(Apex::Root, self.directory.ttl(), reply);
        Owned::Answered
    }

    fn reverse(&self, reply: &mut Reply<'_>) -> Owned {
        let name = &self.request.name;
        let special = special::of(name);
        let Some(addresses) = address_in(name) else {
            // What is not written as an address has no name.
            reply.rcode(rcode::NXDOMAIN);
            self.negative(Apex::Root, self.directory.ttl(), reply);
            return Owned::Answered;
        };
        let Some(zone) = &self.directory.zone else {
            if special.is_none() || self.routed {
                return Owned::Elsewhere;
            }
            not_ready(reply);
            return Owned::Answered;
        };
        let ttl = zone.settings().ttl;
        match zone.reverse(&addresses, &self.asker.scope) {
            Reverse::Names(names) => {
                reply.set(flag::AUTHORITATIVE);
                for [own, network] in names.iter().filter(|_| self.request.rtype == rtype::PTR) {
                    let target = [own, network, zone.domain(), &[0]].concat();
                    reply.record(Section::Answer, Owner::QUESTION, rtype::PTR, ttl, &target);
                }
                self.negative(Apex::Root, ttl, reply);
            }
            Reverse::Parent => {
                reply.set(flag::AUTHORITATIVE);
                self.negative(Apex::Root, ttl, reply);
            }
            Reverse::Nobody => {
                reply.set(flag::AUTHORITATIVE);
                reply.rcode(rcode::NXDOMAIN);
                self.negative(Apex::Root, ttl, reply);
            }
            Reverse::Foreign => return self.otherwise(special, reply),
        }
        Owned::Answered
    }

    fn records(&self, found: &Found<'_>, apex: Apex, reply: &mut Reply<'_>) {
        let scope = &self.asker.scope;
        let ttl = self.directory.ttl();
        match (self.request.rtype, found.kind) {
            (rtype::A | rtype::AAAA, Kind::Itself | Kind::Tasks) => {
                let mut addresses = Addresses::default();
                found.addresses(scope, &mut addresses);
                if self.request.rtype == rtype::A {
                    self.shuffled(&mut addresses.v4, ttl, reply);
                } else {
                    self.shuffled(&mut addresses.v6, ttl, reply);
                }
            }
            (rtype::SRV, Kind::Ports { .. }) => self.srv(found, ttl, reply),
            // Everything would be an answer to nobody's question (RFC 8482).
            (rtype::ANY, _) => {
                let data = [character_string("RFC8482"), character_string("")].concat();
                reply.record(Section::Answer, Owner::QUESTION, rtype::HINFO, ttl, &data);
            }
            _ => {}
        }
        if reply.is_empty() {
            let ttl = if found.awaits(scope) { ttl.min(SOON) } else { ttl };
            self.negative(apex, ttl, reply);
        }
    }

    /// In an order that differs from answer to answer; what does not fit is left out by chance.
    fn shuffled<A: Copy + Into<IpAddr>>(
        &self,
        list: &mut [A],
        ttl: Duration,
        reply: &mut Reply<'_>,
    ) {
        if list.len() > 1 {
            list.shuffle(&mut rand::rng());
        }
        for address in list {
            reply.address(Section::Answer, Owner::QUESTION, ttl, (*address).into());
            if reply.is_truncated() {
                return;
            }
        }
    }

    fn srv(&self, found: &Found<'_>, ttl: Duration, reply: &mut Reply<'_>) {
        let mut all: Vec<_> = found.ports(&self.asker.scope).collect();
        if all.len() > 1 {
            all.shuffle(&mut rand::rng());
        }
        let mut written = Vec::with_capacity(all.len());
        for srv in &all {
            let mut data = Vec::with_capacity(64);
            // Priority, weight, port.
            for number in [0, srv.weight, srv.port] {
                data.extend(number.to_be_bytes());
            }
            let fixed = data.len();
            for part in [srv.task, srv.network, self.directory.domain(), &[0]] {
                data.extend_from_slice(part);
            }
            let at = reply.record(Section::Answer, Owner::QUESTION, rtype::SRV, ttl, &data);
            let Some(at) = at else { break };
            written.push((at + fixed, srv));
        }
        for (owner, srv) in written {
            let addresses = srv.ipv4.map(IpAddr::V4).into_iter().chain(srv.ipv6.map(IpAddr::V6));
            for address in addresses {
                reply.address(Section::Additional, Owner::At(owner), ttl, address);
            }
        }
    }

    fn addresses(&self, all: &[IpAddr], ttl: Duration, reply: &mut Reply<'_>) {
        let asked = |address: &&IpAddr| match self.request.rtype {
            rtype::A => address.is_ipv4(),
            rtype::AAAA => address.is_ipv6(),
            _ => false,
        };
        for address in all.iter().filter(asked) {
            reply.address(Section::Answer, Owner::QUESTION, ttl, *address);
        }
    }

    /// Without an answer: who says so, and for how long (RFC 2308).
    fn negative(&self, apex: Apex, ttl: Duration, reply: &mut Reply<'_>) {
        if reply.is_empty() {
            self.soa(Section::Authority, apex, ttl, reply);
        }
    }

    fn soa(
        &self,
        section: Section,
        apex: Apex,
        ttl: Duration,
        reply: &mut Reply<'_>,
    ) -> Option<usize> {
        let owner = match apex {
            Apex::Label(label) => Owner::At(HEADER + self.request.name.start(label)),
            Apex::Root => Owner::ROOT,
        };
        let domain = self.directory.domain();
        let mut data = Vec::with_capacity(2 * domain.len() + 48);
        for part in [NS, domain, &[0], HOSTMASTER, domain, &[0]] {
            data.extend_from_slice(part);
        }
        let generation = self.directory.zone.as_ref().map_or(0, |zone| zone.generation.0);
        let minimum = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        // The serial number is compared by differences, so that its lower half will do.
        data.extend((generation as u32).to_be_bytes());
        SECONDARIES.into_iter().chain([minimum]).for_each(|field| data.extend(field.to_be_bytes()));
        reply.record(section, owner, rtype::SOA, ttl, &data)
    }

    fn chaos(&self, reply: &mut Reply<'_>) {
        let text = match self.request.name.key() {
            b"\x07version\x04bind" | b"\x07version\x06server" => &self.identity.version,
            b"\x02id\x06server" | b"\x08hostname\x04bind" => &self.identity.node,
            _ => return reply.rcode(rcode::REFUSED),
        };
        reply.set(flag::AUTHORITATIVE);
        if self.request.rtype == rtype::TXT || self.request.rtype == rtype::ANY {
            let text = character_string(text);
            let nothing = Duration::ZERO;
            let at = reply.record(Section::Answer, Owner::QUESTION, rtype::TXT, nothing, &text);
            reply.class(at, class::CH);
        }
    }
}

fn not_ready(reply: &mut Reply<'_>) {
    reply.rcode(rcode::SERVFAIL);
    reply.explain(ede::NOT_READY, "weir has no state of the mesh yet");
}

/// `tasks.web`, `_80._tcp.web`: no name of the internet's is so short and begins so.
fn is_below_service(name: &Asked) -> bool {
    let labels = name.labels();
    let is_port = |label: &usize| name.label(*label).first() == Some(&b'_');
    let ports = (0..labels).take_while(is_port).count();
    (ports > 0 && labels - ports <= 1) || (name.label(0) == b"tasks" && labels == 2)
}

/// At most 255 bytes after their length.
fn character_string(text: &str) -> Vec<u8> {
    let text = &text.as_bytes()[..text.len().min(255)];
    [&[text.len() as u8], text].concat()
}
