//! Rise and fall, ejection and panic: as stories, and at random.
#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod properties;
mod stories;
