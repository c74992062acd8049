//! `weir.*` labels of services and containers.

use std::{collections::BTreeSet, time::Duration};

use super::{Labels, Note};
use crate::{
    health::labels::{self as health, Wrong, duration},
    proxied::{FlowLimits, HeaderVersion, Prefix, Proxied},
    service::{Balance, Timeouts},
};

/// What the labels of one service or container ask for; `None` where they say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `weir.enable`: whether the mesh serves the service.
    pub enable: Option<bool>,
    /// `weir.balance`.
    pub balance: Option<Balance>,
    /// `weir.weight`: 0 to 1000.
    pub weight: Option<u16>,
    /// `weir.idle-timeout.tcp`: of established connections.
    pub idle_tcp: Option<Duration>,
    /// `weir.idle-timeout.udp`: of flows where both sides have spoken.
    pub idle_udp: Option<Duration>,
    /// `weir.proxy-protocol`.
    pub header: Option<HeaderVersion>,
    /// `weir.proxy-protocol.accept`: networks, separated by commas.
    pub trusted: Option<Vec<Prefix>>,
    /// `weir.limit.…`.
    pub limits: FlowLimits,
    /// `weir.health…` and `weir.eject…`.
    pub health: health::Wishes,
}

const MAX_WEIGHT: u16 = 1000;
const MAX_LIMIT: u32 = 1 << 24;
const MAX_IDLE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Labels that are planned for, and that nothing heeds today.
const NOT_YET: &[&str] =
    &["weir.affinity", "weir.locality", "weir.allow", "weir.deny", "weir.return"];
const HEEDED: &[&str] = &[
    "weir.enable",
    "weir.balance",
    "weir.weight",
    "weir.idle-timeout.tcp",
    "weir.idle-timeout.udp",
    "weir.proxy-protocol",
    "weir.proxy-protocol.accept",
    "weir.limit.connections",
    "weir.limit.per-client",
    "weir.limit.per-task",
    "weir.limit.rate",
];

impl Wishes {
    /// Reads the labels of `about` (`service web`). A label that is not taken is as if it were not
    /// there, and is noted.
    pub fn read(labels: &Labels, about: &str, notes: &mut BTreeSet<Note>) -> Self {
        let mut wishes = Self::default();
        for (name, value) in labels {
            if let Err((problem, remedy)) = wishes.take(name, value) {
                notes.insert(Note {
                    about: about.to_owned(),
                    key: name.clone(),
                    value: Some(value.clone()),
                    problem,
                    remedy,
                });
            }
        }
        wishes
    }

    /// These, and where they say nothing, those.
    pub fn or(self, other: Self) -> Self {
        Self {
            enable: self.enable.or(other.enable),
            balance: self.balance.or(other.balance),
            weight: self.weight.or(other.weight),
            idle_tcp: self.idle_tcp.or(other.idle_tcp),
            idle_udp: self.idle_udp.or(other.idle_udp),
            header: self.header.or(other.header),
            trusted: self.trusted.or(other.trusted),
            limits: FlowLimits {
                connections: self.limits.connections.or(other.limits.connections),
                per_client: self.limits.per_client.or(other.limits.per_client),
                per_task: self.limits.per_task.or(other.limits.per_task),
                rate: self.limits.rate.or(other.limits.rate),
            },
            health: self.health.or(other.health),
        }
    }

    /// What only the proxy can do.
    pub fn proxied(&self) -> Proxied {
        let trusted = self.trusted.clone().unwrap_or_default();
        Proxied { header: self.header, trusted, limits: self.limits }
    }

    /// The timeouts with these wishes in place.
    pub fn timeouts(&self, defaults: Timeouts) -> Timeouts {
        Timeouts {
            tcp_established: self.idle_tcp.unwrap_or(defaults.tcp_established),
            udp_both_ways: self.idle_udp.unwrap_or(defaults.udp_both_ways),
            ..defaults
        }
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), Wrong> {
        if let Some(taken) = self.health.take(name, value) {
            return taken;
        }
        match name {
            "weir.enable" => self.enable = Some(switch(value)?),
            "weir.balance" => self.balance = Some(balance(value)?),
            "weir.weight" => self.weight = Some(weight(value)?),
            "weir.idle-timeout.tcp" => self.idle_tcp = Some(idle(value)?),
            "weir.idle-timeout.udp" => self.idle_udp = Some(idle(value)?),
            "weir.proxy-protocol" => self.header = Some(header(value)?),
            "weir.proxy-protocol.accept" => self.trusted = Some(networks(value)?),
            "weir.limit.connections" => self.limits.connections = Some(limit(value)?),
            "weir.limit.per-client" => self.limits.per_client = Some(limit(value)?),
            "weir.limit.per-task" => self.limits.per_task = Some(limit(value)?),
            "weir.limit.rate" => self.limits.rate = Some(limit(value)?),
            _ if NOT_YET.contains(&name) || NOT_YET.iter().any(|known| below(name, known)) => {
                return Err(wrong("not supported yet", "take the label away: it does nothing"));
            }
            _ => {
                let known = [HEEDED, &health::KNOWN].concat().join(", ");
                return Err(wrong("unknown label", &format!("write one of {known}")));
            }
        }
        Ok(())
    }
}

fn below(name: &str, known: &str) -> bool {
    name.strip_prefix(known).is_some_and(|rest| rest.starts_with('.'))
}

