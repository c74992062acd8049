//! The planner against a kernel that checks every operation.
#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod installed;
mod properties;
mod scale;
mod scenarios;
mod trace;
mod world;
