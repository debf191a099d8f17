//! Violations by who, to whom and how they ended, in a bounded number of series. And suspected blocks, in the same way.
//!
//! When the budget is spent, peers fold into `other` first, then ports. The source workload stays, so that who did it is
//! told, but for bare pods and Jobs of no CronJob, whose names have no bound: beyond three times the quota they are `other` too. Each source
//! namespace has a quota, so that one scanner cannot hide another's violations.

use std::{sync::Arc, time::Duration};

use foldhash::HashMap;

use super::{Finding, FlowId, UnenforcedCause};
use crate::model::{Direction, PolicyId, Protocol, Timestamp};

/// Stands for everything that has no series of its own.
pub const OTHER: &str = "other";

/// The labels of one series of `netaudit_violations_total`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ViolationKey {
    /// The direction whose policies deny it.
    pub direction: Direction,
    /// Namespace of the source; empty for nodes and externals.
    pub source_namespace: Arc<str>,
    /// Top controller of the source, `node` or `external`.
    pub source_workload: Arc<str>,
    /// Namespace of the destination; empty for nodes and externals; `other` when folded.
    pub destination_namespace: Arc<str>,
    /// Top controller of the destination, `node` or `external`; `other` when folded.
    pub destination_workload: Arc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Destination port after translation; `None` when folded.
    pub port: Option<u16>,
    /// What became of it.
    pub finding: Finding,
    /// Why it passed, where that is what became of it and it is known.
    pub cause: Option<UnenforcedCause>,
    /// The deciding policy: the first in order of name where several isolate. `None` where none denies it: a suspected block.
    pub policy: Option<Arc<PolicyId>>,
    /// The name of the exception that accepts it.
    pub accepted: Option<Arc<str>>,
}

impl ViolationKey {
    fn fold_peer(self) -> Self {
        // The source is never folded: on ingress it is the peer, and stays.
        Self { destination_namespace: OTHER.into(), destination_workload: OTHER.into(), ..self }
    }

    fn fold_port(self) -> Self {
        Self { port: None, ..self.fold_peer() }
    }
}

/// How many violations, and which was the last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ViolationCount {
    /// Denied flows. 0 where one that was counted in another series is accepted since, or no longer, and goes on.
    pub total: u64,
    /// Time of the last one; of one that goes on, when it was last found to.
    pub last: Timestamp,
    /// That one, in the flow log.
    pub flow: FlowId,
}

/// How many series may exist.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Series with full labels, over all source namespaces.
    pub series: usize,
    /// Series with full labels of one source namespace.
    pub per_namespace: usize,
    /// How long a series stays after its last violation.
    pub lifetime: Duration,
    /// Rules that have series.
    pub rules: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { series: 10_000, per_namespace: 1_000, lifetime: Duration::from_secs(24 * 3_600), rules: 5_000 }
    }
}

/// All violations of this agent run.
#[derive(Debug)]
pub struct Violations {
    budget: Budget,
    series: HashMap<ViolationKey, ViolationCount>,
    /// Series by source namespace, folded ones included.
    of_namespace: HashMap<Arc<str>, usize>,
    folded: u64,
}

impl Violations {
    /// None yet, with this budget.
    pub fn new(budget: Budget) -> Self {
        Self { budget, series: HashMap::default(), of_namespace: HashMap::default(), folded: 0 }
    }

    /// Counts some, the last of them `flow` at `at`; none, where `flow` was counted before and goes on. `unbounded` says that the
    /// source's name is one of ever new ones.
    pub fn count(&mut self, key: ViolationKey, unbounded: bool, times: u64, at: Timestamp, flow: &FlowId) {
        let key = self.admit(key, unbounded, times);
        if let Some(count) = self.series.get_mut(&key) {
            count.total += times;
            if at >= count.last {
                count.last = at;
                count.flow = flow.clone();
            }
            return;
        }
        *self.of_namespace.entry(key.source_namespace.clone()).or_default() += 1;
        self.series.insert(key, ViolationCount { total: times, last: at, flow: flow.clone() });
    }

    /// Ends series of which there has been nothing new for their lifetime: their room is for others.
    pub fn expire(&mut self, now: Timestamp) {
        let (lifetime, of_namespace) = (self.budget.lifetime, &mut self.of_namespace);
        self.series.retain(|key, count| {
            let keep = now.since(count.last) < lifetime;
            if !keep && let Some(series) = of_namespace.get_mut(&key.source_namespace) {
                *series -= 1;
                if *series == 0 {
                    of_namespace.remove(&key.source_namespace);
                }
            }
            keep
        });
    }

    /// The key itself while there is room for it, else the least folded form that has room or exists.
    fn admit(&mut self, key: ViolationKey, unbounded: bool, times: u64) -> ViolationKey {
        if self.series.contains_key(&key) || self.has_room(&key, 1) {
            return key;
        }
        self.folded += times;
        // Peers fold within twice the budget, ports within three times; what is left then is bounded by the number of
        // controllers and policies.
        let without_peer = key.clone().fold_peer();
        if self.series.contains_key(&without_peer) || self.has_room(&without_peer, 2) {
            return without_peer;
        }
        let without_port = key.fold_port();
        if !unbounded || self.series.contains_key(&without_port) || self.has_room(&without_port, 3) {
            return without_port;
        }
        ViolationKey { source_workload: OTHER.into(), ..without_port }
    }

    fn has_room(&self, key: &ViolationKey, times: usize) -> bool {
        let in_namespace = self.of_namespace.get(&key.source_namespace).copied().unwrap_or(0);
        in_namespace < self.budget.per_namespace * times && self.series.len() < self.budget.series * times
    }

