//! Passes over the flow tables: what has timed out goes, what lives is counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use weir_abi::{Forward, Reverse, Timeouts, backend_state, flow_flag};
use weir_mesh::install::BackendIndex;

use crate::{
    Dataplane, FlowTables,
    error::{Error, Tried as _},
    kernel,
    table::Table,
};

/// IP protocol number.
const UDP: u32 = 17;

/// What a pass over the flow tables found.
#[derive(Clone, Debug, Default)]
pub struct FlowCensus {
    /// Live flows by backend, as entered on this node.
    pub active: BTreeMap<BackendIndex, u64>,
    /// Backends with TCP connections that entered on this node and are not over. The proxy, whose sessions
    /// end with their backend, counts those of UDP as well.
    pub carried: BTreeSet<BackendIndex>,
    /// Entries deleted because they had timed out.
    pub expired: u64,
    /// Entries in the forward tables after the pass.
    pub forward: u64,
    /// Entries in the reverse tables after the pass.
    pub reverse: u64,
    /// Entries in the table of rewritten sockets.
    pub sockets: u64,
    /// How long the pass took.
    pub took: Duration,
}

/// What decides whether an entry has timed out.
struct Judge {
    now: u32,
    timeouts: BTreeMap<u32, Timeouts>,
    /// For flows of services that are gone.
    fallback: Timeouts,
}

/// The part of a flow entry that is judged.
#[derive(Clone, Copy, PartialEq)]
struct Age {
    last: u32,
    flags: u8,
    service: u32,
}

trait Aged: Copy {
    fn age(&self) -> Age;
}

impl Aged for Forward {
    fn age(&self) -> Age {
        Age { last: self.last, flags: self.flags, service: self.service }
    }
}

impl<A: Copy> Aged for Reverse<A> {
    fn age(&self) -> Age {
        Age { last: self.last, flags: self.flags, service: self.service }
    }
}

impl Judge {
    fn expired(&self, age: Age, udp: bool) -> bool {
        let timeouts = self.timeouts.get(&age.service).unwrap_or(&self.fallback);
        let silent = self.now.wrapping_sub(age.last);
        // An entry noted after `now` was read looks very old.
        silent < 1 << 31 && silent > limit(timeouts, age.flags, udp)
    }
}

/// The same rule as the kernel programs' `flow::timeout`.
pub(crate) fn limit(timeouts: &Timeouts, flags: u8, udp: bool) -> u32 {
    let has = |flag: u8| flags & flag == flag;
    match udp {
        true if has(flow_flag::ESTABLISHED) => timeouts.udp_both_ways,
        true => timeouts.udp_one_way,
        false if has(flow_flag::RESET) => timeouts.tcp_reset,
        false if has(flow_flag::CLIENT_FIN | flow_flag::TASK_FIN) => timeouts.tcp_fin,
        false if has(flow_flag::ESTABLISHED) => timeouts.tcp_established,
        false => timeouts.tcp_syn,
    }
}

/// Deletes what has timed out and has not moved since it was looked at; answers (deleted, left).
/// What lives is told to `live`, with whether it is UDP.
fn sweep<A: Copy, V: Aged>(
    table: &Table<weir_abi::FlowKey<A>, V>,
    judge: &Judge,
    mut live: impl FnMut(bool, &V),
) -> std::io::Result<(u64, u64)> {
    let mut old = Vec::new();
    let seen = table.visit(|key, value| {
        let age = value.age();
        let udp = key.protocol == UDP;
        if judge.expired(age, udp) {
            old.push((*key, age));
        } else {
            live(udp, value);
        }
    })?;
    let mut deleted = 0;
    for (key, age) in &old {
        if table.get(key)?.is_some_and(|now| now.age() == *age) && table.remove(key)? {
            deleted += 1;
        }
    }
    Ok((deleted, seen.saturating_sub(deleted)))
}

