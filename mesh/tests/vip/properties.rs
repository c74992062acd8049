//! Random services, tasks and namespaces, changed at random, cut short at random.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use proptest::prelude::*;
use weir_mesh::{MeshSnapshot, TaskState, vip::LocalSpaces};

use crate::world::{LIMITS, World, here, service, snapshot, spaces, task};

const NETWORKS: [&str; 3] = ["blue", "green", "red"];

#[derive(Clone, Debug)]
struct Step {
    wait: u64,
    mesh: MeshSnapshot,
    spaces: Option<LocalSpaces>,
    /// How much of the plan is applied; `None`: all of it.
    cut: Option<prop::sample::Index>,
    restart: bool,
}

/// Virtual addresses: positions in [`NETWORKS`], and last bytes.
type Places = BTreeSet<(usize, u8)>;

fn mesh() -> impl Strategy<Value = MeshSnapshot> {
    let state = prop_oneof![4 => Just(TaskState::Active), 1 => Just(TaskState::Draining)];
    let drawn = (0..3_usize, 11..20_u8, prop_oneof![5 => Just(1_u16), 1 => 0..4_u16], state);
    let tasks = prop::collection::vec(drawn, 0..6);
    let one = (prop::collection::btree_set((0..3_usize, 2..5_u8), 0..3), tasks);
    prop::collection::vec(one, 0..4).prop_map(|services| {
        let build = |(number, (vips, tasks)): (usize, (Places, Vec<_>))| {
            let addresses: Vec<(usize, String)> = vips
                .iter()
                .flat_map(|(network, last)| {
                    [(*network, format!("10.0.9.{last}")), (*network, format!("fd00:9::{last}"))]
                })
                .collect();
            let vips: Vec<(&str, &str)> = addresses
                .iter()
                .map(|(network, address)| (NETWORKS[*network], address.as_str()))
                .collect();
            let mut built: Vec<_> = tasks
                .into_iter()
                .map(|(network, last, weight, state)| task(NETWORKS[network], last, weight, state))
                .collect();
            built.sort_by(|a, b| a.name.cmp(&b.name));
            built.dedup_by(|a, b| a.name == b.name);
            service(&format!("service-{number}"), &vips, built)
        };
        snapshot(services.into_iter().enumerate().map(build).collect())
    })
}

fn local() -> impl Strategy<Value = LocalSpaces> {
    let networks = prop::sample::subsequence(NETWORKS.to_vec(), 0..=3);
    prop::collection::btree_map(1..5_u64, networks, 0..4).prop_map(|attached| {
        let attached: Vec<(u64, &[&str])> =
            attached.iter().map(|(space, networks)| (*space, networks.as_slice())).collect();
        spaces(&attached)
    })
}

fn step() -> impl Strategy<Value = Step> {
    let cut = prop::option::weighted(0.3, any::<prop::sample::Index>());
    let spaces = prop::option::weighted(0.9, local());
    (0..4_u64, mesh(), spaces, cut, prop::bool::weighted(0.15))
        .prop_map(|(wait, mesh, spaces, cut, restart)| Step { wait, mesh, spaces, cut, restart })
}

/// What an asker should reach, told without the planner.
fn expected(mesh: &MeshSnapshot, local: &LocalSpaces) -> BTreeMap<(u64, IpAddr), BTreeSet<IpAddr>> {
    let mut all = BTreeMap::new();
    for (space, networks) in local {
        let mut seen = BTreeMap::<IpAddr, BTreeSet<BTreeSet<IpAddr>>>::new();
        for network in networks {
            let mut taken = BTreeSet::new();
            for service in mesh.services.values() {
                for vip in service.vips.get(network).into_iter().flatten() {
                    let tasks = service
                        .tasks
                        .iter()
                        .filter(|task| task.state == TaskState::Active && task.weight > 0);
                    let addresses = tasks.filter_map(|task| task.networks.get(network)).flatten();
                    let same = addresses.filter(|own| own.is_ipv4() == vip.is_ipv4());
                    if taken.insert(*vip) {
                        seen.entry(*vip).or_default().insert(same.copied().collect());
                    }
                }
            }
        }
        // The same address on two of its networks: which one it is is not for us to say.
        let sure = seen.into_iter().filter(|(_, sets)| sets.len() == 1);
        all.extend(
            sure.flat_map(|(vip, sets)| sets.into_iter().map(move |set| ((space.0, vip), set))),
        );
    }
    all
}

proptest! {
    /// Each operation is checked by the maps in [`World::apply`]: no record ever names cells that are
    /// not written, no name a record that is not there, and nothing is written before it has rested.
    #[test]
    fn whatever_happens_every_prefix_is_sound_and_the_end_is_what_was_asked_for(
        steps in prop::collection::vec(step(), 1..12)
    ) {
        let mut world = World::new(LIMITS);
        let mut local = LocalSpaces::new();
        for step in steps {
            world.pass(Duration::from_secs(step.wait));
            if step.restart {
                world.restart();
            }
            if let Some(spaces) = &step.spaces {
                local = spaces.clone();
            }
            let plan = world.planner.plan(&step.mesh, &here(), Some(&local), world.now);
            let upto = step.cut.map_or(plan.ops.len(), |cut| cut.index(plan.ops.len() + 1));
            world.apply(&plan.ops[..upto]);
            if upto < plan.ops.len() {
                world.serve(&step.mesh, Some(&local));
                world.serve(&step.mesh, Some(&local));
            }
            for ((space, vip), tasks) in expected(&step.mesh, &local) {
                let reached = world.reached(space, vip);
                let reached = reached.map(|turns| turns.into_keys().collect::<BTreeSet<_>>());
                prop_assert_eq!(reached, Some(tasks), "{} in {}\n{}", vip, space, world.kernel.dump());
            }
            prop_assert!(world.planner.plan(&step.mesh, &here(), Some(&local), world.now).ops.is_empty());
        }
    }
}
