//! Which rules are watched, by how many pods, and which flows they had a part in.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use foldhash::{HashMap, HashSet};

use super::{Auditor, Flow, Gap, PeerKind, Subject, rule_facts::RuleFacts};
use crate::{
    audit::{ActorKind, Peer, Watched, resolve::Judged, usage::OtherEnd},
    cluster::{Cluster, Pod},
    model::{Decision, Direction, Observation, PolicyId, Protocol, Timestamp, Verdict},
};

/// How often the pods are counted that policies select on other nodes: they are many, and no flow of theirs is seen here.
const COUNT_ELSEWHERE: Duration = Duration::from_secs(10);

/// How long a window of usage is where a rule must be watched for `unused_after`: short enough that what is missing in one does not
/// keep all others from counting for much longer than that, long enough that rows are few.
pub fn usage_window(unused_after: Duration) -> Duration {
    (unused_after / 24).clamp(Duration::from_secs(1), Duration::from_secs(24 * 3_600))
}

/// What is known of the rules' pods, besides how many they are.
#[derive(Default, Debug)]
pub(super) struct Watching {
    /// The objects that the watched rules are as of.
    generation: Option<u64>,
    /// When pods that this agent is not responsible for were last counted.
    counted_elsewhere: Option<Timestamp>,
    /// How many of them each policy selects.
    selected_elsewhere: HashMap<(Arc<PolicyId>, Direction), usize>,
    /// Pods with a RuntimeClass that have shown a flow, by UID: their sockets are in this kernel.
    shown: HashSet<Arc<str>>,
    facts: RuleFacts,
}

impl Watching {
    /// Forgets the pods and policies that are gone.
    pub fn expire(&mut self, cluster: &Cluster) {
        self.facts.expire();
        self.shown.retain(|uid| cluster.pod_by_uid(uid).is_some());
    }
}

impl Auditor {
    /// More is known of what is watched than objects tell.
    pub(super) fn look_at_rules_again(&mut self) {
        self.watching.generation = None;
    }

    /// Brings the watched rules up to the objects of now. Called when objects changed and at every tick.
    pub fn watch_rules(&mut self, now: Timestamp) {
        let everything = self.is_only_agent();
        let count_elsewhere = !everything
            && self.watching.counted_elsewhere.is_none_or(|at| now.since(at) >= COUNT_ELSEWHERE || now < at);
        if self.watching.generation == Some(self.cluster.generation()) && !count_elsewhere {
            return;
        }
        self.watching.generation = Some(self.cluster.generation());
        self.refresh_own_addresses();
        if count_elsewhere {
            self.watching.counted_elsewhere = Some(now);
            self.count_elsewhere();
        } else if everything {
            self.watching.selected_elsewhere.clear();
        }
        // (existing, observed) pods by policy and direction: one pass over pods, not pods × policies.
        let mut pods: HashMap<(*const PolicyId, Direction), (usize, usize)> = HashMap::default();
        for (id, pod) in self.cluster.pods() {
            let here = self.is_here(pod);
            if !(here || everything) || pod.completed || pod.host_network {
                continue;
            }
            for direction in Direction::ALL {
                for policy in self.cluster.selected_by(id, direction) {
                    let (existing, observed) = pods.entry((Arc::as_ptr(&policy.id), direction)).or_default();
                    *existing += 1;
                    *observed += usize::from(here && self.is_seen(pod));
                }
            }
        }
        let are_all = self.ready && self.cluster.knows_cron_jobs();
        self.watching.facts.look(&self.cluster, are_all, self.correction, now);
        let mut watched = Vec::new();
        for policy in self.cluster.policies() {
            for direction in Direction::ALL {
                let counted = pods.get(&(Arc::as_ptr(&policy.id), direction));
                let here = counted.is_some() || everything;
                // Its pods may have gone to other nodes, of whose agents nothing may be known to whoever asks.
                if !here && !self.usage.knows(&policy.id) {
                    continue;
                }
                let (selected, observed) = counted.copied().unwrap_or_default();
                let elsewhere = self.watching.selected_elsewhere.get(&(policy.id.clone(), direction));
                let facts = self.watching.facts.of(&self.cluster, policy, direction);
                let rules = policy.rules(direction).iter().zip(facts);
                watched.extend(rules.map(|(rule, facts)| Watched {
                    schedule: facts.schedule,
                    rule: rule.id.clone(),
                    summary: rule.summary.as_str().into(),
                    elements: facts.elements.clone(),
                    possible: rule.can_match(),
                    certain: policy.warnings.is_empty(),
                    here,
                    observable: rule.is_observable(),
                    selected,
                    observed,
                    elsewhere: elsewhere.copied().unwrap_or(0),
                }));
            }
        }
        self.usage.watch(watched, now);
        if self.ready {
            self.usage.resume();
        }
    }

