//! `weir.health…` and `weir.eject…` labels of services and containers.

use std::time::Duration;

use super::{Check, CheckKind, Ejection, Health};
use crate::service::TargetPort;

/// What is wrong with a label, and what would be right.
pub type Wrong = (String, String);

/// The labels that [`Wishes::take`] knows.
pub const KNOWN: [&str; 11] = [
    "weir.health",
    "weir.health.interval",
    "weir.health.timeout",
    "weir.health.rise",
    "weir.health.fall",
    "weir.health.port",
    "weir.eject",
    "weir.eject.refused",
    "weir.eject.within",
    "weir.eject.for",
    "weir.eject.panic",
];

/// The longest interval, timeout, or ejection that may be asked for.
pub const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The most probes in a row, or refused connections, that may be asked for.
pub const MOST: u32 = 1000;

/// What labels ask for; `None` where they say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `weir.health`: `tcp`, `http:/path`, or `off`.
    kind: Option<Option<CheckKind>>,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    rise: Option<u32>,
    fall: Option<u32>,
    port: Option<TargetPort>,
    /// `weir.eject`: whether at all.
    eject: Option<bool>,
    refused: Option<u32>,
    within: Option<Duration>,
    time: Option<Duration>,
    panic: Option<u8>,
}

impl Wishes {
    /// Takes a label; `None` when it is none of [`KNOWN`]. One that is wrong is as if it were not
    /// there.
    pub fn take(&mut self, name: &str, value: &str) -> Option<Result<(), Wrong>> {
        let taken = match name {
            "weir.health" => set(&mut self.kind, kind(value)),
            "weir.health.interval" => set(&mut self.interval, time(value)),
            "weir.health.timeout" => set(&mut self.timeout, time(value)),
            "weir.health.rise" => set(&mut self.rise, count(value)),
            "weir.health.fall" => set(&mut self.fall, count(value)),
            "weir.health.port" => set(&mut self.port, port(value)),
            "weir.eject" => set(&mut self.eject, switch(value)),
            "weir.eject.refused" => set(&mut self.refused, count(value)),
            "weir.eject.within" => set(&mut self.within, time(value)),
            "weir.eject.for" => set(&mut self.time, time(value)),
            "weir.eject.panic" => set(&mut self.panic, percent(value)),
            _ => return None,
        };
        Some(taken)
    }

    /// These, and where they say nothing, those.
    pub fn or(self, other: Self) -> Self {
        Self {
            kind: self.kind.or(other.kind),
            interval: self.interval.or(other.interval),
            timeout: self.timeout.or(other.timeout),
            rise: self.rise.or(other.rise),
            fall: self.fall.or(other.fall),
            port: self.port.or(other.port),
            eject: self.eject.or(other.eject),
            refused: self.refused.or(other.refused),
            within: self.within.or(other.within),
            time: self.time.or(other.time),
            panic: self.panic.or(other.panic),
        }
    }

    /// Whether they say how a check is to be, and not which.
    pub fn lack_a_check(&self) -> bool {
        let times = self.interval.is_some() || self.timeout.is_some();
        let counts = self.rise.is_some() || self.fall.is_some();
        self.kind.is_none() && (times || counts || self.port.is_some())
    }

    /// How tasks are judged with these wishes. Without `weir.health` there is no check: Docker may
    /// have one of its own.
    pub fn health(&self) -> Health {
        let check = self.kind.clone().flatten().map(|kind| {
            let Check { kind, port, interval, timeout, rise, fall } = Check::new(kind);
            Check {
                kind,
                port: self.port.or(port),
                interval: self.interval.unwrap_or(interval),
                timeout: self.timeout.unwrap_or(timeout),
                rise: self.rise.unwrap_or(rise),
                fall: self.fall.unwrap_or(fall),
            }
        });
        let Ejection { refused, within, time, panic } = Ejection::default();
        let ejection = Ejection {
            refused: self.refused.unwrap_or(refused),
            within: self.within.unwrap_or(within),
            time: self.time.unwrap_or(time),
            panic: self.panic.unwrap_or(panic),
        };
        Health { check, ejection: self.eject.unwrap_or(true).then_some(ejection) }
    }
}

/// `tcp`, or `http:` and a path; `None` for anything else.
pub fn check_kind(text: &str) -> Option<CheckKind> {
    if text == "tcp" {
        return Some(CheckKind::Tcp);
    }
    let path = text.strip_prefix("http:").filter(|path| is_path(path))?;
    Some(CheckKind::Http { path: path.to_owned() })
}

/// Whether a text can stand in a request line as a path with its query.
pub fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

fn set<T>(place: &mut Option<T>, value: Result<T, (&str, &str)>) -> Result<(), Wrong> {
    match value {
        Ok(value) => {
            *place = Some(value);
            Ok(())
        }
        Err((problem, remedy)) => Err((problem.to_owned(), remedy.to_owned())),
    }
}

