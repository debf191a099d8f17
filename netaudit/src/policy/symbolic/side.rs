//! What one end's policies say of every other end.

use std::{collections::BTreeSet, sync::Arc};

use foldhash::HashMap;

use super::{
    addresses::AddressSet,
    external::ExternalSet,
    intervals::{IntervalSet, Point},
    ports::{Interned, PortSet},
    tiers::{self, Judgement, Meets, Met},
    universe::Universe,
};
use crate::{
    model::Direction,
    policy::{
        KnownNames, NamedPort,
        evaluate::Program,
        loaded::{LoadedRule, PeerView},
    },
};

/// The part of a set between one group of pods and ends that are no pods.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outside {
    /// By group of node addresses.
    pub nodes: Vec<Arc<PortSet>>,
    /// Addresses without a name that matters.
    pub unnamed: Arc<ExternalSet>,
    /// By pattern: addresses with a name of this pattern.
    pub named: Vec<Arc<ExternalSet>>,
}

/// Of a group of pods in one direction: surely, and possibly.
pub(super) struct Side {
    /// By group of the peer.
    pub pods: Vec<[Arc<PortSet>; 2]>,
    pub outside: [Outside; 2],
}

/// Judges peers of one subject; those that all rules meet alike are judged once.
struct Judge<'a> {
    program: &'a Program,
    direction: Direction,
    /// In the order in which they are asked.
    rules: Vec<&'a LoadedRule>,
    known: HashMap<(Box<[Met]>, &'a [NamedPort]), usize>,
    judgements: Vec<[Arc<PortSet>; 2]>,
    /// Their numbers, by where the sets are kept: equal ones are one.
    numbers: HashMap<[*const PortSet; 2], usize>,
    interned: &'a mut Interned,
}

impl<'a> Judge<'a> {
    /// The number of the judgement; equal ones have one number.
    fn ask(&mut self, peer: &PeerView<'_>, named: &'a [NamedPort]) -> usize {
        let met =
            (0..).zip(&self.rules).filter_map(|(number, rule)| Some((number, tiers::meet(rule, peer)?)));
        self.of(met.collect(), named)
    }

    /// The number of the judgement for a peer that these rules meet.
    fn of(&mut self, met: Box<[Met]>, named: &'a [NamedPort]) -> usize {
        let key = (met, named);
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let Judgement { surely, possibly } = tiers::judge(self.program, self.direction, &key.0, named);
        let sets = [surely, possibly].map(|it| self.interned.of(it));
        let judgements = &mut self.judgements;
        let at = *self.numbers.entry([Arc::as_ptr(&sets[0]), Arc::as_ptr(&sets[1])]).or_insert_with(|| {
            judgements.push(sets);
            judgements.len() - 1
        });
        self.known.insert(key, at);
        at
    }

    fn external(
        &mut self,
        cuts: (&[u32], &[u128]),
        names: &'a [Arc<str>],
        own: &'a [NamedPort],
    ) -> [ExternalSet; 2] {
        let outside = PeerView { pod: None, node: None, v4: None, v6: None, names: KnownNames::All(names) };
        let v4 = self.family(cuts.0, own, LoadedRule::v4_ranges, |ip| PeerView { v4: Some(ip), ..outside });
        let v6 = self.family(cuts.1, own, LoadedRule::v6_ranges, |ip| PeerView { v6: Some(ip), ..outside });
        [0, 1].map(|answer| {
            let part = |(at, ports): (usize, &[Arc<PortSet>; 2])| {
                let addresses = AddressSet {
                    v4: v4.get(&at).into_iter().flatten().copied().collect(),
                    v6: v6.get(&at).into_iter().flatten().copied().collect(),
                };
                (addresses, PortSet::clone(&ports[answer]))
            };
            self.judgements.iter().enumerate().map(part).collect()
        })
    }

