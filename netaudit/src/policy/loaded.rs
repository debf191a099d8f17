//! A compiled policy arranged for the hot path: selectors in words, ranges as sorted intervals.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use smallvec::SmallVec;

use super::{
    Certainty,
    compile::{Block, CompiledPolicy, Matcher, NamespaceScope, PodScope, PortMatch, PortTest, Rule},
    domains::{DomainPattern, KnownNames},
    words::{Vocabulary, Word, WordSelector},
};
use crate::model::{Direction, Elements, Gap, RuleMatch};

/// A policy, loaded.
pub(super) struct Loaded {
    pub policy: Arc<CompiledPolicy>,
    pub subjects: WordScope,
    /// By direction, whether anything but whom it selects is in doubt.
    doubtful: [bool; 2],
    rules: [Box<[Arc<LoadedRule>]>; 2],
}

/// A rule, loaded: what it compares, beside the [`Rule`] at the same position.
pub(super) struct LoadedRule {
    /// Those that are no certain ranges. The first stands here, so that most rules need no other memory.
    pub peers: SmallVec<[LoadedPeer; 1]>,
    /// Those of [`Rule::ports`] that are names.
    pub named_ports: Box<[PortMatch]>,
    v4: Intervals<u32>,
    v6: Intervals<u128>,
    matches_everybody: bool,
}

/// A peer that is no certain range.
pub(super) struct LoadedPeer {
    /// Its position in [`Rule::peers`].
    position: u32,
    doubtful: bool,
    matcher: PeerMatcher,
}

enum PeerMatcher {
    Anyone,
    Pods(WordScope),
    Nodes(WordSelector),
    /// A range that is in doubt.
    Block(Arc<Block>),
    Domain(DomainPattern),
}

/// A [`PodScope`] in words.
pub(super) struct WordScope {
    /// The number of the one namespace, or a selector of namespaces.
    namespaces: Result<u32, WordSelector>,
    pods: WordSelector,
}

/// A namespace or node in words.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Place {
    /// The number of a namespace's name; `None` where nothing mentions it.
    pub name: Option<u32>,
    pub words: Arc<[Word]>,
    /// Set where its labels, but for the name, are not known: why.
    pub doubt: Option<Arc<str>>,
}

impl Place {
    fn is_in(&self, selector: &WordSelector) -> Certainty {
        if self.doubt.is_some() {
            selector.matches_unread(&self.words)
        } else {
            selector.matches(&self.words)
        }
    }
}

/// The words of pods, and those of namespaces and nodes: a key that only namespaces have must not tell pods apart.
#[derive(Clone, Default)]
pub(super) struct Words {
    pub pods: Arc<Vocabulary>,
    pub places: Arc<Vocabulary>,
}

impl Words {
    /// The vocabularies are shared with readers; they are copied only where a selector brings something new.
    fn selector(vocabulary: &mut Arc<Vocabulary>, selector: &super::Selector) -> WordSelector {
        if vocabulary.knows(selector) {
            return vocabulary.selector(selector);
        }
        Arc::make_mut(vocabulary).learn_selector(selector)
    }

    pub fn scope(&mut self, scope: &PodScope) -> WordScope {
        let namespaces = match &scope.namespaces {
            NamespaceScope::Own(name) => Ok(self.namespace(name)),
            NamespaceScope::Matching(selector) => Err(Self::selector(&mut self.places, selector)),
        };
        WordScope { namespaces, pods: Self::selector(&mut self.pods, &scope.pods) }
    }

    /// The number of a namespace's name, added if it is new.
    pub fn namespace(&mut self, name: &Arc<str>) -> u32 {
        match self.places.name(name) {
            Some(number) => number,
            None => Arc::make_mut(&mut self.places).learn(&super::METADATA_NAME.into(), name).1,
        }
    }
}

