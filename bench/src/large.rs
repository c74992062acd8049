//! A large mesh: 10,000 services with 10 tasks each.

use std::fmt::Write as _;

use anyhow::Result;
use weir_tests::{Families, Lab};

use crate::machine;

/// How many services there are.
pub const SERVICES: usize = 10_000;
/// How many tasks each has.
pub const TASKS: usize = 10;
const NODES: usize = 10;

/// Measures in a lab of the one host that is real, and says on what machine.
///
/// # Errors
/// Those of the measurement, and of a lab that cannot be made or taken down.
pub fn on_one_host(clients: usize, measure: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    println!("{}", machine::describe());
    let lab = Lab::builder().hosts(1).clients(clients).families(Families::V4).build()?;
    let measured = measure(&lab);
    let finished = lab.finish();
    measured?;
    println!("load average at the end {}", machine::load_average());
    finished
}

/// The text of a `mesh.toml`. Tasks are spread over ten nodes, of which the first is real; the ports are
/// 10000 and above. `changed` drains or wakes one task of the middle of the file.
pub fn mesh(services: usize, changed: Option<usize>) -> String {
    let mut text = String::new();
    for node in 0..NODES {
        let _ = writeln!(
            text,
            "[[node]]\nname = \"n{}\"\naddress = \"10.77.0.{}\"",
            node + 1,
            node + 11
        );
    }
    for service in 0..services {
        let port = 10_000 + service;
        let _ = writeln!(text, "[[service]]\nname = \"s{service}\"\npublish = [\"{port}:80\"]");
        for task in 0..TASKS {
            let draining =
                service == services / 2 && task == 0 && changed.is_some_and(|n| n % 2 == 0);
            task_entry(&mut text, service, task, if draining { "draining" } else { "active" });
        }
    }
    text
}

fn task_entry(text: &mut String, service: usize, task: usize, state: &str) {
    let (node, address) = (task % NODES + 1, service + 3);
    let _ = writeln!(
        text,
        "[[service.task]]\nname = \"s{service}.{task}\"\nnode = \"n{node}\"\n\
         address = [\"172.18.{}.{}\"]\nstate = \"{state}\"",
        address >> 8,
        address & 255
    );
}
