//! Who can be selected: pods by what they belong to, and the labels that tell them apart.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use super::labels::{self, Label};
use crate::{
    advise::what_if::End,
    cluster::Pod,
    policy::{Labels, NamedPort},
};

/// Pods that policies cannot and need not tell apart: those of a workload. Pods without a controller, and those of Jobs without a
/// CronJob, which have another name each time, belong together by the first label that people name workloads by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Unit {
    /// Their namespace.
    pub namespace: Arc<str>,
    /// The workload's name, or that label's value where there were several.
    pub name: Arc<str>,
    /// `Deployment` …, `Pod` or `Job`.
    pub kind: Arc<str>,
}

/// `Deployment shop/web`.
impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

impl Unit {
    /// `Deployment web` where the namespace is known, else with it.
    pub fn within(&self, namespace: &str) -> String {
        if *self.namespace == *namespace { format!("{} {}", self.kind, self.name) } else { self.to_string() }
    }
}

/// What a pod was like: all states that it had in a time.
type States = BTreeSet<(Labels, Arc<[NamedPort]>)>;

/// What pods without a lasting name have in common: namespace, kind and a label.
type Alike<'a> = (&'a Arc<str>, &'a Arc<str>, Label);

/// Namespace and name of a pod, and its UID.
type PodName = (Arc<str>, Arc<str>, Arc<str>);

/// All pods that are known, in a network namespace of their own.
#[derive(Default, Debug)]
pub struct Units {
    states: BTreeMap<Unit, States>,
    of_pod: HashMap<PodName, Unit>,
    selectors: RefCell<BTreeMap<Unit, Option<Vec<Label>>>>,
}

/// Units that get one policy together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// In order; mostly one.
    pub members: Vec<Unit>,
    /// What selects them; `None` where nothing does.
    pub selector: Option<Vec<Label>>,
    /// Others that it cannot help selecting.
    pub also: Vec<Unit>,
}

/// Kinds of which each object is another.
fn is_single(kind: &str) -> bool {
    matches!(kind, "Pod" | "Job")
}

impl Units {
    /// Of all states that pods had.
    pub fn new<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Self {
        let pods: Vec<&Pod> = pods.into_iter().filter(|pod| !pod.host_network).collect();
        let shared = |pod: &Pod| labels::best(&pod.labels).filter(|_| is_single(&pod.workload.kind));
        let mut names: BTreeMap<Alike<'_>, BTreeSet<&Arc<str>>> = BTreeMap::new();
        for pod in &pods {
            if let Some(label) = shared(pod) {
                let key = (&pod.namespace, &pod.workload.kind, label);
                names.entry(key).or_default().insert(&pod.workload.name);
            }
        }
        let mut units = Self::default();
        for pod in &pods {
            let several = shared(pod).filter(|label| {
                let key = (&pod.namespace, &pod.workload.kind, label.clone());
                names.get(&key).is_some_and(|names| names.len() > 1)
            });
            let unit = Unit {
                namespace: pod.namespace.clone(),
                kind: pod.workload.kind.clone(),
                name: several.map_or_else(|| pod.workload.name.clone(), |(_, value)| value),
            };
            let states = units.states.entry(unit.clone()).or_default();
            states.insert((pod.labels.clone(), pod.ports.clone()));
            units.of_pod.insert((pod.namespace.clone(), pod.name.clone(), pod.uid.clone()), unit);
        }
        units
    }

    /// Whose pod an end is; `None` where the pod is not known.
    pub fn of(&self, end: &End) -> Option<&Unit> {
        let End::Pod { namespace, name, uid, workload, .. } = end else { return None };
        self.of_pod.get(&(namespace.clone(), name.clone(), uid.clone())).or_else(|| {
            let unit = Unit {
                namespace: namespace.clone(),
                kind: workload.kind.clone(),
                name: workload.name.clone(),
            };
            self.states.get_key_value(&unit).map(|(unit, _)| unit)
        })
    }

    /// Whose a pod is.
    pub fn of_pod(&self, pod: &Pod) -> Option<&Unit> {
        self.of_pod.get(&(pod.namespace.clone(), pod.name.clone(), pod.uid.clone()))
    }

    /// Those of a namespace, in order.
    pub fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Unit> {
        self.states.keys().filter(move |unit| *unit.namespace == *namespace)
    }

    /// What the pods of a unit were like.
    pub fn states(&self, unit: &Unit) -> impl Iterator<Item = &(Labels, Arc<[NamedPort]>)> {
        self.states.get(unit).into_iter().flatten()
    }

    fn labels(&self, unit: &Unit) -> impl Iterator<Item = &Labels> {
        self.states(unit).map(|(labels, _)| labels)
    }

    /// What selects a unit's pods, and of others only those that it cannot help selecting. `None` where they have no label in common
    /// that stays.
    pub fn selector(&self, unit: &Unit) -> Option<Vec<Label>> {
        if let Some(known) = self.selectors.borrow().get(unit) {
            return known.clone();
        }
        let found = self.choose(std::slice::from_ref(unit));
        self.selectors.borrow_mut().insert(unit.clone(), found.clone());
        found
    }

    fn stable(&self, members: &[Unit]) -> Vec<Label> {
        labels::stable(members.iter().flat_map(|unit| self.labels(unit)))
    }

    fn choose(&self, members: &[Unit]) -> Option<Vec<Label>> {
        let namespace = &members.first()?.namespace;
        let others = self.of_namespace(namespace).filter(|unit| !members.contains(unit));
        let others: BTreeSet<&Labels> = others.flat_map(|unit| self.labels(unit)).collect();
        labels::choose(&self.stable(members), &others.into_iter().collect::<Vec<_>>())
    }

    /// Others of the namespace of which a pod has these labels.
    pub fn selected(&self, namespace: &str, selector: &[Label], but: &[Unit]) -> Vec<Unit> {
        let is_selected = |unit: &&Unit| self.labels(unit).any(|labels| labels::selects(selector, labels));
        self.of_namespace(namespace).filter(|unit| !but.contains(unit)).filter(is_selected).cloned().collect()
    }

    /// The units of a namespace by what can be told apart: where the labels of one are all labels of another, both are one.
    pub fn groups(&self, namespace: &str) -> Vec<Group> {
        let mut groups: Vec<Vec<Unit>> =
            self.of_namespace(namespace).map(|unit| vec![unit.clone()]).collect();
        while let Some((one, other)) = self.inseparable(namespace, &groups) {
            let joined = groups.remove(one.max(other));
            let kept = &mut groups[one.min(other)];
            kept.extend(joined);
            kept.sort();
        }
        let group = |members: Vec<Unit>| {
            let selector = self.choose(&members);
            let also = selector.as_ref().map(|it| self.selected(namespace, it, &members)).unwrap_or_default();
            Group { members, selector, also }
        };
        groups.into_iter().map(group).collect()
    }

    /// Two groups of which one's labels select the other too, and that have labels in common.
    fn inseparable(&self, namespace: &str, groups: &[Vec<Unit>]) -> Option<(usize, usize)> {
        groups.iter().enumerate().find_map(|(place, members)| {
            let stable = self.stable(members);
            if stable.is_empty() {
                return None;
            }
            let selected = self.selected(namespace, &stable, members);
            let other = groups.iter().position(|other| {
                let joined = || [members.as_slice(), other.as_slice()].concat();
                other.iter().any(|unit| selected.contains(unit)) && !self.stable(&joined()).is_empty()
            })?;
            Some((place, other))
        })
    }
}
