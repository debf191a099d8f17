//! The state that a socket carries, and how to look into a socket that the context does not show.

use aya_ebpf::{
    cty::c_void,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_ktime_get_boot_ns, bpf_probe_read_kernel,
        },
    },
};
use netaudit_ebpf::abi::{Address, FlowRecord, TICK_SHIFT, flag};

use crate::{maps::setting, udp::Ports};

/// Bits of [`Socket::flags`].
pub mod mark {
    /// The identity is that of a program that bound or connected the socket.
    pub const ACTOR: u32 = 1;
    /// UDP: bound by its program, so that it may serve.
    pub const BOUND: u32 = 2;
    /// TCP: `connect` was called, and no SYN has been sent yet.
    pub const CONNECTING: u32 = 4;
    /// TCP: a SYN was sent, and the outcome is open.
    pub const SYN_SENT: u32 = 8;
    /// TCP: the first retransmission was told.
    pub const PENDING: u32 = 16;
    /// UDP: connected to `peer`, and nothing sent yet.
    pub const CONNECTED: u32 = 32;
    /// UDP: a datagram to `peer` was told.
    pub const SENT: u32 = 64;
    /// UDP: a datagram from `server.address` was told.
    pub const RECEIVED: u32 = 128;
    /// UDP: the datagram that is being sent goes to another address than `peer`.
    pub const ELSEWHERE: u32 = 256;
    /// UDP: connected to `peer`, whether or not anything was sent.
    pub const JOINED: u32 = 512;
    /// UDP: flows to more than one destination were told, so that what the socket holds is of any of them.
    pub const SEVERAL: u32 = 1024;
    /// TCP: a path of a multipath socket, whose own release is not seen, and which has no slot.
    pub const PATH: u32 = 2048;
    /// Found by a scan: what it read before is not known.
    pub const FORMER: u32 = 4096;
    /// TCP: connected, and told so.
    pub const ESTABLISHED: u32 = 8192;
    /// TCP: accepted, and told so.
    pub const ACCEPTED: u32 = 16384;
    /// A connection that no hook told, found by a look.
    pub const FOUND: u32 = 32768;
    /// A multipath socket that was made, or had no connection yet, when hooks were there: these tell of it.
    pub const WATCHED: u32 = 65536;

    /// What is known of a connection, which the next one of the socket knows nothing of.
    pub const CONNECTION: u32 = ESTABLISHED | ACCEPTED | FOUND;
}

/// What is kept with each socket that connects, sends, or is bound.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Socket {
    /// The opener's cgroup.
    pub cgroup: u64,
    /// Cookie of the network namespace.
    pub netns: u64,
    /// When the attempt began, in nanoseconds since boot.
    pub started: u64,
    /// The opener's thread group id.
    pub pid: u32,
    /// Bits of [`mark`].
    pub flags: u32,
    /// The opener's command name.
    pub comm: [u8; 16],
    /// TCP: what `connect` asked for. UDP: where the latest flow went.
    pub peer: Address,
    /// Port of `peer`, in host byte order.
    pub peer_port: u16,
    /// Zero.
    pub reserved: u16,
    /// Tells the flows of this socket apart. UDP: counts them. TCP: the microsecond in which the attempt began.
    pub sequence: u32,
    /// UDP: who sent the latest datagram that was read.
    pub sender: Address,
    /// UDP: the ports from which `sender` sent.
    pub sender_ports: Ports,
    /// UDP: when the flow to `peer` was last told, by [`ticks`].
    pub peer_told: u32,
    /// UDP: when the flow from `sender` was last told, by [`ticks`].
    pub sender_told: u32,
    /// UDP: the sequence number of the latest flow to `peer`, while no answer to it was told; else 0.
    pub unanswered: u32,
}

// The kernel adds 72 bytes, and allocates 192 bytes or else 256.
const _: () = assert!(size_of::<Socket>() <= 120);