    /// Violations that were counted in a folded series.
    pub fn folded(&self) -> u64 {
        self.folded
    }

    /// Every series, in a stable order.
    pub fn series(&self) -> Vec<(&ViolationKey, &ViolationCount)> {
        let mut series: Vec<_> = self.series.iter().collect();
        series.sort_unstable_by(|a, b| a.0.cmp(b.0));
        series
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    pub fn key(namespace: &str, workload: &str, destination: &str, port: u16) -> ViolationKey {
        ViolationKey {
            direction: Direction::Egress,
            source_namespace: namespace.into(),
            source_workload: workload.into(),
            destination_namespace: "shop".into(),
            destination_workload: destination.into(),
            protocol: Protocol::Tcp,
            port: Some(port),
            finding: Finding::Unenforced,
            cause: None,
            accepted: None,
            policy: Some(
                PolicyId { kind: "NetworkPolicy", namespace: "shop".into(), name: "deny".into() }.into(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::key, *};

    fn budget(series: usize, per_namespace: usize) -> Budget {
        Budget { series, per_namespace, ..Budget::default() }
    }

    fn flow(sequence: u64) -> FlowId {
        FlowId { run: "worker-1-run".into(), sequence }
    }

    fn total(violations: &Violations) -> u64 {
        violations.series().iter().map(|(_, count)| count.total).sum()
    }

    #[test]
    fn a_port_scan_folds_and_neither_the_count_nor_the_source_is_lost() {
        let mut violations = Violations::new(budget(100, 10));
        for port in 1..=65_535 {
            violations.count(
                key("scan", "scanner", "db", port),
                false,
                1,
                Timestamp(i64::from(port)),
                &flow(1),
            );
        }
        assert_eq!(total(&violations), 65_535);
        assert!(violations.series().len() <= 21, "{}", violations.series().len());
        assert!(violations.series().iter().all(|(key, _)| &*key.source_workload == "scanner"));
        assert!(violations.folded() >= 65_535 - 10);
    }

    #[test]
    fn ever_new_bare_pods_are_bounded_too() {
        let mut violations = Violations::new(budget(100, 10));
        for pod in 0..10_000 {
            violations.count(key("jobs", &format!("job-{pod}"), "db", 1), true, 1, Timestamp(0), &flow(1));
        }
        assert_eq!(total(&violations), 10_000);
        assert!(violations.series().len() <= 31, "{}", violations.series().len());
    }

    #[test]
    fn one_scanner_does_not_hide_another_namespace() {
        let mut violations = Violations::new(budget(100, 10));
        for port in 1..=1_000 {
            violations.count(key("scan", "scanner", "db", port), false, 1, Timestamp(0), &flow(1));
        }
        violations.count(key("quiet", "curious", "db", 5432), false, 1, Timestamp(1), &flow(1));
        assert!(violations.series().iter().any(|(k, _)| **k == key("quiet", "curious", "db", 5432)));
    }

    #[test]
    fn several_at_once_count_each() {
        let mut violations = Violations::new(budget(1, 1));
        violations.count(key("a", "w", "db", 1), false, 5, Timestamp(7), &flow(5));
        violations.count(key("a", "w", "db", 1), false, 2, Timestamp(3), &flow(1));
        violations.count(key("a", "w", "db", 2), false, 4, Timestamp(1), &flow(1));
        assert_eq!((total(&violations), violations.folded()), (11, 4));
        let first =
            violations.series().into_iter().find(|(key, _)| key.port == Some(1)).map(|it| it.1.clone());
        assert_eq!(first, Some(ViolationCount { total: 7, last: Timestamp(7), flow: flow(5) }));
    }

    #[test]
    fn peers_fold_before_ports() {
        let mut violations = Violations::new(budget(100, 1));
        violations.count(key("a", "w", "db", 1), false, 1, Timestamp(0), &flow(1));
        violations.count(key("a", "w", "db", 2), false, 1, Timestamp(0), &flow(1));
        violations.count(key("a", "w", "db", 3), false, 1, Timestamp(0), &flow(1));
        let labels: Vec<_> = violations
            .series()
            .iter()
            .map(|(key, _)| (key.destination_workload.to_string(), key.port))
            .collect();
        assert_eq!(
            labels,
            [(OTHER.to_owned(), None), (OTHER.to_owned(), Some(2)), ("db".to_owned(), Some(1))]
        );
    }

    #[test]
    fn what_has_not_happened_for_long_makes_room() {
        let mut violations = Violations::new(budget(10, 2));
        let hours = |hours: i64| Timestamp::from_seconds(hours * 3_600);
        for (port, at) in [(1, 0), (2, 20), (3, 21)] {
            violations.count(key("a", "w", "db", port), false, 1, hours(at), &flow(1));
        }
        assert_eq!(violations.folded(), 1);
        violations.expire(hours(24));
        let ports = |violations: &Violations| -> Vec<_> {
            violations.series().iter().map(|(key, _)| key.port).collect()
        };
        // The one that found no room is in another peer's name, which comes first.
        assert_eq!(ports(&violations), [Some(3), Some(2)]);
        // A quota that is free again.
        violations.expire(hours(44));
        violations.count(key("a", "w", "db", 4), false, 1, hours(44), &flow(2));
        assert_eq!((ports(&violations), violations.folded()), (vec![Some(3), Some(4)], 1));
        violations.expire(hours(100));
        assert!(violations.series().is_empty() && violations.of_namespace.is_empty());
    }
}
