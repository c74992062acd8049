//! The userspace proxy beside HAProxy, nginx stream and a plain tokio copy, in one lab and one run.
//! What counts is the processor time of the proxy itself: it says something on a busy machine, too.
//! `--rounds N` and `--seconds N` change how much is done.

use std::{
    collections::BTreeMap,
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::net::{TcpListener, TcpStream};
use weir_bench::{
    Spread, machine,
    peers::{
        measure::{Wrk, megabits, run},
        mode::{Mode, TASK, TASK_BULK, TASK_ECHO, TASK_HTTP, Wire},
        servers,
        stage::on_cpu,
    },
};
use weir_tests::{
    Families, Host, Lab, Process, Task, eventually,
    lab::command,
    task::task_program,
    traffic::{HttpLoad, UdpLoad},
};

const PEERS: [Peer; 4] = [Peer::Weir, Peer::Haproxy, Peer::Nginx, Peer::Tokio];
/// Idle connections whose memory is counted.
const IDLE: usize = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Peer {
    Weir,
    Haproxy,
    Nginx,
    Tokio,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::Weir => "weir proxy",
            Self::Haproxy => "HAProxy TCP",
            Self::Nginx => "nginx stream",
            Self::Tokio => "tokio copy",
        }
    }

    fn port(self, wire: Wire) -> u16 {
        match (self, wire) {
            (Self::Weir, _) => Mode::WeirLocal.port(wire),
            (Self::Haproxy, _) => Mode::Haproxy.port(wire),
            (Self::Nginx, Wire::Echo) => 5356,
            (Self::Nginx, _) => Mode::NginxStream.port(wire),
            (Self::Tokio, Wire::Http) => 8090,
            (Self::Tokio, _) => 5290,
        }
    }

    fn carries_udp(self) -> bool {
        matches!(self, Self::Weir | Self::Nginx)
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (mut rounds, mut seconds) = (5, 2);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--rounds" => rounds = value.parse()?,
            "--seconds" => seconds = value.parse()?,
            // How this program starts its own peer.
            "copy" => return copy(&value, arguments),
            other => bail!("{other}: there are --rounds N and --seconds N"),
        }
    }
    println!("{}", machine::describe());
    println!("{rounds} rounds of {seconds} s a measurement");
    let stage = Stage::build()?;
    let results = stage.measure(rounds, seconds);
    let finished = stage.finish();
    println!("{}", table(&results?));
    println!("load average at the end {}", machine::load_average());
    finished
}

/// `copy LISTEN TARGET LISTEN TARGET …`: what one writes in an afternoon.
fn copy(first: &str, rest: impl Iterator<Item = String>) -> Result<()> {
    let all: Vec<SocketAddr> = std::iter::once(first.to_owned())
        .chain(rest)
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        for pair in all.chunks(2) {
            let &[listen, target] = pair else { bail!("a listener without a target") };
            let listener = TcpListener::bind(listen).await?;
            tokio::spawn(async move {
                while let Ok((mut client, _)) = listener.accept().await {
                    tokio::spawn(async move {
                        client.set_nodelay(true)?;
                        let mut task = TcpStream::connect(target).await?;
                        task.set_nodelay(true)?;
                        tokio::io::copy_bidirectional(&mut client, &mut task).await
                    });
                }
            });
        }
        std::future::pending().await
    })
}

