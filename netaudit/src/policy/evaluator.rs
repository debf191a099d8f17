//! Asks a [`Ruleset`], and remembers: identities, programs and verdicts of one reader.
//!
//! A pod is reduced to its *identity*: its namespace, and its labels and named ports as far as some policy could tell
//! them apart. When an identity is first seen, the policies of its namespace and the cluster-wide ones are asked once
//! whether they select it; what remains is its *program*. An address is reduced to its *class*: between two neighbouring
//! ends of ranges that the program mentions, all addresses are alike. A verdict is a function of (direction, subject,
//! peer, class, names, protocol, port) and is kept under that key. So its cost grows with the rules of the policies that
//! select the subject, and with nothing else.
//!
//! Another ruleset starts a new [`Evaluator::epoch`]: everything that was remembered is dropped, and comes back as flows
//! ask for it. Readers share nothing but the ruleset: each has an evaluator of its own, and none waits.

use std::{hash::Hash, net::IpAddr, sync::Arc};

use foldhash::{HashMap, HashMapExt as _};
use smallvec::SmallVec;

use super::{
    Certainty, Labels, NamedPort,
    certain::{self, Steps},
    domains::KnownNames,
    evaluate::{self, Asked, Found, Program, Selected},
    foreign::Foreign,
    loaded::{Loaded, PeerView, Place},
    ruleset::Ruleset,
    words::{Word, WordSet},
};
use crate::model::{Direction, Protocol, Verdict};

/// A pod as policies see it. Valid in the epoch that gave it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IdentityId(u32);

/// A node as policies see it. Valid in the epoch that gave it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NodeId(u32);

/// The other end of a flow.
#[derive(Clone, Copy, Default, Debug)]
pub struct PeerEnd<'a> {
    /// Its identity, if it is a pod.
    pub pod: Option<IdentityId>,
    /// Which node it is, if it is one.
    pub node: Option<NodeId>,
    /// The address that carried the flow; where that is not known, all that the peer has, at most one of each family.
    /// Without any, every range may hold it.
    pub addresses: &'a [IpAddr],
    /// The names that DNS gave for the address.
    pub names: KnownNames<&'a [Arc<str>]>,
}

/// What a flow asks, from one of its ends.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// `Egress` where the subject is the source.
    pub direction: Direction,
    /// The pod whose policies are asked.
    pub subject: IdentityId,
    /// The other end.
    pub peer: PeerEnd<'a>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The destination's port, after any translation.
    pub port: u16,
}

/// How many verdicts, identities and sets of names are kept before they are dropped and computed again: a bound on
/// memory that a scan over all ports and addresses cannot pass.
const CAPACITY: usize = 1 << 17;

/// No address of this family.
const NO_CLASS: u32 = u32::MAX;

/// One reader of the policies. See the module.
#[derive(Default)]
pub struct Evaluator {
    epoch: u64,
    rules: Arc<Ruleset>,
    places: HashMap<Arc<str>, Arc<Place>>,
    identity_ids: HashMap<IdentityKey, IdentityId>,
    identities: Vec<Identity>,
    node_ids: HashMap<Arc<str>, NodeId>,
    nodes: Vec<Arc<Place>>,
    names: HashMap<Arc<[Arc<str>]>, u32>,
    verdicts: HashMap<Key, Arc<Verdict>>,
}

/// What identities are told apart by.
#[derive(Clone, PartialEq, Eq, Hash)]
struct IdentityKey {
    namespace: Arc<str>,
    words: WordSet,
    ports: SmallVec<[NamedPort; 1]>,
}

struct Identity {
    place: Arc<Place>,
    words: WordSet,
    ports: SmallVec<[NamedPort; 1]>,
    /// By direction.
    programs: [Judged; 2],
}

/// A program and what it can tell apart.
#[derive(Default)]
struct Judged {
    program: Program,
    v4: Box<[u32]>,
    v6: Box<[u128]>,
    names: bool,
    caveats: Arc<[Arc<str>]>,
}

/// What a verdict depends on: subject and pod; node and class of the IPv4 address; class of the IPv6 address and names;
/// port, direction and protocol. Packed, as hashing is most of what a remembered verdict costs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key(u64, u64, u64, u32);

impl Evaluator {
    /// The policies that answers come from.
    pub fn rules(&self) -> &Arc<Ruleset> {
        &self.rules
    }

    /// Identities and nodes of another epoch mean nothing.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Answers come from these policies from now on. To be called before identities are asked for, never between that
    /// and the verdict.
    pub fn follow(&mut self, rules: &Arc<Ruleset>) {
        if !Arc::ptr_eq(&self.rules, rules) {
            self.forget();
            self.rules = rules.clone();
        } else if self.identities.len() >= CAPACITY {
            self.forget();
        }
    }

