//! Sets of connections.

use std::sync::Arc;

use foldhash::HashMap;

use super::{
    ports::{Interned, PortSet},
    side::{Outside, Side},
    universe::{Other, Universe},
};
use crate::model::{Direction, Protocol};

/// What a ruleset allows.
#[derive(Clone, PartialEq, Debug)]
pub struct Connections {
    /// What is allowed whatever the unknown turns out to be.
    pub surely: ConnectionSet,
    /// What is not denied for certain; holds `surely`.
    pub possibly: ConnectionSet,
}

/// A set of connections of which at least one end is a pod.
#[derive(Clone, Debug)]
pub struct ConnectionSet {
    universe: Arc<Universe>,
    /// By source, then destination.
    pods: Vec<Arc<PortSet>>,
    /// By direction and subject.
    outside: [Vec<Outside>; 2],
}

impl Connections {
    /// What the ruleset at this position of the universe's allows.
    ///
    /// The API: a connection is allowed if the egress of its source and the ingress of its destination both are.
    pub fn new(universe: &Arc<Universe>, view: usize) -> Self {
        let count = universe.groups().len();
        let mut interned = Interned::default();
        let mut outside = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
        let [egress, ingress] = [Direction::Egress, Direction::Ingress].map(|direction| {
            let mut pods = Vec::with_capacity(count);
            for subject in 0..count {
                let side = Side::new(universe, view, direction, subject, &mut interned);
                pods.push(side.pods);
                let [surely, possibly] = side.outside;
                outside[0][direction as usize].push(surely);
                outside[1][direction as usize].push(possibly);
            }
            pods
        });
        let sets = [0, 1].map(|answer| {
            let mut both = Memo::new(PortSet::intersection);
            let mut pods = Vec::with_capacity(count * count);
            for (source, leaves) in egress.iter().enumerate() {
                for (destination, leaves) in leaves.iter().enumerate() {
                    pods.push(both.of(&leaves[answer], &ingress[destination][source][answer]));
                }
            }
            pods
        });
        let [surely, possibly] = sets;
        let [outside_surely, outside_possibly] = outside;
        let universe = universe.clone();
        Self {
            surely: ConnectionSet { universe: universe.clone(), pods: surely, outside: outside_surely },
            possibly: ConnectionSet { universe, pods: possibly, outside: outside_possibly },
        }
    }

    /// What hangs on something that is not known: neither allowed nor denied.
    pub fn unknown(&self) -> ConnectionSet {
        self.possibly.difference(&self.surely)
    }

    /// Whether what this allows the other allows too, whatever any unknown turns out to be: nothing that this may allow
    /// is not surely allowed by the other. The strongest proof of containment.
    pub fn is_surely_within(&self, other: &Self) -> bool {
        self.possibly.is_subset(&other.surely)
    }

    /// What this allows, or may, and the other did not: surely new, and new if the unknown is so. Where both are empty,
    /// nothing becomes allowed but what was unknown and has stayed unknown.
    pub fn beyond(&self, other: &Self) -> (ConnectionSet, ConnectionSet) {
        let newly = self.surely.difference(&other.surely);
        let perhaps = self.possibly.difference(&other.possibly).difference(&newly);
        (newly, perhaps)
    }
}

/// A function of two sets, computed once for each two that occur; equal results are one.
struct Memo<F> {
    f: F,
    /// By where the two are held, which is as good as what they are while they are kept.
    known: HashMap<(*const PortSet, *const PortSet), Arc<PortSet>>,
    kept: Vec<[Arc<PortSet>; 2]>,
    results: Interned,
}

impl<F: Fn(&PortSet, &PortSet) -> PortSet> Memo<F> {
    fn new(f: F) -> Self {
        Self { f, known: HashMap::default(), kept: Vec::new(), results: Interned::default() }
    }

