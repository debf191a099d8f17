//! What sees what: each row is something that happens in a pod, the programs that record it, and what escapes them.

use serde::Serialize;

use super::selftest::Trial;
use crate::model::{Direction, Protocol};

/// Something that can be seen, or not.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sensor {
    /// Which end the pod is; `None` where there is no telling.
    pub direction: Option<Direction>,
    /// The transport; `None` where it is none that policies name.
    pub protocol: Option<Protocol>,
    /// What happens.
    pub what: &'static str,
    /// The programs that record it, by the names of their functions. Without any, nothing does.
    pub programs: &'static [&'static str],
    /// What is recorded; empty where that is nothing.
    pub seen: &'static str,
    /// What is not.
    pub unseen: &'static str,
    /// What of the self-test shows that it works; nothing where the self-test cannot make it happen.
    #[serde(skip)]
    pub shown_by: &'static [Trial],
}

/// All of them.
pub const SENSORS: &[Sensor] = &[
    Sensor {
        direction: Some(Direction::Egress),
        protocol: Some(Protocol::Tcp),
        what: "a program connects",
        programs: &["on_connect4", "on_connect6", "on_sock_ops", "on_release"],
        seen: "every attempt with its process, and how it ended: established, refused, rejected, timeout, unreachable, aborted, \
               failed",
        unseen: "how attempts ended that began before the agent started, other than those that are connected still",
        shown_by: &[Trial::Tcp4, Trial::Tcp6, Trial::Refused],
    },
    Sensor {
        direction: Some(Direction::Ingress),
        protocol: Some(Protocol::Tcp),
        what: "a listener accepts",
        programs: &["on_sock_ops", "on_release"],
        seen: "every accepted connection, with the listener's process",
        unseen: "attempts that end before the handshake does, unless a filter of this node stops them; their source's node sees \
                 those of pods",
        shown_by: &[Trial::Tcp4, Trial::Tcp6],
    },
    Sensor {
        direction: Some(Direction::Ingress),
        protocol: Some(Protocol::Tcp),
        what: "a listener accepts that was open before the agent started",
        programs: &["scan_files", "on_sock_ops"],
        seen: "the same, the process from a scan",
        unseen: "without the scan, the process: the pod is known from its network namespace all the same",
        shown_by: &[Trial::OldListener],
    },
    Sensor {
        direction: None,
        protocol: Some(Protocol::Tcp),
        what: "a connection goes on, or was open before the agent started",
        programs: &["scan_files"],
        seen: "every connection that a process holds open, with its end, by a look at all open sockets every 30 seconds: its rules are in \
               use",
        unseen: "those that no process holds (accepted by nobody yet, under way to another process, the kernel's own); of one from before \
                 the address that its program asked for; the end of one whose socket listened before it connected, and of those \
                 that CRIU restored",
        shown_by: &[Trial::OldConnection],
    },
    Sensor {
        direction: Some(Direction::Egress),
        protocol: Some(Protocol::Udp),
        what: "a program sends to a destination it names each time",
        programs: &["on_sendmsg4", "on_sendmsg6"],
        seen: "the first datagram of a socket to each destination, and again every 30 seconds while it goes on, or answers are read \
               with their sender",
        unseen: "destinations beyond the 32,768 used last are told again when they are used again",
        shown_by: &[Trial::Udp4, Trial::Udp6],
    },
    Sensor {
        direction: Some(Direction::Egress),
        protocol: Some(Protocol::Udp),
        what: "a program connects a socket, and sends",
        programs: &["on_connect4", "on_connect6", "on_sent"],
        seen: "the first datagram after each connect, and again every 30 seconds while it goes on; also of sockets that were connected \
               before the agent started",
        unseen: "where the kernel has no hook for the datagram, a connect that sends nothing counts as one; sockets from before that were \
                 bound to a port and connected, which may be answering; what only reads without asking for the sender (read, recv)",
        shown_by: &[Trial::UdpConnected],
    },
    Sensor {
        direction: Some(Direction::Egress),
        protocol: Some(Protocol::Udp),
        what: "an answer comes",
        programs: &["on_recvmsg4", "on_recvmsg6", "on_release", "on_sent"],
        seen: "answers that are read together with their sender; else, of the first flow of a socket that has only one, when it sends \
               again or closes",
        unseen: "other answers that are read without their sender (read, recv), and answers that come after five seconds",
        shown_by: &[Trial::UdpAnswered, Trial::UdpAnsweredUnnamed],
    },
    Sensor {
        direction: Some(Direction::Egress),
        protocol: Some(Protocol::Udp),
        what: "an ICMP error comes for a datagram",
        programs: &["on_error"],
        seen: "errors for connected sockets, and for those with one destination that ask for errors (IP_RECVERR)",
        unseen: "errors for other sockets: the kernel does not tell these either",
        shown_by: &[Trial::UdpRejected],
    },
    Sensor {
        direction: Some(Direction::Ingress),
        protocol: Some(Protocol::Udp),
        what: "a server reads a request",
        programs: &["on_recvmsg4", "on_recvmsg6", "on_bind4", "on_bind6"],
        seen: "the first datagram from each address, and again every 30 seconds while they come",
        unseen: "the sender, where a server reads without asking for it (read, recv)",
        shown_by: &[Trial::Udp4, Trial::Udp6],
    },
    Sensor {
        direction: None,
        protocol: None,
        what: "a filter of this node drops or rejects what begins a connection or a UDP exchange",
        programs: &["on_dropped"],
        seen: "which attempt it stopped, and attempts from elsewhere that never reached their pod",
        unseen: "filters that are no part of netfilter, tc or XDP's generic hook (Open vSwitch, native XDP)",
        shown_by: &[],
    },
    Sensor {
        direction: None,
        protocol: None,
        what: "a DNS answer comes (only where the agent has --dns-names)",
        programs: &["on_answer"],
        seen: "the names of addresses, for the pod that asked",
        unseen: "answers over TCP, TLS or HTTPS, those beyond a thousand a second and pod, and what programs knew before the agent \
                 started",
        shown_by: &[Trial::Dns],
    },
    Sensor {
        direction: None,
        protocol: Some(Protocol::Sctp),
        what: "SCTP",
        programs: &[],
        seen: "",
        unseen: "everything: no hook of ours is in its way, so a rule for nothing else is never called unused",
        shown_by: &[],
    },
    Sensor {
        direction: None,
        protocol: None,
        what: "a program makes a raw, ping or packet socket",
        programs: &["on_create", "scan_files"],
        seen: "that it does, with its process: once, and again after 30 seconds while it goes on; packet sockets, and others from before \
               the agent started, once, by a look at all open sockets every 30 seconds",
        unseen: "what goes through it; packet sockets that are gone before the next look",
        shown_by: &[Trial::RawSocket, Trial::PacketSocket],
    },
    Sensor {
        direction: None,
        protocol: None,
        what: "AF_XDP, vsock",
        programs: &[],
        seen: "",
        unseen: "everything: no hook of ours is in their way, and policies cannot name them",
        shown_by: &[],
    },
    Sensor {
        direction: None,
        protocol: None,
        what: "pods in a kernel of their own (gVisor, Kata)",
        programs: &[],
        seen: "",
        unseen: "everything: their sockets are in another kernel",
        shown_by: &[],
    },
];
