//! Virtual addresses: which network namespaces of this node may use them, and making the kernel's maps
//! say so.

use std::collections::{BTreeMap, BTreeSet};

use tracing::debug;
use weir_loader::{Error, NetnsCookies};
use weir_mesh::{
    MeshSnapshot, Moment, NetworkId, NodeName, Space, SpaceAt,
    vip::{LocalSpaces, SpaceCookie, VipPlanner},
};

use super::{Kernel, intercept::Intercept};

/// The part of the reconciler that looks after virtual addresses.
pub(super) struct Vips {
    planner: VipPlanner,
    cookies: NetnsCookies,
    /// Whether a source sees this node's containers: then nothing is known before it has spoken.
    awaited: bool,
    /// What it says of them.
    seen: Option<Vec<Space>>,
    /// Which of them are led to the DNS server of this node.
    intercept: Intercept,
    /// What that and the snapshot come to; `None` until both have spoken.
    spaces: Option<LocalSpaces>,
    /// Namespaces that were not found.
    missing: BTreeMap<SpaceAt, String>,
    /// What the last plan could not do.
    problems: Vec<String>,
    /// When something will be due although nothing changed.
    wake: Option<Moment>,
}

impl Vips {
    /// Takes over what the kernel holds. `awaited`: a source will say what it sees of this node's
    /// containers.
    pub(super) fn new(kernel: &impl Kernel, awaited: bool, now: Moment) -> Result<Self, Error> {
        let planner = VipPlanner::new(kernel.installed_vips()?, kernel.vip_limits(), now);
        Ok(Self {
            planner,
            cookies: NetnsCookies::default(),
            awaited,
            seen: None,
            intercept: Intercept::default(),
            spaces: None,
            missing: BTreeMap::new(),
            problems: Vec::new(),
            wake: None,
        })
    }

    /// What a source sees of this node's containers. To be followed by [`Self::look`].
    pub(super) fn see(&mut self, seen: Vec<Space>) {
        self.seen = Some(seen);
    }

    /// Who is led to the DNS server of this node. To be followed by [`Self::look`].
    pub(super) fn intercept(&mut self, intercept: Intercept) {
        self.planner.serve_own(intercept.own_vips());
        self.intercept = intercept;
    }

    /// Finds the namespaces of this node; answers whether anything is different. Until everybody has
    /// spoken who is to, those in the kernel stay.
    pub(super) fn look(
        &mut self,
        kernel: &impl Kernel,
        snapshot: Option<&MeshSnapshot>,
        node: &NodeName,
    ) -> bool {
        if !kernel.serves_vips() {
            return false;
        }
        let Some(snapshot) = snapshot.filter(|_| self.seen.is_some() || !self.awaited) else {
            return false;
        };
        let declared = snapshot.nodes.get(node).map_or(&[][..], |node| &node.spaces);
        let seen = self.seen.as_deref().unwrap_or_default();
        let mut wanted = BTreeMap::<&SpaceAt, BTreeSet<&NetworkId>>::new();
        for space in declared.iter().chain(seen) {
            wanted.entry(&space.at).or_default().extend(&space.networks);
        }
        let led = self.intercept.led(snapshot, declared.iter().chain(seen));
        let mut found = LocalSpaces::new();
        let mut missing = BTreeMap::new();
        for (at, networks) in &wanted {
            match find(kernel, at, &mut self.cookies) {
                // Containers may share a namespace.
                Ok(space) => {
                    let attached = found.entry(space).or_default();
                    attached.extend(networks.iter().copied().chain(led.get(at)).cloned());
                }
                Err(error) => {
                    debug!(%error, "a network namespace is not there");
                    missing.insert((*at).clone(), error.to_string());
                }
            }
        }
        self.cookies.keep(|path| wanted.contains_key(&SpaceAt::File(path.to_owned())));
        let changed = self.spaces.as_ref() != Some(&found);
        (self.spaces, self.missing) = (Some(found), missing);
        changed
    }

    /// Plans and applies; answers how many operations that took.
    pub(super) fn pass(
        &mut self,
        kernel: &mut impl Kernel,
        (snapshot, node): (&MeshSnapshot, &NodeName),
        moment: impl Fn() -> Moment,
    ) -> Result<usize, Error> {
        if !kernel.serves_vips() {
            return Ok(0);
        }
        let plan = self.planner.plan(snapshot, node, self.spaces.as_ref(), moment());
        self.problems = plan.problems.iter().map(ToString::to_string).collect();
        self.wake = plan.wake;
        for op in &plan.ops {
            kernel.apply_vip(op).inspect_err(|_| debug!(?op, "the operation that failed"))?;
            self.planner.applied(op, moment());
        }
        Ok(plan.ops.len())
    }

    /// What keeps virtual addresses from being served.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        self.missing.values().chain(&self.problems).cloned()
    }

    /// When to plan again although nothing changed.
    pub(super) fn wake(&self) -> Option<Moment> {
        self.wake
    }

    /// What should be in the kernel, in text form.
    pub(super) fn dump(&self) -> String {
        self.planner.installed().dump()
    }

    /// Compares the kernel's maps with what was written; `Some` with what they really hold when they
    /// differ, after which the next pass repairs them.
    pub(super) fn audit(
        &mut self,
        kernel: &impl Kernel,
        now: Moment,
    ) -> Result<Option<String>, Error> {
        let installed = kernel.installed_vips()?;
        if installed == *self.planner.installed() {
            return Ok(None);
        }
        let found = installed.dump();
        self.planner.resync(installed, now);
        Ok(Some(found))
    }
}

fn find(
    kernel: &impl Kernel,
    at: &SpaceAt,
    cookies: &mut NetnsCookies,
) -> Result<SpaceCookie, Error> {
    match at {
        SpaceAt::Host => kernel.own_space(),
        SpaceAt::File(path) => kernel.space_at(path, cookies),
    }
}
