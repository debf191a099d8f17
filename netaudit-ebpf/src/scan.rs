//! What existed before the agent: tasks with their namespaces, and sockets that already listen, serve or are connected.
//!
//! Iterators go through all tasks of the agent's pid namespace. What is not in the watched cgroup is left out here.

use core::{mem::offset_of, ptr};

use aya_ebpf::{
    bindings::{bpf_sock, file, seq_file, task_struct},
    cty::c_void,
    helpers::generated::{bpf_get_socket_cookie, bpf_probe_read_kernel, bpf_seq_write, bpf_sock_from_file},
};
use netaudit_ebpf::abi::{self, Address, TaskRecord};

use crate::{
    cgroup::levels_below,
    listeners,
    maps::{SOCKETS, add_at, counted, setting, state_at},
    open,
    raw::{self, RawKey},
    socket::{Socket, address_of, cgroup_id, mark, read},
};

/// The beginning of what every iterator passes.
#[repr(C)]
pub struct IterMeta {
    seq: *mut seq_file,
}

/// The context of `iter/task`.
#[repr(C)]
pub struct IterTask {
    meta: *mut IterMeta,
    task: *mut task_struct,
}

/// The context of `iter/task_file`.
#[repr(C)]
pub struct IterTaskFile {
    meta: *mut IterMeta,
    task: *mut task_struct,
    fd: u64,
    file: *mut file,
}

/// Writes a [`TaskRecord`] for each process.
///
/// # Safety
///
/// `ctx` must be the context of `iter/task`.
#[inline(always)]
pub unsafe fn task(ctx: *mut IterTask) {
    // SAFETY: by contract.
    let task = unsafe { (*ctx).task };
    if task.is_null() {
        return;
    }
    let task = address_of(task);
    let pid: u32 = read(task + u64::from(setting!(task_pid)));
    let tgid = pid_of_task(task);
    if pid != tgid {
        return;
    }
    let proxy: u64 = read(task + u64::from(setting!(task_nsproxy)));
    if proxy == 0 {
        return;
    }
    let cgroup = cgroup_of_task(task);
    if levels_below(cgroup).is_none() {
        return;
    }
    let net: u64 = read(proxy + u64::from(setting!(nsproxy_net)));
    let record = TaskRecord {
        netns: read(net + u64::from(setting!(net_cookie))),
        cgroup: cgroup_id(cgroup),
        pid,
        reserved: 0,
    };
    // SAFETY: by contract; the record lives on the stack.
    unsafe {
        let seq = (*(*ctx).meta).seq;
        bpf_seq_write(seq, (&raw const record).cast(), size_of::<TaskRecord>() as u32);
    }
}

/// The cgroup that `task` is in: the address of the kernel's structure.
#[inline(always)]
pub fn cgroup_of_task(task: u64) -> u64 {
    let set: u64 = read(task + u64::from(setting!(task_cgroups)));
    read(set + u64::from(setting!(default_cgroup)))
}

/// The process that `task` is of.
#[inline(always)]
pub fn pid_of_task(task: u64) -> u32 {
    read(task + u64::from(setting!(task_tgid)))
}

/// The command name of `task`.
#[inline(always)]
pub fn comm_of_task(task: u64) -> [u8; 16] {
    read(task + u64::from(setting!(task_comm)))
}

