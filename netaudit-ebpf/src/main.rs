//! netaudit's eBPF programs: the entry points. One module per concern holds what they do.
//!
//! An auditor fails open: every program returns "allow" on every path.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    internal_features,
    reason = "the target has no atomic types; the intrinsic is the only way to its xadd"
)]

mod answers;
mod attempts;
mod cgroup;
mod dns;
mod drops;
mod listeners;
mod maps;
mod open;
mod overload;
mod rate;
mod raw;
mod scan;
mod socket;
mod tcp;
mod udp;

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::bpf_get_netns_cookie,
    macros::{btf_tracepoint, cgroup_skb, cgroup_sock, cgroup_sock_addr, fentry, raw_tracepoint, sock_ops},
    programs::{
        BtfTracePointContext, FEntryContext, RawTracePointContext, SkBuffContext, SockAddrContext,
        SockContext, SockOpsContext,
    },
};
use netaudit_ebpf::abi::{Address, kind};

const ALLOW: i32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_MPTCP: u32 = 262;

/// A v4 socket calls `connect`.
#[cgroup_sock_addr(connect4)]
fn on_connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, udp::named4(&ctx));
    ALLOW
}

/// A v6 socket calls `connect`, perhaps to a mapped v4 address.
#[cgroup_sock_addr(connect6)]
fn on_connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, udp::named6(&ctx));
    ALLOW
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, (peer, port): (Address, u16)) {
    // SAFETY: the verifier checks the fields; the helpers take this context.
    let (protocol, socket) = unsafe { ((*ctx.sock_addr).protocol, (*ctx.sock_addr).__bindgen_anon_1.sk) };
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    match protocol {
        IPPROTO_TCP => tcp::connect(ctx, socket, netns, peer, port),
        IPPROTO_UDP => udp::connect(ctx, socket, netns, peer, port),
        _ => {}
    }
}

/// A datagram to a v4 destination of its own.
#[cgroup_sock_addr(sendmsg4)]
fn on_sendmsg4(ctx: SockAddrContext) -> i32 {
    let (peer, port) = udp::named4(&ctx);
    udp::send(&ctx, peer, port);
    ALLOW
}

/// A datagram to a v6 destination of its own.
#[cgroup_sock_addr(sendmsg6)]
fn on_sendmsg6(ctx: SockAddrContext) -> i32 {
    let (peer, port) = udp::named6(&ctx);
    udp::send(&ctx, peer, port);
    ALLOW
}

/// A datagram was read from a v4 sender.
#[cgroup_sock_addr(recvmsg4)]
fn on_recvmsg4(ctx: SockAddrContext) -> i32 {
    let (sender, port) = udp::named4(&ctx);
    udp::receive(&ctx, sender, port);
    ALLOW
}

/// A datagram was read from a v6 sender, or from a v4 one by a dual-stack socket.
#[cgroup_sock_addr(recvmsg6)]
fn on_recvmsg6(ctx: SockAddrContext) -> i32 {
    let (sender, port) = udp::named6(&ctx);
    udp::receive(&ctx, sender, port);
    ALLOW
}

/// A v4 socket was bound.
#[cgroup_sock(post_bind4)]
fn on_bind4(ctx: SockContext) -> i32 {
    bound(&ctx);
    ALLOW
}

/// A v6 socket was bound.
#[cgroup_sock(post_bind6)]
fn on_bind6(ctx: SockContext) -> i32 {
    bound(&ctx);
    ALLOW
}

/// Marks what may become a UDP server with its opener. Whoever listens on TCP is known when it does.
#[inline(always)]
fn bound(ctx: &SockContext) {
    // SAFETY: the verifier checks the fields.
    let protocol = unsafe { (*ctx.sock).protocol };
    if protocol != IPPROTO_UDP {
        return;
    }
    // SAFETY: the context is the socket in this type of program, and the helper takes it.
    unsafe {
        let Some(state) = maps::SOCKETS.get_or_create(ctx.sock) else { return };
        state.identify(bpf_get_netns_cookie(ctx.as_ptr()));
        state.flags |= socket::mark::BOUND;
    }
}

/// A socket of an internet family is being made.
#[cgroup_sock(sock_create)]
fn on_create(ctx: SockContext) -> i32 {
    maps::forget(ctx.sock);
    // SAFETY: the verifier checks the fields.
    if unsafe { (*ctx.sock).protocol } == IPPROTO_MPTCP {
        tcp::created_multipath(&ctx);
    } else {
        raw::created(&ctx);
    }
    ALLOW
}

/// A socket is being released.
#[cgroup_sock(sock_release)]
fn on_release(ctx: SockContext) -> i32 {
    // SAFETY: the verifier checks the fields.
    match unsafe { (*ctx.sock).protocol } {
        IPPROTO_TCP => tcp::release(&ctx),
        IPPROTO_UDP => {
            answers::release(&ctx);
            maps::forget(ctx.sock);
        }
        IPPROTO_MPTCP => tcp::release_paths(&ctx),
        _ => {}
    }
    ALLOW
}

/// TCP's own events.
#[sock_ops]
fn on_sock_ops(ctx: SockOpsContext) -> u32 {
    tcp::operation(&ctx);
    ALLOW as u32
}

/// Optional: the first datagram of a connected socket.
#[btf_tracepoint(function = "sock_send_length")]
fn on_sent(ctx: BtfTracePointContext) -> i32 {
    udp::sent(&ctx);
    0
}

/// Optional, where the kernel has no such tracepoint: the first datagram of a connected v4 socket.
#[fentry(function = "udp_sendmsg")]
fn on_sending4(ctx: FEntryContext) -> i32 {
    udp::sending(&ctx);
    0
}

/// Optional, as above: the first datagram of a connected v6 socket.
#[fentry(function = "udpv6_sendmsg")]
fn on_sending6(ctx: FEntryContext) -> i32 {
    udp::sending(&ctx);
    0
}

/// Optional: the kernel reports an ICMP error, or another, to a socket.
#[btf_tracepoint(function = "inet_sk_error_report")]
fn on_error(ctx: BtfTracePointContext) -> i32 {
    answers::reported(&ctx);
    0
}

/// Optional: the kernel throws a packet away.
#[btf_tracepoint(function = "kfree_skb")]
fn on_dropped(ctx: BtfTracePointContext) -> i32 {
    drops::dropped(&ctx);
    0
}

/// Optional, and only where it is asked for: a packet has reached a socket.
#[cgroup_skb(ingress)]
fn on_answer(ctx: SkBuffContext) -> i32 {
    dns::received(&ctx);
    ALLOW
}

/// A cgroup was made.
#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
fn on_cgroup_made(ctx: RawTracePointContext) -> i32 {
    cgroup::changed(&ctx, kind::CGROUP_MADE);
    0
}

/// A cgroup was removed.
#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
fn on_cgroup_removed(ctx: RawTracePointContext) -> i32 {
    cgroup::changed(&ctx, kind::CGROUP_REMOVED);
    0
}

/// Lists processes with their network namespace and cgroup.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
unsafe extern "C" fn scan_tasks(ctx: *mut scan::IterTask) -> i32 {
    // SAFETY: the section makes this the context.
    unsafe { scan::task(ctx) };
    0
}

/// Marks sockets from before the agent came, and tells of open connections.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
unsafe extern "C" fn scan_files(ctx: *mut scan::IterTaskFile) -> i32 {
    // SAFETY: the section makes this the context.
    unsafe { scan::file(ctx) };
    0
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could come here.
    loop {}
}
