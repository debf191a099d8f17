//! When what decides verdicts last changed, as the watch told it: an enforcer hears of it no sooner.

use std::{net::IpAddr, sync::Arc};

use foldhash::{HashMap, HashSet};

use super::{Cluster, Declared, Kind, PodId};
use crate::{
    model::{PolicyId, Timestamp},
    policy::declared,
};

/// Changes since the first complete lists. What was there at first has no time.
#[derive(Default)]
pub(super) struct Changes {
    listed: HashSet<Kind>,
    policies: HashMap<Arc<PolicyId>, Timestamp>,
    /// Policies that went or select others now, by namespace: what they allowed is denied by those that stay.
    removed: HashMap<Arc<str>, Timestamp>,
    relabelled_namespaces: HashMap<Arc<str>, Timestamp>,
    relabelled_pods: HashMap<PodId, Timestamp>,
}

impl Changes {
    /// A kind has been listed completely. Returns whether that is news.
    pub fn listed(&mut self, kind: Kind) -> bool {
        self.listed.insert(kind)
    }

    /// A policy of this kind came or changed.
    pub fn policy(&mut self, kind: Kind, id: &Arc<PolicyId>, now: Timestamp) {
        if self.listed.contains(&kind) {
            self.policies.insert(id.clone(), now);
        }
    }

    /// A policy went.
    pub fn policy_removed(&mut self, id: &PolicyId, now: Timestamp) {
        self.policies.remove(id);
        self.removed.insert(id.namespace.clone(), now);
    }

    /// A namespace that was known has other labels now.
    pub fn namespace(&mut self, name: &Arc<str>, now: Timestamp) {
        self.relabelled_namespaces.insert(name.clone(), now);
    }

    /// A pod that was known has other labels now.
    pub fn pod(&mut self, pod: PodId, now: Timestamp) {
        self.relabelled_pods.insert(pod, now);
    }

    /// Forgets changes from before `limit`.
    pub fn expire(&mut self, limit: Timestamp) {
        self.policies.retain(|_, at| *at >= limit);
        self.removed.retain(|_, at| *at >= limit);
        self.relabelled_namespaces.retain(|_, at| *at >= limit);
        self.relabelled_pods.retain(|_, at| *at >= limit);
    }
}

impl Declared {
    /// Whether both are certain to be for the same pods and directions. What else one of an order says may decide for those of others.
    pub(super) fn selects_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Network(a), Self::Network(b)) => {
                let types = |it: &declared::NetworkPolicy| (it.policy_types.clone(), it.egress.is_empty());
                a.pod_selector == b.pod_selector && types(a) == types(b)
            }
            _ => false,
        }
    }
}

impl Cluster {
    /// Whether the objects of a kind have ever been listed completely: until then none of it says nothing.
    pub fn has_listed(&self, kind: Kind) -> bool {
        self.changes.listed.contains(&kind)
    }

    /// When `policies` last began to decide as they do, by a change of theirs or by another policy that went; `None` where that is
    /// longer ago than [`super::REMEMBERED`], or was so when the objects were first listed.
    pub fn policies_changed<'a>(
        &self,
        policies: impl Iterator<Item = &'a Arc<PolicyId>>,
    ) -> Option<Timestamp> {
        let changes = &self.changes;
        // Asked for every denied flow, of which each may have many policies; nearly always nothing has changed.
        let none = changes.policies.is_empty() && changes.removed.is_empty();
        let policies = policies.take(if none { 0 } else { usize::MAX });
        // Those of no namespace decide for all.
        let removed = |id: &PolicyId| changes.removed.get(&id.namespace).max(changes.removed.get(""));
        policies.filter_map(|id| changes.policies.get(id).max(removed(id)).copied()).max()
    }

    /// When the labels of a pod that was known, or those of its namespace, were last changed; `None` as above.
    pub fn relabelled(&self, pod: PodId) -> Option<Timestamp> {
        let namespace = self.pod(pod).map(|pod| &pod.namespace);
        let of_namespace = namespace.and_then(|namespace| self.changes.relabelled_namespaces.get(namespace));
        self.changes.relabelled_pods.get(&pod).max(of_namespace).copied()
    }

    /// When another pod that had `ip` before `at` was last known to have it, where it is `pod`'s now; `None` as above.
    pub fn had_by_another(&self, ip: IpAddr, pod: PodId, at: Timestamp) -> Option<Timestamp> {
        self.addresses.had_by_another(ip.to_canonical(), pod, at)
    }
}