fn wrong(problem: &str, remedy: &str) -> Wrong {
    (problem.to_owned(), remedy.to_owned())
}

fn switch(value: &str) -> Result<bool, Wrong> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(wrong("neither true nor false", "write true or false")),
    }
}

fn balance(value: &str) -> Result<Balance, Wrong> {
    let all = [Balance::RoundRobin, Balance::Random, Balance::Maglev];
    match all.into_iter().find(|balance| balance.as_str() == value) {
        Some(balance) => Ok(balance),
        None if value == "least-connections" => {
            Err(wrong("not supported yet", "write round-robin, random or maglev"))
        }
        None => Err(wrong("no such choice", "write round-robin, random or maglev")),
    }
}

fn header(value: &str) -> Result<HeaderVersion, Wrong> {
    match value {
        "v1" => Ok(HeaderVersion::V1),
        "v2" => Ok(HeaderVersion::V2),
        _ => Err(wrong("no such version", "write v1 or v2")),
    }
}

fn networks(value: &str) -> Result<Vec<Prefix>, Wrong> {
    let all = value.split(',').map(|text| {
        let example = "write networks such as 10.0.0.0/8, separated by commas";
        text.trim()
            .parse()
            .map_err(|error| (format!("{}: {error}", text.trim()), example.to_owned()))
    });
    all.collect()
}

fn limit(value: &str) -> Result<u32, Wrong> {
    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| wrong("not a limit", "write a whole number from 1 to 16777216"))
}

fn weight(value: &str) -> Result<u16, Wrong> {
    let weight = value.parse().ok().filter(|weight| *weight <= MAX_WEIGHT);
    weight.ok_or_else(|| wrong("not a weight", "write a whole number from 0 to 1000"))
}

fn idle(value: &str) -> Result<Duration, Wrong> {
    let time = duration(value).filter(|time| !time.is_zero() && *time <= MAX_IDLE);
    time.ok_or_else(|| wrong("not a time", "write one such as 30s, 5m or 2h, at most 720h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(labels: &[(&str, &str)]) -> (Wishes, Vec<String>) {
        let labels =
            labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut notes = BTreeSet::new();
        let wishes = Wishes::read(&labels, "service web", &mut notes);
        (wishes, notes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn labels_that_the_mesh_heeds_are_taken() {
        let (wishes, notes) = read(&[
            ("weir.balance", "maglev"),
            ("weir.weight", "0"),
            ("weir.enable", "false"),
            ("weir.idle-timeout.tcp", "3h"),
            ("weir.idle-timeout.udp", "500ms"),
            ("weir.health", "tcp"),
            ("weir.proxy-protocol", "v2"),
            ("weir.proxy-protocol.accept", "10.0.0.0/8, fd00::1"),
            ("weir.limit.rate", "100"),
        ]);
        assert_eq!(notes, [] as [&str; 0]);
        let mut health = health::Wishes::default();
        health.take("weir.health", "tcp").unwrap().unwrap();
        let expected = Wishes {
            enable: Some(false),
            balance: Some(Balance::Maglev),
            weight: Some(0),
            idle_tcp: Some(Duration::from_secs(3 * 3600)),
            idle_udp: Some(Duration::from_millis(500)),
            header: Some(HeaderVersion::V2),
            trusted: Some(vec!["10.0.0.0/8".parse().unwrap(), "fd00::1".parse().unwrap()]),
            limits: FlowLimits { rate: Some(100), ..FlowLimits::default() },
            health,
        };
        assert_eq!(wishes, expected);
    }

    #[test]
    fn a_wrong_value_is_named_with_what_would_be_right_and_the_rest_is_taken() {
        let (wishes, notes) = read(&[
            ("weir.balance", "fair"),
            ("weir.weight", "1001"),
            ("weir.enable", "no"),
            ("weir.idle-timeout.tcp", "0s"),
            ("weir.idle-timeout.udp", "1m"),
            ("weir.health", "ping"),
        ]);
        assert_eq!(wishes, Wishes { idle_udp: Some(Duration::from_secs(60)), ..Wishes::default() });
        assert_eq!(
            notes,
            [
                "service web: weir.balance = fair: no such choice; write round-robin, random or maglev",
                "service web: weir.enable = no: neither true nor false; write true or false",
                "service web: weir.health = ping: no such check; write tcp, http: and a path such as http:/healthz, or off",
                "service web: weir.idle-timeout.tcp = 0s: not a time; write one such as 30s, 5m or 2h, at most 720h",
                "service web: weir.weight = 1001: not a weight; write a whole number from 0 to 1000",
            ]
        );
    }

    #[test]
    fn what_is_not_heeded_is_never_ignored_silently() {
        let (wishes, notes) = read(&[
            ("weir.affinity", "client-ip:10m"),
            ("weir.locality.zone", "1s"),
            ("weir.balance", "least-connections"),
            ("weir.wieght", "3"),
        ]);
        assert_eq!(wishes, Wishes::default());
        assert!(notes[0].contains("weir.affinity = client-ip:10m: not supported yet"), "{notes:?}");
        assert!(notes[1].contains("least-connections: not supported yet"), "{notes:?}");
        assert!(notes[2].contains("weir.locality.zone = 1s: not supported yet"), "{notes:?}");
        assert!(notes[3].contains("weir.wieght = 3: unknown label; write one of weir.enable,"));
    }
}
