//! From a declared policy to its meaning: never all or nothing.
//!
//! What the API server would refuse leaves a [`Warning`], and a *doubt* at the smallest part that it can affect: a
//! selector, a peer, a port, a direction. Evaluation carries the doubt along and answers `unknown` only where the
//! doubtful part would decide.

mod cluster;
mod elements;
mod network;
mod parts;
#[cfg(test)]
mod tests;

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;

pub use self::elements::{Element, Span};
pub(crate) use self::parts::parse_cidr;
use super::{
    Certainty, Labels, NamespaceView, Warning, canonical, declared, domains::DomainPattern,
    selector::Selector, summary,
};
use crate::model::{Direction, PolicyId, Protocol, RuleId};

/// The tiers in the order in which they are asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Tier {
    /// ClusterNetworkPolicies of the tier `Admin`, and AdminNetworkPolicies: before all others, in order of priority.
    Admin,
    /// NetworkPolicies: all together.
    NetworkPolicy,
    /// ClusterNetworkPolicies of the tier `Baseline`, and the BaselineAdminNetworkPolicy: for pods that no NetworkPolicy
    /// isolates, in order of priority.
    Baseline,
}

impl Tier {
    /// `Admin`, `NetworkPolicy` or `Baseline`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "Admin",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Baseline => "Baseline",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A policy whose meaning is known, as far as it is valid.
#[derive(Debug)]
pub struct CompiledPolicy {
    /// Which policy it is.
    pub id: Arc<PolicyId>,
    /// Where it stands.
    pub tier: Tier,
    /// Where it stands in its tier: lower ones are asked before higher ones. 0 for a NetworkPolicy, which has none.
    pub priority: u16,
    /// Why where it stands is not certain, where it is not: then it may stand before all others.
    pub(super) order_doubt: Option<Arc<str>>,
    pub(super) subjects: Arc<PodScope>,
    /// Why whom it selects is not known at all, where it is not.
    pub(super) subject_doubt: Option<Arc<str>>,
    speaks: [Certainty; 2],
    /// Why `policyTypes` is doubtful, where it is.
    pub(super) types_doubt: Option<Arc<str>>,
    rules: [Vec<Rule>; 2],
    /// What is wrong with it.
    pub warnings: Vec<Warning>,
}

/// One rule of a compiled policy.
#[derive(Debug)]
pub struct Rule {
    /// Its identity and where it stands.
    pub id: Arc<RuleId>,
    /// What it allows, in one line: `to app=postgres TCP 5432`.
    pub summary: String,
    /// The elements that it declares, with hashes of their content: those of `from` or `to`, then those of `ports`.
    pub elements: Arc<[(u64, Element)]>,
    /// Set where what it does is not certain, or not that it counts: why.
    pub(super) doubt: Option<Arc<str>>,
    /// Empty: everybody.
    pub(super) peers: Vec<Peer>,
    /// Empty: every port of every protocol.
    pub(super) ports: Vec<PortMatch>,
}

impl Rule {
    /// Whether a sensor can see what the rule allows. SCTP is recorded by none, so a rule that names
    /// it shows no use however much it is used; nor are all names of an address ever known. A port whose protocol is invalid may be any.
    pub fn is_observable(&self) -> bool {
        if self.peers.iter().any(|peer| matches!(peer.matcher, Matcher::Domain(_))) {
            return false;
        }
        self.ports.iter().all(|it| it.protocol != Some(Protocol::Sctp))
    }
}

impl Rule {
    /// Whether it can match anything: the API says of some peers that they mean nobody.
    pub fn can_match(&self) -> bool {
        self.peers.is_empty() || self.peers.iter().any(|it| !matches!(it.matcher, Matcher::Nobody))
    }
}

impl Rule {
    /// Whether an element of its `from` or `to` may match a pod with these labels in this namespace by its labels: not by its
    /// address, and not where the rule is for everybody.
    pub fn may_select(&self, namespace: &NamespaceView, labels: &Labels) -> bool {
        let may_match = |peer: &Peer| match &peer.matcher {
            Matcher::Pods(scope) => scope.contains(namespace, labels) != Certainty::No,
            Matcher::Anyone => true,
            Matcher::Nobody | Matcher::Nodes(_) | Matcher::Block(_) | Matcher::Domain(_) => false,
        };
        self.peers.iter().any(may_match)
    }

    /// Whether an `ipBlock` of its `from` or `to` holds an address of a network.
    pub fn has_block_within(&self, network: &IpNet) -> bool {
        self.peers
            .iter()
            .any(|peer| matches!(&peer.matcher, Matcher::Block(block) if block.overlaps(network)))
    }

    /// Whether it may allow this port of some destination. What a port's name stands for is the destination's: any may be it.
    pub fn may_be_for(&self, protocol: Protocol, port: u16) -> bool {
        let may_be = |it: &PortMatch| {
            it.protocol.is_none_or(|other| other == protocol)
                && match it.port {
                    PortTest::Range(first, last) => (first..=last).contains(&port),
                    PortTest::Any | PortTest::Named(_) => true,
                }
        };
        self.ports.is_empty() || self.ports.iter().any(may_be)
    }

