//! TCP attempts and accepted connections.
//!
//! ```text
//!  connect ──► CONNECTING ──SYN──► SYN_SENT ──► established │ closed, with what the socket held
//!                  │                  └─RTO─► pending (once)
//!                  └─ released, or connected again, in state CLOSE ──► failed
//! ```
//!
//! Where both ends connect to each other at once, or a socket to itself, the kernel calls the connection passive at
//! both: each end is then an attempt that was established and a connection that was accepted.
//!
//! What a close means (refused, rejected, timeout, ...) is decided in the agent from what the socket held, where a test
//! can reach it.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTO_CB,
        BPF_SOCK_OPS_RTO_CB_FLAG, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE, BPF_TCP_LISTEN,
        BPF_TCP_SYN_RECV, BPF_TCP_SYN_SENT, bpf_sock,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::{SockAddrContext, SockContext, SockOpsContext},
};
use netaudit_ebpf::abi::{Address, FlowRecord, detail, flag, kind};

use crate::{
    attempts, listeners,
    maps::{PATHS, SOCKETS, emit_flow, forget, setting},
    socket::{Queued, Socket, address_of, cgroup_of, mark, now, queued_error, read},
};

const AF_INET: u32 = 2;

/// `connect` on a TCP socket, in the caller's context.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, socket: *mut bpf_sock, netns: u64, peer: Address, port: u16) {
    // SAFETY: the helper takes this context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: the caller took `socket` from its context.
    let Some(state) = (unsafe { attempts::begin(cookie, socket) }) else { return };
    // The socket's earlier attempt got no further than this hook.
    if state.is(mark::CONNECTING) {
        emit_failed(state, cookie);
    }
    state.identify(netns);
    state.started = now();
    // In steps of 1,024 ns: comes round after more than an hour.
    state.sequence = (state.started >> 10) as u32;
    state.peer = peer;
    state.peer_port = port;
    state.flags = state.flags & !(mark::SYN_SENT | mark::PENDING | mark::CONNECTION) | mark::CONNECTING;
    if state.is(mark::PATH) {
        // Not by value: that would go over the stack.
        let attempt: &Socket = state;
        let _ = PATHS.insert(cookie, attempt, 0);
    }
}

/// A multipath socket is being made. Its paths are told, and its accepted sockets inherit the mark.
#[inline(always)]
pub fn created_multipath(ctx: &SockContext) {
    // SAFETY: the context is the socket in this type of program.
    if let Some(state) = unsafe { SOCKETS.get_or_add(ctx.sock) } {
        state.flags |= mark::WATCHED;
    }
}

/// A multipath socket is being released. Its paths are the kernel's own sockets, whose release nothing shows; the first
/// is the one that the program's `connect` was about.
#[inline(always)]
pub fn release_paths(ctx: &SockContext) {
    let socket = address_of(ctx.sock);
    let first: u64 = read(socket + u64::from(setting!(mptcp_first)));
    if first == 0 {
        return;
    }
    let cookie: u64 = read(first + u64::from(setting!(sk_cookie)));
    if !release_attempt(cookie)
        && let Some(state) = PATHS.get_ptr(cookie)
    {
        // SAFETY: a value of the map. Whoever takes its place meanwhile is another attempt, and no invalid value.
        emit_failed(unsafe { &*state }, cookie);
        let _ = PATHS.remove(cookie);
    }
}

/// The socket is being released: a listener; or one whose attempt, if it sent no SYN, ends here. A socket in any other state
/// goes through [`operation`] afterwards.
#[inline(always)]
pub fn release(ctx: &SockContext) {
    // SAFETY: the verifier checks the access.
    match unsafe { (*ctx.sock).state } {
        BPF_TCP_LISTEN => return listeners::release(ctx),
        BPF_TCP_CLOSE => {}
        _ => return,
    }
    // SAFETY: the helper takes this context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if release_attempt(cookie) {
        return;
    }
    // SAFETY: the context is the socket in this type of program.
    let Some(state) = (unsafe { SOCKETS.get(ctx.sock) }) else { return };
    if state.is(mark::CONNECTING) {
        state.flags &= !mark::CONNECTING;
        emit_failed(state, cookie);
    }
}

