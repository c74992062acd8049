//! What becomes of a packet: decided by the walks, carried out here, once a program.
//!
//! Everything that changes a packet or sends it stands in [`conclude`], so that the verifier meets
//! it once a program and family, however many walks lead there.

use weir_abi::{Config, DropReason, FlowKey, Tag};

use crate::{
    family::Family,
    flow::Origin,
    maps::{DROP_TURN, LAST_DROPS},
    packet::Packet,
    reject::{self, Answer},
    send,
    skb::{Skb, count, nanoseconds},
};

/// `TCX_NEXT`, and `TC_ACT_UNSPEC` to clsact: go on with the next program, then the stack.
pub const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
const SHOT: i32 = 2;

/// A packet's fate.
///
/// A structure whose every field always has a value, where an enum would say the same: the fields
/// of an enum's other variants are undefined, the compiler moves them all the same, and the verifier
/// refuses programs that read what was never written.
pub struct Fate<A> {
    act: Act,
    reason: DropReason,
    new: FlowKey<A>,
    way: Way,
}

/// What is done with a packet.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Act {
    /// Not ours: the stack and other programs go on with it, untouched.
    Pass,
    /// Given new addresses and ports, and one hop less, and sent on.
    Send,
    /// Not served: the client is told, and the reason counted.
    Answer,
    /// Not forwarded, and counted.
    Drop,
}

/// Where a packet goes.
#[derive(Clone, Copy)]
pub struct Way {
    pub to: To,
    /// Position of the backend or node, or interface index.
    pub index: u32,
    /// Tag on the tunnel.
    pub tag: u32,
}

/// The kinds of [`Way`].
#[derive(Clone, Copy, PartialEq)]
#[repr(u32)]
pub enum To {
    /// A task of this node.
    Task,
    /// Another node, through the tunnel.
    Node,
    /// Out of an interface, to whatever the routing and neighbour tables say.
    Interface,
    /// From the tunnel device's egress hook to its ingress hook: a redirect into a namespace is
    /// allowed only there, and the stack accepts replies to its own sockets only from there.
    Around,
    /// Back to whence it came.
    Reflect,
    /// To this host's stack.
    Stack,
}

impl Way {
    /// To a task of this node, by the position of its backend.
    #[inline(always)]
    pub fn task(index: u32) -> Self {
        Self { to: To::Task, index, tag: 0 }
    }

    /// Through the tunnel.
    #[inline(always)]
    pub fn node(node: u16, tag: u32) -> Self {
        Self { to: To::Node, index: node.into(), tag }
    }

    /// Anywhere that needs no number.
    #[inline(always)]
    pub fn plain(to: To) -> Self {
        Self { to, index: 0, tag: 0 }
    }

    /// To a client: to the node that it entered by, out of an interface, or to a socket of this
    /// host.
    #[inline(always)]
    pub fn client(node: u16, ifindex: u32) -> Self {
        if node != 0 {
            Self::node(node, Tag::RETURN)
        } else if ifindex != 0 {
            Self { to: To::Interface, index: ifindex, tag: 0 }
        } else {
            Self::plain(To::Around)
        }
    }
}

impl<A: Copy> Fate<A> {
    /// Left alone.
    #[inline(always)]
    pub fn pass(packet: &Packet<A>) -> Self {
        let (reason, way) = (DropReason::NoBackend, Way::plain(To::Stack));
        Self { act: Act::Pass, reason, new: packet.key, way }
    }

    /// Sent on.
    #[inline(always)]
    pub fn send(new: FlowKey<A>, way: Way) -> Self {
        Self { act: Act::Send, reason: DropReason::NoBackend, new, way }
    }

    /// Dropped.
    #[inline(always)]
    pub fn drop(packet: &Packet<A>, reason: DropReason) -> Self {
        Self { act: Act::Drop, reason, new: packet.key, way: Way::plain(To::Stack) }
    }

    /// The client of a flow that entered by `origin` is told why it is not served; but an ICMP error has no
    /// way through the tunnel, which carries TCP and UDP.
    #[inline(always)]
    pub fn answer(packet: &Packet<A>, reason: DropReason, origin: Origin) -> Self {
        if packet.is_udp() && origin.from != 0 {
            return Self::drop(packet, reason);
        }
        let way = match Way::client(origin.from, origin.ifindex) {
            Way { to: To::Interface, .. } => Way::plain(To::Reflect),
            way => way,
        };
        Self { act: Act::Answer, reason, new: packet.key, way }
    }
}

/// Carries out a fate; answers the program's verdict.
#[inline(always)]
pub fn conclude<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    fate: Fate<F::Addr>,
    config: &Config,
) -> i32 {
    let done = match fate.act {
        Act::Pass => return NEXT,
        Act::Drop => Err(fate.reason),
        Act::Send => send::rewrite::<F>(skb, packet, &fate.new, config),
        Act::Answer => {
            note::<F>(packet, fate.reason);
            match reject::turn_into_answer::<F>(skb, packet) {
                Some(()) => Ok(()),
                None => return SHOT,
            }
        }
    };
    match done.and_then(|()| send::go::<F>(skb, packet, fate.way, config)) {
        Ok(verdict) => verdict,
        Err(reason) => {
            note::<F>(packet, reason);
            SHOT
        }
    }
}

/// Counts a packet that is not forwarded, and remembers it for whoever looks.
#[inline(always)]
fn note<F: Family>(packet: &Packet<F::Addr>, reason: DropReason) {
    count(reason);
    let Some(turn) = DROP_TURN.get_ptr_mut(0) else { return };
    // SAFETY: a per-CPU cell, as in `count`.
    let index = unsafe {
        let index = *turn % u64::from(weir_abi::size::LAST_DROPS);
        *turn += 1;
        index
    };
    let Some(cell) = LAST_DROPS.get_ptr_mut(index as u32) else { return };
    let key = &packet.key;
    let ([a, b], [c, d]) = (F::wide(key.src).halves(), F::wide(key.dst).halves());
    let ([e, f], [g, h]) = (key.sport, key.dport);
    let [low, high] = (reason as u16).to_ne_bytes();
    let rest = [e, f, g, h, key.protocol as u8, packet.flags, low, high];
    let (at, cell) = (nanoseconds(), cell.cast::<u64>());
    // SAFETY: as above, and a `DroppedPacket` is seven words. What is volatile stays in its order, which is
    // what a reader relies on.
    unsafe {
        cell.add(6).write_volatile(0);
        cell.add(1).write_volatile(a);
        cell.add(2).write_volatile(b);
        cell.add(3).write_volatile(c);
        cell.add(4).write_volatile(d);
        cell.add(5).write_volatile(u64::from_ne_bytes(rest));
        cell.add(0).write_volatile(at);
        cell.add(6).write_volatile(at);
    }
}

/// Reads, decides and concludes: the whole of a program for one family. What cannot be read is left
/// to the stack, or dropped for the reason given.
#[inline(always)]
pub fn run<F: Answer>(
    skb: Skb,
    unreadable: Option<DropReason>,
    decide: impl Fn(Skb, &Packet<F::Addr>, &Config) -> Fate<F::Addr>,
) -> i32 {
    let Some(config) = crate::flow::config() else { return NEXT };
    match (<F as Family>::read(skb), unreadable) {
        (Ok(packet), _) => {
            let fate = decide(skb, &packet, config);
            conclude::<F>(skb, &packet, fate, config)
        }
        (Err(_), Some(reason)) => {
            count(reason);
            SHOT
        }
        (Err(_), None) => NEXT,
    }
}