    /// Whether it has no `from` or `to`.
    pub fn is_for_everybody(&self) -> bool {
        self.peers.is_empty()
    }
}

/// What an element of `from` or `to` matches. An element with contradictory fields gives several, all in doubt.
#[derive(Debug)]
pub(super) struct Peer {
    /// The position in `from` or `to`.
    pub index: u32,
    pub matcher: Matcher,
    /// Set where a match is not certain: why.
    pub doubt: Option<Arc<str>>,
}

#[derive(Debug)]
pub(super) enum Matcher {
    /// Whoever it was meant to match cannot be told: perhaps everybody.
    Anyone,
    /// Whoever it was meant to match, the API says that it matches nobody.
    Nobody,
    Pods(Arc<PodScope>),
    /// Nodes by their labels.
    Nodes(Selector),
    Block(Arc<Block>),
    /// Addresses by the names that DNS gave for them.
    Domain(DomainPattern),
}

/// Pods by their namespace and labels.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct PodScope {
    pub namespaces: NamespaceScope,
    pub pods: Selector,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum NamespaceScope {
    /// The policy's own.
    Own(Arc<str>),
    Matching(Selector),
}

/// An address range with holes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Block {
    pub net: IpNet,
    /// Sorted.
    pub except: Vec<IpNet>,
}

impl Block {
    /// The API: an address matches that is inside `cidr` and inside none of `except`. It may be a pod's.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.net.contains(&ip) && !self.except.iter().any(|hole| hole.contains(&ip))
    }

    /// Whether an address of a network may be inside: holes that leave nothing only together are not looked at.
    fn overlaps(&self, network: &IpNet) -> bool {
        let common = if self.net.contains(network) { network } else { &self.net };
        network.contains(common) && !self.except.iter().any(|hole| hole.contains(common))
    }
}

/// An element of `ports`.
#[derive(Clone, Debug)]
pub(super) struct PortMatch {
    /// `None`: every protocol; perhaps, where it is invalid.
    pub protocol: Option<Protocol>,
    pub port: PortTest,
    /// Set where a match is not certain: why.
    pub doubt: Option<Arc<str>>,
}

impl PortMatch {
    /// Perhaps every port of every protocol.
    fn anything(doubt: Arc<str>) -> Self {
        Self { protocol: None, port: PortTest::Any, doubt: Some(doubt) }
    }

    /// The name, if it is a port by name.
    pub fn name(&self) -> Option<&Arc<str>> {
        match &self.port {
            PortTest::Named(name) => Some(name),
            PortTest::Any | PortTest::Range(..) => None,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum PortTest {
    /// Every port.
    Any,
    /// From the first to the last, both included.
    Range(u16, u16),
    /// The destination pod's port of this name, and of the rule's protocol where it names one.
    Named(Arc<str>),
}

/// What is wrong with one object: collects warnings and hands out the text that verdicts carry.
pub(super) struct Flaws {
    object: Arc<str>,
    pub warnings: Vec<Warning>,
}

impl Flaws {
    pub fn new(object: &str) -> Self {
        Self { object: object.into(), warnings: Vec::new() }
    }

    /// Records a flaw and returns its full text: object, path and reason.
    pub fn add(&mut self, path: String, reason: impl Into<String>) -> Arc<str> {
        let warning = Warning { object: self.object.clone(), path, reason: reason.into() };
        let text = warning.to_string().into();
        // One flaw can make two parts doubtful; it is told once.
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
        text
    }

    /// Records a part of the wrong type.
    pub fn add_invalid(&mut self, invalid: &declared::Invalid) -> Arc<str> {
        self.add(invalid.path.clone(), invalid.reason.as_str())
    }
}

impl CompiledPolicy {
    /// The rules of a direction, in the policy's order.
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        &self.rules[direction as usize]
    }

    /// Whether it says something of this direction: a NetworkPolicy isolates the pods that it selects, a cluster-wide
    /// policy has rules.
    pub fn speaks_of(&self, direction: Direction) -> Certainty {
        self.speaks[direction as usize]
    }

    /// Whether it selects a pod with these labels in this namespace.
    pub fn selects(&self, namespace: &NamespaceView, labels: &Labels) -> Certainty {
        let selected = self.subjects.contains(namespace, labels);
        if self.subject_doubt.is_some() { selected.and(Certainty::Maybe) } else { selected }
    }

    /// What makes all of its rules doubtful, whatever they say.
    pub(super) fn doubt(&self) -> Option<&Arc<str>> {
        self.order_doubt.as_ref().or(self.subject_doubt.as_ref())
    }

    /// Its subjects as `kubectl` prints selectors; empty where it selects every pod of its namespace or of the cluster.
    pub fn subjects(&self) -> String {
        summary::subjects(self)
    }

    /// Where it stands, for people: `Admin 10`, `NetworkPolicy`.
    pub fn place(&self) -> String {
        match self.tier {
            Tier::NetworkPolicy => self.tier.to_string(),
            tier => format!("{tier} {}", self.priority),
        }
    }
}

impl PodScope {
    /// Why it is not certain whom it holds, where it is not.
    pub fn doubt(&self) -> Option<&Arc<str>> {
        let namespaces = match &self.namespaces {
            NamespaceScope::Own(_) => None,
            NamespaceScope::Matching(selector) => selector.doubt.as_ref(),
        };
        namespaces.or(self.pods.doubt.as_ref())
    }

    /// Whether it holds a pod with these labels in this namespace.
    pub fn contains(&self, namespace: &NamespaceView, labels: &Labels) -> Certainty {
        let in_namespace = match &self.namespaces {
            NamespaceScope::Own(name) => (*name == namespace.name).into(),
            NamespaceScope::Matching(selector) => selector.matches_namespace(namespace),
        };
        // Asked of every CronJob and workload: most are in other namespaces.
        if in_namespace == Certainty::No {
            return Certainty::No;
        }
        in_namespace.and(self.pods.matches(labels))
    }
}
