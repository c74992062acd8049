//! What is promised of the answers, one sentence a test, with real packets.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

mod cache;
mod check;
mod forwarding;
mod header;
mod local;
mod malformed;
mod scope;
mod sockets;
mod upstream;
mod world;
