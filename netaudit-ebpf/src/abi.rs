//! The layout of what crosses from the kernel to the agent, and of what the agent tells the programs at load.
//!
//! Everything is `repr(C)` with explicit padding, and flags and kinds are plain integers: a record comes out of shared
//! memory, where an `enum` or a `bool` with a value that Rust does not know would be undefined behaviour. Sizes and
//! offsets are asserted at compile time, for both sides at once.

use core::mem::{offset_of, size_of};

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
pub const VERSION: u32 = 1;

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
    /// A filter of the node dropped a packet: a [`super::DropRecord`].
    pub const DROP: u32 = 11;
    /// Not a record: a dropped packet that was not told, since too many are being told. Counts as a loss.
    pub const DROP_LIMITED: u32 = 12;
    /// UDP, source side: an answer came for a flow that was told as sent: an [`super::AnswerRecord`].
    pub const UDP_ANSWERED: u32 = 13;
    /// UDP, source side: an ICMP error came for a flow that was told as sent: an [`super::AnswerRecord`].
    pub const UDP_ERROR: u32 = 14;
    /// A socket was made that makes its own packets: a [`super::RawSocketRecord`].
    pub const RAW_SOCKET: u32 = 15;
    /// One more than the greatest kind.
    pub const COUNT: u32 = 16;

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
            DROP_LIMITED => "drop-limited",
            UDP_ANSWERED => "udp-answered",
            UDP_ERROR => "udp-error",
            RAW_SOCKET => "raw-socket",
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
/// program's doing. [`Settings::drop_reasons`] has their numbers in this order, and a record the place in it.
pub const DROP_REASONS: [&str; 5] = ["NETFILTER_DROP", "TC_INGRESS", "TC_EGRESS", "XDP", "BPF_CGROUP_EGRESS"];

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
    /// For `TCP_CLOSED` what the socket held, see [`detail`]; else 0.
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

/// A packet that a filter dropped: the first of an attempt. 72 bytes.
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

/// What became of the records of one kind on one CPU: each that was made was delivered to the ring, or is in one of the
/// others. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Made, whatever became of them.
    pub made: u64,
    /// Found no room, and were added to the [`Fold`] of their key.
    pub by_key: u64,
    /// Nor was there room for their key, and they were added to the fold of their subject.
    pub by_subject: u64,
    /// Nothing is left of them but this number.
    pub lost: u64,
}

/// What flow records that found no room in the ring have in common when they are folded into one count: everything that
/// a verdict, an outcome and its reach depend on. 64 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FoldKey {
    /// As in [`FlowRecord`], and so are all others of the same name.
    pub netns: u64,
    /// The opener's cgroup.
    pub cgroup: u64,
    /// This end's address.
    pub local: Address,
    /// The other end's address.
    pub remote: Address,
    /// The record's kind.
    pub kind: u32,
    /// What the socket held.
    pub detail: u32,
    /// The destination's port: the other end's on the source side, this end's on the destination side.
    pub port: u16,
    /// Bits of [`flag`] without [`flag::ACTOR`].
    pub flags: u16,
    /// How many of [`WAITED_STEPS`] passed from the attempt to its outcome.
    pub waited: u32,
}

impl FoldKey {
    /// The key of all records of one kind and one subject.
    #[inline(always)]
    pub const fn subject(netns: u64, kind: u32) -> Self {
        let none = Address([0; 4]);
        Self { netns, cgroup: 0, local: none, remote: none, kind, detail: 0, port: 0, flags: 0, waited: 0 }
    }
}

/// Nanoseconds at which the time that an aborted attempt waited gets another meaning: a fold must not mix them. The
/// agent decides what they mean.
pub const WAITED_STEPS: [u64; 2] = [200_000_000, 1_000_000_000];

/// What is kept of the records of a [`FoldKey`]. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Fold {
    /// How many.
    pub count: u64,
    /// When the first of them began, in nanoseconds since boot.
    pub first: u64,
    /// When the last of them began.
    pub last: u64,
    /// How long they waited for their outcome, all together, in nanoseconds.
    pub waited: u64,
}

/// The two levels of folds: indexes into the array of maps that takes them, and into the map of their keys' numbers.
pub mod level {
    /// Folds by [`super::FoldKey`].
    pub const KEY: u32 = 0;
    /// Folds by [`super::FoldKey::subject`], for what finds no room in the former.
    pub const SUBJECT: u32 = 1;
    /// One more than the greatest.
    pub const COUNT: u32 = 2;
}

/// Keys that one map of folds has room for.
pub const FOLD_KEYS: u32 = 16_384;

/// Subjects that one map of folds has room for.
pub const FOLD_SUBJECTS: u32 = 1_024;

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

