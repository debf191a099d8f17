//! Two forms of some policies, compared over every pod and address that they can tell apart.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    ConnectionSet, Connections, Group, PodEnd, PortSet, Representatives, Universe,
    representatives::named_namespaces,
};
use crate::{
    model::Direction,
    policy::{
        CompiledPolicy, Labels, NamedPort, NamespaceView, Policies, Ruleset,
        compile::PortTest,
        declared::{self, NetworkPolicy},
    },
};

/// What policies allow before and after a change, where nothing is known of the pods that there are.
#[derive(Debug)]
pub struct Comparison {
    universe: Arc<Universe>,
    found: Representatives,
    is_complete: bool,
    /// What is allowed before.
    pub before: Connections,
    /// What is allowed after.
    pub after: Connections,
}

impl Comparison {
    /// Of both forms. Of namespaces that the policies live in or name, and that are not among `known`, nobody knows the labels.
    ///
    /// With `is_denied` nothing else is allowed to the pods: every pod is isolated by a policy without rules. So it is seen what rules allow that
    /// did not count before, as nothing isolated.
    ///
    /// Each pod has a port for each name that a rule mentions, under a number that no rule mentions: so a rule by name allows what
    /// nothing else does, whatever number the name will stand for.
    pub fn new(
        before: &[Arc<CompiledPolicy>],
        after: &[Arc<CompiledPolicy>],
        known: &[NamespaceView],
        is_denied: bool,
    ) -> Self {
        let all: Vec<&CompiledPolicy> = before.iter().chain(after).map(|it| &**it).collect();
        let mut namespaces = known.to_vec();
        for name in named_namespaces(&all) {
            if !known.iter().any(|it| it.name == name) {
                let doubt = Some(format!("no manifest tells the labels of namespace {name}").into());
                namespaces.push(NamespaceView { doubt, ..NamespaceView::implied(name) });
            }
        }
        let found = Representatives::new(&all, &[], &namespaces, true);
        let deny: Vec<Arc<CompiledPolicy>> = match is_denied {
            true => found.pods.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>(),
            false => BTreeSet::new(),
        }
        .into_iter()
        .map(deny_all)
        .collect();
        let rules = |policies: &[Arc<CompiledPolicy>]| -> Arc<Ruleset> {
            let mut loaded = Policies::default();
            namespaces.iter().for_each(|it| loaded.put_namespace(it));
            for (name, labels) in &found.namespaces {
                let view = NamespaceView { name: name.clone(), labels: labels.clone(), doubt: None };
                loaded.put_namespace(&view);
            }
            policies.iter().chain(&deny).for_each(|it| loaded.put(it.clone()));
            loaded.current().clone()
        };
        let (ports, are_apart) = named_ports(&all);
        let pod = |(namespace, labels): &(Arc<str>, Labels)| PodEnd {
            namespace: namespace.clone(),
            labels: labels.clone(),
            ports: ports.clone(),
            addresses: Default::default(),
        };
        let universe = Universe::new(&[rules(before), rules(after)], found.pods.iter().map(pod), []);
        let universe = Arc::new(universe);
        let [before, after] = [0, 1].map(|view| Connections::new(&universe, view));
        Self { universe, is_complete: found.complete && are_apart, found, before, after }
    }

    /// Whether every possible pod is like one that was asked about.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Whether whatever is allowed before, for certain, is so after.
    pub fn keeps_all(&self) -> bool {
        self.before.surely.is_subset(&self.after.surely)
    }

    /// Some of what is allowed after and was not before; `None` where there is none. What was in doubt must not become certain
    /// either.
    pub fn newly_allowed(&self) -> Option<String> {
        let surely = self.after.surely.difference(&self.before.surely);
        let possibly = self.after.possibly.difference(&self.before.possibly);
        self.example(&surely, &PortSet::default()).or_else(|| self.example(&possibly, &PortSet::default()))
    }

    /// Whether anything may be allowed after at other ports than these that could not be before.
    pub fn may_allow_more(&self, but: &PortSet) -> bool {
        self.example(&self.after.possibly.difference(&self.before.possibly), but).is_some()
    }

    /// A connection of a set, at other ports than these.
    fn example(&self, more: &ConnectionSet, but: &PortSet) -> Option<String> {
        let groups = self.universe.groups();
        let mut pairs = (0..groups.len()).flat_map(|a| (0..groups.len()).map(move |b| (a, b)));
        let between = pairs.find_map(|(source, destination)| {
            let ports = more.between(source, destination).difference(but);
            (!ports.is_empty()).then(|| {
                let [source, destination] = [source, destination].map(|it| self.words(&groups[it]));
                format!("{source} to {destination}: {ports}")
            })
        });
        let mut ends = Direction::ALL.into_iter().flat_map(|it| (0..groups.len()).map(move |at| (it, at)));
        between.or_else(|| {
            ends.find_map(|(direction, group)| {
                let outside = more.outside(direction, group);
                let sets = std::iter::once(&outside.unnamed).chain(&outside.named);
                let (addresses, ports) =
                    sets.flat_map(|it| it.iter()).find(|(_, ports)| !ports.is_subset(but))?;
                let (pods, ports) = (self.words(&groups[group]), ports.difference(but));
                Some(match direction {
                    Direction::Egress => format!("{pods} to {addresses}: {ports}"),
                    Direction::Ingress => format!("{addresses} to {pods}: {ports}"),
                })
            })
        })
    }

    /// `pods with app=web in shop`.
    fn words(&self, group: &Group) -> String {
        let (namespace, labels) = &self.found.pods[group.members[0]];
        match labels.iter().next() {
            None => format!("pods without labels in {namespace}"),
            Some(_) => format!("pods with {labels} in {namespace}"),
        }
    }
}

/// Isolates every pod of a namespace in both directions. No other policy can have its name.
fn deny_all(namespace: Arc<str>) -> Arc<CompiledPolicy> {
    Arc::new(CompiledPolicy::compile(&NetworkPolicy {
        namespace,
        name: "<deny>".into(),
        pod_selector: declared::Selector::default(),
        policy_types: vec!["Ingress".to_owned(), "Egress".to_owned()],
        invalid_types: None,
        ingress: Vec::new(),
        egress: Vec::new(),
        unknown_fields: Vec::new(),
    }))
}

/// A port for each name that a rule mentions, and whether there were enough numbers that no rule mentions.
fn named_ports(policies: &[&CompiledPolicy]) -> (Arc<[NamedPort]>, bool) {
    let rules =
        policies.iter().flat_map(|it| Direction::ALL.into_iter().flat_map(|direction| it.rules(direction)));
    let (mut names, mut ranges) = (BTreeSet::new(), Vec::new());
    for port in rules.flat_map(|rule| &rule.ports) {
        match &port.port {
            PortTest::Named(name) => drop(names.insert(name.clone())),
            PortTest::Range(first, last) => ranges.push(*first..=*last),
            PortTest::Any => {}
        }
    }
    let mut free = (1..=u16::MAX).rev().filter(|port| !ranges.iter().any(|range| range.contains(port)));
    let mut are_enough = true;
    let mut ports = Vec::new();
    for name in names {
        let port = free.next();
        are_enough &= port.is_some();
        let port = port.unwrap_or(u16::MAX);
        ports.extend(super::PROTOCOLS.map(|protocol| NamedPort { name: name.clone(), protocol, port }));
    }
    (ports.into(), are_enough)
}
