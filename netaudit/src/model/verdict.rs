//! What the declared policies say of a flow, as data that names its cause.

use std::{fmt, sync::Arc};

use super::Direction;

/// A policy object: kind, namespace and name. Manifests have no UID, so the name is the identity.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PolicyId {
    /// The API kind, such as `NetworkPolicy`.
    pub kind: &'static str,
    /// The namespace; empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
}

/// `NetworkPolicy/batchivo/backend-policy`, as the conformance cases write it; `Kind/name` for cluster-scoped kinds.
impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}/{}", self.kind, self.name)
        } else {
            write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// One rule of a policy, by content: the same rule keeps its identity when others are inserted above it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleId {
    /// The policy that holds it.
    pub policy: Arc<PolicyId>,
    /// The direction that it allows.
    pub direction: Direction,
    /// The first 8 bytes of SHA-256 over the rule's canonical content (direction included).
    pub hash: u64,
    /// Where it stands today, from 0: `egress[2]`. Not part of the identity: see [`RuleId::key`].
    pub index: u32,
}

impl RuleId {
    /// The identity without today's position.
    pub fn key(&self) -> (&PolicyId, Direction, u64) {
        (&self.policy, self.direction, self.hash)
    }

    /// `egress[2]`: where the rule stands in its policy today.
    pub fn path(&self) -> String {
        format!("{}[{}]", self.direction, self.index)
    }
}

/// `NetworkPolicy/batchivo/backend-policy#1f2e3d4c5b6a7988`: the stable identity, as `rules` in the flow log holds it.
impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{:016x}", self.policy, self.hash)
    }
}

/// A rule that allowed a flow, and by which of its elements.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RuleMatch {
    /// The rule.
    pub rule: Arc<RuleId>,
    /// Index into `from`/`to` of the first element that matched; `None` where the rule names no peers.
    pub peer: Option<u32>,
    /// Index into `ports` of the first element that matched; `None` where the rule names no ports.
    pub port: Option<u32>,
}

impl RuleMatch {
    /// `egress[2].to[0]`, `ingress[0].ports[1]`, `egress[0].to[0].ports[1]`: the rule and the elements that matched.
    pub fn path(&self) -> String {
        use fmt::Write as _;
        let mut path = self.rule.path();
        if let Some(peer) = self.peer {
            let list = match self.rule.direction {
                Direction::Egress => "to",
                Direction::Ingress => "from",
            };
            let _ = write!(path, ".{list}[{peer}]");
        }
        if let Some(port) = self.port {
            let _ = write!(path, ".ports[{port}]");
        }
        path
    }
}

/// What the policies of one direction say of a flow.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// It may pass, and why.
    Allowed(Cause),
    /// Policies isolate the subject in this direction and none of their rules matches.
    Denied {
        /// Every policy that isolates the subject in this direction, in order of name, with what was nearest to match.
        by: Arc<[NearMiss]>,
    },
    /// It cannot be said, and why not. Never guessed.
    Unknown(Gap),
}

impl Verdict {
    /// `allowed`, `denied` or `unknown`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Allowed(_) => "allowed",
            Self::Denied { .. } => "denied",
            Self::Unknown(_) => "unknown",
        }
    }

    /// The rules that allow it; empty for every other verdict.
    pub fn rules(&self) -> &[RuleMatch] {
        match self {
            Self::Allowed(Cause::Rules(rules)) => rules,
            _ => &[],
        }
    }

    /// Whether it may pass for certain.
    pub const fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed(_))
    }

    /// Whether it may not pass for certain.
    pub const fn is_denied(&self) -> bool {
        matches!(self, Self::Denied { .. })
    }
}

/// Why a flow is allowed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Cause {
    /// By these rules, all that match, in order of policy name and then of position.
    Rules(Arc<[RuleMatch]>),
    /// No policy selects the subject for this direction.
    NotIsolated,
    /// Policies do not apply to it.
    Exempt(Exemption),
}

/// Why policies do not apply to a flow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Exemption {
    /// A pod to itself: the API promises that it is never blocked.
    SelfTraffic,
    /// Between a pod and its own node: the API promises that too (kubelet probes).
    OwnNode,
    /// The subject is a hostNetwork pod or the node itself, which policies do not select.
    HostNetwork,
    /// The subject is outside the cluster: it has no policy of its own.
    External,
    /// Loopback inside the pod's namespace never meets a policy.
    Loopback,
}

impl Exemption {
    /// The reason in the flow log and the metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SelfTraffic => "pod to itself",
            Self::OwnNode => "own node",
            Self::HostNetwork => "host network",
            Self::External => "outside the cluster",
            Self::Loopback => "loopback",
        }
    }
}

impl fmt::Display for Exemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why no verdict can be given.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Gap {
    /// No pod, and not the node, is known for the socket's namespace and cgroup.
    SubjectUnknown,
    /// The subject's pod is known to the kernel side, but its object has not been seen.
    PodNotSeen,
    /// Two owners of the address at that time.
    Ambiguous,
    /// A Service address whose endpoints would get different verdicts.
    EndpointsDisagree,
    /// A Service address without any endpoint.
    NoEndpoints,
    /// The source address is the node's, and no socket of the node belongs to it: somebody else stands behind it.
    SourceTranslated,
    /// An object that could change the answer could not be read or is invalid; the text says which and why.
    Invalid(Arc<str>),
    /// The objects have not been listed completely yet.
    NotReady,
}

impl Gap {
    /// The reason as a metric label: bounded, without names.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::SubjectUnknown => "subject unknown",
            Self::PodNotSeen => "pod not seen",
            Self::Ambiguous => "ambiguous",
            Self::EndpointsDisagree => "endpoints disagree",
            Self::NoEndpoints => "no endpoints",
            Self::SourceTranslated => "source translated",
            Self::Invalid(_) => "invalid object",
            Self::NotReady => "not ready",
        }
    }

    /// Every reason, for metrics that exist from the start.
    pub const REASONS: [&'static str; 8] = [
        "subject unknown",
        "pod not seen",
        "ambiguous",
        "endpoints disagree",
        "no endpoints",
        "source translated",
        "invalid object",
        "not ready",
    ];
}

/// The reason with its detail.
impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(detail) => write!(f, "{}: {detail}", self.reason()),
            _ => f.pad(self.reason()),
        }
    }
}

/// A policy that isolates the subject without allowing the flow, and how near it came.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NearMiss {
    /// The policy.
    pub policy: Arc<PolicyId>,
    /// Index of the first rule whose peers match though its ports do not; `None` where no rule's peers match.
    pub peer_matches_rule: Option<u32>,
}

impl fmt::Display for NearMiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer_matches_rule {
            Some(index) => write!(f, "{} (rule {index} matches the peer, but not the port)", self.policy),
            None => write!(f, "{} (no rule matches the peer)", self.policy),
        }
    }
}