impl Dataplane {
    /// Goes through the flow tables, deletes what has timed out, counts what lives.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn collect_flows(&mut self) -> Result<FlowCensus, Error> {
        let begin = Instant::now();
        let judge = self.judge()?;
        let mut census = FlowCensus::default();
        let FlowCensus { active, carried, .. } = &mut census;
        let mut failed = None;
        let mut count = |udp: bool, flow: &Forward| {
            let fins = flow_flag::CLIENT_FIN | flow_flag::TASK_FIN;
            let ended = flow_flag::RESET | fins;
            let backends = &self.store.maps.backends;
            let backend = match backends.get(flow.backend.min(backends.len() - 1)) {
                Ok(backend) => backend,
                Err(error) => {
                    failed.get_or_insert(error);
                    return;
                }
            };
            let same = backend.generation == flow.generation
                && backend.state != backend_state::GONE
                && backend.ident != 0;
            if flow.from != 0 || !same {
                return;
            }
            let index = BackendIndex(flow.backend);
            if flow.flags & ended == 0 {
                *active.entry(index).or_default() += 1;
            }
            let is_over = flow.flags & flow_flag::RESET != 0 || flow.flags & fins == fins;
            if !udp && !is_over {
                carried.insert(index);
            }
        };
        let what = || "read the flow tables".to_owned();
        let (gone4, left4) = sweep(&self.store.maps.forward4, &judge, &mut count).tried(what)?;
        let (gone6, left6) = sweep(&self.store.maps.forward6, &judge, &mut count).tried(what)?;
        let (back4, stay4) = sweep(&self.store.maps.reverse4, &judge, |_, _| {}).tried(what)?;
        let (back6, stay6) = sweep(&self.store.maps.reverse6, &judge, |_, _| {}).tried(what)?;
        if let Some(error) = failed {
            return Err(error);
        }
        census.expired = gone4 + gone6 + back4 + back6;
        census.forward = left4 + left6;
        census.reverse = stay4 + stay6;
        census.sockets = self.store.maps.sockets.visit(|_, _| {}).tried(what)?;
        self.store.note_loads(&census.active)?;
        census.took = begin.elapsed();
        Ok(census)
    }

    /// The flow tables, by descriptors of their own: they may be read on another thread.
    ///
    /// # Errors
    /// When they cannot be opened once more.
    pub fn flow_tables(&self) -> Result<FlowTables, Error> {
        self.store.flow_tables(kernel::jiffies(self.hooks.object())?)
    }

    fn judge(&self) -> Result<Judge, Error> {
        let mut timeouts = BTreeMap::new();
        self.store.maps.records.visit(|_, record| {
            if record.ident != 0 {
                timeouts.insert(record.id, record.timeouts);
            }
        })?;
        let default = weir_mesh::Timeouts::default();
        let fallback = Timeouts {
            tcp_syn: self.store.clock.jiffies(default.tcp_syn),
            tcp_established: self.store.clock.jiffies(default.tcp_established),
            tcp_fin: self.store.clock.jiffies(default.tcp_fin),
            tcp_reset: self.store.clock.jiffies(default.tcp_reset),
            udp_one_way: self.store.clock.jiffies(default.udp_one_way),
            udp_both_ways: self.store.clock.jiffies(default.udp_both_ways),
        };
        Ok(Judge { now: kernel::jiffies(self.hooks.object())?, timeouts, fallback })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge() -> Judge {
        let timeouts = Timeouts {
            tcp_syn: 20,
            tcp_established: 8000,
            tcp_fin: 30,
            tcp_reset: 10,
            udp_one_way: 60,
            udp_both_ways: 180,
        };
        Judge { now: 100, timeouts: BTreeMap::from([(1, timeouts)]), fallback: timeouts }
    }

    fn age(silent: u32, flags: u8) -> Age {
        Age { last: 100u32.wrapping_sub(silent), flags, service: 1 }
    }

    #[test]
    fn a_flow_times_out_by_what_was_last_seen_of_it() {
        let both = flow_flag::CLIENT_FIN | flow_flag::TASK_FIN | flow_flag::ESTABLISHED;
        for (flags, udp, limit) in [
            (0, false, 20),
            (flow_flag::ESTABLISHED, false, 8000),
            (flow_flag::ESTABLISHED | flow_flag::CLIENT_FIN, false, 8000),
            (both, false, 30),
            (both | flow_flag::RESET, false, 10),
            (0, true, 60),
            (flow_flag::ESTABLISHED, true, 180),
        ] {
            assert!(!judge().expired(age(limit, flags), udp), "{flags} {udp}");
            assert!(judge().expired(age(limit + 1, flags), udp), "{flags} {udp}");
        }
    }

    #[test]
    fn an_entry_noted_after_the_clock_was_read_is_not_old() {
        assert!(!judge().expired(Age { last: 101, flags: 0, service: 1 }, false));
    }

    #[test]
    fn the_clock_may_wrap() {
        let judge = Judge { now: 5, ..judge() };
        let before_the_wrap = Age { last: u32::MAX - 4, flags: 0, service: 1 };
        assert!(!judge.expired(before_the_wrap, false));
        assert!(judge.expired(Age { last: u32::MAX - 40, ..before_the_wrap }, false));
    }
}
