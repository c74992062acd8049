//! The lab of the proxies: one host with one task, and all proxies on that host.

use std::{
    collections::BTreeMap,
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weir_tests::{
    Agent, Families, Host, Lab, Process, Task, eventually, lab::command, task::task_program,
};

use super::{PEERS, Peer};
use crate::peers::{
    mode::{TASK, TASK_BULK, TASK_ECHO, TASK_HTTP, Wire},
    servers,
    stage::on_cpu,
};

/// The first argument by which the bench serves as its own peer.
pub const COPY: &str = "copy";

/// Programs end before the task, the task before the lab.
pub struct Stage {
    programs: BTreeMap<Peer, Vec<Process>>,
    servers: Vec<Process>,
    task: Task,
    agent: Option<Agent>,
    /// The host `n1` and the client `c1`.
    pub lab: Lab,
}

impl Stage {
    /// Builds it, and waits until every proxy answers.
    pub fn build() -> Result<Self> {
        let lab = Lab::builder().hosts(1).families(Families::V4).build()?;
        let task = lab.task("n1", "web.1")?;
        let mut stage =
            Self { programs: BTreeMap::new(), servers: Vec::new(), task, agent: None, lab };
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
        self.agent = Some(agent);
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
        copy.arg(COPY);
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

    /// Takes it down, and says what was left.
    pub fn finish(self) -> Result<()> {
        let Self { programs, servers, task, lab, .. } = self;
        drop((programs, servers, task));
        lab.finish()
    }

    /// What the client asks.
    pub fn target(&self, peer: Peer, wire: Wire) -> SocketAddr {
        SocketAddr::new(self.lab.host("n1").addresses()[0], peer.port(wire))
    }

    /// The processes of a peer: those that were started, and their children.
    fn pids(&self, peer: Peer) -> Result<Vec<u32>> {
        let started: Vec<u32> = match peer {
            Peer::Weir => self.agent.iter().filter_map(Agent::pid).collect(),
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

    /// Microseconds of processor time that a proxy has used; a tick is a hundredth of a second everywhere.
    pub fn used(&self, peer: Peer) -> Result<f64> {
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
        Ok(ticks * 10_000.0)
    }

    /// Bytes in memory that are a proxy's own.
    pub fn resident(&self, peer: Peer) -> Result<f64> {
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
