//! Packets that a filter of this node dropped or rejected, whoever sent them: proof of enforcement. And those that came to
//! a pod's port where nobody listens: proof that nothing was in their way.
//!
//! `kfree_skb` is called for every packet that the kernel throws away, and says why. Only reasons that mean a filter or a
//! closed port are looked at, and of those packets only the ones that attempt something new: a TCP SYN, a datagram that
//! is no answer. Of a datagram for a closed port nothing tells whether it answers something, so it is left alone.
//!
//! A SYN that is sent again carries the same sequence number, so one attempt is one record, however often it tries; a
//! datagram is told again after an interval, as its flow is. How many packets were not told is counted, see
//! [`dropped`](netaudit_ebpf::abi::dropped). What is too much to be told one by one is folded, as flows are.
//!
//! Nothing here can be attached to a cgroup: drops of all the kernel come here, and another node may run on it. What
//! is not of this node's namespaces or processes is left alone.

use aya_ebpf::{cty::c_void, programs::BtfTracePointContext};
use netaudit_ebpf::abi::{Address, DropRecord, NO_FIELD, NO_SOCKET, dropped, kind};

use crate::{
    IPPROTO_TCP, IPPROTO_UDP,
    cgroup::levels_below,
    maps::{DROP_COUNTS, DROP_RATE, DROPS, NAMESPACES, emit_or, raise, setting},
    overload::fold_drop,
    rate::Rate,
    socket::{address_of, now, read, ticks},
};

/// What a packet attempts. One of these is one attempt, if the sequence number is the same too.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DropKey {
    source: Address,
    destination: Address,
    source_port: u16,
    destination_port: u16,
    protocol: u32,
}

/// What was last told of it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Told {
    /// TCP: the SYN's sequence number.
    sequence: u32,
    /// When, by [`ticks`].
    at: u32,
}

/// Records that one CPU may make in an interval: about a thousand a second. A scan or a flood must not push the flows
/// out of the ring: the rest of it is folded.
const RATE: u32 = 1_000;

/// How a look at a packet ended.
enum Seen {
    /// It attempts something: the attempt and a SYN's sequence number.
    Attempt(DropKey, u32),
    /// It is a later part of something, or of no protocol that policies speak of.
    Other,
    /// Its headers are not where they can be read.
    Unreadable,
}

/// `kfree_skb`: the packet, where it was dropped, and why.
#[inline(always)]
pub fn dropped(ctx: &BtfTracePointContext) {
    let Some(reason) = place_of(ctx.arg(2)) else { return };
    let packet: *const c_void = ctx.arg(0);
    let packet = address_of(packet);
    let closed = reason == NO_SOCKET;
    // No policy speaks of what a pod does with itself.
    if closed && came_over_loopback(packet) {
        return;
    }
    let Some(netns) = namespace_of(packet) else { return };
    // Nor of the node's own ports.
    if closed && netns == setting!(host_netns) {
        return;
    }
    let (key, sequence) = match look(packet) {
        Seen::Attempt(key, sequence) => (key, sequence),
        Seen::Other => return,
        Seen::Unreadable => return count(dropped::UNREADABLE),
    };
    if closed {
        // With itself by other ways, too.
        if key.protocol == IPPROTO_TCP && key.source.0 != key.destination.0 {
            tell(&key, sequence, reason, netns, 1);
        }
        return;
    }
    let tracked = match conntrack(packet) {
        Conntrack::Answer => return count(dropped::ANSWER),
        Conntrack::Unknown => 0,
        Conntrack::Original => 1,
    };
    let told = Told { sequence, at: ticks() };
    if let Some(known) = DROPS.get_ptr(key) {
        // SAFETY: a value of the map; whoever writes beside us tells of the same attempt.
        let known = unsafe { *known };
        let again = if key.protocol == IPPROTO_TCP {
            known.sequence == sequence
        } else {
            // Somewhat less than the interval of flows: the drop of a datagram whose flow is told again is told too.
            let interval = setting!(udp_retell);
            told.at.wrapping_sub(known.at) <= interval - interval / 8
        };
        if again {
            return count(dropped::REPEATED);
        }
    }
    tell(&key, sequence, reason, netns, tracked);
    count(dropped::RECORDED);
    // Where the map is in use beside us, one is told too often.
    let _ = DROPS.insert(key, told, 0);
}

