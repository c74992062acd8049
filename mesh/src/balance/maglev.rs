//! Maglev consistent hashing (Eisenbud et al., NSDI 2016, section 3.4), with weights.
//!
//! Each task walks its own permutation of the table and takes the first free cell at each of its
//! turns. Turns come in proportion to weight, as in Katran and Cilium, so that the counts are
//! exact to within a cell; what hashing leaves to chance is only which cells, not how many.

use std::{cmp::Reverse, collections::BinaryHeap, hash::Hasher};

use siphasher::sip::SipHasher24;

use super::by_ident;
use crate::ident::Ident;

/// The table size of nearly every service: prime, and at least 100 cells a task up to 163 tasks.
pub const SMALL: usize = 16_381;

/// The table size of a service with more than 163 tasks.
pub const LARGE: usize = 131_071;

/// The table size for a service that has this many tasks, in whatever state.
///
/// The size does not follow the number of tasks: a permutation is taken modulo the size, so that a
/// new size deals every cell anew and moves almost every client. With two sizes that happens once,
/// when a service grows past 163 tasks, instead of at every scaling step. Callers count all tasks,
/// not only the healthy ones: a failing health check must not move it.
pub fn table_size(tasks: usize) -> usize {
    if tasks * 100 <= SMALL { SMALL } else { LARGE }
}

/// The table: for each cell the position in `weights` of the task that has it. `size` is prime.
/// Empty when no task has weight.
///
/// With equal weights the numbers of cells of two tasks differ by at most one; with others each is
/// within two cells of its exact share. When one of N equal tasks goes, its cells move, and of the
/// others a further 1 % of the table or so (tests hold it under 2 %).
pub fn maglev(weights: &[(Ident, u16)], size: usize) -> Vec<usize> {
    let order = by_ident(weights);
    if order.is_empty() {
        return Vec::new();
    }
    let mut filling = Filling {
        table: vec![FREE; size],
        left: size,
        walks: order.iter().map(|at| Walk::of(weights[*at].0, size)).collect(),
    };
    if order.iter().all(|at| weights[*at].1 == weights[order[0]].1) {
        filling.take_equal_turns();
    } else {
        filling.take_weighted_turns(order.iter().map(|at| u64::from(weights[*at].1)));
    }
    filling.table.into_iter().map(|at| order[at as usize]).collect()
}

const FREE: u32 = u32::MAX;

/// A task's permutation of the table: `position`, then on by `skip`.
struct Walk {
    position: usize,
    skip: usize,
}

impl Walk {
    fn of(ident: Ident, size: usize) -> Self {
        let draw = |purpose: u8, range: usize| {
            let mut hasher = SipHasher24::new_with_keys(0x7765_6972_2d6d_6167, 0x6c65_762d_7631);
            hasher.write_u8(purpose);
            hasher.write(&ident.0.to_le_bytes());
            (hasher.finish() % range as u64) as usize
        };
        Self { position: draw(b'o', size), skip: draw(b's', size - 1) + 1 }
    }
}

struct Filling {
    table: Vec<u32>,
    left: usize,
    walks: Vec<Walk>,
}

impl Filling {
    fn take_equal_turns(&mut self) {
        while self.left > 0 {
            for task in 0..self.walks.len().min(self.left) {
                self.take_turn(task);
            }
        }
    }

    /// The k-th turn of a task of weight w is due at k/w; ties go to the lower identity. With equal
    /// weights this deals the same turns as [`Self::take_equal_turns`].
    fn take_weighted_turns(&mut self, weights: impl Iterator<Item = u64>) {
        let mut due: BinaryHeap<_> = weights
            .enumerate()
            .map(|(task, weight)| Reverse(Turn { count: 1, weight, task }))
            .collect();
        while self.left > 0
            && let Some(mut next) = due.peek_mut()
        {
            let task = next.0.task;
            next.0.count += 1;
            drop(next);
            self.take_turn(task);
        }
    }

    fn take_turn(&mut self, task: usize) {
        let size = self.table.len();
        let walk = &mut self.walks[task];
        loop {
            let here = walk.position;
            walk.position += walk.skip;
            if walk.position >= size {
                walk.position -= size;
            }
            if self.table[here] == FREE {
                self.table[here] = task as u32;
                self.left -= 1;
                return;
            }
        }
    }
}

