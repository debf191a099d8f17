//! Which rules are watched, and by how many pods.

use std::sync::Arc;

use foldhash::HashMap;

use super::Auditor;
use crate::{
    audit::Watched,
    model::{Direction, PolicyId, Timestamp},
};

impl Auditor {
    /// Brings the watched rules up to the objects of now. Called when objects changed and at every tick.
    pub fn watch_rules(&mut self, now: Timestamp) {
        if self.usage_generation == Some(self.cluster.generation()) {
            return;
        }
        self.usage_generation = Some(self.cluster.generation());
        self.refresh_own_addresses();
        let everything = self.is_only_agent();
        // (existing, observed) pods by policy and direction: one pass over pods, not pods × policies.
        let mut pods: HashMap<(*const PolicyId, Direction), (usize, usize)> = HashMap::default();
        for (id, pod) in self.cluster.pods() {
            let here = self.is_here(pod);
            if !(here || everything) || pod.completed || pod.host_network {
                continue;
            }
            for direction in [Direction::Egress, Direction::Ingress] {
                for policy in self.cluster.selected_by(id, direction) {
                    let (existing, observed) = pods.entry((Arc::as_ptr(&policy.id), direction)).or_default();
                    *existing += 1;
                    *observed += usize::from(here);
                }
            }
        }
        let mut watched = Vec::new();
        for policy in self.cluster.policies() {
            for direction in [Direction::Egress, Direction::Ingress] {
                let counted = pods.get(&(Arc::as_ptr(&policy.id), direction));
                if counted.is_none() && !everything {
                    continue;
                }
                let (selected, observed) = counted.copied().unwrap_or_default();
                let rules = policy.rules(direction).iter();
                watched.extend(rules.map(|rule| Watched {
                    rule: rule.id.clone(),
                    observable: rule.is_observable(),
                    selected,
                    observed,
                }));
            }
        }
        self.usage.watch(watched, now);
    }
}
