//! `weir services`: in the manner of `ipvsadm -Ln`.

use std::{
    thread,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use weir_mesh::EndpointMode;

use super::{
    Failed, SocketArgs, client, ipvsadm,
    table::{Table, json},
    watch::{Shown, WatchArgs},
};
use crate::{
    api::{
        self, CountersView, PortState, PortView, Rate, Rates, ServiceView, Services, Status,
        TaskView, VipView,
    },
    document::missing,
    health::Condition,
};

#[derive(Debug, Args)]
pub(super) struct ServicesArgs {
    /// Only this service
    name: Option<String>,
    /// Show what was counted on this node
    #[arg(long, conflicts_with = "rate")]
    stats: bool,
    /// Show what is counted a second on this node; takes a second or two
    #[arg(long)]
    rate: bool,
    /// How the answer looks
    #[arg(short, long, value_enum, default_value_t)]
    output: ServicesFormat,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    socket: SocketArgs,
}

/// How services are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum ServicesFormat {
    #[default]
    Table,
    Json,
    /// As ipvsadm -Ln prints them, for scripts that read that
    Ipvsadm,
}

/// In place of a table.
pub(super) const NO_SNAPSHOT: &str = "there is no snapshot yet; weir status says why\n";
/// Of a service with `--endpoint-mode dnsrr`.
const DNSRR: &str =
    "dnsrr: its name leads to its tasks; Docker publishes its ports in host mode only";
/// Counters are read at most once a second.
const BETWEEN: Duration = Duration::from_millis(1100);
/// A busy agent answers with old counters: so long they are asked for again.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn services(args: &ServicesArgs) -> Result<Condition, Failed> {
    let mut earlier = None;
    args.watch.show(|| {
        let answer = ask(args)?;
        if !args.rate {
            return shown(args, &answer, None);
        }
        let before = match earlier.take() {
            Some(before) => before,
            None => answer,
        };
        let (after, rates) = again(args, &before)?;
        let shown = shown(args, &after, Some(&rates));
        earlier = Some(after);
        shown
    })
}

/// The answer after the next reading of the counters, and what happened between the two.
fn again(args: &ServicesArgs, before: &Services) -> Result<(Services, Rates), Failed> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let after = ask(args)?;
        match api::rates(before, &after) {
            Some(rates) => return Ok((after, rates)),
            None if Instant::now() >= deadline => {
                return Err("the agent has not read the counters again within 10 s; weir status \
                            says whether it is well"
                    .to_owned());
            }
            None => thread::sleep(BETWEEN),
        }
    }
}

fn ask(args: &ServicesArgs) -> Result<Services, Failed> {
    match &args.name {
        Some(name) => one_service(&args.socket, name),
        None => client::get(&args.socket, "/api/v1/services"),
    }
}

fn shown(args: &ServicesArgs, answer: &Services, rates: Option<&Rates>) -> Result<Shown, Failed> {
    let compact = args.watch.is_on();
    let text = match (args.output, rates) {
        (ServicesFormat::Json, Some(rates)) => json(rates, compact)?,
        (ServicesFormat::Json, None) => json(answer, compact)?,
        (ServicesFormat::Ipvsadm, _) => {
            let status: Status = client::get(&args.socket, "/api/v1/status")?;
            ipvsadm::text(status.address, answer, args.stats, rates)
        }
        (ServicesFormat::Table, Some(rates)) => rates_text(answer, rates),
        (ServicesFormat::Table, None) => services_text(answer, args.stats),
    };
    Ok(Shown { text, condition: Condition::Ok })
}

pub(super) fn one_service(socket: &SocketArgs, name: &str) -> Result<Services, Failed> {
    // What cannot stand in a request line is no name of a service either.
    if let Ok(query) = client::value("name", name) {
        let answer: Services = client::get(socket, &format!("/api/v1/services?{query}"))?;
        if !answer.services.is_empty() || answer.generation.is_none() {
            return Ok(answer);
        }
    }
    let mut all: Services = client::get(socket, "/api/v1/services")?;
    let problem = missing("service", name, all.services.iter().map(|it| it.name.as_str()));
    all.services.retain(|service| service.name.as_str() == name);
    if all.services.is_empty() { Err(problem) } else { Ok(all) }
}

fn services_text(answer: &Services, stats: bool) -> String {
    if answer.generation.is_none() {
        return NO_SNAPSHOT.to_owned();
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
        if service.endpoint_mode == EndpointMode::Dnsrr && !stats {
            table.row(["DNS", service.name.as_str(), "", "any", "", DNSRR]);
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
    let mut state = match vip.connections {
        Some(_) => format!("{connections} connections from here"),
        None => "nothing here is on its network".to_owned(),
    };
    if !vip.routed.is_empty() {
        state += &format!("; routed: {}", vip.routed.join(", "));
    }
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

fn rates_text(answer: &Services, rates: &Rates) -> String {
    if answer.generation.is_none() {
        return NO_SNAPSHOT.to_owned();
    }
    let mut table = Table::default();
    table.row(["Prot Published", "Service", "CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"]);
    table.row(["  -> Address", "Task", "", "", "", "", ""]);
    for (service, rates) in answer.services.iter().zip(&rates.services) {
        for (port, of) in service.ports.iter().zip(&rates.ports) {
            rate_row(&mut table, &frontend(port), service.name.as_str(), of.rate);
        }
        for (task, of) in service.tasks.iter().zip(&rates.tasks) {
            let addresses: Vec<String> = task.addresses.iter().map(ToString::to_string).collect();
            let address = format!("  -> {}", addresses.join(","));
            rate_row(&mut table, &address, task.name.as_str(), of.rate);
        }
    }
    table.text()
}

fn rate_row(table: &mut Table, first: &str, second: &str, rate: Rate) {
    let Rate { connections, rx_packets, tx_packets, rx_bytes, tx_bytes } = rate;
    let rates = [connections, rx_packets, tx_packets, rx_bytes, tx_bytes];
    let [connections, rx_packets, tx_packets, rx_bytes, tx_bytes] =
        rates.map(|rate| format!("{rate:.0}"));
    table.row([first, second, &connections, &rx_packets, &tx_packets, &rx_bytes, &tx_bytes]);
}

pub(super) fn short_balance(service: &ServiceView) -> &'static str {
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
