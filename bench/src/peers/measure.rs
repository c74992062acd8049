//! One measurement of one mode.

use std::{thread, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use weir_tests::{
    Client,
    lab::command,
    process::pin_to_cpu,
    traffic::{HttpLoad, UdpLoad},
};

use super::{
    mode::{Mode, Wire},
    results::{Measure, Sample},
    stage::on_cpu,
};
use crate::machine::busy_microseconds;

/// Requests a second when latency is measured: a small part of what any mode can do.
const LATENCY_RATE: u64 = 1000;

/// What is done in one turn of a mode; several figures may come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// wrk, 16 connections that are kept.
    KeepAlive,
    /// wrk, 16 at a time, a new connection for each request.
    NewConnections,
    /// iperf3, one stream to the task.
    Bulk,
    /// Few requests at a fixed rate.
    Latency,
    /// UDP requests and answers.
    Udp,
}

impl Turn {
    /// All, in the order in which a round does them.
    pub const ALL: [Self; 5] =
        [Self::KeepAlive, Self::NewConnections, Self::Bulk, Self::Latency, Self::Udp];

    /// What it talks to.
    pub fn wire(self) -> Wire {
        match self {
            Self::KeepAlive | Self::NewConnections | Self::Latency => Wire::Http,
            Self::Bulk => Wire::Bulk,
            Self::Udp => Wire::Echo,
        }
    }

    /// Does it.
    pub fn run(self, client: &Client, mode: Mode, seconds: u64) -> Result<Vec<Sample>> {
        let run = match self {
            Self::KeepAlive => requests(client, mode, seconds, true),
            Self::NewConnections => requests(client, mode, seconds, false),
            Self::Bulk => bulk(client, mode, seconds),
            Self::Latency => latency(client, mode, seconds),
            Self::Udp => udp(client, mode, seconds),
        };
        run.with_context(|| format!("{self:?}, {}", mode.name()))
    }
}

fn requests(client: &Client, mode: Mode, seconds: u64, keep: bool) -> Result<Vec<Sample>> {
    let url = format!("http://{}/", mode.target(Wire::Http));
    let duration = format!("-d{seconds}s");
    let mut arguments = vec!["-t1", "-c16", &duration];
    if !keep {
        arguments.extend(["-H", "Connection: close"]);
    }
    arguments.push(&url);
    let busy = busy_microseconds()?;
    let said = run(client, "wrk", &arguments)?;
    let busy = busy_microseconds()? - busy;
    let wrk = Wrk::parse(&said).with_context(|| said.clone())?;
    ensure!(wrk.errors == 0 && wrk.requests > 0.0, "wrk had errors:\n{said}");
    let (rate, cost) = match keep {
        true => (Measure::Requests, Measure::RequestCpu),
        false => (Measure::Connections, Measure::ConnectionCpu),
    };
    Ok(vec![
        Sample { measure: rate, mode, value: wrk.rate },
        Sample { measure: cost, mode, value: busy / wrk.requests },
    ])
}

fn bulk(client: &Client, mode: Mode, seconds: u64) -> Result<Vec<Sample>> {
    let target = mode.target(Wire::Bulk);
    let (address, port) = (target.ip().to_string(), target.port().to_string());
    let duration = seconds.to_string();
    let said = run(client, "iperf3", &["-c", &address, "-p", &port, "-t", &duration, "-f", "m"])?;
    let value = megabits(&said).with_context(|| said.clone())?;
    Ok(vec![Sample { measure: Measure::Throughput, mode, value }])
}

fn latency(client: &Client, mode: Mode, seconds: u64) -> Result<Vec<Sample>> {
    let load = HttpLoad::new(client.netns(), [mode.target(Wire::Http)]);
    let load = load.keep_alive().connections(4).rate(LATENCY_RATE);
    let report = on_the_last_cpu(|| load.requests(LATENCY_RATE * seconds).run())?;
    ensure!(report.failures() == 0, "{report}");
    let micros = |time: Duration| time.as_nanos() as f64 / 1000.0;
    Ok(vec![
        Sample { measure: Measure::Median, mode, value: micros(report.p50) },
        Sample { measure: Measure::Slowest, mode, value: micros(report.p99) },
    ])
}

