//! The policies of a cluster, arranged so that a verdict costs the same with ten policies as with ten thousand.
//!
//! Selectors never run per flow. A pod is reduced to its *identity*: its namespace, and its labels and named ports
//! projected onto the keys and names that some policy mentions. When an identity is first seen, every selector that
//! could concern it runs once; what remains per identity is a set of bits (which peers it is) and a list (which
//! policies select it). An address is reduced to its *class*: the ranges that contain it. A verdict is a function of
//! (direction, subject identity, peer identity, peer class, protocol, port) and is cached under that key.
//!
//! Loading other policies or namespaces starts a new [`Engine::epoch`]: identities, classes and verdicts are dropped,
//! and come back as flows ask for them.

use std::{hash::Hash, net::IpAddr, sync::Arc};

use foldhash::{HashMap, HashMapExt as _, HashSet};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use smallvec::SmallVec;

use super::{
    Certainty, Labels, NamedPort, NamespaceView,
    compile::{Block, CompiledPolicy, Matcher, NamespaceScope, PodScope, PortTest},
    evaluate,
};
use crate::model::{Direction, Protocol, Verdict};

/// A pod as policies see it. Valid in the epoch that gave it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IdentityId(u32);

/// An address as policies see it. Valid in the epoch that gave it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ClassId(u32);

impl ClassId {
    /// The class of an address that is not known: every range may contain it.
    pub const UNKNOWN: Self = Self(u32::MAX);
}

/// Something that may be a policy but could not be read: it may isolate any pod of its namespace and allow anything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Doubt {
    /// The namespace; `None` where it may be any.
    pub namespace: Option<Arc<str>>,
    /// What could not be read, and why.
    pub reason: Arc<str>,
}

/// How many verdicts, identities and addresses are kept before they are dropped and computed again: a bound on
/// memory that a scan over all ports and addresses cannot pass.
const CAPACITY: usize = 1 << 16;

/// The policies of a cluster, ready to be asked.
#[derive(Default)]
pub struct Engine {
    epoch: u64,
    pub(super) policies: Vec<Loaded>,
    doubts: Vec<Doubt>,
    /// Positions in `policies`, in order of name.
    by_namespace: HashMap<Arc<str>, Vec<u32>>,
    /// Keys that a selector for pods mentions.
    label_keys: HashSet<Arc<str>>,
    /// Port names that a rule mentions.
    port_names: HashSet<Arc<str>>,
    /// Distinct peer selectors of all rules; positions are the bits of identities.
    scopes: Interner<PodScope>,
    /// Scopes that select in one namespace only.
    own_scopes: HashMap<Arc<str>, Vec<u32>>,
    /// Scopes with a namespace selector.
    wide_scopes: Vec<u32>,
    /// Distinct ranges of all rules.
    blocks: Interner<Block>,
    v4: PrefixMap<Ipv4Net, SmallVec<[u32; 2]>>,
    v6: PrefixMap<Ipv6Net, SmallVec<[u32; 2]>>,
    identity_ids: HashMap<IdentityKey, u32>,
    pub(super) identities: Vec<Identity>,
    /// Each class by the sorted ranges that contain its addresses.
    classes: Interner<SmallVec<[u32; 4]>>,
    class_of: HashMap<IpAddr, ClassId>,
    verdicts: HashMap<Question, Arc<Verdict>>,
}

/// A policy with its peers replaced by positions in the tables above.
pub(super) struct Loaded {
    pub policy: Arc<CompiledPolicy>,
    /// Per direction, per rule, per peer.
    pub peers: [Vec<Vec<Target>>; 2],
}

/// What a peer matches.
#[derive(Clone, Copy)]
pub(super) enum Target {
    Anyone,
    Scope(u32),
    Block(u32),
}

/// What identities are told apart by.
#[derive(Clone, PartialEq, Eq, Hash)]
struct IdentityKey {
    namespace: Arc<str>,
    labels: Labels,
    ports: SmallVec<[NamedPort; 2]>,
}

/// What is known of an identity.
pub(super) struct Identity {
    pub ports: SmallVec<[NamedPort; 2]>,
    /// Why the labels of its namespace are not known, where they are not.
    pub namespace_doubt: Option<Arc<str>>,
    /// Scopes that certainly and possibly contain it.
    certain: Bits,
    possible: Bits,
    /// Per direction, the policies that isolate it, in order of name.
    pub selected: [Vec<Selected>; 2],
    /// What may be a policy that isolates it.
    pub doubts: Vec<Arc<str>>,
}

/// A policy that isolates an identity in some direction.
#[derive(Clone)]
pub(super) struct Selected {
    /// Position in [`Engine::policies`].
    pub policy: u32,
    /// Set where it only may: why.
    pub doubt: Option<Arc<str>>,
}

/// What a verdict depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub direction: Direction,
    pub subject: IdentityId,
    /// `None` where the peer is no pod.
    pub peer: Option<IdentityId>,
    /// The peer's address.
    pub class: ClassId,
    pub protocol: Protocol,
    /// The destination's.
    pub port: u16,
}

