//! What is promised of the answers, one sentence a test, with real packets.

mod cache;
mod forwarding;
mod header;
mod local;
mod malformed;
mod scope;
mod sockets;
mod upstream;
mod world;
