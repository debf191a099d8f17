//! What the declared policies say of a flow, as data that names its cause.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use smallvec::SmallVec;

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

/// What a rule does with what it matches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// It may pass: every rule of a NetworkPolicy, `Accept` and `Allow` of the cluster-wide kinds.
    Allow,
    /// It may not pass: `Deny`.
    Deny,
    /// The rest of the tier has no say; the next tier decides: `Pass`.
    Pass,
}

impl Action {
    /// `allow`, `deny` or `pass`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Pass => "pass",
        }
    }
}

/// One rule of a policy, by content: the same rule keeps its identity when others are inserted above it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleId {
    /// The policy that holds it.
    pub policy: Arc<PolicyId>,
    /// The direction that it speaks of.
    pub direction: Direction,
    /// The first 8 bytes of SHA-256 over the rule's canonical content (direction included).
    pub hash: u64,
    /// Where it stands today, from 0: `egress[2]`. Not part of the identity: see [`RuleId::key`].
    pub index: u32,
    /// What it does. Part of the content, and so of the hash.
    pub action: Action,
    /// The name that its author gave it; empty where there is none. Not part of the identity.
    pub name: Arc<str>,
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

/// A rule that allowed a flow, and by which of its elements. Two are equal by the rule and the first elements that matched.
#[derive(Clone, Debug)]
pub struct RuleMatch {
    /// The rule.
    pub rule: Arc<RuleId>,
    /// Index into `from`/`to` of the first element that matched; `None` where the rule names no peers.
    pub peer: Option<u32>,
    /// Index into `ports` of the first element that matched; `None` where the rule names no ports.
    pub port: Option<u32>,
    /// Every element that matches.
    pub elements: Elements,
}

impl PartialEq for RuleMatch {
    fn eq(&self, other: &Self) -> bool {
        (&self.rule, self.peer, self.port) == (&other.rule, other.peer, other.port)
    }
}

impl Eq for RuleMatch {}

impl Hash for RuleMatch {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.rule, self.peer, self.port).hash(state);
    }
}

/// Which elements of a rule match, by their places in `from`/`to` and in `ports`. Of those after the 64th only the first that
/// matches is known.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Elements {
    peers: u64,
    ports: u64,
}

impl Elements {
    /// These, as far as they are there.
    pub fn of(peer: Option<u32>, port: Option<u32>) -> Self {
        let bit = |index: Option<u32>| index.and_then(|index| 1_u64.checked_shl(index)).unwrap_or(0);
        Self { peers: bit(peer), ports: bit(port) }
    }

    /// One of `from` or `to` more.
    pub fn add_peer(&mut self, index: u32) {
        self.peers |= Self::of(Some(index), None).peers;
    }

    /// One of `ports` more.
    pub fn add_port(&mut self, index: u32) {
        self.ports |= Self::of(None, Some(index)).ports;
    }

    /// Their places in `from` or `to`, in order.
    pub fn peers(self) -> impl Iterator<Item = u32> {
        bits(self.peers)
    }

    /// Their places in `ports`, in order.
    pub fn ports(self) -> impl Iterator<Item = u32> {
        bits(self.ports)
    }
}

fn bits(mut mask: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let place = mask.trailing_zeros();
        // Takes the lowest bit away.
        mask &= mask.checked_sub(1)?;
        Some(place)
    })
}

impl RuleMatch {
    /// `egress[2].to[0]`, `ingress[0].ports[1]`, `egress[0].to[0].ports[1]`: the rule and the elements that matched.
    pub fn path(&self) -> String {
        use fmt::Write as _;
        let mut path = self.rule.path();
        if let Some(peer) = self.peer {
            let list = self.rule.direction.peers();
            let _ = write!(path, ".{list}[{peer}]");
        }
        if let Some(port) = self.port {
            let _ = write!(path, ".ports[{port}]");
        }
        path
    }
}

/// What the policies of one direction say of a flow. Two verdicts that say the same are equal, whatever generation they
/// are of.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The answer and its cause.
    pub decision: Decision,
    /// The rules that passed the flow on to the next tier before that: one of the Admin tier, one of the Baseline tier.
    pub passed: SmallVec<[RuleMatch; 1]>,
    /// Policies of other kinds that select the subject in this direction, and what they mean for the answer.
    pub caveats: Arc<[Arc<str>]>,
    /// The [generation](crate::policy::Ruleset::generation) of the policies that it was judged by; 0 where none was
    /// asked.
    pub generation: u64,
}

impl PartialEq for Verdict {
    fn eq(&self, other: &Self) -> bool {
        (&self.decision, &self.passed, &self.caveats) == (&other.decision, &other.passed, &other.caveats)
    }
}

impl Eq for Verdict {}

