//! Names that are not ours: who is asked for them, and what is remembered of the answers.

mod cache;
mod exchange;
mod flight;
mod race;
mod relay;
mod resolv;
mod routes;
mod stored;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::time::timeout;

pub use cache::{CacheRead, CachedName};
pub use relay::{Relay, Written};
pub use resolv::servers_in;
pub use routes::{PORT, Route, RouteError, Routes, UpstreamRead, server_in};
pub use stored::{Answered, Freshness, Stored};

use self::{cache::Cache, flight::Flights, routes::Upstream};
use crate::{
    counters::From,
    name::{Asked, Key},
    request::Request,
    wire::flag,
};

/// How much is remembered, and how long one waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of answers that are remembered.
    pub cache: usize,
    /// An answer whose time is over is given for so long when nobody else answers.
    pub stale: Duration,
    /// The next server is asked as well when one has not answered for so long.
    pub failover: Duration,
    /// Everything together takes at most so long.
    pub deadline: Duration,
}

/// What others are asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// The name in lower case.
    pub name: Key,
    /// The type.
    pub rtype: u16,
    /// Signatures are wanted, too.
    pub dnssec_ok: bool,
    /// Whoever asks validates by itself.
    pub checking_disabled: bool,
}

/// Asks other servers.
#[derive(Debug)]
pub struct Forwarder {
    settings: Settings,
    routes: ArcSwap<Routes>,
    cache: Mutex<Cache>,
    flights: Flights,
}

/// A stale answer is given at once after nobody has answered, for so long (RFC 8767 section 5).
const RECHECK: Duration = Duration::from_secs(30);
/// While there is a stale answer, a fresh one is waited for so long (RFC 8767 section 5).
const PATIENCE: Duration = Duration::from_millis(1800);

impl Default for Settings {
    fn default() -> Self {
        Self {
            cache: 16 << 20,
            stale: Duration::from_secs(3600),
            failover: Duration::from_millis(400),
            deadline: Duration::from_millis(4500),
        }
    }
}

impl Question {
    /// What a request asks.
    pub fn of(request: &Request<'_>) -> Self {
        Self {
            name: request.name.key().into(),
            rtype: request.rtype,
            dnssec_ok: request.edns.is_some_and(|edns| edns.dnssec_ok),
            checking_disabled: request.flags() & flag::CHECKING_DISABLED != 0,
        }
    }
}

impl Forwarder {
    /// Knows nobody yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            routes: ArcSwap::from_pointee(Routes::default()),
            cache: Mutex::new(Cache::new(settings.cache, settings.stale)),
            flights: Flights::default(),
        }
    }

    /// Asks these from now on. What is known of servers that stay is kept.
    pub fn set_routes(&self, routes: Routes) {
        let old = self.routes.load();
        self.routes.store(Arc::new(routes.keeping(&old)));
    }

    /// Who is asked.
    pub fn routes(&self) -> Arc<Routes> {
        self.routes.load_full()
    }

    /// Whether anybody could be asked for a name.
    pub fn is_useful(&self, name: &Asked) -> bool {
        !self.routes.load().of(name.key()).is_empty()
    }

    /// Whether the configuration names servers for this name in particular.
    pub fn has_route(&self, name: &Asked) -> bool {
        self.routes.load().is_routed(name)
    }

    /// Whether a question comes from one of the servers that are being asked the very same.
    pub fn is_loop(&self, question: &Question, client: SocketAddr) -> bool {
        let asked = |upstream: &Arc<Upstream>| is_same_host(upstream.address.ip(), client.ip());
        let routes = self.routes.load();
        routes.of(&question.name).iter().any(asked) && self.flights.is_under_way(question)
    }

    /// What is remembered and may be given without asking. What is asked for often and whose time is
    /// nearly over is asked for again meanwhile.
    pub fn look(self: &Arc<Self>, question: &Question, now: Instant) -> Option<Answered> {
        let (answered, refresh) = self.cache().look(question, now)?;
        if refresh && !self.flights.is_under_way(question) {
            // Outside of a runtime there is nobody who could ask.
            if tokio::runtime::Handle::try_current().is_ok() {
                drop(self.flights.join(self, question));
            }
        }
        Some(answered)
    }

    /// Asks, together with all who ask the same.
    pub async fn resolve(self: &Arc<Self>, question: &Question) -> Answered {
        let stale = self.cache().stale(question, Instant::now());
        let wait = if stale.is_some() { PATIENCE } else { self.settings.deadline * 2 };
        let said = timeout(wait, self.flights.join(self, question)).await;
        match (said, stale) {
            (Ok(Some(said)), None) => said,
            (Ok(Some(said)), Some(_)) if !said.stored.is_failure() => said,
            (_, Some(stale)) => {
                self.cache().recheck_later(question, Instant::now() + RECHECK);
                stale
            }
            (_, None) => Answered::failure(question),
        }
    }

    /// Asks servers until one answers, and remembers what it said.
    async fn fetch(&self, question: &Question) -> Answered {
        let upstreams = self.routes.load().of(&question.name).to_vec();
        let said = race::race(&upstreams, question, &self.settings).await;
        let stored = match said {
            Ok(message) => Stored::read(&message, question, Instant::now()),
            Err(_) => None,
        };
        let failed = stored.is_none();
        let stored = stored.unwrap_or_else(|| Stored::failure(question, Instant::now()));
        let stored = Arc::new(stored);
        self.cache().put(question, stored.clone());
        let from = if failed { From::Local } else { From::Upstream };
        Answered { stored, from, freshness: Freshness::Fresh }
    }

    /// What is remembered.
    pub fn read_cache(&self, now: Instant) -> CacheRead {
        self.cache().read(now)
    }

    /// Forgets everything.
    pub fn flush(&self) {
        self.cache().clear();
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // A cache is sound after every one of its steps.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Servers on this host answer from another loopback address than they are asked at.
fn is_same_host(upstream: IpAddr, client: IpAddr) -> bool {
    let (upstream, client) = (upstream.to_canonical(), client.to_canonical());
    upstream == client || (upstream.is_loopback() && client.is_loopback())
}
