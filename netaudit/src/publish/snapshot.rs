//! What is known of findings at one time, by the namespace of the subject: the same account as `/findings` and the metrics.

use std::{collections::BTreeMap, sync::Arc};

use foldhash::HashMap;

use super::result::Entry;
use crate::{
    audit::{Auditor, OTHER, ViolationKey},
    cluster::Cluster,
    model::{Direction, Timestamp},
};

/// All findings of an agent's run that are remembered.
#[derive(Clone, PartialEq, Debug)]
pub struct Snapshot {
    /// When, by the wall.
    pub taken: Timestamp,
    /// By namespace.
    pub namespaces: BTreeMap<String, Vec<Entry>>,
    /// Findings of no namespace.
    pub no_namespace: u64,
    /// Whether no other will come: all of it is written now, however soon that is.
    pub is_last: bool,
}

/// What `auditor` knows at `now`. `correction` makes today's wall time of its times, in nanoseconds.
pub fn snapshot(auditor: &Auditor, now: Timestamp, correction: i64) -> Snapshot {
    let wall = |time: Timestamp| Timestamp(time.0.saturating_add(correction));
    let series: Vec<_> =
        auditor.violations().series().into_iter().chain(auditor.suspected_blocks().series()).collect();
    let kinds = kinds(auditor.cluster(), series.iter().map(|(key, _)| *key));
    let kind =
        |namespace: &str, workload: &str| kinds.get(&(namespace, workload))?.map(|kind| kind.to_string());
    let mut snapshot =
        Snapshot { taken: wall(now), namespaces: BTreeMap::new(), no_namespace: 0, is_last: false };
    for (key, count) in series {
        match namespace(key) {
            Some(namespace) => {
                let entry = Entry::new(key, count, wall(count.last), kind);
                snapshot.namespaces.entry(namespace.to_owned()).or_default().push(entry);
            }
            None => snapshot.no_namespace += 1,
        }
    }
    snapshot
}

/// The subject's, whose policies were asked. Where that is folded the policy tells it, and else the other end is next.
fn namespace(key: &ViolationKey) -> Option<&str> {
    let policy = key.policy.as_ref().map_or("", |policy| &policy.namespace);
    let candidates = match key.direction {
        Direction::Egress => [&*key.source_namespace, policy, &*key.destination_namespace],
        Direction::Ingress => [&*key.destination_namespace, policy, &*key.source_namespace],
    };
    let is_folded = &*key.destination_workload == OTHER;
    let is_one = |namespace: &&str| !(namespace.is_empty() || is_folded && *namespace == OTHER);
    candidates.into_iter().find(is_one)
}

/// The kinds of workloads by namespace and name, as far as they have pods now; `None` where there are several of that name.
fn kinds<'a>(
    cluster: &'a Cluster,
    keys: impl Iterator<Item = &'a ViolationKey>,
) -> HashMap<(&'a str, &'a str), Option<&'a Arc<str>>> {
    let wanted: foldhash::HashSet<(&str, &str)> = keys
        .flat_map(|key| {
            [
                (&*key.source_namespace, &*key.source_workload),
                (&*key.destination_namespace, &*key.destination_workload),
            ]
        })
        .collect();
    let mut kinds: HashMap<(&str, &str), Option<&Arc<str>>> = HashMap::default();
    if wanted.is_empty() {
        return kinds;
    }
    for (_, pod) in cluster.pods() {
        let workload = (&*pod.namespace, &*pod.workload.name);
        if wanted.contains(&workload) {
            let kind = kinds.entry(workload).or_insert(Some(&pod.workload.kind));
            if *kind != Some(&pod.workload.kind) {
                *kind = None;
            }
        }
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::Object,
        publish::testing::{key, pod},
    };

    #[test]
    fn a_finding_belongs_to_the_namespace_whose_policies_were_asked() {
        let egress = ViolationKey { destination_namespace: "data".into(), ..key("web", 80) };
        assert_eq!(namespace(&egress), Some("shop"));
        let ingress = ViolationKey { direction: Direction::Ingress, ..egress };
        assert_eq!(namespace(&ingress), Some("data"));
        let folded = ViolationKey {
            destination_namespace: OTHER.into(),
            destination_workload: OTHER.into(),
            source_namespace: "".into(),
            ..ingress
        };
        assert_eq!(namespace(&folded), Some("shop"), "the policy's");
        assert_eq!(namespace(&ViolationKey { policy: None, ..folded.clone() }), None);
        let from = ViolationKey { policy: None, source_namespace: "web".into(), ..folded };
        assert_eq!(namespace(&from), Some("web"));
        // Somebody may call a namespace so.
        let named = ViolationKey { source_namespace: OTHER.into(), ..key("web", 80) };
        assert_eq!(namespace(&named), Some(OTHER));
    }

    #[test]
    fn two_kinds_of_one_name_are_no_kind() {
        let mut cluster = Cluster::new();
        for (name, kind, workload) in [
            ("web-0", "Deployment", "web"),
            ("web-1", "Deployment", "web"),
            ("db-0", "StatefulSet", "db"),
            ("db-x", "Job", "db"),
        ] {
            cluster.apply(Object::Pod(pod(name, kind, workload)), Timestamp(0));
        }
        let key = key("web", 80);
        let kinds = kinds(&cluster, [&key].into_iter());
        assert_eq!(kinds.get(&("shop", "web")).copied().flatten().map(|it| &**it), Some("Deployment"));
        assert_eq!(kinds.get(&("shop", "db")), Some(&None));
    }
}
