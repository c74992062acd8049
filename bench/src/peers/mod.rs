//! weir and its peers side by side: who they are ([`mode`]), where they run ([`stage`]), with what
//! configuration ([`servers`]), what is measured ([`measure`]) and what came of it ([`results`]).

pub mod measure;
pub mod mode;
pub mod results;
pub mod servers;
pub mod stage;
