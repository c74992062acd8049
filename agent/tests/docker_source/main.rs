//! The Docker source against a dockerd that answers from a script: what a real one cannot be made to
//! do on demand.

mod fake;
mod host;
mod life;
mod trouble;
mod watched;
