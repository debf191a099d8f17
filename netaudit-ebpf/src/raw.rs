//! Sockets that send and read packets of their own making, past all that looks at TCP and UDP: it is how a scanner hides.
//!
//! Of the internet families the creation is told, by the hook for it: of a process once for each kind, and again after an
//! interval while it goes on. No hook of a cgroup's sees packet sockets, so these are looked for among the open files now
//! and then, and with them what was there before the agent; such a one is told once.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_netns_cookie},
    },
    programs::SockContext,
};
use netaudit_ebpf::abi::{RawSocketRecord, kind, raw};

use crate::{
    maps::{RAW_TOLD, emit, setting},
    socket::{now, ticks},
};

/// Who has which kind where.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawKey {
    pub netns: u64,
    pub cgroup: u64,
    pub pid: u32,
    /// One of [`raw`].
    pub socket: u32,
}

/// A socket of an internet family is being made.
#[inline(always)]
pub fn created(ctx: &SockContext) {
    // SAFETY: the verifier checks the fields.
    let (form, protocol) = unsafe { ((*ctx.sock).type_, (*ctx.sock).protocol) };
    let Some(socket) = kind_of(form, protocol) else { return };
    // SAFETY: the helpers have no preconditions, or take this context.
    let (netns, cgroup) = unsafe { (bpf_get_netns_cookie(ctx.as_ptr()), bpf_get_current_cgroup_id()) };
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let key = RawKey { netns, cgroup, pid, socket };
    if let Some(told) = RAW_TOLD.get_ptr(key) {
        // SAFETY: a value of the map.
        let told = unsafe { *told };
        if ticks().wrapping_sub(told) <= setting!(udp_retell) {
            return;
        }
    }
    tell(key, protocol, |comm| {
        // SAFETY: the target is 16 bytes long.
        unsafe {
            bpf_get_current_comm(comm.cast(), 16);
        }
    });
}

/// The kind of a socket of an internet family, if it is one of these.
#[inline(always)]
pub fn kind_of(form: u32, protocol: u32) -> Option<u32> {
    const SOCK_DGRAM: u32 = 2;
    const SOCK_RAW: u32 = 3;
    const IPPROTO_ICMP: u32 = 1;
    const IPPROTO_ICMPV6: u32 = 58;
    if form == SOCK_RAW {
        Some(raw::IP)
    } else if form == SOCK_DGRAM && (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6) {
        Some(raw::PING)
    } else {
        None
    }
}

/// A process was found with such a socket.
#[inline(always)]
pub fn found(key: RawKey, protocol: u32, name: impl FnOnce(*mut [u8; 16])) {
    if RAW_TOLD.get_ptr(key).is_none() {
        tell(key, protocol, name);
    }
}

#[inline(always)]
fn tell(key: RawKey, protocol: u32, name: impl FnOnce(*mut [u8; 16])) {
    let recorded = emit::<RawSocketRecord>(kind::RAW_SOCKET, |record| {
        // SAFETY: `record` is reserved; every field is written.
        unsafe {
            (*record).kind = kind::RAW_SOCKET;
            (*record).socket = key.socket;
            (*record).at = now();
            (*record).netns = key.netns;
            (*record).cgroup = key.cgroup;
            (*record).pid = key.pid;
            (*record).protocol = protocol;
            name(&raw mut (*record).comm);
        }
    });
    // What was not told may be told the next time.
    if recorded {
        let _ = RAW_TOLD.insert(key, ticks(), 0);
    }
}
