//! Who listens on TCP, so that what is accepted is told with who it was.
//!
//! The kernel would copy a listener's own state for each connection, which costs more than all else that is done about one.
//! So most listeners are in a map, where their connections find them by the address and port that they are at. Three kinds
//! keep state of their own, which is copied, as an address does not tell theirs:
//!
//! - several that share one port (`SO_REUSEPORT`),
//! - several at one address, each at a device of its own (`SO_BINDTODEVICE`),
//! - whoever takes what was meant for any address (`IP_TRANSPARENT`).
//!
//! An entry that its listener left behind does no harm: whoever listens there next puts its own in its place, and a wildcard
//! address that came after a single one, which can only be while that is free, goes before it.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    helpers::generated::{bpf_get_current_task, bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::{SockContext, SockOpsContext},
};
use netaudit_ebpf::abi::{Address, NO_FIELD};

use crate::{
    maps::{LISTENERS, SOCKETS, setting},
    open::identify,
    scan::{Held, cgroup_of_task, comm_of_task, pid_of_task},
    socket::{Socket, address_of, cgroup_id, mark, now, read},
};

const AF_INET: u16 = 2;

/// Where one listens.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Place {
    /// Cookie of the network namespace.
    netns: u64,
    address: Address,
    port: u32,
    /// Zero.
    reserved: u32,
}

/// Who listens there.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Listener {
    /// The socket's.
    cookie: u64,
    /// When this was noted, in nanoseconds since boot.
    since: u64,
    /// The cgroup that the socket is in, which its connections inherit: the address of the kernel's structure.
    socket_cgroup: u64,
    /// The cgroup of the process that made it listen.
    cgroup: u64,
    /// That process.
    pid: u32,
    /// Zero.
    reserved: u32,
    /// Its command name.
    comm: [u8; 16],
}

/// A socket has begun to listen, in the context of the process that makes it.
#[inline(always)]
pub fn begin(ctx: &SockOpsContext, socket: *mut bpf_sock) {
    // SAFETY: the helpers take this context.
    let (cookie, netns) =
        unsafe { (bpf_get_socket_cookie(ctx.as_ptr()), bpf_get_netns_cookie(ctx.as_ptr())) };
    // SAFETY: no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let address = address_of(socket);
    // SAFETY: a socket of the context, tested for null.
    if let Some(state) = unsafe { own_state(socket, address) } {
        state.netns = netns;
        identify(state, task);
        return;
    }
    note(place_of(address, netns), address, cookie, task);
}

/// A listener from before, of which `task` holds a descriptor: the first one that is found with it, unless a hook knows better.
///
/// # Safety
///
/// As for [`Held`].
#[inline(always)]
pub unsafe fn found(held: Held, task: u64) {
    let address = held.address;
    let net: u64 = read(address + u64::from(setting!(sk_net)));
    let netns = read(net + u64::from(setting!(net_cookie)));
    // SAFETY: by contract.
    if let Some(state) = unsafe { held.copied_state() } {
        if !state.is(mark::ACTOR) {
            state.netns = netns;
            identify(state, task);
        }
        return;
    }
    // SAFETY: by contract.
    let cookie = unsafe { held.cookie() };
    let place = place_of(address, netns);
    if !is_of(&place, cookie) {
        note(place, address, cookie, task);
    }
}

/// A listener is being released.
#[inline(always)]
pub fn release(ctx: &SockContext) {
    // SAFETY: the helpers take this context.
    let (cookie, netns) =
        unsafe { (bpf_get_socket_cookie(ctx.as_ptr()), bpf_get_netns_cookie(ctx.as_ptr())) };
    let place = place_of(address_of(ctx.sock), netns);
    if is_of(&place, cookie) {
        let _ = LISTENERS.remove(place);
    }
}

