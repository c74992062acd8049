//! What has changed between two looks at the agent: what `weir monitor` prints.
//!
//! How many packets met which end is counted; which they were is told of the last few, since the kernel
//! programs remember no more.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weir_mesh::ServiceName;

use super::{DroppedPackets, DroppedView, Drops, Services, Status, TaskRow, Tasks, rates};

/// One look.
#[derive(Clone, Debug)]
pub struct Look {
    /// How the agent is.
    pub status: Status,
    /// The services, with counters.
    pub services: Services,
    /// The tasks.
    pub tasks: Tasks,
    /// Why packets were not forwarded.
    pub drops: Drops,
    /// Which the last of them were.
    pub packets: DroppedPackets,
}

/// Packets that are told of one look: whoever is flooded reads the counters.
const MOST_PACKETS: usize = 20;

/// Looks, one after another.
#[derive(Debug)]
pub struct Looks {
    last: Look,
    /// When the last packet came that is known, in nanoseconds since the host began. Not that of the last
    /// look: an agent that begins anew tells none until its data plane is open.
    known: u64,
}

impl Looks {
    /// The first one, of which there is nothing to tell.
    pub fn new(first: Look) -> Self {
        let known = latest(&first.packets);
        Self { last: first, known }
    }

    /// What happened since the look before. Drops and flows may be read at different times: counters
    /// that were not read again have counted nothing since, and are told when they are.
    pub fn next(&mut self, look: Look) -> Vec<Event> {
        let new = look.packets.packets.iter().filter(|packet| packet.at_ns > self.known);
        let new: Vec<&DroppedView> = new.collect();
        let shown = &new[new.len().saturating_sub(MOST_PACKETS)..];
        let mut told: Vec<Event> = shown.iter().map(|packet| dropped(packet)).collect();
        told.extend(events(&self.last, &look));
        self.known = self.known.max(latest(&look.packets));
        self.last = look;
        told
    }
}

fn latest(packets: &DroppedPackets) -> u64 {
    packets.packets.iter().map(|packet| packet.at_ns).max().unwrap_or_default()
}

fn dropped(packet: &DroppedView) -> Event {
    let DroppedView { protocol, source, destination, flags, meaning, .. } = packet;
    let flags = if flags.is_empty() { String::new() } else { format!(" {flags}") };
    let text = format!("{protocol} {source} > {destination}{flags}; {meaning}");
    Event {
        service: packet.service.clone(),
        ..event(EventKind::Packet, packet.reason.as_str(), text)
    }
}

/// Something that has changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// What kind of thing.
    pub kind: EventKind,
    /// Which one: a reason, a port, a task, a subsystem.
    pub subject: String,
    /// The service that it concerns, where it is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<ServiceName>,
    /// How many, of what is counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub count: Option<u64>,
    /// How many a second.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub per_second: Option<f64>,
    /// The rest, in words.
    pub text: String,
}

/// What kinds of events there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// One packet was not forwarded.
    Packet,
    /// Packets were not forwarded: how many.
    Drop,
    /// New flows came in at a published port.
    Flows,
    /// A task stands otherwise with this node.
    Task,
    /// A subsystem is better or worse.
    Subsystem,
    /// The data plane holds another snapshot.
    Snapshot,
}

impl EventKind {
    /// The word that is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Drop => "drop",
            Self::Flows => "flows",
            Self::Task => "task",
            Self::Subsystem => "subsystem",
            Self::Snapshot => "snapshot",
        }
    }
}

/// What happened between two looks, what matters most first.
fn events(before: &Look, after: &Look) -> Vec<Event> {
    let mut events = drops(before, after);
    subsystems(before, after, &mut events);
    tasks(before, after, &mut events);
    if before.status.generation != after.status.generation {
        let shown = |of: Option<u64>| of.map_or_else(|| "none".to_owned(), |of| of.to_string());
        let [from, to] = [before, after].map(|look| shown(look.status.generation));
        let text = format!("generation {from} -> {to}");
        events.push(event(EventKind::Snapshot, "data plane", text));
    }
    flows(before, after, &mut events);
    events
}

fn event(kind: EventKind, subject: impl Into<String>, text: String) -> Event {
    let subject = subject.into();
    Event { kind, subject, service: None, count: None, per_second: None, text }
}

