//! The per-node agent of weir: sources, the snapshot writer, the reconciler, health, metrics, the
//! admin API and the command line.
//!
//! Read [`app`] first: it wires everything and reads from top to bottom.

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod diff;
pub mod dns;
pub mod document;
pub mod drain;
pub mod farewell;
pub mod health;
pub mod hold_back;
pub mod host;
pub mod hosts;
pub mod http;
pub mod last_words;
pub mod link;
pub mod listeners;
pub mod lock;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod observe;
pub mod plane;
pub mod probes;
pub mod reconciler;
pub mod snapshots;
pub mod source;
pub mod state;
pub mod swarm;
pub mod upgrade;
pub mod version;