impl WordScope {
    pub fn contains(&self, place: &Place, pod: &[Word]) -> Certainty {
        let in_namespace = match &self.namespaces {
            Ok(name) => (place.name == Some(*name)).into(),
            Err(selector) => place.is_in(selector),
        };
        if in_namespace == Certainty::No { in_namespace } else { in_namespace.and(self.pods.matches(pod)) }
    }
}

/// The other end of a flow.
#[derive(Clone, Copy)]
pub(super) struct PeerView<'a> {
    /// A pod's namespace and words; `None` where it is no pod.
    pub pod: Option<(&'a Place, &'a [Word])>,
    /// A node's labels; `None` where it is no node.
    pub node: Option<&'a Place>,
    /// Its addresses: one where the flow shows which, all of the pod's otherwise, none where it has none yet.
    pub v4: Option<u32>,
    pub v6: Option<u128>,
    /// The names that DNS gave for its address.
    pub names: KnownNames<&'a [Arc<str>]>,
}

impl PeerView<'_> {
    fn has_address(&self) -> bool {
        self.v4.is_some() || self.v6.is_some()
    }

    fn is_in(&self, block: &Block) -> bool {
        self.v4.is_some_and(|ip| block.contains(IpAddr::V4(ip.into())))
            || self.v6.is_some_and(|ip| block.contains(IpAddr::V6(ip.into())))
    }
}

/// What the peers of a rule say of a peer.
pub(super) enum Met {
    /// This one matches, the first that does; `None` where the rule names none and so means everybody.
    Yes(Option<u32>),
    /// This one may match, at this position.
    Maybe(u32),
    No,
}

impl Loaded {
    pub fn new(policy: Arc<CompiledPolicy>, words: &mut Words) -> Self {
        let subjects = words.scope(&policy.subjects);
        let rules = [Direction::Egress, Direction::Ingress].map(|direction| {
            policy.rules(direction).iter().map(|rule| Arc::new(LoadedRule::new(rule, words))).collect()
        });
        let is_doubtful = |rule: &Rule| {
            rule.doubt.is_some()
                || rule.peers.iter().any(|peer| peer.doubt.is_some())
                || rule.ports.iter().any(|port| port.doubt.is_some())
        };
        let doubtful = [Direction::Egress, Direction::Ingress]
            .map(|direction| policy.doubt().is_some() || policy.rules(direction).iter().any(is_doubtful));
        Self { subjects, doubtful, rules, policy }
    }

    /// Whether anything of a direction is in doubt, whoever is selected.
    pub fn is_doubtful(&self, direction: Direction) -> bool {
        self.doubtful[direction as usize]
    }

    /// The rules of a direction, each as compiled and as loaded.
    pub fn rules(&self, direction: Direction) -> impl Iterator<Item = (&Rule, &LoadedRule)> {
        self.shared_rules(direction).map(|(rule, loaded)| (rule, &**loaded))
    }

    /// The same, for those who keep them.
    pub fn shared_rules(&self, direction: Direction) -> impl Iterator<Item = (&Rule, &Arc<LoadedRule>)> {
        self.policy.rules(direction).iter().zip(&self.rules[direction as usize])
    }

    /// Where the ranges of a direction begin and, by one, where they end: between two such addresses nothing changes.
    pub fn cuts(&self, direction: Direction, v4: &mut Vec<u32>, v6: &mut Vec<u128>) {
        for rule in self.policy.rules(direction) {
            for peer in &rule.peers {
                if let Matcher::Block(block) = &peer.matcher {
                    cut(block.net, v4, v6);
                    block.except.iter().for_each(|hole| cut(*hole, v4, v6));
                }
            }
        }
    }

    /// Whether the names of a peer can matter.
    pub fn names_domains(&self, direction: Direction) -> bool {
        let mut peers = self.policy.rules(direction).iter().flat_map(|rule| &rule.peers);
        peers.any(|peer| matches!(peer.matcher, Matcher::Domain(_)))
    }
}

