//! The lab of the peers.
//!
//! Five hosts, so that nobody's path has another one's programs or rules on it: n1 and n2 run weir;
//! n3 routes to its own task (straight), through a VXLAN device to the task on n4 (bare VXLAN), and
//! runs the proxies; n5 has nftables, whose connection tracking would slow all others down.

use std::{
    fs::File,
    net::TcpStream,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weir_tests::{
    Families, Host, Lab, Process, Task, eventually, lab::command, task::task_program,
};

use super::{
    mode::{Mode, TASK_BULK, TASK_ECHO, TASK_HTTP, Wire},
    servers,
};

/// The servers of tasks are on the first processor, the load is on the last; proxies go where the
/// scheduler wants.
const SERVERS: &str = "0";
const VXLAN_MTU: &str = "1450";

/// The lab with everything running. Programs end before tasks, tasks before the lab.
#[derive(Debug)]
pub struct Stage {
    programs: Vec<Process>,
    tasks: Vec<Task>,
    /// Hosts and the client `c1`.
    pub lab: Lab,
}

impl Stage {
    /// Builds it, and waits until every mode answers.
    pub fn build() -> Result<Self> {
        let lab = Lab::builder().hosts(5).clients(1).families(Families::V4).build()?;
        let mut stage = Self { programs: Vec::new(), tasks: Vec::new(), lab };
        for host in ["n1", "n2", "n3", "n4", "n5"] {
            stage.add_task(host).with_context(|| format!("the task of {host}"))?;
        }
        stage.weir().context("weir")?;
        stage.routes().context("routes")?;
        stage.vxlan().context("bare VXLAN")?;
        stage.nftables().context("nftables")?;
        stage.proxies().context("proxies")?;
        Mode::ALL.into_iter().try_for_each(|mode| stage.wait_for(mode))?;
        Ok(stage)
    }

    /// Takes it down, and says what was left.
    pub fn finish(self) -> Result<()> {
        let Self { programs, tasks, lab } = self;
        drop(programs);
        drop(tasks);
        lab.finish()
    }

    fn add_task(&mut self, host: &str) -> Result<()> {
        let task = self.lab.task(host, &format!("web.{host}"))?;
        let dir = self.dir(&format!("task-{host}"))?;
        for server in [servers::nginx_task(&dir)?, iperf_server(), echo_server()?] {
            self.programs.push(task.spawn(logged(on_cpu(SERVERS, server), dir.join("log"))?)?);
        }
        self.tasks.push(task);
        Ok(())
    }

    fn weir(&self) -> Result<()> {
        let mut mesh = self.lab.mesh();
        for host in ["n3", "n4", "n5"] {
            mesh.remove_node(host);
        }
        for (task, mode) in self.tasks.iter().zip([Mode::WeirLocal, Mode::WeirRemote]) {
            let service = mesh.service(mode.name().split(' ').next_back().unwrap_or("web"));
            service.task(task);
            let tasks = [TASK_HTTP, TASK_BULK, TASK_ECHO];
            for (wire, to) in [Wire::Http, Wire::Bulk, Wire::Echo].into_iter().zip(tasks) {
                let protocol = if wire == Wire::Echo { "udp" } else { "tcp" };
                service.publish(format!("{}:{to}/{protocol}", mode.port(wire)).as_str());
            }
        }
        mesh.write()?;
        let agents = [self.lab.agent("n1")?, self.lab.agent("n2")?];
        agents.iter().try_for_each(weir_tests::Agent::wait_ready)
    }

    fn routes(&self) -> Result<()> {
        self.client_ip("route add 172.18.0.0/16 via 10.77.0.13")?;
        self.client_ip(&format!("route add 172.19.0.0/24 via 10.77.0.13 mtu {VXLAN_MTU}"))
    }

    /// A tunnel between n3 and n4, and the way back through it, as weir's replies go.
    fn vxlan(&self) -> Result<()> {
        for (host, own, other, inner) in [
            ("n3", "10.77.0.13", "10.77.0.14", "10.200.0.1/30"),
            ("n4", "10.77.0.14", "10.77.0.13", "10.200.0.2/30"),
        ] {
            let host = self.lab.host(host);
            let device = format!(
                "link add vx0 mtu {VXLAN_MTU} type vxlan id 42 local {own} remote {other} \
                 dstport 4790 dev eth0 noudpcsum"
            );
            host_ip(host, &device)?;
            host_ip(host, &format!("address add {inner} dev vx0"))?;
            host_ip(host, "link set vx0 up")?;
        }
        host_ip(self.lab.host("n3"), "route add 172.19.0.0/24 via 10.200.0.2")?;
        host_ip(self.lab.host("n4"), "route add 10.77.0.101/32 via 10.200.0.1")?;
        host_ip(self.lab.host("n4"), "address add 172.19.0.1/24 dev gw0")?;
        let task = self.tasks.iter().find(|task| task.node() == "n4").context("no task on n4")?;
        // Its second address is the one that is asked, and the one that has to answer.
        task_ip(task, "address add 172.19.0.3/24 dev eth0")?;
        task_ip(task, "route replace default via 172.18.0.1 src 172.19.0.3")
    }

    fn nftables(&self) -> Result<()> {
        let host = self.lab.host("n5");
        succeeded("nft", &host.output(servers::nft(host.run_dir())?)?)?;
        // Else the table is full of connections that have ended.
        host.netns().sysctl(&[("netfilter/nf_conntrack_tcp_timeout_time_wait", "5")])
    }

    fn proxies(&mut self) -> Result<()> {
        let host = self.lab.host("n3").clone();
        let ports = [("ipv4/tcp_tw_reuse", "1"), ("ipv4/ip_local_port_range", "10000 65000")];
        host.netns().sysctl(&ports)?;
        let dir = self.dir("proxies")?;
        for proxy in [servers::haproxy(&dir)?, servers::nginx_stream(&dir)?] {
            self.programs.push(host.spawn(logged(proxy, dir.join("log"))?)?);
        }
        Ok(())
    }

    fn wait_for(&self, mode: Mode) -> Result<()> {
        let client = self.lab.client("c1");
        for wire in [Wire::Http, Wire::Bulk] {
            let target = mode.target(wire);
            let what = format!("{} to answer at {target}", mode.name());
            client.run(|| {
                eventually(&what, Duration::from_secs(10), || {
                    TcpStream::connect_timeout(&target, Duration::from_secs(1)).map(drop)
                })
            })?;
        }
        let answer = client.get(mode.target(Wire::Http))?;
        ensure!(answer.status == 200, "{}: {answer:?}", mode.name());
        Ok(())
    }

    fn client_ip(&self, arguments: &str) -> Result<()> {
        succeeded(arguments, &self.lab.client("c1").output(ip(arguments))?)
    }

    fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.lab.host("n1").run_dir().join(name);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(dir)
    }
}

/// A command on one processor.
pub fn on_cpu(cpu: &str, command: Command) -> Command {
    let mut pinned = Command::new("taskset");
    pinned.args(["-c", cpu]).arg(command.get_program()).args(command.get_args());
    pinned
}

fn iperf_server() -> Command {
    command("iperf3", &["-s", "-p", &TASK_BULK.to_string()])
}

fn echo_server() -> Result<Command> {
    let port = TASK_ECHO.to_string();
    Ok(command(task_program()?, &["echo", "--name", "web", "--listen", &port, "--say-name"]))
}

/// What it says goes to a file.
fn logged(mut command: Command, log: PathBuf) -> Result<Command> {
    let log = File::options().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

fn ip(arguments: &str) -> Command {
    command("ip", &arguments.split(' ').collect::<Vec<_>>())
}

fn host_ip(host: &Host, arguments: &str) -> Result<()> {
    succeeded(arguments, &host.output(ip(arguments))?)
}

fn task_ip(task: &Task, arguments: &str) -> Result<()> {
    succeeded(arguments, &task.output(ip(arguments))?)
}

fn succeeded(what: &str, output: &std::process::Output) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {}", said.trim());
    Ok(())
}