fn drops(before: &Look, after: &Look) -> Vec<Event> {
    let passed = after.drops.counters_at_ms.saturating_sub(before.drops.counters_at_ms);
    let known: BTreeMap<&str, u64> =
        before.drops.drops.iter().map(|drop| (drop.reason.as_str(), drop.count)).collect();
    let mut events = Vec::new();
    for drop in &after.drops.drops {
        let old = known.get(drop.reason.as_str()).copied().unwrap_or_default();
        let count = drop.count.checked_sub(old).unwrap_or(drop.count);
        if count > 0 {
            events.push(Event {
                count: Some(count),
                per_second: (passed > 0).then(|| count as f64 * 1e3 / passed as f64),
                ..event(EventKind::Drop, drop.reason.as_str(), drop.meaning.clone())
            });
        }
    }
    events
}

fn subsystems(before: &Look, after: &Look, events: &mut Vec<Event>) {
    let known: BTreeMap<&str, _> =
        before.status.subsystems.iter().map(|one| (one.name.as_str(), one)).collect();
    for now in &after.status.subsystems {
        let old = known.get(now.name.as_str());
        if old.is_none_or(|old| old.condition != now.condition) {
            let word = now.condition.as_str();
            let text = match old {
                Some(old) => format!("{} -> {word}: {}", old.condition.as_str(), now.reason),
                None => format!("{word}: {}", now.reason),
            };
            events.push(event(EventKind::Subsystem, now.name.as_str(), text));
        }
    }
    let gone = |name: &str| after.status.subsystems.iter().all(|now| now.name != name);
    for old in before.status.subsystems.iter().filter(|old| gone(&old.name)) {
        events.push(event(EventKind::Subsystem, old.name.as_str(), "over".to_owned()));
    }
}

fn tasks(before: &Look, after: &Look, events: &mut Vec<Event>) {
    fn key(task: &TaskRow) -> (&ServiceName, &str, &str) {
        (&task.service, task.task.as_str(), task.node.as_str())
    }
    let mut known: BTreeMap<_, _> = before.tasks.tasks.iter().map(|it| (key(it), it)).collect();
    for now in &after.tasks.tasks {
        let old = known.remove(&key(now));
        let state = now.state.as_str();
        let why = now.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let text = match old {
            Some(old) if old.state == now.state && old.why == now.why => continue,
            Some(old) => format!("{} -> {state}{why} (on {})", old.state.as_str(), now.node),
            None => format!("came, {state}{why} (on {})", now.node),
        };
        let service = Some(now.service.clone());
        events.push(Event { service, ..event(EventKind::Task, now.task.as_str(), text) });
    }
    for old in known.values() {
        let text = format!("left (was on {})", old.node);
        let service = Some(old.service.clone());
        events.push(Event { service, ..event(EventKind::Task, old.task.as_str(), text) });
    }
}

