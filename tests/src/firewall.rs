//! The netfilter rules that Docker puts on a Swarm node, which weir must survive.
//!
//! `iptables-restore` is real software that is configured here, so this is the one place where
//! the lab runs a program instead of a system call.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::netns::Netns;
use crate::plan::{GATEWAY, SANDBOX_V4, SANDBOX_V6};
use crate::process::piped;

/// A port in Docker's DOCKER-INGRESS chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IngressPort {
    /// "tcp" or "udp".
    pub protocol: &'static str,
    /// The published port.
    pub port: u16,
}

/// A TCP port in DOCKER-INGRESS.
pub const fn tcp(port: u16) -> IngressPort {
    IngressPort { protocol: "tcp", port }
}

/// A UDP port in DOCKER-INGRESS.
pub const fn udp(port: u16) -> IngressPort {
    IngressPort { protocol: "udp", port }
}

/// The rules of one host: rendered anew and restored as a whole on each change, as one commit per
/// table.
#[derive(Debug)]
pub struct DockerRules {
    netns: Netns,
    published: Vec<IngressPort>,
    tasks: Vec<IpAddr>,
    flushed: bool,
}

impl DockerRules {
    /// Puts the rules for no tasks into `netns`.
    pub fn install(netns: &Netns, published: &[IngressPort]) -> Result<Self> {
        let published = published.to_vec();
        let rules = Self { netns: netns.clone(), published, tasks: Vec::new(), flushed: false };
        rules.restore()?;
        Ok(rules)
    }

    /// Adds the raw rules of a new task.
    pub fn add_task(&mut self, addresses: &[IpAddr]) -> Result<()> {
        self.tasks.extend(addresses);
        self.restore()
    }

    /// Removes the raw rules of a task that is gone.
    pub fn remove_task(&mut self, addresses: &[IpAddr]) -> Result<()> {
        self.tasks.retain(|task| !addresses.contains(task));
        self.restore()
    }

    /// Empties every table and accepts everything, as `firewall-cmd --reload` does for a moment.
    pub fn flush(&mut self) -> Result<()> {
        self.flushed = true;
        self.restore()
    }

    /// Puts the rules back after a flush.
    pub fn reinstall(&mut self) -> Result<()> {
        self.flushed = false;
        self.restore()
    }

    fn restore(&self) -> Result<()> {
        for family in [Family::V4, Family::V6] {
            let text = if self.flushed { EMPTY.to_owned() } else { self.render(family) };
            restore(&self.netns, family, &text)?;
        }
        Ok(())
    }

    fn render(&self, family: Family) -> String {
        let raw = self
            .tasks
            .iter()
            .filter(|task| family.has(**task))
            .map(|task| format!("-A PREROUTING -d {task} ! -i {GATEWAY} -j DROP\n"));
        let ingress = self.published.iter().map(|IngressPort { protocol, port }| {
            let to = family.sandbox(*port);
            format!(
                "-A DOCKER-INGRESS -p {protocol} --dport {port} -j DNAT --to-destination {to}\n"
            )
        });
        let (raw, ingress, subnet) =
            (raw.collect::<String>(), ingress.collect::<String>(), family.subnet());
        format!(
            "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n{raw}COMMIT\n\
             *filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n\
             -A FORWARD -o {GATEWAY} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A FORWARD ! -i {GATEWAY} -o {GATEWAY} -j DROP\n\
             -A FORWARD -i {GATEWAY} -o {GATEWAY} -j DROP\n\
             -A FORWARD -i {GATEWAY} ! -o {GATEWAY} -j ACCEPT\nCOMMIT\n\
             *nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n\
             :DOCKER-INGRESS -\n\
             -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER-INGRESS\n\
             -A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER-INGRESS\n\
             {ingress}-A DOCKER-INGRESS -j RETURN\n\
             -A POSTROUTING -o {GATEWAY} -m addrtype --src-type LOCAL -j MASQUERADE\n\
             -A POSTROUTING -s {subnet} ! -o {GATEWAY} -j MASQUERADE\nCOMMIT\n"
        )
    }
}

const EMPTY: &str = "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n\
    *filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n\
    *nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n";

#[derive(Debug, Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn has(self, address: IpAddr) -> bool {
        matches!((self, address), (Self::V4, IpAddr::V4(_)) | (Self::V6, IpAddr::V6(_)))
    }

    fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables-restore",
            Self::V6 => "ip6tables-restore",
        }
    }

    fn subnet(self) -> &'static str {
        match self {
            Self::V4 => "172.18.0.0/16",
            Self::V6 => "fd18::/64",
        }
    }

    fn sandbox(self, port: u16) -> String {
        match self {
            Self::V4 => format!("{SANDBOX_V4}:{port}"),
            Self::V6 => format!("[{SANDBOX_V6}]:{port}"),
        }
    }
}

fn restore(netns: &Netns, family: Family, text: &str) -> Result<()> {
    let program = family.program();
    let mut command = Command::new(program);
    command.arg("-w"); // the legacy variant's lock is one for all namespaces
    let mut child = piped(command, netns).with_context(|| {
        format!("run {program}: the lab's Docker rules need it (apt-get install iptables)")
    })?;
    let mut input = child.stdin.take().context("no pipe")?;
    input.write_all(text.as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program}: {}\n{text}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
