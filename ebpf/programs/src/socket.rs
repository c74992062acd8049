//! Sockets of this host that connect or send to a published port: they are given a task at once, so
//! that `curl localhost:8080` costs nothing per packet when the task is local, and goes through the
//! tunnel when it is not. And sockets, mostly of containers, that name a virtual address: they are
//! given a task on the network that they share with it.

use aya_ebpf::{
    bindings::{BPF_ANY, bpf_sock_addr},
    helpers::generated,
};
use weir_abi::{Backend, Config, Ip4, Ip6, SocketKey, SocketPeer, backend_state, balance, via};

use crate::{
    family::{Family, V4, V6},
    flow::{self, Choice, account_new, pick},
    maps::{BACKENDS, LOCAL, SOCKETS},
    packet::{TCP, UDP},
    skb::random,
    vip,
};

/// Return values of the programs.
const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// The address that a socket call names, and where it is written back.
#[derive(Clone, Copy)]
pub struct Call(*mut bpf_sock_addr);

/// Which address family the call is of.
#[derive(Clone, Copy, PartialEq)]
pub enum Shape {
    V4,
    V6,
}

/// Whether a connection is made, or a datagram sent on a socket that has none.
#[derive(Clone, Copy, PartialEq)]
pub enum Act {
    Connect,
    Send,
}

/// An address and port as the socket calls know them; IPv4 as `::ffff:a.b.c.d`.
#[derive(Clone, Copy, PartialEq)]
struct Endpoint {
    addr: Ip6,
    port: [u8; 2],
}

/// What is to be done with a call.
enum Verdict {
    /// It is not ours.
    Pass,
    /// It talks to this.
    Become(Endpoint),
    /// There is nothing that it could talk to.
    Refuse,
}

/// `connect` and `sendmsg`.
#[inline(always)]
pub fn outgoing(ctx: *mut bpf_sock_addr, shape: Shape, act: Act) -> i32 {
    let call = Call(ctx);
    let Some(config) = flow::config() else { return ALLOW };
    let asked = call.endpoint(shape);
    let space = call.space();
    let mut verdict = Verdict::Pass;
    // A container's localhost is its own.
    if space == config.netns_cookie {
        verdict = published(call, asked, shape, act, config);
    }
    if matches!(verdict, Verdict::Pass) {
        verdict = virtual_address(call, asked, space, act);
    }
    match verdict {
        Verdict::Pass => ALLOW,
        Verdict::Become(peer) => {
            call.set(shape, peer);
            ALLOW
        }
        Verdict::Refuse => {
            if act == Act::Connect {
                // SAFETY: takes a number.
                unsafe { generated::bpf_set_retval(-ECONNREFUSED) };
            }
            REFUSE
        }
    }
}

/// A published port at one of the host's own addresses.
#[inline(always)]
fn published(call: Call, asked: Endpoint, shape: Shape, act: Act, config: &Config) -> Verdict {
    let protocol = call.protocol();
    if protocol != TCP && protocol != UDP {
        return Verdict::Pass;
    }
    let Some(frontend) = flow::entrance(protocol == UDP, asked.port) else { return Verdict::Pass };
    if !is_own(asked.addr) {
        return Verdict::Pass;
    }
    let cookie = call.cookie();
    if act == Act::Send
        && let Some(peer) = remembered(cookie, asked)
    {
        return Verdict::Become(peer);
    }
    let Some((choice, v4)) = choose(frontend.service, asked, shape, cookie, config) else {
        let left = match asked.addr.unmapped() {
            Some(_) => flow::is_left::<V4>(frontend.service),
            None => flow::is_left::<V6>(frontend.service),
        };
        return if left { Verdict::Pass } else { Verdict::Refuse };
    };
    let peer = target(choice.backend, frontend.service.target, asked.port, v4, config);
    remember(cookie, asked, peer, choice.index, act);
    if choice.backend.via != via::TUNNEL {
        flow::burden(frontend.service, choice.index);
        // Through the tunnel the first packet is counted; to a local task no packet is seen.
        account_new(frontend.cell.counters, choice.index);
    }
    Verdict::Become(peer)
}

