//! Both ends of the tunnel: packets from other nodes, and this host's own way in.

use crate::{
    fate::{Fate, To, Way},
    flow::{
        self, Choice, Direction, Frontend, Origin, account, continues, flags_from_client,
        flags_from_task, pick, stale,
    },
    ingress,
    maps::{BACKENDS, SENDERS, SOCKETS, TAGS},
    packet::Packet,
    reject::Answer,
    reply,
    send::TunnelKey,
    skb::{Skb, count, now},
};
use aya_ebpf::bindings::BPF_F_TUNINFO_IPV6;
use weir_abi::{
    Backend, Config, DropReason, FlowKey, Forward, Ip4, Ip6, Reverse, SocketKey, Tag, TagKey,
    backend_state, flow_flag, via,
};

/// Where a packet on the tunnel comes from, and who it is for.
#[derive(Clone, Copy)]
struct Envelope {
    from: u16,
    tag: Tag,
}

/// Decides about a packet that arrived on the tunnel device.
#[inline(always)]
pub fn arrives<F: Answer>(skb: Skb, packet: &Packet<F::Addr>, config: &Config) -> Fate<F::Addr> {
    match envelope(skb) {
        Ok(Some(envelope)) => inner::<F>(skb, packet, envelope, config),
        Ok(None) => from_this_host::<F>(packet),
        Err(reason) => Fate::drop(packet, reason),
    }
}

/// [`arrives`], for a packet whose tunnel header says this. For packet cases.
#[inline(always)]
pub fn opened<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    from: u16,
    tag: u32,
    config: &Config,
) -> Fate<F::Addr> {
    inner::<F>(skb, packet, Envelope { from, tag: Tag(tag) }, config)
}

#[inline(always)]
fn inner<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    envelope: Envelope,
    config: &Config,
) -> Fate<F::Addr> {
    if envelope.tag.task() == Tag::RETURN {
        return returns::<F>(skb, packet, envelope.from, config);
    }
    let Some(frontend) = flow::frontend(packet.is_udp(), packet.key.dport) else {
        return Fate::drop(packet, DropReason::NotPublished);
    };
    forwarded::<F>(skb, packet, frontend, envelope, config)
}

/// Reads the tunnel header; `None` when there is none, since the packet never left this host.
#[inline(always)]
fn envelope(skb: Skb) -> Result<Option<Envelope>, DropReason> {
    const EINVAL: i64 = -22;
    let mut key = TunnelKey::new(0, [0; 4]);
    let sender = match key.read(skb, 0) {
        0 => Ip4::from_word(key.remote[0].to_be()).mapped(),
        EINVAL => return Ok(None),
        _ => {
            if key.read(skb, u64::from(BPF_F_TUNINFO_IPV6)) != 0 {
                return Ok(None);
            }
            Ip6::from_words(key.remote)
        }
    };
    match SENDERS.get_ptr(sender) {
        // SAFETY: a value of a map.
        Some(node) => Ok(Some(Envelope { from: unsafe { *node } as u16, tag: Tag(key.id) })),
        None => Err(DropReason::UnknownSender),
    }
}

/// A client's packet, forwarded by the node that it entered by.
#[inline(always)]
fn forwarded<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    envelope: Envelope,
    config: &Config,
) -> Fate<F::Addr> {
    let tagged = tagged(frontend, envelope.tag);
    if let Some(choice) = tagged {
        let key = FlowKey {
            src: F::addr(choice.backend),
            dst: packet.key.src,
            sport: frontend.service.target,
            dport: packet.key.sport,
            ..packet.key
        };
        if let Some(back) = F::reverse().get_ptr_mut(key) {
            // SAFETY: a value of a map.
            let back = unsafe { &mut *back };
            // The client's port too: it may be the alias by which the task knows another flow.
            let same = back.src == packet.key.dst
                && back.sport == packet.key.dport
                && back.dport == packet.key.sport
                && back.backend == choice.index;
            let reopens = packet.is_syn()
                && (choice.backend.state != backend_state::ACTIVE || back.flags & ENDED != 0);
            if same && reopens {
                // Whoever takes the new flow, the one that is noted here is over.
                back.flags |= flow_flag::RESET;
            } else if same && (back.flags & ENDED == 0 || !passed_on::<F>(packet)) {
                refresh(back, packet, envelope.from, config);
                return local::<F>(packet, frontend, choice, [0; 2]);
            }
        }
    }
    unusual::<F>(skb, packet, frontend, tagged, envelope, config)
}

/// Whether the client's present flow is one that this node gave a second chance. What is noted of its
/// last one with the same task, or with one that had the same address, means nothing then: the node
/// that the client entered by goes on naming that task.
#[inline(always)]
fn passed_on<F: Answer>(packet: &Packet<F::Addr>) -> bool {
    // SAFETY: a value of a map.
    F::forward().get_ptr(packet.key).is_some_and(|flow| unsafe { (*flow).from != 0 })
}

