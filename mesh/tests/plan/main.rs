//! The planner against a kernel that checks every operation.

mod properties;
mod scale;
mod scenarios;
mod world;
