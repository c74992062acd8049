//! DNS servers with the same names, and what `dnsperf` sees of them.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weir_dns::{
    Directory, Forwarder, Handler, Identity, Outside, Zone, ZoneSettings, forward,
    name::from_text,
    server::{self, Server as DnsServer},
};
use weir_mesh::{
    Generation, MeshSnapshot, Network, NetworkId, Node, NodeName, Service, ServiceName, Task,
    TaskName,
};

/// Addresses of the name with many.
const MANY: u32 = 64;

/// A server that runs until this goes.
pub struct Server {
    kind: &'static str,
    port: u16,
    process: Child,
}

/// What is asked.
pub struct Case {
    /// What it shows.
    pub title: &'static str,
    file: &'static str,
    tcp: bool,
}

/// What was measured in one round.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Queries a second without a limit.
    pub most: f64,
    /// Microseconds of CPU time a query, at the fixed rate.
    pub cpu: f64,
    /// Percent without an answer, without a limit.
    pub lost: f64,
}

impl Case {
    /// All.
    pub const ALL: &[Self] = &[
        Self { title: "names that are there", file: "there", tcp: false },
        Self { title: "names that are not there", file: "nowhere", tcp: false },
        Self { title: "64 addresses", file: "many", tcp: false },
        Self { title: "names that are there, over TCP", file: "there", tcp: true },
    ];
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 0, 0)) + number)
}

/// Writes what is asked, in an order that no server could foresee.
pub fn queries(files: &Path, names: usize) -> Result<()> {
    let (mut there, mut nowhere) = (String::new(), String::new());
    for at in 0..names {
        // Coprime to every number of names that is a power of ten.
        let name = at * 7919 % names;
        writeln!(there, "s{name}.weir A")?;
        writeln!(nowhere, "n{name}.weir A")?;
    }
    fs::write(files.join("there"), there)?;
    fs::write(files.join("nowhere"), nowhere)?;
    fs::write(files.join("many"), "many.weir A\n")?;
    Ok(())
}

/// weir's server with so many names, on loopback, until it is killed.
pub fn serve(port: u16, names: usize) -> Result<()> {
    let settings = ZoneSettings {
        domain: from_text("weir.").context("a domain")?,
        ttl: Duration::from_secs(5),
        node: NodeName::new("n1"),
        addresses: Vec::new(),
    };
    let snapshot = mesh(names)?;
    let zone = Arc::new(Zone::build(&snapshot, settings));
    let outside = Outside::default();
    let node = NodeName::new("n1");
    let directory = Directory::new(zone, &snapshot, &node, &[], &outside);
    drop(snapshot);
    let forwarder = Arc::new(Forwarder::new(forward::Settings::default()));
    let identity = Identity { node: "n1".to_owned(), version: String::new() };
    let handler = Arc::new(Handler::new(directory, forwarder, identity));
    let settings = server::Settings { workers: 1, ..server::Settings::default() };
    let server = DnsServer::start(handler, settings)?;
    server.listen([(Ipv4Addr::LOCALHOST, port).into()].into());
    loop {
        thread::park();
    }
}

fn mesh(names: usize) -> Result<MeshSnapshot> {
    let blue = NetworkId::new("blue");
    let service = |name: String, vip: Option<Ipv4Addr>, tasks: Vec<Task>| Service {
        tasks,
        vips: vip.map(|vip| (blue.clone(), vec![vip.into()])).into_iter().collect(),
        ..Service::new(ServiceName::new(name))
    };
    let task = |number: u32| Task {
        networks: [(blue.clone(), vec![Ipv4Addr::new(10, 63, 0, number as u8).into()])].into(),
        ..Task::new(TaskName::new(format!("many.{number}")), NodeName::new("n1"))
    };
    let numbers = 0..u32::try_from(names)?;
    let mut services: Vec<Service> = numbers
        .map(|number| service(format!("s{number}"), Some(address(number)), Vec::new()))
        .collect();
    services.push(service("many".to_owned(), None, (1..=MANY).map(task).collect()));
    let node = Node::new(NodeName::new("n1"), Ipv4Addr::LOCALHOST.into());
    let mut snapshot = MeshSnapshot::build(Generation(1), vec![node], services)
        .ok()
        .context("the mesh does not fit together")?;
    let network = Network { name: "blue".to_owned(), subnets: Vec::new() };
    snapshot.networks.insert(blue.clone(), network);
    Ok(snapshot)
}

impl Server {
    /// weir first: the others are compared with it.
    pub const KINDS: &[&'static str] = &["weir", "dnsmasq", "unbound", "knot"];

    /// Starts a server with so many names, and waits until it answers.
    pub fn start(kind: &'static str, port: u16, names: usize, files: &Path) -> Result<Self> {
        let mut command = match kind {
            "weir" => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("serve").arg(port.to_string()).arg(names.to_string());
                command
            }
            "dnsmasq" => dnsmasq(port, names, files)?,
            "unbound" => unbound(port, names, files)?,
            _ => knot(port, names, files)?,
        };
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = process.with_context(|| format!("{kind} is not installed"))?;
        let server = Self { kind, port, process };
        let begun = Instant::now();
        while !server.answers()? {
            ensure!(begun.elapsed() < Duration::from_secs(30), "{kind} does not answer");
        }
        Ok(server)
    }

