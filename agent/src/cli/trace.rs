//! `weir trace`: what this node would do with a flow, and why, without sending anything.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use clap::Args;
use weir_mesh::Protocol;

use super::{AgentArgs, Failed, client, table::Table, watch::Shown};
use crate::{
    api::{Enters, Trace, TraceVerdict},
    health::Condition,
};

#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    /// Who connects: an address, with a port if that is to count (10.0.0.7, [fd00::7]:40000); an
    /// address of this node stands for its processes
    #[arg(value_name = "SRC")]
    client: Client,
    /// Where to: an address of this node and a port (10.0.0.1:80, [fd00::1]:53/udp, localhost:80)
    #[arg(value_name = "DST:PORT[/udp]")]
    to: Target,
    #[command(flatten)]
    agent: AgentArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Client {
    address: IpAddr,
    port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    address: SocketAddr,
    protocol: Protocol,
}

impl FromStr for Client {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(address) = address(text) {
            return Ok(Self { address, port: None });
        }
        match socket(text) {
            Some(socket) => Ok(Self { address: socket.ip(), port: Some(socket.port()) }),
            None => {
                Err("write an address such as 10.0.0.7 or fd00::7, or one with a port such as \
                         10.0.0.7:40000 or [fd00::7]:40000"
                    .to_owned())
            }
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((rest, "tcp")) => (rest, Protocol::Tcp),
            Some((rest, "udp")) => (rest, Protocol::Udp),
            Some((_, other)) => {
                return Err(format!("\"{other}\" is no protocol: write tcp or udp"));
            }
        };
        match socket(rest).filter(|socket| socket.port() != 0) {
            Some(address) => Ok(Self { address, protocol }),
            None => Err("write an address and a port such as 10.0.0.1:80, [fd00::1]:80/udp or \
                         localhost:80"
                .to_owned()),
        }
    }
}

fn address(text: &str) -> Option<IpAddr> {
    match text {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        text => text.parse().ok(),
    }
}

fn socket(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.parse().ok()?)),
        None => text.parse().ok(),
    }
}

pub(super) fn trace(args: &TraceArgs) -> Result<Condition, Failed> {
    let Client { address, port } = args.client;
    let Target { address: to, protocol } = args.to;
    if address.is_ipv4() != to.is_ipv4() {
        return Err(format!("{address} cannot reach {to}: one is IPv4, the other IPv6"));
    }
    let port = port.map(|port| format!("&port={port}")).unwrap_or_default();
    let path = format!("/api/v1/trace?client={address}{port}&to={to}&protocol={protocol}");
    let answer: Trace = client::get(&args.agent.socket, &path)?;
    let condition = answer.condition();
    let shown = Shown::new(&args.agent.output, false, &answer, condition, || text(&answer))?;
    shown.print()
}

fn text(answer: &Trace) -> String {
    let Trace { node, protocol, client, to, verdict, reason, .. } = answer;
    let client = match answer.client_port {
        Some(port) => SocketAddr::new(*client, port).to_string(),
        None => client.to_string(),
    };
    let enters = match answer.enters {
        Enters::Uplink => format!("enters {node} from outside"),
        Enters::Container => format!("from a container of {node}"),
        Enters::Process => format!("from a process of {node}"),
        Enters::Proxy => format!("enters the proxy of {node}"),
    };
    let mut text = format!("{protocol} {client} -> {to}, {enters}\n");
    let service = answer.service.as_ref();
    let by = match (service, verdict) {
        (Some(service), TraceVerdict::Served) => format!(" by {service}"),
        _ => String::new(),
    };
    text.push_str(&format!("{}{by}: {reason}\n", verdict.as_str()));
    if let Some(hint) = &answer.hint {
        text.push_str(&format!("-> {hint}\n"));
    }
    if let Some(admission) = &answer.admission {
        text.push_str(&format!("clients: {admission}\n"));
    }
    if answer.tasks.is_empty() {
        return text;
    }
    let mut table = Table::default();
    table.row(["Share", "Task", "Node", "Address", "Path", "Client IP", "The task sees"]);
    for task in &answer.tasks {
        let share = format!("{:.0} %", task.percent);
        let address = task.address.map(|address| address.to_string()).unwrap_or_default();
        let kept = if task.client_kept { "kept" } else { "not kept" };
        let (name, node) = (task.task.as_str(), task.node.as_str());
        table.row([&share, name, node, &address, &task.by, kept, &task.sees]);
    }
    text.push_str(&table.text());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_and_where_to_are_read_as_they_are_written() {
        let client =
            |text: &str| text.parse::<Client>().map(|it| (it.address.to_string(), it.port));
        assert_eq!(client("10.0.0.7"), Ok(("10.0.0.7".into(), None)));
        assert_eq!(client("fd00::7"), Ok(("fd00::7".into(), None)));
        assert_eq!(client("[fd00::7]:40"), Ok(("fd00::7".into(), Some(40))));
        assert_eq!(client("localhost"), Ok(("127.0.0.1".into(), None)));
        assert!(client("web").is_err());
        let to =
            |text: &str| text.parse::<Target>().map(|it| format!("{} {}", it.protocol, it.address));
        assert_eq!(to("10.0.0.1:80"), Ok("tcp 10.0.0.1:80".into()));
        assert_eq!(to("[fd00::1]:53/udp"), Ok("udp [fd00::1]:53".into()));
        assert_eq!(to("localhost:80/tcp"), Ok("tcp 127.0.0.1:80".into()));
        assert_eq!(
            to("10.0.0.1:80/sctp").unwrap_err(),
            "\"sctp\" is no protocol: write tcp or udp"
        );
        assert!(to("10.0.0.1").is_err() && to("10.0.0.1:0").is_err());
    }
}
