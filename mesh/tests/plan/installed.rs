//! The mirror refuses every operation that would break what it points at.

use weir_mesh::{
    Ident, Installed, MapOp,
    ident::Tag,
    install::{
        BackendGeneration, BackendIndex, BackendRecord, NodeIndex, Region, ServiceId, Slot, Via,
    },
};

use crate::world::{World, mesh, reach_all};

/// A service with a local and a remote task, and one with a remote task.
fn installed() -> Installed {
    let mut world = World::new(weir_mesh::Limits::default());
    let snapshot = mesh("api 81:80 | 1@n2\n web 80:80 | 1@n1 2@n2");
    world.local.reach = reach_all(&snapshot);
    world.serve(&snapshot);
    world.kernel
}

fn refused(op: &MapOp) -> String {
    let mut maps = installed();
    let before = maps.clone();
    let error = maps.apply(op).unwrap_err().to_string();
    assert_eq!(maps, before, "a refused operation changes nothing");
    error
}

fn backend(index: u32) -> BackendRecord {
    installed().backends[&BackendIndex(index)]
}

#[test]
fn the_maps_of_these_tests_are_as_expected() {
    let dump = installed().dump();
    let found: Vec<_> = dump
        .lines()
        .filter(|line| line.starts_with("REGION") || line.starts_with("PORT"))
        .collect();
    let expected = ["PORT tcp/80 -> SLOT 2", "PORT tcp/81 -> SLOT 1"];
    assert_eq!(found[..2], expected);
    assert_eq!(found[2..], ["REGION 0+1 1", "REGION 1+2 2 3", "REGION 3+1 3"]);
}

#[test]
fn nothing_is_removed_that_something_points_at() {
    assert_eq!(refused(&MapOp::RemoveNode(NodeIndex(1))), "node 1 is in use");
    assert_eq!(refused(&MapOp::RemoveBackend(BackendIndex(2))), "backend 2 is in use");
    assert_eq!(refused(&MapOp::FreeRegion { offset: 3 }), "region 3 is in use");
    assert_eq!(refused(&MapOp::RemoveRecord(Slot(1))), "record 1 is in use");
}

#[test]
fn nothing_points_at_something_missing() {
    let port = *installed().ports.keys().next().unwrap();
    assert_eq!(refused(&MapOp::Publish(port, Slot(9))), "record 9 is not installed");
    let cells = vec![BackendIndex(9)];
    let write = MapOp::WriteRegion { offset: 9, cells };
    assert_eq!(refused(&write), "backend 9 is not installed");
    let mut record = installed().records[&Slot(1)];
    record.pick4 = Region { offset: 1, len: 1 };
    assert_eq!(refused(&MapOp::SetRecord(Slot(9), record)), "region 1 is not installed");
    let lost = BackendRecord { via: Via::Tunnel { node: NodeIndex(9) }, ..backend(1) };
    assert_eq!(refused(&MapOp::SetBackend(BackendIndex(1), lost)), "node 9 is not installed");
    let tag = MapOp::SetTag(ServiceId(1), Tag(1), BackendIndex(9));
    assert_eq!(refused(&tag), "backend 9 is not installed");
}

#[test]
fn nothing_of_one_service_points_at_a_backend_of_another() {
    let mut record = installed().records[&Slot(1)];
    record.pick4 = Region { offset: 1, len: 2 };
    let error = "backend 2 belongs to service 2, not to service 1";
    assert_eq!(refused(&MapOp::SetRecord(Slot(9), record)), error);
    let tag = MapOp::SetTag(ServiceId(1), backend(2).tag, BackendIndex(2));
    assert_eq!(refused(&tag), error);
}

#[test]
fn nothing_is_overwritten_that_packets_may_be_reading() {
    let record = installed().records[&Slot(1)];
    assert_eq!(refused(&MapOp::SetRecord(Slot(2), record)), "record 2 is in use");
    for (offset, len) in [(0, 1), (2, 1), (0, 9), (3, 3), (9, 0)] {
        let write = MapOp::WriteRegion { offset, cells: vec![BackendIndex(1); len] };
        assert_eq!(refused(&write), format!("region {offset}+{len} is empty or overlaps another"));
    }
}

#[test]
fn a_backend_is_one_task_for_life() {
    let other = BackendRecord { ident: Ident(7), ..backend(1) };
    let error = "backend 1 changed its identity within one generation";
    assert_eq!(refused(&MapOp::SetBackend(BackendIndex(1), other)), error);
    let moved = BackendRecord { ipv4: None, ..backend(1) };
    assert_eq!(refused(&MapOp::SetBackend(BackendIndex(1), moved)), error);

    let mut maps = installed();
    maps.generations.insert(BackendIndex(9), BackendGeneration(1));
    let again = maps.apply(&MapOp::SetBackend(BackendIndex(9), backend(1)));
    assert_eq!(again.unwrap_err().to_string(), "backend 9 reuses generation 1");
}

#[test]
fn a_tag_means_a_task_of_this_node() {
    let remote = installed().backends.iter().find(|(_, it)| !it.via.is_local()).map(|it| *it.0);
    let index = remote.unwrap();
    let backend = backend(index.0);
    let error = format!("tag {} cannot mean backend {}", backend.tag.0, index.0);
    assert_eq!(refused(&MapOp::SetTag(backend.service, backend.tag, index)), error);
}
