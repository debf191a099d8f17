//! Which reports an agent has, what must be written of them, and when.
//!
//! One `Report` a node and namespace has one owner, the node's agent, so no two agents ever write the same object. What an
//! earlier run has written is taken over, and goes on.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::OwnerReference};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{CONTROLLER, Snapshot, result::Entry};
use crate::{audit::FlowSeverity, model::Timestamp};

/// Results of a report that stand for themselves; what is beyond it has one for each source, and those are as many at most.
/// A result is some 700 bytes, and one with the longest names that there can be 3,000: an object may have 1.5 MB.
const MOST_RESULTS: usize = 200;

/// How much longer a write waits if it would bring no news but counts and times.
const COUNTS_WAIT: u32 = 10;

/// What is to be done with the report of one namespace.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Make it this.
    Apply(Value),
    /// It has no results any more.
    Delete,
}

#[derive(Debug)]
struct Written {
    entries: Vec<Entry>,
    at: Timestamp,
}

/// All reports of one agent.
#[derive(Debug)]
pub struct Reports {
    name: String,
    node: String,
    owner: Option<OwnerReference>,
    lifetime: Duration,
    every: Duration,
    /// Of earlier runs, by namespace.
    carried: BTreeMap<String, Vec<Entry>>,
    /// Whether the API server was asked for those.
    is_carried: bool,
    written: BTreeMap<String, Written>,
}

impl Reports {
    /// The reports of the agent of `node`. Results end when nothing new came of them for `lifetime`; a report is written
    /// once in `every` at most.
    pub fn new(node: &str, lifetime: Duration, every: Duration) -> Self {
        Self {
            name: name(node),
            node: node.to_owned(),
            owner: None,
            lifetime,
            every,
            carried: BTreeMap::new(),
            is_carried: false,
            written: BTreeMap::new(),
        }
    }

    /// What all of them are called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Node object: with it the reports go.
    pub fn set_owner(&mut self, uid: Option<String>) {
        self.owner = uid.map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.node.clone(),
            uid,
            ..OwnerReference::default()
        });
    }

    /// These are on the API server, by namespace. The first time they are an earlier run's, and go on.
    pub fn found(&mut self, reports: Vec<(String, Value)>) {
        let entries = |report: &Value| -> Vec<Entry> {
            report["results"].as_array().into_iter().flatten().filter_map(Entry::read).collect()
        };
        let found: BTreeMap<String, Vec<Entry>> =
            reports.into_iter().map(|(namespace, report)| (namespace, entries(&report))).collect();
        self.written = found
            .iter()
            .map(|(namespace, entries)| {
                (namespace.clone(), Written { entries: entries.clone(), at: Timestamp::MIN })
            })
            .collect();
        if !self.is_carried {
            (self.carried, self.is_carried) = (found, true);
        }
    }

    /// What is to be done, by namespace. Each is due until it is [done](Reports::done).
    pub fn due(&mut self, snapshot: &Snapshot) -> Vec<(String, Action)> {
        let now = snapshot.taken;
        self.carried.retain(|_, entries| {
            entries.retain(|entry| now.since(entry.last) < self.lifetime);
            !entries.is_empty()
        });
        let carried = &self.carried;
        let namespaces: BTreeSet<&String> =
            carried.keys().chain(snapshot.namespaces.keys()).chain(self.written.keys()).collect();
        let action = |namespace: &String| {
            let written = self.written.get(namespace);
            let before = written.map_or(&[][..], |written| &written.entries);
            let entries = folded(merged(carried.get(namespace), snapshot.namespaces.get(namespace), before));
            if entries.is_empty() {
                return written.map(|_| Action::Delete);
            }
            let is_due = written.is_none_or(|written| {
                let wait = self.every * if is_news(before, &entries) { 1 } else { COUNTS_WAIT };
                // A clock that was set back must not hold them up.
                let has_waited = now.since(written.at) >= wait || now < written.at;
                before != entries && (has_waited || snapshot.is_last)
            });
            is_due.then(|| Action::Apply(self.report(namespace, &entries)))
        };
        namespaces.into_iter().filter_map(|it| Some((it.clone(), action(it)?))).collect()
    }

    /// The API server has taken this, asked for at `at`; or its namespace is gone, and nothing of it needs to be written.
    pub fn done(&mut self, namespace: &str, action: &Action, at: Timestamp) {
        match action {
            Action::Delete => drop(self.written.remove(namespace)),
            Action::Apply(report) => {
                let results = report["results"].as_array().into_iter().flatten();
                let entries = results.filter_map(Entry::read).collect();
                self.written.insert(namespace.to_owned(), Written { entries, at });
            }
        }
    }

    /// How many findings have a result of their own on the API server, and how many share one.
    pub fn results(&self) -> (u64, u64) {
        let entries = self.written.values().flat_map(|written| &written.entries);
        entries.fold((0, 0), |(whole, folded), entry| {
            (whole + u64::from(entry.folded == 0), folded + entry.folded)
        })
    }

    fn report(&self, namespace: &str, entries: &[Entry]) -> Value {
        let results: Vec<Value> = entries.iter().map(Entry::to_json).collect();
        let count = |word: &str| results.iter().filter(|result| result["result"] == word).count();
        json!({
            "apiVersion": "openreports.io/v1alpha1",
            "kind": "Report",
            "metadata": {
                "name": self.name,
                "namespace": namespace,
                "labels": {"app.kubernetes.io/managed-by": CONTROLLER},
                "annotations": {"netaudit/node": self.node},
                "ownerReferences": self.owner.iter().collect::<Vec<_>>(),
            },
            "source": CONTROLLER,
            "summary": {"pass": 0, "fail": count("fail"), "warn": count("warn"), "error": 0, "skip": 0},
            "results": results,
        })
    }
}

