//! What a flow from another node is looked up in: ports, tags, nodes.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use weir_mesh::{
    ident::Tag,
    install::{Frontend, NodeIndex, ServiceId},
};

use crate::{backend::Backend, port::Port};

/// Written by whoever applies operations, read by workers.
#[derive(Debug, Default)]
pub(crate) struct Directory(RwLock<Entries>);

#[derive(Debug, Default)]
pub(crate) struct Entries {
    pub(crate) ports: HashMap<Frontend, Arc<Port>>,
    pub(crate) tags: HashMap<(ServiceId, Tag), Arc<Backend>>,
    pub(crate) nodes: HashMap<NodeIndex, IpAddr>,
}

impl Directory {
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn port(&self, frontend: Frontend) -> Option<Arc<Port>> {
        self.read().ports.get(&frontend).cloned()
    }

    pub(crate) fn tagged(&self, service: ServiceId, tag: Tag) -> Option<Arc<Backend>> {
        self.read().tags.get(&(service, tag)).cloned()
    }

    pub(crate) fn node(&self, index: NodeIndex) -> Option<IpAddr> {
        self.read().nodes.get(&index).copied()
    }

    /// The node that has this address.
    pub(crate) fn sender(&self, address: IpAddr) -> Option<NodeIndex> {
        let entries = self.read();
        entries.nodes.iter().find(|(_, known)| **known == address).map(|(index, _)| *index)
    }
}