impl Socket {
    /// Takes the running task for the socket's actor. For programs that run in the caller's context.
    #[inline(always)]
    pub fn identify(&mut self, netns: u64) {
        self.netns = netns;
        self.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        // SAFETY: the helpers have no preconditions; `comm` is 16 bytes long.
        unsafe {
            self.cgroup = bpf_get_current_cgroup_id();
            bpf_get_current_comm((&raw mut self.comm).cast(), 16);
        }
        self.flags |= mark::ACTOR;
    }

    /// Whether `bits` are all set.
    #[inline(always)]
    pub fn is(&self, bits: u32) -> bool {
        self.flags & bits == bits
    }

    /// Writes who acted into `record`.
    ///
    /// # Safety
    ///
    /// `record` must point to a record.
    #[inline(always)]
    pub unsafe fn tell_actor(&self, record: *mut FlowRecord) {
        // SAFETY: by contract.
        unsafe {
            (*record).cgroup = self.cgroup;
            (*record).pid = self.pid;
            (*record).comm = self.comm;
            if self.is(mark::ACTOR) {
                (*record).flags |= flag::ACTOR;
            }
        }
    }
}

/// Nanoseconds since boot, time asleep included.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Time in steps of [`TICK_SHIFT`], which comes round every 52 days: for intervals.
#[inline(always)]
pub fn ticks() -> u32 {
    (now() >> TICK_SHIFT) as u32
}

/// The address of a kernel object behind a pointer on which the verifier forbids arithmetic: read back from the stack,
/// where it is only a number.
#[inline(always)]
pub fn address_of<T>(pointer: *const T) -> u64 {
    let slot = pointer;
    read((&raw const slot) as u64)
}

/// Reads kernel memory; zeros where it cannot be read. The helper clears the target itself when it fails, and a branch
/// for each read would multiply the verifier's work.
#[inline(always)]
pub fn read<T: Copy>(address: u64) -> T {
    // SAFETY: every `T` used here is an integer or an array of them, for which zeros are a value.
    let mut value: T = unsafe { core::mem::zeroed() };
    // SAFETY: the target is `value`, and the helper checks the source.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast::<c_void>(),
            size_of::<T>() as u32,
            address as *const c_void,
        );
    }
    value
}

/// Which of the errors that are queued on a socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Queued {
    First,
    Last,
}

/// The ICMP message that is queued on the socket at `socket`: its errno, type and code.
#[inline(always)]
pub fn queued_error(socket: u64, which: Queued) -> Option<(u32, u8, u8)> {
    const SO_EE_ORIGIN_ICMP: u8 = 2;
    const SO_EE_ORIGIN_ICMP6: u8 = 3;
    let queued: u32 = read(socket + u64::from(setting!(error_queue_length)));
    if queued == 0 {
        return None;
    }
    // The head of a queue points to its first packet and then to its last.
    let pointer = if which == Queued::First { 0 } else { size_of::<u64>() as u64 };
    let packet: u64 = read(socket + u64::from(setting!(error_queue_next)) + pointer);
    // `sock_extended_err`: errno u32, origin u8, type u8, code u8.
    let extended: [u8; 8] = read(packet + u64::from(setting!(extended_error)));
    let [a, b, c, d, origin, kind, code, _] = extended;
    if origin == SO_EE_ORIGIN_ICMP || origin == SO_EE_ORIGIN_ICMP6 {
        Some((u32::from_ne_bytes([a, b, c, d]), kind, code))
    } else {
        None
    }
}

/// The cgroup that the socket belongs to: that of the task which made it, or which made its listener.
#[inline(always)]
pub fn cgroup_of(socket: u64) -> u64 {
    let cgroup: u64 = read(socket + u64::from(setting!(sk_cgroup)));
    if cgroup == 0 {
        return 0;
    }
    cgroup_id(cgroup)
}

/// The id of the cgroup at `cgroup`.
#[inline(always)]
pub fn cgroup_id(cgroup: u64) -> u64 {
    let node: u64 = read(cgroup + u64::from(setting!(cgroup_node)));
    read(node + u64::from(setting!(node_id)))
}
