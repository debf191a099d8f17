//! What changed for a pod, from the history: its object, its namespace's labels, its addresses, and the policies that select it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use smallvec::SmallVec;

use super::{
    history::{microsecond, object},
    timeline::Entry,
};
use crate::{
    cluster::{Kind, Object, Pod},
    model::{Direction, Timestamp},
    policy::{Certainty, CompiledForeign, CompiledPolicy, Labels, METADATA_NAME, NamespaceView},
    store::flows::ask::Store,
    store::history::{
        BINDING, Verb,
        doubts::begins,
        parts::Span,
        read::{Change, Key, Read, Wanted, read},
        state::{Run, runs},
    },
};

/// Kinds of objects that matter to a pod: itself, its namespace, and policies.
fn asked_kinds() -> impl Iterator<Item = Kind> {
    let matters = |kind: &Kind| kind.is_policy() || matches!(kind, Kind::Pod | Kind::Namespace);
    Kind::ALL.into_iter().filter(matters)
}

/// What the history says of a pod.
pub(super) struct Told {
    pub entries: Vec<Entry>,
    /// What is not certain.
    pub doubts: Vec<String>,
    pub unreadable: Vec<(PathBuf, String)>,
}

/// What changed for a pod in a time, and what there was at its beginning.
pub(super) fn changes(
    stores: &[Store],
    namespace: &str,
    name: &str,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
) -> anyhow::Result<Told> {
    let parts = super::stores::history(stores, Span::between(since, until))?;
    let (known, _) = runs(&parts)?;
    let order: BTreeMap<&str, usize> =
        known.iter().enumerate().map(|(place, run)| (run.run.as_str(), place)).collect();
    let mut all: Vec<Change> = Vec::new();
    let is_asked = |change: &Change| match Kind::from_name(&change.kind) {
        _ if change.verb == Verb::Listed => true,
        Some(Kind::Namespace) => change.name == namespace,
        Some(kind) if kind.is_policy() => {
            !kind.is_namespaced() || change.namespace == namespace || kind.is_foreign()
        }
        // The pod's, and bindings to it.
        _ => change.namespace == namespace && change.name == name,
    };
    let mut kinds: Vec<&str> = asked_kinds().map(Kind::as_str).collect();
    kinds.push(BINDING);
    let found = read(&parts, Wanted { kinds: &kinds, ..Wanted::default() }, &mut |change| {
        if is_asked(&change) && until.is_none_or(|until| change.time < until) {
            all.push(change);
        }
        Ok(())
    })?;
    all.sort_by_key(|it| (order.get(it.run.as_str()).copied(), it.sequence));
    all.dedup_by_key(|it| (it.run.clone(), it.sequence));
    let mut tracker = Tracker::new(namespace, since);
    // Every agent tells the same of objects: one is enough, and the pod's own knows it first.
    let node = narrator(&all, &known);
    let (bindings, objects): (Vec<_>, Vec<_>) = all.iter().partition(|change| change.kind == BINDING);
    objects.into_iter().filter(|it| Some(&it.node) == node.as_ref()).for_each(|it| tracker.change(it));
    tracker.reach(Timestamp::MAX);
    let in_time = |change: &&&Change| since.is_none_or(|since| change.time >= since);
    tracker.entries.extend(bindings.iter().filter(in_time).filter_map(|change| binding(change)));
    let doubts = node.map(|node| doubts(&found, &known, &node, since, until)).unwrap_or_default();
    Ok(Told { entries: tracker.entries, doubts, unreadable: found.unreadable })
}

/// The node whose agent tells: the one that the pod ran on last, or else the first that knows it.
fn narrator(all: &[Change], known: &[Run]) -> Option<String> {
    let of_pod =
        || all.iter().filter(|change| change.kind == Kind::Pod.as_str() && change.verb != Verb::Listed);
    let ran_on = of_pod().rev().find_map(|change| match object(change)? {
        Object::Pod(pod) => pod.node.map(|node| node.to_string()),
        _ => None,
    });
    ran_on
        .filter(|node| known.iter().any(|run| run.node == *node))
        .or_else(|| of_pod().map(|change| change.node.clone()).next())
        .or_else(|| known.first().map(|run| run.node.clone()))
}

