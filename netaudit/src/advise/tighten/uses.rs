//! Which recorded flows need which element of a policy.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use serde::Serialize;

use crate::{
    advise::{
        Outcome,
        what_if::{Class, End, Judged, Tally},
    },
    model::{Cause, Decision, Direction, PolicyId, Protocol, RuleId, RuleMatch, Timestamp, Verdict},
};

/// Pairs of ends that are remembered of an element; others are counted.
const MOST_PAIRS: usize = 256;

/// Of each element the flows that it had a part in.
#[derive(Default, Debug)]
pub struct Uses {
    rules: HashMap<(Arc<PolicyId>, Direction, u32), OfRule>,
}

/// A rule's flows, and of each of its elements.
#[derive(Default, Debug)]
struct OfRule {
    all: Needs,
    peers: BTreeMap<u32, Needs>,
    ports: BTreeMap<u32, Needs>,
}

/// The flows that something had a part in.
#[derive(Clone, Default, Debug)]
pub struct Needs {
    /// By the node that told them: the end whose rule it is, and the other one.
    told: [u64; 2],
    /// With how many each end told.
    pairs: BTreeMap<Pair, ([u64; 2], Needed)>,
    more_pairs: bool,
    /// When the last began.
    pub last: Option<Timestamp>,
    /// Addresses outside the cluster.
    pub outside: BTreeSet<IpAddr>,
    /// Addresses of pods, nodes or Services.
    pub inside: BTreeSet<IpAddr>,
    /// Ports of the destination.
    pub ports: BTreeSet<(Protocol, u16)>,
}

pub(super) type Pair = (String, String, Protocol, u16);

/// Flows between two workloads.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Needed {
    /// Who opened them: `shop/web`, `external`.
    pub source: String,
    /// Whom they were for.
    pub destination: String,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The destination's port.
    pub port: u16,
    /// How many; who counts says by which end.
    pub flows: u64,
    /// When the last began, in UTC.
    #[serde(serialize_with = "crate::audit::line::in_words")]
    pub last: Timestamp,
    /// That one, for `netaudit why`.
    pub example: String,
}

/// The ends of a class, by their workloads, and its port.
pub(super) fn pair(class: &Class) -> Pair {
    (class.source().workload(), class.destination().workload(), class.protocol, class.port)
}

impl Needed {
    /// None yet.
    pub(super) fn new((source, destination, protocol, port): &Pair) -> Self {
        let (source, destination) = (source.clone(), destination.clone());
        let (last, example) = (Timestamp::MIN, String::new());
        Self { source, destination, protocol: *protocol, port: *port, flows: 0, last, example }
    }

    /// Flows that began until then, the last of which has this id.
    pub(super) fn see(&mut self, last: Timestamp, id: &str) {
        if last >= self.last {
            self.last = last;
            self.example = id.to_owned();
        }
    }
}

impl Needs {
    /// How many, by the end that told more: both tell of one connection.
    pub fn flows(&self) -> u64 {
        self.told[0].max(self.told[1])
    }

    /// Those between workloads, those with most flows first.
    pub fn most(&self, count: usize) -> Vec<Needed> {
        let mut all: Vec<&Needed> = self.pairs.values().map(|(_, it)| it).collect();
        all.sort_by_key(|it| std::cmp::Reverse(it.flows));
        all.into_iter().take(count).cloned().collect()
    }

    /// How many pairs of workloads there were; `None` where they were too many to remember.
    pub fn pairs(&self) -> Option<usize> {
        (!self.more_pairs).then_some(self.pairs.len())
    }

    fn add(&mut self, class: &Class, peer: &End, is_other: usize, tally: &Tally, id: &str) {
        self.told[is_other] += tally.flows;
        self.last = self.last.max(Some(tally.last));
        self.ports.insert((class.protocol, class.port));
        match peer {
            End::External { ip, .. } => drop(self.outside.insert(*ip)),
            End::Pod { ip: Some(ip), .. } | End::Node { ip: Some(ip), .. } | End::Service { ip, .. } => {
                self.inside.insert(*ip);
            }
            End::Pod { ip: None, .. } | End::Node { ip: None, .. } | End::Loopback => {}
        }
        let pair = pair(class);
        if !self.pairs.contains_key(&pair) && self.pairs.len() >= MOST_PAIRS {
            self.more_pairs = true;
            return;
        }
        let (told, needed) = self.pairs.entry(pair).or_insert_with_key(|pair| ([0; 2], Needed::new(pair)));
        told[is_other] += tally.flows;
        needed.flows = told[0].max(told[1]);
        needed.see(tally.last, id);
    }
}

impl Uses {
    /// Adds flows of one class, as the policies judge both of its ends; `run` is the agent run that told them.
    pub fn add(&mut self, class: &Class, run: &str, tally: &Tally, judged: &Judged) {
        let id = format!("{run}-{}", tally.example);
        let own = std::iter::once((0, &judged.own, &class.peer));
        let other = other_end(judged, tally).map(|it| (1, it, &class.subject));
        for (is_other, verdict, peer) in own.chain(other) {
            for found in matches(verdict) {
                let key = (found.rule.policy.clone(), found.rule.direction, found.rule.index);
                let rule = self.rules.entry(key).or_default();
                rule.all.add(class, peer, is_other, tally, &id);
                // Of those after the 64th only the first that matches is known.
                let peers: BTreeSet<u32> = found.elements.peers().chain(found.peer).collect();
                let ports: BTreeSet<u32> = found.elements.ports().chain(found.port).collect();
                for at in peers {
                    rule.peers.entry(at).or_default().add(class, peer, is_other, tally, &id);
                }
                for at in ports {
                    rule.ports.entry(at).or_default().add(class, peer, is_other, tally, &id);
                }
            }
        }
    }

    /// Of a rule.
    pub fn of_rule(&self, rule: &RuleId) -> Option<&Needs> {
        self.find(rule).map(|it| &it.all)
    }

    /// Of an element of it, by the list and its place there.
    pub fn of_element(&self, rule: &RuleId, list: &str, at: u32) -> Option<&Needs> {
        let of_rule = self.find(rule)?;
        if list == "ports" { of_rule.ports.get(&at) } else { of_rule.peers.get(&at) }
    }

    fn find(&self, rule: &RuleId) -> Option<&OfRule> {
        self.rules.get(&(rule.policy.clone(), rule.direction, rule.index))
    }
}

/// What the other end's policies say, where it matters: a connection that its own end denies, and that never got there, needs none of their rules.
pub(super) fn other_end<'a>(judged: &'a Judged, tally: &Tally) -> Option<&'a Arc<Verdict>> {
    let is_open = Outcome::of(&judged.own) != Outcome::Denied || tally.reached > 0;
    judged.other.as_ref().filter(|_| is_open)
}

/// The rules that allow.
pub(super) fn matches(verdict: &Verdict) -> &[RuleMatch] {
    match &verdict.decision {
        Decision::Allowed(Cause::Rules(rules)) => rules,
        _ => &[],
    }
}
