//! `weir dns query`, `records`, `cache`, `upstreams`: the DNS server, from within.

use std::net::IpAddr;

use clap::Subcommand;

use super::{
    AgentArgs, Failed, Format, client,
    table::{Table, print, print_json},
};
use crate::{
    dns::view::{CacheView, QueryView, RecordsView, UpstreamsView},
    health::Condition,
};

#[derive(Debug, Subcommand)]
pub(super) enum DnsCommand {
    /// Ask as somebody would, and say where the answer comes from
    #[command(
        after_help = "Examples:\n  weir dns query web\n  weir dns query tasks.web.weir. AAAA\n  \
                            weir dns query web --from 172.18.0.5"
    )]
    Query {
        /// The name
        name: String,
        /// The type of record
        #[arg(default_value = "A")]
        kind: String,
        /// Ask as a container or client with this address would [default: as this node]
        #[arg(long, value_name = "ADDRESS")]
        from: Option<IpAddr>,
        #[command(flatten)]
        agent: AgentArgs,
    },
    /// List all names of services and tasks
    #[command(after_help = "Example:\n  weir dns records | grep ^tasks.web")]
    Records(AgentArgs),
    /// List what is remembered of other servers' answers
    #[command(after_help = "Example:\n  weir dns cache | grep example.com")]
    Cache(AgentArgs),
    /// List the servers that are asked for other names, and how they answer
    #[command(after_help = "Example:\n  weir dns upstreams -o json")]
    Upstreams(AgentArgs),
}

pub(super) fn run(command: DnsCommand) -> Result<Condition, Failed> {
    match command {
        DnsCommand::Query { name, kind, from, agent } => query(&agent, &name, &kind, from),
        DnsCommand::Records(agent) => records(&agent),
        DnsCommand::Cache(agent) => cache(&agent),
        DnsCommand::Upstreams(agent) => upstreams(&agent),
    }
}

/// Degraded when the answer is that something failed.
fn query(
    agent: &AgentArgs,
    name: &str,
    kind: &str,
    from: Option<IpAddr>,
) -> Result<Condition, Failed> {
    let part = |key, text| {
        client::value(key, text)
            .map_err(|problem| format!("{problem}: write letters, digits, \"-\", \"_\" and dots"))
    };
    let from = from.map(|from| format!("&from={from}")).unwrap_or_default();
    let path = format!("/api/v1/dns/query?{}{}{from}", part("name", name)?, part("type", kind)?);
    let said: QueryView = client::get(&agent.socket, &path)?;
    let answered = ["No Error", "Non-Existent Domain"].contains(&said.code.as_str());
    if agent.output.output == Format::Json {
        print_json(&said)?;
    } else {
        let own = if said.authoritative { ", authoritative" } else { "" };
        let mut text =
            format!("{}, {}{own}, {:.2} ms\n", said.code, said.source, said.milliseconds);
        for (title, records) in [
            ("answer", &said.answers),
            ("authority", &said.authority),
            ("additional", &said.additional),
        ] {
            for record in records {
                text.push_str(&format!("{title:<10}  {record}\n"));
            }
        }
        print(&text);
    }
    Ok(if answered { Condition::Ok } else { Condition::Degraded })
}

fn records(agent: &AgentArgs) -> Result<Condition, Failed> {
    let answer: RecordsView = client::get(&agent.socket, "/api/v1/dns/records")?;
    if agent.output.output == Format::Json {
        print_json(&answer)?;
    } else if answer.generation.is_none() {
        print("there is no snapshot yet; weir status says why\n");
    } else {
        print(&answer.records);
    }
    Ok(Condition::Ok)
}

fn cache(agent: &AgentArgs) -> Result<Condition, Failed> {
    let answer: CacheView = client::get(&agent.socket, "/api/v1/dns/cache")?;
    if agent.output.output == Format::Json {
        print_json(&answer)?;
        return Ok(Condition::Ok);
    }
    let CacheView { bytes, capacity, hits, misses, entries } = &answer;
    let count = entries.len();
    let mut text =
        format!("{count} answers, {bytes} of {capacity} bytes, {hits} hits, {misses} misses\n");
    let mut table = Table::default();
    table.row(["Name", "Type", "Code", "Records", "TTL", "Hits"]);
    for entry in entries {
        let numbers = [u64::from(entry.rtype), u64::from(entry.rcode), entry.records as u64];
        let [rtype, rcode, records] = numbers.map(|number| number.to_string());
        let (ttl, hits) = (entry.ttl.to_string(), entry.hits.to_string());
        table.row([&entry.name, &rtype, &rcode, &records, &ttl, &hits]);
    }
    text.push_str(&table.text());
    print(&text);
    Ok(Condition::Ok)
}

fn upstreams(agent: &AgentArgs) -> Result<Condition, Failed> {
    let answer: UpstreamsView = client::get(&agent.socket, "/api/v1/dns/upstreams")?;
    if agent.output.output == Format::Json {
        print_json(&answer)?;
        return Ok(Condition::Ok);
    }
    let mut table = Table::default();
    table.row(["Domain", "Server", "State", "Queries", "Failures", "Last", "Trouble"]);
    for one in &answer.upstreams {
        let address = one.address.to_string();
        let (queries, failures) = (one.queries.to_string(), one.failures.to_string());
        let took = one.milliseconds.map(|took| format!("{took:.1} ms")).unwrap_or_default();
        let state = if one.up { "up" } else { "down" };
        let trouble = one.trouble.as_deref().unwrap_or_default();
        table.row([&one.domain, &address, state, &queries, &failures, &took, trouble]);
    }
    print(&table.text());
    Ok(Condition::Ok)
}