/// The socket with this cookie is being released. Whether it has a slot in [`attempts`].
#[inline(always)]
fn release_attempt(cookie: u64) -> bool {
    let Some(state) = attempts::get(cookie) else { return false };
    if state.is(mark::CONNECTING) {
        emit_failed(state, cookie);
        attempts::end(cookie);
    }
    true
}

#[inline(always)]
fn emit_failed(state: &Socket, cookie: u64) {
    emit_flow(kind::TCP_FAILED, |record| {
        // SAFETY: `record` is reserved; every field is written.
        unsafe {
            (*record).kind = kind::TCP_FAILED;
            (*record).detail = 0;
            (*record).at = now();
            (*record).started = state.started;
            (*record).netns = state.netns;
            (*record).socket = cookie;
            (*record).sequence = state.sequence;
            (*record).flags = 0;
            (*record).local = Address([0; 4]);
            (*record).local_port = 0;
            (*record).remote = state.peer;
            (*record).remote_port = state.peer_port;
            (*record).requested = state.peer;
            (*record).requested_port = state.peer_port;
            state.tell_actor(record);
        }
    });
}

/// Everything that `sock_ops` tells. May run in a soft interrupt: identity comes from the socket's storage only.
#[inline(always)]
pub fn operation(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ctx),
        BPF_SOCK_OPS_TCP_LISTEN_CB => {
            if let Some(socket) = socket_of(ctx) {
                listeners::begin(ctx, socket);
            }
        }
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ctx),
        BPF_SOCK_OPS_RTO_CB => timer(ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => {
            let from = ctx.arg(0);
            // The latter is an attempt that met another one halfway.
            if from == BPF_TCP_SYN_SENT || from == BPF_TCP_SYN_RECV {
                closed(ctx);
            }
            // Nothing comes of this socket any more; the kernel's own ones are released without a word.
            attempts::end(cookie_of(ctx));
            if let Some(socket) = socket_of(ctx) {
                forget(socket);
            }
        }
        _ => {}
    }
}

#[inline(always)]
fn socket_of(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    // SAFETY: the verifier checks the access.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() { None } else { Some(socket) }
}

#[inline(always)]
fn cookie_of(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes this context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// The state of a socket that called `connect`.
#[inline(always)]
fn attempt_of(ctx: &SockOpsContext, cookie: u64) -> Option<&'static mut Socket> {
    match attempts::get(cookie) {
        // SAFETY: a socket of the context, tested for null.
        None => unsafe { SOCKETS.get(socket_of(ctx)?) },
        slot => slot,
    }
}

/// The SYN is about to be sent.
#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    let cookie = cookie_of(ctx);
    let Some(state) = attempt_of(ctx, cookie) else { return };
    if !state.is(mark::CONNECTING) {
        return;
    }
    if state.is(mark::PATH) {
        let _ = PATHS.remove(cookie);
    }
    state.flags = state.flags & !mark::CONNECTING | mark::SYN_SENT;
    ask_for(ctx, BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTO_CB_FLAG);
}

/// Has the kernel call for these events of the socket too. Other programs own flags of it: adds to them, and never takes away.
#[inline(always)]
fn ask_for(ctx: &SockOpsContext, flags: u32) {
    let _ = ctx.set_cb_flags((ctx.cb_flags() | flags) as i32);
}

#[inline(always)]
fn established(ctx: &SockOpsContext) {
    let cookie = cookie_of(ctx);
    let Some(state) = attempt_of(ctx, cookie) else { return };
    if !state.is(mark::SYN_SENT) {
        return;
    }
    state.flags = state.flags & !(mark::SYN_SENT | mark::PENDING) | mark::ESTABLISHED;
    emit_attempt(ctx, cookie, state, kind::TCP_ESTABLISHED, first_received(ctx), flag::ANSWERED);
}

/// The number of the first byte that the other end sends. Both ends know it, and nobody else can: it shows which ends
/// belong together.
#[inline(always)]
fn first_received(ctx: &SockOpsContext) -> u32 {
    // SAFETY: the verifier checks the access.
    unsafe { (*ctx.ops).rcv_nxt }
}

