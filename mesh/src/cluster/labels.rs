//! `weir.*` labels of services and containers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Labels, Note};
use crate::{
    access::{Access, Subnet, SubnetError},
    health::labels::{self as health, Wrong, duration},
    proxied::{FlowLimits, HeaderVersion, Prefix, Proxied},
    service::{Balance, Locality, TargetPort, Timeouts, is_port_name},
};

/// What the labels of one service or container ask for; `None` where they say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `weir.enable`: whether the mesh serves the service.
    pub enable: Option<bool>,
    /// `weir.balance`, and `weir.affinity`, which goes before.
    pub balance: Option<Balance>,
    /// Whether `weir.affinity` asks for [`Balance::Source`].
    affinity: bool,
    /// `weir.locality`.
    pub locality: Option<Locality>,
    /// `weir.allow`.
    pub allow: Option<Vec<Subnet>>,
    /// `weir.deny`.
    pub deny: Option<Vec<Subnet>>,
    /// Whether no range of `weir.allow` could be read: then nobody may, since somebody was not to.
    shut: bool,
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
    /// `weir.per-packet`.
    pub per_packet: Option<bool>,
    /// `weir.transparent`.
    pub transparent: Option<bool>,
    /// `weir.port-names`: names and target ports, separated by commas.
    pub port_names: Option<BTreeMap<String, TargetPort>>,
    /// `weir.health…` and `weir.eject…`.
    pub health: health::Wishes,
}

const MAX_WEIGHT: u16 = 1000;
const MAX_LIMIT: u32 = 1 << 24;
const MAX_IDLE: Duration = Duration::from_secs(30 * 24 * 3600);

const HEEDED: &[&str] = &[
    "weir.enable",
    "weir.balance",
    "weir.affinity",
    "weir.locality",
    "weir.allow",
    "weir.deny",
    "weir.weight",
    "weir.idle-timeout.tcp",
    "weir.idle-timeout.udp",
    "weir.proxy-protocol",
    "weir.proxy-protocol.accept",
    "weir.limit.connections",
    "weir.limit.per-client",
    "weir.limit.per-task",
    "weir.limit.rate",
    "weir.per-packet",
    "weir.transparent",
    "weir.port-names",
    "weir.return",
];

impl Wishes {
    /// Reads the labels of `about` (`service web`). A label that is not taken is as if it were not
    /// there, and is noted.
    pub fn read(labels: &Labels, about: &str, notes: &mut BTreeSet<Note>) -> Self {
        let mut wishes = Self::default();
        // In the order of their names, so that affinity is read before balance.
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
            // Whoever wants affinity wants it whatever else is wanted.
            balance: match other.affinity && !self.affinity {
                true => other.balance,
                false => self.balance.or(other.balance),
            },
            affinity: self.affinity || other.affinity,
            locality: self.locality.or(other.locality),
            allow: self.allow.or(other.allow),
            deny: self.deny.or(other.deny),
            shut: self.shut || other.shut,
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
            per_packet: self.per_packet.or(other.per_packet),
            transparent: self.transparent.or(other.transparent),
            port_names: self.port_names.or(other.port_names),
            health: self.health.or(other.health),
        }
    }

    /// Who may be a client.
    pub fn access(&self) -> Access {
        let ranges = |wish: &Option<Vec<Subnet>>| wish.clone().unwrap_or_default();
        let mut deny = ranges(&self.deny);
        deny.extend(Subnet::everything().into_iter().filter(|_| self.shut));
        Access { allow: ranges(&self.allow), deny }
    }

    /// What only the proxy can do.
    pub fn proxied(&self) -> Proxied {
        let trusted = self.trusted.clone().unwrap_or_default();
        let per_packet = self.per_packet.unwrap_or_default();
        let transparent = self.transparent.unwrap_or_default();
        Proxied { header: self.header, trusted, limits: self.limits, per_packet, transparent }
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
            "weir.affinity" => {
                let taken = affinity(value);
                // With a time that means nothing it is wished for all the same.
                if value.split(':').next() == Some("client-ip") {
                    (self.affinity, self.balance) = (true, Some(Balance::Source));
                }
                taken?;
            }
            "weir.balance" => {
                let balance = balance(value)?;
                if self.affinity && !balance.is_hashed() {
                    return Err(wrong(
                        "contradicts weir.affinity, which is kept",
                        "leave one of them out",
                    ));
                }
                self.balance = self.balance.or(Some(balance));
            }
            "weir.locality" => self.locality = Some(locality(value)?),
            "weir.allow" => {
                let (ranges, wrong) = subnets(value);
                self.shut = ranges.is_empty();
                self.allow = Some(ranges);
                wrong?;
            }
            "weir.deny" => {
                let (ranges, wrong) = subnets(value);
                self.deny = Some(ranges);
                wrong?;
            }
            "weir.weight" => self.weight = Some(weight(value)?),
            "weir.idle-timeout.tcp" => self.idle_tcp = Some(idle(value)?),
            "weir.idle-timeout.udp" => self.idle_udp = Some(idle(value)?),
            "weir.proxy-protocol" => self.header = Some(header(value)?),
            "weir.proxy-protocol.accept" => self.trusted = Some(networks(value)?),
            "weir.limit.connections" => self.limits.connections = Some(limit(value)?),
            "weir.limit.per-client" => self.limits.per_client = Some(limit(value)?),
            "weir.limit.per-task" => self.limits.per_task = Some(limit(value)?),
            "weir.limit.rate" => self.limits.rate = Some(limit(value)?),
            "weir.per-packet" => self.per_packet = Some(switch(value)?),
            "weir.transparent" => self.transparent = Some(switch(value)?),
            "weir.port-names" => self.port_names = Some(port_names(value)?),
            "weir.return" => symmetric(value)?,
            _ => {
                let known = [HEEDED, &health::KNOWN].concat().join(", ");
                return Err(wrong("unknown label", &format!("write one of {known}")));
            }
        }
        Ok(())
    }
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
    const CHOICES: &str = "write round-robin, random, maglev, source or least-connections";
    let found = Balance::ALL.into_iter().find(|balance| balance.as_str() == value);
    found.ok_or_else(|| wrong("no such choice", CHOICES))
}

