//! When a verdict may change with the objects that it hangs on.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::history::{Step, What};
use crate::{
    cluster::{Kind, Object, ObjectKey, Pod, REMEMBERED},
    model::Timestamp,
    store::history::state::HELD,
};

/// Namespace and name.
pub(super) type Name = (Arc<str>, Arc<str>);

/// Objects that a verdict may hang on together.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Part {
    /// Cluster-wide policies.
    Cluster,
    /// A namespace, and the policies in it.
    Namespace(Arc<str>),
    /// A pod.
    Pod(Arc<str>, Arc<str>),
    /// All pods of a namespace.
    Pods(Arc<str>),
    /// Services of a namespace, and where they lead.
    Services(Arc<str>),
    /// Whoever has the addresses that a Service ever led to.
    Behind(Arc<str>, Arc<str>),
    /// A node.
    Node(Arc<str>),
}

/// Times in order, shared by all whose verdicts hang on the same.
pub(super) type Times = Arc<[Timestamp]>;

/// The times at which something changed, by what a verdict may hang on.
#[derive(Debug)]
pub(super) struct Cuts {
    by_part: HashMap<Part, Times>,
}

/// The same while a history is gone through.
#[derive(Debug, Default)]
struct Found {
    by_part: HashMap<Part, Vec<Timestamp>>,
    addresses: HashMap<IpAddr, Address>,
    /// The addresses that a Service ever led to.
    behind: HashMap<Name, BTreeSet<IpAddr>>,
    /// Those of pods on their node's network, by namespace: a Service of which nobody says where it leads may lead there.
    hosts: HashMap<Arc<str>, BTreeSet<IpAddr>>,
}

/// An address of anything in the cluster.
#[derive(Debug, Default)]
struct Address {
    /// When somebody else may have had it.
    moved: Vec<Timestamp>,
    /// What matters of all who ever had it: few, each once.
    owners: Vec<Part>,
}

impl Address {
    fn had_by(&mut self, owners: impl IntoIterator<Item = Part>) {
        for owner in owners {
            if !self.owners.contains(&owner) {
                self.owners.push(owner);
            }
        }
    }
}

impl Cuts {
    /// Those of a history in its order. Nothing before `complete` is a cut: it is judged by what was known then.
    pub fn of(steps: &[Step], complete: Option<Timestamp>) -> Self {
        let mut found = Found::of(steps);
        found.add_behind();
        let times = |(part, mut times): (Part, Vec<Timestamp>)| {
            times.retain(|at| complete.is_none_or(|complete| *at > complete));
            times.sort_unstable();
            times.dedup();
            (part, times.into())
        };
        Self { by_part: found.by_part.into_iter().map(times).collect() }
    }

    /// The times at which a verdict may change that hangs on this.
    pub fn times(&self, part: &Part) -> Option<&Times> {
        self.by_part.get(part)
    }
}

impl Found {
    fn of(steps: &[Step]) -> Self {
        let mut cuts = Self::default();
        let mut known: HashMap<ObjectKey, &Object> = HashMap::new();
        let mut names: HashMap<&str, Name> = HashMap::new();
        for step in steps {
            let Some((key, after)) = step.what.object() else { continue };
            let after = after.map(|object| &**object);
            let Some(key) = key else {
                cuts.add(Part::Cluster, [step.at]);
                continue;
            };
            if let Some(Object::Pod(pod)) = after {
                names.insert(&pod.uid, (pod.namespace.clone(), pod.name.clone()));
            }
            let before = match after {
                Some(object) => known.insert(key.clone(), object),
                None => known.remove(&key),
            };
            let is_same = match (before, after) {
                (Some(before), Some(after)) => is_alike(before, after),
                (before, after) => before.is_none() && after.is_none(),
            };
            if !is_same {
                cuts.change(&key, [before, after], step.at);
            }
        }
        // The kernel may show an address before the object of its pod comes.
        for step in steps {
            if let What::Bind(ip, uid) | What::Unbind(ip, uid) = &step.what {
                let address = cuts.addresses.entry(*ip).or_default();
                address.moved.push(step.at);
                if let Some((namespace, name)) = names.get(&**uid) {
                    let pod = Part::Pod(namespace.clone(), name.clone());
                    address.had_by([pod, Part::Namespace(namespace.clone())]);
                }
            }
        }
        cuts
    }

    fn add(&mut self, part: Part, times: impl IntoIterator<Item = Timestamp>) {
        self.by_part.entry(part).or_default().extend(times);
    }

