//! Connections that are open, by a look through all open files: those that hooks told, and those from before the programs.
//!
//! ```text
//!  no hook told it ──look──► FOUND, then ──the agent has written all that was found until then──► told
//!                    told as not told before,                     told as told, to whoever comes later
//!                    by each look
//! ```
//!
//! So an agent that is killed after a look leaves its finds to the next one. It takes what it is told again for new only if it has
//! not heard of it itself.
//!
//! Which end a connection is, is known from the hook that told it. Of one from before, the kernel keeps three traces:
//!
//! - Who connects without having bound gets a port that `connect` chose, in a bucket that no bind has touched (both its
//!   reuse marks are -1), and only such sockets are in it. An accepted socket is in the bucket of its listener, which was bound.
//! - Who bound a port of its own choice carries that as a lock, which an accepted socket does not inherit.
//! - An accepted socket keeps the interface over which its handshake came, where others keep one for multicast, which the
//!   kernel refuses to set for TCP: it is 0 for all that connected.

use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};
use netaudit_ebpf::abi::{Address, FlowRecord, KEPT_TOLD, NO_FIELD, SWITCH_OPEN, flag, kind, open};

use crate::{
    answers, attempts,
    maps::{KEPT, SWITCHES, setting},
    scan::{Held, SOCK_BINDPORT_LOCK, cgroup_of_task, comm_of_task, locks_of, pid_of_task},
    socket::{Socket, cgroup_id, mark, now, read},
};

const AF_INET: u16 = 2;

/// Established, or closed by one end only: data may flow. Not those that both ends have closed.
#[inline(always)]
pub fn is_open(state: u8) -> bool {
    const ESTABLISHED: u8 = 1;
    const FIN_WAIT1: u8 = 4;
    const FIN_WAIT2: u8 = 5;
    const CLOSE_WAIT: u8 = 8;
    state == ESTABLISHED || state == FIN_WAIT1 || state == FIN_WAIT2 || state == CLOSE_WAIT
}

/// Whether looks tell of connections now.
#[inline(always)]
pub fn is_asked() -> bool {
    SWITCHES.get(SWITCH_OPEN).is_some_and(|on| *on != 0)
}

/// The moment up to which finds have been told.
#[inline(always)]
fn told_until() -> u64 {
    KEPT.get(KEPT_TOLD).copied().unwrap_or(0)
}

/// A task has a socket of a connection.
///
/// # Safety
///
/// `seq` must be the context's, and the rest as for [`Held`]. `connection` is the address of the TCP
/// socket: the held one itself, or of a multipath socket the first path.
#[inline(always)]
pub unsafe fn found(seq: *mut seq_file, held: Held, connection: u64, task: u64) {
    // SAFETY: by contract.
    let cookie = unsafe { held.cookie() };
    let mut attempt = attempts::get(cookie);
    if attempt.is_none() && setting!(sockets_untrusted) != 0 && connection != held.address {
        // An accepted multipath socket has no copy of its listener's state then: its first path was told.
        let path: u64 = read(connection + u64::from(setting!(sk_cookie)));
        // One without a cookie has no slot: nobody has any business with it.
        attempt = if path == 0 { None } else { attempts::get(path) };
    }
    let state = match attempt {
        Some(attempt) => attempt,
        None => {
            // What there is no memory for is found the next time.
            // SAFETY: by contract.
            let Some(state) = (unsafe { held.state_or_new() }) else { return };
            state
        }
    };
    let by_hook = mark::ESTABLISHED | mark::ACCEPTED | mark::WATCHED;
    let is_known = state.flags & (by_hook | mark::FOUND) != 0;
    let told = state.flags & by_hook != 0 || state.is(mark::FOUND) && state.started <= told_until();
    let net: u64 = read(connection + u64::from(setting!(sk_net)));
    state.netns = read(net + u64::from(setting!(net_cookie)));
    if !state.is(mark::ACTOR) {
        identify(state, task);
    }
    let at = now();
    if !is_known || state.started == 0 {
        state.started = at;
    }
    let family: u16 = read(connection + u64::from(setting!(sk_family)));
    let (kind, detail) = if state.is(mark::ESTABLISHED) {
        (kind::TCP_ESTABLISHED, 0)
    } else if state.is(mark::ACCEPTED) {
        (kind::TCP_ACCEPTED, 0)
    } else {
        end_of(connection, family)
    };
    // Which both ends know, so that they are found to be of one connection.
    let detail = match kind {
        kind::TCP_ESTABLISHED => first_of(connection, setting!(received_until), setting!(received)),
        kind::TCP_ACCEPTED => first_of(connection, setting!(sent_until), setting!(sent)),
        _ => detail,
    };
    // The two bytes in network order.
    let port: u16 = read(connection + u64::from(setting!(sk_peer_port)));
    let remote_port = u16::from_be(port);
    let (local, remote) = if family == AF_INET {
        (
            Address::v4(read(connection + u64::from(setting!(sk_address4)))),
            Address::v4(read(connection + u64::from(setting!(sk_peer4)))),
        )
    } else {
        (
            Address(read(connection + u64::from(setting!(sk_address6)))),
            Address(read(connection + u64::from(setting!(sk_peer6)))),
        )
    };
    let mut record = FlowRecord {
        kind,
        detail,
        at,
        started: state.started,
        netns: state.netns,
        cgroup: state.cgroup,
        socket: cookie,
        sequence: state.sequence,
        pid: state.pid,
        comm: state.comm,
        local,
        remote,
        requested: remote,
        local_port: read(connection + u64::from(setting!(sk_num))),
        remote_port,
        requested_port: remote_port,
        flags: flag::ACTOR | flag::ANSWERED,
    };
    if told {
        record.flags |= open::TOLD;
    }
    if state.is(mark::ESTABLISHED) {
        record.requested = state.peer;
        record.requested_port = state.peer_port;
    }
    // SAFETY: by contract; the record lives on the stack.
    let written = unsafe { bpf_seq_write(seq, (&raw const record).cast(), size_of::<FlowRecord>() as u32) };
    // Where the buffer is full the kernel drops what is half in it, and comes again with this file.
    if written == 0 && !is_known {
        state.flags |= mark::FOUND;
    }
}

