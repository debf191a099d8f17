//! The layout of what crosses from the kernel to the agent, and of what the agent tells the programs at load.
//!
//! Everything is `repr(C)` with explicit padding, and flags and kinds are plain integers: a record comes out of shared
//! memory, where an `enum` or a `bool` with a value that Rust does not know would be undefined behaviour. Sizes and
//! offsets are asserted at compile time, for both sides at once.

mod fold;
mod names;
pub mod open;
mod settings;

use core::mem::{offset_of, size_of};

pub use fold::*;
pub use names::*;
pub use settings::*;

/// An address as the kernel holds it: four words in network byte order, v4 in mapped form (`::ffff:a.b.c.d`).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// The third word of every mapped v4 address, in memory order.
    pub const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

    /// The mapped form of a v4 address, given in network byte order.
    #[inline(always)]
    pub const fn v4(network_order: u32) -> Self {
        Self([0, 0, Self::MAPPED, network_order])
    }

    /// The sixteen bytes in the order in which they are written and sent.
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = self.0;
        let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }

    /// The inverse of [`Address::octets`].
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }
}

/// The version of the records: to be raised with every change of their layout or meaning. An agent of another version takes
/// none of the records that it finds in a ring of programs that run already, and counts them as lost.
pub const VERSION: u32 = 2;

/// Sockets whose state is kept, where that is by their address.
pub const BY_ADDRESS: u32 = 65_536;

/// What a record is: the first word of each. The same numbers index the map of tallies.
pub mod kind {
    /// TCP, source side: the handshake finished.
    pub const TCP_ESTABLISHED: u32 = 1;
    /// TCP, destination side: a listener's handshake finished.
    pub const TCP_ACCEPTED: u32 = 2;
    /// TCP, source side: closed before the handshake finished; `detail` and `flags` say what the socket held.
    pub const TCP_CLOSED: u32 = 3;
    /// TCP, source side: the first retransmission of the SYN. The final record follows.
    pub const TCP_PENDING: u32 = 4;
    /// TCP, source side: the attempt ended before a SYN could be sent.
    pub const TCP_FAILED: u32 = 5;
    /// UDP, source side: the first datagram of a socket to a destination, and the first after
    /// [`super::Settings::udp_retell`].
    pub const UDP_SENT: u32 = 6;
    /// UDP, destination side: the first datagram that a server read from an address, and the first after
    /// [`super::Settings::udp_retell`].
    pub const UDP_RECEIVED: u32 = 7;
    /// A cgroup was made: a [`super::CgroupRecord`].
    pub const CGROUP_MADE: u32 = 8;
    /// A cgroup was removed: a [`super::CgroupRecord`].
    pub const CGROUP_REMOVED: u32 = 9;
    /// Not a record: the socket's storage could not be allocated, so its flow cannot be told. Counts as a loss.
    pub const NO_STORAGE: u32 = 10;
    /// A filter of the node dropped a packet, or nobody listens where it was going: a [`super::DropRecord`].
    pub const DROP: u32 = 11;
    /// UDP, source side: an answer came for a flow that was told as sent: an [`super::AnswerRecord`].
    pub const UDP_ANSWERED: u32 = 13;
    /// UDP, source side: an ICMP error came for a flow that was told as sent: an [`super::AnswerRecord`].
    pub const UDP_ERROR: u32 = 14;
    /// A socket was made that makes its own packets: a [`super::RawSocketRecord`].
    pub const RAW_SOCKET: u32 = 15;
    /// A DNS answer came: a [`super::DnsRecord`] of either size.
    pub const DNS_ANSWER: u32 = 16;
    /// Not a record: a DNS answer that was not told, since too many are being told. Counts as a loss.
    pub const DNS_LIMITED: u32 = 18;
    /// One more than the greatest kind.
    pub const COUNT: u32 = 19;

    /// The word for a kind in metrics and logs; `None` for a number that is none.
    pub const fn name(kind: u32) -> Option<&'static str> {
        Some(match kind {
            TCP_ESTABLISHED => "tcp-established",
            TCP_ACCEPTED => "tcp-accepted",
            TCP_CLOSED => "tcp-closed",
            TCP_PENDING => "tcp-pending",
            TCP_FAILED => "tcp-failed",
            UDP_SENT => "udp-sent",
            UDP_RECEIVED => "udp-received",
            CGROUP_MADE => "cgroup-made",
            CGROUP_REMOVED => "cgroup-removed",
            NO_STORAGE => "no-storage",
            DROP => "drop",
            UDP_ANSWERED => "udp-answered",
            UDP_ERROR => "udp-error",
            RAW_SOCKET => "raw-socket",
            DNS_ANSWER => "dns-answer",
            DNS_LIMITED => "dns-limited",
            _ => return None,
        })
    }
}

