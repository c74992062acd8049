//! 100 MB through a remote task, every byte checked, with each pair of: offloads on or off; MTU
//! 1450, 1500 or 9000; rp_filter 0, 1 or 2. And datagrams of every size that fits.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use weir_tests::lab::command;
use weir_tests::task::task_program;
use weir_tests::traffic::{HttpLoad, UdpLoad};
use weir_tests::{Cases, Lab, LabBuilder, Offloads, Probe, Process, Scene, eventually};

const SINK: u16 = 9000;
const SOURCE: u16 = 9001;
const ECHO: u16 = 9002;
const SECOND: std::time::Duration = std::time::Duration::from_secs(1);

struct Bulk {
    _programs: Vec<Process>,
    scene: Scene,
}

/// One task on n2; clients come in by n1.
fn bulk(builder: LabBuilder) -> Bulk {
    let mut scene = Scene::new(builder.docker_firewall([])).unwrap();
    let service = scene.mesh.service("bulk");
    service.publish("9000:9").publish("9001:10").publish("9002:11/udp");
    scene.task("bulk", "n2", "bulk.1").unwrap();
    let task = &scene.tasks["bulk.1"];
    let programs = [
        vec!["sink", "--listen", "9"],
        vec!["source", "--listen", "10", "--mb", "100"],
        vec!["echo", "--name", "bulk.1", "--listen", "11"],
    ];
    let programs =
        programs.map(|arguments| task.spawn(command(task_program().unwrap(), &arguments)).unwrap());
    scene.start().unwrap();
    Bulk { _programs: programs.into(), scene }
}

impl Bulk {
    fn transfer(&self, arguments: &[&str], target: SocketAddr) -> Result<()> {
        let mut all = vec!["120", task_program()?.to_str().unwrap().to_owned().leak()];
        all.extend(arguments);
        let target = target.to_string();
        all.push(&target);
        let output = self.scene.lab.client("c1").output(command("timeout", &all))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        println!("{target}: {}", said.trim());
        let whole = "bytes=100000000 intact=true";
        ensure!(said.contains(whole), "{} {} {}", output.status, said.trim(), error.trim());
        Ok(())
    }

    fn both_directions(&self, cases: &mut Cases) {
        for target in self.scene.lab.host("n1").targets(SINK) {
            let sent = self.transfer(&["source", "--mb", "100", "--to"], target);
            cases.note(format!("100 MB to {target}"), sent);
        }
        for target in self.scene.lab.host("n1").targets(SOURCE) {
            cases.note(format!("100 MB from {target}"), self.transfer(&["sink", "--to"], target));
        }
    }

    /// `step` 1 tries each size.
    fn datagrams(&self, cases: &mut Cases, largest: usize, step: usize) {
        let netns = self.scene.lab.client("c1").netns();
        for target in self.scene.lab.host("n1").targets(ECHO) {
            let ready = Probe::udp(target);
            let mut talk = eventually("the echo", 5 * SECOND, || {
                let mut talk = ready.open_in(netns)?;
                talk.echo(b"ready").map(|_| talk).map_err(anyhow::Error::from)
            })
            .unwrap();
            let mut failed = Vec::new();
            for size in (1..=largest).step_by(step) {
                let data: Vec<u8> = (0..size).map(|at| (at * 7 + size) as u8).collect();
                match talk.echo(&data) {
                    Ok(back) if back == data => (),
                    Ok(back) => failed.push(format!("{size}: {} other bytes", back.len())),
                    Err(error) => failed.push(format!("{size}: {error}")),
                }
                if failed.len() > 3 {
                    break; // each costs a timeout
                }
            }
            let result =
                if failed.is_empty() { Ok(()) } else { Err(anyhow::anyhow!("{failed:?}")) };
            cases.note(format!("datagrams of 1 to {largest} bytes to {target}"), result);
        }
    }
}

/// Without offloads every checksum is in the packet and is looked at: each must be right, whatever
/// the ports are.
#[test]
fn without_offloads_ten_thousand_flows_have_right_checksums() {
    let mut scene = Scene::new(Lab::builder().offloads(Offloads::Off)).unwrap();
    scene.service("web", 8080);
    scene.task("web", "n1", "web.1").unwrap();
    scene.task("web", "n2", "web.2").unwrap();
    scene.start().unwrap();
    let netns = scene.lab.client("c1").netns();
    let targets: Vec<_> = scene.lab.hosts().iter().flat_map(|host| host.targets(8080)).collect();
    let web = HttpLoad::new(netns, targets.clone()).requests(6000).run().unwrap();
    let echo = UdpLoad::new(netns, targets).requests(4000).run().unwrap();
    println!("{web}\n{echo}");
    let clean = web.failures() == 0 && echo.failures() == 0;
    assert!(clean, "TCP: {web}\nUDP: {echo}\n{}", scene.drops());
}

fn all(builder: LabBuilder, largest: usize, step: usize) {
    let bulk = bulk(builder);
    let mut cases = Cases::default();
    bulk.both_directions(&mut cases);
    bulk.datagrams(&mut cases, largest, step);
    cases.end(&bulk.scene).unwrap();
}

#[test]
fn without_offloads_over_mtu_1450_with_strict_rp_filter() {
    let builder = Lab::builder().offloads(Offloads::Off).fabric_mtu(1450).gateway_mtu(1450);
    all(builder.rp_filter(1), 1350, 1);
}

#[test]
fn without_offloads_over_mtu_1500_with_loose_rp_filter() {
    all(Lab::builder().offloads(Offloads::Off).rp_filter(2), 1400, 1);
}

#[test]
fn with_offloads_over_mtu_9000_without_rp_filter() {
    let builder = Lab::builder().offloads(Offloads::On).fabric_mtu(9000).gateway_mtu(9000);
    all(builder.rp_filter(0), 8800, 97);
}

#[test]
fn with_offloads_over_mtu_1450_and_tasks_of_1500_with_loose_rp_filter() {
    let builder = Lab::builder().offloads(Offloads::On).fabric_mtu(1450);
    all(builder.rp_filter(2), 1350, 7);
}

#[test]
fn without_offloads_over_mtu_9000_and_tasks_of_1500_with_strict_rp_filter() {
    let builder = Lab::builder().offloads(Offloads::Off).fabric_mtu(9000);
    all(builder.rp_filter(1), 1400, 7);
}

#[test]
fn with_offloads_over_mtu_1500_with_strict_rp_filter() {
    all(Lab::builder().offloads(Offloads::On).rp_filter(1), 1400, 7);
}

#[test]
fn without_offloads_over_mtu_1450_without_rp_filter() {
    let builder = Lab::builder().offloads(Offloads::Off).fabric_mtu(1450).gateway_mtu(1450);
    all(builder.rp_filter(0), 1350, 7);
}

#[test]
fn with_offloads_over_mtu_1500_without_rp_filter() {
    all(Lab::builder().offloads(Offloads::On).rp_filter(0), 1400, 7);
}

#[test]
fn without_offloads_over_mtu_9000_with_loose_rp_filter() {
    let builder = Lab::builder().offloads(Offloads::Off).fabric_mtu(9000).gateway_mtu(9000);
    all(builder.rp_filter(2), 8800, 97);
}
