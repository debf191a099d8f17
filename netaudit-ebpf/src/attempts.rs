//! The state of TCP sockets that have called `connect` or were accepted, until they are closed.
//!
//! Memory of a socket's own costs an attempt a microsecond, most of it for the kernel's books: half of what all the
//! programs cost a refused connect, and it costs an accepted connection as much. So here are slots to be had for a compare
//! and exchange, each for the sockets whose cookies end alike; cookies are given out in order. Whoever finds its slot taken
//! has its state in [`SOCKETS`].

use core::intrinsics::{AtomicOrdering, atomic_cxchg};

use aya_ebpf::bindings::bpf_sock;
use netaudit_ebpf::abi::{self, NO_FIELD};

use crate::{
    maps::{ATTEMPTS, SOCKETS, setting},
    socket::{Socket, address_of, mark, read},
};

/// A place for one socket's state.
#[repr(C)]
pub struct Slot {
    /// Whose it is; 0 while it is nobody's.
    cookie: u64,
    state: Socket,
}

const _: () = assert!(abi::ATTEMPTS.is_power_of_two());

#[inline(always)]
fn slot(cookie: u64) -> Option<*mut Slot> {
    // Where the agent has made less room than that, there is no such slot.
    ATTEMPTS.get_ptr_mut(cookie as u32 & (abi::ATTEMPTS - 1))
}

/// The state of the socket with this cookie: its slot's, which is its own now, or in its own memory. `None`, counted, where
/// there is no memory for it.
///
/// # Safety
///
/// As for [`SocketStorage::get`](crate::maps::SocketStorage::get).
#[inline(always)]
pub unsafe fn begin(cookie: u64, socket: *mut bpf_sock) -> Option<&'static mut Socket> {
    if let Some(state) = claim(cookie) {
        return Some(state);
    }
    // SAFETY: by contract.
    unsafe {
        let state = SOCKETS.get_or_create(socket)?;
        if is_path(address_of(socket)) {
            state.flags |= mark::PATH;
        }
        Some(state)
    }
}

/// As [`begin`], of an accepted socket: nothing is lost without it. Calls `in_slot` where it is in a slot, which wants to be
/// given back.
///
/// # Safety
///
/// As for [`SocketStorage::get`](crate::maps::SocketStorage::get).
#[inline(always)]
pub unsafe fn accept(
    cookie: u64,
    socket: *mut bpf_sock,
    in_slot: impl FnOnce(),
) -> Option<&'static mut Socket> {
    let state = claim(cookie);
    if state.is_some() {
        in_slot();
        return state;
    }
    // SAFETY: by contract.
    unsafe { SOCKETS.get_or_add(socket) }
}

/// The state in the socket's slot, which is its own now; `None` where it is another's.
#[inline(always)]
fn claim(cookie: u64) -> Option<&'static mut Socket> {
    let slot = slot(cookie)?;
    let owner = exchange(slot, 0, cookie);
    // SAFETY: a slot of the map, and this socket's.
    unsafe {
        if owner == 0 {
            (*slot).state.flags = 0;
        }
        if owner == 0 || owner == cookie { Some(&mut (*slot).state) } else { None }
    }
}

/// Whether a TCP socket is the path of a multipath socket.
#[inline(always)]
fn is_path(socket: u64) -> bool {
    let offset = setting!(is_mptcp);
    if offset == NO_FIELD {
        return false;
    }
    let byte: u8 = read(socket + u64::from(offset));
    (byte >> (setting!(is_mptcp_shift) & 7)) & 1 != 0
}

/// The state in the socket's slot, if it has one.
#[inline(always)]
pub fn get(cookie: u64) -> Option<&'static mut Socket> {
    let slot = slot(cookie)?;
    // SAFETY: a slot of the map. Nobody but its owner gives it away.
    unsafe {
        if (&raw const (*slot).cookie).read_volatile() == cookie { Some(&mut (*slot).state) } else { None }
    }
}

/// Nothing comes of this socket any more: its slot is anybody's.
#[inline(always)]
pub fn end(cookie: u64) {
    if let Some(slot) = slot(cookie) {
        // Not a plain write: what was read of the state was read before.
        exchange(slot, cookie, 0);
    }
}

/// Makes `to` the slot's owner if that is `from`; returns who it was.
#[inline(always)]
fn exchange(slot: *mut Slot, from: u64, to: u64) -> u64 {
    // SAFETY: the callers took it from the map.
    let owner = unsafe { &raw mut (*slot).cookie };
    // SAFETY: as above, and aligned.
    let (was, _) = unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(owner, from, to)
    };
    was
}