const ENDED: u8 = flow_flag::CLIENT_FIN | flow_flag::TASK_FIN | flow_flag::RESET;

/// The local task that a tag means within the service.
#[inline(always)]
fn tagged(frontend: Frontend, tag: Tag) -> Option<Choice> {
    let key = TagKey { service: frontend.service.id, tag: tag.task() };
    // SAFETY: a value of a map.
    let index = unsafe { *TAGS.get_ptr(key)? };
    let backend = BACKENDS.get(index)?;
    let usable = backend.state != backend_state::GONE
        && backend.via != via::TUNNEL
        && backend.via != via::UNREACHABLE;
    usable.then_some(Choice { index, backend })
}

/// Notes that a flow is alive, and which node its replies go to.
#[inline(always)]
fn refresh<A>(back: &mut Reverse<A>, packet: &Packet<A>, from: u16, config: &Config) {
    let flags = flags_from_client(back.flags, packet);
    let now = now();
    if flags != back.flags || back.node != from || stale(back.last, now, config) {
        back.flags = flags;
        back.node = from;
        back.last = now;
    }
}

/// A new flow; or one that was given a second chance here, or another source port; or one whose
/// way back was lost.
#[inline(always)]
fn unusual<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    tagged: Option<Choice>,
    envelope: Envelope,
    config: &Config,
) -> Fate<F::Addr> {
    let sender =
        Origin { from: envelope.from, ifindex: 0, translate: false, hopped: envelope.tag.hopped() };
    let mut origin = sender;
    if let Some(flow) = F::forward().get_ptr_mut(packet.key) {
        // SAFETY: a value of a map.
        let flow = unsafe { &mut *flow };
        if flow.from == 0 {
            // It entered by this node, and the node of the task that was chosen here gave it a
            // second chance with a task of this node. From now on it is as if that had been chosen
            // here: with two nodes' notes under one key its replies would go to and fro for ever.
            if flow.ifindex == 0 || F::is_local(packet.key.dst) {
                origin = Origin { from: 0, ifindex: flow.ifindex, ..sender };
            }
        } else if let Some(choice) = continues(flow, packet, &frontend.service.timeouts, now()) {
            flow.flags = flags_from_client(flow.flags, packet);
            flow.last = now();
            flow.from = envelope.from;
            if choice.backend.via != via::TUNNEL {
                let _ = flow::reverse_for::<F>(packet, frontend, choice, flow, config);
            }
            return ingress::deliver::<F>(skb, packet, frontend, choice, flow, config);
        } else {
            // A second chance that is over: see `passed_on`.
            let _ = F::forward().remove(packet.key);
        }
    }
    let opens = packet.is_syn() || packet.is_udp();
    if let Some(choice) = tagged
        && (!opens || choice.backend.state == backend_state::ACTIVE)
    {
        return accept::<F>(packet, frontend, choice, origin, config);
    }
    if !opens {
        return Fate::answer(packet, DropReason::BackendGone, sender);
    }
    second_chance::<F>(skb, packet, frontend, origin, sender, config)
}

/// Begins a flow with the task that its tag named. The sender remembers the choice, so this node
/// needs no forward entry, unless the task must see another source port, or the flow has entered by
/// this node.
#[inline(always)]
fn accept<F: Answer>(
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    choice: Choice,
    origin: Origin,
    config: &Config,
) -> Fate<F::Addr> {
    let flow = match flow::remember::<F>(packet, frontend, choice, origin, config) {
        Ok(flow) => flow,
        Err(reason) => return Fate::drop(packet, reason),
    };
    let noted = flow.alias != [0; 2] || origin.from == 0;
    if noted && F::forward().insert(packet.key, flow, 0).is_err() {
        return Fate::drop(packet, DropReason::FlowTable);
    }
    local::<F>(packet, frontend, choice, flow.alias)
}

/// The task that the sender chose takes no new flows, which the sender did not know yet: another
/// local task, else one more node.
#[inline(always)]
fn second_chance<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    origin: Origin,
    sender: Origin,
    config: &Config,
) -> Fate<F::Addr> {
    let service = frontend.service;
    let local = F::local(service);
    let here = local.len != 0;
    if !here && origin.hopped {
        // Three nodes know of different moments, which soon passes: a client that is not refused asks
        // again, and is served.
        return Fate::drop(packet, DropReason::HopLimit);
    }
    let region = if here { local } else { F::pick(service) };
    let other = |backend: &Backend| here || backend.via == via::TUNNEL;
    let choice = pick::<F>(service, region, packet.key.src, packet.key.sport, other);
    let Some(choice) = choice else {
        return Fate::answer(packet, DropReason::NoBackend, sender);
    };
    count(DropReason::SecondChance);
    ingress::start::<F>(skb, packet, frontend, choice, origin, config)
}

