//! The hub, in a process of its own, so that what it uses is its alone.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result};
use tokio::sync::watch;
use weir::link::{Inputs, Settings, identity::Files, start};
use weir_mesh::cluster::Life;

use super::{
    cluster::{Size, name},
    usage,
};

/// The hub's process. It ends when this is dropped.
#[derive(Debug)]
pub struct HubProcess {
    child: Child,
    words: BufReader<ChildStdout>,
}

/// What the hub has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct HubUsage {
    /// Bytes of frames sent.
    pub bytes: u64,
    /// Frames sent.
    pub frames: u64,
    /// Nodes that are alive.
    pub alive: usize,
    /// Processor time in seconds.
    pub processor: f64,
    /// Resident memory in MB.
    pub memory: u64,
}

impl HubProcess {
    /// Starts this program again as a hub with the certificates in `directory`.
    pub fn start(directory: &Path, address: SocketAddr, size: Size) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--hub")
            .arg(directory)
            .args([address.to_string(), size.nodes.to_string(), size.tasks.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let words = BufReader::new(child.stdout.take().context("no output")?);
        let mut hub = Self { child, words };
        hub.ask()?;
        Ok(hub)
    }

    /// What it has done so far.
    pub fn ask(&mut self) -> Result<HubUsage> {
        let input = self.child.stdin.as_mut().context("no input")?;
        input.write_all(b"?\n")?;
        let mut line = String::new();
        self.words.read_line(&mut line)?;
        let numbers: Vec<u64> =
            line.split(' ').filter_map(|word| word.trim().parse().ok()).collect();
        let [bytes, frames, alive] = numbers[..] else { anyhow::bail!("the hub said {line:?}") };
        let (processor, memory) =
            (usage::processor(self.child.id()), usage::resident(self.child.id()));
        Ok(HubUsage { bytes, frames, alive: alive as usize, processor, memory })
    }
}

impl Drop for HubProcess {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The hub itself, until its input ends.
pub async fn serve(directory: &Path, address: SocketAddr, size: Size) -> Result<()> {
    let (_files, files) = watch::channel(Some(files(directory, 0)));
    let (_managers, managers) = watch::channel(BTreeSet::new());
    let (_declared, declared) = watch::channel(Some(Arc::new(size.declared())));
    let (_report, report) = watch::channel(size.report(0, Life::Active));
    let (_asked, asked) = watch::channel(Some(Instant::now()));
    let link = start(&Settings::at(address), Inputs { files, managers, declared, asked, report });
    tokio::task::spawn_blocking(move || -> Result<()> {
        for line in std::io::stdin().lines() {
            line?;
            let frames = link.counters().sent_frames.load(std::sync::atomic::Ordering::Relaxed);
            let alive = link.status().hub.map_or(0, |hub| hub.alive);
            println!("{} {frames} {alive}", link.sent_bytes());
        }
        Ok(())
    })
    .await?
}

/// The identity of a node, which `weir ca issue` has put there.
pub fn files(directory: &Path, at: usize) -> Files {
    let node = name(at);
    Files {
        ca: directory.join("weir-ca.crt"),
        certificate: directory.join(format!("{node}.crt")),
        key: directory.join(format!("{node}.key")),
    }
}
