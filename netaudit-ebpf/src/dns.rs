//! DNS answers, so that addresses have names: where that is asked for, as it runs for every packet that reaches a socket.
//!
//! An answer is worth a record if the socket has asked where it comes from: what a socket gets without asking says what
//! others want it to. To its own sockets a program may still say what it likes, so the namespace is in the record, and names
//! are good for that one only.
//!
//! Not read are answers over TCP, and packets with IP options or extension headers, as no resolver sends them.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    helpers::generated::{bpf_get_socket_cookie, bpf_skb_load_bytes},
    programs::SkBuffContext,
};
use netaudit_ebpf::abi::{Address, DNS_LONG, DNS_SHORT, DnsRecord, dns, kind};

use crate::{
    IPPROTO_UDP,
    maps::{DNS_COUNTS, DNS_RATE, DNS_RATES, PEERS, SOCKETS, emit, lose, raise},
    rate::Rate,
    socket::{Socket, mark, now, ticks},
    udp::{ESTABLISHED, PeerKey},
};

/// The loopback device's number in every namespace.
const LOOPBACK: u32 = 1;

/// The port that answers come from.
const PORT: u16 = 53;

/// Records that one CPU may make in an interval, of 1,280 bytes at most.
const MOST_OF_CPU: u32 = 4_000;
/// Records that may be made for one namespace: nobody's answers take the place of all others'.
const MOST_OF_NAMESPACE: u32 = 1_000;

/// A packet has reached a socket. It begins with its network header here.
#[inline(always)]
pub fn received(ctx: &SkBuffContext) {
    let Some((server, at)) = from_server(ctx) else { return };
    // SAFETY: the verifier checks the access.
    let socket = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return;
    }
    // SAFETY: a socket of the context, tested for null.
    let Some(state) = (unsafe { SOCKETS.get(socket) }) else { return count(dns::UNASKED) };
    if !has_asked(ctx, socket, state, server) {
        return count(dns::UNASKED);
    }
    // Id, flags, and how many questions and answers.
    let Ok([_, _, high, low, _, _, answers @ ..]) = ctx.load::<[u8; 8]>(at as usize) else {
        return count(dns::NOT_DNS);
    };
    const IS_ANSWER: u8 = 0x80;
    const OPCODE: u8 = 0x78;
    const ERROR: u8 = 0x0f;
    if high & (IS_ANSWER | OPCODE) != IS_ANSWER {
        return count(dns::NOT_DNS);
    }
    if low & ERROR != 0 || answers == [0, 0] {
        return count(dns::EMPTY);
    }
    if is_over_rate(state.netns) {
        return lose(kind::DNS_LIMITED);
    }
    let whole = ctx.len() - at;
    let recorded = if whole <= DNS_SHORT as u32 {
        record::<DNS_SHORT>(ctx, at, whole, server, state.netns)
    } else {
        record::<DNS_LONG>(ctx, at, whole, server, state.netns)
    };
    if recorded {
        count(dns::RECORDED);
    }
}

/// Who sent it and where its payload begins, if it comes from port 53 by UDP. Everything else leaves here.
#[inline(always)]
fn from_server(ctx: &SkBuffContext) -> Option<(Address, u32)> {
    const V4_WITHOUT_OPTIONS: u8 = 0x45;
    const V4: usize = 20;
    const V6: usize = 40;
    const UDP: usize = 8;
    // The linear part, which the headers are in.
    // SAFETY: the verifier checks the access.
    let (start, end) = unsafe { ((*ctx.skb.skb).data as usize, (*ctx.skb.skb).data_end as usize) };
    if start + V4 + UDP > end {
        return None;
    }
    let bytes = start as *const u8;
    // SAFETY: within the packet, as just tested.
    let (version, protocol4, protocol6) = unsafe { (*bytes, *bytes.add(9), *bytes.add(6)) };
    if version == V4_WITHOUT_OPTIONS {
        // SAFETY: as above.
        if u32::from(protocol4) != IPPROTO_UDP || unsafe { port(bytes.add(V4)) } != PORT {
            return None;
        }
        // SAFETY: as above.
        let address = unsafe { bytes.add(12).cast::<u32>().read_unaligned() };
        return Some((Address::v4(address), (V4 + UDP) as u32));
    }
    if version >> 4 != 6 || u32::from(protocol6) != IPPROTO_UDP || start + V6 + UDP > end {
        return None;
    }
    // SAFETY: within the packet, as just tested.
    if unsafe { port(bytes.add(V6)) } != PORT {
        return None;
    }
    // SAFETY: as above.
    let address = unsafe { bytes.add(8).cast::<[u32; 4]>().read_unaligned() };
    Some((Address(address), (V6 + UDP) as u32))
}

