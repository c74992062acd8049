//! How the tasks of a service fill the cells of its pick table.
//!
//! Both functions are pure and do not depend on the order of their input: every node that knows
//! the same tasks builds the same cells. A weight of 0 takes none.

pub mod hash;
pub mod interleave;
pub mod maglev;

pub use hash::client_cell;
pub use interleave::{cell_cap, interleave};
pub use maglev::maglev;

use crate::ident::Ident;

/// The positions in `weights` of those that take cells, ordered by identity.
fn by_ident(weights: &[(Ident, u16)]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..weights.len()).filter(|at| weights[*at].1 > 0).collect();
    order.sort_by_key(|at| weights[*at].0);
    order
}