/// `struct socket` up to its `sk`; the agent checks the offset in the kernel's BTF before it loads this program.
#[repr(C)]
struct KernelSocket {
    state: u32,
    kind: u16,
    flags: u64,
    file: *mut c_void,
    sk: *mut bpf_sock,
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const AF_PACKET: u16 = 17;
const IPPROTO_TCP: u16 = 6;
const IPPROTO_UDP: u16 = 17;
const IPPROTO_MPTCP: u16 = 262;
/// What a connected UDP socket is in too.
const TCP_ESTABLISHED: u8 = 1;
const TCP_LISTEN: u8 = 10;
/// The program chose the port itself: a server, or a client that means to look like one.
pub const SOCK_BINDPORT_LOCK: u8 = 8;

/// What its program has chosen of the socket at `address`: [`SOCK_BINDPORT_LOCK`] and others.
#[inline(always)]
pub fn locks_of(address: u64) -> u8 {
    let locks: u8 = read(address + u64::from(setting!(sk_userlocks)));
    locks >> (setting!(sk_userlocks_shift) & 7)
}

/// Marks listeners and UDP sockets with the process that holds them, tells of connections where that is asked for, and of
/// sockets that make their own packets.
///
/// # Safety
///
/// `ctx` must be the context of `iter/task_file`.
#[inline(always)]
pub unsafe fn file(ctx: *mut IterTaskFile) {
    // SAFETY: by contract.
    let (task, file) = unsafe { ((*ctx).task, (*ctx).file) };
    if task.is_null() || file.is_null() {
        return;
    }
    // SAFETY: a file of the context, tested for null.
    let socket = unsafe { bpf_sock_from_file(file) }.cast::<KernelSocket>();
    if socket.is_null() {
        return;
    }
    // Where the verifier takes the pointer for a number it is none.
    let (sk, address) = if setting!(sockets_untrusted) != 0 {
        (ptr::null_mut(), read(address_of(socket) + offset_of!(KernelSocket, sk) as u64))
    } else {
        // SAFETY: the verifier checks the access against the kernel's types.
        let sk = unsafe { (*socket).sk };
        if sk.is_null() {
            return;
        }
        (sk, address_of(sk))
    };
    if address == 0 {
        return;
    }
    let held = Held { sk, address };
    let family: u16 = read(address + u64::from(setting!(sk_family)));
    if family != AF_INET && family != AF_INET6 && family != AF_PACKET {
        return;
    }
    let protocol: u16 = read(address + u64::from(setting!(sk_protocol)));
    let form: u16 = read(address + u64::from(setting!(sk_type)));
    let raw_kind =
        if family == AF_PACKET { Some(abi::raw::PACKET) } else { raw::kind_of(form.into(), protocol.into()) };
    let task = address_of(task);
    if let Some(kind) = raw_kind {
        return found_raw(task, address, kind, protocol.into());
    }
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP && protocol != IPPROTO_MPTCP {
        return;
    }
    // The socket's cgroup and not the task's: it decides which hooks the socket runs through. A mark on another would
    // never be told, but whatever that one accepts would carry a copy.
    if levels_below(read(address + u64::from(setting!(sk_cgroup)))).is_none() {
        return;
    }
    let state: u8 = read(address + u64::from(setting!(sk_state)));
    if protocol == IPPROTO_UDP {
        // SAFETY: by contract; the verifier knows `sk` for a socket.
        return unsafe { datagrams((*(*ctx).meta).seq, held, task, state, family) };
    }
    if protocol == IPPROTO_TCP && state == TCP_LISTEN {
        // SAFETY: the verifier knows `sk` for a socket.
        return unsafe { listeners::found(held, task) };
    }
    let mut connection = address;
    if protocol == IPPROTO_MPTCP {
        // SAFETY: the verifier knows `sk` for a socket.
        let Some(path) = (unsafe { first_path(held, state) }) else { return };
        connection = path;
    }
    let state: u8 = read(connection + u64::from(setting!(sk_state)));
    if open::is_open(state) && open::is_asked() {
        // SAFETY: by contract; the verifier knows `sk` for a socket.
        unsafe { open::found((*(*ctx).meta).seq, held, connection, task) };
    }
}

/// A socket that a file is of.
#[derive(Clone, Copy)]
pub struct Held {
    /// Nothing where [`Settings::sockets_untrusted`](abi::Settings::sockets_untrusted): only its address is known then.
    sk: *mut bpf_sock,
    /// Where it is.
    pub address: u64,
}

/// Each needs the verifier to know `sk` for a socket, unless it trusts none.
impl Held {
    /// What is known of it, if anything is.
    ///
    /// # Safety
    ///
    /// See above.
    #[inline(always)]
    pub unsafe fn state(self) -> Option<&'static mut Socket> {
        if setting!(sockets_untrusted) != 0 {
            return state_at(self.address);
        }
        // SAFETY: by contract.
        unsafe { SOCKETS.get(self.sk) }
    }