/// # Safety
///
/// There must be two bytes.
#[inline(always)]
unsafe fn port(bytes: *const u8) -> u16 {
    // SAFETY: by contract.
    unsafe { u16::from_be_bytes([*bytes, *bytes.add(1)]) }
}

/// Whether the socket has sent to port 53 of `server`. A connected one gets nothing from others, whatever a translation at
/// the socket makes of the address that it asked for.
#[inline(always)]
fn has_asked(ctx: &SkBuffContext, socket: *mut bpf_sock, state: &Socket, server: Address) -> bool {
    if state.peer_port == PORT {
        // SAFETY: the verifier checks the access.
        let connected = state.is(mark::JOINED) && unsafe { (*socket).state } == ESTABLISHED;
        if connected || state.is(mark::SENT) && state.peer == server {
            return true;
        }
    }
    if !state.is(mark::SEVERAL) {
        return false;
    }
    // SAFETY: the helper takes this context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    PEERS.get_ptr(PeerKey::destination(cookie, server, PORT)).is_some()
}

/// Whether this CPU, or the namespace, has told as much as it may.
#[inline(always)]
fn is_over_rate(netns: u64) -> bool {
    let now = ticks();
    match DNS_RATES.get_ptr_mut(netns) {
        // SAFETY: a value of the map.
        Some(rate) => {
            if unsafe { Rate::is_over(rate, now, MOST_OF_NAMESPACE) } {
                return true;
            }
        }
        None => drop(DNS_RATES.insert(netns, Rate::first(now), 0)),
    }
    let Some(rate) = DNS_RATE.get_ptr_mut(0) else { return true };
    // SAFETY: a value of the map.
    unsafe { Rate::is_over(rate, now, MOST_OF_CPU) }
}

#[inline(always)]
fn record<const ROOM: usize>(ctx: &SkBuffContext, at: u32, whole: u32, server: Address, netns: u64) -> bool {
    emit::<DnsRecord<ROOM>>(kind::DNS_ANSWER, |record| {
        // One less than the length. Read back from the stack, so that the comparison is of the very number that the helper
        // gets, and the verifier sees that this is from 1 to the room.
        let less = u64::from(whole.min(ROOM as u32).wrapping_sub(1));
        // SAFETY: a number on the stack.
        let less = unsafe { (&raw const less).read_volatile() };
        // SAFETY: `record` is reserved; every field is written, of the payload what is said.
        unsafe {
            (*record).kind = kind::DNS_ANSWER;
            (*record).length = 0;
            (*record).at = now();
            (*record).netns = netns;
            (*record).whole = whole;
            (*record).over_loopback = u32::from((*ctx.skb.skb).ifindex == LOOPBACK);
            (*record).server = server;
            if less < ROOM as u64 {
                let length = less as u32 + 1;
                let payload = (&raw mut (*record).payload).cast();
                if bpf_skb_load_bytes(ctx.as_ptr(), at, payload, length) == 0 {
                    (*record).length = length;
                }
            }
        }
    })
}

#[inline(always)]
fn count(what: u32) {
    if let Some(count) = DNS_COUNTS.get_ptr_mut(what) {
        raise(count);
    }
}