fn cut(net: IpNet, v4: &mut Vec<u32>, v6: &mut Vec<u128>) {
    if let Some((first, last)) = v4_range(net) {
        v4.push(first);
        v4.extend(last.checked_add(1));
    }
    if let Some((first, last)) = v6_range(net) {
        v6.push(first);
        v6.extend(last.checked_add(1));
    }
}

/// The first and the last address of an IPv4 network.
fn v4_range(net: IpNet) -> Option<(u32, u32)> {
    match net {
        IpNet::V4(net) => Some((net.network().into(), net.broadcast().into())),
        IpNet::V6(_) => None,
    }
}

/// The first and the last address of an IPv6 network.
fn v6_range(net: IpNet) -> Option<(u128, u128)> {
    match net {
        IpNet::V4(_) => None,
        IpNet::V6(net) => Some((net.network().into(), net.broadcast().into())),
    }
}

impl LoadedRule {
    fn new(rule: &Rule, words: &mut Words) -> Self {
        let mut peers = SmallVec::new();
        let mut blocks: Vec<(u32, &Block)> = Vec::new();
        for (position, peer) in (0..).zip(&rule.peers) {
            let matcher = match &peer.matcher {
                Matcher::Block(block) if peer.doubt.is_none() => {
                    blocks.push((position, block));
                    continue;
                }
                Matcher::Nobody => continue,
                Matcher::Anyone => PeerMatcher::Anyone,
                Matcher::Pods(scope) => PeerMatcher::Pods(words.scope(scope)),
                Matcher::Nodes(selector) => PeerMatcher::Nodes(Words::selector(&mut words.places, selector)),
                Matcher::Block(block) => PeerMatcher::Block(block.clone()),
                Matcher::Domain(pattern) => PeerMatcher::Domain(pattern.clone()),
            };
            peers.push(LoadedPeer { position, doubtful: peer.doubt.is_some(), matcher });
        }
        let is_named = |port: &&PortMatch| matches!(port.port, PortTest::Named(_));
        Self {
            peers,
            named_ports: rule.ports.iter().filter(is_named).cloned().collect(),
            v4: Intervals::new(&blocks, v4_range),
            v6: Intervals::new(&blocks, v6_range),
            matches_everybody: rule.peers.is_empty(),
        }
    }

    /// Whether the rule means everybody or one of its certain ranges holds the peer; `None` where that hangs on an address
    /// which is not known.
    pub fn is_for(&self, peer: &PeerView<'_>) -> Option<bool> {
        if self.matches_everybody {
            return Some(true);
        }
        let has_ranges = !self.v4.0.is_empty() || !self.v6.0.is_empty();
        if has_ranges && !peer.has_address() {
            return None;
        }
        let is_in = peer.v4.is_some_and(|ip| self.v4.find(ip).is_some())
            || peer.v6.is_some_and(|ip| self.v6.find(ip).is_some());
        Some(is_in)
    }

    /// Whether one of the rule's peers means this one.
    pub fn meets(&self, peer: &PeerView<'_>) -> Met {
        if self.matches_everybody {
            return Met::Yes(None);
        }
        let v4 = peer.v4.and_then(|ip| self.v4.find(ip));
        let in_range = match (v4, peer.v6.and_then(|ip| self.v6.find(ip))) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let mut maybe = None;
        if !peer.has_address()
            && let Some(position) = self.v4.first().into_iter().chain(self.v6.first()).min()
        {
            maybe = Some(position);
        }
        for listed in &self.peers {
            // Of what matches, the first counts.
            if in_range.is_some_and(|range| range < listed.position) {
                break;
            }
            let found = listed.matches(peer);
            let found = if listed.doubtful { found.and(Certainty::Maybe) } else { found };
            match found {
                Certainty::Yes => return Met::Yes(Some(listed.position)),
                Certainty::Maybe => maybe = maybe.or(Some(listed.position)),
                Certainty::No => {}
            }
        }
        match (in_range, maybe) {
            (Some(position), _) => Met::Yes(Some(position)),
            (None, Some(position)) => Met::Maybe(position),
            (None, None) => Met::No,
        }
    }
}