    fn change(&mut self, key: &ObjectKey, states: [Option<&Object>; 2], at: Timestamp) {
        for part in parts_of(key) {
            match part {
                // Some seconds before it is known, and some minutes after it has gone, it counts all the same.
                Part::Pod(..) => self.add(part, [at.minus(HELD), at, at.plus(REMEMBERED)]),
                part => self.add(part, [at]),
            }
        }
        for object in states.into_iter().flatten() {
            let owners = owners(object);
            for ip in addresses(object) {
                let address = self.addresses.entry(*ip).or_default();
                address.moved.extend([at.minus(HELD), at]);
                address.had_by(owners.iter().cloned());
            }
            if let Object::Pod(pod) = object
                && pod.host_network
            {
                self.hosts.entry(pod.namespace.clone()).or_default().extend(&pod.ips);
            }
            if let Object::EndpointSlice(slice) = object
                && let Some(service) = &slice.service
            {
                let behind = self.behind.entry((slice.namespace.clone(), service.clone())).or_default();
                behind.extend(slice.endpoints.iter().flat_map(|it| it.ips.iter().copied()));
            }
            if let Object::Service(service) = object {
                self.behind.entry((service.namespace.clone(), service.name.clone())).or_default();
            }
        }
    }

    /// Adds to each Service what changes with whoever has the addresses that it leads to.
    fn add_behind(&mut self) {
        for ((namespace, name), addresses) in &self.behind {
            let hosts = self.hosts.get(namespace).into_iter().flatten();
            let addresses: BTreeSet<&IpAddr> = addresses.iter().chain(hosts).collect();
            let addresses: Vec<&Address> =
                addresses.into_iter().filter_map(|ip| self.addresses.get(ip)).collect();
            let owners: BTreeSet<&Part> = addresses.iter().flat_map(|address| &address.owners).collect();
            let mut times: Vec<Timestamp> =
                owners.into_iter().filter_map(|part| self.by_part.get(part)).flatten().copied().collect();
            times.extend(addresses.iter().flat_map(|address| &address.moved));
            self.by_part.insert(Part::Behind(namespace.clone(), name.clone()), times);
        }
    }
}

/// All the times that cut a class of flows, in lists that it shares with others.
#[derive(Clone, Debug)]
pub(super) struct Cut(Arc<[Times]>);

/// What lies between two cuts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    /// How many cuts are before it, by list: no two spans have the same.
    pub number: usize,
    /// Included.
    pub from: Timestamp,
    /// Not included.
    pub until: Timestamp,
}

impl Span {
    /// All the time that there is.
    const ALL: Self = Self { number: 0, from: Timestamp::MIN, until: Timestamp::MAX };

    /// Whether a time is in it.
    pub fn holds(&self, at: Timestamp) -> bool {
        self.from <= at && at < self.until
    }
}

impl Cut {
    pub fn new(times: impl Iterator<Item = Times>) -> Self {
        Self(times.filter(|times| !times.is_empty()).collect())
    }

    /// What a time is in.
    pub fn span(&self, at: Timestamp) -> Span {
        self.0.iter().fold(Span::ALL, |span, times| {
            let before = times.partition_point(|cut| *cut <= at);
            let (from, until) = (before.checked_sub(1).map(|last| times[last]), times.get(before));
            Span {
                number: span.number + before,
                from: span.from.max(from.unwrap_or(span.from)),
                until: span.until.min(until.copied().unwrap_or(span.until)),
            }
        })
    }
}

/// What an object's change may change with it.
fn parts_of(key: &ObjectKey) -> Vec<Part> {
    let (namespace, name) = (key.namespace.clone(), key.name.clone());
    match key.kind {
        Kind::Namespace => vec![Part::Namespace(name)],
        Kind::Pod => vec![Part::Pod(namespace.clone(), name), Part::Pods(namespace)],
        Kind::Node => vec![Part::Node(name)],
        Kind::Service | Kind::EndpointSlice => vec![Part::Services(namespace)],
        kind if kind.is_policy() && !namespace.is_empty() => vec![Part::Namespace(namespace)],
        _ => vec![Part::Cluster],
    }
}

/// The addresses at which an object may be met.
fn addresses(object: &Object) -> &[IpAddr] {
    match object {
        Object::Pod(pod) => &pod.ips,
        Object::Node(node) => &node.ips,
        Object::Broken(broken) => &broken.ips,
        _ => &[],
    }
}

/// What matters of whoever has an address: labels, and those of its namespace.
fn owners(object: &Object) -> Vec<Part> {
    match object {
        Object::Pod(pod) => {
            let it = Part::Pod(pod.namespace.clone(), pod.name.clone());
            let node = pod.node.clone().filter(|_| pod.host_network).map(Part::Node);
            [it, Part::Namespace(pod.namespace.clone())].into_iter().chain(node).collect()
        }
        Object::Node(node) => vec![Part::Node(node.name.clone())],
        _ => Vec::new(),
    }
}

/// Whether policies see the same. Most of what changes in a pod is nothing to them.
fn is_alike(before: &Object, after: &Object) -> bool {
    match (before, after) {
        (Object::Pod(before), Object::Pod(after)) => {
            let seen = |pod: &Pod| {
                let is = (pod.uid.clone(), pod.labels.clone(), pod.ports.clone(), pod.node.clone());
                (is, pod.ips.clone(), pod.host_network, pod.completed)
            };
            seen(before) == seen(after)
        }
        (before, after) => before == after,
    }
}
