//! What agent runs knew, in order, and when something changed that a verdict may hang on.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use serde_json::Value;

use super::cuts::{Cut, Cuts, Name, Part};
use crate::{
    advise::what_if::Missing,
    cluster::{Kind, Object, ObjectKey, Pod, REMEMBERED, Service},
    model::Timestamp,
    store::{
        flows::{ask::Store, segment::Mark},
        history::{
            BINDING, Verb,
            doubts::{begins, doubts, stopped},
            parts::{Parts, Span},
            read::{Change, Wanted, read},
            state::{HELD, Run, in_effect, runs},
        },
    },
    watch::convert,
};

/// The histories of agent runs.
#[derive(Debug, Default)]
pub struct Histories {
    by_run: HashMap<Arc<str>, History>,
    marks: Vec<Mark>,
    unreadable: Vec<(PathBuf, String)>,
}

/// What a run knew, in order.
#[derive(Debug)]
pub struct History {
    run: Run,
    /// From when on it knew everything.
    complete: Option<Timestamp>,
    /// From when on its node's history says everything.
    begins: Option<Timestamp>,
    steps: Vec<Step>,
    cuts: Cuts,
    pods: HashMap<Name, Vec<Version>>,
}

/// A change.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub at: Timestamp,
    sequence: u64,
    pub what: What,
}

/// What became of what.
#[derive(Clone, Debug)]
pub(super) enum What {
    Apply(Arc<Object>),
    Delete(ObjectKey),
    /// A pod has an address, as the kernel showed.
    Bind(IpAddr, Arc<str>),
    /// It has it no more.
    Unbind(IpAddr, Arc<str>),
}

impl What {
    /// Of an object: which, unless nobody can tell, and what it is like now, unless it is gone.
    pub fn object(&self) -> Option<(Option<ObjectKey>, Option<&Arc<Object>>)> {
        match self {
            Self::Apply(object) => Some((object.key(), Some(object))),
            Self::Delete(key) => Some((Some(key.clone()), None)),
            Self::Bind(..) | Self::Unbind(..) => None,
        }
    }
}

/// What a pod was like from a time on; `None` where it was gone.
#[derive(Clone, Debug)]
struct Version {
    at: Timestamp,
    pod: Option<Arc<Object>>,
}

