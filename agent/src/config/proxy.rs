//! The section `[proxy]`.

use std::time::Duration;

use super::read::switch;
use crate::document::Value;

/// The userspace proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// TCP and UDP port on which nodes hand over to each other.
    pub relay_port: u16,
    /// Threads; `None`: one a core.
    pub workers: Option<usize>,
    /// How long a task may take to accept a connection.
    pub connect_timeout: Duration,
    /// Silence after which a TCP connection is probed.
    pub keepalive: Duration,
    /// How long data may stay unacknowledged.
    pub user_timeout: Duration,
    /// Most TCP connections; `None`: as many as the limit of open files lets.
    pub connections: Option<usize>,
    /// Most UDP sessions of one port on one worker.
    pub udp_sessions: usize,
    /// Whether one listener serves all TCP ports, if the kernel lets it.
    pub sk_lookup: bool,
    /// Whether clients of an address family that no task of a service has are served by the proxy, where
    /// the kernel serves the other.
    pub other_family: bool,
    /// How long connections may go on after an upgrade.
    pub drain_timeout: Duration,
}

/// What was written of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the key of its name, documented in keys.rs")]
pub struct ProxySettings {
    pub relay_port: Option<u16>,
    pub workers: Option<usize>,
    pub connect_timeout: Option<Duration>,
    pub keepalive: Option<Duration>,
    pub user_timeout: Option<Duration>,
    pub connections: Option<usize>,
    pub udp_sessions: Option<usize>,
    pub sk_lookup: Option<bool>,
    pub other_family: Option<bool>,
    pub drain_timeout: Option<Duration>,
}

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// More than any host has cores or files for.
const MOST_WORKERS: u64 = 1024;
const MOST: u64 = 1 << 24;

impl ProxySettings {
    /// Reads each key by `get`.
    pub(super) fn read<'t, 'i: 't>(get: impl Fn(&'static str) -> Option<Value<'t, 'i>>) -> Self {
        let number = |path, most| get(path).and_then(|value| value.number(1..=most));
        let count = |path, most| number(path, most).and_then(|it| usize::try_from(it).ok());
        let time = |path, most| get(path).and_then(|value| value.duration(most));
        Self {
            relay_port: number("proxy.relay_port", 65535).and_then(|it| u16::try_from(it).ok()),
            workers: count("proxy.workers", MOST_WORKERS),
            connect_timeout: time("proxy.connect_timeout", MINUTE),
            keepalive: time("proxy.keepalive", DAY),
            user_timeout: time("proxy.user_timeout", DAY),
            connections: count("proxy.connections", MOST),
            udp_sessions: count("proxy.udp_sessions", MOST),
            sk_lookup: get("proxy.sk_lookup").and_then(switch),
            other_family: get("proxy.other_family").and_then(switch),
            drain_timeout: time("proxy.drain_timeout", DAY),
        }
    }

    /// Fills in what nobody wrote.
    pub(super) fn resolve(&self) -> ProxyConfig {
        ProxyConfig {
            relay_port: self.relay_port.unwrap_or(7952),
            workers: self.workers,
            connect_timeout: self.connect_timeout.unwrap_or(Duration::from_secs(3)),
            keepalive: self.keepalive.unwrap_or(MINUTE),
            user_timeout: self.user_timeout.unwrap_or(2 * MINUTE),
            connections: self.connections,
            udp_sessions: self.udp_sessions.unwrap_or(16_384),
            sk_lookup: self.sk_lookup.unwrap_or(true),
            other_family: self.other_family.unwrap_or(true),
            drain_timeout: self.drain_timeout.unwrap_or(60 * MINUTE),
        }
    }
}
