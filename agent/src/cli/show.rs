//! `weir status`, `services`, `nodes`, `state dump`, `version`: what the agent says, as tables.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    AgentArgs, Failed, Format, OutputArgs, client,
    table::{Table, mark, print, print_json},
};
use crate::{
    api::{
        CountersView, Nodes, PortState, PortView, ServiceView, Services, StateDump, Status,
        TaskView, VipView,
    },
    document::nearest,
    health::Condition,
};

pub(super) fn status(agent: &AgentArgs, wait: Option<Duration>) -> Result<Condition, Failed> {
    let deadline = wait.map(|wait| Instant::now() + wait);
    let waiting = |at: Instant| deadline.is_some_and(|deadline| at < deadline);
    let status: Status = loop {
        match client::get::<Status>(agent, "/api/v1/status") {
            Ok(status) if status.condition == Condition::Ok => break status,
            Ok(status) if !waiting(Instant::now()) => break status,
            Err(failed) if !waiting(Instant::now()) => return Err(failed),
            _ => thread::sleep(Duration::from_millis(100)),
        }
    };
    if agent.output.output == Format::Json {
        print_json(&status)?;
    } else {
        print(&status_text(&status));
    }
    Ok(status.condition)
}

fn status_text(status: &Status) -> String {
    let mut text = format!(
        "{} ({}), weir {}, pid {}, up {}\n",
        status.node,
        status.address,
        status.version,
        status.pid,
        uptime(status.uptime_seconds)
    );
    let mut table = Table::default();
    for subsystem in &status.subsystems {
        table.row([&mark(subsystem.condition), &subsystem.name, &subsystem.reason]);
        if !subsystem.hint.is_empty() {
            table.row(["", "", &format!("-> {}", subsystem.hint)]);
        }
    }
    text.push_str(&table.text());
    text
}

fn uptime(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

pub(super) fn services(
    agent: &AgentArgs,
    name: Option<String>,
    stats: bool,
) -> Result<Condition, Failed> {
    let answer = match &name {
        Some(name) => one_service(agent, name)?,
        None => client::get(agent, "/api/v1/services")?,
    };
    if agent.output.output == Format::Json {
        print_json(&answer)?;
    } else {
        print(&services_text(&answer, stats));
    }
    Ok(Condition::Ok)
}

fn one_service(agent: &AgentArgs, name: &str) -> Result<Services, Failed> {
    // What cannot stand in a request line is no name of a service either.
    let sendable = name.bytes().all(|byte| byte.is_ascii_graphic() && !b"&#%".contains(&byte));
    if sendable {
        let answer: Services = client::get(agent, &format!("/api/v1/services?name={name}"))?;
        if !answer.services.is_empty() || answer.generation.is_none() {
            return Ok(answer);
        }
    }
    let mut all: Services = client::get(agent, "/api/v1/services")?;
    let hint = match nearest(name, all.services.iter().map(|service| service.name.as_str())) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => "weir services lists them all".to_owned(),
    };
    all.services.retain(|service| service.name.as_str() == name);
    if all.services.is_empty() { Err(format!("no service \"{name}\"; {hint}")) } else { Ok(all) }
}

fn services_text(answer: &Services, stats: bool) -> String {
    if answer.generation.is_none() {
        return "there is no snapshot yet; weir status says why\n".to_owned();
    }
    let mut table = Table::default();
    if stats {
        table.row([
            "Prot Published",
            "Service",
            "Conns",
            "InPkts",
            "OutPkts",
            "InBytes",
            "OutBytes",
        ]);
        table.row(["  -> Address", "Task", "", "", "", "", ""]);
    } else {
        table.row(["Prot Published", "Service", "Balance", "Target", "", "State"]);
        table.row(["  -> Address:Port", "Task", "Node", "Weight", "Active", "State"]);
    }
    for service in &answer.services {
        for port in &service.ports {
            if stats {
                counter_row(&mut table, &frontend(port), service.name.as_str(), &port.counters);
            } else {
                port_rows(&mut table, service, port);
            }
        }
        for vip in &service.vips {
            vip_row(&mut table, service, vip, stats);
        }
        // The kernel counts by task, whichever port a flow came in by.
        for task in service.tasks.iter().filter(|_| stats) {
            let addresses: Vec<String> = task.addresses.iter().map(ToString::to_string).collect();
            let address = format!("  -> {}", addresses.join(","));
            counter_row(&mut table, &address, task.name.as_str(), &task.counters);
        }
    }
    table.text()
}

fn port_rows(table: &mut Table, service: &ServiceView, port: &PortView) {
    let (balance, target) = (short_balance(service), port.target.to_string());
    let state = port_state(port);
    table.row([&frontend(port), service.name.as_str(), balance, &target, "", &state]);
    for task in &service.tasks {
        let address = format!("  -> {}", sockets(task, port));
        let (weight, active) = (task.weight.to_string(), task.active.to_string());
        let (name, node) = (task.name.as_str(), task.node.as_str());
        table.row([&address, name, node, &weight, &active, &task_state(task)]);
    }
}