type Read<T> = Result<T, (&'static str, &'static str)>;

fn kind(value: &str) -> Read<Option<CheckKind>> {
    if value == "off" {
        return Ok(None);
    }
    let wrong = ("no such check", "write tcp, http: and a path such as http:/healthz, or off");
    check_kind(value).map(Some).ok_or(wrong)
}

fn time(value: &str) -> Read<Duration> {
    let wrong = ("not a time", "write one such as 500ms, 2s or 5m, at most 24h");
    duration(value).filter(|time| !time.is_zero() && *time <= LONGEST).ok_or(wrong)
}

fn count(value: &str) -> Read<u32> {
    let count = value.parse().ok().filter(|count| (1..=MOST).contains(count));
    count.ok_or(("not a number of times", "write a whole number from 1 to 1000"))
}

fn port(value: &str) -> Read<TargetPort> {
    let port = value.parse().ok().and_then(TargetPort::new);
    port.ok_or(("not a port", "write a whole number from 1 to 65535"))
}

fn percent(value: &str) -> Read<u8> {
    let percent = value.parse().ok().filter(|percent| *percent <= 100);
    percent.ok_or(("not a percentage", "write a whole number from 0 to 100"))
}

fn switch(value: &str) -> Read<bool> {
    value.parse().map_err(|_| ("neither true nor false", "write true or false"))
}

/// A whole number and a unit, as in the configuration.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let number: u64 = number.parse().ok()?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(milliseconds)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(labels: &[(&str, &str)]) -> (Health, Vec<String>) {
        let mut wishes = Wishes::default();
        let mut wrong = Vec::new();
        for (name, value) in labels {
            match wishes.take(name, value) {
                Some(Ok(())) => {}
                Some(Err((problem, remedy))) => wrong.push(format!("{name}: {problem}; {remedy}")),
                None => wrong.push(format!("{name}: unknown")),
            }
        }
        (wishes.health(), wrong)
    }

    #[test]
    fn without_labels_there_is_no_check_and_refusals_eject() {
        let (health, wrong) = read(&[]);
        assert_eq!((health, wrong.len()), (Health::default(), 0));
    }

    #[test]
    fn every_label_is_taken() {
        let (health, wrong) = read(&[
            ("weir.health", "http:/healthz?deep=1"),
            ("weir.health.interval", "500ms"),
            ("weir.health.timeout", "3s"),
            ("weir.health.rise", "1"),
            ("weir.health.fall", "9"),
            ("weir.health.port", "8081"),
            ("weir.eject", "true"),
            ("weir.eject.refused", "3"),
            ("weir.eject.within", "7s"),
            ("weir.eject.for", "1m"),
            ("weir.eject.panic", "0"),
        ]);
        assert_eq!(wrong, [] as [&str; 0]);
        let check = Check {
            kind: CheckKind::Http { path: "/healthz?deep=1".to_owned() },
            port: TargetPort::new(8081),
            interval: Duration::from_millis(500),
            timeout: Duration::from_secs(3),
            rise: 1,
            fall: 9,
        };
        let (within, time) = (Duration::from_secs(7), Duration::from_secs(60));
        let ejection = Ejection { refused: 3, within, time, panic: 0 };
        assert_eq!(health, Health { check: Some(check), ejection: Some(ejection) });
        let (health, _) = read(&[("weir.health", "off"), ("weir.eject", "false")]);
        assert_eq!(health, Health { check: None, ejection: None });
    }

    #[test]
    fn a_wrong_label_is_named_with_what_would_be_right_and_counts_for_nothing() {
        let (health, wrong) = read(&[
            ("weir.health", "http:healthz"),
            ("weir.health.interval", "0s"),
            ("weir.health.rise", "0"),
            ("weir.health.port", "65536"),
            ("weir.eject", "no"),
            ("weir.eject.panic", "101"),
            ("weir.ejekt", "1"),
        ]);
        assert_eq!(health, Health::default());
        assert_eq!(
            wrong,
            [
                "weir.health: no such check; write tcp, http: and a path such as http:/healthz, or off",
                "weir.health.interval: not a time; write one such as 500ms, 2s or 5m, at most 24h",
                "weir.health.rise: not a number of times; write a whole number from 1 to 1000",
                "weir.health.port: not a port; write a whole number from 1 to 65535",
                "weir.eject: neither true nor false; write true or false",
                "weir.eject.panic: not a percentage; write a whole number from 0 to 100",
                "weir.ejekt: unknown",
            ]
        );
    }

    #[test]
    fn a_containers_labels_come_before_its_services() {
        let mut own = Wishes::default();
        let mut general = Wishes::default();
        own.take("weir.health", "tcp").unwrap().unwrap();
        general.take("weir.health", "off").unwrap().unwrap();
        general.take("weir.health.fall", "7").unwrap().unwrap();
        let check = own.or(general).health().check.unwrap();
        assert_eq!((check.kind, check.fall), (CheckKind::Tcp, 7));
    }
}