/// Makes a record, or adds to a fold where that would be too much.
#[inline(always)]
fn tell(key: &DropKey, sequence: u32, reason: u32, netns: u64, tracked: u32) {
    let fill = |record: *mut DropRecord| {
        // SAFETY: `record` has the room; every field is written.
        unsafe {
            (*record).kind = kind::DROP;
            (*record).reason = reason;
            (*record).at = now();
            (*record).netns = netns;
            (*record).source = key.source;
            (*record).destination = key.destination;
            (*record).source_port = key.source_port;
            (*record).destination_port = key.destination_port;
            (*record).protocol = key.protocol;
            (*record).sequence = sequence;
            (*record).tracked = tracked;
        }
    };
    // A closed port is as rare as whoever tries it, whose own flow is told without a limit too.
    let may = reason == NO_SOCKET || !is_over_rate(ticks());
    emit_or(kind::DROP, may, fill, fold_drop);
}

/// The place of the kernel's reason in the list of those that are told.
#[inline(always)]
fn place_of(reason: u32) -> Option<u32> {
    let known = setting!(drop_reasons);
    // Zero is "not dropped", and stands for a reason that this kernel does not have.
    if reason == 0 {
        None
    } else if reason == known[0] {
        Some(0)
    } else if reason == known[1] {
        Some(1)
    } else if reason == known[2] {
        Some(2)
    } else if reason == known[3] {
        Some(3)
    } else if reason == known[4] {
        Some(4)
    } else if reason == known[5] {
        Some(5)
    } else {
        None
    }
}

/// Whether a packet that is received came from its own namespace: the cheapest question, as nearly all are that find no socket.
#[inline(always)]
fn came_over_loopback(packet: u64) -> bool {
    /// The loopback device's number in every namespace.
    const LOOPBACK: u32 = 1;
    let device: u64 = read(packet + u64::from(setting!(skb_device)));
    device != 0 && read::<u32>(device + u64::from(setting!(device_index))) == LOOPBACK
}

/// The cookie of the namespace that dropped it, if that is one of this node.
#[inline(always)]
fn namespace_of(packet: u64) -> Option<u64> {
    let device: u64 = read(packet + u64::from(setting!(skb_device)));
    let socket: u64 = read(packet + u64::from(setting!(skb_socket)));
    // A packet that has crossed a pair of devices is already in the other's namespace, and may still show its sender's
    // socket. One that a socket has just made has no device yet.
    let net: u64 = if device != 0 {
        read(device + u64::from(setting!(device_net)))
    } else if socket != 0 {
        read(socket + u64::from(setting!(sk_net)))
    } else {
        return None;
    };
    let netns: u64 = read(net + u64::from(setting!(net_cookie)));
    let ours = setting!(watched) == 0
        || netns == setting!(host_netns)
        || NAMESPACES.get_ptr(netns).is_some()
        || socket != 0 && levels_below(read(socket + u64::from(setting!(sk_cgroup)))).is_some();
    if ours { Some(netns) } else { None }
}

/// What connection tracking knows of a packet.
enum Conntrack {
    /// Nothing: there is none, or it did not come to it.
    Unknown,
    /// It goes the way that the connection was opened in.
    Original,
    /// It answers.
    Answer,
}

