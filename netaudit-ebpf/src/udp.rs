//! UDP: the first datagram of a socket to a destination, and the first that a server reads from an address; and each
//! of them again while it goes on, once the interval [`Settings::udp_retell`] has passed.
//!
//! Told again, since what the agent makes of a flow may change: policies come later than flows, and an address that
//! one pod had goes to another. A flow that goes on is told at most once an interval, and by its first datagram after
//! the interval's end, be it one that is sent or an answer whose sender is read; the sequence number goes up each time.
//!
//! Hooks fire once a message, so each must leave as early as it can. What a socket did last is in its own storage;
//! further peers are in a map that forgets the least used. Forgetting costs a record too many, never a missing one.
//!
//! [`Settings::udp_retell`]: netaudit_ebpf::abi::Settings::udp_retell
//!
//! Who asked and who answered is known from the order on the socket: a datagram from a peer to which this socket has
//! sent is an answer, and so is one sent to a peer from which it has read. Neither is a flow of its own.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::{BtfTracePointContext, FEntryContext, SockAddrContext},
};
use netaudit_ebpf::abi::{Address, SWITCH_UDP_SEND, kind};

use crate::{
    answers,
    maps::{PEERS, SOCKETS, SWITCHES, emit_flow, setting},
    socket::{Socket, address_of, mark, now, read, ticks},
    tcp::words,
};

/// A peer of a socket beyond the latest one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PeerKey {
    socket: u64,
    address: Address,
    port: u16,
    role: u16,
    reserved: u32,
}

impl PeerKey {
    /// A destination, by its port too: each is a flow of its own.
    #[inline(always)]
    pub fn destination(socket: u64, address: Address, port: u16) -> Self {
        Self { socket, address, port, role: 1, reserved: 0 }
    }

    /// A client, by its address only: its port changes with every request.
    #[inline(always)]
    fn client(socket: u64, address: Address) -> Self {
        Self { socket, address, port: 0, role: 2, reserved: 0 }
    }
}

/// What is kept of it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Peer {
    /// Of a client, the ports that it used; of a destination nothing.
    ports: Ports,
    /// When its flow was last told, by [`ticks`].
    told: u32,
    /// Of a destination, the sequence number of its latest flow while no answer to it was told; else 0.
    unanswered: u32,
}

impl Peer {
    #[inline(always)]
    fn client(ports: Ports, told: u32) -> Self {
        Self { ports, told, unanswered: 0 }
    }

    #[inline(always)]
    fn destination(port: u16, sequence: u32) -> Self {
        Self { ports: Ports::one(port), told: ticks(), unanswered: sequence }
    }
}

/// Whether a flow that was last told at `told` is to be told again.
#[inline(always)]
fn is_due(told: u32) -> bool {
    ticks().wrapping_sub(told) > setting!(udp_retell)
}

/// The latest ports of a client, for telling answers from flows.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ports {
    recent: [u16; Self::ROOM],
    /// How many were noted; beyond the room the oldest are gone.
    noted: u32,
}

impl Ports {
    const ROOM: usize = 8;
    /// Below it a port belongs to a service, and no client sends from there unless it means to.
    const FIRST_UNPRIVILEGED: u16 = 1024;

    #[inline(always)]
    fn one(port: u16) -> Self {
        Self { recent: [port, 0, 0, 0, 0, 0, 0, 0], noted: 1 }
    }

    #[inline(always)]
    fn holds(&self, port: u16) -> bool {
        let r = &self.recent;
        r[0] == port
            || r[1] == port
            || r[2] == port
            || r[3] == port
            || r[4] == port
            || r[5] == port
            || r[6] == port
            || r[7] == port
    }

    /// Whether a datagram to `port` of this client can only be an answer: it asked from there, or it asked from more
    /// ports than there is room for.
    #[inline(always)]
    fn may_have_asked(&self, port: u16) -> bool {
        self.holds(port) || (self.noted > Self::ROOM as u32 && port >= Self::FIRST_UNPRIVILEGED)
    }