    /// The same, made of zeros if nothing is. `None` where there is no memory for it.
    ///
    /// # Safety
    ///
    /// See above.
    #[inline(always)]
    pub unsafe fn state_or_new(self) -> Option<&'static mut Socket> {
        if setting!(sockets_untrusted) != 0 {
            let known = state_at(self.address);
            return if known.is_some() { known } else { add_at(self.address) };
        }
        // SAFETY: by contract.
        unsafe { SOCKETS.get_or_add(self.sk) }
    }

    /// What a listener's connections get copies of, if it has or needs that. Where the verifier trusts no socket, nothing can be kept of which
    /// there are copies: then they find one of those that share a port.
    ///
    /// # Safety
    ///
    /// See above.
    #[inline(always)]
    pub unsafe fn copied_state(self) -> Option<&'static mut Socket> {
        if setting!(sockets_untrusted) != 0 {
            return None;
        }
        // SAFETY: by contract.
        unsafe { listeners::own_state(self.sk, self.address) }
    }

    /// Its cookie. Where the verifier trusts no socket, nobody can give it one: then its address is as good, as long as it has none.
    ///
    /// # Safety
    ///
    /// See above.
    #[inline(always)]
    pub unsafe fn cookie(self) -> u64 {
        if setting!(sockets_untrusted) != 0 {
            let cookie: u64 = read(self.address + u64::from(setting!(sk_cookie)));
            return if cookie == 0 { self.address } else { cookie };
        }
        // SAFETY: the helper takes a socket in this type of program.
        unsafe { bpf_get_socket_cookie(self.sk.cast()) }
    }
}

/// The first path of the multipath socket, if that is connected.
///
/// # Safety
///
/// As for [`Held`].
#[inline(always)]
unsafe fn first_path(held: Held, state: u8) -> Option<u64> {
    if !open::is_open(state) {
        // Its connections, and those of a listener, begin under our eyes.
        // SAFETY: by contract.
        if let Some(socket) = unsafe { held.state_or_new() } {
            socket.flags |= mark::WATCHED;
        }
        return None;
    }
    let first: u64 = read(held.address + u64::from(setting!(mptcp_first)));
    if first == 0 { None } else { Some(first) }
}

/// A UDP socket with a port of its own.
///
/// # Safety
///
/// As for [`Held`].
#[inline(always)]
unsafe fn serves(held: Held, task: u64) {
    // SAFETY: by contract.
    let Some(state) = counted(unsafe { held.state_or_new() }) else { return };
    // The first process that is found with it, unless a hook knows better.
    if state.is(mark::ACTOR) {
        return;
    }
    let net: u64 = read(held.address + u64::from(setting!(sk_net)));
    state.netns = read(net + u64::from(setting!(net_cookie)));
    open::identify(state, task);
    state.flags |= mark::BOUND | mark::FORMER;
}

/// A UDP socket: one with a port of its own may serve. One without that is connected to somebody is a client whose `connect`
/// nobody saw: its next datagram begins a flow.
///
/// # Safety
///
/// As for [`Held`], and `seq` must be the context's.
#[inline(always)]
unsafe fn datagrams(seq: *mut seq_file, held: Held, task: u64, state: u8, family: u16) {
    let address = held.address;
    if locks_of(address) & SOCK_BINDPORT_LOCK != 0 {
        // SAFETY: by contract.
        unsafe { serves(held, task) };
        if state != TCP_ESTABLISHED && open::is_asked() {
            // SAFETY: by contract.
            unsafe { open::reader(seq, held, family) };
        }
        return;
    }
    if state != TCP_ESTABLISHED {
        return;
    }
    // SAFETY: by contract.
    let Some(socket) = (unsafe { held.state_or_new() }) else { return };
    if socket.flags != 0 {
        return;
    }
    let net: u64 = read(address + u64::from(setting!(sk_net)));
    socket.netns = read(net + u64::from(setting!(net_cookie)));
    open::identify(socket, task);
    socket.peer = if family == AF_INET {
        Address::v4(read(address + u64::from(setting!(sk_peer4))))
    } else {
        Address(read(address + u64::from(setting!(sk_peer6))))
    };
    let port: u16 = read(address + u64::from(setting!(sk_peer_port)));
    socket.peer_port = u16::from_be(port);
    // What the kernel keeps of datagrams that came may be of before: the flow must not be the socket's first.
    socket.sequence = 1;
    socket.flags |= mark::CONNECTED | mark::JOINED | mark::FORMER;
}

/// A process has a socket that makes its own packets.
#[inline(always)]
fn found_raw(task: u64, socket: u64, kind: u32, protocol: u32) {
    let cgroup = cgroup_of_task(task);
    if levels_below(cgroup).is_none() {
        return;
    }
    let net: u64 = read(socket + u64::from(setting!(sk_net)));
    let key = RawKey {
        netns: read(net + u64::from(setting!(net_cookie))),
        cgroup: cgroup_id(cgroup),
        pid: pid_of_task(task),
        socket: kind,
    };
    raw::found(key, protocol, |comm| {
        let from = (task + u64::from(setting!(task_comm))) as *const c_void;
        // SAFETY: the target is 16 bytes long.
        unsafe {
            bpf_probe_read_kernel(comm.cast(), 16, from);
        }
    });
}