fn udp(client: &Client, mode: Mode, seconds: u64) -> Result<Vec<Sample>> {
    let load = UdpLoad::new(client.netns(), [mode.target(Wire::Echo)]);
    let report = on_the_last_cpu(|| {
        let running = load.keep_socket().sockets(16).start()?;
        thread::sleep(Duration::from_secs(seconds));
        running.stop()
    })?;
    ensure!(report.ok > 0 && report.failures() * 1000 <= report.ok, "{report}");
    // A request and an answer.
    Ok(vec![Sample { measure: Measure::UdpPackets, mode, value: 2.0 * report.rate() }])
}

/// The lab's own load runs on a thread that inherits where it may run: beside wrk and iperf3, so
/// that where load and server run is the same in every turn.
pub fn on_the_last_cpu<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pinned = || pin_to_cpu(last_cpu()).and_then(|()| work());
    let outcome = thread::scope(|scope| scope.spawn(pinned).join());
    outcome.map_err(|_| anyhow!("the load panicked"))?
}

fn last_cpu() -> usize {
    thread::available_parallelism().map_or(1, usize::from) - 1
}

/// What a program says that the client runs on the last processor.
pub fn run(client: &Client, program: &str, arguments: &[&str]) -> Result<String> {
    let output = client.output(on_cpu(&last_cpu().to_string(), command(program, arguments)))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {said}{error}");
    Ok(said)
}

/// What wrk prints at its end.
#[derive(Debug, PartialEq)]
pub struct Wrk {
    /// Requests in all.
    pub requests: f64,
    /// Requests a second.
    pub rate: f64,
    /// Whatever went wrong.
    pub errors: u64,
}

impl Wrk {
    /// Reads it.
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(str::trim);
        let requests = lines.clone().find_map(|line| line.split_once(" requests in "))?.0;
        let rate = lines.clone().find_map(|line| line.strip_prefix("Requests/sec:"))?;
        let bad = lines.find(|line| {
            line.starts_with("Socket errors:") || line.starts_with("Non-2xx or 3xx responses:")
        });
        let errors = bad.map_or(0, sum_of_numbers);
        Some(Self { requests: requests.parse().ok()?, rate: rate.trim().parse().ok()?, errors })
    }
}

fn sum_of_numbers(line: &str) -> u64 {
    let words = line.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter_map(|word| word.parse::<u64>().ok()).sum()
}

/// The receiver's line of iperf3 with `-f m`.
pub fn megabits(text: &str) -> Option<f64> {
    let line = text.lines().rfind(|line| line.ends_with("receiver"))?;
    let (before, _) = line.split_once(" Mbits/sec")?;
    before.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_understood() {
        let text = "Running 1s test\n  12034 requests in 1.01s, 1.5MB read\n\
                    Requests/sec:  11914.85\nTransfer/sec:      1.5MB\n";
        let expected = Wrk { requests: 12034.0, rate: 11914.85, errors: 0 };
        assert_eq!(Wrk::parse(text), Some(expected));
    }

    #[test]
    fn the_errors_of_wrk_are_added_up() {
        let text = "  10 requests in 1.01s, 1MB read\n  Socket errors: connect 1, read 2, write 0, \
                    timeout 4\nRequests/sec: 10\n";
        assert_eq!(Wrk::parse(text).map(|wrk| wrk.errors), Some(7));
    }

    #[test]
    fn the_receiver_counts() {
        let text = "[  5]   0.00-1.00   sec  5 GBytes  43001 Mbits/sec   0   sender\n\
                    [  5]   0.00-1.00   sec  5 GBytes  42000 Mbits/sec        receiver\n";
        assert_eq!(megabits(text), Some(42000.0));
    }
}
