//! `weir monitor`: what happens on this node, as it happens.

use std::{
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    AgentArgs, Failed, Format, client, parse_time,
    table::{json, print},
};
use crate::{
    api::{Event, EventKind, Look, Looks},
    health::Condition,
};

#[derive(Debug, Args)]
pub(super) struct MonitorArgs {
    /// Only packets that were not forwarded: which, and how many for each reason
    #[arg(long)]
    dropped: bool,
    /// Only what concerns this service; how many packets were not forwarded is not counted by service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Look so often; the agent reads counters at most once a second
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "1s")]
    every: Duration,
    /// End after this time [default: with Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    time: Option<Duration>,
    #[command(flatten)]
    agent: AgentArgs,
}

/// As it is printed with `-o json`, one a line.
#[derive(Serialize, JsonSchema)]
pub(super) struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event,
}

pub(super) fn monitor(args: &MonitorArgs) -> Result<Condition, Failed> {
    let deadline = args.time.map(|time| Instant::now() + time);
    let mut looks = Looks::new(look(args)?);
    if let Some(name) = &args.service {
        super::services::one_service(&args.agent.socket, name)?;
    }
    let mut lost = None;
    while deadline.is_none_or(|deadline| Instant::now() < deadline) {
        thread::sleep(args.every);
        let after = match look(args) {
            Ok(after) => after,
            // An agent that is started anew comes back.
            Err(failed) => {
                if lost.as_ref() != Some(&failed) && !print(&format!("weir: {failed}\n")) {
                    break;
                }
                lost = Some(failed);
                continue;
            }
        };
        lost = None;
        let all = looks.next(after);
        let text: Result<String, Failed> =
            all.iter().filter(|event| wanted(args, event)).map(|event| line(args, event)).collect();
        if !print(&text?) {
            break;
        }
    }
    Ok(Condition::Ok)
}

fn look(args: &MonitorArgs) -> Result<Look, Failed> {
    let socket = &args.agent.socket;
    Ok(Look {
        status: client::get(socket, "/api/v1/status")?,
        services: client::get(socket, "/api/v1/services")?,
        tasks: client::get(socket, "/api/v1/tasks")?,
        drops: client::get(socket, "/api/v1/drops")?,
        packets: client::get(socket, "/api/v1/drops/packets")?,
    })
}

fn wanted(args: &MonitorArgs, event: &Event) -> bool {
    if args.dropped && !matches!(event.kind, EventKind::Drop | EventKind::Packet) {
        return false;
    }
    let service = event.service.as_ref().map(|service| service.as_str());
    args.service.as_deref().is_none_or(|wanted| service == Some(wanted))
}

fn line(args: &MonitorArgs, event: &Event) -> Result<String, Failed> {
    let now = OffsetDateTime::now_utc();
    let now = now.replace_nanosecond(0).unwrap_or(now);
    let time = now.format(&Rfc3339).map_err(|error| error.to_string())?;
    if args.agent.output.output == Format::Json {
        return json(&Line { time, event }, true);
    }
    // `2026-01-31T23:59:59Z`
    let time = time.get(11..19).unwrap_or_default();
    let count = match (event.count, event.per_second) {
        (Some(count), Some(rate)) => format!("+{count} ({rate:.1}/s)  "),
        (Some(count), None) => format!("+{count}  "),
        (None, _) => String::new(),
    };
    let (kind, subject, text) = (event.kind.as_str(), &event.subject, &event.text);
    Ok(format!("{time}  {kind:<9}  {subject:<20}  {count}{text}\n"))
}
