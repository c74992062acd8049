//! The merge of what managers declare and nodes report, rule by rule and at random.

mod properties;
mod rules;
mod world;
