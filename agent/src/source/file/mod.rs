//! The file source: `mesh.toml`, watched, applied whole or not at all.

mod assemble;
mod clients;
mod health;
mod networks;
mod pieces;
mod pool;
mod proxied;
mod publish;
mod reader;
mod services;
mod watch;

pub use assemble::parse;
pub use reader::Reader;
pub use watch::FileSource;
