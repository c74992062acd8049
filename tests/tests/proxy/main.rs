//! Where the proxy differs from the kernel plane (the table in `docs/proxy.md`), and what only it
//! does.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

mod faults;
mod headers;
mod life;
mod listening;
mod streams;
mod tasks;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Result, ensure};
use weir_tests::{Agent, Lab, Plane, Scene, eventually};

const SECOND: Duration = Duration::from_secs(1);

const PORT: u16 = 8080;

/// `web.1` on n1 and `web.2` on n2, not started.
fn scene() -> Scene {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder()).unwrap();
    scene.service("web", PORT);
    scene.task("web", "n1", "web.1").unwrap();
    scene.task("web", "n2", "web.2").unwrap();
    scene
}

fn metric(agent: &Agent, name: &str, labels: &str) -> u64 {
    let text = agent.http("/metrics").unwrap().body;
    let line = text.lines().find(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels))
    });
    let value =
        line.and_then(|line| line.rsplit_once(' ')).map(|(_, value)| value.parse().unwrap());
    value.unwrap_or_default()
}

/// Counters are read at most once a second.
fn counted(agent: &Agent, reason: &str, times: RangeInclusive<u64>) {
    eventually(&format!("{reason} to be counted"), 5 * SECOND, || {
        let counted = metric(agent, "weir_drops_total", &format!("reason=\"{reason}\""));
        ensure!(times.contains(&counted), "{counted} and not {times:?}");
        Ok(())
    })
    .unwrap();
}

fn connect(scene: &Scene, target: SocketAddr) -> TcpStream {
    let stream = scene.lab.client("c1").run(|| TcpStream::connect_timeout(&target, 2 * SECOND));
    let stream = stream.unwrap();
    stream.set_read_timeout(Some(3 * SECOND)).unwrap();
    stream
}

/// What comes until the other side ends.
fn read_all(mut stream: TcpStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Takes what a check gives where nothing is wanted of it.
fn drop_it<T>(_: T) {}
