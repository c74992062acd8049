//! Whether the agent does its job, subsystem by subsystem: readiness, `weir status` and its exit
//! code.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    config::{Mode, SourceConfig},
    drain::DrainedTask,
    observe::Observation,
    plane::{Chosen, Kind},
};

/// How a subsystem is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// As it should be.
    Ok,
    /// It works, with something to look at.
    Degraded,
    /// It does not work.
    Failed,
}

impl Condition {
    /// The word that is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
        }
    }
}

/// One subsystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Subsystem {
    /// Which.
    pub name: String,
    /// How it is.
    pub condition: Condition,
    /// Whether clients may be sent to this node as far as this is concerned.
    pub ready: bool,
    /// Why it is so.
    pub reason: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

/// All subsystems, in the order in which a change passes them.
pub fn subsystems(now: &Observation) -> Vec<Subsystem> {
    let mut all = vec![source(now)];
    all.extend(link(now));
    all.extend([dataplane(now), hooks(now), reconciler(now)]);
    all.extend(dns(now));
    all.extend(drained(now));
    all.push(mesh(now));
    all
}

/// The worst of them.
pub fn worst(subsystems: &[Subsystem]) -> Condition {
    subsystems.iter().map(|subsystem| subsystem.condition).max().unwrap_or(Condition::Ok)
}

