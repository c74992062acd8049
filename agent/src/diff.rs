//! What changed between two snapshots: walked through by those who act on it, and one line for the
//! log.

use std::{cmp::Ordering, collections::BTreeMap, fmt::Display};

use weir_mesh::{MeshSnapshot, Service};

/// One entry that differs.
pub enum Change<'a, V> {
    /// It came.
    Added(&'a V),
    /// It went.
    Removed(&'a V),
    /// It is another than before.
    Changed(&'a V, &'a V),
}

/// Shows every entry that differs to `visit`, in order. Both maps are gone through side by side:
/// looking each name up would take longer than all the rest of a small change.
pub fn each_change<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
    mut visit: impl FnMut(&'a K, Change<'a, V>),
) {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some((before, _)), Some((after, _))) => before.cmp(after),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return,
        };
        let before = if order.is_le() { old.next() } else { None };
        let after = if order.is_ge() { new.next() } else { None };
        match (before, after) {
            (Some((_, before)), Some((name, after))) if before != after => {
                visit(name, Change::Changed(before, after));
            }
            (Some((name, before)), None) => visit(name, Change::Removed(before)),
            (None, Some((name, after))) => visit(name, Change::Added(after)),
            _ => {}
        }
    }
}

/// What changed, most important first, at most a few names of each kind; empty if nothing did.
pub fn summary(old: &MeshSnapshot, new: &MeshSnapshot) -> String {
    let mut parts = Vec::new();
    push(&mut parts, "nodes", &changes(&old.nodes, &new.nodes, |_, _| String::new()));
    push(
        &mut parts,
        "services",
        &changes(&old.services, &new.services, |a, b| service_change(a, b)),
    );
    parts.join("; ")
}

const MOST_NAMES: usize = 5;

fn push(parts: &mut Vec<String>, what: &str, changes: &[String]) {
    if changes.is_empty() {
        return;
    }
    let shown = changes.iter().take(MOST_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = changes.len().saturating_sub(MOST_NAMES);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    parts.push(format!("{what}: {shown}{rest}"));
}

fn changes<K: Ord + Display, V: PartialEq>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    describe: impl Fn(&V, &V) -> String,
) -> Vec<String> {
    let (mut added, mut removed, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    each_change(old, new, |name, change| match change {
        Change::Added(_) => added.push(format!("+{name}")),
        Change::Removed(_) => removed.push(format!("-{name}")),
        Change::Changed(before, after) => {
            changed.push(format!("~{name}{}", describe(before, after)));
        }
    });
    added.into_iter().chain(removed).chain(changed).collect()
}

fn service_change(old: &Service, new: &Service) -> String {
    let mut parts = Vec::new();
    if old.tasks.len() != new.tasks.len() {
        parts.push(format!("{} -> {} tasks", old.tasks.len(), new.tasks.len()));
    } else if old.tasks != new.tasks {
        parts.push("tasks".to_owned());
    }
    if old.vips != new.vips {
        parts.push("vips".to_owned());
    }
    if old.ports != new.ports {
        parts.push("ports".to_owned());
    }
    if old.balance != new.balance {
        parts.push(format!("{} -> {}", old.balance.as_str(), new.balance.as_str()));
    }
    if old.timeouts != new.timeouts {
        parts.push("timeouts".to_owned());
    }
    format!(" ({})", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weir_mesh::{Balance, ServiceName, Timeouts};

    use super::*;

    fn mesh(services: &[(&str, Balance)]) -> MeshSnapshot {
        let service = |&(name, balance): &(&str, Balance)| {
            let name = ServiceName::new(name);
            let service = Service {
                name: name.clone(),
                balance,
                ports: Vec::new(),
                tasks: Vec::new(),
                timeouts: Timeouts::default(),
                health: Default::default(),
                vips: BTreeMap::new(),
                aliases: Default::default(),
            };
            (name, Arc::new(service))
        };
        let services = services.iter().map(service).collect();
        MeshSnapshot { services, ..MeshSnapshot::default() }
    }

    #[test]
    fn a_change_is_one_line() {
        let old = mesh(&[("api", Balance::RoundRobin), ("web", Balance::RoundRobin)]);
        let new = mesh(&[("dns", Balance::Random), ("web", Balance::Maglev)]);
        let line = "services: +dns, -api, ~web (round-robin -> maglev)";
        assert_eq!(summary(&old, &new), line);
        assert_eq!(summary(&new, &new), "");
    }

    #[test]
    fn a_change_of_very_much_stays_one_line() {
        let names: Vec<String> = (0..100).map(|i| format!("s{i:02}")).collect();
        let many: Vec<_> = names.iter().map(|name| (name.as_str(), Balance::Random)).collect();
        let line = summary(&mesh(&[]), &mesh(&many));
        assert_eq!(line, "services: +s00, +s01, +s02, +s03, +s04 and 95 more");
    }
}