/// What a packet becomes for a local task.
#[inline(always)]
fn local<F: Answer>(
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    choice: Choice,
    alias: [u8; 2],
) -> Fate<F::Addr> {
    let new = FlowKey {
        dst: F::addr(choice.backend),
        dport: frontend.service.target,
        sport: if alias == [0; 2] { packet.key.sport } else { alias },
        ..packet.key
    };
    Fate::send(new, Way::task(choice.index))
}

/// A reply on its way to the node that the client entered by: this one, or one before it.
#[inline(always)]
fn returns<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    from: u16,
    config: &Config,
) -> Fate<F::Addr> {
    let key = FlowKey {
        src: packet.key.dst,
        dst: packet.key.src,
        sport: packet.key.dport,
        dport: packet.key.sport,
        ..packet.key
    };
    let Some(flow) = F::forward().get_ptr_mut(key) else {
        return returns_translated::<F>(skb, packet, config);
    };
    // SAFETY: a value of a map.
    let flow: &mut Forward = unsafe { &mut *flow };
    if flow.from != 0 && flow.from == from {
        // Never back to where it comes from, whatever the nodes believe.
        return Fate::drop(packet, DropReason::HopLimit);
    }
    let flags = flags_from_task(flow.flags, packet);
    let now = now();
    if flags != flow.flags || stale(flow.last, now, config) {
        flow.flags = flags;
        flow.last = now;
    }
    if flow.from == 0
        && let Some(frontend) = flow::frontend(packet.is_udp(), packet.key.sport)
    {
        account(skb, Direction::ToClient, frontend.cell.counters, flow.backend);
    }
    let way = match Way::client(flow.from, flow.ifindex) {
        // For a socket of this host: the packet is where it should be.
        Way { to: To::Around, .. } => Way::plain(To::Stack),
        way => way,
    };
    Fate::send(packet.key, way)
}

/// A reply for a client whose source was translated here: a container of this node.
#[inline(always)]
fn returns_translated<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    config: &Config,
) -> Fate<F::Addr> {
    match F::reverse().get_ptr_mut(packet.key) {
        // SAFETY: a value of a map.
        Some(back) => reply::send_back::<F>(skb, packet, unsafe { &mut *back }, config),
        None => Fate::drop(packet, DropReason::UnknownFlow),
    }
}

/// A packet that this host put on the tunnel device's ingress itself: for a local task, from a
/// socket of this host; or a reply to such a socket.
#[inline(always)]
fn from_this_host<F: Answer>(packet: &Packet<F::Addr>) -> Fate<F::Addr> {
    // A packet that `departs` turned around is rewritten already: its destination is the task.
    let key = FlowKey {
        src: packet.key.dst,
        dst: packet.key.src,
        sport: packet.key.dport,
        dport: packet.key.sport,
        ..packet.key
    };
    match F::reverse().get_ptr(key) {
        // SAFETY: a value of a map.
        Some(back) => Fate::send(packet.key, Way::task(unsafe { (*back).backend })),
        None => Fate::pass(packet),
    }
}

/// Decides about a packet that a socket of this host sends to the relay address, through the tunnel
/// device.
#[inline(always)]
pub fn departs<F: Answer>(skb: Skb, packet: &Packet<F::Addr>, config: &Config) -> Fate<F::Addr> {
    if skb.ingress_ifindex() != 0 {
        // Forwarded: a program of ours has put it here, with its tunnel key.
        return Fate::pass(packet);
    }
    if packet.key.dst != F::relay(config) {
        return Fate::pass(packet);
    }
    let Some(frontend) = flow::frontend(packet.is_udp(), packet.key.dport) else {
        return Fate::drop(packet, DropReason::NotPublished);
    };
    let origin = Origin { from: 0, ifindex: 0, translate: false, hopped: false };
    if packet.is_syn() || packet.is_udp() {
        let flow = F::forward().get_ptr(packet.key);
        if flow.is_none()
            && let Some(choice) = chosen_at_connect::<F>(skb, packet)
        {
            return ingress::start::<F>(skb, packet, frontend, choice, origin, config);
        }
    }
    ingress::enter::<F>(skb, packet, frontend, origin, config)
}

/// The task that the socket was given when it connected: round robin has counted it already.
#[inline(always)]
fn chosen_at_connect<F: Answer>(skb: Skb, packet: &Packet<F::Addr>) -> Option<Choice> {
    let key = SocketKey {
        cookie: skb.cookie(),
        addr: F::wide(packet.key.dst),
        port: packet.key.dport,
        pad: 0,
        pad2: 0,
    };
    // SAFETY: a value of a map.
    let index = unsafe { (*SOCKETS.get_ptr(key)?).backend };
    let backend = BACKENDS.get(index)?;
    (backend.state == backend_state::ACTIVE).then_some(Choice { index, backend })
}
