//! Virtual addresses: whoever shares a network with a service reaches one of its tasks there.

use weir_abi::{Ip6, Region, Vip, VipKey, size};

use crate::maps::{SPACES, VIP_SLOTS, VIP_TASKS, VIPS};

/// Halvings that find a cell in the longest run.
const HALVINGS: u32 = size::VIP_TASKS.ilog2() + 1;

/// A virtual address that an asker may use.
#[derive(Clone, Copy)]
pub struct Found {
    vip: *mut Vip,
    /// Its tasks at this moment.
    run: Region,
}

/// The virtual address `addr`, if the network namespace is attached to a network that has it.
#[inline(always)]
pub fn find(space: u64, addr: Ip6) -> Option<Found> {
    // SAFETY: a value of a map; that it is still this namespace's is looked at below.
    let attached = unsafe { &*SPACES.get_ptr(space)? };
    for at in 0..size::SPACE_NETWORKS {
        // SAFETY: as above. Volatile, so that it is not read again after the check.
        let network = unsafe { (&raw const attached.networks[at]).read_volatile() };
        if network == 0 {
            return None;
        }
        let key = VipKey { network, addr };
        if let Some(slot) = VIP_SLOTS.get_ptr(key) {
            // SAFETY: a value of a map.
            let slot = unsafe { slot.read_volatile() };
            // SAFETY: as above.
            let cookie = unsafe { (&raw const attached.cookie).read_volatile() };
            return if cookie == space { at_slot(slot, key) } else { None };
        }
    }
    None
}

/// A slot read from a map whose element is being deleted may be another's; the record says so.
#[inline(always)]
fn at_slot(slot: u32, key: VipKey) -> Option<Found> {
    let vip = VIPS.get_ptr_mut(slot)?;
    // SAFETY: a cell of a map.
    if unsafe { (*vip).key } != key {
        return None;
    }
    // SAFETY: as above. One load: user space changes both halves by one store.
    let word = unsafe { (&raw const (*vip).run).cast::<u64>().read_volatile() };
    let [offset, len] = halves(word);
    Some(Found { vip, run: Region { offset, len } })
}

#[cfg(target_endian = "little")]
#[inline(always)]
fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

#[cfg(target_endian = "big")]
#[inline(always)]
fn halves(word: u64) -> [u32; 2] {
    [(word >> 32) as u32, word as u32]
}

impl Found {
    /// The next task in turn: the cell and what is in it. `None` if there is no task.
    #[inline(always)]
    pub fn next(self) -> Option<(u32, Ip6)> {
        if self.run.len == 0 {
            return None;
        }
        // SAFETY: a cell of a map. Two CPUs may now and then take the same turn: cheaper than an
        // atomic that all of them fight for, and no worse than chance.
        let step = unsafe {
            let turn = (*self.vip).turn;
            (*self.vip).turn = turn.wrapping_add(1);
            turn.wrapping_mul((*self.vip).stride)
        };
        let cell = self.run.offset.wrapping_add(step % self.run.len);
        Some((cell, *VIP_TASKS.get(cell)?))
    }

    /// The cell of a task that was picked before, if the address still stands for that task; `hint` is
    /// where it was then.
    #[inline(always)]
    pub fn cell_of(self, task: Ip6, hint: u32) -> Option<u32> {
        let Region { offset, len } = self.run;
        if hint.wrapping_sub(offset) < len && *VIP_TASKS.get(hint)? == task {
            return Some(hint);
        }
        let (mut low, mut high) = (0, len);
        for _ in 0..HALVINGS {
            if low >= high {
                return None;
            }
            let middle = low + ((high - low) >> 1);
            let cell = offset.wrapping_add(middle);
            let found = *VIP_TASKS.get(cell)?;
            if found == task {
                return Some(cell);
            }
            if found.is_below(task) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        None
    }
}