    fn of(&mut self, a: &Arc<PortSet>, b: &Arc<PortSet>) -> Arc<PortSet> {
        let key = (Arc::as_ptr(a), Arc::as_ptr(b));
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let result = self.results.of((self.f)(a, b));
        self.kept.push([a.clone(), b.clone()]);
        self.known.insert(key, result.clone());
        result
    }
}

impl ConnectionSet {
    /// The ends that it is about.
    pub fn universe(&self) -> &Arc<Universe> {
        &self.universe
    }

    /// The ports from pods of one group to other pods of another, or of the same.
    pub fn between(&self, source: usize, destination: usize) -> &Arc<PortSet> {
        &self.pods[source * self.universe.groups().len() + destination]
    }

    /// What pods of a group may do to ends that are no pods (egress), or such ends to them (ingress).
    pub fn outside(&self, direction: Direction, group: usize) -> &Outside {
        &self.outside[direction as usize][group]
    }

    /// Whether it holds the connection from (egress) or to (ingress) a pod of this group.
    pub fn contains(
        &self,
        direction: Direction,
        subject: usize,
        other: Other,
        protocol: Protocol,
        port: u16,
    ) -> bool {
        let outside = self.outside(direction, subject);
        match other {
            Other::Pod(group) => {
                let (source, destination) = match direction {
                    Direction::Egress => (subject, group),
                    Direction::Ingress => (group, subject),
                };
                self.between(source, destination).contains(protocol, port)
            }
            Other::Node(group) => outside.nodes[group].contains(protocol, port),
            Other::External(ip, None) => outside.unnamed.contains(ip, protocol, port),
            Other::External(ip, Some(pattern)) => outside.named[pattern].contains(ip, protocol, port),
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.pods.iter().all(|it| it.is_empty()) && self.outside.iter().flatten().all(Outside::is_empty)
    }

    /// What is in either.
    ///
    /// # Panics
    /// If the two are over different universes, as all of these.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.combine(other, PortSet::union)
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, PortSet::intersection)
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, PortSet::difference)
    }

    /// Whether the other holds all of it.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.difference(other).is_empty()
    }

    /// This set without the pairs of groups (source, destination), and without the parts of a group's outside, that are
    /// to be dropped.
    #[must_use]
    pub fn without(
        &self,
        drop_pair: impl Fn(&Self, usize, usize) -> bool,
        drop_outside: impl Fn(&Self, Direction, usize) -> bool,
    ) -> Self {
        let (mut rest, nothing) = (self.clone(), Arc::new(PortSet::default()));
        let count = self.universe.groups().len();
        for (source, destination) in (0..count).flat_map(|a| (0..count).map(move |b| (a, b))) {
            if drop_pair(self, source, destination) {
                rest.pods[source * count + destination] = nothing.clone();
            }
        }
        for direction in [Direction::Egress, Direction::Ingress] {
            for group in (0..count).filter(|group| drop_outside(self, direction, *group)) {
                let outside = &mut rest.outside[direction as usize][group];
                *outside = outside.combine(outside, &|_, _| PortSet::default());
            }
        }
        rest
    }

    fn combine(&self, other: &Self, f: impl Fn(&PortSet, &PortSet) -> PortSet) -> Self {
        assert!(Arc::ptr_eq(&self.universe, &other.universe), "sets over different universes");
        let outside = [0, 1].map(|direction| {
            let both = self.outside[direction].iter().zip(&other.outside[direction]);
            both.map(|(a, b)| a.combine(b, &f)).collect()
        });
        let mut memo = Memo::new(&f);
        let pods = self.pods.iter().zip(&other.pods).map(|(a, b)| memo.of(a, b)).collect();
        Self { universe: self.universe.clone(), pods, outside }
    }
}

/// Equal sets hold the same; sets over different universes are never equal.
impl PartialEq for ConnectionSet {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.universe, &other.universe)
            && self.pods == other.pods
            && self.outside == other.outside
    }
}

impl Eq for ConnectionSet {}
