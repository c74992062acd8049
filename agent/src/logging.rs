//! The log: a fixed sentence and fields, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::{
    EnvFilter, Registry, fmt,
    layer::SubscriberExt,
    reload::{self, Handle},
    util::SubscriberInitExt,
};

use crate::config::{LogConfig, LogFormat};

/// Changes the level of a running log.
#[derive(Clone)]
pub struct Logging {
    filter: Handle<EnvFilter, Registry>,
}

impl Logging {
    /// Begins to log. The level was checked with the configuration.
    pub fn start(config: &LogConfig) -> Self {
        let (filter, handle) = reload::Layer::new(EnvFilter::new(&config.level));
        let registry = tracing_subscriber::registry().with(filter);
        let terminal = std::io::stderr().is_terminal();
        let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(terminal);
        // Fails only if a log was started before, as in tests.
        match config.format {
            LogFormat::Text => registry.with(layer).try_init().ok(),
            LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init().ok(),
        };
        Self { filter: handle }
    }

    /// Sets another level.
    pub fn set_level(&self, level: &str) {
        // Fails only if the log has ended.
        self.filter.reload(EnvFilter::new(level)).ok();
    }
}
