//! A flow as the kernel showed it, before anybody asked who takes part in it.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use super::{Direction, Protocol, Timestamp};

/// A network namespace by its cookie: unlike an inode the kernel never gives the same one twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NetnsCookie(pub u64);

/// A cgroup v2 by its id, which is the inode of its directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CgroupId(pub u64);

/// A task's command name as the kernel keeps it: at most 15 bytes, padded with zeros, not necessarily UTF-8.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Comm(pub [u8; 16]);

impl Comm {
    /// The first 15 bytes of `name`.
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
            *to = from;
        }
        Self(bytes)
    }

    /// Whether the kernel told no name.
    pub fn is_empty(&self) -> bool {
        self.0[0] == 0
    }
}

impl fmt::Display for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        f.pad(&String::from_utf8_lossy(&self.0[..end]))
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// Who acted: the process that opened the socket, and the cgroup that it ran in.
///
/// For an accepted connection that is the listener's opener. A `pid` of 0 means that the hook could not tell.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Actor {
    /// The cgroup of the opener; `None` where the socket was open before the agent and nothing named its cgroup.
    pub cgroup: Option<CgroupId>,
    /// Thread group id in the host's pid namespace.
    pub pid: u32,
    /// Command name at the time of the call.
    pub comm: Comm,
}

/// What the socket saw. The words are the flow log's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// TCP: the handshake finished.
    Established,
    /// TCP: answered by a reset. Destination side: nobody listened.
    Refused,
    /// Answered by an ICMP message of a filter (v4 3/3, 3/9, 3/10, 3/13; v6 1/1, 1/4); for UDP by any port-unreachable.
    Rejected,
    /// TCP: the kernel gave up waiting for an answer.
    Timeout,
    /// No way to the peer: another ICMP message, or no neighbour answered.
    Unreachable,
    /// TCP: the program closed the socket before an answer came.
    Aborted,
    /// The attempt never left the node (no route, no address to send from).
    Failed,
    /// TCP: no answer yet, after the first retransmission. Not final, unless the agent ends.
    Pending,
    /// UDP: sent; nothing is known of an answer, and nothing need have come.
    Sent,
    /// UDP: sent, and an answer came.
    Answered,
    /// Destination side, TCP: accepted by a listener.
    Accepted,
    /// Destination side, UDP: a server received it.
    Received,
    /// Destination side: this node's filter dropped it.
    Dropped,
}

impl Outcome {
    /// The word of the flow log and the CLI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Aborted => "aborted",
            Self::Failed => "failed",
            Self::Pending => "pending",
            Self::Sent => "sent",
            Self::Answered => "answered",
            Self::Accepted => "accepted",
            Self::Received => "received",
            Self::Dropped => "dropped",
        }
    }
}

/// The error that an ICMP message became at the socket, as the kernel numbers errors on every machine that we run on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Errno(pub u8);

impl Errno {
    /// Permission denied: IPv6, administratively prohibited.
    pub const EACCES: Self = Self(13);
    /// No route to the network.
    pub const ENETUNREACH: Self = Self(101);
    /// Port unreachable.
    pub const ECONNREFUSED: Self = Self(111);
    /// No route to the host; IPv4, administratively prohibited.
    pub const EHOSTUNREACH: Self = Self(113);

    /// The word of the flow log; the number for one that no ICMP message becomes.
    pub fn name(self) -> Cow<'static, str> {
        match self {
            Self::EACCES => "EACCES".into(),
            Self::ENETUNREACH => "ENETUNREACH".into(),
            Self::ECONNREFUSED => "ECONNREFUSED".into(),
            Self::EHOSTUNREACH => "EHOSTUNREACH".into(),
            Self(64) => "ENONET".into(),
            Self(71) => "EPROTO".into(),
            Self(92) => "ENOPROTOOPT".into(),
            Self(95) => "EOPNOTSUPP".into(),
            Self(112) => "EHOSTDOWN".into(),
            Self(other) => other.to_string().into(),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What an outcome proves about the packets of the flow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// The peer got it: established, accepted, answered, received.
    Reached,
    /// Somebody answered with a refusal: refused, rejected.
    Rejected,
    /// A drop record of this node's filter belongs to it.
    Stopped,
    /// Nobody answered: timeout, unreachable, pending, or aborted after a wait.
    NoAnswer,
    /// It never left.
    NotSent,
    /// Nothing is proven: UDP sent, or aborted at once.
    Unproven,
}

impl Reach {
    /// Every value, for metrics that exist from the start.
    pub const ALL: [Self; 6] =
        [Self::Reached, Self::Rejected, Self::Stopped, Self::NoAnswer, Self::NotSent, Self::Unproven];

