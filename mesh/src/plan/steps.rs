//! The operations of one plan, sorted into the order in which they are safe.

use crate::install::MapOp;

/// Collects operations in the order of planning, service by service, and gives them out in the
/// order of application: first everything that adds, from what is pointed at to what points;
/// then everything that takes away, the other way round.
#[derive(Debug, Default)]
pub(super) struct Steps {
    phases: [Vec<MapOp>; PHASES],
}

const PHASES: usize = 15;
const DOWNGRADE: usize = 7;
const FREES: usize = 10;
const REMOVE_TAG: usize = 12;

impl Steps {
    /// Adds an operation.
    pub(super) fn push(&mut self, op: MapOp) {
        if let MapOp::SetTag(service, tag, _) = op {
            // The tag passes from a backend that is being removed to another: setting it comes
            // first, and removing it afterwards would take it from its new owner.
            let passed_on = MapOp::RemoveTag(service, tag);
            self.phases[REMOVE_TAG].retain(|removal| *removal != passed_on);
        }
        self.phases[phase(&op)].push(op);
    }

    /// Adds a backend that takes fewer flows than before. It must first leave the regions that are
    /// picked from, or flows would meet it there.
    pub(super) fn push_downgrade(&mut self, op: MapOp) {
        self.phases[DOWNGRADE].push(op);
    }

    /// Whether anything is taken away that can be used again later.
    pub(super) fn frees_something(&self) -> bool {
        self.phases[FREES..].iter().any(|phase| !phase.is_empty())
    }

    /// The operations in the order of application.
    pub(super) fn into_ops(self) -> Vec<MapOp> {
        let mut ops = Vec::with_capacity(self.phases.iter().map(Vec::len).sum());
        ops.extend(self.phases.into_iter().flatten());
        ops
    }
}

fn phase(op: &MapOp) -> usize {
    match op {
        MapOp::SetNode(..) => 0,
        MapOp::SetBackend(..) => 1,
        MapOp::WriteRegion { .. } | MapOp::WriteList(..) => 2,
        MapOp::SetRecord(..) => 3,
        MapOp::SetTag(..) => 4,
        // What stands for a port that goes to another service must not lead there.
        MapOp::RemoveRouted(_) => 5,
        MapOp::Publish(..) => 6,
        // DOWNGRADE: backends that take fewer flows than before.
        MapOp::SetRouted(..) => 8,
        MapOp::Withdraw(_) => 9,
        MapOp::RemoveRecord(_) => FREES,
        MapOp::FreeRegion { .. } | MapOp::RemoveList(..) => 11,
        MapOp::RemoveTag(..) => REMOVE_TAG,
        MapOp::RemoveBackend(_) => 13,
        MapOp::RemoveNode(_) => 14,
    }
}
