//! `mesh.toml`: whatever it says, it is taken or refused with at least one reason, and what is taken can be
//! planned for the kernel.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use weir::source::file::parse;
use weir_mesh::{
    Generation, MeshSnapshot, NodeName, Timeouts,
    install::Installed,
    plan::{Limits, LocalView, Moment, Planner},
};

fuzz_target!(|text: &str| {
    let desired = match parse("mesh.toml", text, Timeouts::default()) {
        Ok(desired) => desired,
        Err(faults) => {
            assert!(!faults.is_empty(), "refused without a reason");
            for fault in faults {
                assert!(!fault.problem.is_empty() && !fault.remedy.is_empty(), "{fault:?}");
            }
            return;
        }
    };
    let node = desired.nodes.keys().next().cloned().unwrap_or_else(|| NodeName::new("n1"));
    let snapshot = MeshSnapshot {
        generation: Generation(1),
        nodes: desired.nodes,
        services: desired.services,
        networks: desired.networks,
        ..MeshSnapshot::default()
    };
    let local = LocalView::new(node);
    let moment = Moment(Duration::from_secs(1));
    let mut planner = Planner::new(Installed::default(), Limits::default(), moment);
    let first = planner.plan(&snapshot, &local, moment);
    for _ in &first.ops {
        planner.applied(moment);
    }
    let again = planner.plan(&snapshot, &local, moment);
    assert!(again.ops.is_empty(), "planned twice: {:?}", again.ops);
});