/// The same at the other end: the number of the first byte that this one sends.
#[inline(always)]
fn first_sent(ctx: &SockOpsContext) -> u32 {
    // SAFETY: the verifier checks the access.
    unsafe { (*ctx.ops).snd_nxt }
}

/// The retransmission timer fired.
#[inline(always)]
fn timer(ctx: &SockOpsContext) {
    let cookie = cookie_of(ctx);
    let Some(state) = attempt_of(ctx, cookie) else { return };
    if state.flags & (mark::SYN_SENT | mark::PENDING) != mark::SYN_SENT {
        return;
    }
    state.flags |= mark::PENDING;
    emit_attempt(ctx, cookie, state, kind::TCP_PENDING, 0, 0);
}

/// SYN_SENT or SYN_RECV → CLOSE: tells what the socket holds.
#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let Some(socket) = socket_of(ctx) else { return };
    let cookie = cookie_of(ctx);
    let Some(state) = attempt_of(ctx, cookie) else { return };
    if !state.is(mark::SYN_SENT) {
        return;
    }
    state.flags &= !(mark::SYN_SENT | mark::PENDING);

    const ECONNREFUSED: u32 = 111;
    let mut flags = 0;
    // SAFETY: the verifier checks the access.
    if unsafe { (*ctx.ops).segs_in } > 0 {
        flags |= flag::ANSWERED;
    }
    let socket = address_of(socket);
    let (error, soft) = errors_of(socket);
    let (mut icmp_type, mut icmp_code) = (0, 0);
    // A refusal that came in a segment is a RST. All else may have come by ICMP.
    if (flags & flag::ANSWERED == 0 || error != ECONNREFUSED)
        && let Some((_, kind, code)) = queued_error(socket, Queued::First)
    {
        flags |= flag::ICMP;
        icmp_type = kind;
        icmp_code = code;
    }
    let detail = detail::pack(error as u8, soft as u8, icmp_type, icmp_code);
    emit_attempt(ctx, cookie, state, kind::TCP_CLOSED, detail, flags);
}

/// The error of the socket at `socket`, and the soft one. In one read where the kernel has them side by side: reads are most
/// of what a closed attempt costs.
#[inline(always)]
fn errors_of(socket: u64) -> (u32, u32) {
    let (hard, soft) = (setting!(sk_err), setting!(sk_err_soft));
    if soft == hard + size_of::<u32>() as u32 {
        let [error, soft]: [u32; 2] = read(socket + u64::from(hard));
        (error, soft)
    } else {
        (read(socket + u64::from(hard)), read(socket + u64::from(soft)))
    }
}

#[inline(always)]
fn emit_attempt(ctx: &SockOpsContext, cookie: u64, state: &Socket, kind: u32, detail: u32, flags: u16) {
    emit_flow(kind, |record| {
        // SAFETY: `record` is reserved; every field is written.
        unsafe {
            (*record).kind = kind;
            (*record).detail = detail;
            (*record).at = now();
            (*record).started = state.started;
            (*record).netns = state.netns;
            (*record).socket = cookie;
            (*record).sequence = state.sequence;
            (*record).flags = flags;
            (*record).requested = state.peer;
            (*record).requested_port = state.peer_port;
            tell_ends(ctx, record);
            state.tell_actor(record);
        }
    });
}