    fn forget(&mut self) {
        // Names and nodes go too: what is shared with the old policies must not outlive them.
        *self = Self { epoch: self.epoch + 1, rules: self.rules.clone(), ..Self::default() };
    }

    /// The identity of a pod with these labels and named ports in this namespace.
    pub fn identity(&mut self, namespace: &Arc<str>, labels: &Labels, ports: &[NamedPort]) -> IdentityId {
        let mentioned = ports.iter().filter(|port| self.rules.port_names.contains(&port.name));
        let mut ports: SmallVec<[NamedPort; 1]> = mentioned.cloned().collect();
        ports.sort();
        ports.dedup();
        let words = self.rules.words.pods.words(labels);
        let key = IdentityKey { namespace: namespace.clone(), words, ports };
        if let Some(id) = self.identity_ids.get(&key) {
            return *id;
        }
        let id = IdentityId(self.identities.len() as u32);
        let place = match self.places.get(namespace) {
            Some(place) => place.clone(),
            None => {
                let place = Arc::new(self.rules.namespace(namespace));
                self.places.insert(namespace.clone(), place.clone());
                place
            }
        };
        self.identities.push(Identity::new(&self.rules, place, &key));
        self.identity_ids.insert(key, id);
        id
    }

    /// The node of this name. Where no object tells of one, its labels are not known.
    pub fn node(&mut self, name: &Arc<str>) -> NodeId {
        if let Some(id) = self.node_ids.get(name) {
            return *id;
        }
        let place = self.rules.node(name);
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(place);
        self.node_ids.insert(name.clone(), id);
        id
    }

    /// What the policies say, with every cause. All ids must be of this epoch.
    pub fn verdict(&mut self, question: &Question<'_>) -> Arc<Verdict> {
        let key = self.key(question);
        if let Some(verdict) = self.verdicts.get(&key) {
            return verdict.clone();
        }
        if self.verdicts.len() >= CAPACITY {
            self.verdicts.clear();
        }
        let verdict = Arc::new(self.judge(question));
        self.verdicts.insert(key, verdict.clone());
        verdict
    }

    /// Whether the flow may pass, without causes, nothing remembered and nothing allocated; `None` where that is not
    /// known. For questions by the million.
    pub fn allows(&self, question: &Question<'_>) -> Option<bool> {
        let asked = self.asked(question);
        certain::allows(&asked).or_else(|| evaluate::answer(&asked).what.is_allowed())
    }

    /// What the policies say, with every cause and nothing remembered.
    pub fn judge(&self, question: &Question<'_>) -> Verdict {
        let asked = self.asked(question);
        let answer = evaluate::answer(&asked);
        debug_assert!(
            certain::allows(&asked).is_none_or(|allows| answer.what.is_allowed() == Some(allows)),
            "the quick way says something else: {question:?}"
        );
        let caveats = self.judged(question).caveats.clone();
        answer.to_verdict(&asked, caveats, self.rules.generation())
    }

    /// An identity as rules look at it: its namespace, labels and named ports.
    pub(super) fn seen(&self, id: IdentityId) -> (&Place, &[Word], &[NamedPort]) {
        let identity = &self.identities[id.0 as usize];
        (&identity.place, &identity.words, &identity.ports)
    }

    /// A node as rules look at it.
    pub(super) fn seen_node(&self, id: NodeId) -> &Place {
        &self.nodes[id.0 as usize]
    }

    /// The policies that may say something of an identity in a direction, and the addresses at which what they say may
    /// change, in order.
    pub(super) fn program(&self, id: IdentityId, direction: Direction) -> (&Program, &[u32], &[u128]) {
        let judged = &self.identities[id.0 as usize].programs[direction as usize];
        (&judged.program, &judged.v4, &judged.v6)
    }

    fn judged(&self, question: &Question<'_>) -> &Judged {
        &self.identities[question.subject.0 as usize].programs[question.direction as usize]
    }

