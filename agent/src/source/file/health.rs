//! `health` and `eject` of a service.

use weir_mesh::{
    Protocol, TargetPort,
    health::{
        Check, CheckKind, Ejection,
        labels::{LONGEST, MOST, check_kind, is_path},
    },
};

use super::services::PortDraft;
use crate::document::{Table, Value};

const CHECK: &str = "\"tcp\", \"http:/healthz\", or { http = \"/healthz\", interval = \"2s\" }";
const EJECT: &str = "false, or { refused = 5, for = \"10s\" }";

/// A word, or a table: with `http` it asks for a path, without it connects.
pub(super) fn check(value: Value<'_, '_>, service: &str, ports: &[PortDraft]) -> Option<Check> {
    let check = if value.is_table() {
        table(value.table("health = { … }")?, service)?
    } else {
        let text = value.string(CHECK)?;
        let Some(kind) = check_kind(text) else {
            value.fault("no such check", format!("write {CHECK}"));
            return None;
        };
        Check::new(kind)
    };
    let publishes_tcp = ports.iter().any(|port| port.spec.protocol == Protocol::Tcp);
    if check.port.is_none() && !publishes_tcp {
        let remedy =
            "the service publishes none for TCP; name one: { http = \"/healthz\", port = 80 }";
        value.fault("no port to ask at", remedy);
        return None;
    }
    Some(check)
}

fn table(table: Table<'_, '_>, service: &str) -> Option<Check> {
    let subject = format!("{service}: health");
    let table = table.named(&subject);
    table.allow_only(&["http", "port", "interval", "timeout", "rise", "fall"]);
    let kind = table.get("http").map(path);
    let number = |key, most| table.get(key).and_then(|value| value.number(1..=most));
    let count = |key| number(key, u64::from(MOST)).and_then(|count| u32::try_from(count).ok());
    let time = |key| table.get(key).and_then(|value| value.duration(LONGEST));
    let port = number("port", u64::from(u16::MAX)).and_then(|port| u16::try_from(port).ok());
    let (rise, fall) = (count("rise"), count("fall"));
    let (interval, timeout) = (time("interval"), time("timeout"));
    let default = Check::new(kind.unwrap_or(Some(CheckKind::Tcp))?);
    Some(Check {
        port: port.and_then(TargetPort::new),
        interval: interval.unwrap_or(default.interval),
        timeout: timeout.unwrap_or(default.timeout),
        rise: rise.unwrap_or(default.rise),
        fall: fall.unwrap_or(default.fall),
        kind: default.kind,
    })
}

fn path(value: Value<'_, '_>) -> Option<CheckKind> {
    let path = value.string("a path such as \"/healthz\"")?;
    if !is_path(path) {
        value.fault("not a path", "write one that begins with a slash, without blanks");
        return None;
    }
    Some(CheckKind::Http { path: path.to_owned() })
}

/// `false`, or a table with what differs from the default.
pub(super) fn ejection(value: Option<Value<'_, '_>>, service: &str) -> Option<Ejection> {
    let default = Ejection::default();
    let Some(value) = value else { return Some(default) };
    if !value.is_table() {
        return value.switch(EJECT).unwrap_or(true).then_some(default);
    }
    let subject = format!("{service}: eject");
    let table = value.table("eject = { … }")?.named(&subject);
    table.allow_only(&["refused", "within", "for", "panic"]);
    let refused = table.get("refused").and_then(|value| value.number(1..=u64::from(MOST)));
    let panic = table.get("panic").and_then(|value| value.number(0..=100));
    let time = |key| table.get(key).and_then(|value| value.duration(LONGEST));
    Some(Ejection {
        refused: refused.and_then(|it| u32::try_from(it).ok()).unwrap_or(default.refused),
        within: time("within").unwrap_or(default.within),
        time: time("for").unwrap_or(default.time),
        panic: panic.and_then(|it| u8::try_from(it).ok()).unwrap_or(default.panic),
    })
}
