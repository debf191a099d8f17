//! The ends of all connections, as far as policies can tell them apart.

use std::{net::IpAddr, sync::Arc};

use foldhash::{HashMap, HashSet};
use smallvec::SmallVec;

use crate::{
    model::{Direction, Protocol, Verdict},
    policy::{
        Evaluator, IdentityId, KnownNames, Labels, NamedPort, NodeId, PeerEnd, Question, Ruleset,
        compile::Matcher,
        domains::DomainPattern,
        evaluate::Program,
        loaded::{PeerView, Place},
    },
};

/// A pod in a network namespace of its own.
#[derive(Clone, Debug)]
pub struct PodEnd {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Its named ports.
    pub ports: Arc<[NamedPort]>,
    /// Its addresses, at most one of each family.
    pub addresses: SmallVec<[IpAddr; 2]>,
}

/// An address of a node, or a node without a known one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeEnd {
    /// The node's name.
    pub name: Arc<str>,
    /// The address.
    pub address: Option<IpAddr>,
}

/// Pods that nothing tells apart.
#[derive(Debug)]
pub struct Group {
    /// Their positions in the list that the universe was made of. Never empty.
    pub members: Vec<usize>,
    /// By ruleset.
    pub(super) identities: Identities,
    pub(super) v4: Option<u32>,
    pub(super) v6: Option<u128>,
}

type Identities = SmallVec<[IdentityId; 2]>;

/// One of each family at most.
type Addresses = (Option<u32>, Option<u128>);

/// Addresses of nodes that nothing tells apart.
#[derive(Debug)]
pub struct NodeGroup {
    /// Their positions in the list that the universe was made of. Never empty.
    pub members: Vec<usize>,
    /// By ruleset.
    pub(super) nodes: SmallVec<[NodeId; 2]>,
    pub(super) v4: Option<u32>,
    pub(super) v6: Option<u128>,
}

/// The end of a connection that is not the subject.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Other {
    /// Another pod of this group, of which there may be but one.
    Pod(usize),
    /// A node of this group that is not the subject's own.
    Node(usize),
    /// An address that no pod and no node has, without a name that matters, or with a name of this pattern.
    External(IpAddr, Option<usize>),
}

/// All ends, for one or several rulesets. Only what was computed over one universe can be compared.
pub struct Universe {
    views: Vec<Evaluator>,
    groups: Vec<Group>,
    nodes: Vec<NodeGroup>,
    patterns: Vec<DomainPattern>,
    /// For each pattern a name that it is the narrowest for.
    examples: Vec<[Arc<str>; 1]>,
}

impl std::fmt::Debug for Universe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts = (self.views.len(), self.groups.len(), self.nodes.len(), self.patterns.len());
        write!(f, "Universe(views, groups, nodes, patterns: {counts:?})")
    }
}

/// Where, in all rulesets together, ranges begin or have ended.
struct Cuts {
    v4: Vec<u32>,
    v6: Vec<u128>,
}

impl Cuts {
    fn of(&self, addresses: Addresses) -> (Option<usize>, Option<usize>) {
        let v4 = addresses.0.map(|ip| self.v4.partition_point(|cut| *cut <= ip));
        (v4, addresses.1.map(|ip| self.v6.partition_point(|cut| *cut <= ip)))
    }
}

impl Universe {
    /// Of these pods and nodes, as these rulesets see them.
    pub fn new(
        rulesets: &[Arc<Ruleset>],
        pods: impl IntoIterator<Item = PodEnd>,
        nodes: impl IntoIterator<Item = NodeEnd>,
    ) -> Self {
        let mut views: Vec<Evaluator> = rulesets.iter().map(follower).collect();
        let mut asked: Vec<(Identities, Addresses)> = Vec::new();
        for pod in pods {
            let identity = |view: &mut Evaluator| view.identity(&pod.namespace, &pod.labels, &pod.ports);
            asked.push((views.iter_mut().map(identity).collect(), split(&pod.addresses)));
        }
        let (cuts, patterns) = told_apart(&views, asked.iter().map(|(identities, _)| identities));
        let mut groups: Vec<Group> = Vec::new();
        let mut known = HashMap::default();
        for (member, (identities, (v4, v6))) in asked.into_iter().enumerate() {
            let at = *known.entry((identities.clone(), cuts.of((v4, v6)))).or_insert(groups.len());
            match groups.get_mut(at) {
                Some(group) => group.members.push(member),
                None => groups.push(Group { members: vec![member], identities, v4, v6 }),
            }
        }
        let nodes = node_groups(&mut views, nodes, &cuts);
        let examples = patterns.iter().map(|it| [example(it, &patterns)]).collect();
        Self { views, groups, nodes, patterns, examples }
    }

    /// The groups of pods, in order of their first members.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The groups of node addresses, in order of their first members.
    pub fn nodes(&self) -> &[NodeGroup] {
        &self.nodes
    }

    /// The patterns of DNS names that a rule mentions, in order.
    pub fn patterns(&self) -> impl ExactSizeIterator<Item = &(impl std::fmt::Display + use<>)> {
        self.patterns.iter()
    }

    /// How many rulesets look at it.
    pub fn views(&self) -> usize {
        self.views.len()
    }

    /// A name that this pattern matches and none that is narrower.
    pub fn example(&self, pattern: usize) -> &Arc<str> {
        &self.examples[pattern][0]
    }

