//! What happened a second, between two readings of the counters.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weir_mesh::{NodeName, Protocol, PublishedPort, ServiceName, TaskName};

use super::{CountersView, Services};

/// Rates between two answers of `/api/v1/services`: `weir services --rate -o json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rates {
    /// The snapshot that is described; `None` while there is none.
    pub generation: Option<u64>,
    /// The time between the readings.
    pub seconds: f64,
    /// The services, by name.
    pub services: Vec<ServiceRates>,
}

/// Rates of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceRates {
    /// Its name.
    pub name: ServiceName,
    /// By published port.
    pub ports: Vec<PortRate>,
    /// By task, whichever port a flow came in by.
    pub tasks: Vec<TaskRate>,
}

/// Rates of a published port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PortRate {
    /// The protocol.
    pub protocol: Protocol,
    /// Where clients connect.
    pub published: PublishedPort,
    /// A second.
    pub rate: Rate,
}

/// Rates of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskRate {
    /// Its name.
    pub name: TaskName,
    /// The node that runs it.
    pub node: NodeName,
    /// A second.
    pub rate: Rate,
}

/// Counted a second, on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rate {
    /// New flows.
    pub connections: f64,
    /// Packets from clients.
    pub rx_packets: f64,
    /// Packets to clients.
    pub tx_packets: f64,
    /// Bytes from clients.
    pub rx_bytes: f64,
    /// Bytes to clients.
    pub tx_bytes: f64,
}

/// The rates between two answers; `None` if they tell the same reading of the counters, or the agent
/// began anew between them.
pub fn rates(before: &Services, after: &Services) -> Option<Rates> {
    let passed = after.counters_at_ms.checked_sub(before.counters_at_ms)?;
    if passed == 0 {
        return None;
    }
    let seconds = passed as f64 / 1e3;
    let known: BTreeMap<_, _> = before.services.iter().map(|it| (&it.name, it)).collect();
    let of_service = |service: &super::ServiceView| {
        let earlier = known.get(&service.name);
        let ports = service.ports.iter().map(|port| {
            let same = |it: &&super::PortView| {
                (it.protocol, it.published) == (port.protocol, port.published)
            };
            let old = earlier.and_then(|it| it.ports.iter().find(same)).map(|it| it.counters);
            let rate = rate(old, port.counters, seconds);
            PortRate { protocol: port.protocol, published: port.published, rate }
        });
        let tasks = service.tasks.iter().map(|task| {
            let same = |it: &&super::TaskView| (&it.name, &it.node) == (&task.name, &task.node);
            let old = earlier.and_then(|it| it.tasks.iter().find(same)).map(|it| it.counters);
            let rate = rate(old, task.counters, seconds);
            TaskRate { name: task.name.clone(), node: task.node.clone(), rate }
        });
        let (ports, tasks) = (ports.collect(), tasks.collect());
        ServiceRates { name: service.name.clone(), ports, tasks }
    };
    let services = after.services.iter().map(of_service).collect();
    Some(Rates { generation: after.generation, seconds, services })
}

/// What is new has counted nothing before; what counts from zero again has lost its past.
fn rate(before: Option<CountersView>, after: CountersView, seconds: f64) -> Rate {
    let before = before.unwrap_or_default();
    let of = |old: u64, new: u64| new.checked_sub(old).unwrap_or(new) as f64 / seconds;
    Rate {
        connections: of(before.connections, after.connections),
        rx_packets: of(before.rx_packets, after.rx_packets),
        tx_packets: of(before.tx_packets, after.tx_packets),
        rx_bytes: of(before.rx_bytes, after.rx_bytes),
        tx_bytes: of(before.tx_bytes, after.tx_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_begins_anew_does_not_run_backwards() {
        let counters = |connections| CountersView { connections, ..CountersView::default() };
        assert_eq!(rate(Some(counters(10)), counters(30), 2.0).connections, 10.0);
        assert_eq!(rate(Some(counters(10)), counters(4), 2.0).connections, 2.0);
        assert_eq!(rate(None, counters(4), 2.0).connections, 2.0);
    }

    #[test]
    fn the_same_reading_has_no_rate() {
        let services =
            |counters_at_ms| Services { generation: Some(1), counters_at_ms, services: Vec::new() };
        assert_eq!(rates(&services(5), &services(5)), None);
        assert_eq!(rates(&services(5), &services(2)), None, "the agent began anew");
        assert_eq!(rates(&services(5), &services(1005)).unwrap().seconds, 1.0);
    }
}