/// A virtual address has no ports: any of its tasks is reached at any port.
fn vip_row(table: &mut Table, service: &ServiceView, vip: &VipView, stats: bool) {
    let (address, name) = (format!("VIP {}", vip.address), service.name.as_str());
    let connections = vip.connections.map_or_else(String::new, |count| count.to_string());
    if stats {
        table.row([&address, name, &connections, "", "", "", ""]);
        return;
    }
    let state = match vip.connections {
        Some(_) => format!("{connections} connections from here"),
        None => "nothing here is on its network".to_owned(),
    };
    table.row([&address, name, "", "any", "", &state]);
}

fn frontend(port: &PortView) -> String {
    format!("{} *:{}", port.protocol.to_string().to_uppercase(), port.published)
}

fn counter_row(table: &mut Table, first: &str, second: &str, counters: &CountersView) {
    let CountersView { connections, rx_packets, rx_bytes, tx_packets, tx_bytes, .. } = *counters;
    let counts = [connections, rx_packets, tx_packets, rx_bytes, tx_bytes].map(|n| n.to_string());
    let [connections, rx_packets, tx_packets, rx_bytes, tx_bytes] = &counts;
    table.row([first, second, connections, rx_packets, tx_packets, rx_bytes, tx_bytes]);
}

fn short_balance(service: &ServiceView) -> &'static str {
    match service.balance {
        weir_mesh::Balance::RoundRobin => "rr",
        weir_mesh::Balance::Random => "random",
        weir_mesh::Balance::Maglev => "maglev",
        weir_mesh::Balance::Source => "source",
        weir_mesh::Balance::LeastConnections => "lc",
    }
}

fn port_state(port: &PortView) -> String {
    let mode = match port.mode {
        weir_mesh::PublishMode::Ingress => "",
        weir_mesh::PublishMode::Host => ", host mode",
    };
    let state = match (port.state, &port.holder) {
        (PortState::Served, _) => "served".to_owned(),
        (PortState::Withheld, Some(holder)) => format!("withheld: {holder}"),
        (PortState::Withheld, None) => "withheld".to_owned(),
        (PortState::Elsewhere, _) => "not on this node".to_owned(),
        (PortState::Pending, Some(reason)) => format!("not served: {reason}"),
        (PortState::Pending, None) => "not served yet".to_owned(),
    };
    state + mode
}

/// What the kernel does with the task, and what was asked for if that is something else.
fn task_state(task: &TaskView) -> String {
    let wanted = task.state.as_str();
    let via = match task.via.as_deref() {
        Some("unreachable") => ", unreachable",
        _ => "",
    };
    let state = match task.kernel.as_str() {
        kernel if kernel == wanted => format!("{wanted}{via}"),
        "gone" | "absent" if wanted == "down" => wanted.to_owned(),
        kernel => format!("{wanted} (kernel: {kernel}{via})"),
    };
    match &task.health {
        Some(reason) => format!("{state}; {reason}"),
        None => state,
    }
}

fn sockets(task: &TaskView, port: &PortView) -> String {
    let port = port.target.get();
    let socket = |address| std::net::SocketAddr::new(address, port).to_string();
    task.addresses.iter().copied().map(socket).collect::<Vec<_>>().join(",")
}

pub(super) fn nodes(agent: &AgentArgs) -> Result<Condition, Failed> {
    let answer: Nodes = client::get(agent, "/api/v1/nodes")?;
    if agent.output.output == Format::Json {
        print_json(&answer)?;
        return Ok(Condition::Ok);
    }
    let mut table = Table::default();
    table.row(["Node", "Address", "Tasks", ""]);
    for node in &answer.nodes {
        let (address, tasks) = (node.address.to_string(), node.tasks.to_string());
        let here = if node.here { "this node" } else { "" };
        table.row([node.name.as_str(), &address, &tasks, here]);
    }
    print(&table.text());
    Ok(Condition::Ok)
}

pub(super) fn dump(agent: &AgentArgs) -> Result<Condition, Failed> {
    let answer: StateDump = client::get(agent, "/api/v1/state")?;
    if agent.output.output == Format::Json {
        print_json(&answer)?;
    } else {
        print(&answer.dump);
    }
    Ok(Condition::Ok)
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
    kernel_object: &'static str,
}

pub(super) fn version(output: &OutputArgs) -> Result<Condition, Failed> {
    let version =
        Version { version: env!("CARGO_PKG_VERSION"), kernel_object: weir_loader::object_digest() };
    if output.output == Format::Json {
        print_json(&version)?;
    } else {
        print(&format!("weir {}, kernel object {}\n", version.version, version.kernel_object));
    }
    Ok(Condition::Ok)
}
