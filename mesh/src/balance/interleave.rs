//! Smooth weighted round robin: the sequence in which tasks take their turns.

use super::by_ident;
use crate::ident::Ident;

/// How many cells a service with this many tasks may take.
///
/// With four cells a task no task's share is coarser than a quarter of the mean; with 1024 cells a
/// small service can express a canary weight of one in a thousand. One full sequence must fit,
/// since the kernel walks it with one counter.
pub fn cell_cap(tasks: usize) -> usize {
    tasks.saturating_mul(4).max(1024)
}

/// The turns of the tasks, each given as its position in `weights`, spread as evenly as nginx's
/// smooth weighted round robin spreads them: weights 5, 1, 1 give `a a b a c a a`.
///
/// The length is the sum of the weights divided by their greatest common divisor. When that
/// exceeds `max_cells` the weights are scaled down; each keeps at least one cell, so `max_cells`
/// is taken to be at least the number of tasks.
pub fn interleave(weights: &[(Ident, u16)], max_cells: usize) -> Vec<usize> {
    let order = by_ident(weights);
    let turns = reduce(order.iter().map(|at| u64::from(weights[*at].1)).collect(), max_cells);
    // Docker knows no weights: this is the case that must be fast.
    if turns.iter().all(|turns| *turns == 1) {
        return order;
    }
    smooth(&turns).into_iter().map(|at| order[at]).collect()
}

/// Each round every task gains its weight; the richest takes the turn and pays the total.
fn smooth(turns: &[i64]) -> Vec<usize> {
    let total: i64 = turns.iter().sum();
    let mut credit = vec![0_i64; turns.len()];
    (0..total)
        .map(|_| {
            let mut richest = 0;
            for at in 0..turns.len() {
                credit[at] += turns[at];
                if credit[at] > credit[richest] {
                    richest = at;
                }
            }
            credit[richest] -= total;
            richest
        })
        .collect()
}

/// The number of turns of each task: its weight, in the smallest whole numbers, and scaled down as
/// far as `max_cells` asks for.
pub(crate) fn reduce(weights: Vec<u64>, max_cells: usize) -> Vec<i64> {
    let weights = divide_by_gcd(weights);
    let total: u64 = weights.iter().sum();
    let cap = (max_cells.max(weights.len())) as u64;
    if total <= cap {
        return weights.into_iter().map(|weight| weight as i64).collect();
    }
    // One cell of the cap is set aside for each task, so that rounding a small weight up to one
    // cell can never exceed the cap.
    let room = cap - weights.len() as u64;
    let scaled = weights.iter().map(|weight| (weight * room / total).max(1)).collect();
    divide_by_gcd(scaled).into_iter().map(|weight| weight as i64).collect()
}

fn divide_by_gcd(weights: Vec<u64>) -> Vec<u64> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    weights.into_iter().map(|weight| weight / divisor).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weights(of: &[u16]) -> Vec<(Ident, u16)> {
        of.iter().enumerate().map(|(at, weight)| (Ident(at as u64), *weight)).collect()
    }

    #[test]
    fn a_heavy_task_does_not_take_its_turns_in_a_row() {
        assert_eq!(interleave(&weights(&[5, 1, 1]), 1024), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn equal_weights_take_one_turn_each() {
        assert_eq!(interleave(&weights(&[7, 7, 7]), 1024), [0, 1, 2]);
    }

    #[test]
    fn a_weight_of_zero_takes_no_turn() {
        assert_eq!(interleave(&weights(&[0, 3]), 1024), [1]);
        assert!(interleave(&weights(&[0]), 1024).is_empty());
        assert!(interleave(&[], 1024).is_empty());
    }

    #[test]
    fn a_tiny_weight_keeps_a_cell_when_scaled_down() {
        let cells = interleave(&weights(&[65535, 1]), 1024);
        assert!(cells.len() <= 1024, "{}", cells.len());
        assert_eq!(cells.iter().filter(|at| **at == 1).count(), 1);
    }

    proptest! {
        #[test]
        fn every_share_is_its_weight_within_the_cap(of in prop::collection::vec(0_u16.., 0..40)) {
            let cap = cell_cap(of.len());
            let cells = interleave(&weights(&of), cap);
            prop_assert!(cells.len() <= cap);
            let total: f64 = of.iter().map(|weight| f64::from(*weight)).sum();
            for (at, weight) in of.iter().enumerate() {
                let count = cells.iter().filter(|cell| **cell == at).count();
                prop_assert_eq!(count > 0, *weight > 0);
                let share = count as f64 / cells.len().max(1) as f64;
                // Rounding down loses less than a cell, rounding up to one gains less than one,
                // and both together shift the total by less than a cell a task.
                let slack = (1.0 + of.len() as f64 * share) / cells.len().max(1) as f64;
                let fits = (share - f64::from(*weight) / total.max(1.0)).abs() <= slack;
                prop_assert!(fits, "share {share} of weight {weight}");
            }
        }

        #[test]
        fn the_order_of_the_input_does_not_matter(
            of in prop::collection::vec((any::<u64>(), 0_u16..9), 0..20),
            turn in any::<prop::sample::Index>(),
        ) {
            let mut of: Vec<_> = of.into_iter().map(|(ident, weight)| (Ident(ident), weight)).collect();
            of.sort();
            of.dedup_by_key(|it| it.0);
            let name = |of: &[(Ident, u16)]| -> Vec<Ident> {
                interleave(of, 1024).into_iter().map(|at| of[at].0).collect()
            };
            let before = name(&of);
            if !of.is_empty() {
                let by = turn.index(of.len());
                of.rotate_left(by);
                of.reverse();
            }
            prop_assert_eq!(before, name(&of));
        }
    }
}