fn affinity(value: &str) -> Result<(), Wrong> {
    match value {
        "client-ip" => Ok(()),
        _ if value.starts_with("client-ip:") => Err(wrong(
            "the time is not needed: a client keeps its task for as long as there are the same tasks",
            "write client-ip, which holds as it is",
        )),
        _ => Err(wrong("no such affinity", "write client-ip")),
    }
}

/// Replies go back by the node that their client entered by; there is no other way yet.
fn symmetric(value: &str) -> Result<(), Wrong> {
    match value {
        "symmetric" => Ok(()),
        "direct" => Err(wrong(
            "not supported: replies go back by the node that the client entered by",
            "write symmetric, or leave it out",
        )),
        _ => Err(wrong("no such choice", "write symmetric, or leave it out")),
    }
}

fn locality(value: &str) -> Result<Locality, Wrong> {
    let found = Locality::ALL.into_iter().find(|locality| locality.as_str() == value);
    found.ok_or_else(|| wrong("no such choice", "write cluster, prefer-local or local"))
}

/// The ranges that can be read, and the first that cannot: a list with a mistake still keeps out whom
/// the rest of it keeps out.
fn subnets(value: &str) -> (Vec<Subnet>, Result<(), Wrong>) {
    let (mut ranges, mut wrongs) = (Vec::new(), Ok(()));
    for text in value.split(',').map(str::trim) {
        match text.parse() {
            Ok(range) => ranges.push(range),
            Err(error) if wrongs.is_ok() => {
                let remedy = "write ranges such as 10.0.0.0/8,fd00::/8; the others hold";
                wrongs = Err(wrong(&format!("{text:?} {}", says(error)), remedy));
            }
            Err(_) => {}
        }
    }
    (ranges, wrongs)
}

