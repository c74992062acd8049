//! `/api/v1/drops`: why packets were not forwarded, as the data plane counts it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::observe::Observation;

/// `/api/v1/drops`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Drops {
    /// When the counters were read: milliseconds since the agent began.
    pub counters_at_ms: u64,
    /// Every reason that there is.
    pub drops: Vec<Drop>,
}

/// A reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Drop {
    /// Its label, as in `weir_drops_total`.
    pub reason: String,
    /// What it means, in a sentence.
    pub meaning: String,
    /// Packets, since the data plane was begun.
    pub count: u64,
}

/// Why packets were not forwarded on this node.
pub fn drops(now: &Observation) -> Drops {
    let read = now.stats.read.saturating_duration_since(now.started);
    let drop = |(reason, meaning): (&'static str, &'static str)| Drop {
        reason: reason.to_owned(),
        meaning: meaning.to_owned(),
        count: now.stats.drops.get(reason).copied().unwrap_or_default(),
    };
    let drops = weir_loader::drop_reasons().map(drop).collect();
    Drops { counters_at_ms: read.as_millis() as u64, drops }
}