#[inline(always)]
fn conntrack(packet: u64) -> Conntrack {
    /// The low bits of the field, beside the pointer to the connection.
    const INFO: u64 = 7;
    /// `IP_CT_ESTABLISHED_REPLY` and `IP_CT_RELATED_REPLY`.
    const REPLIES: core::ops::RangeInclusive<u64> = 3..=4;
    let offset = setting!(skb_conntrack);
    if offset == NO_FIELD {
        return Conntrack::Unknown;
    }
    let field: u64 = read(packet + u64::from(offset));
    if field & !INFO == 0 {
        Conntrack::Unknown
    } else if REPLIES.contains(&(field & INFO)) {
        Conntrack::Answer
    } else {
        Conntrack::Original
    }
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

#[inline(always)]
fn look(packet: u64) -> Seen {
    let protocol: u16 = read(packet + u64::from(setting!(skb_protocol)));
    let head: u64 = read(packet + u64::from(setting!(skb_head)));
    let at: u16 = read(packet + u64::from(setting!(skb_network_header)));
    let tail: u32 = read(packet + u64::from(setting!(skb_tail)));
    let bytes = Bytes { head, tail };
    match u16::from_be(protocol) {
        IPV4 => look4(bytes, at.into()),
        IPV6 => look6(bytes, at.into()),
        _ => Seen::Other,
    }
}

/// A packet's linear part: headers that are still in a page of the driver's cannot be read from here.
#[derive(Clone, Copy)]
struct Bytes {
    head: u64,
    tail: u32,
}

impl Bytes {
    /// What stands `at` bytes from the head, if all of it does.
    #[inline(always)]
    fn read<T: Copy>(self, at: u32) -> Option<T> {
        if at + size_of::<T>() as u32 > self.tail { None } else { Some(read(self.head + u64::from(at))) }
    }
}

#[inline(always)]
fn look4(bytes: Bytes, at: u32) -> Seen {
    const PIECE: u16 = 0x1fff;
    let Some(header) = bytes.read::<[u32; 5]>(at) else { return Seen::Unreadable };
    let [first, ..] = header[0].to_ne_bytes();
    let [.., flags, piece] = header[1].to_ne_bytes();
    let [_, protocol, ..] = header[2].to_ne_bytes();
    if first >> 4 != 4 {
        return Seen::Unreadable;
    }
    // Only the first piece of a packet says what it is.
    if u16::from_be_bytes([flags, piece]) & PIECE != 0 {
        return Seen::Other;
    }
    let ends = (Address::v4(header[3]), Address::v4(header[4]));
    look_transport(bytes, at + u32::from(first & 0xf) * 4, protocol, ends)
}

#[inline(always)]
fn look6(bytes: Bytes, at: u32) -> Seen {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    /// Headers between that are passed over: who sends more means no good, and the verifier follows each.
    const MOST: u32 = 4;
    let Some(header) = bytes.read::<[u32; 10]>(at) else { return Seen::Unreadable };
    let [first, ..] = header[0].to_ne_bytes();
    let [_, _, mut next, _] = header[1].to_ne_bytes();
    if first >> 4 != 6 {
        return Seen::Unreadable;
    }
    let ends = (
        Address([header[2], header[3], header[4], header[5]]),
        Address([header[6], header[7], header[8], header[9]]),
    );
    let mut at = at + size_of_val(&header) as u32;
    for _ in 0..MOST {
        if next != HOP_BY_HOP && next != ROUTING && next != FRAGMENT && next != DESTINATION {
            break;
        }
        let Some([following, length, high, low]) = bytes.read::<[u8; 4]>(at) else { return Seen::Unreadable };
        if next == FRAGMENT {
            if u16::from_be_bytes([high, low]) >> 3 != 0 {
                return Seen::Other;
            }
            at += 8;
        } else {
            at += (u32::from(length) + 1) * 8;
        }
        next = following;
    }
    if next == HOP_BY_HOP || next == ROUTING || next == FRAGMENT || next == DESTINATION {
        return Seen::Unreadable;
    }
    look_transport(bytes, at, next, ends)
}

#[inline(always)]
fn look_transport(bytes: Bytes, at: u32, protocol: u8, (source, destination): (Address, Address)) -> Seen {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    let protocol = u32::from(protocol);
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
        return Seen::Other;
    }
    let Some(ports) = bytes.read::<[u16; 2]>(at) else { return Seen::Unreadable };
    let mut sequence = 0;
    if protocol == IPPROTO_TCP {
        let Some(number) = bytes.read::<u32>(at + 4) else { return Seen::Unreadable };
        let Some(flags) = bytes.read::<u8>(at + 13) else { return Seen::Unreadable };
        if flags & (FIN | SYN | RST | ACK) != SYN {
            return Seen::Other;
        }
        sequence = u32::from_be(number);
    }
    let key = DropKey {
        source,
        destination,
        source_port: u16::from_be(ports[0]),
        destination_port: u16::from_be(ports[1]),
        protocol,
    };
    Seen::Attempt(key, sequence)
}

/// Whether this CPU has told as much as it may.
#[inline(always)]
fn is_over_rate(now: u32) -> bool {
    let Some(rate) = DROP_RATE.get_ptr_mut(0) else { return true };
    // SAFETY: this CPU's slot.
    unsafe { Rate::is_over(rate, now, RATE) }
}

#[inline(always)]
fn count(what: u32) {
    if let Some(count) = DROP_COUNTS.get_ptr_mut(what) {
        raise(count);
    }
}
