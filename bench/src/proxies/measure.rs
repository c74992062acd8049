//! What is measured of each proxy, a round at a time.

use std::{
    io::{Read, Write},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weir_tests::traffic::{HttpLoad, UdpLoad};

use super::{PEERS, Peer, Results, bursts, stage::Stage};
use crate::{
    machine,
    peers::{
        measure::{Wrk, megabits, on_the_last_cpu, run},
        mode::Wire,
    },
};

/// Idle connections whose memory is counted.
const IDLE: usize = 1000;

impl Stage {
    /// All rounds.
    pub fn measure(&self, rounds: usize, seconds: u64) -> Result<Results> {
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
                self.bursts(peer, seconds, &mut results)?;
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
        let load = load.keep_alive().connections(4).rate(1000).requests(1000 * seconds);
        let report = on_the_last_cpu(|| load.run())?;
        ensure!(report.failures() == 0, "{}: {report}", peer.name());
        let micros = |time: Duration| time.as_nanos() as f64 / 1000.0;
        results.entry(("latency p50, us", peer)).or_default().push(micros(report.p50));
        results.entry(("latency p99, us", peer)).or_default().push(micros(report.p99));
        Ok(())
    }

    fn udp(&self, peer: Peer, seconds: u64, results: &mut Results) -> Result<()> {
        let load = UdpLoad::new(self.lab.client("c1").netns(), [self.target(peer, Wire::Echo)]);
        let used = self.used(peer)?;
        let report = on_the_last_cpu(|| {
            let running = load.keep_socket().sockets(16).start()?;
            thread::sleep(Duration::from_secs(seconds));
            running.stop()
        })?;
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

    fn bursts(&self, peer: Peer, seconds: u64, results: &mut Results) -> Result<()> {
        let (client, target) = (self.lab.client("c1"), self.target(peer, Wire::Echo));
        let used = self.used(peer)?;
        let time = Duration::from_secs(seconds);
        let counted = on_the_last_cpu(|| bursts::run(client, target, time))?;
        let used = self.used(peer)? - used;
        // Queues are full now and then: that is how datagrams are.
        ensure!(
            counted.back > 0 && counted.lost * 20 <= counted.back,
            "{}: {counted:?}",
            peer.name()
        );
        let packets = 2.0 * counted.back as f64;
        results.entry(("UDP packets/s, bursts", peer)).or_default().push(packets / seconds as f64);
        results.entry(("proxy CPU us/UDP packet, bursts", peer)).or_default().push(used / packets);
        Ok(())
    }

    /// Connections that have asked once, and then rest.
    fn idle(&self, peer: Peer, results: &mut Results) -> Result<()> {
        let target = self.target(peer, Wire::Http);
        let before = self.resident(peer)?;
        let open = self.lab.client("c1").run(|| -> Result<Vec<std::net::TcpStream>> {
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
}