    /// What one ruleset says of a single flow, with causes, from the subject's end.
    pub fn verdict(
        &self,
        view: usize,
        direction: Direction,
        subject: usize,
        other: Other,
        protocol: Protocol,
        port: u16,
    ) -> Verdict {
        let mut addresses: SmallVec<[IpAddr; 2]> = SmallVec::new();
        let mut peer = PeerEnd { names: KnownNames::All(self.names(None)), ..PeerEnd::default() };
        let mut add = |v4: Option<u32>, v6: Option<u128>| {
            addresses.extend(v4.map(|ip| IpAddr::V4(ip.into())));
            addresses.extend(v6.map(|ip| IpAddr::V6(ip.into())));
        };
        match other {
            Other::Pod(group) => {
                let group = &self.groups[group];
                peer.pod = Some(group.identities[view]);
                add(group.v4, group.v6);
            }
            Other::Node(group) => {
                let group = &self.nodes[group];
                peer.node = Some(group.nodes[view]);
                add(group.v4, group.v6);
            }
            Other::External(ip, pattern) => {
                peer.names = KnownNames::All(self.names(pattern));
                addresses.push(ip);
            }
        }
        peer.addresses = &addresses;
        let subject = self.groups[subject].identities[view];
        self.views[view].judge(&Question { direction, subject, peer, protocol, port })
    }

    pub(super) fn view(&self, view: usize) -> &Evaluator {
        &self.views[view]
    }

    /// The names of an address outside.
    pub(super) fn names(&self, pattern: Option<usize>) -> &[Arc<str>] {
        pattern.map_or(&[], |it| &self.examples[it])
    }

    /// Whether names matter for a program.
    pub(super) fn asks_names(&self, program: &Program, direction: Direction) -> bool {
        let mut policies = program.admin.iter().chain(&program.network).chain(&program.baseline);
        !self.patterns.is_empty() && policies.any(|it| it.loaded.names_domains(direction))
    }

    pub(super) fn pod_view(&self, view: usize, group: usize) -> PeerView<'_> {
        let group = &self.groups[group];
        let (place, words, _) = self.views[view].seen(group.identities[view]);
        PeerView {
            pod: Some((place, words)),
            node: None,
            v4: group.v4,
            v6: group.v6,
            names: KnownNames::All(&[]),
        }
    }

    pub(super) fn node_view(&self, view: usize, group: usize) -> PeerView<'_> {
        let group = &self.nodes[group];
        let node = self.views[view].seen_node(group.nodes[view]);
        PeerView { pod: None, node: Some(node), v4: group.v4, v6: group.v6, names: KnownNames::All(&[]) }
    }
}

fn follower(rules: &Arc<Ruleset>) -> Evaluator {
    let mut evaluator = Evaluator::default();
    evaluator.follow(rules);
    evaluator
}

/// The first address of each family.
fn split(addresses: &[IpAddr]) -> Addresses {
    let (mut v4, mut v6) = (None, None);
    for ip in addresses {
        match ip.to_canonical() {
            IpAddr::V4(ip) => v4 = v4.or(Some(ip.into())),
            IpAddr::V6(ip) => v6 = v6.or(Some(ip.into())),
        }
    }
    (v4, v6)
}

/// What the policies that may select one of these identities tell apart.
fn told_apart<'a>(
    views: &[Evaluator],
    identities: impl Iterator<Item = &'a Identities>,
) -> (Cuts, Vec<DomainPattern>) {
    let mut cuts = Cuts { v4: Vec::new(), v6: Vec::new() };
    let mut patterns = Vec::new();
    let mut seen = HashSet::default();
    for (view, id) in identities.flat_map(|it| it.iter().copied().enumerate()) {
        if !seen.insert((view, id)) {
            continue;
        }
        for direction in [Direction::Egress, Direction::Ingress] {
            let (program, v4, v6) = views[view].program(id, direction);
            cuts.v4.extend_from_slice(v4);
            cuts.v6.extend_from_slice(v6);
            let policies = program.admin.iter().chain(&program.network).chain(&program.baseline);
            let rules = policies.flat_map(|it| it.loaded.policy.rules(direction));
            patterns.extend(rules.flat_map(|rule| &rule.peers).filter_map(|peer| match &peer.matcher {
                Matcher::Domain(pattern) => Some(pattern.clone()),
                _ => None,
            }));
        }
    }
    cuts.v4.sort_unstable();
    cuts.v4.dedup();
    cuts.v6.sort_unstable();
    cuts.v6.dedup();
    patterns.sort();
    patterns.dedup();
    (cuts, patterns)
}

fn node_groups(
    views: &mut [Evaluator],
    nodes: impl IntoIterator<Item = NodeEnd>,
    cuts: &Cuts,
) -> Vec<NodeGroup> {
    let mut groups: Vec<NodeGroup> = Vec::new();
    let mut known = HashMap::default();
    for (member, end) in nodes.into_iter().enumerate() {
        let nodes: SmallVec<[NodeId; 2]> = views.iter_mut().map(|view| view.node(&end.name)).collect();
        let looks: SmallVec<[Place; 2]> =
            nodes.iter().zip(views.iter()).map(|(id, view)| view.seen_node(*id).clone()).collect();
        let (v4, v6) = split(end.address.as_slice());
        let at = *known.entry((looks, cuts.of((v4, v6)))).or_insert(groups.len());
        match groups.get_mut(at) {
            Some(group) => group.members.push(member),
            None => groups.push(NodeGroup { members: vec![member], nodes, v4, v6 }),
        }
    }
    groups
}

/// A name that `pattern` matches and none that is narrower: an exact one may be one of the names below.
fn example(pattern: &DomainPattern, all: &[DomainPattern]) -> Arc<str> {
    let examples = (0..).map(|n| pattern.example(n));
    let free = |name: &String| {
        *name == pattern.example(0) && pattern.is_exactly(name) || !all.iter().any(|it| it.is_exactly(name))
    };
    examples.take(all.len() + 1).find(free).unwrap_or_default().into()
}
