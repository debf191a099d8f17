//! What comes back for a UDP flow that was told as sent: an answer, or an ICMP error.
//!
//! Nothing runs for each packet that arrives. An answer is noticed
//!
//! - when the program reads it and asks from whom it is, which shows which of the socket's flows it answers;
//! - else, of the one flow of a socket, when the socket sends again or closes, by what the kernel keeps in a socket:
//!   which processor last received for it, and when it was first read from. Neither is ever reset, and neither says from
//!   whom: of a second flow they prove nothing.
//!
//! An error is noticed when the kernel reports it to the socket. It does so to a connected socket, for which it has
//! compared the peer's address, and to one that asks for errors.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    helpers::generated::bpf_get_socket_cookie,
    programs::{BtfTracePointContext, SockContext},
};
use netaudit_ebpf::abi::{Address, AnswerRecord, detail, flag, kind};

use crate::{
    maps::{SOCKETS, emit, setting},
    socket::{Queued, Socket, address_of, mark, now, queued_error, read},
};

/// The program has read an answer to the flow to `peer`.
#[inline(always)]
pub fn read_by_program(state: &mut Socket, cookie: u64) {
    let sequence = state.unanswered;
    state.unanswered = 0;
    answered(sequence, cookie);
}

/// Tells an answer to the flow with this number.
#[inline(always)]
pub fn answered(sequence: u32, cookie: u64) {
    emit_answer(kind::UDP_ANSWERED, (0, 0), sequence, cookie);
}

/// A connected socket sends again: what was sent before may have been answered.
#[inline(always)]
pub fn sends_again(state: &mut Socket, socket: *mut bpf_sock) {
    if !is_only_flow(state) {
        return;
    }
    // SAFETY: the helper takes a socket in this type of program.
    let cookie = unsafe { bpf_get_socket_cookie(socket.cast()) };
    look(state, address_of(socket), cookie);
}

/// A UDP socket is being released.
#[inline(always)]
pub fn release(ctx: &SockContext) {
    // SAFETY: the context is the socket in this type of program.
    let Some(state) = (unsafe { SOCKETS.get(ctx.sock) }) else { return };
    if !is_only_flow(state) {
        return;
    }
    // SAFETY: the helper takes this context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    look(state, address_of(ctx.sock), cookie);
}

/// Whether the unanswered flow is the only one that was ever told of the socket.
#[inline(always)]
fn is_only_flow(state: &Socket) -> bool {
    state.unanswered == 1 && state.sequence == 1
}

/// Whether a datagram was ever read from the socket at this address, in whatever way.
#[inline(always)]
pub fn has_read(socket: u64) -> bool {
    /// `SK_DEFAULT_STAMP`: a second before the beginning of time. The first read replaces it (`sock_recv_cmsgs`).
    const NEVER_READ: i64 = -1_000_000_000;
    let stamp: i64 = read(socket + u64::from(setting!(sk_stamp)));
    stamp != NEVER_READ
}

/// Looks for an answer in what the kernel keeps in the socket.
#[inline(always)]
fn look(state: &mut Socket, socket: u64, cookie: u64) {
    const NEVER_RECEIVED: i32 = -1;
    let processor: i32 = read(socket + u64::from(setting!(sk_incoming_cpu)));
    // Only connected sockets keep the first. What a bound one read may have been asked by anybody.
    let came =
        state.is(mark::JOINED) && processor != NEVER_RECEIVED || !state.is(mark::BOUND) && has_read(socket);
    if came {
        read_by_program(state, cookie);
    }
}

/// `inet_sk_error_report`: the kernel reports an error to a socket, of any protocol and cgroup. Those that wait for no
/// answer leave at once.
#[inline(always)]
pub fn reported(ctx: &BtfTracePointContext) {
    let socket: *mut bpf_sock = ctx.arg(0);
    // SAFETY: the tracepoint's first argument is the socket.
    let Some(state) = (unsafe { SOCKETS.get(socket) }) else { return };
    if state.unanswered != 0 {
        error(state, socket);
    }
}

/// Tells the error that the socket holds, if it is one that answers its flow.
#[inline(always)]
pub fn error(state: &mut Socket, socket: *mut bpf_sock) {
    const EMSGSIZE: u32 = 90;
    // Of an unconnected socket it may be of any destination, or of an answer to a client.
    if !state.is(mark::JOINED) && state.flags & (mark::SEVERAL | mark::RECEIVED) != 0 {
        return;
    }
    let address = address_of(socket);
    let (error, mut flags, icmp) = match queued_error(address, Queued::Last) {
        Some((error, kind, code)) => (error, flag::ICMP, (kind, code)),
        None => (read(address + u64::from(setting!(sk_err))), 0, (0, 0)),
    };
    // That a packet must be smaller is no answer to it.
    if error == 0 || error == EMSGSIZE {
        return;
    }
    if state.peer.0[2] == Address::MAPPED && state.peer.0[0] == 0 && state.peer.0[1] == 0 {
        flags |= flag::V4;
    }
    let sequence = state.unanswered;
    state.unanswered = 0;
    // SAFETY: the helper takes a socket in this type of program.
    let cookie = unsafe { bpf_get_socket_cookie(socket.cast()) };
    let detail = detail::pack(error as u8, 0, icmp.0, icmp.1);
    emit_answer(kind::UDP_ERROR, (detail, flags), sequence, cookie);
}

#[inline(always)]
fn emit_answer(kind: u32, (detail, flags): (u32, u16), sequence: u32, cookie: u64) {
    emit::<AnswerRecord>(kind, |record| {
        // SAFETY: `record` is reserved; every field is written.
        unsafe {
            (*record).kind = kind;
            (*record).detail = detail;
            (*record).at = now();
            (*record).socket = cookie;
            (*record).sequence = sequence;
            (*record).flags = flags.into();
        }
    });
}