/// A virtual address on a network that the asker is attached to: any port, any protocol. Datagrams of
/// one socket go to one task for as long as the address stands for it.
#[inline(always)]
fn virtual_address(call: Call, asked: Endpoint, space: u64, act: Act) -> Verdict {
    let Some(vip) = vip::find(space, asked.addr) else { return Verdict::Pass };
    let cookie = call.cookie();
    let key = SocketKey { cookie, addr: asked.addr, port: asked.port, pad: 0, pad2: 0 };
    if act == Act::Send
        && let Some(peer) = SOCKETS.get_ptr(key)
    {
        // SAFETY: a value of a map.
        let (task, hint) = unsafe { ((*peer).addr, (*peer).backend) };
        if let Some(cell) = vip.cell_of(task, hint) {
            let peer = Endpoint { addr: task, port: asked.port };
            if cell != hint {
                remember(cookie, asked, peer, cell, act);
            }
            return Verdict::Become(peer);
        }
    }
    let Some((cell, task)) = vip.next() else { return Verdict::Refuse };
    let peer = Endpoint { addr: task, port: asked.port };
    remember(cookie, asked, peer, cell, act);
    Verdict::Become(peer)
}

/// `recvmsg` and `getpeername`: the program sees the address that it asked for.
#[inline(always)]
pub fn incoming(ctx: *mut bpf_sock_addr, shape: Shape) -> i32 {
    let call = Call(ctx);
    let real = call.endpoint(shape);
    let key =
        SocketKey { cookie: call.cookie(), addr: real.addr, port: real.port, pad: 0, pad2: 0 };
    if let Some(asked) = SOCKETS.get_ptr(key) {
        // SAFETY: a value of a map.
        let asked = unsafe { &*asked };
        call.set(shape, Endpoint { addr: asked.addr, port: asked.port });
    }
    ALLOW
}

/// The task that this socket's earlier datagrams to the same address went to.
#[inline(always)]
fn remembered(cookie: u64, asked: Endpoint) -> Option<Endpoint> {
    let key = SocketKey { cookie, addr: asked.addr, port: asked.port, pad: 0, pad2: 0 };
    // SAFETY: a value of a map.
    let peer = unsafe { &*SOCKETS.get_ptr(key)? };
    let backend = BACKENDS.get(peer.backend)?;
    if backend.state != backend_state::ACTIVE {
        return None;
    }
    let real = Endpoint { addr: peer.addr, port: peer.port };
    // The index may have been given to another task meanwhile.
    let same = backend.via == via::TUNNEL
        || real.addr == backend.addr6
        || real.addr == V4::wide(backend.addr4);
    same.then_some(real)
}

/// Remembers both ways: what the socket asked for, for its next datagram; and what it talks to,
/// for the address it is shown and for the tunnel's program.
#[inline(always)]
fn remember(cookie: u64, asked: Endpoint, real: Endpoint, backend: u32, act: Act) {
    let shown = SocketPeer { addr: asked.addr, port: asked.port, pad: 0, backend };
    let key = SocketKey { cookie, addr: real.addr, port: real.port, pad: 0, pad2: 0 };
    // A full table cannot be: it evicts. A lost entry costs the true name of the peer, no more.
    let _ = SOCKETS.insert(key, shown, u64::from(BPF_ANY));
    if act == Act::Send {
        let peer = SocketPeer { addr: real.addr, port: real.port, pad: 0, backend };
        let key = SocketKey { cookie, addr: asked.addr, port: asked.port, pad: 0, pad2: 0 };
        let _ = SOCKETS.insert(key, peer, u64::from(BPF_ANY));
    }
}

/// Chooses a task. An IPv6 socket that asked for an IPv6 address may be given a task that has only
/// IPv4, as a mapped address: `localhost` is both.
#[inline(always)]
fn choose(
    service: &weir_abi::Service,
    asked: Endpoint,
    shape: Shape,
    cookie: u64,
    config: &Config,
) -> Option<(Choice, bool)> {
    // Without an address of its own in a family, the host has no route to the relay address.
    let v4 = |backend: &Backend| backend.via != via::TUNNEL || config.source4 != Ip4::NONE;
    let v6 = |backend: &Backend| backend.via != via::TUNNEL || config.source6 != Ip6::NONE;
    let port = (cookie as u16 ^ random() as u16).to_be_bytes();
    let mapped = asked.addr.unmapped().is_some();
    // The processes of a node are one client.
    let (client, client6) = match service.balance {
        balance::SOURCE => (config.source4, config.source6),
        _ => (Ip4::from_word(cookie as u32), Ip4::from_word(cookie as u32).mapped()),
    };
    if !mapped
        && flow::admits(service, config.source6)
        && let Some(choice) = pick::<V6>(service, service.pick6, client6, port, v6)
    {
        return Some((choice, false));
    }
    if (shape == Shape::V4 || mapped || is_loopback6(asked.addr))
        && flow::admits(service, config.source4.mapped())
    {
        let choice = pick::<V4>(service, service.pick4, client, port, v4)?;
        return Some((choice, true));
    }
    None
}