    #[inline(always)]
    fn note(&mut self, port: u16) {
        self.recent[(self.noted & (Self::ROOM as u32 - 1)) as usize] = port;
        // Stops where the count would come round to a small number again.
        if self.noted < u32::MAX - 8 {
            self.noted += 1;
        } else {
            self.noted -= 7;
        }
    }
}

/// `connect` on a UDP socket: sends nothing by itself. Resolvers connect to every candidate to learn their own
/// address, so a flow begins with the first datagram where that can be seen, and here where it cannot.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, socket: *mut bpf_sock, netns: u64, peer: Address, port: u16) {
    // Nobody listens on port 0; it is how one asks for a route.
    if port == 0 {
        return;
    }
    // SAFETY: the caller took `socket` from its context.
    let Some(state) = (unsafe { SOCKETS.get_or_create(socket) }) else { return };
    // SAFETY: the helper takes this context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if is_answer(state, cookie, peer, port) {
        state.flags &= !(mark::CONNECTED | mark::JOINED);
        return;
    }
    state.identify(netns);
    state.started = now();
    state.peer = peer;
    state.peer_port = port;
    state.unanswered = 0;
    if SWITCHES.get(SWITCH_UDP_SEND).is_some_and(|on| *on != 0) {
        state.flags = state.flags & !(mark::SENT | mark::ELSEWHERE) | mark::CONNECTED | mark::JOINED;
        return;
    }
    state.flags = state.flags & !mark::CONNECTED | mark::SENT;
    state.peer_told = ticks();
    state.sequence += 1;
    state.unanswered = state.sequence;
    // SAFETY: `socket` is of the context.
    let (local, local_port) = unsafe { local_of(socket) };
    tell(kind::UDP_SENT, state, cookie, (local, local_port), (peer, port), (peer, port));
}

/// A datagram with a destination of its own is about to be sent.
#[inline(always)]
pub fn send(ctx: &SockAddrContext, peer: Address, port: u16) {
    // SAFETY: the verifier checks the access; the socket of this context is never null.
    let socket = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    // SAFETY: a socket of the context.
    let Some(state) = (unsafe { SOCKETS.get_or_create(socket) }) else { return };
    let latest = state.peer == peer && state.peer_port == port;
    if !latest && state.flags & (mark::CONNECTED | mark::JOINED) != 0 {
        state.flags |= mark::ELSEWHERE;
    }
    let again = latest && state.is(mark::SENT);
    if again && !is_due(state.peer_told) {
        return;
    }
    // SAFETY: the helpers take this context.
    let (cookie, netns) =
        unsafe { (bpf_get_socket_cookie(ctx.as_ptr()), bpf_get_netns_cookie(ctx.as_ptr())) };
    let sequence = state.sequence + 1;
    // What was told once is a flow for good, and no answer.
    if again {
        state.peer_told = ticks();
        state.unanswered = sequence;
    } else if state.is(mark::SENT) || state.is(mark::CONNECTED) && !latest {
        let key = PeerKey::destination(cookie, peer, port);
        if let Some(known) = PEERS.get_ptr_mut(key) {
            // SAFETY: a value of the map; whoever writes beside us leaves another time, which is as good.
            unsafe {
                if !is_due((*known).told) {
                    return;
                }
                (*known).told = ticks();
                (*known).unanswered = sequence;
            }
        } else {
            if is_answer(state, cookie, peer, port) {
                return;
            }
            let _ = PEERS.insert(key, Peer::destination(port, sequence), 0);
            state.flags |= mark::SEVERAL;
        }
    } else {
        if is_answer(state, cookie, peer, port) {
            return;
        }
        state.peer = peer;
        state.peer_port = port;
        state.peer_told = ticks();
        state.unanswered = sequence;
        state.flags = state.flags & !mark::CONNECTED | mark::SENT;
    }
    state.identify(netns);
    state.started = now();
    state.sequence = sequence;
    // SAFETY: `socket` is of the context.
    let (local, local_port) = unsafe { local_of(socket) };
    tell(kind::UDP_SENT, state, cookie, (local, local_port), (peer, port), (peer, port));
}

