//! `publish`: Docker's short syntax, or a table for what it cannot say.

use weir_mesh::{
    PublishMode, PublishedPort, TargetPort,
    ports::{PortSpec, parse_ports},
};

use super::services::PortDraft;
use crate::document::{Table, Value};

const EXAMPLE: &str =
    "publish = [\"8080:80\", { published = 53, target = 53, protocol = \"udp\" }]";

/// All entries of the list, ranges expanded.
pub(super) fn ports(list: Value<'_, '_>) -> Vec<PortDraft> {
    let entries = list.list(EXAMPLE);
    let mut ports = Vec::new();
    for entry in entries.into_iter().flatten() {
        let offset = entry.offset();
        ports.extend(entry_ports(entry).into_iter().map(|spec| PortDraft { spec, offset }));
    }
    ports
}

fn entry_ports(entry: Value<'_, '_>) -> Vec<PortSpec> {
    if let Some(number) = entry.integer_text() {
        return short(entry, &number);
    }
    if entry.is_table() {
        let table = entry.table(EXAMPLE);
        return table.and_then(|table| long(entry, table)).into_iter().collect();
    }
    match entry.string("an entry such as \"8080:80\"") {
        Some(text) => short(entry, text),
        None => Vec::new(),
    }
}

fn short(entry: Value<'_, '_>, text: &str) -> Vec<PortSpec> {
    match parse_ports(text) {
        Ok(specs) => specs,
        Err(error) => {
            // The message is "problem; remedy" already.
            let message = error.to_string();
            let message = without_spec(&message, text);
            let (problem, remedy) = message.split_once("; ").unwrap_or((&message, ""));
            entry.fault(problem, remedy);
            Vec::new()
        }
    }
}

/// The fault shows the value in front of the message.
fn without_spec(message: &str, spec: &str) -> String {
    let message = message.replace(&format!(" in \"{spec}\""), "");
    match message.strip_prefix(&format!("\"{spec}\" ")) {
        Some(rest) => rest.to_owned(),
        None => message,
    }
}

fn long(entry: Value<'_, '_>, table: Table<'_, '_>) -> Option<PortSpec> {
    let subject = entry.key();
    let table = table.named(&subject);
    table.allow_only(&["published", "target", "protocol", "mode"]);
    let port = |value: Value<'_, '_>| u16::try_from(value.number(1..=65535)?).ok();
    let target =
        table.require("target", "write where the tasks listen: target = 80").and_then(port);
    let given = table.get("published");
    let published = given.and_then(port).and_then(PublishedPort::new);
    let protocol = match table.get("protocol") {
        Some(value) => value.choice(&[("tcp", PROTOCOLS[0]), ("udp", PROTOCOLS[1])]),
        None => Some(PROTOCOLS[0]),
    };
    let modes = [PublishMode::Ingress, PublishMode::Host].map(|mode| (mode.as_str(), mode));
    let mode = table.get("mode").map_or(Some(PublishMode::Ingress), |value| value.choice(&modes));
    if given.is_some() && published.is_none() {
        return None;
    }
    let target = TargetPort::new(target?)?;
    Some(PortSpec { protocol: protocol?, published, target, mode: mode? })
}

const PROTOCOLS: [weir_mesh::Protocol; 2] = weir_mesh::Protocol::ALL;
