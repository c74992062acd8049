//! What was written: every key read by its type and checked on its own.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use tracing_subscriber::EnvFilter;
use weir_loader::AttachMode;
use weir_mesh::Timeouts;

use super::{
    DnsSettings, KEYS, LinkSettings, LogFormat, Mode, OnPortConflict, Overrides, ProxySettings,
};
use crate::document::{Fault, Findings, Table, Value, parse_piece};

/// What was written, checked key by key; `None` where nothing was written.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "each field is the key of its name, documented in keys.rs")]
pub struct Settings {
    pub node_name: Option<String>,
    pub node_address: Option<IpAddr>,
    pub node_addresses: Option<Vec<IpAddr>>,
    pub node_uplinks: Option<Vec<String>>,
    pub mode: Option<Mode>,
    pub cgroup: Option<PathBuf>,
    pub pin: Option<PathBuf>,
    pub attach: Option<AttachMode>,
    pub flow_capacity: Option<u32>,
    pub on_port_conflict: Option<OnPortConflict>,
    pub proxy: ProxySettings,
    pub tunnel_port: Option<u16>,
    pub tunnel_device: Option<String>,
    pub link: LinkSettings,
    pub dns: DnsSettings,
    pub http: Option<Option<SocketAddr>>,
    pub socket: Option<PathBuf>,
    pub docker_socket: Option<PathBuf>,
    pub docker_poll: Option<Duration>,
    pub source_path: Option<PathBuf>,
    pub source_poll: Option<Duration>,
    pub state: Option<PathBuf>,
    pub host_interval: Option<Duration>,
    pub audit_interval: Option<Duration>,
    pub flow_interval: Option<Duration>,
    pub start_wait: Option<Duration>,
    pub backend_limit: Option<usize>,
    pub compat_ipvs_metrics: Option<bool>,
    pub timeouts: Timeouts,
    pub log_format: Option<LogFormat>,
    pub log_level: Option<String>,
}

/// Keys found by their path, in flags and variables first.
struct Reader<'t, 'i> {
    findings: &'t Findings<'i>,
    overrides: &'t Overrides,
    sections: BTreeMap<&'static str, Table<'t, 'i>>,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Settings {
    /// Reads the file at `path`, or the default one if it is there.
    pub(super) fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Self, Vec<Fault>> {
        let (name, text) = super::read_file(path)?;
        Self::read(&name, &text, overrides)
    }

    /// Reads the text of `file`, and what flags and variables say instead. All mistakes at once.
    pub fn read(file: &Path, text: &str, overrides: &Overrides) -> Result<Self, Vec<Fault>> {
        let name = file.display().to_string();
        let findings = Findings::new(&name, text);
        let mut settings = None;
        if let Some(document) = parse_piece(&findings, 0..text.len()) {
            let root = Table::root(&findings, &document, 0);
            let reader = Reader { findings: &findings, overrides, sections: sections(root) };
            let directory = file.parent().unwrap_or(Path::new(""));
            settings = Some(reader.settings(directory));
        }
        match settings {
            Some(settings) if findings.is_empty() => Ok(settings),
            _ => Err(findings.into_faults()),
        }
    }
}

/// The tables of the document by their dotted name; notes what is unknown or no table.
fn sections<'t, 'i>(root: Table<'t, 'i>) -> BTreeMap<&'static str, Table<'t, 'i>> {
    let mut top: Vec<&str> = KEYS.iter().filter_map(|key| key.path.split('.').next()).collect();
    top.dedup();
    root.allow_only(&top);
    let mut sections = BTreeMap::new();
    for name in top {
        let Some(table) = root.get(name).and_then(|value| value.table(&format!("[{name}]"))) else {
            continue;
        };
        if name != "source" {
            sections.insert(name, table.named(name));
            continue;
        }
        let table = table.named("source");
        table.allow_only(&["docker", "file"]);
        if let Some(docker) = table.get("docker").and_then(|value| value.table("[source.docker]")) {
            sections.insert("source.docker", docker.named("source.docker"));
        }
        if let Some(file) = table.get("file").and_then(|value| value.table("[source.file]")) {
            sections.insert("source.file", file.named("source.file"));
        }
    }
    for (name, table) in &sections {
        let keys: Vec<&str> = KEYS
            .iter()
            .filter_map(|key| key.path.rsplit_once('.'))
            .filter(|(section, _)| section == name)
            .map(|(_, key)| key)
            .collect();
        table.allow_only(&keys);
    }
    sections
}