/// `sock_send_length`: a socket of any kind has sent. The first time on a connected UDP socket begins its flow, and a
/// later one may tell it again.
///
/// Sockets of all cgroups come here. Those that are not watched have none of the marks that are asked for: only
/// [`connect`] sets them, which is attached to the watched cgroup, and a socket stays in the cgroup it was made in. The
/// same holds for [`sending`].
#[inline(always)]
pub fn sent(ctx: &BtfTracePointContext) {
    let socket: *mut bpf_sock = ctx.arg(0);
    // SAFETY: the tracepoint's first argument is the socket.
    let Some(state) = (unsafe { SOCKETS.get(socket) }) else { return };
    if state.flags & (mark::CONNECTED | mark::JOINED) == 0 {
        return;
    }
    // The message had an address of its own.
    if state.is(mark::ELSEWHERE) {
        state.flags &= !mark::ELSEWHERE;
        return;
    }
    if state.unanswered != 0 {
        answers::sends_again(state, socket);
    }
    if !is_connected_due(state) {
        return;
    }
    let result: i32 = ctx.arg(1);
    if result >= 0 {
        connected_send(state, socket);
        // The peer's kernel, if it is this one, may have answered while the datagram was being sent.
        answers::error(state, socket);
    }
}

/// `udp_sendmsg` or `udpv6_sendmsg` was entered: the same for kernels without that tracepoint (before 6.3).
#[inline(always)]
pub fn sending(ctx: &FEntryContext) {
    let socket: *mut bpf_sock = ctx.arg(0);
    // SAFETY: the function's first argument is the socket.
    let Some(state) = (unsafe { SOCKETS.get(socket) }) else { return };
    if state.flags & (mark::CONNECTED | mark::JOINED) == 0 {
        return;
    }
    if state.unanswered != 0 {
        answers::sends_again(state, socket);
    }
    if !is_connected_due(state) {
        return;
    }
    // A message with an address goes elsewhere, and `send` sees it.
    let message: u64 = ctx.arg(1);
    let name: u64 = read(message + u64::from(setting!(message_name)));
    if name == 0 {
        connected_send(state, socket);
    }
}

/// Whether a message of a connected socket is to be told: its first, or the first after the interval.
#[inline(always)]
fn is_connected_due(state: &Socket) -> bool {
    state.is(mark::CONNECTED) || state.is(mark::SENT) && is_due(state.peer_told)
}

/// A connected socket sends, and it is to be told.
#[inline(always)]
fn connected_send(state: &mut Socket, socket: *mut bpf_sock) {
    // SAFETY: the helper takes a socket in this type of program.
    let cookie = unsafe { bpf_get_socket_cookie(socket.cast()) };
    state.flags = state.flags & !mark::CONNECTED | mark::SENT;
    state.peer_told = ticks();
    state.sequence += 1;
    state.unanswered = state.sequence;
    state.started = now();
    let netns = state.netns;
    state.identify(netns);

    let (local, remote) = ends_of(address_of(socket));
    // Another program may have rewritten it after us.
    let asked = (state.peer, state.peer_port);
    tell(kind::UDP_SENT, state, cookie, local, remote, asked);
}