type Results = BTreeMap<(&'static str, Peer), Vec<f64>>;

/// Programs end before the task, the task before the lab.
struct Stage {
    programs: BTreeMap<Peer, Vec<Process>>,
    servers: Vec<Process>,
    task: Task,
    lab: Lab,
}

impl Stage {
    fn build() -> Result<Self> {
        let lab = Lab::builder().hosts(1).families(Families::V4).build()?;
        let task = lab.task("n1", "web.1")?;
        let mut stage = Self { programs: BTreeMap::new(), servers: Vec::new(), task, lab };
        let host = stage.lab.host("n1").clone();
        let ports = [("ipv4/tcp_tw_reuse", "1"), ("ipv4/ip_local_port_range", "10000 65000")];
        host.netns().sysctl(&ports)?;
        let dir = stage.dir("task")?;
        let echo = TASK_ECHO.to_string();
        let echo =
            command(task_program()?, &["echo", "--name", "web", "--listen", &echo, "--say-name"]);
        let iperf = command("iperf3", &["-s", "-p", &TASK_BULK.to_string()]);
        for server in [servers::nginx_task(&dir)?, iperf, echo] {
            let server = stage.task.spawn(logged(on_cpu("0", server), dir.join("log"))?)?;
            stage.servers.push(server);
        }
        stage.peers(&host)?;
        for peer in PEERS {
            for wire in [Wire::Http, Wire::Bulk] {
                let target = stage.target(peer, wire);
                stage.lab.client("c1").run(|| {
                    eventually(peer.name(), Duration::from_secs(10), || {
                        std::net::TcpStream::connect_timeout(&target, Duration::from_secs(1))
                            .map(drop)
                    })
                })?;
            }
        }
        Ok(stage)
    }

    fn peers(&mut self, host: &Host) -> Result<()> {
        let mut mesh = self.lab.mesh();
        let service = mesh.service("web").task(&self.task);
        for (wire, to) in
            [(Wire::Http, TASK_HTTP), (Wire::Bulk, TASK_BULK), (Wire::Echo, TASK_ECHO)]
        {
            let protocol = if wire == Wire::Echo { "udp" } else { "tcp" };
            service.publish(format!("{}:{to}/{protocol}", Peer::Weir.port(wire)).as_str());
        }
        mesh.write()?;
        let agent = self.lab.agent_with("n1", |config| {
            config.set("dataplane.mode", "proxy");
        })?;
        agent.wait_ready()?;
        let dir = self.dir("peers")?;
        let udp = dir.join("udp.conf");
        let text = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nuser root;\n\
             worker_processes 2;\npid {0}/udp.pid;\nerror_log {0}/udp.log;\n\
             events {{ worker_connections 4096; }}\n\
             stream {{ server {{ listen {1} udp reuseport; proxy_pass {TASK}:{TASK_ECHO}; \
             proxy_timeout 60s; }} }}\n",
            dir.display(),
            Peer::Nginx.port(Wire::Echo)
        );
        std::fs::write(&udp, text)?;
        let nginx_udp = command(
            "nginx",
            &["-e", &format!("{}/udp.log", dir.display()), "-c", &udp.display().to_string()],
        );
        let mut copy = Command::new(std::env::current_exe()?);
        copy.arg("copy");
        for (wire, to) in [(Wire::Http, TASK_HTTP), (Wire::Bulk, TASK_BULK)] {
            copy.arg(format!("0.0.0.0:{}", Peer::Tokio.port(wire))).arg(format!("{TASK}:{to}"));
        }
        for (peer, program) in [
            (Peer::Haproxy, servers::haproxy(&dir)?),
            (Peer::Nginx, servers::nginx_stream(&dir)?),
            (Peer::Nginx, nginx_udp),
            (Peer::Tokio, copy),
        ] {
            let program = host.spawn(logged(program, dir.join("log"))?)?;
            self.programs.entry(peer).or_default().push(program);
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let Self { programs, servers, task, lab } = self;
        drop((programs, servers, task));
        lab.finish()
    }

    fn target(&self, peer: Peer, wire: Wire) -> SocketAddr {
        SocketAddr::new(self.lab.host("n1").addresses()[0], peer.port(wire))
    }

    /// The processes of a peer: those that were started, and their children.
    fn pids(&self, peer: Peer) -> Result<Vec<u32>> {
        let started: Vec<u32> = match peer {
            Peer::Weir => self.agent_pid().into_iter().collect(),
            _ => self.programs.get(&peer).into_iter().flatten().map(Process::pid).collect(),
        };
        let mut pids = started.clone();
        for pid in started {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
            pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        ensure!(!pids.is_empty(), "{} does not run", peer.name());
        Ok(pids)
    }

    fn agent_pid(&self) -> Option<u32> {
        let status = self.lab.host("n1").run_dir().join("weir.sock");
        let answer = weir_tests::http::unix_get(&status, "/api/v1/status").ok()?;
        let (_, rest) = answer.body.split_once("\"pid\":")?;
        rest.split(',').next()?.parse().ok()
    }

    /// Microseconds that a peer has used.
    fn used(&self, peer: Peer) -> Result<f64> {
        let mut ticks = 0.0;
        for pid in self.pids(peer)? {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let (_, rest) = stat.rsplit_once(')').context("no stat")?;
            let fields: Vec<f64> = rest
                .split_whitespace()
                .skip(11)
                .take(2)
                .map(|it| it.parse())
                .collect::<Result<_, _>>()?;
            ticks += fields.iter().sum::<f64>();
        }
        // A tick is a hundredth of a second everywhere.
        Ok(ticks * 10_000.0)
    }

    /// Bytes in memory that are a peer's own.
    fn resident(&self, peer: Peer) -> Result<f64> {
        let mut bytes = 0.0;
        for pid in self.pids(peer)? {
            let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line =
                text.lines().find(|line| line.starts_with("RssAnon:")).context("no RssAnon")?;
            let kib: f64 = line.split_whitespace().nth(1).context("no RssAnon")?.parse()?;
            bytes += kib * 1024.0;
        }
        Ok(bytes)
    }

    fn measure(&self, rounds: usize, seconds: u64) -> Result<Results> {
        let mut results = Results::new();
        for round in 0..rounds {
            let mut peers = PEERS;
            peers.rotate_left(round % PEERS.len());
            for peer in peers {
                self.requests(peer, seconds, true, &mut results)?;
            }
            for peer in peers {
                self.requests(peer, seconds, false, &mut results)?;
            }
            for peer in peers {
                self.bulk(peer, seconds, &mut results)?;
            }
            for peer in peers {
                self.latency(peer, seconds, &mut results)?;
            }
            for peer in peers.into_iter().filter(|peer| peer.carries_udp()) {
                self.udp(peer, seconds, &mut results)?;
            }
            eprintln!("round {} of {rounds}, load {}", round + 1, machine::load_average());
        }
        for peer in PEERS {
            self.idle(peer, &mut results)?;
        }
        Ok(results)
    }

    fn requests(&self, peer: Peer, seconds: u64, keep: bool, results: &mut Results) -> Result<()> {
        let url = format!("http://{}/", self.target(peer, Wire::Http));
        let duration = format!("-d{seconds}s");
        let mut arguments = vec!["-t1", "-c16", &duration];
        if !keep {
            arguments.extend(["-H", "Connection: close"]);
        }
        arguments.push(&url);
        let used = self.used(peer)?;
        let said = run(self.lab.client("c1"), "wrk", &arguments)?;
        let used = self.used(peer)? - used;
        let wrk = Wrk::parse(&said).with_context(|| said.clone())?;
        ensure!(wrk.errors == 0 && wrk.requests > 0.0, "{}: wrk had errors:\n{said}", peer.name());
        let (rate, cost) = match keep {
            true => ("requests/s, keep-alive", "proxy CPU us/request"),
            false => ("new connections/s", "proxy CPU us/new connection"),
        };
        results.entry((rate, peer)).or_default().push(wrk.rate);
        results.entry((cost, peer)).or_default().push(used / wrk.requests);
        Ok(())
    }

    fn bulk(&self, peer: Peer, seconds: u64, results: &mut Results) -> Result<()> {
        let target = self.target(peer, Wire::Bulk);
        let (address, port) = (target.ip().to_string(), target.port().to_string());
        let duration = seconds.to_string();
        let used = self.used(peer)?;
        let arguments = ["-c", &address, "-p", &port, "-t", &duration, "-f", "m"];
        let said = run(self.lab.client("c1"), "iperf3", &arguments)?;
        let used = self.used(peer)? - used;
        let rate = megabits(&said).with_context(|| said.clone())?;
        let gigabytes = rate * seconds as f64 / 8000.0;
        results.entry(("throughput, Mbit/s", peer)).or_default().push(rate);
        results.entry(("proxy CPU ms/GB", peer)).or_default().push(used / 1000.0 / gigabytes);
        // iperf3 takes one client at a time and needs a moment between two.
        thread::sleep(Duration::from_millis(200));
        Ok(())
    }

    fn latency(&self, peer: Peer, seconds: u64, results: &mut Results) -> Result<()> {
        let load = HttpLoad::new(self.lab.client("c1").netns(), [self.target(peer, Wire::Http)]);
        let report = load.keep_alive().connections(4).rate(1000).requests(1000 * seconds).run()?;
        ensure!(report.failures() == 0, "{}: {report}", peer.name());
        let micros = |time: Duration| time.as_nanos() as f64 / 1000.0;
        results.entry(("latency p50, us", peer)).or_default().push(micros(report.p50));
        results.entry(("latency p99, us", peer)).or_default().push(micros(report.p99));
        Ok(())
    }

    fn udp(&self, peer: Peer, seconds: u64, results: &mut Results) -> Result<()> {
        let load = UdpLoad::new(self.lab.client("c1").netns(), [self.target(peer, Wire::Echo)]);
        let used = self.used(peer)?;
        let running = load.keep_socket().sockets(16).start()?;
        thread::sleep(Duration::from_secs(seconds));
        let report = running.stop()?;
        let used = self.used(peer)? - used;
        ensure!(
            report.ok > 0 && report.failures() * 1000 <= report.ok,
            "{}: {report}",
            peer.name()
        );
        results.entry(("UDP packets/s", peer)).or_default().push(2.0 * report.rate());
        results
            .entry(("proxy CPU us/UDP packet", peer))
            .or_default()
            .push(used / 2.0 / report.ok as f64);
        Ok(())
    }

    /// Connections that have asked once, and then rest.
    fn idle(&self, peer: Peer, results: &mut Results) -> Result<()> {
        let target = self.target(peer, Wire::Http);
        let before = self.resident(peer)?;
        let open = self.lab.client("c1").run(|| -> Result<Vec<std::net::TcpStream>> {
            use std::io::{Read, Write};
            let connect = |_| {
                let mut stream = std::net::TcpStream::connect(target)?;
                stream.write_all(b"GET / HTTP/1.1\r\nHost: weir\r\n\r\n")?;
                let mut answer = [0; 512];
                ensure!(stream.read(&mut answer)? > 0, "no answer");
                Ok(stream)
            };
            (0..IDLE).map(connect).collect()
        })?;
        let after = self.resident(peer)?;
        drop(open);
        results
            .entry(("bytes/idle connection", peer))
            .or_default()
            .push((after - before) / IDLE as f64);
        Ok(())
    }

    fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.lab.host("n1").run_dir().join(name);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(dir)
    }
}

fn logged(mut command: Command, log: PathBuf) -> Result<Command> {
    let log = File::options().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

/// The median of each, with its lowest and highest.
fn table(results: &Results) -> String {
    let measures: std::collections::BTreeSet<&str> =
        results.keys().map(|(name, _)| *name).collect();
    let mut text = format!("| {:27} |", "median [min..max]");
    PEERS.iter().for_each(|peer| text += &format!(" {:>24} |", peer.name()));
    text += &format!("\n|{:-<29}|{}\n", "", format!("{:->25}:|", "").repeat(PEERS.len()));
    for measure in measures {
        text += &format!("| {measure:27} |");
        for peer in PEERS {
            let shown = results.get(&(measure, peer)).map(|values| {
                let spread = Spread::of(values.clone());
                if spread.median < 100.0 { format!("{spread:.1}") } else { format!("{spread}") }
            });
            text += &format!(" {:>24} |", shown.unwrap_or_default());
        }
        text.push('\n');
    }
    text
}