impl<'t, 'i> Reader<'t, 'i> {
    fn get(&self, path: &'static str) -> Option<Value<'t, 'i>> {
        if let Some((place, value)) = self.overrides.get(path) {
            return Some(Value::elsewhere(self.findings, value, path, place));
        }
        let (section, key) = path.rsplit_once('.')?;
        self.sections.get(section)?.get(key)
    }

    fn settings(&self, directory: &Path) -> Settings {
        Settings {
            node_name: self.get("node.name").and_then(name),
            node_address: self.get("node.address").and_then(node_address),
            node_addresses: self.get("node.addresses").and_then(addresses),
            node_uplinks: self.get("node.uplinks").and_then(uplinks),
            mode: self.get("dataplane.mode").and_then(mode),
            cgroup: self.get("dataplane.cgroup").and_then(absolute_path),
            pin: self.get("dataplane.pin").and_then(absolute_path),
            attach: self.get("dataplane.attach").and_then(attach),
            flow_capacity: self.number("dataplane.flow_capacity", 1024, 1 << 24),
            on_port_conflict: self.get("dataplane.on_port_conflict").and_then(on_port_conflict),
            tunnel_port: self.get("tunnel.port").and_then(tunnel_port),
            tunnel_device: self.get("tunnel.device").and_then(interface),
            link: LinkSettings::read(|path| self.get(path)),
            proxy: ProxySettings::read(|path| self.get(path)),
            dns: DnsSettings::read(|path| self.get(path)),
            http: self.get("http.listen").and_then(listen),
            socket: self.get("socket.path").and_then(absolute_path),
            docker_socket: self.docker_socket(),
            docker_poll: self.duration("source.docker.poll", DAY),
            source_path: self.source_path(directory),
            source_poll: self.duration("source.file.poll", DAY),
            state: self.get("state.path").and_then(absolute_path),
            host_interval: self.duration("reconcile.host_interval", DAY),
            audit_interval: self.duration("reconcile.audit_interval", DAY),
            flow_interval: self.duration("reconcile.flow_interval", DAY),
            start_wait: self.duration("reconcile.start_wait", DAY),
            backend_limit: self.number("metrics.backend_limit", 0, 1 << 24),
            compat_ipvs_metrics: self.get("compat.ipvs_metrics").and_then(switch),
            timeouts: self.timeouts(),
            log_format: self.get("log.format").and_then(log_format),
            log_level: self.get("log.level").and_then(log_level),
        }
    }

    fn number<N: TryFrom<u64>>(&self, path: &'static str, least: u64, most: u64) -> Option<N> {
        let number = self.get(path)?.number(least..=most)?;
        N::try_from(number).ok()
    }

    fn duration(&self, path: &'static str, longest: Duration) -> Option<Duration> {
        self.get(path)?.duration(longest)
    }

    /// A relative path in the file counts from the file's own directory, one in a flag or variable
    /// from where the command was typed.
    fn source_path(&self, directory: &Path) -> Option<PathBuf> {
        let value = self.get("source.file.path")?;
        let path = value.string("a path such as \"/etc/weir/mesh.toml\"")?;
        Some(if value.place().is_some() { path.into() } else { directory.join(path) })
    }

    /// One source at a time.
    fn docker_socket(&self) -> Option<PathBuf> {
        let value = self.get("source.docker.socket")?;
        if self.get("source.file.path").is_some() {
            let remedy = "leave out source.docker.socket or source.file.path";
            value.fault("a second source beside source.file.path", remedy);
        }
        absolute_path(value)
    }

    fn timeouts(&self) -> Timeouts {
        let mut timeouts = Timeouts::default();
        for (path, field) in [
            ("timeouts.tcp_syn", &mut timeouts.tcp_syn),
            ("timeouts.tcp_established", &mut timeouts.tcp_established),
            ("timeouts.tcp_fin", &mut timeouts.tcp_fin),
            ("timeouts.tcp_reset", &mut timeouts.tcp_reset),
            ("timeouts.udp_one_way", &mut timeouts.udp_one_way),
            ("timeouts.udp_both_ways", &mut timeouts.udp_both_ways),
            ("timeouts.drain", &mut timeouts.drain),
        ] {
            if let Some(duration) = self.duration(path, 30 * DAY) {
                *field = duration;
            }
        }
        timeouts
    }
}