/// Both ends of the connected socket at `address`.
#[inline(always)]
fn ends_of(address: u64) -> ((Address, u16), (Address, u16)) {
    let family: u16 = read(address + u64::from(setting!(sk_family)));
    let (local, remote) = if family == AF_INET as u16 {
        (
            Address::v4(read(address + u64::from(setting!(sk_address4)))),
            Address::v4(read(address + u64::from(setting!(sk_peer4)))),
        )
    } else {
        (
            Address(read(address + u64::from(setting!(sk_address6)))),
            Address(read(address + u64::from(setting!(sk_peer6)))),
        )
    };
    let local_port: u16 = read(address + u64::from(setting!(sk_num)));
    let remote_port: u16 = read(address + u64::from(setting!(sk_peer_port)));
    ((local, local_port), (remote, u16::from_be(remote_port)))
}

/// A datagram was read, and its sender told to the program.
#[inline(always)]
pub fn receive(ctx: &SockAddrContext, sender: Address, port: u16) {
    // SAFETY: the verifier checks the access; the socket of this context is never null.
    let socket = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    // SAFETY: a socket of the context.
    let Some(state) = (unsafe { SOCKETS.get(socket) }) else { return };
    // SAFETY: the helper takes this context.
    let cookie_of = |ctx: &SockAddrContext| unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // The kernel lets nothing through to a connected socket but what its peer sends, whatever address was asked for.
    // SAFETY: the verifier checks the access.
    let connected = state.is(mark::JOINED) && unsafe { (*socket).state } == ESTABLISHED;
    if state.is(mark::SENT) && (connected || state.peer == sender && state.peer_port == port) {
        if state.unanswered != 0 {
            answers::read_by_program(state, cookie_of(ctx));
        } else if is_due(state.peer_told) {
            // Who has asked once and only listens since, as to a stream.
            state.peer_told = ticks();
            let asked = (state.peer, state.peer_port);
            let ends = if connected {
                ends_of(address_of(socket))
            } else {
                // SAFETY: `socket` is of the context.
                (unsafe { local_of(socket) }, asked)
            };
            goes_on(state, cookie_of(ctx), ends, asked);
        }
        return;
    }
    if state.flags & (mark::BOUND | mark::SEVERAL) == 0 {
        return;
    }
    let known = state.is(mark::RECEIVED);
    let latest = known && state.sender == sender;
    if latest && state.sender_ports.holds(port) && !is_due(state.sender_told) {
        return;
    }
    let cookie = cookie_of(ctx);
    if state.is(mark::SEVERAL)
        && let Some(peer) = PEERS.get_ptr_mut(PeerKey::destination(cookie, sender, port))
    {
        // SAFETY: a value of the map; whoever writes beside us tells of the same answer.
        let sequence = unsafe { (*peer).unanswered };
        if sequence != 0 {
            // SAFETY: as above.
            unsafe { (*peer).unanswered = 0 };
            answers::answered(sequence, cookie);
        // SAFETY: as above.
        } else if is_due(unsafe { (*peer).told }) {
            // SAFETY: as above.
            unsafe { (*peer).told = ticks() };
            // SAFETY: `socket` is of the context.
            let ends = (unsafe { local_of(socket) }, (sender, port));
            goes_on(state, cookie, ends, (sender, port));
        }
        return;
    }
    if !state.is(mark::BOUND) {
        return;
    }
    let mut met = latest;
    if known && !latest {
        let former = Peer::client(state.sender_ports, state.sender_told);
        let _ = PEERS.insert(PeerKey::client(cookie, state.sender), former, 0);
        if let Some(peer) = PEERS.get_ptr(PeerKey::client(cookie, sender)) {
            state.sender = sender;
            // SAFETY: a value of the map; whoever writes beside us leaves other ports, not an invalid value.
            unsafe {
                state.sender_ports = (*peer).ports;
                state.sender_told = (*peer).told;
            }
            met = true;
        }
    }
    if met {
        if !state.sender_ports.holds(port) {
            state.sender_ports.note(port);
        }
        if !is_due(state.sender_told) {
            return;
        }
    } else {
        state.sender = sender;
        state.sender_ports = Ports::one(port);
    }
    state.sender_told = ticks();
    state.flags |= mark::RECEIVED;
    state.started = now();
    state.sequence += 1;
    // SAFETY: `socket` is of the context.
    let (local, local_port) = unsafe { local_of(socket) };
    tell(kind::UDP_RECEIVED, state, cookie, (local, local_port), (sender, port), (sender, port));
}

