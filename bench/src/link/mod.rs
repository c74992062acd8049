//! The cluster link under many nodes: a hub in a process of its own, and its nodes in another.
//!
//! Some nodes are whole (`weir::link`, as an agent has it). A thousand of them, each with its own
//! copy of what all the others say, would be a thousand machines' memory: the others are light, which
//! hold a real connection, report and listen, and keep nothing.

pub mod cluster;
pub mod hub;
pub mod light;
pub mod usage;
