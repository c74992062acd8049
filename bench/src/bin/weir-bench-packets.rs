//! Nanoseconds a packet of each kernel program, by the method of `bench/README.md`: a wrapper
//! restores the packet for every repetition and tail-calls the unmodified program; what the wrapper
//! costs with a program that does nothing is subtracted.

use anyhow::{Context as _, Result};
use weir_abi::trial::{FRAME, Template};
use weir_bench::Spread;
use weir_loader::Arrival;
use weir_mesh::{Balance, TaskState::Active};
use weir_tests::{
    packet,
    packet_world::{UPLINK, World},
};

/// Pairs of (program, nothing) a row.
const ROUNDS: usize = 11;
/// Repetitions a measurement.
const REPEAT: u32 = 500_000;

/// Verdicts: a row that measures another fate than it names would be worthless.
const PASSED: i32 = -1;
const REDIRECTED: i32 = 7;

struct Row {
    name: &'static str,
    goal: Option<f64>,
    program: &'static str,
    packet: &'static str,
    flows: u32,
    /// Each flow is met once only: a new one each time.
    fresh: bool,
    remote: bool,
}

const fn row(name: &'static str, program: &'static str, packet: &'static str) -> Row {
    Row { name, goal: None, program, packet, flows: 1, fresh: false, remote: false }
}

fn rows() -> Vec<Row> {
    let data = "tcp 10.77.0.0:0 > 10.77.0.11:8080 A seq 1 ack 1 data 10";
    let syn = "tcp 10.77.0.0:0 > 10.77.0.11:8080 S data 10";
    let data6 = "tcp [fd77::]:0 > [fd77::11]:8080 A seq 1 ack 1";
    let udp = "udp 10.77.0.0:0 > 10.77.0.11:5353 data 22";
    let other = "tcp 10.77.0.0:0 > 10.77.0.11:22 A seq 1 ack 1 data 10";
    vec![
        Row { goal: Some(60.0), ..row("established TCP v4, local task, 1 flow", "nic_in", data) },
        Row {
            goal: Some(90.0),
            flows: 4096,
            ..row("established TCP v4, local task, 4096 flows", "nic_in", data)
        },
        Row { flows: 65536, ..row("established TCP v4, local task, 65536 flows", "nic_in", data) },
        Row {
            goal: Some(370.0),
            fresh: true,
            flows: 65536,
            ..row("new TCP v4 flow, local task", "nic_in", syn)
        },
        Row { remote: true, ..row("established TCP v4, remote task, 1 flow", "nic_in", data) },
        Row {
            remote: true,
            flows: 4096,
            ..row("established TCP v4, remote task, 4096 flows", "nic_in", data)
        },
        Row {
            remote: true,
            fresh: true,
            flows: 65536,
            ..row("new TCP v4 flow, remote task", "nic_in", syn)
        },
        row("established UDP v4, local task, 1 flow", "nic_in", udp),
        Row { flows: 4096, ..row("established UDP v4, local task, 4096 flows", "nic_in", udp) },
        row("established TCP v6, local task, 1 flow", "nic_in", data6),
        Row { flows: 4096, ..row("established TCP v6, local task, 4096 flows", "nic_in", data6) },
        Row { goal: Some(20.0), ..row("not a published port, 1 flow", "nic_in", other) },
        Row {
            goal: Some(20.0),
            flows: 4096,
            ..row("not a published port, 4096 flows", "nic_in", other)
        },
        row("for comparison: one look-up, 1 flow", "one_lookup", data),
        Row { flows: 4096, ..row("for comparison: one look-up, 4096 flows", "one_lookup", data) },
        Row {
            fresh: true,
            flows: 65536,
            ..row("for comparison: one insert of a new flow", "one_insert", data)
        },
        row("for comparison: one checksum helper", "one_checksum", data),
        row(
            "reply of a local task v4, 1 flow",
            "task_out",
            "tcp 172.18.0.3:80 > 10.77.0.0:0 A seq 1 ack 1 data 10",
        ),
        Row {
            flows: 4096,
            ..row(
                "reply of a local task v4, 4096 flows",
                "task_out",
                "tcp 172.18.0.3:80 > 10.77.0.0:0 A seq 1 ack 1 data 10",
            )
        },
    ]
}