impl Histories {
    /// Reads what stores tell of the time between two times, or of all. Equal objects are kept once, whoever told of them.
    ///
    /// # Errors
    ///
    /// A store cannot be listed.
    pub fn read(
        stores: &[Store],
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> anyhow::Result<Self> {
        let parts = Parts::find(stores, Span::of_flows(since, until))?;
        let (known, bare) = runs(&parts)?;
        let mut objects: HashMap<(Kind, Arc<str>), Arc<Object>> = HashMap::new();
        let mut steps: HashMap<String, Vec<Step>> = HashMap::new();
        // A flow from before its run knew all is judged by what that knew then; and a pod's object may come after its flow.
        let end = |until: Timestamp| {
            let began = known.iter().filter(|run| run.first <= until);
            began.filter_map(Run::complete).fold(until, Timestamp::max).plus(HELD)
        };
        let wanted = Wanted { until: until.map(end), ..Wanted::default() };
        let found = read(&parts, wanted, &mut |change| {
            if let Some(what) = what(&change, &mut objects) {
                let step = Step { at: change.time, sequence: change.sequence, what };
                match steps.get_mut(&change.run) {
                    Some(steps) => steps.push(step),
                    None => drop(steps.insert(change.run, vec![step])),
                }
            }
            Ok(())
        })?;
        let history = |run: Run| {
            let steps = steps.remove(&run.run).unwrap_or_default();
            (Arc::from(run.run.as_str()), History::new(run, &found.marks, steps))
        };
        let by_run = known.into_iter().map(history).collect();
        let mut unreadable = found.unreadable;
        unreadable
            .extend(bare.unreadable.into_iter().filter(|it| !unreadable.contains(it)).collect::<Vec<_>>());
        Ok(Self { by_run, marks: found.marks, unreadable })
    }

    /// Of an agent run.
    pub fn of(&self, run: &str) -> Option<&History> {
        self.by_run.get(run)
    }

    /// All of them, in order of run.
    pub fn all(&self) -> Vec<&History> {
        let mut all: Vec<&History> = self.by_run.values().collect();
        all.sort_by(|a, b| (&a.run.node, &a.run.run).cmp(&(&b.run.node, &b.run.run)));
        all
    }

    /// That of the run that knew most at a time: one that still listened then goes before one that had stopped.
    pub fn latest(&self, at: Timestamp) -> Option<&History> {
        let runs: Vec<Run> = self.all().into_iter().map(|history| history.run.clone()).collect();
        let listens = |run: &Run| stopped(&self.marks, run, at).is_none();
        let run = in_effect(&runs, at).into_iter().max_by_key(|run| (listens(run), run.complete()))?;
        self.of(&run.run)
    }

    /// What could not be read, and why.
    pub fn unreadable(&self) -> &[(PathBuf, String)] {
        &self.unreadable
    }

    /// Why what a run knew at a time may not be what was, in sentences.
    pub fn doubts(&self, run: &str, at: Timestamp) -> Vec<String> {
        self.of(run).map(|history| doubts(&self.marks, &history.run, at)).unwrap_or_default()
    }
}

/// What a change means; `None` for what is no object, and for what cannot change a verdict.
fn what(change: &Change, objects: &mut HashMap<(Kind, Arc<str>), Arc<Object>>) -> Option<What> {
    if change.verb == Verb::Listed {
        return None;
    }
    if change.kind == BINDING {
        let (ip, uid) = (change.address?, Arc::from(change.uid.as_str()));
        return Some(if change.verb == Verb::Deleted { What::Unbind(ip, uid) } else { What::Bind(ip, uid) });
    }
    let kind = Kind::from_name(&change.kind).filter(|kind| kind.changes_verdicts())?;
    if change.verb == Verb::Deleted {
        return Some(What::Delete(ObjectKey::new(kind, &change.namespace, &change.name)));
    }
    let content: Arc<str> = change.content.as_deref()?.into();
    let object = objects.entry((kind, content)).or_insert_with_key(|(kind, content)| {
        // What cannot be parsed any more is an object that cannot be read.
        let value: Value = serde_json::from_str(content).unwrap_or_default();
        let source: Arc<str> = format!("history of {}", change.node).into();
        Arc::new(convert::object(*kind, &value, &source))
    });
    Some(What::Apply(object.clone()))
}

impl History {
    fn new(run: Run, marks: &[Mark], mut steps: Vec<Step>) -> Self {
        steps.sort_by_key(|step| (step.at, step.sequence));
        steps.dedup_by_key(|step| step.sequence);
        drop_overtaken(&mut steps);
        let (complete, begins) = (run.complete(), begins(marks, &run));
        let (cuts, pods) = (Cuts::of(&steps, complete), versions_of_pods(&steps));
        Self { run, complete, begins, steps, cuts, pods }
    }

    /// The policies that there were at the end of what was read.
    pub fn policies(&self) -> BTreeSet<ObjectKey> {
        self.at_end(Kind::is_policy)
    }

    /// The cluster's nodes at the end of what was read.
    pub fn nodes(&self) -> BTreeSet<Arc<str>> {
        self.at_end(|kind| kind == Kind::Node).into_iter().map(|key| key.name).collect()
    }

    fn at_end(&self, is_wanted: impl Fn(Kind) -> bool) -> BTreeSet<ObjectKey> {
        let mut there = BTreeSet::new();
        for step in &self.steps {
            match &step.what {
                What::Apply(object) => there.extend(object.key().filter(|key| is_wanted(key.kind))),
                What::Delete(key) => drop(there.remove(key)),
                What::Bind(..) | What::Unbind(..) => {}
            }
        }
        there
    }

    /// What an object was like from when on; `None` where it was gone.
    pub fn versions(&self, key: &ObjectKey) -> Vec<(Timestamp, Option<&Arc<Object>>)> {
        let version = |step: &'_ Step| match &step.what {
            What::Apply(object) if object.key().as_ref() == Some(key) => Some((step.at, true)),
            What::Delete(gone) if gone == key => Some((step.at, false)),
            _ => None,
        };
        let found = self.steps.iter().filter_map(|step| Some((step, version(step)?)));
        found
            .map(|(step, (at, is_there))| match &step.what {
                What::Apply(object) if is_there => (at, Some(object)),
                _ => (at, None),
            })
            .collect()
    }

    /// The objects that were there at a time.
    pub fn objects_at(&self, at: Timestamp) -> Vec<Arc<Object>> {
        let (mut there, mut nameless) = (BTreeMap::new(), Vec::new());
        for step in self.steps.iter().take_while(|step| step.at <= at) {
            match &step.what {
                What::Apply(object) => match object.key() {
                    Some(key) => drop(there.insert(key, object.clone())),
                    None => nameless.push(object.clone()),
                },
                What::Delete(key) => drop(there.remove(key)),
                What::Bind(..) | What::Unbind(..) => {}
            }
        }
        there.into_values().chain(nameless).collect()
    }

