//! The file source: `mesh.toml`, watched, applied whole or not at all.

mod assemble;
mod networks;
mod pieces;
mod publish;
mod services;
mod watch;

pub use assemble::parse;
pub use watch::FileSource;