/// What the socket is to talk to: the task, or the relay address that leads into the tunnel.
#[inline(always)]
fn target(
    backend: &Backend,
    target: [u8; 2],
    published: [u8; 2],
    v4: bool,
    config: &Config,
) -> Endpoint {
    match (backend.via == via::TUNNEL, v4) {
        (true, true) => Endpoint { addr: V4::wide(config.relay4), port: published },
        (true, false) => Endpoint { addr: config.relay6, port: published },
        (false, true) => Endpoint { addr: V4::wide(backend.addr4), port: target },
        (false, false) => Endpoint { addr: backend.addr6, port: target },
    }
}

/// Whether an address is loopback, unspecified (which connects to loopback) or one of the host's.
#[inline(always)]
fn is_own(addr: Ip6) -> bool {
    let loopback = match addr.unmapped() {
        Some(v4) => v4 == Ip4::NONE || v4.octets()[0] == 127,
        None => is_loopback6(addr),
    };
    loopback || LOCAL.get_ptr(addr).is_some()
}

/// `::1` and `::`.
#[inline(always)]
fn is_loopback6(addr: Ip6) -> bool {
    let [high, low] = addr.halves();
    high == 0 && u64::from_be(low) <= 1
}

impl Call {
    #[inline(always)]
    fn protocol(self) -> u8 {
        // SAFETY: reading the context is what the verifier allows; so below. Volatile, since it
        // allows whole words only and the compiler would narrow the load.
        unsafe { (&raw const (*self.0).protocol).read_volatile() as u8 }
    }

    #[inline(always)]
    fn cookie(self) -> u64 {
        // SAFETY: takes the context.
        unsafe { generated::bpf_get_socket_cookie(self.0.cast()) }
    }

    /// The cookie of the process's network namespace.
    #[inline(always)]
    fn space(self) -> u64 {
        // SAFETY: takes the context.
        unsafe { generated::bpf_get_netns_cookie(self.0.cast()) }
    }

    #[inline(always)]
    fn endpoint(self, shape: Shape) -> Endpoint {
        // SAFETY: as above.
        unsafe {
            let port = (&raw const (*self.0).user_port).read_volatile() as u16;
            let addr = match shape {
                Shape::V4 => {
                    Ip4::from_word((&raw const (*self.0).user_ip4).read_volatile()).mapped()
                }
                Shape::V6 => {
                    let words = (&raw const (*self.0).user_ip6).cast::<u32>();
                    Ip6::from_words([
                        words.read_volatile(),
                        words.add(1).read_volatile(),
                        words.add(2).read_volatile(),
                        words.add(3).read_volatile(),
                    ])
                }
            };
            Endpoint { addr, port: port.to_ne_bytes() }
        }
    }

    #[inline(always)]
    fn set(self, shape: Shape, to: Endpoint) {
        let [a, b, c, d] = to.addr.words();
        // SAFETY: as above; writing these fields is what the programs are for.
        unsafe {
            match shape {
                Shape::V4 => {
                    (&raw mut (*self.0).user_ip4).write_volatile(d);
                }
                Shape::V6 => {
                    let words = (&raw mut (*self.0).user_ip6).cast::<u32>();
                    words.write_volatile(a);
                    words.add(1).write_volatile(b);
                    words.add(2).write_volatile(c);
                    words.add(3).write_volatile(d);
                }
            }
            let port = u32::from(u16::from_ne_bytes(to.port));
            (&raw mut (*self.0).user_port).write_volatile(port);
        }
    }
}