impl LoadedRule {
    /// Whether the element at this position of [`Rule::peers`], which is no range, means a peer for certain.
    fn surely_meets(&self, position: u32, peer: &PeerView<'_>) -> bool {
        let is_it = |listed: &&LoadedPeer| listed.position == position && !listed.doubtful;
        self.peers.iter().find(is_it).is_some_and(|listed| listed.matches(peer) == Certainty::Yes)
    }

    /// Whether an address alone says if the rule means a peer.
    pub fn has_only_ranges(&self) -> bool {
        self.peers.is_empty() && !self.matches_everybody
    }

    /// Its certain ranges, in order, each with the peer that it stands for.
    pub fn v4_ranges(&self) -> &[(u32, u32, u32)] {
        &self.v4.0
    }

    /// The same of IPv6.
    pub fn v6_ranges(&self) -> &[(u128, u128, u32)] {
        &self.v6.0
    }

    /// Why a peer only may match.
    pub fn peer_gap(&self, rule: &Rule, position: u32, peer: &PeerView<'_>) -> Option<Gap> {
        let declared = rule.peers.get(position as usize)?;
        if let Some(doubt) = &declared.doubt {
            return Some(Gap::Invalid(doubt.clone()));
        }
        let names = rule.id.policy.clone();
        match &declared.matcher {
            Matcher::Domain(pattern) => {
                let reason = format!("{names} {} names {pattern}", rule.id.path());
                Some(Gap::NamesUnknown(reason.into()))
            }
            Matcher::Block(block) => {
                let reason = format!("the pod has no address yet, which ipBlock {} needs", block.net);
                Some(Gap::Invalid(reason.into()))
            }
            Matcher::Pods(scope) => {
                let place = || peer.pod.and_then(|(place, _)| place.doubt.clone());
                scope.doubt().cloned().or_else(place).map(Gap::Invalid)
            }
            Matcher::Nodes(selector) => {
                let place = || peer.node.and_then(|node| node.doubt.clone());
                selector.doubt.clone().or_else(place).map(Gap::Invalid)
            }
            Matcher::Anyone | Matcher::Nobody => None,
        }
    }
}

impl LoadedPeer {
    pub fn matches(&self, peer: &PeerView<'_>) -> Certainty {
        match &self.matcher {
            PeerMatcher::Anyone => Certainty::Yes,
            // Selectors select pods: nothing else has labels that they could look at.
            PeerMatcher::Pods(scope) => match peer.pod {
                Some((place, words)) => scope.contains(place, words),
                None => Certainty::No,
            },
            PeerMatcher::Nodes(selector) => match peer.node {
                Some(node) => node.is_in(selector),
                None => Certainty::No,
            },
            PeerMatcher::Block(block) => {
                if peer.has_address() {
                    peer.is_in(block).into()
                } else {
                    Certainty::Maybe
                }
            }
            PeerMatcher::Domain(pattern) => peer.names.matches(pattern),
        }
    }
}

/// Disjoint ranges of addresses in order, each with the first peer that holds it.
struct Intervals<T>(Box<[(T, T, u32)]>);

impl<T: Copy + Ord + Step> Intervals<T> {
    /// Goes over the edges of all ranges once, in order, with the ranges that hold what is between two.
    fn new(blocks: &[(u32, &Block)], range: impl Fn(IpNet) -> Option<(T, T)>) -> Self {
        // What ends behind an address comes before what begins at the next.
        let mut edges: Vec<(T, bool, u32)> = Vec::new();
        for (position, block) in blocks {
            for (first, last) in without_holes(block, &range) {
                edges.push((first, true, *position));
                edges.extend(last.next().map(|after| (after, false, *position)));
            }
        }
        edges.sort_unstable();
        let mut holders = BTreeSet::new();
        let mut intervals: Vec<(T, T, u32)> = Vec::new();
        let mut edges = edges.into_iter().peekable();
        while let Some((first, begins, position)) = edges.next() {
            if begins {
                holders.insert(position)
            } else {
                holders.remove(&position)
            };
            let next = edges.peek().map(|(next, ..)| *next);
            let Some(holder) = holders.first().copied().filter(|_| next != Some(first)) else { continue };
            let last = next.map_or(T::MAX, T::previous);
            match intervals.last_mut() {
                Some((_, end, before)) if *before == holder && end.next() == Some(first) => *end = last,
                _ => intervals.push((first, last, holder)),
            }
        }
        Self(intervals.into())
    }