impl Engine {
    /// Replaces all policies. They must come in order of name within each namespace.
    pub fn load(&mut self, policies: impl Iterator<Item = Arc<CompiledPolicy>>, doubts: Vec<Doubt>) {
        *self = Self { epoch: self.epoch + 1, doubts, ..Self::default() };
        for policy in policies {
            self.load_policy(policy);
        }
        for (position, scope) in self.scopes.items.iter().enumerate() {
            let position = position as u32;
            match &scope.namespaces {
                NamespaceScope::Own(name) => self.own_scopes.entry(name.clone()).or_default().push(position),
                NamespaceScope::Matching(_) => self.wide_scopes.push(position),
            }
        }
        for (position, block) in self.blocks.items.iter().enumerate() {
            let position = position as u32;
            match block.net {
                IpNet::V4(net) => self.v4.entry(net).or_default().push(position),
                IpNet::V6(net) => self.v6.entry(net).or_default().push(position),
            }
        }
    }

    fn load_policy(&mut self, policy: Arc<CompiledPolicy>) {
        self.label_keys.extend(policy.subjects.keys().cloned());
        let peers = [Direction::Egress, Direction::Ingress].map(|direction| {
            let mut rules = Vec::new();
            for rule in policy.rules(direction) {
                for port in &rule.ports {
                    if let PortTest::Named(name) = &port.port {
                        self.port_names.insert(name.clone());
                    }
                }
                rules.push(rule.peers.iter().map(|peer| self.intern(&peer.matcher)).collect());
            }
            rules
        });
        self.by_namespace.entry(policy.id.namespace.clone()).or_default().push(self.policies.len() as u32);
        self.policies.push(Loaded { policy, peers });
    }

    fn intern(&mut self, matcher: &Matcher) -> Target {
        match matcher {
            Matcher::Anyone => Target::Anyone,
            Matcher::Pods(scope) => {
                self.label_keys.extend(scope.pods.keys().cloned());
                Target::Scope(self.scopes.intern(scope))
            }
            Matcher::Block(block) => Target::Block(self.blocks.intern(block)),
        }
    }

    /// Identities and classes of another epoch mean nothing.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Drops identities when there are too many, which starts a new epoch. To be called before identities are asked
    /// for, never between that and the verdict.
    pub fn trim(&mut self) {
        if self.identities.len() >= CAPACITY {
            self.epoch += 1;
            self.identity_ids = HashMap::new();
            self.identities = Vec::new();
            self.verdicts.clear();
        }
    }

    /// The identity of a pod with these labels and named ports in this namespace.
    pub fn identity(
        &mut self,
        namespace: &NamespaceView,
        labels: &Labels,
        ports: &[NamedPort],
    ) -> IdentityId {
        let mut ports: SmallVec<[NamedPort; 2]> =
            ports.iter().filter(|port| self.port_names.contains(&port.name)).cloned().collect();
        ports.sort();
        ports.dedup();
        let labels = labels.project(|key| self.label_keys.contains(key));
        let key = IdentityKey { namespace: namespace.name.clone(), labels, ports };
        if let Some(id) = self.identity_ids.get(&key) {
            return IdentityId(*id);
        }
        let id = self.identities.len() as u32;
        self.identities.push(self.judge(namespace, &key));
        self.identity_ids.insert(key, id);
        IdentityId(id)
    }

    /// Runs every selector that could concern a new identity.
    fn judge(&self, namespace: &NamespaceView, key: &IdentityKey) -> Identity {
        let mut identity = Identity {
            ports: key.ports.clone(),
            namespace_doubt: namespace.doubt.clone(),
            certain: Bits::new(self.scopes.items.len()),
            possible: Bits::new(self.scopes.items.len()),
            selected: Default::default(),
            doubts: (self.doubts.iter())
                .filter(|doubt| doubt.namespace.as_ref().is_none_or(|it| *it == namespace.name))
                .map(|doubt| doubt.reason.clone())
                .collect(),
        };
        let own = self.own_scopes.get(&namespace.name).into_iter().flatten();
        for &position in own.chain(&self.wide_scopes) {
            let scope = &self.scopes.items[position as usize];
            let namespaces = match &scope.namespaces {
                NamespaceScope::Own(_) => Certainty::Yes,
                NamespaceScope::Matching(selector) => selector.matches_namespace(namespace),
            };
            match namespaces.and(scope.pods.matches(&key.labels)) {
                Certainty::No => {}
                Certainty::Maybe => identity.possible.set(position),
                Certainty::Yes => identity.certain.set(position),
            }
        }
        for &position in self.by_namespace.get(&namespace.name).into_iter().flatten() {
            let policy = &self.policies[position as usize].policy;
            let selects = policy.subjects.matches(&key.labels);
            for direction in [Direction::Egress, Direction::Ingress] {
                let doubt = match selects.and(policy.isolates(direction)) {
                    Certainty::No => continue,
                    Certainty::Yes => None,
                    // A doubtful result has a doubtful selector or doubtful types; the selector is told first.
                    Certainty::Maybe if selects == Certainty::Maybe => policy.subjects.doubt.clone(),
                    Certainty::Maybe => policy.types_doubt.clone(),
                };
                identity.selected[direction as usize].push(Selected { policy: position, doubt });
            }
        }
        identity
    }