    /// The word of the flow log and the metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reached => "reached",
            Self::Rejected => "rejected",
            Self::Stopped => "stopped",
            Self::NoAnswer => "no-answer",
            Self::NotSent => "not-sent",
            Self::Unproven => "unproven",
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One kernel record, decoded: a flow whose ends are still only addresses, a namespace and a cgroup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Observation {
    /// When the attempt began (egress) or was seen (ingress).
    pub at: Timestamp,
    /// Which end the socket is.
    pub direction: Direction,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The namespace that the socket lives in: names the subject. Of a [dropped](Outcome::Dropped) one, the namespace
    /// that dropped it.
    pub netns: NetnsCookie,
    /// Who opened the socket.
    pub actor: Actor,
    /// This end. The address is unspecified where the kernel had not chosen one yet; the port is the ephemeral one on
    /// egress and the listener's on ingress.
    pub local: SocketAddr,
    /// The other end as the socket holds it after any rewriting at the socket.
    pub remote: SocketAddr,
    /// What the program asked for, where another program rewrote it at the socket.
    pub requested: Option<SocketAddr>,
    /// What the socket saw.
    pub outcome: Outcome,
    /// The error of an outcome that an ICMP message decided.
    pub errno: Option<Errno>,
    /// From the attempt to its outcome. Zero for accepted, received and sent.
    pub waited: Duration,
    /// Whether any answer came before the outcome (for `aborted`).
    pub answered: bool,
    /// Identifies the attempt: the socket's cookie, which the kernel uses again for the next UDP destination, with
    /// `sequence` beside it.
    pub socket: u64,
    /// Tells attempts of one socket apart.
    pub sequence: u32,
    /// What both ends of a TCP connection that was made know of it, and nobody else, so that they can be told to belong together:
    /// the number of the first byte that the end which accepted sends.
    pub handshake: Option<NonZeroU32>,
    /// Where the kernel's ring had no room for each: how many alike this one stands for.
    pub folded: Option<Folded>,
    /// Where its packets went, where that is known and another address than the socket's.
    pub translated: Option<Translated>,
    /// Whether an earlier agent run, which ended before it was done with this record, may have told of it.
    pub maybe_repeated: bool,
}

/// Where packets went that were addressed to somewhere else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translated {
    /// The address that carried the flow.
    pub to: SocketAddr,
    /// What tells so.
    pub by: Translation,
}

/// How it is known where a flow went, whose program asked for another address. The words are the flow log's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Translation {
    /// A program rewrote the address at the socket.
    Socket,
    /// Of a Service's address: all of its endpoints get the same verdict.
    Endpoints,
    /// The node's connection tracking was asked.
    Conntrack,
    /// The other end was seen too: a socket that accepted it, or a packet of it that was dropped or found a closed port.
    Destination,
    /// It was redirected to a proxy in the subject's own namespace, whose connections to others are flows of their own.
    Proxy,
    /// It is not known: the subject's own namespace redirects connections to the port that accepted it, so that it may have been
    /// addressed to another one.
    Redirect,
}

impl Translation {
    /// The word of the flow log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Endpoints => "endpoints",
            Self::Conntrack => "conntrack",
            Self::Destination => "destination",
            Self::Proxy => "proxy",
            Self::Redirect => "redirect",
        }
    }
}

impl fmt::Display for Translation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Observations of which only the number was kept: they have their namespace and cgroup, both addresses, the port that
/// policies speak of and the outcome in common. Of the observation that stands for them, `at` is the last one's, `waited`
/// is their mean, the other port, the process and the socket are 0, and what was asked for is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Folded {
    /// How many.
    pub count: NonZeroU64,
    /// When the first of them began.
    pub first: Timestamp,
}

/// What came back for a UDP flow that was observed as [sent](Outcome::Sent): it decides the flow's outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// When it was noticed.
    pub at: Timestamp,
    /// The socket and the sequence number of the flow's [`Observation`].
    pub socket: u64,
    /// See `socket`.
    pub sequence: u32,
    /// [`Outcome::Answered`], or what an ICMP error says.
    pub outcome: Outcome,
    /// That error.
    pub errno: Option<Errno>,
}