/// What became of a packet that a filter dropped and that attempts something: indexes the map of their counts. Those
/// that found no room in the ring or were too many are among the losses.
pub mod dropped {
    /// A [`super::DropRecord`] was made.
    pub const RECORDED: u32 = 0;
    /// It was sent again, and had been told: the same SYN, or a datagram within the interval.
    pub const REPEATED: u32 = 1;
    /// Connection tracking knows it for an answer.
    pub const ANSWER: u32 = 2;
    /// What it attempts could not be read.
    pub const UNREADABLE: u32 = 3;
    /// One more than the greatest.
    pub const COUNT: u32 = 4;

    /// The word for it in metrics; `None` for a number that is none.
    pub const fn name(what: u32) -> Option<&'static str> {
        Some(match what {
            RECORDED => "recorded",
            REPEATED => "repeated",
            ANSWER => "answer",
            UNREADABLE => "unreadable",
            _ => return None,
        })
    }
}

/// The kernel's reasons that mean a filter of the node, by their names without `SKB_DROP_REASON_`: netfilter in all its
/// forms, what programs at tc and (generic) XDP drop, and cgroup programs at egress. What a socket's own filter drops is its
/// program's doing. The last one means that no socket wants the packet. [`Settings::drop_reasons`] has their numbers in this
/// order, and a record the place in it.
pub const DROP_REASONS: [&str; 6] =
    ["NETFILTER_DROP", "TC_INGRESS", "TC_EGRESS", "XDP", "BPF_CGROUP_EGRESS", "NO_SOCKET"];

/// The place of the reason that means a closed port.
pub const NO_SOCKET: u32 = 5;

/// Bits of [`FlowRecord::flags`].
pub mod flag {
    /// `pid`, `comm` and `cgroup` are those of the socket's opener. Without it only `cgroup` may be known.
    pub const ACTOR: u16 = 1;
    /// The socket had received a segment.
    pub const ANSWERED: u16 = 2;
    /// `detail` holds the type and code of an ICMP message that was queued on the socket.
    pub const ICMP: u16 = 4;
    /// Of an [`AnswerRecord`](super::AnswerRecord): the peer's address is v4, so that the ICMP is version 4.
    pub const V4: u16 = 8;
}

/// A flow. 128 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FlowRecord {
    /// One of [`kind`], from `TCP_ESTABLISHED` to `UDP_RECEIVED`.
    pub kind: u32,
    /// For `TCP_CLOSED` what the socket held, see [`detail`]. For `TCP_ESTABLISHED` and `TCP_ACCEPTED` the sequence number of the
    /// first byte that the end which accepts sends: the same at both ends. Else 0.
    pub detail: u32,
    /// When the record was made, in nanoseconds since boot.
    pub at: u64,
    /// When the attempt began, in nanoseconds since boot; equal to `at` on the destination side.
    pub started: u64,
    /// Cookie of the socket's network namespace.
    pub netns: u64,
    /// The opener's cgroup; 0 where nothing told it.
    pub cgroup: u64,
    /// The socket's cookie.
    pub socket: u64,
    /// Tells the attempts of one socket apart; a UDP flow that is told again counts as another.
    pub sequence: u32,
    /// The opener's thread group id, in the first pid namespace.
    pub pid: u32,
    /// The opener's command name.
    pub comm: [u8; 16],
    /// This end's address, unspecified where none is chosen yet.
    pub local: Address,
    /// The other end's address as the socket holds it.
    pub remote: Address,
    /// The address that the program asked for; equal to `remote` where nobody rewrote it.
    pub requested: Address,
    /// Host byte order.
    pub local_port: u16,
    /// Host byte order.
    pub remote_port: u16,
    /// Host byte order.
    pub requested_port: u16,
    /// Bits of [`flag`].
    pub flags: u16,
}

/// What came back for a UDP flow, which its socket and sequence number name. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct AnswerRecord {
    /// [`kind::UDP_ANSWERED`] or [`kind::UDP_ERROR`].
    pub kind: u32,
    /// For `UDP_ERROR` what the socket holds, see [`detail`]; else 0.
    pub detail: u32,
    /// When it was noticed, in nanoseconds since boot: an answer when the program reads it, sends again or closes.
    pub at: u64,
    /// As in the [`FlowRecord`].
    pub socket: u64,
    /// As in the [`FlowRecord`].
    pub sequence: u32,
    /// Bits of [`flag`].
    pub flags: u32,
}