    /// The class of an address.
    pub fn class(&mut self, ip: IpAddr) -> ClassId {
        let ip = ip.to_canonical();
        if let Some(class) = self.class_of.get(&ip) {
            return *class;
        }
        if self.class_of.len() >= CAPACITY {
            self.class_of.clear();
        }
        let class = self.class_of_any(&[ip]);
        self.class_of.insert(ip, class);
        class
    }

    /// The class of something that has all of these addresses: it is in a range if one of them is.
    pub fn class_of_any(&mut self, ips: &[IpAddr]) -> ClassId {
        if ips.is_empty() {
            return ClassId::UNKNOWN;
        }
        let mut ranges: SmallVec<[u32; 4]> = SmallVec::new();
        for ip in ips.iter().map(IpAddr::to_canonical) {
            let blocks = &self.blocks;
            let mut keep = |found: &SmallVec<[u32; 2]>| {
                ranges.extend(found.iter().copied().filter(|it| blocks.items[*it as usize].contains(ip)));
            };
            match ip {
                IpAddr::V4(ip) => self.v4.cover_values(&Ipv4Net::from(ip)).for_each(&mut keep),
                IpAddr::V6(ip) => self.v6.cover_values(&Ipv6Net::from(ip)).for_each(&mut keep),
            }
        }
        ranges.sort_unstable();
        ranges.dedup();
        ClassId(self.classes.intern(&Arc::new(ranges)))
    }

    /// What the policies of `direction` say of a flow between `subject` and a peer: a pod if it has an identity, with
    /// the address of class `class`. `port` is the destination's. All ids must be of this epoch.
    pub fn verdict(
        &mut self,
        direction: Direction,
        subject: IdentityId,
        peer: Option<IdentityId>,
        class: ClassId,
        protocol: Protocol,
        port: u16,
    ) -> Arc<Verdict> {
        let question = Question { direction, subject, peer, class, protocol, port };
        if let Some(verdict) = self.verdicts.get(&question) {
            return verdict.clone();
        }
        if self.verdicts.len() >= CAPACITY {
            self.verdicts.clear();
        }
        let verdict = Arc::new(evaluate::verdict(self, &question));
        self.verdicts.insert(question, verdict.clone());
        verdict
    }

    /// Everything about an identity of this epoch.
    pub(super) fn facts(&self, id: IdentityId) -> &Identity {
        &self.identities[id.0 as usize]
    }

    /// Whether a scope contains an identity.
    pub(super) fn in_scope(&self, id: IdentityId, scope: u32) -> Certainty {
        let identity = self.facts(id);
        if identity.certain.get(scope) {
            Certainty::Yes
        } else if identity.possible.get(scope) {
            Certainty::Maybe
        } else {
            Certainty::No
        }
    }

    /// Why it is not certain that a scope contains an identity.
    pub(super) fn scope_doubt(&self, id: IdentityId, scope: u32) -> Option<Arc<str>> {
        let scope = &self.scopes.items[scope as usize];
        let namespaces = match &scope.namespaces {
            NamespaceScope::Own(_) => None,
            NamespaceScope::Matching(selector) => selector.doubt.clone(),
        };
        namespaces.or_else(|| scope.pods.doubt.clone()).or_else(|| self.facts(id).namespace_doubt.clone())
    }

    /// Whether a range contains the addresses of a class.
    pub(super) fn in_block(&self, class: ClassId, block: u32) -> Certainty {
        if class == ClassId::UNKNOWN {
            return Certainty::Maybe;
        }
        self.classes.items[class.0 as usize].binary_search(&block).is_ok().into()
    }

    /// The range, for people.
    pub(super) fn block(&self, block: u32) -> IpNet {
        self.blocks.items[block as usize].net
    }
}

/// Gives equal values the same position.
struct Interner<T> {
    items: Vec<Arc<T>>,
    positions: HashMap<Arc<T>, u32>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { items: Vec::new(), positions: HashMap::default() }
    }
}

impl<T: Eq + Hash> Interner<T> {
    fn intern(&mut self, item: &Arc<T>) -> u32 {
        if let Some(position) = self.positions.get(item) {
            return *position;
        }
        let position = self.items.len() as u32;
        self.items.push(item.clone());
        self.positions.insert(item.clone(), position);
        position
    }
}

/// A set of small numbers.
struct Bits(Box<[u64]>);

impl Bits {
    fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)].into())
    }

    fn set(&mut self, bit: u32) {
        self.0[bit as usize / 64] |= 1 << (bit % 64);
    }

    fn get(&self, bit: u32) -> bool {
        self.0[bit as usize / 64] & (1 << (bit % 64)) != 0
    }
}
