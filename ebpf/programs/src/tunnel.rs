//! Both ends of the tunnel: packets from other nodes, and this host's own way in.

use crate::{
    flow::{
        self, Choice, Direction, Frontend, Origin, account, continues, flags_from_client,
        flags_from_task, pick, stale,
    },
    ingress,
    maps::{BACKENDS, SENDERS, SOCKETS, TAGS},
    packet::Packet,
    reject,
    reject::Answer,
    reply,
    send::{self, TunnelKey},
    skb::{Fate, Skb, count, now},
};
use aya_ebpf::bindings::BPF_F_TUNINFO_IPV6;
use weir_abi::{
    Config, DropReason, FlowKey, Forward, Ip4, Ip6, Reverse, SocketKey, Tag, TagKey, backend_state,
    flow_flag, via,
};

/// Where a packet on the tunnel comes from, and who it is for.
#[derive(Clone, Copy)]
struct Envelope {
    from: u16,
    tag: Tag,
}

/// Takes a packet that arrived on the tunnel device.
#[inline(always)]
pub fn arrives<F: Answer>(skb: Skb) -> Fate {
    let Some(config) = flow::config() else { return Fate::Pass };
    let packet = match F::read(skb) {
        Ok(packet) => packet,
        Err(_) => return Fate::Drop(DropReason::Malformed),
    };
    let envelope = match envelope(skb) {
        Ok(Some(envelope)) => envelope,
        Ok(None) => return from_this_host::<F>(skb, &packet, config),
        Err(reason) => return Fate::Drop(reason),
    };
    inner::<F>(skb, &packet, envelope, config)
}

/// [`arrives`], for a packet whose tunnel header says this. For packet cases.
#[inline(always)]
pub fn opened<F: Answer>(skb: Skb, from: u16, tag: u32) -> Fate {
    let Some(config) = flow::config() else { return Fate::Pass };
    match F::read(skb) {
        Ok(packet) => inner::<F>(skb, &packet, Envelope { from, tag: Tag(tag) }, config),
        Err(_) => Fate::Drop(DropReason::Malformed),
    }
}

#[inline(always)]
fn inner<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    envelope: Envelope,
    config: &Config,
) -> Fate {
    if envelope.tag.task() == Tag::RETURN {
        return returns::<F>(skb, packet, config);
    }
    let Some(frontend) = flow::frontend(packet.is_udp(), packet.key.dport) else {
        return Fate::Drop(DropReason::NotPublished);
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
) -> Fate {
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
            let same = back.src == packet.key.dst && back.sport == packet.key.dport;
            let reopens = packet.is_syn()
                && (choice.backend.state != backend_state::ACTIVE || back.flags & ENDED != 0);
            if same && !reopens {
                refresh(back, packet, envelope.from, config);
                return local::<F>(skb, packet, frontend, choice, [0; 2], config);
            }
        }
    }
    unusual::<F>(skb, packet, frontend, tagged, envelope, config)
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
) -> Fate {
    let origin =
        Origin { from: envelope.from, ifindex: 0, translate: false, hopped: envelope.tag.hopped() };
    if let Some(flow) = F::forward().get_ptr_mut(packet.key) {
        // SAFETY: a value of a map.
        let flow = unsafe { &mut *flow };
        if flow.from != 0
            && let Some(choice) = continues(flow, packet, &frontend.service.timeouts, now())
        {
            flow.flags = flags_from_client(flow.flags, packet);
            flow.last = now();
            flow.from = envelope.from;
            if choice.backend.via != via::TUNNEL {
                let _ = flow::reverse_for::<F>(packet, frontend, choice, flow, config);
            }
            return ingress::deliver::<F>(skb, packet, frontend, choice, flow, config);
        }
    }
    let opens = packet.is_syn() || packet.is_udp();
    if let Some(choice) = tagged
        && (!opens || choice.backend.state == backend_state::ACTIVE)
    {
        return accept::<F>(skb, packet, frontend, choice, origin, config);
    }
    if !opens {
        return reject::answer::<F>(skb, packet, DropReason::BackendGone, origin, config);
    }
    second_chance::<F>(skb, packet, frontend, origin, config)
}

/// Begins a flow with the task that its tag named. The sender remembers the choice, so this node
/// needs no forward entry, unless the task must see another source port.
#[inline(always)]
fn accept<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    choice: Choice,
    origin: Origin,
    config: &Config,
) -> Fate {
    let flow = match flow::remember::<F>(packet, frontend, choice, origin, config) {
        Ok(flow) => flow,
        Err(reason) => return Fate::Drop(reason),
    };
    if flow.alias != [0; 2] && F::forward().insert(packet.key, flow, 0).is_err() {
        return Fate::Drop(DropReason::FlowTable);
    }
    local::<F>(skb, packet, frontend, choice, flow.alias, config)
}