fn name(value: Value<'_, '_>) -> Option<String> {
    let name = value.string("a name such as \"n1\"")?;
    if name.len() > 253 || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        value.fault("not a name", "write at most 253 characters without blanks");
        return None;
    }
    Some(name.to_owned())
}

/// An address that can be the end of a tunnel or the target of a client.
pub(crate) fn node_address(value: Value<'_, '_>) -> Option<IpAddr> {
    let address: IpAddr = value.parse("an IP address", "one such as \"10.0.0.11\"")?;
    let unfit = if address.is_unspecified() {
        "the unspecified address"
    } else if address.is_loopback() {
        "a loopback address"
    } else if address.is_multicast() {
        "a multicast address"
    } else if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        "a link-local address"
    } else {
        return Some(address);
    };
    value.fault(unfit, "write an address at which other nodes and clients reach this one");
    None
}

fn addresses(value: Value<'_, '_>) -> Option<Vec<IpAddr>> {
    let entries = value.list("addresses = [\"10.0.0.11\", \"fd00::11\"]")?;
    Some(entries.filter_map(node_address).collect())
}

fn uplinks(value: Value<'_, '_>) -> Option<Vec<String>> {
    let names: Vec<String> = value.list("uplinks = [\"eth0\"]")?.filter_map(interface).collect();
    if names.is_empty() {
        value.fault("no interface", "name at least one, or leave the key out");
    }
    let twice = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name));
    if let Some((_, name)) = twice {
        value.fault(format!("\"{name}\" twice"), "name each interface once");
    }
    Some(names)
}

fn interface(value: Value<'_, '_>) -> Option<String> {
    let name = value.string("an interface such as \"eth0\"")?;
    if name.len() > 15 || name.chars().any(|c| c == '/' || c.is_whitespace()) {
        let remedy = "write at most 15 characters without blanks and slashes";
        value.fault("not the name of an interface", remedy);
        return None;
    }
    Some(name.to_owned())
}

fn mode(value: Value<'_, '_>) -> Option<Mode> {
    value.choice(&[("auto", Mode::Auto), ("ebpf", Mode::Ebpf), ("proxy", Mode::Proxy)])
}

fn attach(value: Value<'_, '_>) -> Option<AttachMode> {
    value.choice(&[
        ("auto", AttachMode::Auto),
        ("tcx", AttachMode::Tcx),
        ("clsact", AttachMode::Clsact),
    ])
}

fn on_port_conflict(value: Value<'_, '_>) -> Option<OnPortConflict> {
    value.choice(&[
        ("listener-wins", OnPortConflict::ListenerWins),
        ("mesh-wins", OnPortConflict::MeshWins),
    ])
}

pub(super) fn absolute_path(value: Value<'_, '_>) -> Option<PathBuf> {
    let path = value.string("an absolute path")?;
    if !path.starts_with('/') {
        value.fault(
            "a relative path",
            "write an absolute one: it must not depend on where weir starts",
        );
        return None;
    }
    Some(path.into())
}

fn tunnel_port(value: Value<'_, '_>) -> Option<u16> {
    let port = u16::try_from(value.number(1..=65535)?).ok()?;
    let owner = match port {
        4789 => "Docker's overlay networks",
        8472 => "Flannel and Cilium",
        6081 => "Geneve",
        _ => return Some(port),
    };
    value.fault(format!("this port belongs to {owner}"), "leave the key out for 7950");
    None
}

fn listen(value: Value<'_, '_>) -> Option<Option<SocketAddr>> {
    if value.string("an address and port such as \"0.0.0.0:9950\"")? == "off" {
        return Some(None);
    }
    let wanted = "an address and port";
    let listen: SocketAddr = value.parse(wanted, "one such as \"0.0.0.0:9950\", or \"off\"")?;
    if listen.port() == 0 {
        value.fault("port 0", "write a port from 1 to 65535, or \"off\"");
        return None;
    }
    Some(Some(listen))
}

pub(super) fn switch(value: Value<'_, '_>) -> Option<bool> {
    value.switch("true or false")
}

fn log_format(value: Value<'_, '_>) -> Option<LogFormat> {
    value.choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)])
}

fn log_level(value: Value<'_, '_>) -> Option<String> {
    let level = value.string("a level such as \"info\"")?;
    if EnvFilter::try_new(level).is_err() {
        let remedy = "write error, warn, info, debug, trace, or a filter such as \"weir=debug\"";
        value.fault("not a log level", remedy);
        return None;
    }
    Some(level.to_owned())
}