/// Times in which nobody wrote changes down, as far as that matters here.
fn doubts(
    found: &Read,
    known: &[Run],
    node: &str,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
) -> Vec<String> {
    let of_node = || found.marks.iter().filter(|mark| mark.node == node);
    let mut doubts = Vec::new();
    let begin = known.iter().filter(|run| run.node == node).find_map(|run| begins(&found.marks, run));
    if let Some(begin) = begin.filter(|begin| since.is_none_or(|since| since < *begin)) {
        doubts.push(format!("of changes before {} only what still held then is known", microsecond(begin)));
    }
    let marks: Vec<_> = of_node().filter(|mark| mark.number > 0).cloned().collect();
    let coverage = crate::store::flows::Coverage::of(&marks, since, until);
    doubts.extend(coverage.gaps.iter().map(|gap| {
        format!(
            "changes of objects from {} until {} are not known: no agent wrote them down on {node}",
            microsecond(gap.from),
            microsecond(gap.until)
        )
    }));
    doubts
        .extend(coverage.lost.values().map(|lost| format!("{lost} changes of objects were lost on {node}")));
    doubts
}

/// A policy of any kind, compiled.
enum Compiled {
    Policy(Box<CompiledPolicy>),
    Foreign(CompiledForeign),
    /// What cannot be read may select any.
    Broken,
}

impl Compiled {
    fn of(change: &Change) -> Option<Self> {
        Some(match object(change)? {
            Object::NetworkPolicy(policy) => Self::Policy(Box::new(CompiledPolicy::compile(&policy))),
            Object::ClusterPolicy(policy) => Self::Policy(Box::new(CompiledPolicy::compile_cluster(&policy))),
            Object::Foreign(_, policy) => Self::Foreign(CompiledForeign::compile(&policy)),
            Object::Broken(_) => Self::Broken,
            _ => return None,
        })
    }

    fn selects(&self, namespace: &NamespaceView, labels: &Labels) -> Certainty {
        match self {
            Self::Policy(policy) => {
                let speaks = |direction| policy.speaks_of(direction).and(policy.selects(namespace, labels));
                speaks(Direction::Egress).max(speaks(Direction::Ingress))
            }
            Self::Foreign(policy) => policy.selects(namespace, labels),
            Self::Broken => Certainty::Maybe,
        }
    }
}

/// Goes through changes in order, and says which of them matter.
struct Tracker {
    entries: Vec<Entry>,
    since: Option<Timestamp>,
    namespace: NamespaceView,
    pod: Option<Pod>,
    policies: BTreeMap<Key, Compiled>,
    /// Kinds that have been listed once: before all were nobody knows which policies select it.
    listed: BTreeSet<String>,
    /// What the run that tells has told so far.
    run: String,
    told: BTreeSet<Key>,
}

impl Tracker {
    fn new(namespace: &str, since: Option<Timestamp>) -> Self {
        Self {
            entries: Vec::new(),
            since,
            namespace: NamespaceView::implied(namespace.into()),
            pod: None,
            policies: BTreeMap::new(),
            listed: BTreeSet::new(),
            run: String::new(),
            told: BTreeSet::new(),
        }
    }

    /// Time goes on until then: says what there is when the time that was asked for begins.
    fn reach(&mut self, time: Timestamp) {
        let Some(since) = self.since.filter(|since| *since <= time) else { return };
        self.since = None;
        self.entries.clear();
        if let Some(pod) = &self.pod {
            self.entries.push(Entry::new(since, "pod", format!("is there: {}", describe(pod))));
            self.say_selected(since);
        }
    }

    fn say(&mut self, time: Timestamp, what: &'static str, text: impl Into<String>) {
        self.entries.push(Entry::new(time, what, text));
    }