fn says(error: SubnetError) -> String {
    match error {
        SubnetError::Malformed => "is no range of addresses".to_owned(),
        SubnetError::Loose(_) => error.to_string(),
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

fn port_names(value: &str) -> Result<BTreeMap<String, TargetPort>, Wrong> {
    let one = |text: &str| {
        let (name, port) = text.trim().split_once('=')?;
        let port = TargetPort::new(port.parse().ok()?)?;
        is_port_name(name).then(|| (name.to_ascii_lowercase(), port))
    };
    let all = value.split(',').map(|text| {
        one(text).ok_or_else(|| {
            let remedy =
                "write names of letters, digits and dashes with target ports: http=80,admin=9090";
            wrong(&format!("{:?} is no name of a port", text.trim()), remedy)
        })
    });
    all.collect()
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
            ("weir.per-packet", "true"),
            ("weir.transparent", "true"),
            ("weir.port-names", "HTTP=80, admin=9090"),
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
            per_packet: Some(true),
            transparent: Some(true),
            port_names: Some(
                [("http", 80), ("admin", 9090)]
                    .map(|(name, port)| (name.to_owned(), TargetPort::new(port).unwrap()))
                    .into(),
            ),
            health,
            ..Wishes::default()
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
                "service web: weir.balance = fair: no such choice; write round-robin, random, maglev, source or least-connections",
                "service web: weir.enable = no: neither true nor false; write true or false",
                "service web: weir.health = ping: no such check; write tcp, http: and a path such as http:/healthz, or off",
                "service web: weir.idle-timeout.tcp = 0s: not a time; write one such as 30s, 5m or 2h, at most 720h",
                "service web: weir.weight = 1001: not a weight; write a whole number from 0 to 1000",
            ]
        );
    }

    #[test]
    fn what_is_not_heeded_is_never_ignored_silently() {
        let (wishes, notes) = read(&[("weir.return", "direct"), ("weir.wieght", "3")]);
        assert_eq!(wishes, Wishes::default());
        assert!(notes[0].contains("weir.return = direct: not supported: replies go"), "{notes:?}");
        assert!(notes[1].contains("weir.wieght = 3: unknown label; write one of weir.enable,"));
        let (_, notes) = read(&[("weir.return", "symmetric")]);
        assert_eq!(notes, [] as [&str; 0], "that is what it does");
    }

    #[test]
    fn affinity_is_balance_by_the_clients_address() {
        let (wishes, notes) = read(&[("weir.affinity", "client-ip"), ("weir.balance", "maglev")]);
        assert_eq!((wishes.balance, notes.len()), (Some(Balance::Source), 0));
        let (wishes, notes) = read(&[("weir.affinity", "client-ip"), ("weir.balance", "random")]);
        assert_eq!(wishes.balance, Some(Balance::Source));
        assert!(notes[0].contains("weir.balance = random: contradicts weir.affinity"), "{notes:?}");
        let (timed, notes) = read(&[("weir.affinity", "client-ip:10m")]);
        assert!(notes[0].contains("the time is not needed"), "{notes:?}");
        assert_eq!(timed.balance, Some(Balance::Source), "affinity is what was wished for");
        let of_service = read(&[("weir.balance", "random")]).0;
        assert_eq!(of_service.or(wishes).balance, Some(Balance::Source));
    }

    #[test]
    fn who_may_be_a_client_and_whose_tasks_they_get_is_read() {
        let (wishes, notes) = read(&[
            ("weir.allow", "10.0.0.0/8, fd00::/8"),
            ("weir.deny", "10.9.9.9"),
            ("weir.locality", "prefer-local"),
        ]);
        assert_eq!(notes, [] as [&str; 0]);
        let subnet = |text: &str| text.parse::<Subnet>().unwrap();
        assert_eq!(wishes.allow, Some(vec![subnet("10.0.0.0/8"), subnet("fd00::/8")]));
        assert_eq!(wishes.deny, Some(vec![subnet("10.9.9.9/32")]));
        assert_eq!(wishes.locality, Some(Locality::PreferLocal));
        let (wishes, notes) = read(&[
            ("weir.allow", "10.0.0.0/8,10.1.2.3/8"),
            ("weir.deny", "here"),
            ("weir.locality", "zone"),
        ]);
        assert_eq!(wishes.access().allow, [subnet("10.0.0.0/8")], "the right ones hold");
        assert_eq!(wishes.locality, None);
        let bits = "\"10.1.2.3/8\" has bits beyond its length: write 10.0.0.0/8";
        assert!(notes[0].contains(bits), "{notes:?}");
        assert!(notes[1].contains("\"here\" is no range of addresses"), "{notes:?}");
        let rules = read(&[("weir.allow", "office")]).0.access().rules();
        assert!(rules.values().all(|may| !may), "who names clients does not mean everybody");
        assert!(notes[2].contains("write cluster, prefer-local or local"), "{notes:?}");
    }
}
