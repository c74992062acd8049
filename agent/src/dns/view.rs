//! The JSON of `/api/v1/dns…`.

use std::{collections::BTreeMap, net::SocketAddr, time::Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weir_dns::inspect::Said;

use super::Dns;

/// `/api/v1/dns/query`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QueryView {
    /// The code, in words.
    pub code: String,
    /// `local`, `cache`, `stale` or `upstream`.
    pub source: String,
    /// Whether the name is ours.
    pub authoritative: bool,
    /// Records, one a line, in the form of zone files.
    pub answers: Vec<String>,
    /// The same.
    pub authority: Vec<String>,
    /// The same.
    pub additional: Vec<String>,
    /// How long it took.
    pub milliseconds: f64,
}

/// `/api/v1/dns/records`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RecordsView {
    /// The snapshot; `None` while there is none.
    pub generation: Option<u64>,
    /// One line a record.
    pub records: String,
}

/// `/api/v1/dns/cache`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheView {
    /// Bytes of answers, roughly.
    pub bytes: usize,
    /// The most there may be.
    pub capacity: usize,
    /// Questions that were answered from it.
    pub hits: u64,
    /// Questions that were not.
    pub misses: u64,
    /// What is in it.
    pub entries: Vec<CachedView>,
}

/// An answer of somebody else's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CachedView {
    /// The name.
    pub name: String,
    /// The number of the type.
    pub rtype: u16,
    /// The number of the code.
    pub rcode: u16,
    /// Records in it.
    pub records: usize,
    /// Seconds that are left; negative when its time is over.
    pub ttl: i64,
    /// Times that it was given.
    pub hits: u32,
}

/// `/api/v1/dns/upstreams`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpstreamsView {
    /// Who is asked.
    pub upstreams: Vec<UpstreamView>,
}

/// A server that is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpstreamView {
    /// The domain it is asked for; `.`: all others.
    pub domain: String,
    /// Where it is.
    pub address: SocketAddr,
    /// Whether it answers.
    pub up: bool,
    /// Questions to it.
    pub queries: u64,
    /// Those without an answer.
    pub failures: u64,
    /// How long the last answer took.
    pub milliseconds: Option<f64>,
    /// What went wrong last.
    pub trouble: Option<String>,
}

/// `/api/v1/dns`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DnsView {
    /// Addresses, with why it is not listened there.
    pub listen: BTreeMap<SocketAddr, Option<String>>,
    /// What there is to listen at and is not there.
    pub missing: Vec<String>,
    /// The snapshot; `None` while there is none.
    pub generation: Option<u64>,
    /// Names.
    pub names: usize,
    /// Containers that may ask.
    pub askers: usize,
}

impl From<Said> for QueryView {
    fn from(said: Said) -> Self {
        Self {
            code: said.code,
            source: said.from.as_str().to_owned(),
            authoritative: said.authoritative,
            answers: said.answers,
            authority: said.authority,
            additional: said.additional,
            milliseconds: said.took.as_secs_f64() * 1e3,
        }
    }
}

impl Dns {
    /// How the server is.
    pub fn view(&self) -> DnsView {
        let directory = self.handler.directory.load();
        let zone = directory.zone.as_ref();
        DnsView {
            listen: self.server.bound(),
            missing: self.places().missing.iter().map(ToString::to_string).collect(),
            generation: zone.map(|zone| zone.generation.0),
            names: zone.map_or(0, |zone| zone.len()),
            askers: directory.askers(),
        }
    }

    /// All records.
    pub fn records(&self) -> RecordsView {
        let zone = self.handler.directory.load().zone.clone();
        RecordsView {
            generation: zone.as_ref().map(|zone| zone.generation.0),
            records: zone.map(|zone| zone.dump()).unwrap_or_default(),
        }
    }

    /// What is remembered of others' answers.
    pub fn cache(&self) -> CacheView {
        let read = self.handler.forwarder.read_cache(Instant::now());
        let entries = read.names.into_iter().map(|known| CachedView {
            name: known.name,
            rtype: known.rtype,
            rcode: known.rcode,
            records: known.records,
            ttl: known.ttl,
            hits: known.hits,
        });
        CacheView {
            bytes: read.bytes,
            capacity: read.capacity,
            hits: read.hits,
            misses: read.misses,
            entries: entries.collect(),
        }
    }

    /// Who is asked.
    pub fn upstreams(&self) -> UpstreamsView {
        let read = self.handler.forwarder.routes().read();
        let upstreams = read.into_iter().map(|one| UpstreamView {
            domain: one.domain,
            address: one.address,
            up: one.up,
            queries: one.queries,
            failures: one.failures,
            milliseconds: one.took.map(|took| took.as_secs_f64() * 1e3),
            trouble: one.trouble,
        });
        UpstreamsView { upstreams: upstreams.collect() }
    }
}