/// A listener's connection finished its handshake. Or an attempt that met another one halfway did, and its state is its own.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let Some(socket) = socket_of(ctx) else { return };
    let cookie = cookie_of(ctx);
    let at = now();
    // SAFETY: the helper takes this context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let state = if let Some(state) = halfway(ctx, cookie) {
        emit_attempt(ctx, cookie, state, kind::TCP_ESTABLISHED, first_received(ctx), flag::ANSWERED);
        state.flags = state.flags & !(mark::SYN_SENT | mark::PENDING) | mark::ESTABLISHED;
        Some(state)
    } else {
        forget(socket);
        // SAFETY: a socket of the context, tested for null.
        let mut state = match unsafe { SOCKETS.get(socket) } {
            None => of_listener(ctx, socket, cookie, netns),
            copied => copied,
        };
        if let Some(state) = &mut state {
            // What else the listener was is nothing to its connections.
            state.flags = state.flags & mark::ACTOR | mark::ACCEPTED;
            state.started = at;
            state.sequence = 0;
        }
        state
    };
    let actor = state.filter(|state| state.is(mark::ACTOR));
    // Known even for a listener that nothing marked.
    let cgroup = if actor.is_some() { 0 } else { cgroup_of(address_of(socket)) };
    emit_flow(kind::TCP_ACCEPTED, |record| {
        // SAFETY: `record` is reserved; every field is written.
        unsafe {
            (*record).kind = kind::TCP_ACCEPTED;
            (*record).detail = first_sent(ctx);
            (*record).at = at;
            (*record).started = at;
            (*record).netns = netns;
            (*record).socket = cookie;
            (*record).sequence = 0;
            (*record).flags = flag::ANSWERED;
            (*record).cgroup = cgroup;
            (*record).pid = 0;
            (*record).comm = [0; 16];
            tell_ends(ctx, record);
            (*record).requested = (*record).remote;
            (*record).requested_port = (*record).remote_port;
            if let Some(state) = actor {
                state.tell_actor(record);
            }
        }
    });
}

/// State for the connection of a listener that has none to copy. A look must know that it is told, even where nobody knows the
/// listener.
#[inline(always)]
fn of_listener(
    ctx: &SockOpsContext,
    socket: *mut bpf_sock,
    cookie: u64,
    netns: u64,
) -> Option<&'static mut Socket> {
    // Of one that no process takes, nothing else shows the end.
    let in_slot = || ask_for(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
    // SAFETY: the caller took `socket` from the context, and tested it for null.
    let state = unsafe { attempts::accept(cookie, socket, in_slot) }?;
    // SAFETY: the verifier checks the access.
    let (family, port) = unsafe { ((*ctx.ops).family, (*ctx.ops).local_port) };
    let address = address_of(socket);
    listeners::tell(state, address, netns, local_address(ctx), port as u16, family == AF_INET);
    Some(state)
}

/// The attempt of a socket that is said to accept, if it has one that is open: it has met another one halfway.
#[inline(always)]
fn halfway(ctx: &SockOpsContext, cookie: u64) -> Option<&'static mut Socket> {
    // Attempts have this flag, and listeners hardly ever: the cheapest question first.
    if ctx.cb_flags() & BPF_SOCK_OPS_STATE_CB_FLAG == 0 {
        return None;
    }
    attempt_of(ctx, cookie).filter(|state| state.is(mark::SYN_SENT))
}

/// Writes both ends as the socket holds them now.
///
/// # Safety
///
/// `record` must point to a record.
#[inline(always)]
unsafe fn tell_ends(ctx: &SockOpsContext, record: *mut FlowRecord) {
    // SAFETY: by contract; the verifier checks the context's fields.
    unsafe {
        let ops = ctx.ops;
        (*record).local = local_address(ctx);
        (*record).remote = if (*ops).family == AF_INET {
            Address::v4((*ops).remote_ip4)
        } else {
            words(&raw const (*ops).remote_ip6)
        };
        (*record).local_port = (*ops).local_port as u16;
        // The port's two bytes stand in the upper half of the word.
        (*record).remote_port = u32::from_be((*ops).remote_port) as u16;
    }
}

#[inline(always)]
fn local_address(ctx: &SockOpsContext) -> Address {
    // SAFETY: the verifier checks the context's fields.
    unsafe {
        let ops = ctx.ops;
        if (*ops).family == AF_INET {
            Address::v4((*ops).local_ip4)
        } else {
            words(&raw const (*ops).local_ip6)
        }
    }
}

/// Reads an address out of a context, word for word: the verifier allows no other width for all kernels.
///
/// # Safety
///
/// `address` must point to an address of the context.
#[inline(always)]
pub unsafe fn words(address: *const [u32; 4]) -> Address {
    let word = address.cast::<u32>();
    // SAFETY: by contract.
    unsafe {
        Address([
            word.read_volatile(),
            word.add(1).read_volatile(),
            word.add(2).read_volatile(),
            word.add(3).read_volatile(),
        ])
    }
}