/// What a socket held when it closed before its handshake finished, or of an ICMP error: four bytes in one word.
pub mod detail {
    /// Packs `sk_err`, `sk_err_soft`, and the type and code of a queued ICMP message.
    #[inline(always)]
    pub const fn pack(error: u8, soft: u8, icmp_type: u8, icmp_code: u8) -> u32 {
        error as u32 | (soft as u32) << 8 | (icmp_type as u32) << 16 | (icmp_code as u32) << 24
    }

    /// The inverse of [`pack`]: `[error, soft, icmp_type, icmp_code]`.
    pub const fn unpack(detail: u32) -> [u8; 4] {
        detail.to_le_bytes()
    }
}

/// Bytes of path that a [`CgroupRecord`] has room for, the final zero included.
pub const CGROUP_PATH: usize = 992;

/// A cgroup that came or went. 1,024 bytes; such records are rare.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CgroupRecord {
    /// [`kind::CGROUP_MADE`] or [`kind::CGROUP_REMOVED`].
    pub kind: u32,
    /// Bytes of `path` in use without the final zero. A path that fills all the room may have been cut.
    pub length: u32,
    /// When, in nanoseconds since boot.
    pub at: u64,
    /// The cgroup's id.
    pub id: u64,
    /// How many levels it lies below [`Settings::watched`], which is how many components at the end of `path` are
    /// below that; 0 where everything is watched.
    pub below: u32,
    /// Zero.
    pub reserved: u32,
    /// The path below the real root of the v2 hierarchy, from `/`, whatever the agent has mounted of it.
    pub path: [u8; CGROUP_PATH],
}

/// A packet that a filter dropped, the first of an attempt, or that found nobody listening. 72 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DropRecord {
    /// [`kind::DROP`].
    pub kind: u32,
    /// Index into [`DROP_REASONS`].
    pub reason: u32,
    /// When, in nanoseconds since boot.
    pub at: u64,
    /// Cookie of the network namespace that dropped it.
    pub netns: u64,
    /// Where it came from, as its header said then.
    pub source: Address,
    /// Where it was going, as its header said then: before or after any translation.
    pub destination: Address,
    /// Host byte order.
    pub source_port: u16,
    /// Host byte order.
    pub destination_port: u16,
    /// 6 or 17, as the header has it.
    pub protocol: u32,
    /// TCP: the SYN's sequence number, which is the same when it is sent again.
    pub sequence: u32,
    /// 1 where connection tracking knows that it is no answer; 0 where nothing tells.
    pub tracked: u32,
}

/// Kinds of sockets that make their own packets.
pub mod raw {
    /// `SOCK_RAW` of IPv4 or IPv6.
    pub const IP: u32 = 1;
    /// `SOCK_DGRAM` of ICMP.
    pub const PING: u32 = 2;
    /// `AF_PACKET` of any type.
    pub const PACKET: u32 = 3;
}

/// A socket that makes its own packets, and who made it. 56 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RawSocketRecord {
    /// [`kind::RAW_SOCKET`].
    pub kind: u32,
    /// One of [`raw`].
    pub socket: u32,
    /// When, in nanoseconds since boot.
    pub at: u64,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// The cgroup of who made it.
    pub cgroup: u64,
    /// Thread group id of who made it, in the first pid namespace.
    pub pid: u32,
    /// The protocol that it was made for: IP's number, or Ethernet's of a packet socket.
    pub protocol: u32,
    /// The command name of who made it.
    pub comm: [u8; 16],
}

/// A task, as the task iterator writes it. 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TaskRecord {
    /// Cookie of the task's network namespace.
    pub netns: u64,
    /// The task's cgroup in the v2 hierarchy.
    pub cgroup: u64,
    /// Thread group id, in the first pid namespace.
    pub pid: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<FlowRecord>() == 128);
    assert!(offset_of!(FlowRecord, at) == 8);
    assert!(offset_of!(FlowRecord, sequence) == 48);
    assert!(offset_of!(FlowRecord, comm) == 56);
    assert!(offset_of!(FlowRecord, local) == 72);
    assert!(offset_of!(FlowRecord, local_port) == 120);
    assert!(offset_of!(FlowRecord, flags) == 126);
    assert!(size_of::<CgroupRecord>() == 1024);
    assert!(offset_of!(CgroupRecord, below) == 24);
    assert!(offset_of!(CgroupRecord, path) == 32);
    assert!(size_of::<TaskRecord>() == 24);
    assert!(size_of::<DropRecord>() == 72);
    assert!(offset_of!(DropRecord, source) == 24);
    assert!(offset_of!(DropRecord, source_port) == 56);
    assert!(size_of::<RawSocketRecord>() == 56);
    assert!(offset_of!(RawSocketRecord, comm) == 40);
    assert!(size_of::<AnswerRecord>() == 32);
    assert!(offset_of!(AnswerRecord, sequence) == 24);
};
