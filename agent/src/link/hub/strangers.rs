//! Connections of whom nobody knows yet.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use crate::link::status::lock;

/// Connections that have not come to their request yet, from everywhere.
const MOST: usize = 1024;
/// The same from one address. Nodes behind one address are few; whoever wants to keep others out
/// needs many.
const MOST_OF_ONE: usize = 128;

/// Those that are at the door.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    by_address: Mutex<BTreeMap<IpAddr, usize>>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Stranger {
    all: Arc<Strangers>,
    address: IpAddr,
}

impl Strangers {
    /// Lets one more come to the door; `None`: there are too many.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Stranger> {
        let mut by_address = lock(&self.by_address);
        let (all, of_one) = (by_address.values().sum::<usize>(), by_address.get(&address));
        if all >= MOST || of_one.is_some_and(|count| *count >= MOST_OF_ONE) {
            return None;
        }
        *by_address.entry(address).or_default() += 1;
        Some(Stranger { all: self.clone(), address })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut by_address = lock(&self.all.by_address);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_that_takes_all_it_can_leaves_room_for_the_others() {
        let strangers = Arc::new(Strangers::default());
        let greedy = IpAddr::from([10, 0, 0, 66]);
        let mut held: Vec<Stranger> =
            (0..MOST_OF_ONE).map_while(|_| strangers.admit(greedy)).collect();
        assert_eq!(held.len(), MOST_OF_ONE);
        assert!(strangers.admit(greedy).is_none());
        assert!(strangers.admit([10, 0, 0, 1].into()).is_some());
        held.pop();
        assert!(strangers.admit(greedy).is_some(), "who has gone leaves its place");
    }

    #[test]
    fn there_are_never_more_than_so_many_at_the_door() {
        let strangers = Arc::new(Strangers::default());
        let all: Vec<Stranger> = (0..u32::MAX)
            .map_while(|at| strangers.admit(IpAddr::from((at % 100).to_be_bytes())))
            .collect();
        assert_eq!(all.len(), MOST);
        drop(all);
        assert!(lock(&strangers.by_address).is_empty());
    }
}