/// `netaudit-<node>`, as long as that can be a name.
fn name(node: &str) -> String {
    const MOST: usize = 253;
    let name = format!("{CONTROLLER}-{node}");
    if name.len() <= MOST {
        return name;
    }
    let hash: String = Sha256::digest(node).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let cut = name[..name.floor_char_boundary(MOST - hash.len() - 1)].trim_end_matches(['.', '-']);
    format!("{cut}-{hash}")
}

/// What earlier runs found and what this one has found, in a stable order: what weighs most first. `written` still knows the
/// kinds of workloads whose pods are gone by now.
fn merged(carried: Option<&Vec<Entry>>, current: Option<&Vec<Entry>>, written: &[Entry]) -> Vec<Entry> {
    let (shares, carried): (Vec<&Entry>, Vec<&Entry>) =
        carried.into_iter().flatten().partition(|entry| entry.folded > 0);
    let written: BTreeMap<&BTreeMap<String, String>, &Entry> =
        written.iter().map(|entry| (&entry.labels, entry)).collect();
    let mut merged: BTreeMap<&BTreeMap<String, String>, Entry> =
        carried.into_iter().map(|entry| (&entry.labels, entry.clone())).collect();
    for entry in current.into_iter().flatten() {
        let mut one = entry.clone();
        one.count += merged.get(&entry.labels).map_or(0, |before| before.count);
        if let Some(known) = written.get(&entry.labels)
            && known.resources.len() > one.resources.len()
        {
            one.resources.clone_from(&known.resources);
        }
        merged.insert(&entry.labels, one);
    }
    let mut entries: Vec<Entry> = merged.into_values().collect();
    entries.sort_by_key(|entry| Reverse(entry.severity));
    entries.extend(shares.into_iter().cloned());
    entries
}

/// The same with no more than [`MOST_RESULTS`] that stand for themselves. The rest is folded by source, and if there are too
/// many sources, those that are last in order of name into one, which names them all.
fn folded(entries: Vec<Entry>) -> Vec<Entry> {
    let mut kept = Vec::new();
    let mut shares: BTreeMap<(String, String), Entry> = BTreeMap::new();
    for entry in entries {
        if entry.folded == 0 && kept.len() < MOST_RESULTS {
            kept.push(entry);
            continue;
        }
        let (namespace, workload) = entry.source();
        match shares.get_mut(&(namespace.to_owned(), workload.to_owned())) {
            Some(share) => add(share, &entry),
            None => drop(shares.insert((namespace.to_owned(), workload.to_owned()), share(entry))),
        }
    }
    let mut shares: Vec<Entry> = shares.into_values().collect();
    if shares.len() > MOST_RESULTS {
        let mut last = shares.split_off(MOST_RESULTS - 1).into_iter();
        if let Some(mut all) = last.next() {
            last.for_each(|share| add(&mut all, &share));
            shares.push(all);
        }
    }
    shares.iter_mut().for_each(|share| share.message = message(share));
    kept.extend(shares);
    kept
}

/// One that stands for this and more of the same source.
fn share(entry: Entry) -> Entry {
    if entry.folded > 0 {
        return entry;
    }
    let (namespace, workload) = entry.source();
    let is_source = |it: &ObjectReference| {
        it.name.as_deref() == Some(workload) && it.namespace.as_deref() == Some(namespace)
    };
    let resources = entry.resources.iter().filter(|it| is_source(it)).cloned().collect();
    let labels = entry.labels.iter().filter(|(name, _)| name.starts_with("source_"));
    Entry {
        labels: labels.map(|(name, value)| (name.clone(), value.clone())).collect(),
        folded: 1,
        resources,
        ..entry
    }
}

fn add(share: &mut Entry, entry: &Entry) {
    share.folded += entry.folded.max(1);
    share.count += entry.count;
    share.severity = share.severity.max(entry.severity);
    if entry.last > share.last {
        share.last = entry.last;
        share.flow_id.clone_from(&entry.flow_id);
    }
    if entry.source() == share.source() {
        return;
    }
    // Of several sources each is named.
    for (name, value) in entry.labels.iter().filter(|(name, _)| name.starts_with("source_")) {
        let all = share.labels.entry(name.clone()).or_default();
        for value in value.split(", ") {
            if !all.split(", ").any(|one| one == value) {
                all.push_str(if all.is_empty() { "" } else { ", " });
                all.push_str(value);
            }
        }
    }
    for resource in &entry.resources {
        if !share.resources.contains(resource) {
            share.resources.push(resource.clone());
        }
    }
}

fn message(share: &Entry) -> String {
    format!(
        "{}: {} findings more than a report has room for; `netaudit findings` and the flow log have them",
        share.source_text(),
        share.folded
    )
}

/// Whether more has changed than counts and times.
fn is_news(before: &[Entry], now: &[Entry]) -> bool {
    let what = |entries: &[Entry]| -> Vec<(BTreeMap<String, String>, FlowSeverity)> {
        entries.iter().map(|entry| (entry.labels.clone(), entry.severity)).collect()
    };
    what(before) != what(now)
}

#[cfg(test)]
mod tests;
