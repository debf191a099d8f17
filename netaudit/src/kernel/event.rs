//! What the kernel side tells.

use std::num::NonZeroU64;

use crate::model::{Answer, CgroupId, DnsAnswer, NetnsCookie, Observation, PacketDrop, RawSocket, Timestamp};

/// What the kernel told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A flow, or several alike in one.
    Flow(Observation),
    /// An answer or an error came for a UDP flow that was told as sent.
    Answer(Answer),
    /// Somebody made a socket that makes its own packets.
    RawSocket(RawSocket),
    /// A filter of this node dropped the first packet of an attempt.
    Drop(PacketDrop),
    /// A DNS answer came to a socket that had asked for it.
    Dns(DnsAnswer),
    /// A cgroup exists: from a scan, or made just now.
    Cgroup {
        /// Its id.
        id: CgroupId,
        /// Its path from [`Kernel::cgroup_mount`](super::Kernel::cgroup_mount), such as `/kubepods/burstable/pod<uid>/<container>`.
        path: String,
        /// When it was made, unless it comes from a scan.
        made: Option<Timestamp>,
    },
    /// A cgroup is gone. Flows of its processes may still follow.
    CgroupGone {
        /// Its id.
        id: CgroupId,
        /// When.
        at: Timestamp,
    },
    /// Flows of which no more is known than whose they are.
    FoldedSubject {
        /// The namespace that their sockets live in.
        netns: NetnsCookie,
        /// What kind of record each would have been, such as `tcp-established`.
        kind: &'static str,
        /// How many.
        count: NonZeroU64,
        /// When the last of them began.
        last: Timestamp,
    },
    /// A process exists: from a scan.
    Task {
        /// The namespace that it is in.
        netns: NetnsCookie,
        /// The cgroup that it is in.
        cgroup: CgroupId,
        /// Its thread group id, in the first pid namespace.
        pid: u32,
    },
}

/// Something that the kernel may or may not have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Feature {
    /// What it is for: one of the constants of this type.
    pub name: &'static str,
    /// Why it is not there; `None` where it is.
    pub absent: Option<String>,
}

impl Feature {
    /// A connected UDP socket's flow begins with its first datagram, and not with `connect`.
    pub const UDP_FIRST_DATAGRAM: &str = "udp first datagram";
    /// Processes from before the start are found, with their namespaces.
    pub const TASKS: &str = "tasks";
    /// Sockets that served before the start are found, with their processes, and packet sockets.
    pub const LISTENERS: &str = "listeners";
    /// Open connections are looked at, also those from before the start.
    pub const CONNECTIONS: &str = "connections";
    /// ICMP errors for datagrams are seen.
    pub const UDP_ERRORS: &str = "udp errors";
    /// Packets that a filter drops are seen.
    pub const DROPS: &str = "drops";
    /// DNS answers are seen. Only there where that is asked for.
    pub const DNS_ANSWERS: &str = "dns answers";
    /// The programs outlive the agent. Only there where that is asked for.
    pub const PINS: &str = "pins";
}

/// Packets that a filter dropped and that attempt something, by what became of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DropCount {
    /// `recorded`, `repeated` (one that was told is sent again), `answer` (of a connection), `unreadable`.
    pub told: &'static str,
    /// How many, since load.
    pub count: u64,
}

/// Packets from port 53 that reached a socket, by what became of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DnsCount {
    /// `recorded`, `unasked` (the socket has sent nothing there), `not-dns`, `empty` (an error, or no record).
    pub became: &'static str,
    /// How many, since load.
    pub count: u64,
}

/// Records that could not be delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loss {
    /// Where: `ring`, `fold` where at least the subject of each is known, or `upgrade` for records of programs of another version.
    pub stage: &'static str,
    /// What kind of record, such as `tcp-established`.
    pub cause: &'static str,
    /// On which CPU.
    pub cpu: u32,
    /// How many, since load.
    pub count: u64,
}