/// The task that the sender chose takes no new flows, which the sender did not know yet: another
/// local task, else one more node.
#[inline(always)]
fn second_chance<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    origin: Origin,
    config: &Config,
) -> Fate {
    let service = frontend.service;
    let client = (packet.key.src, packet.key.sport);
    let local = pick::<F>(service, F::local(service), client.0, client.1, |_| true);
    let choice = match local {
        Some(choice) => choice,
        None if origin.hopped => {
            return reject::answer::<F>(skb, packet, DropReason::HopLimit, origin, config);
        }
        None => {
            let remote =
                |backend: &_| via_of(backend) == via::TUNNEL && node_of(backend) != origin.from;
            let any = |backend: &_| via_of(backend) == via::TUNNEL;
            let region = F::pick(service);
            let other = pick::<F>(service, region, client.0, client.1, remote)
                .or_else(|| pick::<F>(service, region, client.0, client.1, any));
            match other {
                Some(choice) => choice,
                None => {
                    return reject::answer::<F>(skb, packet, DropReason::NoBackend, origin, config);
                }
            }
        }
    };
    count(DropReason::SecondChance);
    ingress::start::<F>(skb, packet, frontend, choice, origin, config)
}

#[inline(always)]
fn via_of(backend: &weir_abi::Backend) -> u8 {
    backend.via
}

#[inline(always)]
fn node_of(backend: &weir_abi::Backend) -> u16 {
    backend.node
}

/// Rewrites a packet for a local task and sends it there.
#[inline(always)]
fn local<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    choice: Choice,
    alias: [u8; 2],
    config: &Config,
) -> Fate {
    let new = FlowKey {
        dst: F::addr(choice.backend),
        dport: frontend.service.target,
        sport: if alias == [0; 2] { packet.key.sport } else { alias },
        ..packet.key
    };
    match send::rewrite::<F>(skb, packet, &new, config) {
        Ok(()) => send::to_local_task(skb, choice.backend),
        Err(reason) => Fate::Drop(reason),
    }
}

/// A reply on its way to the node that the client entered by: this one, or one before it.
#[inline(always)]
fn returns<F: Answer>(skb: Skb, packet: &Packet<F::Addr>, config: &Config) -> Fate {
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
    let flags = flags_from_task(flow.flags, packet);
    let now = now();
    if flags != flow.flags || stale(flow.last, now, config) {
        flow.flags = flags;
        flow.last = now;
    }
    if let Err(reason) = send::rewrite::<F>(skb, packet, &packet.key, config) {
        return Fate::Drop(reason);
    }
    if flow.from != 0 {
        return send::back_to_node::<F>(skb, packet, flow.from, config);
    }
    if let Some(frontend) = flow::frontend(packet.is_udp(), packet.key.sport) {
        account(skb, Direction::ToClient, frontend.cell.counters, flow.backend);
    }
    if flow.ifindex == 0 {
        // For a socket of this host: the packet is where it should be.
        return Fate::Pass;
    }
    skb.to_neighbour(flow.ifindex)
}

/// A reply for a client whose source was translated here: a container of this node.
#[inline(always)]
fn returns_translated<F: Answer>(skb: Skb, packet: &Packet<F::Addr>, config: &Config) -> Fate {
    match F::reverse().get_ptr_mut(packet.key) {
        // SAFETY: a value of a map.
        Some(back) => reply::send_back::<F>(skb, packet, unsafe { &mut *back }, config),
        None => Fate::Drop(DropReason::UnknownFlow),
    }
}

/// A packet that this host put on the tunnel device's ingress itself: for a local task, from a
/// socket of this host; or a reply to such a socket.
#[inline(always)]
fn from_this_host<F: Answer>(skb: Skb, packet: &Packet<F::Addr>, config: &Config) -> Fate {
    // A packet that `departs` turned around is rewritten already: its destination is the task.
    let key = FlowKey {
        src: packet.key.dst,
        dst: packet.key.src,
        sport: packet.key.dport,
        dport: packet.key.sport,
        ..packet.key
    };
    let Some(back) = F::reverse().get_ptr(key) else { return Fate::Pass };
    // SAFETY: a value of a map.
    let index = unsafe { (*back).backend };
    let _ = config;
    match BACKENDS.get(index) {
        Some(backend) => send::to_local_task(skb, backend),
        None => Fate::Drop(DropReason::BackendGone),
    }
}

/// Takes a packet that a socket of this host sends to the relay address, through the tunnel device.
#[inline(always)]
pub fn departs<F: Answer>(skb: Skb) -> Fate {
    if skb.ingress_ifindex() != 0 {
        // Forwarded: a program of ours has put it here, with its tunnel key.
        return Fate::Pass;
    }
    let Some(config) = flow::config() else { return Fate::Pass };
    let Ok(packet) = F::read(skb) else { return Fate::Pass };
    if packet.key.dst != F::relay(config) {
        return Fate::Pass;
    }
    let Some(frontend) = flow::frontend(packet.is_udp(), packet.key.dport) else {
        return Fate::Drop(DropReason::NotPublished);
    };
    let origin = Origin { from: 0, ifindex: 0, translate: false, hopped: false };
    if packet.is_syn() || packet.is_udp() {
        let flow = F::forward().get_ptr(packet.key);
        if flow.is_none()
            && let Some(choice) = chosen_at_connect::<F>(skb, &packet)
        {
            return ingress::start::<F>(skb, &packet, frontend, choice, origin, config);
        }
    }
    ingress::enter::<F>(skb, &packet, frontend, origin, config)
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
