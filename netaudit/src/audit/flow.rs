//! A flow with both ends named and its verdict: what the sinks (metrics, flow log) are given.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Finding, Open, SeenName, UnenforcedCause};
use crate::{
    cluster::PodId,
    model::{DropReason, Observation, Reach, Translation, Verdict},
};

/// A flow's identity: the agent's run and a sequence number in it. Never random, so that gaps show.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FlowId {
    /// The agent run: node and start time.
    pub run: Arc<str>,
    /// From 1, without gaps.
    pub sequence: u64,
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.run, self.sequence)
    }
}

/// Whose namespace the socket lives in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Subject {
    /// A pod.
    Pod(PodId),
    /// The node: a host process or a hostNetwork pod.
    Node,
    /// Nobody that is known; the UID where at least that is.
    Unknown {
        /// The UID that the cgroup named.
        uid: Option<Arc<str>>,
    },
}

/// Where the process that acted is from, seen from the subject.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ActorKind {
    /// The subject itself: one of its containers, or the node where that is the subject.
    Subject,
    /// Another pod, in whose cgroup it runs: it has entered the subject's namespace.
    Pod,
    /// The host: a process of none of the pods has entered the subject's namespace, as a port-forward does.
    Host,
    /// Nothing tells.
    Unknown,
}

impl ActorKind {
    /// The word of the flow log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::Pod => "pod",
            Self::Host => "host",
            Self::Unknown => "unknown",
        }
    }
}

/// Who the other end is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerKind {
    /// A pod.
    Pod(PodId),
    /// A node; the name where it is known.
    Node(Option<Arc<str>>),
    /// A Service address behind which several pods, or none, stand.
    Service,
    /// The subject itself, over its loopback.
    Loopback,
    /// An address outside the cluster.
    External,
    /// Nobody can tell: two owners at that time.
    Unknown,
}

/// The other end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Who it is.
    pub kind: PeerKind,
    /// The address that it was judged by: behind a Service with one endpoint the endpoint's.
    pub ip: IpAddr,
    /// Namespace and name of the Service that was asked for.
    pub service: Option<(Arc<str>, Arc<str>)>,
}

/// An observed, attributed, resolved and judged flow.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Its identity.
    pub id: FlowId,
    /// What the kernel saw.
    pub observation: Observation,
    /// Whose namespace it was in.
    pub subject: Subject,
    /// Where the actor is from.
    pub actor_kind: ActorKind,
    /// The actor's pod, if it is one.
    pub actor_pod: Option<Arc<str>>,
    /// The actor's container id, if it is one.
    pub actor_container: Option<Arc<str>>,
    /// The other end.
    pub peer: Peer,
    /// The names that DNS gave the subject for an address outside the cluster, where that is seen.
    pub names: Vec<SeenName>,
    /// The destination port that was judged: after translation.
    pub port: u16,
    /// What the program asked for, where that differs from the judged address and port.
    pub requested: Option<SocketAddr>,
    /// How it is known where the flow went, where the program did not ask for that address.
    pub translation: Option<Translation>,
    /// What the outcome proves.
    pub reach: Reach,
    /// Why this node's filter stopped it, where it did: then `reach` is [`Reach::Stopped`].
    pub stopped_by: Option<DropReason>,
    /// Whether it is certain that nobody listened at the destination, whose kernel told so: no filter was in its way.
    pub closed_port: bool,
    /// What the subject's policies say.
    pub verdict: Arc<Verdict>,
    /// What the other end's policies say, where the other end is a known pod.
    pub other_end: Option<Arc<Verdict>>,
    /// What deserves attention.
    pub finding: Option<Finding>,
    /// Why it passed, where the finding is [`Finding::Unenforced`] and it is known.
    pub cause: Option<UnenforcedCause>,
    /// Of one that began earlier: why it is told now.
    pub open: Option<Open>,
}