fn main() -> Result<()> {
    pin_to_last_cpu();
    println!(
        "{:46} {:>22}  {:>5}",
        "scenario (ns a packet, net of the wrapper)", "median [min..max]", "goal"
    );
    // Only the rows whose name holds the argument, if there is one.
    let filter = std::env::args().nth(1).unwrap_or_default();
    for row in rows().into_iter().filter(|row| row.name.contains(&filter)) {
        let spread = measure(&row).with_context(|| row.name.to_owned())?;
        let verdict = match row.goal {
            Some(goal) if spread.median <= goal => format!("{goal:5.0}  met"),
            Some(goal) => format!("{goal:5.0}  missed by {:.0} ns", spread.median - goal),
            None => String::new(),
        };
        println!("{:46} {:>22}  {verdict}", row.name, format!("{spread:.0}"));
    }
    Ok(())
}

fn measure(row: &Row) -> Result<Spread> {
    let mut world = World::new()?;
    let node = if row.remote { "n2" } else { "n1" };
    let ports = ["8080:80/tcp", "5353:53/udp"];
    world.service("web", Balance::RoundRobin, &ports, &[("web.1", node, 3, Active)])?;
    let arrival = Arrival { ingress_ifindex: UPLINK, ..Arrival::default() };
    let template = template(row)?;
    prepare(&mut world, row, arrival)?;
    let mut net = Vec::new();
    for _ in 0..ROUNDS {
        if row.fresh {
            world = World::new()?;
            world.service("web", Balance::RoundRobin, &ports, &[("web.1", node, 3, Active)])?;
        }
        // Fewer than the table holds: eviction is another matter.
        let repeat = if row.fresh { row.flows } else { REPEAT };
        let trial = world.trial();
        let empty = trial.measure("nothing", template, arrival, repeat)?.took;
        let ran = trial.measure(row.program, template, arrival, repeat)?;
        let expected = if row.packet.contains(":22 ") { PASSED } else { REDIRECTED };
        anyhow::ensure!(ran.verdict == expected, "the program gave the verdict {}", ran.verdict);
        let full = ran.took;
        net.push(full.as_nanos() as f64 - empty.as_nanos() as f64);
    }
    Ok(Spread::of(net))
}

/// Begins every flow, so that the measured packets find it.
fn prepare(world: &mut World, row: &Row, arrival: Arrival) -> Result<()> {
    if row.fresh {
        return Ok(());
    }
    let opener = match (row.program, row.packet.starts_with("udp")) {
        (_, true) => row.packet.to_owned(),
        ("task_out", _) => "tcp 10.77.0.0:0 > 10.77.0.11:8080 S".to_owned(),
        _ => row.packet.replace(" A seq 1 ack 1", " S"),
    };
    let begin = Row { packet: Box::leak(opener.into_boxed_str()), program: "nic_in", ..*row };
    let template = template(&begin)?;
    world.trial().measure("nic_in", template, arrival, row.flows)?;
    // A packet each makes them established.
    if row.program == "nic_in" {
        world.trial().measure("nic_in", self::template(row)?, arrival, row.flows)?;
    }
    Ok(())
}

fn template(row: &Row) -> Result<Template> {
    let bytes = packet::build(row.packet)?;
    anyhow::ensure!(bytes.len() <= FRAME, "the packet has {} bytes, of {FRAME}", bytes.len());
    let mut frame = [0u8; FRAME];
    frame[..bytes.len()].copy_from_slice(&bytes);
    let v6 = row.packet.contains('[');
    let udp = row.packet.starts_with("udp");
    let reply = row.program == "task_out";
    let (ip, l4) = (14, if v6 { 54 } else { 34 });
    // The client is the source, but of a reply the destination.
    let address = match (v6, reply) {
        (false, false) => ip + 12 + 2,
        (false, true) => ip + 16 + 2,
        (true, false) => ip + 8 + 14,
        (true, true) => ip + 24 + 14,
    };
    Ok(Template {
        frame: std::array::from_fn(|i| {
            let mut word = [0u8; 8];
            word.copy_from_slice(&frame[i * 8..i * 8 + 8]);
            u64::from_ne_bytes(word)
        }),
        next: 0,
        flows: row.flows,
        stride: 0x9e37_79b1,
        mask: row.flows.next_power_of_two() - 1,
        address,
        port: if reply { l4 + 2 } else { l4 },
        transport_check: l4 + if udp { 6 } else { 16 },
        header_check: if v6 { 0 } else { ip + 10 },
    })
}

/// One CPU for everything: the figures of two would be mixed.
fn pin_to_last_cpu() {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let _ = weir_tests::process::pin_to_cpu(cpus - 1);
}