/// Why the kernel dropped a packet, in its own word without `SKB_DROP_REASON_`, such as `NETFILTER_DROP`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(transparent)]
pub struct DropReason(pub &'static str);

/// A packet that a filter of this node dropped or rejected, as its headers said at that moment: proof of enforcement,
/// whoever sent it. One attempt is told once, however often its packet is sent. Or a SYN that came to a pod and found
/// [nobody listening](DropReason::NO_SOCKET): proof that nothing was in its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketDrop {
    /// When.
    pub at: Timestamp,
    /// The namespace whose filter it was.
    pub netns: NetnsCookie,
    /// TCP (a SYN) or UDP.
    pub protocol: Protocol,
    /// Where it came from.
    pub source: SocketAddr,
    /// Where it was going: a Service's address, or behind a translation the endpoint's.
    pub destination: SocketAddr,
    /// Why.
    pub reason: DropReason,
    /// TCP: the SYN's sequence number, which tells attempts from the same port apart.
    pub sequence: u32,
    /// Whether it certainly opens something. A datagram may also answer one, which only connection tracking can tell.
    pub opens: bool,
    /// Where there were too many to tell of each: how many alike this one stands for. Then the source's port and the
    /// sequence number are 0.
    pub folded: Option<Folded>,
    /// As of an [`Observation`].
    pub maybe_repeated: bool,
}

impl PacketDrop {
    /// Whether nobody listened where it was going, and nothing was in its way.
    pub fn found_closed_port(&self) -> bool {
        self.reason == DropReason::NO_SOCKET
    }

    /// How many it stands for.
    pub fn count(&self) -> u64 {
        self.folded.map_or(1, |folded| folded.count.get())
    }
}

impl DropReason {
    /// No socket wants the packet: a closed port.
    pub const NO_SOCKET: Self = Self("NO_SOCKET");
}

/// A socket that makes its own packets, so that nobody sees whom it talks to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RawSocketKind {
    /// `SOCK_RAW` of IPv4 or IPv6: any protocol, of TCP and UDP too.
    Ip,
    /// ICMP echo requests only.
    Ping,
    /// `AF_PACKET`: whole frames, or a look at everybody's.
    Packet,
}

impl RawSocketKind {
    /// The word of the metrics and the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ip => "raw",
            Self::Ping => "ping",
            Self::Packet => "packet",
        }
    }
}

impl fmt::Display for RawSocketKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Somebody made a raw socket: the first time, or the first after an interval.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawSocket {
    /// When.
    pub at: Timestamp,
    /// The namespace that it lives in: names the subject.
    pub netns: NetnsCookie,
    /// Who made it.
    pub actor: Actor,
    /// What it is.
    pub kind: RawSocketKind,
    /// The protocol that it was made for: IP's number, or Ethernet's of a packet socket.
    pub protocol: u32,
}

impl Observation {
    /// Whether the attempt got as far as a port where nobody listens, as far as the socket can tell. For TCP that is a
    /// reset, for UDP an ICMP port-unreachable; a filter that rejects may send either.
    pub fn found_closed_port(&self) -> bool {
        match self.outcome {
            Outcome::Refused => true,
            Outcome::Rejected => self.protocol == Protocol::Udp && self.errno == Some(Errno::ECONNREFUSED),
            _ => false,
        }
    }

    /// The port that policies speak of: the destination's.
    pub fn port(&self) -> u16 {
        match self.direction {
            Direction::Egress => self.remote.port(),
            Direction::Ingress => self.local.port(),
        }
    }

    /// How many flows it stands for.
    pub fn count(&self) -> u64 {
        self.folded.map_or(1, |folded| folded.count.get())
    }

    /// When the first flow that it stands for began.
    pub fn first(&self) -> Timestamp {
        self.folded.map_or(self.at, |folded| folded.first)
    }

    /// The other end's address in canonical form.
    pub fn peer_ip(&self) -> IpAddr {
        self.remote.ip().to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_kernels_numbers_and_a_word() {
        for (errno, number, word) in [
            (Errno::EACCES, libc::EACCES, "EACCES"),
            (Errno::ENETUNREACH, libc::ENETUNREACH, "ENETUNREACH"),
            (Errno::ECONNREFUSED, libc::ECONNREFUSED, "ECONNREFUSED"),
            (Errno::EHOSTUNREACH, libc::EHOSTUNREACH, "EHOSTUNREACH"),
            (Errno(64), libc::ENONET, "ENONET"),
            (Errno(71), libc::EPROTO, "EPROTO"),
            (Errno(92), libc::ENOPROTOOPT, "ENOPROTOOPT"),
            (Errno(95), libc::EOPNOTSUPP, "EOPNOTSUPP"),
            (Errno(112), libc::EHOSTDOWN, "EHOSTDOWN"),
            (Errno(200), 200, "200"),
        ] {
            assert_eq!((i32::from(errno.0), &*errno.name()), (number, word));
        }
    }

    #[test]
    fn comm_is_cut_and_printed_lossily() {
        assert_eq!(Comm::new("a-name-longer-than-15").to_string(), "a-name-longer-t");
        assert_eq!(Comm([0xff; 16]).to_string(), "\u{fffd}".repeat(16));
        assert!(Comm::default().is_empty());
    }
}
