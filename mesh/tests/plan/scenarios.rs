//! Scenarios to read.