/// Where the running kernel keeps what the programs read: byte offsets, which the agent takes from the kernel's BTF,
/// and the settings of this run. Constant once the programs are loaded.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Settings {
    /// `sock.sk_err`
    pub sk_err: u32,
    /// `sock.sk_err_soft`
    pub sk_err_soft: u32,
    /// `sock.sk_error_queue.next`
    pub error_queue_next: u32,
    /// `sock.sk_error_queue.qlen`
    pub error_queue_length: u32,
    /// From an `sk_buff` to the `sock_extended_err` in its control block.
    pub extended_error: u32,
    /// `sock.skc_incoming_cpu`
    pub sk_incoming_cpu: u32,
    /// `sock.sk_stamp`
    pub sk_stamp: u32,
    /// `sock.skc_cookie`
    pub sk_cookie: u32,
    /// The byte of `tcp_sock` that holds `is_mptcp`; [`NO_FIELD`] where the kernel has no multipath sockets
    pub is_mptcp: u32,
    /// How far `is_mptcp` stands from the low end of that byte, in bits.
    pub is_mptcp_shift: u32,
    /// `mptcp_sock.first`
    pub mptcp_first: u32,
    /// `sock.sk_cgrp_data.cgroup`
    pub sk_cgroup: u32,
    /// `sock.skc_state`
    pub sk_state: u32,
    /// `sock.skc_family`
    pub sk_family: u32,
    /// `sock.sk_type`
    pub sk_type: u32,
    /// `sock.sk_protocol`
    pub sk_protocol: u32,
    /// The byte of `sock` that holds `sk_userlocks`.
    pub sk_userlocks: u32,
    /// How far `sk_userlocks` stands from the low end of that byte, in bits.
    pub sk_userlocks_shift: u32,
    /// `sock.skc_num`
    pub sk_num: u32,
    /// `sock.skc_rcv_saddr`
    pub sk_address4: u32,
    /// `sock.skc_v6_rcv_saddr`
    pub sk_address6: u32,
    /// `sock.skc_net`
    pub sk_net: u32,
    /// `net.net_cookie`
    pub net_cookie: u32,
    /// `cgroup.kn`
    pub cgroup_node: u32,
    /// `kernfs_node.id`
    pub node_id: u32,
    /// `cgroup.root`
    pub cgroup_root: u32,
    /// `cgroup_root.hierarchy_id`
    pub hierarchy_id: u32,
    /// `cgroup.self`
    pub cgroup_self: u32,
    /// `cgroup.self.parent`, which points to the `self` of the cgroup above
    pub cgroup_parent: u32,
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.comm`
    pub task_comm: u32,
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// `css_set.dfl_cgrp`
    pub default_cgroup: u32,
    /// `task_struct.nsproxy`
    pub task_nsproxy: u32,
    /// `nsproxy.net_ns`
    pub nsproxy_net: u32,
    /// `msghdr.msg_name`
    pub message_name: u32,
    /// `sk_buff.head`
    pub skb_head: u32,
    /// `sk_buff.tail`, which counts from the head
    pub skb_tail: u32,
    /// `sk_buff.network_header`
    pub skb_network_header: u32,
    /// `sk_buff.protocol`
    pub skb_protocol: u32,
    /// `sk_buff.dev`
    pub skb_device: u32,
    /// `sk_buff.sk`
    pub skb_socket: u32,
    /// `sk_buff._nfct`; [`NO_FIELD`] where the kernel tracks no connections
    pub skb_conntrack: u32,
    /// `net_device.nd_net`
    pub device_net: u32,
    /// The kernel's numbers of [`DROP_REASONS`]; 0 for one that it does not have.
    pub drop_reasons: [u32; DROP_REASONS.len()],
    /// Bytes in the ring at which the reader is woken; 0 for never.
    pub wake_at: u32,
    /// How long after it was told a UDP flow that still goes on is told again, in steps of [`TICK_SHIFT`].
    pub udp_retell: u32,
    /// The id of the cgroup at and below which everything is told; 0 where that is all of them.
    pub watched: u64,
    /// Cookie of the node's own network namespace.
    pub host_netns: u64,
    /// Until when, in nanoseconds since boot, a UDP server that was there before the programs may be answering what it read
    /// before them.
    pub answers_until: u64,
}

/// Stands for the offset of a field that the kernel does not have and can be done without.
pub const NO_FIELD: u32 = u32::MAX;

/// A step of [`Settings::udp_retell`] is two to the power of this many nanoseconds: about a millisecond.
pub const TICK_SHIFT: u32 = 20;

/// Index into the map of switches: 1 there means that a program that sees datagrams being sent is attached, so that a
/// connected socket's flow is told at its first datagram and not at `connect`, which sends nothing.
pub const SWITCH_UDP_SEND: u32 = 0;

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
    assert!(size_of::<Tally>() == 32);
    assert!(size_of::<FoldKey>() == 64);
    assert!(offset_of!(FoldKey, local) == 16);
    assert!(offset_of!(FoldKey, kind) == 48);
    assert!(offset_of!(FoldKey, port) == 56);
    assert!(size_of::<Fold>() == 32);
    assert!(size_of::<DropRecord>() == 72);
    assert!(offset_of!(DropRecord, source) == 24);
    assert!(offset_of!(DropRecord, source_port) == 56);
    assert!(size_of::<RawSocketRecord>() == 56);
    assert!(offset_of!(RawSocketRecord, comm) == 40);
    assert!(size_of::<AnswerRecord>() == 32);
    assert!(offset_of!(AnswerRecord, sequence) == 24);
    assert!(size_of::<Settings>() == 232);
};
