//! The section `[link]`.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::{SourceConfig, read::absolute_path};
use crate::{
    document::{Findings, Value},
    link::{PORT, identity::Files},
};

/// The cluster link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkConfig {
    /// Where the hub listens while this node is a manager.
    pub listen: SocketAddr,
    /// The agents on managers; none: those that Swarm names. Without Swarm at least one.
    pub peers: BTreeSet<SocketAddr>,
    /// A node that is not heard for so long is not alive.
    pub silence: Duration,
    /// Certificates; `None`: Swarm's. Without Swarm and certificates there is no link.
    pub files: Option<Files>,
}

/// What was written of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the key of its name, documented in keys.rs")]
pub struct LinkSettings {
    pub listen: Option<SocketAddr>,
    pub peers: Option<BTreeSet<SocketAddr>>,
    pub silence: Option<Duration>,
    pub ca: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

impl LinkSettings {
    /// Reads each key by `get`.
    pub(super) fn read<'t, 'i: 't>(get: impl Fn(&'static str) -> Option<Value<'t, 'i>>) -> Self {
        Self {
            listen: get("link.listen").and_then(address),
            peers: get("link.peers").and_then(peers),
            silence: get("link.silence").and_then(silence),
            ca: get("link.ca").and_then(absolute_path),
            certificate: get("link.certificate").and_then(absolute_path),
            key: get("link.key").and_then(absolute_path),
        }
    }

    /// Fills in what nobody wrote.
    pub(super) fn resolve(
        &self,
        node: IpAddr,
        source: &SourceConfig,
        findings: &Findings<'_>,
    ) -> LinkConfig {
        let files = match (&self.ca, &self.certificate, &self.key) {
            (Some(ca), Some(certificate), Some(key)) => {
                let [ca, certificate, key] = [ca, certificate, key].map(PathBuf::clone);
                Some(Files { ca, certificate, key })
            }
            (None, None, None) => None,
            _ => {
                let problem = "is told only a part of its certificates";
                let remedy = "set all of link.ca, link.certificate and link.key, or none of them";
                findings.note_host("link", problem, remedy);
                None
            }
        };
        if let SourceConfig::File(_) = source {
            self.fit_hosts(files.is_some(), findings);
        }
        LinkConfig {
            listen: self.listen.unwrap_or(SocketAddr::new(node, PORT)),
            peers: self.peers.clone().unwrap_or_default(),
            silence: self.silence.unwrap_or(Duration::from_secs(1)),
            files,
        }
    }
}

impl LinkSettings {
    /// Nobody names the other hosts and gives out certificates but the operator.
    fn fit_hosts(&self, certificates: bool, findings: &Findings<'_>) {
        let named = self.peers.as_ref().is_some_and(|peers| !peers.is_empty());
        let some = [&self.ca, &self.certificate, &self.key].iter().any(|file| file.is_some());
        if certificates && !named {
            let remedy = "write the addresses of the hosts that were issued a certificate with \
                          --manager, such as [\"10.0.0.11\"]";
            findings.note_host(
                "link.peers",
                "names nobody, and there is no Swarm that would",
                remedy,
            );
        }
        if named && !some {
            let remedy = "set link.ca, link.certificate and link.key to what weir ca issue has made, \
                          or take link.peers out";
            findings.note_host("link.peers", "is set, and the link has no certificates", remedy);
        }
    }
}

fn address(value: Value<'_, '_>) -> Option<SocketAddr> {
    let example = "one such as \"10.0.0.11:7951\"";
    let address: SocketAddr = value.parse("an address and port", example)?;
    if address.port() == 0 {
        value.fault("port 0", "write a port from 1 to 65535");
        return None;
    }
    Some(address)
}

/// The port may be left out.
fn peers(value: Value<'_, '_>) -> Option<BTreeSet<SocketAddr>> {
    let peer = |value: Value<'_, '_>| {
        let text = value.string("an address such as \"10.0.0.11\"")?;
        match text.parse::<IpAddr>() {
            Ok(ip) => Some(SocketAddr::new(ip, PORT)),
            Err(_) => address(value),
        }
    };
    Some(value.list("peers = [\"10.0.0.11\", \"10.0.0.12:7951\"]")?.filter_map(peer).collect())
}

fn silence(value: Value<'_, '_>) -> Option<Duration> {
    let silence = value.duration(Duration::from_secs(60))?;
    if silence < Duration::from_millis(200) {
        value.fault("too short", "write at least \"200ms\": signs of life come four times in it");
        return None;
    }
    Some(silence)
}