/// The next turn of a task, ordered by when it is due.
#[derive(PartialEq, Eq)]
struct Turn {
    count: u64,
    weight: u64,
    task: usize,
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // count/weight against other.count/other.weight, without division: both products fit,
        // since a count is at most the table size and a weight has 16 bits.
        (self.count * other.weight)
            .cmp(&(other.count * self.weight))
            .then(self.task.cmp(&other.task))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tasks(seed: u64, weights: &[u16]) -> Vec<(Ident, u16)> {
        let ident = |at: usize| {
            let mut hasher = SipHasher24::new_with_keys(seed, at as u64);
            hasher.write_u8(0);
            Ident(hasher.finish())
        };
        weights.iter().enumerate().map(|(at, weight)| (ident(at), *weight)).collect()
    }

    fn counts(table: &[usize], tasks: usize) -> Vec<usize> {
        let mut counts = vec![0; tasks];
        for cell in table {
            counts[*cell] += 1;
        }
        counts
    }

    fn names(tasks: &[(Ident, u16)], size: usize) -> Vec<Ident> {
        maglev(tasks, size).into_iter().map(|at| tasks[at].0).collect()
    }

    /// Cells that changed hands although their task is still there, as a share of the table.
    fn excess_when_one_goes(seed: u64, count: usize, gone: usize) -> f64 {
        let mut tasks = tasks(seed, &vec![1; count]);
        let size = table_size(count);
        let before = names(&tasks, size);
        let (gone, _) = tasks.remove(gone);
        let after = names(&tasks, size);
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b && **a != gone).count();
        moved as f64 / size as f64
    }

    #[test]
    fn both_sizes_are_prime() {
        for size in [SMALL, LARGE] {
            assert!((2..size).take_while(|it| it * it <= size).all(|it| size % it != 0), "{size}");
        }
    }

    #[test]
    fn no_tasks_give_no_table_and_one_task_has_it_all() {
        assert!(maglev(&[], SMALL).is_empty());
        assert!(maglev(&tasks(1, &[0, 0]), SMALL).is_empty());
        assert_eq!(maglev(&tasks(1, &[0, 9]), SMALL), vec![1; SMALL]);
    }

    #[test]
    fn the_table_is_the_same_in_every_build() {
        let table = maglev(&tasks(1, &[1, 1, 2]), SMALL);
        let mut hasher = SipHasher24::new_with_keys(0, 0);
        for cell in &table {
            hasher.write_u8(*cell as u8);
        }
        assert_eq!(format!("{:016x}", hasher.finish()), "16893cdacb682770");
    }

    #[test]
    fn when_a_task_goes_few_others_move() {
        let mut worst = 0.0_f64;
        for (count, seeds) in [(2, 20), (3, 20), (10, 20), (50, 10), (163, 6), (164, 2), (1000, 1)]
        {
            for seed in 0..seeds {
                worst = worst.max(excess_when_one_goes(seed, count, seed as usize % count));
            }
            println!("excess with {count} tasks: worst so far {:.3} %", worst * 100.0);
        }
        assert!(worst <= 0.02, "{worst}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn equal_weights_differ_by_at_most_one_cell(seed: u64, count in 1_usize..164) {
            let counts = counts(&maglev(&tasks(seed, &vec![7; count]), SMALL), count);
            let (least, most) = (counts.iter().min(), counts.iter().max());
            prop_assert!(most.unwrap() - least.unwrap() <= 1, "{counts:?}");
        }

        #[test]
        fn weighted_shares_are_exact_to_two_cells(
            seed: u64, weights in prop::collection::vec(0_u16.., 1..60),
        ) {
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            let table = maglev(&tasks(seed, &weights), SMALL);
            for (count, weight) in counts(&table, weights.len()).into_iter().zip(&weights) {
                let exact = SMALL as f64 * f64::from(*weight) / total.max(1) as f64;
                prop_assert!((count as f64 - exact).abs() <= 2.0, "{count} cells for {exact}");
            }
        }

        #[test]
        fn the_order_of_the_input_does_not_matter(
            seed: u64, weights in prop::collection::vec(0_u16..5, 1..30), turn: prop::sample::Index,
        ) {
            let mut tasks = tasks(seed, &weights);
            let before = names(&tasks, SMALL);
            let by = turn.index(tasks.len());
            tasks.rotate_left(by);
            tasks.reverse();
            prop_assert!(before == names(&tasks, SMALL));
        }

        #[test]
        fn both_ways_of_dealing_turns_agree_on_equal_weights(seed: u64, count in 1_usize..50) {
            let walks = || tasks(seed, &vec![1; count]).into_iter().map(|(ident, _)| Walk::of(ident, 1009));
            let mut by_round = Filling { table: vec![FREE; 1009], left: 1009, walks: walks().collect() };
            let mut by_heap = Filling { table: vec![FREE; 1009], left: 1009, walks: walks().collect() };
            by_round.take_equal_turns();
            by_heap.take_weighted_turns(std::iter::repeat_n(3, count));
            prop_assert!(by_round.table == by_heap.table);
        }
    }
}