/// An answer came for a flow that was told long ago, and answered: it is told again, as a datagram that is sent would do.
#[inline(always)]
fn goes_on(
    state: &mut Socket,
    cookie: u64,
    (local, remote): ((Address, u16), (Address, u16)),
    asked: (Address, u16),
) {
    state.started = now();
    state.sequence += 1;
    tell(kind::UDP_SENT, state, cookie, local, remote, asked);
    answers::answered(state.sequence, cookie);
}

/// Whether a datagram from this socket to `peer` answers one that was read from there.
#[inline(always)]
fn is_answer(state: &Socket, cookie: u64, peer: Address, port: u16) -> bool {
    // A flow of its own that is taken for an answer here is told with its first datagram after that time.
    if state.is(mark::FORMER) && port >= Ports::FIRST_UNPRIVILEGED && now() < setting!(answers_until) {
        return true;
    }
    if !state.is(mark::BOUND | mark::RECEIVED) {
        return false;
    }
    if state.sender == peer {
        return state.sender_ports.may_have_asked(port);
    }
    match PEERS.get_ptr(PeerKey::client(cookie, peer)) {
        // SAFETY: a value of the map.
        Some(client) => unsafe { (*client).ports.may_have_asked(port) },
        None => false,
    }
}

const AF_INET: u32 = 2;
/// The state of a connected socket of any protocol.
pub const ESTABLISHED: u32 = 1;

/// This end, as far as it is chosen.
///
/// # Safety
///
/// `socket` must be a socket of the context.
#[inline(always)]
unsafe fn local_of(socket: *mut bpf_sock) -> (Address, u16) {
    // SAFETY: by contract; the verifier checks the fields.
    unsafe {
        let port = (*socket).src_port as u16;
        if (*socket).family == AF_INET {
            (Address::v4((*socket).src_ip4), port)
        } else {
            (words(&raw const (*socket).src_ip6), port)
        }
    }
}

#[inline(always)]
fn tell(
    kind: u32,
    state: &Socket,
    cookie: u64,
    local: (Address, u16),
    remote: (Address, u16),
    requested: (Address, u16),
) {
    emit_flow(kind, |record| {
        // SAFETY: `record` is reserved; every field is written.
        unsafe {
            (*record).kind = kind;
            (*record).detail = 0;
            (*record).at = state.started;
            (*record).started = state.started;
            (*record).netns = state.netns;
            (*record).socket = cookie;
            (*record).sequence = state.sequence;
            (*record).flags = 0;
            (*record).local = local.0;
            (*record).local_port = local.1;
            (*record).remote = remote.0;
            (*record).remote_port = remote.1;
            (*record).requested = requested.0;
            (*record).requested_port = requested.1;
            state.tell_actor(record);
        }
    });
}

/// The v4 address and port that the program named.
#[inline(always)]
pub fn named4(ctx: &SockAddrContext) -> (Address, u16) {
    // SAFETY: the verifier checks the fields.
    unsafe { (Address::v4((*ctx.sock_addr).user_ip4), port_of(ctx.sock_addr)) }
}

/// The v6 address and port that the program named.
#[inline(always)]
pub fn named6(ctx: &SockAddrContext) -> (Address, u16) {
    // SAFETY: the verifier checks the fields.
    unsafe { (words(&raw const (*ctx.sock_addr).user_ip6), port_of(ctx.sock_addr)) }
}

#[inline(always)]
unsafe fn port_of(ctx: *const bpf_sock_addr) -> u16 {
    // SAFETY: by contract of the callers. The two bytes in network order stand in the lower half of the word.
    u16::from_be(unsafe { (*ctx).user_port } as u16)
}
