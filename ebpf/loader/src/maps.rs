//! The maps of the kernel programs, opened.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use weir_abi::{
    Backend, Config, Counters, DroppedPacket, FlowKey, Forward, Ip4, Ip6, Load, Node, PortCell,
    Range, Reverse, RoutedKey, Routing, Service, SocketKey, SocketPeer, Space, TagKey, Vip, VipKey,
};

use crate::{
    error::{Error, Tried as _},
    table::{Mapped, PerCpu, Table},
};

type Key4 = FlowKey<Ip4>;
type Key6 = FlowKey<Ip6>;

/// All of them, by their kernel names in lower case.
pub(crate) struct Maps {
    pub(crate) config: Mapped<Config>,
    pub(crate) ports: Mapped<PortCell>,
    pub(crate) routed: Table<RoutedKey, u32>,
    pub(crate) routing: Mapped<Routing>,
    pub(crate) records: Mapped<Service>,
    pub(crate) access: Table<Range, u32>,
    pub(crate) picks: Mapped<u32>,
    pub(crate) backends: Mapped<Backend>,
    pub(crate) loads: Mapped<Load>,
    pub(crate) nodes: Mapped<Node>,
    pub(crate) senders: Table<Ip6, u32>,
    pub(crate) tags: Table<TagKey, u32>,
    pub(crate) local: Table<Ip6, u32>,
    pub(crate) bridges: Table<u32, u32>,
    pub(crate) forward4: Table<Key4, Forward>,
    pub(crate) forward6: Table<Key6, Forward>,
    pub(crate) reverse4: Table<Key4, Reverse<Ip4>>,
    pub(crate) reverse6: Table<Key6, Reverse<Ip6>>,
    pub(crate) spaces: Table<u64, Space>,
    pub(crate) vip_slots: Table<VipKey, u32>,
    pub(crate) vips: Mapped<Vip>,
    pub(crate) vip_tasks: Mapped<Ip6>,
    pub(crate) sockets: Table<SocketKey, SocketPeer>,
    pub(crate) frontend_stats: PerCpu<Counters>,
    pub(crate) backend_stats: PerCpu<Counters>,
    pub(crate) drops: PerCpu<u64>,
    pub(crate) last_drops: PerCpu<DroppedPacket>,
}

impl Maps {
    /// Takes the descriptors out of a loaded object.
    pub(crate) fn open(object: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            config: mapped(object, "CONFIG")?,
            ports: mapped(object, "PORTS")?,
            routed: table(object, "ROUTED")?,
            routing: mapped(object, "ROUTING")?,
            records: mapped(object, "RECORDS")?,
            access: table(object, "ACCESS")?,
            picks: mapped(object, "PICKS")?,
            backends: mapped(object, "BACKENDS")?,
            loads: mapped(object, "LOADS")?,
            nodes: mapped(object, "NODES")?,
            senders: table(object, "SENDERS")?,
            tags: table(object, "TAGS")?,
            local: table(object, "LOCAL")?,
            bridges: table(object, "BRIDGES")?,
            forward4: table(object, "FORWARD4")?,
            forward6: table(object, "FORWARD6")?,
            reverse4: table(object, "REVERSE4")?,
            reverse6: table(object, "REVERSE6")?,
            spaces: table(object, "SPACES")?,
            vip_slots: table(object, "VIP_SLOTS")?,
            vips: mapped(object, "VIPS")?,
            vip_tasks: mapped(object, "VIP_TASKS")?,
            sockets: table(object, "SOCKETS")?,
            frontend_stats: per_cpu(object, "FRONTEND_STATS")?,
            backend_stats: per_cpu(object, "BACKEND_STATS")?,
            drops: per_cpu(object, "DROPS")?,
            last_drops: per_cpu(object, "LAST_DROPS")?,
        })
    }
}

fn mapped<V: Copy>(object: &mut Ebpf, name: &'static str) -> Result<Mapped<V>, Error> {
    let (fd, capacity) = take(object, name)?;
    Ok(Mapped::new(fd, capacity, name))
}

fn table<K: Copy, V: Copy>(object: &mut Ebpf, name: &str) -> Result<Table<K, V>, Error> {
    let (fd, capacity) = take(object, name)?;
    Ok(Table::new(fd, capacity))
}

fn per_cpu<V: Copy + Default>(object: &mut Ebpf, name: &str) -> Result<PerCpu<V>, Error> {
    let (fd, _) = take(object, name)?;
    PerCpu::new(fd).tried(|| "read the list of possible CPUs".to_owned())
}

fn take(object: &mut Ebpf, name: &str) -> Result<(OwnedFd, u32), Error> {
    let what = || format!("open the map {name}");
    let map = object.map(name).ok_or_else(|| Error::new(what(), "it is not in the object"))?;
    let data = data(map).ok_or_else(|| Error::new(what(), "it is of another kind"))?;
    let capacity = data.info().map(|info| info.max_entries()).tried(what)?;
    let fd = duplicate(data).tried(what)?;
    Ok((fd, capacity))
}

fn duplicate(data: &MapData) -> io::Result<OwnedFd> {
    data.fd().as_fd().try_clone_to_owned()
}

fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data) => Some(data),
        _ => None,
    }
}