    fn change(&mut self, change: &Change) {
        self.reach(change.time);
        if change.run != self.run {
            self.run.clone_from(&change.run);
            self.told.clear();
        }
        if change.verb == Verb::Listed {
            return self.listed(change);
        }
        self.told.insert(change.key());
        match Kind::from_name(&change.kind) {
            Some(Kind::Pod) => self.pod(change),
            Some(Kind::Namespace) => self.namespace(change),
            Some(_) => self.policy(change),
            None => {}
        }
    }

    /// A run has listed a kind: what it has not told is gone, since nobody knows when.
    fn listed(&mut self, change: &Change) {
        if change.kind == Kind::Pod.as_str()
            && let Some(pod) = &self.pod
            && !self.told.contains(&super::history::pod_key(&pod.namespace, &pod.name))
        {
            self.pod = None;
            self.say(change.time, "pod", "is gone: deleted while no agent wrote it down");
        }
        let gone: Vec<Key> = (self.policies.keys())
            .filter(|key| key.0 == change.kind && !self.told.contains(*key))
            .cloned()
            .collect();
        for key in gone {
            let selected = self.selects(&key);
            self.policies.remove(&key);
            if selected != Certainty::No {
                let text = format!("{} is gone: deleted while no agent wrote it down", name(&key));
                self.say(change.time, "policy", text);
            }
        }
        let knew_all = self.knows_all();
        self.listed.insert(change.kind.clone());
        // Those that do select it have been told by now.
        if !knew_all
            && self.knows_all()
            && self.pod.as_ref().is_some_and(|pod| self.selected(&pod.labels).is_empty())
        {
            self.say_selected(change.time);
        }
    }

    fn knows_all(&self) -> bool {
        asked_kinds().all(|kind| self.listed.contains(kind.as_str()))
    }

    fn pod(&mut self, change: &Change) {
        let new = match object(change) {
            Some(Object::Pod(pod)) => Some(pod),
            Some(_) => return self.say(change.time, "pod", "its object cannot be read"),
            None => None,
        };
        let before = std::mem::replace(&mut self.pod, new);
        let time = change.time;
        match (before, self.pod.clone()) {
            (Some(_), None) => self.say(time, "pod", "deleted"),
            (None, None) => {}
            (Some(old), Some(new)) if old.uid == new.uid => {
                let before = self.selected(&old.labels);
                if old.labels != new.labels {
                    self.say(
                        time,
                        "labels",
                        format!("{} (were {})", labels(&new.labels), labels(&old.labels)),
                    );
                    if self.selected(&new.labels) != before {
                        self.say_selected(time);
                    }
                }
                if old.ips != new.ips {
                    self.say(time, "address", format!("API view: {}", addresses(&new.ips)));
                }
                if new.completed && !old.completed {
                    self.say(time, "pod", "completed");
                }
            }
            (old, Some(new)) => {
                if old.is_some() {
                    self.say(time, "pod", "deleted: another one has its name");
                }
                let how = if change.verb == Verb::Present { "is there" } else { "appeared" };
                let created = new.created.filter(|_| change.verb != Verb::Present);
                let created = created.map(|at| format!(", created {}", microsecond(at))).unwrap_or_default();
                self.say(time, "pod", format!("{how}: {}{created}", describe(&new)));
                self.say_selected(time);
            }
        }
    }

    fn namespace(&mut self, change: &Change) {
        let name = self.namespace.name.clone();
        let new = match object(change) {
            Some(Object::Namespace(namespace)) => {
                NamespaceView { labels: namespace.labels.with(METADATA_NAME, &name), name, doubt: None }
            }
            Some(_) => NamespaceView { doubt: Some("it cannot be read".into()), ..self.namespace.clone() },
            None => NamespaceView::implied(name),
        };
        let before = self.pod.as_ref().map(|pod| self.selected(&pod.labels));
        let old = std::mem::replace(&mut self.namespace, new);
        if old != self.namespace && self.pod.is_some() {
            let text = format!("{} (were {})", labels(&self.namespace.labels), labels(&old.labels));
            self.say(change.time, "namespace labels", text);
            if before != self.pod.as_ref().map(|pod| self.selected(&pod.labels)) {
                self.say_selected(change.time);
            }
        }
    }

