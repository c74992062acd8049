//! Which servers are asked for which names, and how they have answered.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hickory_proto::op::{Message, ResponseCode};
use tracing::{info, warn};

use super::exchange::Failure;
use crate::name::{Asked, Key, from_text, show};

/// Who is asked.
#[derive(Debug, Default)]
pub struct Routes {
    /// For every name that no other line is for.
    default: Vec<Arc<Upstream>>,
    /// By domain, the longest first.
    by_domain: Vec<(Key, Vec<Arc<Upstream>>)>,
}

/// A domain whose names are asked for elsewhere: `corp.example=10.0.0.53`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The domain.
    pub domain: Key,
    /// Who is asked.
    pub server: SocketAddr,
}

/// Why a text is no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// It has no `=`.
    #[error("no \"=\" between a domain and a server")]
    NoServer,
    /// In front of it is no domain.
    #[error("no domain in front of the \"=\"")]
    NoDomain,
    /// After it is no address.
    #[error("no address of a server after the \"=\"")]
    NoAddress,
}

/// A server that is asked.
#[derive(Debug)]
pub struct Upstream {
    /// Where.
    pub address: SocketAddr,
    health: Mutex<Health>,
    queries: AtomicU64,
    failures: AtomicU64,
}

#[derive(Clone, Debug, Default)]
struct Health {
    /// Failures since the last answer.
    in_a_row: u32,
    /// Asked last until then; after that it is tried beside another.
    down_until: Option<Instant>,
    /// How long the last answer took.
    took: Option<Duration>,
    /// What went wrong last.
    trouble: Option<String>,
}

/// A server as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamRead {
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
    pub took: Option<Duration>,
    /// What went wrong last, if it does not answer.
    pub trouble: Option<String>,
}

/// So many failures in a row mean that a server is down.
const DOWN: u32 = 2;
/// A server that is down is tried again after so long.
const TRIAL: Duration = Duration::from_secs(5);
/// The port of DNS.
pub const PORT: u16 = 53;

impl Routes {
    /// For all names, and for those of some domains. Servers at `own` addresses would ask us again,
    /// and are left out.
    pub fn new(default: &[SocketAddr], routes: &[Route], own: &[SocketAddr]) -> Self {
        let foreign = |server: &&SocketAddr| !own.contains(server);
        let upstream = |server: &SocketAddr| Arc::new(Upstream::new(*server));
        let mut by_domain = Vec::<(Key, Vec<Arc<Upstream>>)>::new();
        for route in routes.iter().filter(|route| foreign(&&route.server)) {
            let new = upstream(&route.server);
            match by_domain.iter_mut().find(|(domain, _)| *domain == route.domain) {
                Some((_, servers)) => servers.push(new),
                None => by_domain.push((route.domain.clone(), vec![new])),
            }
        }
        by_domain.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.len()));
        let default = default.iter().filter(foreign).map(upstream).collect();
        Self { default, by_domain }
    }

    /// Whether both ask the same.
    pub fn is_same(&self, other: &Self) -> bool {
        let addresses =
            |routes: &Self| routes.all().map(|(key, one)| (key, one.address)).collect::<Vec<_>>();
        addresses(self) == addresses(other)
    }

    /// The servers for a name.
    pub(super) fn of(&self, name: &[u8]) -> &[Arc<Upstream>] {
        if self.by_domain.is_empty() {
            return &self.default;
        }
        Asked::of(name).and_then(|name| self.routed(&name)).unwrap_or(&self.default)
    }

    /// Whether there are servers for this name in particular.
    pub(super) fn is_routed(&self, name: &Asked) -> bool {
        self.routed(name).is_some()
    }

    fn routed(&self, name: &Asked) -> Option<&[Arc<Upstream>]> {
        let mut lines = self.by_domain.iter();
        let line = lines.find(|(domain, _)| name.labels_before(domain).is_some())?;
        Some(&line.1)
    }

    /// With what is known of servers that were there before.
    pub(super) fn keeping(mut self, old: &Self) -> Self {
        let domains = self.by_domain.iter_mut().map(|(_, servers)| servers);
        for server in domains.chain([&mut self.default]).flatten() {
            if let Some((_, known)) = old.all().find(|(_, known)| known.address == server.address) {
                *server = known.clone();
            }
        }
        self
    }

    fn all(&self) -> impl Iterator<Item = (Key, &Arc<Upstream>)> {
        let default = self.default.iter().map(|one| (Key::default(), one));
        let routed = self
            .by_domain
            .iter()
            .flat_map(|(domain, servers)| servers.iter().map(move |one| (domain.clone(), one)));
        default.chain(routed)
    }

    /// All servers, with how they have answered.
    pub fn read(&self) -> Vec<UpstreamRead> {
        self.all().map(|(domain, upstream)| upstream.read(&domain)).collect()
    }
}

impl Upstream {
    fn new(address: SocketAddr) -> Self {
        let (health, queries, failures) = Default::default();
        Self { address, health, queries, failures }
    }

    pub(super) fn is_down(&self, now: Instant) -> bool {
        self.health().down_until.is_some_and(|until| now < until)
    }

    /// Whether the time has come to try it again; then only once.
    pub(super) fn take_trial(&self, now: Instant) -> bool {
        let mut health = self.health();
        let due = health.down_until.is_some_and(|until| now >= until);
        if due {
            health.down_until = Some(now + TRIAL);
        }
        due
    }

    /// It takes its time: others are asked first for a while.
    pub(super) fn suspect(&self) {
        self.health().down_until.get_or_insert_with(|| Instant::now() + TRIAL);
    }

    pub(super) fn judge(&self, said: &Result<Message, Failure>, took: Duration) {
        self.queries.fetch_add(1, Relaxed);
        let mut health = self.health();
        let failure = match said {
            Ok(_) => {
                if health.in_a_row >= DOWN {
                    info!(server = %self.address, "a DNS server answers again");
                }
                *health = Health { took: Some(took), ..Health::default() };
                return;
            }
            // It is there, and cannot say; another may.
            Err(Failure::Unable(code)) if *code != ResponseCode::ServFail => return,
            Err(failure) => failure,
        };
        self.failures.fetch_add(1, Relaxed);
        health.in_a_row = health.in_a_row.saturating_add(1);
        health.trouble = Some(failure.to_string());
        if health.in_a_row >= DOWN {
            if health.in_a_row == DOWN {
                warn!(server = %self.address, error = %failure, "a DNS server does not answer");
            }
            health.down_until = Some(Instant::now() + TRIAL);
        }
    }

    fn read(&self, domain: &[u8]) -> UpstreamRead {
        let health = self.health().clone();
        UpstreamRead {
            domain: show(domain),
            address: self.address,
            up: health.in_a_row < DOWN,
            queries: self.queries.load(Relaxed),
            failures: self.failures.load(Relaxed),
            took: health.took,
            trouble: health.trouble,
        }
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        // Health is sound after every one of its steps.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FromStr for Route {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, RouteError> {
        let (domain, server) = text.split_once('=').ok_or(RouteError::NoServer)?;
        let domain = from_text(domain.trim()).filter(|domain| !domain.is_empty());
        let domain = domain.ok_or(RouteError::NoDomain)?;
        let server = server_in(server.trim()).ok_or(RouteError::NoAddress)?;
        Ok(Self { domain, server })
    }
}

/// An address, with or without a port.
pub fn server_in(text: &str) -> Option<SocketAddr> {
    let ip = || text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT));
    text.parse().ok().or_else(ip).filter(|server: &SocketAddr| server.port() != 0)
}