/// Tells of a UDP socket that has read, and neither asked who sent (`recv` and `read` do not) nor sent: whoever asks it is not seen.
///
/// # Safety
///
/// `seq` must be the context's, and the rest as for [`Held`].
#[inline(always)]
pub unsafe fn reader(seq: *mut seq_file, held: Held, family: u16) {
    let address = held.address;
    // SAFETY: by contract.
    let Some(state) = (unsafe { held.state() }) else { return };
    if state.flags & (mark::RECEIVED | mark::SENT) != 0 || !answers::has_read(address) {
        return;
    }
    let local = if family == AF_INET {
        Address::v4(read(address + u64::from(setting!(sk_address4))))
    } else {
        Address(read(address + u64::from(setting!(sk_address6))))
    };
    let at = now();
    let record = FlowRecord {
        kind: open::BLIND_READER,
        detail: 0,
        at,
        started: at,
        netns: state.netns,
        cgroup: state.cgroup,
        // SAFETY: by contract.
        socket: unsafe { held.cookie() },
        sequence: 0,
        pid: state.pid,
        comm: state.comm,
        local,
        remote: Address::default(),
        requested: Address::default(),
        local_port: read(address + u64::from(setting!(sk_num))),
        remote_port: 0,
        requested_port: 0,
        flags: flag::ACTOR,
    };
    // SAFETY: by contract; the record lives on the stack. Where the buffer is full the kernel comes again with this file.
    unsafe { bpf_seq_write(seq, (&raw const record).cast(), size_of::<FlowRecord>() as u32) };
}

/// Takes `task` for the socket's actor: it is the first that was found with it.
#[inline(always)]
pub fn identify(state: &mut Socket, task: u64) {
    state.cgroup = cgroup_id(cgroup_of_task(task));
    state.pid = pid_of_task(task);
    state.comm = comm_of_task(task);
    state.flags |= mark::ACTOR;
}

/// The sequence number of the first byte of one direction: the kernel keeps where that is by now, and how many that were. 0
/// where a packet comes between: then this look does not know it.
#[inline(always)]
fn first_of(connection: u64, until: u32, count: u32) -> u32 {
    let (until, count) = (connection + u64::from(until), connection + u64::from(count));
    // The lower half of the count, as numbers come round.
    let count_of = || read::<u64>(count) as u32;
    let first = read::<u32>(until).wrapping_sub(count_of());
    // The two are written one after the other, which nothing here can lock out.
    let again = read::<u32>(until).wrapping_sub(count_of());
    if first == again { first } else { 0 }
}

/// Which end a connection is of which no hook told: its kind, and where that is not known why.
#[inline(always)]
fn end_of(connection: u64, family: u16) -> (u32, u32) {
    let bucket = setting!(bind_bucket);
    if bucket == NO_FIELD {
        return (open::UNKNOWN_END, open::NO_FIELDS);
    }
    if locks_of(connection) & SOCK_BINDPORT_LOCK != 0 {
        return (kind::TCP_ESTABLISHED, 0);
    }
    let bucket: u64 = read(connection + u64::from(bucket));
    if bucket == 0 {
        return (open::UNKNOWN_END, open::NO_PORT);
    }
    let reuse: i8 = read(bucket + u64::from(setting!(bucket_reuse)));
    let reuse_port: i8 = read(bucket + u64::from(setting!(bucket_reuse_port)));
    if reuse == -1 && reuse_port == -1 {
        return (kind::TCP_ESTABLISHED, 0);
    }
    let arrival: i32 = if family == AF_INET {
        read(connection + u64::from(setting!(arrival4)))
    } else {
        let inet6: u64 = read(connection + u64::from(setting!(inet6)));
        read(inet6 + u64::from(setting!(arrival6)))
    };
    if arrival != 0 {
        return (kind::TCP_ACCEPTED, 0);
    }
    // Bound to an address, or to a port of the kernel's choice, and connected. A listener leaves its backlog's limit.
    let backlog: u32 = read(connection + u64::from(setting!(sk_backlog)));
    if backlog == 0 { (kind::TCP_ESTABLISHED, 0) } else { (open::UNKNOWN_END, open::DISAGREES) }
}