    fn policy(&mut self, change: &Change) {
        let key = change.key();
        let (before, was_there) = (self.selects(&key), self.policies.contains_key(&key));
        match Compiled::of(change) {
            Some(compiled) => drop(self.policies.insert(key.clone(), compiled)),
            None => drop(self.policies.remove(&key)),
        }
        let after = self.selects(&key);
        if (before, after) == (Certainty::No, Certainty::No)
            || (change.verb == Verb::Present && was_there && before == after)
        {
            return;
        }
        let what = match (was_there, change.verb) {
            (_, Verb::Deleted) => "deleted",
            (true, _) => "changed",
            (false, Verb::Present) => "is there",
            (false, _) => "applied",
        };
        let selects = match (before, after) {
            (_, Certainty::Yes) => "selects it",
            (_, Certainty::Maybe) => "perhaps selects it",
            (Certainty::No, Certainty::No) => "does not select it",
            (_, Certainty::No) => "selects it no more",
        };
        let version = match change.resource_version.as_str() {
            "" => String::new(),
            version => format!(" (resourceVersion {version})"),
        };
        self.say(change.time, "policy", format!("{} {what}, {selects}{version}", name(&key)));
    }

    /// Whether a policy selects the pod, as far as both are there.
    fn selects(&self, key: &Key) -> Certainty {
        match (self.policies.get(key), &self.pod) {
            (Some(policy), Some(pod)) if !pod.host_network => policy.selects(&self.namespace, &pod.labels),
            _ => Certainty::No,
        }
    }

    /// The names of the policies that select a pod with these labels.
    fn selected(&self, labels: &Labels) -> Vec<String> {
        let selecting =
            self.policies.iter().filter_map(|(key, policy)| match policy.selects(&self.namespace, labels) {
                Certainty::Yes => Some(name(key)),
                Certainty::Maybe => Some(format!("perhaps {}", name(key))),
                Certainty::No => None,
            });
        selecting.collect()
    }

    fn say_selected(&mut self, time: Timestamp) {
        let Some(pod) = self.pod.as_ref().filter(|pod| self.knows_all() && !pod.host_network) else {
            return;
        };
        let selected = self.selected(&pod.labels);
        let text = match selected.as_slice() {
            [] => "selected by none".to_owned(),
            names => format!("selected by {}", names.join(", ")),
        };
        self.say(time, "policy", text);
    }
}

/// An address that an agent saw the pod have.
fn binding(change: &Change) -> Option<Entry> {
    let ip = change.address?;
    let text = match change.verb {
        Verb::Deleted => format!("authored: {ip} until now, seen on {}", change.node),
        _ => format!("authored: {ip} from now on, seen on {}", change.node),
    };
    Some(Entry::new(change.time, "address", text))
}

/// `NetworkPolicy/shop/db`.
fn name((kind, namespace, name): &Key) -> String {
    match namespace.as_str() {
        "" => format!("{kind}/{name}"),
        namespace => format!("{kind}/{namespace}/{name}"),
    }
}

fn labels(labels: &Labels) -> String {
    let own = labels.iter().filter(|(key, _)| *key != METADATA_NAME);
    let pairs: Vec<String> = own.map(|(key, value)| format!("{key}={value}")).collect();
    if pairs.is_empty() { "none".to_owned() } else { pairs.join(",") }
}

fn addresses(ips: &SmallVec<[std::net::IpAddr; 2]>) -> String {
    let texts: Vec<String> = ips.iter().map(ToString::to_string).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

fn describe(pod: &Pod) -> String {
    let node = pod.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
    let ips = addresses(&pod.ips);
    format!(
        "{} {}{node}, labels {}, addresses {ips}",
        pod.workload.kind,
        pod.workload.name,
        labels(&pod.labels)
    )
}