    fn find(&self, ip: T) -> Option<u32> {
        let (_, last, position) = self.0[..self.0.partition_point(|(first, ..)| *first <= ip)].last()?;
        (ip <= *last).then_some(*position)
    }

    /// The first peer that is a range.
    fn first(&self) -> Option<u32> {
        self.0.iter().map(|(.., position)| *position).min()
    }
}

/// The ranges that are left of a network without its exceptions, in order.
fn without_holes<T: Copy + Ord + Step>(
    block: &Block,
    range: impl Fn(IpNet) -> Option<(T, T)>,
) -> Vec<(T, T)> {
    let Some((first, last)) = range(block.net) else { return Vec::new() };
    let mut holes: Vec<(T, T)> = block.except.iter().filter_map(|hole| range(*hole)).collect();
    holes.sort_unstable();
    let mut rest = Vec::with_capacity(holes.len() + 1);
    let mut next = Some(first);
    for (begin, end) in holes {
        let Some(from) = next.filter(|_| begin <= last) else { break };
        if from < begin {
            rest.push((from, begin.previous()));
        }
        // A hole may lie within the one before.
        if from <= end {
            next = end.next();
        }
    }
    rest.extend(next.filter(|from| *from <= last).map(|from| (from, last)));
    rest
}

trait Step: Sized {
    const MAX: Self;
    fn previous(self) -> Self;
    fn next(self) -> Option<Self>;
}

impl Step for u32 {
    const MAX: Self = Self::MAX;
    fn previous(self) -> Self {
        self - 1
    }
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Step for u128 {
    const MAX: Self = Self::MAX;
    fn previous(self) -> Self {
        self - 1
    }
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// A rule that matches, with the elements that do.
#[derive(Clone, Copy)]
pub(super) struct Hit<'a> {
    pub rule: &'a Rule,
    /// Position in [`Rule::peers`].
    pub peer: Option<u32>,
    /// Position in [`Rule::ports`].
    pub port: Option<u32>,
    /// The rule as it is loaded.
    pub with: &'a LoadedRule,
}

impl Hit<'_> {
    /// With every element that matches; `names_port` says whether one of `ports` does.
    pub fn to_match(self, peer: &PeerView<'_>, names_port: impl Fn(&PortMatch) -> bool) -> RuleMatch {
        let rule = self.rule;
        // The peer's place is the one in the declared list, as one element can stand for several matchers here.
        let first = self.peer.map(|position| rule.peers[position as usize].index);
        let mut elements = Elements::of(first, self.port);
        // Most rules have one of each.
        if rule.peers.len() > 1 {
            let matching = (0..).zip(&rule.peers).filter(|(position, it)| match &it.matcher {
                Matcher::Block(block) => it.doubt.is_none() && peer.is_in(block),
                _ => self.with.surely_meets(*position, peer),
            });
            matching.for_each(|(_, it)| elements.add_peer(it.index));
        }
        if rule.ports.len() > 1 {
            let matching = (0..).zip(&rule.ports).filter(|(_, it)| it.doubt.is_none() && names_port(it));
            matching.for_each(|(position, _)| elements.add_port(position));
        }
        RuleMatch { rule: rule.id.clone(), peer: first, port: self.port, elements }
    }
}
