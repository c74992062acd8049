//! `proxy_protocol`, `accept_proxy_protocol`, `limits`, `per_packet` and `transparent` of a service.

use weir_mesh::proxied::{FlowLimits, HeaderVersion, Prefix, PrefixError, Proxied};

use crate::document::{Table, Value};

/// The keys of a service that are read here.
pub(super) const KEYS: [&str; 5] =
    ["proxy_protocol", "accept_proxy_protocol", "limits", "per_packet", "transparent"];
const NETWORKS: &str = "accept_proxy_protocol = [\"10.0.0.0/8\"]";
const MOST: u64 = 1 << 24;

/// What only the proxy can do for a service.
pub(super) fn proxied(table: Table<'_, '_>, service: &str) -> Proxied {
    let versions = [("v1", HeaderVersion::V1), ("v2", HeaderVersion::V2)];
    let per_packet = table.get("per_packet").and_then(|value| value.switch("per_packet = true"));
    let transparent = table.get("transparent").and_then(|value| value.switch("transparent = true"));
    let trusted = table.get("accept_proxy_protocol").and_then(|value| value.list(NETWORKS));
    Proxied {
        header: table.get("proxy_protocol").and_then(|value| value.choice(&versions)),
        trusted: trusted.into_iter().flatten().filter_map(prefix).collect(),
        limits: table.get("limits").and_then(|value| limits(value, service)).unwrap_or_default(),
        per_packet: per_packet.unwrap_or_default(),
        transparent: transparent.unwrap_or_default(),
    }
}

fn prefix(value: Value<'_, '_>) -> Option<Prefix> {
    let example = "a network such as \"10.0.0.0/8\", or an address";
    let parsed = value.string(example)?.parse::<Prefix>();
    match parsed {
        Ok(prefix) => return Some(prefix),
        Err(PrefixError::Syntax) => value.fault("not a network", format!("write {example}")),
        Err(PrefixError::Loose(network)) => {
            let problem = "the address has more bits than its prefix";
            value.fault(problem, format!("write \"{network}\", or another prefix"));
        }
    }
    None
}

fn limits(value: Value<'_, '_>, service: &str) -> Option<FlowLimits> {
    let subject = format!("{service}: limits");
    let table = value.table("limits = { … }")?.named(&subject);
    let mut limits = FlowLimits::default();
    let mut fields = [
        ("connections", &mut limits.connections),
        ("per_client", &mut limits.per_client),
        ("per_task", &mut limits.per_task),
        ("rate", &mut limits.rate),
    ];
    table.allow_only(&fields.each_ref().map(|(key, _)| *key));
    for (key, field) in &mut fields {
        let number = table.get(key).and_then(|value| value.number(1..=MOST));
        **field = number.and_then(|number| u32::try_from(number).ok());
    }
    Some(limits)
}
