//! Certificates in the shape of Swarm's, and nodes that use them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::{sync::watch, time::Instant};
use weir_mesh::{
    ServiceName, TaskName,
    cluster::{
        Availability, Declared, DeclaredNode, DeclaredService, EndpointMode, Life, NodeId, Report,
        ReportedNode, ReportedTask, ServiceId, TaskId,
    },
};

use crate::link::{ClusterView, Inputs, Link, Settings, identity::Files, start};

/// An authority like Swarm's.
pub struct Authority {
    pub issuer: Issuer<'static, KeyPair>,
    pub pem: String,
    pub params: CertificateParams,
}

/// What a test certificate says.
#[derive(Clone)]
pub struct Leaf<'a> {
    pub node: &'a str,
    pub role: &'a str,
    pub cluster: &'a str,
    /// From and until, in hours from now.
    pub hours: (i64, i64),
}

impl<'a> Leaf<'a> {
    pub fn manager(node: &'a str) -> Self {
        Self { node, role: "swarm-manager", cluster: "c1", hours: (-1, 2160) }
    }

    pub fn worker(node: &'a str) -> Self {
        Self { role: "swarm-worker", ..Self::manager(node) }
    }
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "swarm-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params.clone(), key), pem, params }
    }

    /// This authority, signed by another: what Swarm hands out while it replaces its root.
    pub fn signed_by(&self, older: &Self) -> String {
        self.params.signed_by(self.issuer.key(), &older.issuer).expect("a certificate").pem()
    }

    /// A certificate and its key.
    pub fn issue(&self, leaf: &Leaf<'_>) -> (String, String) {
        let mut names = vec![leaf.role.to_owned(), leaf.node.to_owned()];
        if leaf.role == "swarm-manager" {
            names.push("swarm-ca".to_owned());
        }
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::OrganizationName, leaf.cluster);
        params.distinguished_name.push(DnType::OrganizationalUnitName, leaf.role);
        params.distinguished_name.push(DnType::CommonName, leaf.node);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = OffsetDateTime::now_utc();
        params.not_before = now + time::Duration::hours(leaf.hours.0);
        params.not_after = now + time::Duration::hours(leaf.hours.1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    /// Writes an identity as dockerd does, headers of a manager's key included.
    pub fn install(&self, root: &Path, leaf: &Leaf<'_>) -> Files {
        let (certificate, key) = self.issue(leaf);
        let headers = "kek-version: 0\nraft-dek: EiAgZm9vYmFyYmF6Zm9vYmFyYmF6Zm9v\n\n";
        let key = key.replacen("-----\n", &format!("-----\n{headers}"), 1).replace("\r", "");
        write(root, &self.pem, &certificate, &key)
    }
}

pub fn write(root: &Path, ca: &str, certificate: &str, key: &str) -> Files {
    let files = Files::of_swarm(root);
    std::fs::create_dir_all(files.ca.parent().expect("a directory")).expect("a directory");
    std::fs::write(&files.ca, ca).expect("written");
    std::fs::write(&files.key, key).expect("written");
    std::fs::write(&files.certificate, certificate).expect("written");
    files
}

pub const SILENCE: Duration = Duration::from_millis(400);

/// A node with a link.
pub struct TestNode {
    pub link: Link,
    pub id: NodeId,
    pub root: TempDir,
    pub declare: watch::Sender<Option<Arc<Declared>>>,
    pub ask: watch::Sender<Option<std::time::Instant>>,
    pub report: watch::Sender<Arc<Report>>,
    pub managers: watch::Sender<BTreeSet<SocketAddr>>,
    pub files: watch::Sender<Option<Files>>,
}

impl TestNode {
    pub fn start(ca: &Authority, leaf: &Leaf<'_>) -> Self {
        let root = TempDir::new().expect("a directory");
        let files = ca.install(root.path(), leaf);
        Self::start_with(leaf.node, root, files, "127.0.0.1:0")
    }