/// Takes who listens at `local` for the actor of the connection there that is the socket at `address`, if that is known.
#[inline(always)]
pub fn tell(state: &mut Socket, address: u64, netns: u64, local: Address, port: u16, is_v4: bool) {
    const ANY_V4: Address = Address::v4(0);
    let any = if is_v4 { ANY_V4 } else { Address([0; 4]) };
    let mut place = Place { netns, address: local, port: port.into(), reserved: 0 };
    let single = LISTENERS.get_ptr(place);
    place.address = any;
    let mut wide = LISTENERS.get_ptr(place);
    if single.is_none() && wide.is_none() && !is_v4 {
        // A v6 socket that listens for v4 only.
        place.address = ANY_V4;
        wide = LISTENERS.get_ptr(place);
    }
    // SAFETY: values of the map. Whoever takes the place of one meanwhile is another listener, and no invalid value.
    let listener = unsafe {
        match (single, wide) {
            (Some(single), Some(wide)) if (*wide).since < (*single).since => &*single,
            (_, Some(wide)) => &*wide,
            (Some(single), None) => &*single,
            (None, None) => return,
        }
    };
    // A program may give connections to a listener elsewhere (`sk_lookup`): not to be told as of who listens here.
    if listener.socket_cgroup != read::<u64>(address + u64::from(setting!(sk_cgroup))) {
        return;
    }
    state.cgroup = listener.cgroup;
    state.pid = listener.pid;
    state.comm = listener.comm;
    state.flags |= mark::ACTOR;
}

/// The state that the socket's connections get copies of: one that it needs, or has from before it listened.
///
/// # Safety
///
/// As for [`SocketStorage::get`](crate::maps::SocketStorage::get).
#[inline(always)]
pub unsafe fn own_state(socket: *mut bpf_sock, address: u64) -> Option<&'static mut Socket> {
    // SAFETY: by contract.
    unsafe { if is_told_apart(address) { SOCKETS.get(socket) } else { SOCKETS.to_copy(socket) } }
}

/// Whether the connections of the listener at `address` are known by their local address.
#[inline(always)]
fn is_told_apart(address: u64) -> bool {
    let reuse: u8 = read(address + u64::from(setting!(sk_reuse_port)));
    let device: i32 = read(address + u64::from(setting!(sk_device)));
    let mut special = (reuse >> (setting!(sk_reuse_port_shift) & 7)) & 1;
    let offset = setting!(is_transparent);
    if offset != NO_FIELD {
        let transparent: u8 = read(address + u64::from(offset));
        special |= (transparent >> (setting!(is_transparent_shift) & 7)) & 1;
    }
    special == 0 && device == 0
}

/// Where the socket at `address` listens.
#[inline(always)]
fn place_of(address: u64, netns: u64) -> Place {
    let family: u16 = read(address + u64::from(setting!(sk_family)));
    let local = if family == AF_INET {
        Address::v4(read(address + u64::from(setting!(sk_address4))))
    } else {
        Address(read(address + u64::from(setting!(sk_address6))))
    };
    let port: u16 = read(address + u64::from(setting!(sk_num)));
    Place { netns, address: local, port: port.into(), reserved: 0 }
}

/// Whether it is this socket that is known to listen there.
#[inline(always)]
fn is_of(place: &Place, cookie: u64) -> bool {
    // SAFETY: a value of the map, as in `tell`.
    LISTENERS.get_ptr(place).is_some_and(|listener| unsafe { (*listener).cookie } == cookie)
}

/// Notes that `task` listens there, with the socket at `address`.
#[inline(always)]
fn note(place: Place, address: u64, cookie: u64, task: u64) {
    let listener = Listener {
        cookie,
        since: now(),
        socket_cgroup: read(address + u64::from(setting!(sk_cgroup))),
        cgroup: cgroup_id(cgroup_of_task(task)),
        pid: pid_of_task(task),
        reserved: 0,
        comm: comm_of_task(task),
    };
    let _ = LISTENERS.insert(place, listener, 0);
}
