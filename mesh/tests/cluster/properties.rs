//! Words at random: the merge is a sound mesh, whatever is said, in whatever order.

use proptest::prelude::*;
use weir_mesh::cluster::{Availability, Life, WishedState};

use crate::world::{World, node_id, tcp};

#[derive(Clone, Debug)]
enum Word {
    Node { node: u8, drain: bool, ready: bool, hostname: u8, address: u8 },
    Speaks { node: u8, address: u8 },
    Silent { node: u8 },
    Service { service: u8, port: u16, host: bool },
    Wish { service: u8, task: u8, node: u8, shutdown: bool },
    Report { node: u8, service: u8, task: u8, address: u8, life: Life },
}

fn word() -> impl Strategy<Value = Word> {
    let life = prop::sample::select(vec![
        Life::Starting,
        Life::Active,
        Life::Active,
        Life::Draining,
        Life::Down,
    ]);
    prop_oneof![
        (0..4_u8, any::<bool>(), any::<bool>(), 0..3_u8, 0..4_u8).prop_map(
            |(node, drain, ready, hostname, address)| Word::Node {
                node,
                drain,
                ready,
                hostname,
                address
            }
        ),
        (0..4_u8, 0..4_u8).prop_map(|(node, address)| Word::Speaks { node, address }),
        (0..4_u8).prop_map(|node| Word::Silent { node }),
        (0..3_u8, 80..83_u16, any::<bool>()).prop_map(|(service, port, host)| Word::Service {
            service,
            port,
            host
        }),
        (0..3_u8, 0..6_u8, 0..4_u8, any::<bool>()).prop_map(|(service, task, node, shutdown)| {
            Word::Wish { service, task, node, shutdown }
        }),
        (0..4_u8, 0..3_u8, 0..6_u8, 0..4_u8, life).prop_map(
            |(node, service, task, address, life)| Word::Report {
                node,
                service,
                task,
                address,
                life
            }
        ),
    ]
}

fn name(kind: &str, number: u8) -> String {
    format!("{kind}{number}")
}

impl World {
    fn take(&mut self, word: &Word) {
        match *word {
            Word::Node { node, drain, ready, hostname, address } => {
                let id = name("n", node);
                self.node(&id, address);
                self.change_node(&id, |node| {
                    node.hostname = name("host", hostname);
                    node.ready = ready;
                    if drain {
                        node.availability = Availability::Drain;
                    }
                });
            }
            Word::Speaks { node, address } => self.speaks(&name("n", node), address),
            Word::Silent { node } => {
                self.alive.remove(&node_id(&name("n", node)));
            }
            Word::Service { service, port, host } => {
                let mut port = tcp(port, 80);
                if host {
                    port.mode = weir_mesh::PublishMode::Host;
                }
                self.service(&name("s", service), &[port, tcp(81, 81)]);
            }
            Word::Wish { service, task, node, shutdown } => {
                let wished = if shutdown { WishedState::Shutdown } else { WishedState::Running };
                self.wish(&name("s", service), &name("t", task), &name("n", node), wished);
            }
            Word::Report { node, service, task, address, life } => {
                let node = name("n", node);
                if self.reports.contains_key(&node_id(&node)) {
                    self.reports(&node, &name("s", service), &name("t", task), address, life);
                }
            }
        }
    }
}

/// What a word replaces: two words about different things may be said in any order.
fn about(word: &Word) -> String {
    match word {
        Word::Node { node, .. } => format!("node {node}"),
        Word::Speaks { node, .. } | Word::Silent { node } => format!("speech {node}"),
        Word::Service { service, .. } => format!("service {service}"),
        Word::Wish { task, .. } => format!("task {task}"),
        // A report stands in its node's speech: it must come after it.
        Word::Report { node, .. } => format!("speech {node}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_is_said_the_merge_is_a_sound_mesh(words in prop::collection::vec(word(), 0..60)) {
        let mut world = World::default();
        words.iter().for_each(|word| world.take(word));
        // `merged` checks it as every snapshot is checked.
        let merged = world.merged();
        for (name, service) in &merged.services {
            prop_assert_eq!(name, &service.name);
            for task in &service.tasks {
                prop_assert!(merged.nodes.contains_key(&task.node));
                prop_assert!(task.ipv4.is_some() || task.ipv6.is_some());
            }
        }
        for name in merged.names.values() {
            prop_assert!(merged.nodes.contains_key(name));
        }
        prop_assert_eq!(merged.names.len(), merged.nodes.len(), "each name is one node's");
    }

    #[test]
    fn the_order_in_which_words_about_different_things_arrive_does_not_matter(
        words in prop::collection::vec(word(), 0..60), shuffle in any::<prop::sample::Index>(),
    ) {
        let mut world = World::default();
        words.iter().for_each(|word| world.take(word));
        let mut groups = std::collections::BTreeMap::<String, Vec<&Word>>::new();
        for word in &words {
            groups.entry(about(word)).or_default().push(word);
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        if !groups.is_empty() {
            let by = shuffle.index(groups.len());
            groups.rotate_left(by);
            if by % 2 == 1 {
                groups.reverse();
            }
        }
        let mut other = World::default();
        groups.into_iter().flatten().for_each(|word| other.take(word));
        prop_assert_eq!(world.merged(), other.merged());
    }

    #[test]
    fn a_silent_node_gets_no_new_flows(
        words in prop::collection::vec(word(), 0..60), node in 0..4_u8,
    ) {
        let mut world = World::default();
        words.iter().for_each(|word| world.take(word));
        world.take(&Word::Silent { node });
        let merged = world.merged();
        let Some(silent) = merged.names.get(&node_id(&name("n", node))) else { return Ok(()) };
        let tasks = merged.services.values().flat_map(|service| &service.tasks);
        for task in tasks.filter(|task| task.node == *silent) {
            prop_assert_ne!(task.state, weir_mesh::TaskState::Active);
        }
    }
}