/// The answer of a [`Verdict`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Decision {
    /// It may pass, and why.
    Allowed(Cause),
    /// It may not pass, and why not.
    Denied(Denial),
    /// It cannot be said, and why not. Never guessed.
    Unknown(Gap),
}

/// Why a flow is denied.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Denial {
    /// By this rule of a cluster-wide policy.
    Rule(RuleMatch),
    /// NetworkPolicies isolate the subject in this direction and none of their rules matches: every one that does, in
    /// order of name, with what was nearest to match. Never empty.
    Isolation(Arc<[NearMiss]>),
}

impl Denial {
    /// The policies that deny: those that isolate, in order of name, or the one with the rule.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<PolicyId>> {
        let (rule, misses) = match self {
            Self::Rule(found) => (Some(&found.rule.policy), [].as_slice()),
            Self::Isolation(misses) => (None, &**misses),
        };
        rule.into_iter().chain(misses.iter().map(|miss| &miss.policy))
    }
}

impl Verdict {
    /// A verdict that no policy had a part in.
    pub fn plain(decision: Decision) -> Self {
        Self { decision, passed: SmallVec::new(), caveats: [].into(), generation: 0 }
    }

    /// Policies do not apply.
    pub fn exempt(why: Exemption) -> Self {
        Self::plain(Decision::Allowed(Cause::Exempt(why)))
    }

    /// No verdict can be given.
    pub fn unknown(gap: Gap) -> Self {
        Self::plain(Decision::Unknown(gap))
    }

    /// `allowed`, `denied` or `unknown`.
    pub const fn as_str(&self) -> &'static str {
        match self.decision {
            Decision::Allowed(_) => "allowed",
            Decision::Denied(_) => "denied",
            Decision::Unknown(_) => "unknown",
        }
    }

    /// The rules that allow it; empty for every other verdict.
    pub fn rules(&self) -> &[RuleMatch] {
        match &self.decision {
            Decision::Allowed(Cause::Rules(rules)) => rules,
            _ => &[],
        }
    }

    /// The rule that denies it, if it is one rule.
    pub fn denying_rule(&self) -> Option<&RuleMatch> {
        match &self.decision {
            Decision::Denied(Denial::Rule(found)) => Some(found),
            _ => None,
        }
    }

    /// Whether two endpoints of a Service are judged alike: allowed by the same rules or denied by the same policies.
    pub fn agrees_with(&self, other: &Self) -> bool {
        match (&self.decision, &other.decision) {
            (Decision::Denied(one), Decision::Denied(other)) => one.policies().eq(other.policies()),
            (one, other) => one == other,
        }
    }

    /// Whether it may pass for certain.
    pub const fn is_allowed(&self) -> bool {
        matches!(self.decision, Decision::Allowed(_))
    }

    /// Whether it may not pass for certain.
    pub const fn is_denied(&self) -> bool {
        matches!(self.decision, Decision::Denied(_))
    }
}

/// Why a flow is allowed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Cause {
    /// By these rules: the one of a cluster-wide policy that decides, or all of NetworkPolicies that match, in order of
    /// policy name and then of position. Never empty.
    Rules(Arc<[RuleMatch]>),
    /// No policy selects the subject for this direction, or none that does says anything of this flow.
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
    /// Redirected to a proxy in the pod's own namespace: what the proxy connects to is what policies see.
    Proxied,
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
            Self::Proxied => "proxied",
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
    /// The subject's own namespace redirects connections to the port that accepted this one, and which it was addressed to
    /// is not known.
    PortTranslated,
    /// An object that could change the answer could not be read or is invalid; the text says which and why.
    Invalid(Arc<str>),
    /// Two cluster-wide policies of one tier and priority match with different actions: which counts is undefined.
    PriorityTie(Arc<str>),
    /// A policy of a kind that is not understood selects the subject and could change the answer: which.
    ForeignPolicy(Arc<str>),
    /// A policy names domains, and which names the address has is not known: which policy.
    NamesUnknown(Arc<str>),
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
            Self::PortTranslated => "port translated",
            Self::Invalid(_) => "invalid object",
            Self::PriorityTie(_) => "priority tie",
            Self::ForeignPolicy(_) => "foreign policy",
            Self::NamesUnknown(_) => "names unknown",
            Self::NotReady => "not ready",
        }
    }

    /// Every reason, for metrics that exist from the start.
    pub const REASONS: [&'static str; 12] = [
        "subject unknown",
        "pod not seen",
        "ambiguous",
        "endpoints disagree",
        "no endpoints",
        "source translated",
        "port translated",
        "invalid object",
        "priority tie",
        "foreign policy",
        "names unknown",
        "not ready",
    ];
}

/// The reason with its detail.
impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(detail)
            | Self::PriorityTie(detail)
            | Self::ForeignPolicy(detail)
            | Self::NamesUnknown(detail) => {
                write!(f, "{}: {detail}", self.reason())
            }
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
