//! Who may be a client of a service, and which tasks clients get.

use weir_mesh::{Access, Balance, Locality, Subnet, access::SubnetError};

use crate::document::{Table, Value};

/// How new flows choose a task: `affinity` is another word for one way to do so.
pub(super) fn balance(table: Table<'_, '_>) -> Balance {
    let choices = Balance::ALL.map(|balance| (balance.as_str(), balance));
    let balance = table.get("balance").and_then(|value| value.choice(&choices));
    let Some(value) = table.get("affinity") else { return balance.unwrap_or_default() };
    if value.choice(&[("client-ip", ())]).is_some() && balance.is_some_and(|it| !it.is_hashed()) {
        value.fault("contradicts balance", "leave one of them out");
    }
    Balance::Source
}

/// Whose tasks clients get.
pub(super) fn locality(value: Value<'_, '_>) -> Option<Locality> {
    value.choice(&Locality::ALL.map(|locality| (locality.as_str(), locality)))
}

/// Who may be a client.
pub(super) fn access(table: Table<'_, '_>) -> Access {
    let ranges = |key| {
        let listed =
            table.get(key).and_then(|value| value.list(&format!("{key} = [\"10.0.0.0/8\"]")));
        let ranges: Vec<Subnet> = listed.into_iter().flatten().filter_map(subnet).collect();
        ranges
    };
    let access = Access { allow: ranges("allow"), deny: ranges("deny") };
    if let Some(value) = table.get("allow") {
        if let Some(both) = access.contradiction() {
            value.fault(format!("{both} is in deny, too"), "leave it out of one of them");
        }
        if access.allow.is_empty() && value.is_list() {
            let remedy = "name who may be a client, or leave the key out for everybody";
            value.fault("no range of addresses", remedy);
        }
    }
    access
}

fn subnet(value: Value<'_, '_>) -> Option<Subnet> {
    let text = value.string("a range of addresses such as \"10.0.0.0/8\"")?;
    match text.parse() {
        Ok(subnet) => Some(subnet),
        Err(SubnetError::Loose(tight)) => {
            value.fault("has bits beyond its length", format!("write \"{tight}\""));
            None
        }
        Err(SubnetError::Malformed) => {
            value.fault("not a range of addresses", "write one such as \"10.0.0.0/8\"");
            None
        }
    }
}
