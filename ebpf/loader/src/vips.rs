//! Virtual addresses in the kernel's maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::offset_of,
};

use weir_abi::{Region as Cells, Space, Vip, VipKey as Key};
use weir_mesh::{
    Ident,
    install::Region,
    vip::{InstalledVips, SpaceCookie, VipKey, VipLimits, VipOp, VipRecord, VipSlot},
};

use crate::{
    Dataplane,
    error::{Error, Tried as _},
    records::{narrow, wide},
    store::Store,
};

impl Dataplane {
    /// Sizes of the kernel's tables of virtual addresses.
    pub fn vip_limits(&self) -> VipLimits {
        self.store.vip_limits()
    }

    /// What the maps hold of virtual addresses, read from the kernel.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn installed_vips(&self) -> Result<InstalledVips, Error> {
        self.store.installed_vips()
    }

    /// How many connections, or sockets that send datagrams, were given a task by each virtual address
    /// on this node, since it is in the kernel.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn vip_connections(&self) -> Result<BTreeMap<VipKey, u64>, Error> {
        let mut counted = BTreeMap::new();
        self.store.maps.vips.visit(|_, vip| {
            if vip.key.network != 0 {
                counted.insert(key_from_abi(&vip.key), u64::from(vip.turn));
            }
        })?;
        Ok(counted)
    }

    /// Applies one operation. An error leaves the maps as they were before it.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn apply_vip(&mut self, op: &VipOp) -> Result<(), Error> {
        self.store.apply_vip(op)
    }

    /// The network namespace that the agent runs in.
    ///
    /// # Errors
    /// When the configuration in the kernel cannot be read.
    pub fn own_space(&self) -> Result<SpaceCookie, Error> {
        Ok(SpaceCookie(self.store.maps.config.get(0)?.netns_cookie))
    }
}

impl Store {
    fn vip_limits(&self) -> VipLimits {
        VipLimits {
            vips: self.maps.vips.len(),
            cells: self.maps.vip_tasks.len(),
            spaces: self.maps.spaces.capacity(),
            networks: weir_abi::size::SPACE_NETWORKS as u32,
        }
    }

    fn installed_vips(&self) -> Result<InstalledVips, Error> {
        let maps = &self.maps;
        let mut installed = InstalledVips::default();
        let what = || "list the network namespaces in the kernel".to_owned();
        for cookie in maps.spaces.keys().tried(what)? {
            if let Some(space) = maps.spaces.get(&cookie).tried(what)? {
                let networks = space.networks.iter().take_while(|network| **network != 0);
                let networks = networks.map(|network| Ident(*network)).collect();
                installed.spaces.insert(SpaceCookie(cookie), networks);
            }
        }
        let what = || "list the virtual addresses in the kernel".to_owned();
        for key in maps.vip_slots.keys().tried(what)? {
            if let Some(slot) = maps.vip_slots.get(&key).tried(what)? {
                installed.names.insert(key_from_abi(&key), VipSlot(slot));
            }
        }
        let mut used = Vec::new();
        maps.vips.visit(|slot, vip| used.extend((vip.key.network != 0).then_some((slot, vip))))?;
        for (slot, vip) in used {
            let run = Region { offset: vip.run.offset, len: vip.run.len };
            let end = run.offset.checked_add(run.len);
            if end.is_none_or(|end| end > maps.vip_tasks.len()) {
                // Nobody of us writes such a record: without it, it is freed and written anew.
                continue;
            }
            if run.len > 0 {
                let cells = (run.offset..run.offset + run.len).map(|at| maps.vip_tasks.get(at));
                let cells: Vec<_> = cells.collect::<Result<_, _>>()?;
                installed.runs.insert(run.offset, cells.into_iter().map(narrow).collect());
            }
            let record = VipRecord { key: key_from_abi(&vip.key), run, stride: vip.stride };
            installed.records.insert(VipSlot(slot), record);
        }
        Ok(installed)
    }

    fn apply_vip(&mut self, op: &VipOp) -> Result<(), Error> {
        let maps = &self.maps;
        match op {
            VipOp::WriteRun { offset, cells } => {
                for (cell, address) in (*offset..).zip(cells) {
                    maps.vip_tasks.set(cell, wide(*address))?;
                }
            }
            VipOp::SetRecord(slot, record) => {
                let VipRecord { key, run, stride } = *record;
                let run = Cells { offset: run.offset, len: run.len };
                maps.vips.set(slot.0, Vip { run, key: key_to_abi(key), turn: 0, stride })?;
            }
            VipOp::SetName(key, slot) => {
                let what = || format!("let the virtual address {key} be known");
                maps.vip_slots.set(&key_to_abi(*key), &slot.0).tried(what)?;
            }
            VipOp::Flip { slot, run, stride } => {
                // A socket that meets one with the other takes an uneven turn, no more.
                let old = maps.vips.get(slot.0)?;
                let steps = u64::from(old.turn) | u64::from(*stride) << 32;
                maps.vips.publish(slot.0, offset_of!(Vip, turn), u64::from_le(steps))?;
                let word = u64::from(run.offset) | u64::from(run.len) << 32;
                maps.vips.publish(slot.0, offset_of!(Vip, run), u64::from_le(word))?;
            }
            VipOp::SetSpace(space, networks) => {
                let what = || format!("attach the network namespace with cookie {}", space.0);
                maps.spaces.set(&space.0, &space_to_abi(*space, networks)).tried(what)?;
            }
            VipOp::RemoveSpace(space) => {
                let what = || format!("detach the network namespace with cookie {}", space.0);
                maps.spaces.remove(&space.0).tried(what)?;
            }
            VipOp::RemoveName(key) => {
                let what = || format!("forget the virtual address {key}");
                maps.vip_slots.remove(&key_to_abi(*key)).tried(what)?;
            }
            VipOp::RemoveRecord(slot) => {
                let network = offset_of!(Vip, key) + offset_of!(Key, network);
                maps.vips.publish(slot.0, network, 0)?;
            }
            // A socket's call may still read the cells: they keep what they hold.
            VipOp::FreeRun { .. } => {}
        }
        Ok(())
    }
}

fn key_to_abi(key: VipKey) -> Key {
    Key { network: key.network.0, addr: wide(key.address) }
}

fn key_from_abi(key: &Key) -> VipKey {
    VipKey { network: Ident(key.network), address: narrow(key.addr) }
}

fn space_to_abi(cookie: SpaceCookie, networks: &BTreeSet<Ident>) -> Space {
    let mut space = Space { cookie: cookie.0, ..Space::default() };
    for (place, network) in space.networks.iter_mut().zip(networks) {
        *place = network.0;
    }
    space
}
