//! Virtual addresses: what is planned, and what every prefix of a plan leaves behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod properties;
mod scenarios;
mod world;
