//! Services as `ipvsadm -Ln` prints them, for eyes and scripts that know it.
//!
//! The columns are those of ipvsadm 1.31 (`print_title` and `print_service_entry` in `ipvsadm.c`). What
//! weir does in the tunnel is `Tunnel`, what it does on this node `Masq`; a task that takes no new
//! flows has weight 0, as `ipvsadm` users drain one; weir does not tell inactive connections apart.

use std::net::{IpAddr, SocketAddr};

use crate::api::{CountersView, PortState, PortView, Rate, Rates, ServiceView, Services, TaskView};

use super::services::short_balance;

const VERSION: &str = "IP Virtual Server version 1.2.1 (size=4096)\n";

/// The services of a node with this address.
pub(super) fn text(node: IpAddr, answer: &Services, stats: bool, rates: Option<&Rates>) -> String {
    let mut text = VERSION.to_owned();
    text.push_str(&title(stats, rates.is_some()));
    for (at, service) in answer.services.iter().enumerate() {
        let rates = rates.and_then(|rates| rates.services.get(at));
        for (at, port) in service.ports.iter().enumerate() {
            if port.state != PortState::Served {
                continue;
            }
            let protocol = port.protocol.to_string().to_uppercase();
            let name = format!("{protocol}  {}", SocketAddr::new(node, port.published.get()));
            let rate = rates.and_then(|rates| rates.ports.get(at)).map(|port| port.rate);
            let numbers = match (rate, stats) {
                (Some(rate), _) => Some(of_rate(rate)),
                (None, true) => Some(of_counters(port.counters)),
                (None, false) => None,
            };
            match numbers {
                Some(numbers) => text.push_str(&format!("{name:<33}{numbers}\n")),
                None => text.push_str(&format!("{name} {}\n", scheduler(service))),
            }
            for (at, task) in service.tasks.iter().enumerate() {
                let rate = rates.and_then(|rates| rates.tasks.get(at)).map(|task| task.rate);
                text.push_str(&destination(task, port, stats, rate, node.is_ipv4()));
            }
        }
    }
    text
}

fn title(stats: bool, rate: bool) -> String {
    let columns = match (rate, stats) {
        (true, _) => ["CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"],
        (false, true) => ["Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"],
        (false, false) => {
            return "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           \
                    Forward Weight ActiveConn InActConn\n"
                .to_owned();
        }
    };
    let [a, b, c, d, e] = columns;
    let first = "Prot LocalAddress:Port";
    format!("{first:<33} {a:>8} {b:>8} {c:>8} {d:>8} {e:>8}\n  -> RemoteAddress:Port\n")
}

/// The name that IPVS has for a way of balancing.
fn scheduler(service: &ServiceView) -> &'static str {
    match short_balance(service) {
        "maglev" => "mh",
        "source" => "sh",
        known => known,
    }
}

fn destination(
    task: &TaskView,
    port: &PortView,
    stats: bool,
    rate: Option<Rate>,
    ipv4: bool,
) -> String {
    let mut addresses = task.addresses.iter().filter(|address| address.is_ipv4() == ipv4);
    let Some(address) =
        addresses.next().filter(|_| task.kernel != "gone" && task.kernel != "absent")
    else {
        return String::new();
    };
    let socket = SocketAddr::new(*address, port.target.get()).to_string();
    // Long addresses have a line of their own.
    let start = match socket.len() {
        0..=28 => format!("  -> {socket:<28}"),
        _ => format!("  -> {socket}\n{:33}", ""),
    };
    match (rate, stats) {
        (Some(rate), _) => format!("{start}{}\n", of_rate(rate)),
        (None, true) => format!("{start}{}\n", of_counters(task.counters)),
        (None, false) => {
            let forward = if task.via.as_deref() == Some("tunnel") { "Tunnel" } else { "Masq" };
            let weight = if task.kernel == "active" { task.weight } else { 0 };
            format!("{start} {forward:<7} {weight:<6} {:<10} {:<10}\n", task.active, 0)
        }
    }
}

fn of_counters(counters: CountersView) -> String {
    let CountersView { connections, rx_packets, tx_packets, rx_bytes, tx_bytes, .. } = counters;
    [connections, rx_packets, tx_packets, rx_bytes, tx_bytes].map(large).concat()
}

fn of_rate(rate: Rate) -> String {
    let Rate { connections, rx_packets, tx_packets, rx_bytes, tx_bytes } = rate;
    let rates = [connections, rx_packets, tx_packets, rx_bytes, tx_bytes];
    rates.map(|rate| large(rate as u64)).concat()
}

/// Nine characters, whatever the number (`print_largenum`).
fn large(number: u64) -> String {
    match number {
        0..100_000_000 => format!("{number:>9}"),
        100_000_000..1_000_000_000 => format!("{:>8}K", number / 1000),
        1_000_000_000..100_000_000_000 => format!("{:>8}M", number / 1_000_000),
        100_000_000_000..100_000_000_000_000 => format!("{:>8}G", number / 1_000_000_000),
        _ => format!("{:>8}T", number / 1_000_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services() -> Services {
        let service = serde_json::json!({
            "generation": 1,
            "services": [{
                "name": "web",
                "balance": "round-robin",
                "ports": [
                    {"protocol": "tcp", "published": 8080, "target": 80, "mode": "ingress",
                     "state": "served", "counters": counters(3)},
                    {"protocol": "udp", "published": 5353, "target": 53, "mode": "ingress",
                     "state": "withheld", "counters": counters(0)},
                ],
                "tasks": [
                    task("web.1", "active", "peer", 2), task("web.2", "draining", "tunnel", 1),
                ],
                "timeouts": weir_mesh::Timeouts::default(),
            }],
        });
        serde_json::from_value(service).unwrap()
    }

    fn counters(connections: u64) -> serde_json::Value {
        serde_json::json!({
            "connections": connections, "rx_packets": 100_000_000_u64, "rx_bytes": 7,
            "tx_packets": 0, "tx_bytes": 1,
        })
    }

    fn task(name: &str, kernel: &str, via: &str, last: u8) -> serde_json::Value {
        serde_json::json!({
            "name": name, "node": "n1", "addresses": [format!("172.18.0.{last}")],
            "weight": 1, "state": "active", "kernel": kernel, "via": via, "active": 4,
            "counters": counters(1),
        })
    }

    #[test]
    fn services_look_as_ipvsadm_prints_them() {
        let expected = "IP Virtual Server version 1.2.1 (size=4096)\n\
            Prot LocalAddress:Port Scheduler Flags\n\
            \x20 -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n\
            TCP  10.77.0.11:8080 rr\n\
            \x20 -> 172.18.0.2:80                Masq    1      4          0         \n\
            \x20 -> 172.18.0.1:80                Tunnel  0      4          0         \n";
        assert_eq!(text([10, 77, 0, 11].into(), &services(), false, None), expected);
    }

    #[test]
    fn counters_look_as_ipvsadm_prints_them() {
        let expected = "IP Virtual Server version 1.2.1 (size=4096)\n\
            Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes\n\
            \x20 -> RemoteAddress:Port\n\
            TCP  10.77.0.11:8080                     3  100000K        0        7        1\n\
            \x20 -> 172.18.0.2:80                       1  100000K        0        7        1\n\
            \x20 -> 172.18.0.1:80                       1  100000K        0        7        1\n";
        assert_eq!(text([10, 77, 0, 11].into(), &services(), true, None), expected);
    }
}
