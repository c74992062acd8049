//! What a host needs of others: certificates that are good, and servers that know names.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, SystemTime},
};

use rustls::{CertificateError, Error};

use super::{Line, line};
use crate::{
    config::Config,
    health::Condition,
    link::{
        identity::{Files, Identity},
        tls,
    },
};

/// Certificates of `weir ca` last for years; whoever hears of it now has time for another.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// A server that takes longer is no use to whoever waits for a connection.
const PATIENCE: Duration = Duration::from_secs(2);

/// The certificate of the link, where the operator names one. Swarm's own are dockerd's business.
pub(super) fn certificates(config: &Config) -> Option<Line> {
    let files = config.link.files.as_ref()?;
    let (condition, found, remedy) = judged(files, SystemTime::now());
    Some(line("certificate", condition, found, &remedy))
}

fn judged(files: &Files, now: SystemTime) -> (Condition, String, String) {
    let path = files.certificate.display();
    let identity = match files.read() {
        Ok(identity) => identity,
        Err(error) => {
            let remedy = "set link.ca, link.certificate and link.key to files that `weir ca` made and \
                          the agent may read";
            return (Condition::Degraded, error.to_string(), remedy.to_owned());
        }
    };
    let who = &identity.who;
    let issue = format!("weir ca issue --node {} makes another; is the clock right?", who.node);
    match who.until.duration_since(now) {
        Err(_) => {
            (Condition::Degraded, format!("{path} has expired: no other node listens"), issue)
        }
        Ok(_) if let Some(wrong) = mixed(files, &identity, now) => {
            let remedy = "give link.ca, link.certificate and link.key the files that `weir ca issue` made \
                          together with its weir-ca.crt";
            (Condition::Degraded, wrong, remedy.to_owned())
        }
        Ok(left) => {
            let days = left.as_secs() / (24 * 3600);
            let found = format!("{path} is that of {}, good for {days} days", who.node);
            match left < SOON {
                true => (Condition::Degraded, found, issue),
                false => (Condition::Ok, found, String::new()),
            }
        }
    }
}

/// What is wrong with files each of which is good.
fn mixed(files: &Files, identity: &Identity, now: SystemTime) -> Option<String> {
    let Files { ca, certificate, key } = files;
    let (ca, certificate, key) = (ca.display(), certificate.display(), key.display());
    match tls::holds_together(identity, now).err()? {
        Error::InconsistentKeys(_) => Some(format!("{key} is not the key of {certificate}")),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => Some(format!(
            "{certificate} was not issued by the authority of {ca}: other nodes refuse it"
        )),
        error => Some(format!("{certificate}: {error}: other nodes refuse it")),
    }
}

/// The servers for other names, where they are written down and somebody is served.
pub(super) fn name_servers(config: &Config) -> Option<Line> {
    let servers = config.dns.upstreams.as_ref().filter(|_| config.dns.wanted)?;
    let name = "name-servers";
    let silent: Vec<String> =
        servers.iter().filter(|server| !answers(**server)).map(ToString::to_string).collect();
    if silent.is_empty() {
        let found = format!("{} answer", servers.len());
        return Some(line(name, Condition::Ok, found, ""));
    }
    let found = format!("no answer from {}", silent.join(", "));
    let remedy = "names of services are answered all the same; set dns.upstreams to servers that this host \
                  reaches, or leave it out for those of its resolv.conf";
    Some(line(name, Condition::Degraded, found, remedy))
}

/// Whether anything comes back when the root's name servers are asked for.
fn answers(server: SocketAddr) -> bool {
    // RFC 1035 section 4.1: a head with one question and the wish for recursion; the root, NS, IN.
    const QUESTION: [u8; 17] = [0x77, 0x65, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let asked = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(&QUESTION)?;
        socket.recv(&mut [0; 512])
    });
    asked.is_ok()
}