    /// What every rule of every policy that selects the subject says, in the order in which they are asked.
    pub(super) fn trace<'a>(&'a self, question: &Question<'a>) -> Vec<(&'a Selected, Vec<Found<'a>>)> {
        evaluate::trace(&self.asked(question))
    }

    fn asked<'a>(&'a self, question: &Question<'a>) -> Asked<'a> {
        let subject = &self.identities[question.subject.0 as usize];
        let pod = question.peer.pod.map(|id| &self.identities[id.0 as usize]);
        let (v4, v6) = split(question.peer.addresses);
        Asked {
            direction: question.direction,
            program: &subject.programs[question.direction as usize].program,
            subject_ports: &subject.ports,
            peer: PeerView {
                pod: pod.map(|pod| (&*pod.place, pod.words.as_slice())),
                node: question.peer.node.map(|id| &*self.nodes[id.0 as usize]),
                v4,
                v6,
                names: question.peer.names,
            },
            peer_ports: pod.map_or(&[], |pod| &pod.ports),
            protocol: question.protocol,
            port: question.port,
        }
    }

    fn key(&mut self, question: &Question<'_>) -> Key {
        let judged = self.judged(question);
        let (v4, v6) = split(question.peer.addresses);
        let class_v4 = v4.map_or(NO_CLASS, |ip| judged.v4.partition_point(|cut| *cut <= ip) as u32);
        let class_v6 = v6.map_or(NO_CLASS, |ip| judged.v6.partition_point(|cut| *cut <= ip) as u32);
        let names = match question.peer.names {
            _ if !judged.names => 0,
            KnownNames::Unknown => 1,
            KnownNames::All(names) => self.name_set(names),
            // There is not memory for so many sets.
            KnownNames::Some(names) => self.name_set(names) | 1 << 31,
        };
        // No identity and no node has the last number, as there is not memory for so many.
        let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        Key(
            pair(question.subject.0, question.peer.pod.map_or(u32::MAX, |pod| pod.0)),
            pair(question.peer.node.map_or(u32::MAX, |node| node.0), class_v4),
            pair(class_v6, names),
            u32::from(question.port) << 16 | (question.direction as u32) << 8 | question.protocol as u32,
        )
    }

    fn name_set(&mut self, names: &[Arc<str>]) -> u32 {
        if let Some(id) = self.names.get(names) {
            return *id;
        }
        if self.names.len() >= CAPACITY {
            self.names = HashMap::new();
            self.verdicts.clear();
        }
        let id = self.names.len() as u32 + 2;
        self.names.insert(names.into(), id);
        id
    }
}

/// The addresses by family; a v4-mapped one is the v4 one.
fn split(addresses: &[IpAddr]) -> (Option<u32>, Option<u128>) {
    let (mut v4, mut v6) = (None, None);
    for ip in addresses {
        match ip.to_canonical() {
            IpAddr::V4(ip) => v4 = v4.or(Some(ip.into())),
            IpAddr::V6(ip) => v6 = v6.or(Some(ip.into())),
        }
    }
    (v4, v6)
}

impl Identity {
    fn new(rules: &Ruleset, place: Arc<Place>, key: &IdentityKey) -> Self {
        let programs = [Direction::Egress, Direction::Ingress].map(|direction| {
            let select = |from: &[Arc<Loaded>]| -> Vec<Selected> {
                from.iter().filter_map(|loaded| select(loaded, direction, &place, key)).collect()
            };
            let concerns =
                |namespace: &Option<Arc<str>>| namespace.as_ref().is_none_or(|it| *it == key.namespace);
            let mut program = Program {
                admin: select(&rules.admin),
                network: select(rules.network(&key.namespace)),
                baseline: select(&rules.baseline),
                foreign: Foreign::of(rules.foreign(&key.namespace), direction, &place, &key.words),
                doubts: rules.doubts.iter().filter(|doubt| concerns(&doubt.namespace)).cloned().collect(),
                certain: None,
            };
            program.certain = Steps::new(&program, direction);
            Judged::new(program, direction)
        });
        Self { place, words: key.words.clone(), ports: key.ports.clone(), programs }
    }
}

/// Whether a policy selects an identity and says something of a direction, and why that is in doubt.
fn select(loaded: &Arc<Loaded>, direction: Direction, place: &Place, key: &IdentityKey) -> Option<Selected> {
    let policy = &loaded.policy;
    let speaks = policy.speaks_of(direction);
    if speaks == Certainty::No {
        return None;
    }
    let selects = loaded.subjects.contains(place, &key.words);
    let doubt = match selects.and(speaks) {
        Certainty::No => return None,
        Certainty::Yes => None,
        // A doubtful result has a doubtful selector, namespace or type; in this order they are told.
        Certainty::Maybe if selects == Certainty::Maybe => {
            policy.subjects.doubt().cloned().or_else(|| place.doubt.clone())
        }
        Certainty::Maybe => policy.types_doubt.clone(),
    };
    Some(Selected { loaded: loaded.clone(), doubt })
}

impl Judged {
    fn new(program: Program, direction: Direction) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let mut names = false;
        for selected in program.admin.iter().chain(&program.network).chain(&program.baseline) {
            selected.loaded.cuts(direction, &mut v4, &mut v6);
            names |= selected.loaded.names_domains(direction);
        }
        v4.sort_unstable();
        v4.dedup();
        v6.sort_unstable();
        v6.dedup();
        let caveats = program.foreign.caveats.as_slice().into();
        Self { program, v4: v4.into(), v6: v6.into(), names, caveats }
    }
}