    pub fn start_with(node: &str, root: TempDir, files: Files, listen: &str) -> Self {
        let listen = listen.parse().expect("an address");
        let look = Duration::from_millis(50);
        let settings = Settings { silence: SILENCE, look, ..Settings::at(listen) };
        let (files, files_out) = watch::channel(Some(files));
        let (managers, managers_out) = watch::channel(BTreeSet::new());
        let (declare, declared) = watch::channel(None);
        let (report, report_out) = watch::channel(Arc::new(report(&[])));
        let (ask, asked) = watch::channel(None);
        let inputs = Inputs {
            files: files_out,
            managers: managers_out,
            declared,
            asked,
            report: report_out,
        };
        let link = start(&settings, inputs);
        Self { link, id: NodeId::new(node), root, declare, ask, report, managers, files }
    }

    pub async fn address(&self) -> SocketAddr {
        let listening = || self.link.status().hub.and_then(|hub| hub.listening);
        eventually("the hub listens", || listening().is_some(), || self.link.status()).await;
        listening().expect("it listens")
    }

    pub fn know(&self, managers: &[SocketAddr]) {
        self.managers.send_replace(managers.iter().copied().collect());
    }

    pub fn reports(&self, tasks: &[(&str, Life)]) {
        self.report.send_replace(Arc::new(report(tasks)));
    }

    pub fn view(&self) -> ClusterView {
        self.link.view().borrow().clone()
    }

    /// What this node sees of a task of another node.
    pub fn sees(&self, node: &str, task: &str) -> Option<Life> {
        let view = self.view();
        let report = view.reports.get(&NodeId::new(node))?.report.clone()?;
        Some(report.tasks.get(&TaskId::new(task))?.life)
    }

    pub fn sees_alive(&self, node: &str) -> Option<bool> {
        Some(self.view().reports.get(&NodeId::new(node))?.alive)
    }

    pub fn sees_service(&self, service: &str) -> bool {
        let declared = self.view().declared;
        declared.is_some_and(|all| all.services.contains_key(&ServiceId::new(service)))
    }

    pub fn trouble(&self) -> String {
        let peers = self.link.status().managers;
        peers.values().filter_map(|peer| peer.trouble.clone()).collect::<Vec<_>>().join("; ")
    }

    pub fn refusals(&self) -> String {
        self.link.counters().refusals().into_iter().collect::<Vec<_>>().join("; ")
    }
}

pub fn report(tasks: &[(&str, Life)]) -> Report {
    let task = |life| ReportedTask {
        service: ServiceId::new("s1"),
        service_name: ServiceName::new("web"),
        name: TaskName::new("web.1"),
        ipv4: Some("172.18.0.3".parse().expect("an address")),
        ipv6: None,
        life,
        labels: BTreeMap::from([("weir.weight".into(), "2".into())]),
        networks: BTreeMap::new(),
        aliases: Default::default(),
        ports: Vec::new(),
        verdict: None,
    };
    Report {
        node: ReportedNode {
            hostname: "host".into(),
            address: "10.0.0.1".parse().expect("an address"),
        },
        tasks: tasks.iter().map(|(id, life)| (TaskId::new(*id), Arc::new(task(*life)))).collect(),
    }
}

pub fn declared(nodes: &[&str], services: &[&str]) -> Option<Arc<Declared>> {
    let node = |name: &str| DeclaredNode {
        hostname: name.into(),
        address: None,
        availability: Availability::Active,
        ready: true,
        manager: None,
    };
    let service = |name: &str| DeclaredService {
        name: ServiceName::new(name),
        stack: None,
        endpoint_mode: EndpointMode::Vip,
        ports: Vec::new(),
        labels: BTreeMap::new(),
        vips: BTreeMap::new(),
        networks: BTreeMap::new(),
    };
    Some(Arc::new(Declared {
        nodes: nodes.iter().map(|name| (NodeId::new(*name), Arc::new(node(name)))).collect(),
        services: services.iter().map(|s| (ServiceId::new(*s), Arc::new(service(s)))).collect(),
        ..Declared::default()
    }))
}

/// Waits until something holds; says what there is instead if it never does.
pub async fn eventually<D: std::fmt::Debug>(
    what: &str,
    holds: impl Fn() -> bool,
    instead: impl Fn() -> D,
) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(10), "never: {what}; but {:#?}", instead());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    begun.elapsed()
}
