//! The identities that Docker gives: 25 characters, unique in a Swarm, never used twice.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::service::name_type;

name_type!(
    /// A node, as Swarm knows it.
    NodeId
);
name_type!(
    /// A service, as Swarm knows it.
    ServiceId
);
name_type!(
    /// A task, as Swarm knows it.
    TaskId
);
