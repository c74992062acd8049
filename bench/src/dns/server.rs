//! A server that runs until it goes.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use weir_tests::process::status_kib;

use super::others;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This project's.
    Weir,
    /// dnsmasq
    Dnsmasq,
    /// unbound
    Unbound,
    /// knot
    Knot,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Which.
    pub kind: Kind,
    /// Where on 127.0.0.1 it is asked.
    pub port: u16,
    /// How long it took from its start to its first answer.
    pub started: Duration,
    process: Child,
}

/// Where the server runs; who asks runs elsewhere, if there is more than one processor.
const CPU: &str = "0";

impl Kind {
    /// weir first: the others are compared with it.
    pub const ALL: [Self; 4] = [Self::Weir, Self::Dnsmasq, Self::Unbound, Self::Knot];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Weir => "weir",
            Self::Dnsmasq => "dnsmasq",
            Self::Unbound => "unbound",
            Self::Knot => "knot",
        }
    }

    /// Whether it asks others for what it does not know.
    pub fn forwards(self) -> bool {
        self != Self::Knot
    }
}

impl Server {
    /// Starts a server with so many names, and waits until it answers.
    pub fn start(
        kind: Kind,
        port: u16,
        names: usize,
        upstream: SocketAddr,
        files: &Path,
    ) -> Result<Self> {
        let command = match kind {
            Kind::Weir => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("serve").arg(port.to_string()).arg(names.to_string());
                command.arg(upstream.to_string());
                command
            }
            Kind::Dnsmasq => others::dnsmasq(port, names, upstream, files)?,
            Kind::Unbound => others::unbound(port, names, upstream, files)?,
            Kind::Knot => others::knot(port, names, files)?,
        };
        let name = kind.as_str();
        let begun = Instant::now();
        // `taskset` becomes the server: the process is the same.
        let mut pinned = Command::new("taskset");
        pinned.args(["-c", CPU]).arg(command.get_program()).args(command.get_args());
        let process = pinned.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut server = Self { kind, port, started: Duration::ZERO, process };
        while !server.answers()? {
            let ended = server.process.try_wait()?;
            ensure!(ended.is_none(), "{name} has ended, or is not installed: {ended:?}");
            ensure!(begun.elapsed() < Duration::from_secs(60), "{name} does not answer");
        }
        server.started = begun.elapsed();
        Ok(server)
    }

    /// Bytes of memory.
    pub fn resident(&self) -> Result<f64> {
        Ok(status_kib(self.process.id(), "VmRSS")? as f64 * 1024.0)
    }

    /// Makes it read its names anew.
    pub fn reload(&self) -> Result<()> {
        let process = Pid::from_raw(self.process.id().cast_signed());
        Ok(kill(process, Signal::SIGHUP)?)
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
                thread::sleep(Duration::from_millis(20));
                Ok(false)
            }
        }
    }

    /// Seconds of processor time so far: of all threads, to the nanosecond, and of children that have
    /// ended (dnsmasq has one for each TCP connection), to the hundredth of a second.
    pub fn cpu(&self) -> Result<f64> {
        let id = self.process.id();
        let mut nanoseconds = 0.0;
        for thread in fs::read_dir(format!("/proc/{id}/task"))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            let first = text.split_whitespace().next().context("schedstat")?;
            nanoseconds += first.parse::<f64>()?;
        }
        let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
        // After the name, which may hold anything: cutime and cstime are the 16th and 17th (proc(5)).
        let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |at: usize| {
            fields.get(at).context("/proc/PID/stat")?.parse::<f64>().context("a number")
        };
        Ok(nanoseconds / 1e9 + (field(13)? + field(14)?) / 100.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