    /// Which.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Bytes of memory.
    pub fn resident(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kibibytes.context("no VmRSS")?.parse::<f64>()? * 1024.0)
    }

    fn answers(&self) -> Result<bool> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let question = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x02s0\x04weir\0\0\x01\0\x01";
        socket.send_to(question, (Ipv4Addr::LOCALHOST, self.port))?;
        let mut answer = [0; 512];
        // The answer, and one address in it.
        match socket.recv(&mut answer) {
            Ok(length) => Ok(length > question.len() && answer[7] == 1),
            Err(_) => {
                thread::sleep(Duration::from_millis(50));
                Ok(false)
            }
        }
    }

    /// Seconds of CPU time so far, of all threads.
    fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // After the name, which may hold anything: utime and stime are the 14th and 15th (proc(5)).
        let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let jiffies: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(jiffies / 100.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Addresses of all names: of the single ones, then of the one with many.
fn records(names: usize) -> impl Iterator<Item = (String, Ipv4Addr)> {
    let single = (0..names as u32).map(|number| (format!("s{number}.weir"), address(number)));
    let many =
        (1..=MANY).map(|number| ("many.weir".to_owned(), Ipv4Addr::new(10, 63, 0, number as u8)));
    single.chain(many)
}

fn dnsmasq(port: u16, names: usize, files: &Path) -> Result<Command> {
    let hosts: String =
        records(names).map(|(name, address)| format!("{address} {name}\n")).collect();
    let path = files.join("hosts");
    fs::write(&path, hosts)?;
    let mut command = Command::new("dnsmasq");
    command
        .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"])
        .args(["--listen-address=127.0.0.1", "--bind-interfaces", "--local=/weir/", "--user=root"])
        .args(["--pid-file=", "--local-ttl=5"])
        .arg(format!("--port={port}"))
        .arg(format!("--addn-hosts={}", path.display()));
    Ok(command)
}

fn unbound(port: u16, names: usize, files: &Path) -> Result<Command> {
    let mut conf = format!(
        "server:\n interface: 127.0.0.1@{port}\n num-threads: 1\n do-daemonize: no\n chroot: \"\"\n \
         username: \"\"\n pidfile: \"\"\n use-syslog: no\n local-zone: \"weir.\" static\n \
         local-data: \"weir. 5 SOA ns.weir. hostmaster.weir. 1 3600 600 86400 5\"\n"
    );
    for (name, address) in records(names) {
        writeln!(conf, " local-data: \"{name}. 5 A {address}\"")?;
    }
    conf.push_str("remote-control:\n control-enable: no\n");
    let path = files.join("unbound.conf");
    fs::write(&path, conf)?;
    let mut command = Command::new("unbound");
    command.arg("-d").arg("-c").arg(path);
    Ok(command)
}

fn knot(port: u16, names: usize, files: &Path) -> Result<Command> {
    let mut zone =
        "$TTL 5\n@ SOA ns hostmaster 1 3600 600 86400 5\n@ NS ns\nns A 127.0.0.1\n".to_owned();
    for (name, address) in records(names) {
        writeln!(zone, "{name}. A {address}")?;
    }
    let (path, directory) = (files.join("knot.conf"), files.display());
    fs::write(files.join("weir.zone"), zone)?;
    let conf = format!(
        "server:\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  \
         background-workers: 1\n  rundir: {directory}\ndatabase:\n  storage: {directory}\n\
         zone:\n  - domain: weir\n    file: {directory}/weir.zone\n    zonefile-sync: -1\n"
    );
    fs::write(&path, conf)?;
    let mut command = Command::new("knotd");
    command.arg("-c").arg(path);
    Ok(command)
}

/// Asks a server without a limit, and then at a fixed rate.
pub fn measure(
    server: &Server,
    case: &Case,
    rate: u32,
    time: Duration,
    files: &Path,
) -> Result<Figures> {
    let free = dnsperf(server, case, None, time, files)?;
    let before = server.cpu()?;
    let paced = dnsperf(server, case, Some(rate), time, files)?;
    let used = server.cpu()? - before;
    Ok(Figures {
        most: free.completed / free.seconds,
        cpu: used / paced.completed * 1e6,
        lost: free.lost,
    })
}

struct Report {
    completed: f64,
    seconds: f64,
    lost: f64,
}

fn dnsperf(
    server: &Server,
    case: &Case,
    rate: Option<u32>,
    time: Duration,
    files: &Path,
) -> Result<Report> {
    let mut command = Command::new("dnsperf");
    command.args(["-s", "127.0.0.1", "-c", "4", "-T", "1", "-e", "-p", &server.port.to_string()]);
    command.args(["-l", &time.as_secs().to_string(), "-d"]).arg(files.join(case.file));
    if case.tcp {
        command.args(["-m", "tcp"]);
    }
    if let Some(rate) = rate {
        command.args(["-Q", &rate.to_string()]);
    }
    let output = command.output().context("dnsperf is not installed")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = |title: &str| -> Result<f64> {
        let line = said.lines().map(str::trim).find_map(|line| line.strip_prefix(title));
        let word = line.and_then(|rest| rest.split_whitespace().next());
        Ok(word.with_context(|| format!("no \"{title}\" in: {said}"))?.parse()?)
    };
    let (completed, sent) = (number("Queries completed:")?, number("Queries sent:")?);
    let lost = 100.0 * (sent - completed) / sent.max(1.0);
    Ok(Report { completed, seconds: number("Run time (s):")?, lost })
}