    fn count_elsewhere(&mut self) {
        let mut selected: HashMap<(Arc<PolicyId>, Direction), usize> = HashMap::default();
        for (id, pod) in self.cluster.pods() {
            if self.is_here(pod) || pod.completed || pod.host_network {
                continue;
            }
            for direction in Direction::ALL {
                for policy in self.cluster.selected_by(id, direction) {
                    *selected.entry((policy.id.clone(), direction)).or_default() += 1;
                }
            }
        }
        self.watching.selected_elsewhere = selected;
    }

    /// Counts a flow for every rule that had a part in it, or against what is known of those that may have had one.
    pub(super) fn credit(&mut self, flow: &Flow) {
        let seen = &flow.observation;
        if flow.actor_kind == ActorKind::Subject {
            self.show(&flow.subject);
        }
        if let Decision::Unknown(gap) = &flow.verdict.decision {
            self.doubt(&flow.subject, seen.direction, gap, seen.count());
            let is_of_nobody = matches!(flow.subject, Subject::Unknown { uid: None });
            if is_of_nobody
                && *gap != Gap::NotReady
                && self.cluster.in_pod_network(seen.local.ip().to_canonical())
            {
                // Of some pod, then.
                self.usage.doubt_all(seen.count());
            }
            return;
        }
        let (span, other) = (seen.first()..=seen.at, (&flow.peer, seen.protocol, flow.port));
        self.credit_with(&flow.verdict, seen.count(), span, other);
    }

    /// Flows of this verdict were with this peer, at this port.
    fn credit_with(
        &mut self,
        verdict: &Arc<Verdict>,
        times: u64,
        span: RangeInclusive<Timestamp>,
        (peer, protocol, port): (&Peer, Protocol, u16),
    ) {
        let workload = match peer.kind {
            PeerKind::Pod(id) => {
                self.cluster.pod(id).map(|pod| (pod.namespace.clone(), pod.workload.name.clone()))
            }
            _ => None,
        };
        let other = OtherEnd { workload: workload.as_ref(), address: peer.ip, protocol, port };
        self.usage.credit(verdict, times, span, Some(&other));
    }

    /// A connection of this subject is open at `at`.
    pub(super) fn keep(&mut self, subject: &Subject, seen: &Observation, judged: &Judged, at: Timestamp) {
        self.show(subject);
        match &judged.verdict.decision {
            Decision::Unknown(gap) => self.doubt(subject, seen.direction, gap, 1),
            // It is in use, and no new match.
            _ => self.credit_with(&judged.verdict, 0, at..=at, (&judged.peer, seen.protocol, judged.port)),
        }
    }

    /// A socket of this subject was seen in this kernel.
    fn show(&mut self, subject: &Subject) {
        let Subject::Pod(id) = subject else { return };
        if let Some(pod) = self.cluster.pod(*id).filter(|pod| !self.is_seen(pod)) {
            self.watching.shown.insert(pod.uid.clone());
            self.look_at_rules_again();
        }
    }

    /// Whether what a pod of this node does is seen: one with a RuntimeClass may have another kernel, until it shows otherwise. What
    /// a class means is known to the container runtime alone.
    fn is_seen(&self, pod: &Pod) -> bool {
        !pod.has_runtime_class || self.watching.shown.contains(&pod.uid)
    }

    fn doubt(&mut self, subject: &Subject, direction: Direction, gap: &Gap, times: u64) {
        match subject {
            Subject::Pod(pod) => {
                let policies = self.cluster.selected_by(*pod, direction);
                let policies: Vec<_> = policies.map(|policy| policy.id.clone()).collect();
                self.usage.doubt(policies, direction, times);
            }
            // A pod, of which only its name is known.
            Subject::Unknown { uid: Some(_) } => self.usage.doubt_all(times),
            Subject::Unknown { uid: None } if *gap == Gap::NotReady => self.usage.doubt_all(times),
            // Nobody whom a policy could select, as far as anybody knows.
            Subject::Unknown { uid: None } | Subject::Node => {}
        }
    }
}