fn flows(before: &Look, after: &Look, events: &mut Vec<Event>) {
    let Some(rates) = rates(&before.services, &after.services) else { return };
    for service in &rates.services {
        for port in service.ports.iter().filter(|port| port.rate.connections > 0.0) {
            let count = (port.rate.connections * rates.seconds).round() as u64;
            let (rx, tx) = (port.rate.rx_bytes, port.rate.tx_bytes);
            let text = format!("new flows; {rx:.0} B/s from clients, {tx:.0} B/s to them");
            let subject = format!("{} {}/{}", service.name, port.protocol, port.published);
            events.push(Event {
                service: Some(service.name.clone()),
                count: Some(count),
                per_second: Some(port.rate.connections),
                ..event(EventKind::Flows, subject, text)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn look(at: u64, dropped: u64, flows: u64, task: &str, condition: &str) -> Look {
        let counters = |connections: u64| {
            json!({"connections": connections, "rx_packets": 0, "rx_bytes": 0, "tx_packets": 0,
                   "tx_bytes": 0})
        };
        // Of more than are remembered the first are forgotten.
        let packet = |at_ns: u64| {
            json!({"at_ns": at_ns, "protocol": "tcp", "source": "10.0.0.9:4", "service": "web",
                   "destination": "10.0.0.1:80", "flags": "S", "reason": "no_backend",
                   "meaning": "Nobody."})
        };
        let packets: Vec<_> = (dropped.saturating_sub(50)..=dropped).map(packet).collect();
        let value = json!({
            "status": {
                "version": "0", "node": "n1", "address": "10.0.0.1", "pid": 1, "uptime_seconds": 1,
                "generation": at, "wanted": at, "stale": false, "condition": condition,
                "subsystems": [{"name": "source file", "condition": condition, "ready": true,
                                "reason": "as said", "hint": ""}],
                "source_faults": [], "problems": [], "hooks": {},
                "last_pass": {"operations": 0, "milliseconds": 0.0}, "drift": 0,
            },
            "services": {"generation": 1, "counters_at_ms": at * 1000, "services": [{
                "name": "web", "balance": "round-robin", "tasks": [],
                "ports": [{"protocol": "tcp", "published": 80, "target": 80, "mode": "ingress",
                           "state": "served", "counters": counters(flows)}],
                "timeouts": weir_mesh::Timeouts::default(),
            }]},
            "tasks": {"generation": 1, "tasks": [
                {"service": "web", "task": "web.1", "node": "n1", "addresses": [], "state": task,
                 "trouble": false}]},
            "drops": {"counters_at_ms": at * 1000, "drops": [
                {"reason": "no_backend", "meaning": "Nobody.", "count": dropped}]},
            "packets": {"packets": packets},
        });
        let part = |name: &str| value[name].clone();
        Look {
            status: serde_json::from_value(part("status")).unwrap(),
            services: serde_json::from_value(part("services")).unwrap(),
            tasks: serde_json::from_value(part("tasks")).unwrap(),
            drops: serde_json::from_value(part("drops")).unwrap(),
            packets: serde_json::from_value(part("packets")).unwrap(),
        }
    }

    #[test]
    fn what_happened_is_told_once_whatever_was_read_first() {
        let first = look(1, 5, 10, "active", "ok");
        let later = look(2, 11, 30, "active", "ok");
        let mut looks = Looks::new(first.clone());
        let mut told = Vec::new();
        // Drops were read again and flows were not; then both; then neither.
        told.extend(looks.next(Look { drops: later.drops.clone(), ..first }));
        told.extend(looks.next(later.clone()));
        told.extend(looks.next(later));
        let of = |kind: EventKind| -> Vec<Option<u64>> {
            told.iter().filter(|it| it.kind == kind).map(|it| it.count).collect()
        };
        assert_eq!(of(EventKind::Drop), [Some(6)]);
        assert_eq!(of(EventKind::Flows), [Some(20)]);
        assert_eq!(of(EventKind::Packet), [None; 6]);
    }

    #[test]
    fn packets_are_told_one_by_one_and_no_more_than_anybody_reads() {
        let mut looks = Looks::new(look(1, 5, 10, "active", "ok"));
        let packets = |told: Vec<Event>| -> Vec<String> {
            let told = told.into_iter().filter(|it| it.kind == EventKind::Packet);
            told.map(|it| format!("{} {} {:?}", it.subject, it.text, it.service)).collect()
        };
        let one = packets(looks.next(look(2, 6, 10, "active", "ok")));
        let line = "no_backend tcp 10.0.0.9:4 > 10.0.0.1:80 S; Nobody. Some(ServiceName(\"web\"))";
        assert_eq!(one, [line]);
        assert_eq!(packets(looks.next(look(3, 500, 10, "active", "ok"))).len(), MOST_PACKETS);
        assert!(packets(looks.next(look(4, 500, 10, "active", "ok"))).is_empty());
    }

    #[test]
    fn what_changed_is_told_and_what_did_not_is_not() {
        let before = look(1, 5, 10, "active", "ok");
        assert!(events(&before, &before).is_empty());
        let told = events(&before, &look(3, 11, 30, "draining", "degraded"));
        let lines: Vec<String> = told
            .iter()
            .map(|it| format!("{} {} {:?} {}", it.kind.as_str(), it.subject, it.count, it.text))
            .collect();
        assert_eq!(
            lines,
            [
                "drop no_backend Some(6) Nobody.",
                "subsystem source file None ok -> degraded: as said",
                "task web.1 None active -> draining (on n1)",
                "snapshot data plane None generation 1 -> 3",
                "flows web tcp/80 Some(20) new flows; 0 B/s from clients, 0 B/s to them",
            ]
        );
        assert_eq!(told[0].per_second, Some(3.0));
        assert_eq!(told[4].per_second, Some(10.0));
    }
}