    /// Every state that a pod had between two times, or not long before them.
    pub fn pods_between(&self, from: Timestamp, until: Timestamp) -> impl Iterator<Item = &Pod> {
        let from = from.minus(REMEMBERED);
        self.pods.values().flat_map(move |versions| {
            let ends = versions.iter().skip(1).map(|next| next.at).chain([Timestamp::MAX]);
            let spans = versions.iter().zip(ends);
            let within = spans.filter(move |(version, end)| *end >= from && version.at <= until.plus(HELD));
            within.filter_map(|(version, _)| match version.pod.as_deref() {
                Some(Object::Pod(pod)) => Some(pod),
                _ => None,
            })
        })
    }

    /// Every state that every Service had.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.steps.iter().filter_map(|step| match &step.what {
            What::Apply(object) => match &**object {
                Object::Service(service) => Some(service),
                _ => None,
            },
            _ => None,
        })
    }

    /// The node.
    pub fn node(&self) -> &str {
        &self.run.node
    }

    /// When the run knew all that it judged a flow of this time by.
    pub(super) fn judged_at(&self, time: Timestamp) -> Timestamp {
        self.complete.map_or(time, |complete| complete.max(time))
    }

    /// Why nothing can be said of flows of a time.
    pub(super) fn lacks(&self, at: Timestamp) -> Option<Missing> {
        if self.complete.is_none() {
            let kinds: Vec<&str> = self.run.missing().into_iter().map(Kind::as_str).collect();
            return Some(Missing::Incomplete(format!("{}, {}", self.run.run, kinds.join(", ")).into()));
        }
        let before = self.begins.is_some_and(|begins| at < begins);
        before.then(|| Missing::Before(self.run.node.as_str().into()))
    }

    /// The changes until a time, of which the first ones are `done` already, and now all are.
    pub(super) fn steps_until(&self, at: Timestamp, done: &mut usize) -> &[Step] {
        let left = &self.steps[*done..];
        let steps = &left[..left.partition_point(|step| step.at <= at)];
        *done += steps.len();
        steps
    }

    /// The times at which a verdict may change that hangs on these, and that from which on the history says everything.
    pub(super) fn cuts(&self, parts: &[Part]) -> Cut {
        let times = parts.iter().filter_map(|part| self.cuts.times(part));
        Cut::new(times.cloned().chain(self.begins.map(|begins| [begins].into())))
    }

    /// What the pod of a flow was like: at that time, or else when it had just gone, or when its object came soon after.
    pub(super) fn pod(
        &self,
        namespace: &Arc<str>,
        name: &Arc<str>,
        uid: &str,
        at: Timestamp,
    ) -> Option<&Arc<Object>> {
        let versions = self.pods.get(&(namespace.clone(), name.clone()))?;
        let is_it = |object: &&Arc<Object>| match &***object {
            Object::Pod(pod) => uid.is_empty() || *pod.uid == *uid,
            _ => false,
        };
        let known = versions.partition_point(|version| version.at <= at);
        let (past, future) = versions.split_at(known);
        if let Some(pod) = past.last().and_then(|last| last.pod.as_ref()).filter(is_it) {
            return Some(pod);
        }
        let gone = (1..past.len()).rev().find_map(|next| {
            let pod = past[next - 1].pod.as_ref().filter(is_it)?;
            (at.since(past[next].at) <= REMEMBERED).then_some(pod)
        });
        let soon = future.iter().take_while(|version| version.at <= at.plus(HELD));
        gone.or_else(|| soon.filter_map(|version| version.pod.as_ref()).find(is_it))
    }
}

/// Leaves out what is older than what is told of the same object at the same time or before: where a clock was set back, the times of
/// changes are in another order than the changes were.
fn drop_overtaken(steps: &mut Vec<Step>) {
    let mut newest: HashMap<ObjectKey, u64> = HashMap::new();
    steps.retain(|step| {
        // Records of the kernel come late: of bindings the times are right.
        let Some((Some(key), _)) = step.what.object() else { return true };
        let newest = newest.entry(key).or_insert(step.sequence);
        *newest = step.sequence.max(*newest);
        *newest == step.sequence
    });
}

/// What pods were like when.
fn versions_of_pods(steps: &[Step]) -> HashMap<Name, Vec<Version>> {
    let mut pods: HashMap<Name, Vec<Version>> = HashMap::new();
    for step in steps {
        if let Some((Some(key), pod)) = step.what.object()
            && key.kind == Kind::Pod
        {
            let version = Version { at: step.at, pod: pod.cloned() };
            pods.entry((key.namespace, key.name)).or_default().push(version);
        }
    }
    pods
}