impl Subsystem {
    fn new(name: &str, condition: Condition, reason: impl Into<String>) -> Self {
        let ready = condition != Condition::Failed;
        let (name, reason, hint) = (name.to_owned(), reason.into(), String::new());
        Self { name, condition, ready, reason, hint }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    fn ready(self, ready: bool) -> Self {
        Self { ready, ..self }
    }
}

/// A source in trouble does no harm while there is a last good state.
fn source(now: &Observation) -> Subsystem {
    let (name, path) = match &now.config.source {
        SourceConfig::File(file) => ("source file", file.path.display()),
        SourceConfig::Docker(docker) => ("source docker", docker.socket.display()),
    };
    match (&now.source.trouble, &now.view.snapshot) {
        (Some(trouble), None) => Subsystem::new(name, Condition::Failed, trouble.summary())
            .hint("nothing is published by this agent until its source is good"),
        (Some(trouble), Some(snapshot)) => {
            let kept = if now.view.stale { "the state on disk" } else { "the last good state" };
            let hint = format!("{kept} (generation {}) stays in place", snapshot.generation);
            Subsystem::new(name, Condition::Degraded, trouble.summary()).hint(hint)
        }
        (None, None) => Subsystem::new(name, Condition::Failed, format!("{path} is not read yet")),
        (None, Some(snapshot)) => {
            let counted = format!(
                "{path}: {} services, {} nodes (generation {})",
                snapshot.services.len(),
                snapshot.nodes.len(),
                snapshot.generation
            );
            match &*now.source.notes {
                [] => Subsystem::new(name, Condition::Ok, counted),
                [first, more @ ..] => {
                    let more = match more.len() {
                        0 => String::new(),
                        more => format!(" (and {more} more: weir status -o json)"),
                    };
                    let hint = format!("{first}{more}");
                    Subsystem::new(name, Condition::Degraded, counted).hint(hint)
                }
            }
        }
    }
}

/// Without the link this node goes on with what it last heard: it is ready all the same.
fn link(now: &Observation) -> Option<Subsystem> {
    let name = "cluster link";
    let status = &now.link.as_ref()?.status;
    let degraded = |reason: String| Subsystem::new(name, Condition::Degraded, reason);
    if let Some(trouble) = &status.identity_trouble {
        return Some(
            degraded(trouble.clone()).hint("other nodes do not hear of this node's tasks"),
        );
    }
    if status.expired {
        let reason = "this node's certificate has expired (or its clock is wrong)";
        let hint = match &now.config.link.files {
            Some(files) => format!("issue another: weir ca issue; it is {:?}", files.certificate),
            None => "dockerd renews it: is it running, and does it reach a manager?".to_owned(),
        };
        return Some(degraded(reason.to_owned()).hint(hint));
    }
    if let Some(trouble) = status.hub.as_ref().and_then(|hub| hub.trouble.as_ref()) {
        return Some(degraded(trouble.clone()).hint("other nodes cannot reach this manager"));
    }
    let connected = status.managers.values().filter(|peer| peer.connected).count();
    let silent = status.managers.iter().find(|(_, peer)| !peer.connected && !peer.own);
    Some(match (silent, status.view.as_str()) {
        (Some((address, peer)), view) => {
            let why = peer.trouble.as_deref().unwrap_or("it does not answer");
            let reason = format!("the agent of the manager at {address} is not reached: {why}");
            degraded(reason).hint(match view {
                "nobody" => "the last state that was heard stays in place",
                _ => "the other managers' agents are heard",
            })
        }
        (None, "nobody") => degraded("no agent on a manager is heard".to_owned()),
        (None, "own") => {
            let alive = status.hub.as_ref().map_or(0, |hub| hub.alive);
            let refused = status.hub.as_ref().and_then(|hub| hub.refused.back());
            let refused = refused.map(|last| format!("last refused: {last}")).unwrap_or_default();
            Subsystem::new(name, Condition::Ok, format!("a manager's, {alive} nodes are heard"))
                .hint(refused)
        }
        (None, view) => Subsystem::new(
            name,
            Condition::Ok,
            format!("hears the agent on {view}, reports to {connected} managers"),
        ),
    })
}

fn dataplane(now: &Observation) -> Subsystem {
    let name = "data plane";
    match &now.report.plane {
        Some(Chosen { kind: Kind::Ebpf, .. }) if now.opened => {
            let pin = now.config.dataplane.pin.display();
            Subsystem::new(name, Condition::Ok, format!("ebpf, pinned in {pin}"))
        }
        Some(Chosen { kind: Kind::Proxy, reason }) if now.opened => {
            let subsystem = Subsystem::new(name, Condition::Ok, format!("proxy: {reason}"));
            match now.config.dataplane.mode {
                Mode::Proxy => subsystem,
                _ => {
                    subsystem.hint("all nodes of the mesh must use the same; weir check says more")
                }
            }
        }
        _ => Subsystem::new(name, Condition::Failed, "it is being opened"),
    }
}

/// Ports that clients are served at by sockets.
fn listeners(now: &Observation) -> Subsystem {
    let name = "listeners";
    let listened = now.report.ports.len();
    match now.report.unserved.values().next() {
        None => {
            let one = now.report.attachments.hooks.contains_key("sk_lookup");
            let how = if one { ", TCP by one listener (sk_lookup)" } else { "" };
            Subsystem::new(name, Condition::Ok, format!("{listened} ports{how}"))
        }
        Some(first) => {
            let missing = now.report.unserved.len();
            let reason = format!("{missing} of {listened} ports are not listened on: {first}");
            Subsystem::new(name, Condition::Degraded, reason)
        }
    }
}

fn hooks(now: &Observation) -> Subsystem {
    let name = "interfaces";
    if now.report.plane.as_ref().is_some_and(|plane| plane.kind == Kind::Proxy) {
        return listeners(now);
    }
    let attachments = &now.report.attachments;
    if let Some(failure) = &now.report.host_failed {
        return Subsystem::new(name, Condition::Failed, failure.clone());
    }
    if let Some((hook, failure)) = attachments.failed.first_key_value() {
        let reason = format!("{hook} is not attached: {failure}");
        return Subsystem::new(name, Condition::Failed, reason).hint("run weir check");
    }
    if !attachments.missing.is_empty() {
        let missing: Vec<&str> = attachments.missing.iter().map(String::as_str).collect();
        let all = now.config.node.uplinks.iter().all(|up| attachments.missing.contains(up));
        let condition = if all { Condition::Failed } else { Condition::Degraded };
        let reason = format!("no such interface: {}", missing.join(", "));
        let hint = "clients are served there as soon as it appears; if the name is wrong, correct \
                    node.uplinks";
        return Subsystem::new(name, condition, reason).hint(hint);
    }
    let on_cgroup = attachments.hooks.values().filter(|how| **how == "cgroup").count();
    let hooks = attachments.hooks.iter().filter(|(_, how)| **how != "cgroup");
    let mut hooks: Vec<String> = hooks.map(|(hook, how)| format!("{hook} ({how})")).collect();
    hooks.push(format!("{on_cgroup} hooks on the cgroup"));
    Subsystem::new(name, Condition::Ok, hooks.join(", "))
}

/// The kernel lagging behind for a moment is no reason to send clients elsewhere.
fn reconciler(now: &Observation) -> Subsystem {
    let name = "reconciler";
    let report = &now.report;
    if let Some(failure) = &report.failed {
        let condition = Condition::Failed;
        return Subsystem::new(name, condition, failure.clone())
            .hint("it is tried again; what was in the kernel before goes on serving")
            .ready(report.generation.is_some());
    }
    match (report.generation, report.wanted) {
        (Some(held), wanted) if wanted.is_none_or(|wanted| wanted == held) => {
            let ports = report.ports.len();
            let reason = format!("generation {held} is in the data plane, {ports} ports");
            Subsystem::new(name, Condition::Ok, reason)
        }
        (None, None) => Subsystem::new(name, Condition::Failed, "there is no snapshot yet")
            .hint("what an earlier agent left in the kernel goes on serving"),
        (held, Some(wanted)) => {
            let reason = format!("generation {wanted} is on its way into the data plane");
            Subsystem::new(name, Condition::Degraded, reason).ready(held.is_some())
        }
        (Some(_), None) => Subsystem::new(name, Condition::Degraded, "there is no snapshot"),
    }
}

/// Clients that come in by published ports do not need it.
fn dns(now: &Observation) -> Option<Subsystem> {
    let name = "dns";
    let dns = now.dns.as_ref()?;
    let view = dns.view();
    let degraded = |reason: String, hint: &str| {
        Some(Subsystem::new(name, Condition::Degraded, reason).hint(hint))
    };
    let failed = view.listen.iter().find_map(|(at, failure)| Some((at, failure.as_ref()?)));
    let listening: Vec<String> = view
        .listen
        .iter()
        .filter(|(_, failure)| failure.is_none())
        .map(|(address, _)| address.to_string())
        .collect();
    if dns.config.wanted {
        if let Some((address, failure)) = failed {
            let reason = format!("cannot listen at {address}: {failure}");
            return degraded(
                reason,
                "it is tried again; change dns.listen, or end who has the port",
            );
        }
        if !view.missing.is_empty() {
            let reason = format!("nothing to listen at: {}", view.missing.join(", "));
            return degraded(reason, "it is listened there as soon as there is an address");
        }
    }
    if let Some(network) = dns.handler.directory.load().missing.first() {
        let reason = format!("dns.networks names \"{network}\", which is no network");
        return degraded(reason, "weir dns records shows what there is");
    }
    let upstreams = dns.upstreams().upstreams;
    if !upstreams.is_empty() && upstreams.iter().all(|upstream| !upstream.up) {
        let trouble = upstreams.iter().find_map(|upstream| upstream.trouble.clone());
        let reason = format!("no server answers for other names: {}", trouble.unwrap_or_default());
        return degraded(reason, "names of services are answered all the same");
    }
    let at = match (listening.as_slice(), view.missing.as_slice(), failed) {
        ([], [missing, ..], _) => format!("waits for {missing}"),
        ([], [], Some((address, failure))) => format!("not at {address}: {failure}"),
        ([], [], None) => "about to listen".to_owned(),
        (addresses, ..) => format!("at {}", addresses.join(", ")),
    };
    let names = match view.generation {
        Some(generation) => format!("{} names (generation {generation})", view.names),
        None => "no names yet".to_owned(),
    };
    Some(Subsystem::new(name, Condition::Ok, format!("{at}; {names}")))
}

/// Somebody wanted it so; a node that is drained takes no clients either. Of a task that has left
/// the mesh nothing is missed.
fn drained(now: &Observation) -> Option<Subsystem> {
    let name = "drain";
    let drained = &now.drained;
    if drained.node {
        let reason = "this node is drained by hand: its tasks take no new flows";
        let subsystem = Subsystem::new(name, Condition::Degraded, reason).ready(false);
        return Some(subsystem.hint("weir undrain node"));
    }
    let snapshot = now.view.snapshot.as_deref();
    let is_there = |task: &&DrainedTask| snapshot.is_none_or(|snapshot| task.is_in(snapshot));
    let mut there = drained.tasks.iter().filter(is_there);
    let first = there.next()?;
    let (task, service) = (&first.task, &first.service);
    let more = match there.count() {
        0 => String::new(),
        count => format!(" (and {count} more)"),
    };
    let reason = format!("task {task} of {service} is drained by hand{more}");
    let hint = format!("weir undrain task {task}; weir drain list shows all");
    Some(Subsystem::new(name, Condition::Degraded, reason).hint(hint))
}

fn mesh(now: &Observation) -> Subsystem {
    match now.report.problems.as_slice() {
        [] => Subsystem::new("mesh", Condition::Ok, "no problems"),
        [only] => Subsystem::new("mesh", Condition::Degraded, only.clone()),
        [first, more @ ..] => {
            let reason = format!("{first} (and {} more)", more.len());
            Subsystem::new("mesh", Condition::Degraded, reason)
                .hint("weir status -o json lists all")
        }
    }
}