    /// The ranges of a family, by the number of the judgement. Rules that name nothing but ranges are not asked for each of
    /// them: of many, each range meets few.
    fn family<T: Point>(
        &mut self,
        cuts: &[T],
        own: &'a [NamedPort],
        ranges: impl Fn(&LoadedRule) -> &[(T, T, u32)],
        view: impl Fn(T) -> PeerView<'a>,
    ) -> HashMap<usize, Vec<(T, T)>> {
        let numbered = || (0..).zip(self.rules.iter().copied());
        let (plain, others): (Vec<_>, Vec<_>) = numbered().partition(|(_, rule)| rule.has_only_ranges());
        // What ends behind an address comes before what begins at the next.
        let mut edges: Vec<(T, bool, u32)> = Vec::new();
        for (number, rule) in plain {
            for (first, last, _) in ranges(rule) {
                edges.push((*first, true, number));
                edges.extend(last.after().map(|after| (after, false, number)));
            }
        }
        edges.sort_unstable();
        let mut edges = edges.into_iter().peekable();
        let mut holding = BTreeSet::new();
        let mut found: HashMap<usize, Vec<(T, T)>> = HashMap::default();
        for (first, last) in pieces(cuts) {
            while let Some((_, begins, number)) = edges.next_if(|(at, ..)| *at <= first) {
                if begins {
                    holding.insert(number)
                } else {
                    holding.remove(&number)
                };
            }
            let mut met: Vec<Met> = holding.iter().map(|number| (*number, Meets::Yes)).collect();
            if !others.is_empty() {
                let peer = view(first);
                met.extend(
                    others.iter().filter_map(|(number, rule)| Some((*number, tiers::meet(rule, &peer)?))),
                );
                met.sort_unstable();
            }
            found.entry(self.of(met.into(), own)).or_default().push((first, last));
        }
        found
    }
}

/// The intervals between neighbouring cuts: all numbers.
fn pieces<T: Point>(cuts: &[T]) -> Vec<(T, T)> {
    let mut pieces = Vec::with_capacity(cuts.len() + 1);
    let mut first = T::MIN;
    for cut in cuts {
        if let Some(last) = cut.before()
            && first <= last
        {
            pieces.push((first, last));
        }
        first = *cut;
    }
    pieces.push((first, T::MAX));
    debug_assert!(pieces.iter().copied().collect::<IntervalSet<T>>().is_all());
    pieces
}

impl Side {
    pub fn new(
        universe: &Universe,
        view: usize,
        direction: Direction,
        subject: usize,
        interned: &mut Interned,
    ) -> Self {
        let evaluator = universe.view(view);
        let identity = universe.groups()[subject].identities[view];
        let (program, v4, v6) = evaluator.program(identity, direction);
        let own = evaluator.seen(identity).2;
        let mut judge = Judge {
            program,
            direction,
            rules: tiers::rules(program, direction),
            known: HashMap::default(),
            judgements: Vec::new(),
            numbers: HashMap::default(),
            interned,
        };
        // The API: a named port is the destination's.
        let named_of = |group: usize| match direction {
            Direction::Egress => evaluator.seen(universe.groups()[group].identities[view]).2,
            Direction::Ingress => own,
        };
        let named_outside: &[NamedPort] = match direction {
            Direction::Egress => &[],
            Direction::Ingress => own,
        };
        let pods: Vec<usize> = (0..universe.groups().len())
            .map(|group| judge.ask(&universe.pod_view(view, group), named_of(group)))
            .collect();
        let nodes: Vec<usize> = (0..universe.nodes().len())
            .map(|group| judge.ask(&universe.node_view(view, group), named_outside))
            .collect();
        let unnamed = judge.external((v4, v6), universe.names(None), named_outside).map(Arc::new);
        let asks_names = universe.asks_names(program, direction);
        let named: Vec<[Arc<ExternalSet>; 2]> = (0..universe.patterns().len())
            .map(|pattern| match asks_names {
                true => judge.external((v4, v6), universe.names(Some(pattern)), named_outside).map(Arc::new),
                false => unnamed.clone(),
            })
            .collect();
        let outside = [0, 1].map(|answer| Outside {
            nodes: nodes.iter().map(|at| judge.judgements[*at][answer].clone()).collect(),
            unnamed: unnamed[answer].clone(),
            named: named.iter().map(|sets| sets[answer].clone()).collect(),
        });
        Self { pods: pods.into_iter().map(|at| judge.judgements[at].clone()).collect(), outside }
    }
}

impl Outside {
    pub(super) fn combine(&self, other: &Self, f: &impl Fn(&PortSet, &PortSet) -> PortSet) -> Self {
        let external = |(a, b): (&Arc<ExternalSet>, &Arc<ExternalSet>)| Arc::new(a.combine(b, f));
        let nodes = self.nodes.iter().zip(&other.nodes);
        Self {
            nodes: nodes.map(|(a, b)| Arc::new(f(a, b))).collect(),
            unnamed: external((&self.unnamed, &other.unnamed)),
            named: self.named.iter().zip(&other.named).map(external).collect(),
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.nodes.iter().all(|it| it.is_empty())
            && self.unnamed.is_empty()
            && self.named.iter().all(|it| it.is_empty())
    }
}
