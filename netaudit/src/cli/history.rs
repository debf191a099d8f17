//! The objects of then, from the history of flow stores, as an index that can be asked.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use super::eval_flow::NOW;
use crate::{
    cluster::{Cluster, Kind, Object},
    model::Timestamp,
    store::history::{
        BINDING, Verb,
        read::{Change, Key},
        state::State,
    },
    watch::convert,
};

/// The kind, namespace and name of a pod.
pub(super) fn pod_key(namespace: &str, name: &str) -> Key {
    (Kind::Pod.as_str().to_owned(), namespace.to_owned(), name.to_owned())
}

/// An object again, by the same conversion; `None` for what is none.
pub(super) fn object(change: &Change) -> Option<Object> {
    let kind = Kind::from_name(&change.kind)?;
    let value: Value = serde_json::from_str(change.content.as_deref()?).ok()?;
    let source: Arc<str> = format!("history of {}", change.node).into();
    Some(convert::object(kind, &value, &source))
}

/// An index of what was there, asked at [`NOW`]. `instead` takes the place of what has the same key, or of nothing.
pub(super) fn rebuild(state: &State, instead: &[Change]) -> Cluster {
    let mut changes: BTreeMap<Key, &Change> = state.present().map(|change| (change.key(), change)).collect();
    changes.extend(instead.iter().map(|change| (change.key(), change)));
    let mut cluster = Cluster::new();
    cluster.reset_all(changes.values().filter_map(|change| object(change)).collect(), NOW);
    for binding in changes.values().filter(|change| change.kind == BINDING) {
        if let (Some(ip), Some(pod)) = (binding.address, cluster.pod_by_uid(&binding.uid)) {
            cluster.bind(ip, pod, NOW);
        }
    }
    cluster
}

/// Since when a change holds, and how that is known.
pub(super) fn since(change: &Change) -> String {
    let version = match change.resource_version.as_str() {
        "" => String::new(),
        version => format!(", resourceVersion {version}"),
    };
    match change.verb {
        Verb::Present => format!("there at {}{version}", microsecond(change.time)),
        _ => format!("since {}{version}", microsecond(change.time)),
    }
}

/// What an object is like, as YAML, each line so far in.
pub(super) fn yaml(change: &Change, indent: &str) -> anyhow::Result<String> {
    let value: Value = serde_json::from_str(change.content.as_deref().unwrap_or("null"))?;
    let text = serde_saphyr::to_string(&value)?;
    Ok(text.lines().map(|line| format!("{indent}{line}\n")).collect())
}

/// A time to the microsecond that is kept, without zeros at its end.
pub(super) fn microsecond(time: Timestamp) -> String {
    match jiff::Timestamp::from_microsecond(time.0.div_euclid(1_000)) {
        Ok(time) => time.to_string(),
        Err(_) => time.to_string(),
    }
}
