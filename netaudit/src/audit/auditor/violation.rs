//! A denied flow as a series of violations, and one that seems blocked as one of those.

use std::sync::Arc;

use super::Auditor;
use crate::{
    audit::{AcceptedFlows, Flow, PeerKind, Subject, ViolationKey, Violations, open::GoesOn},
    model::{Decision, Direction, Timestamp},
};

impl Auditor {
    /// Violations by series.
    pub fn violations(&self) -> &Violations {
        &self.violations
    }

    /// Flows that seem blocked though they are allowed, by series.
    pub fn suspected_blocks(&self) -> &Violations {
        &self.suspected_blocks
    }

    /// The name of this agent's node.
    pub fn node(&self) -> &str {
        &self.settings.node
    }

    /// The agent run: the first half of every flow id.
    pub fn run(&self) -> &str {
        &self.settings.run
    }

    /// Counts a flow that is denied, or that seems blocked.
    pub(super) fn count_violation(&mut self, flow: &Flow) {
        let Some(key) = self.violation(flow) else { return };
        let seen = &flow.observation;
        let unbounded = self.has_unbounded_name(flow);
        // What is told of it minutes after it began is news all the same, to alerts on the last few minutes.
        let ended = seen.at.plus(seen.waited);
        let series = if key.policy.is_some() { &mut self.violations } else { &mut self.suspected_blocks };
        series.count(key, unbounded, seen.count(), ended, &flow.id);
    }

    /// A violation that goes on, by the exceptions of now: somebody may have accepted it since, or the exception may be over.
    pub(super) fn refresh_violation(&mut self, told: &GoesOn, at: Timestamp) {
        let accepted = self.accepted.accept(&told.key, self.wall(at));
        let key = ViolationKey { accepted, ..told.key.clone() };
        self.violations.count(key, told.unbounded, 0, at, &told.flow);
    }

    /// What it takes to refresh the violation that a flow is.
    pub(super) fn goes_on(&self, flow: &Flow) -> Option<GoesOn> {
        let key = self.violation(flow).filter(|key| key.policy.is_some())?;
        Some(GoesOn { key, unbounded: self.has_unbounded_name(flow), flow: flow.id.clone() })
    }

    fn wall(&self, at: Timestamp) -> Timestamp {
        Timestamp(at.0.saturating_add(self.correction))
    }

    /// Nanoseconds that make wall time of the auditor's times, as of now: the wall clock may have been set since the start.
    pub fn set_correction(&mut self, correction: i64) {
        self.correction = correction;
    }

    /// The exceptions that hold from now on. What was counted before stays as it was.
    pub fn set_accepted(&mut self, accepted: AcceptedFlows) {
        self.accepted = accepted;
    }

    /// The exceptions that hold, and those that are over.
    pub fn accepted(&self) -> &AcceptedFlows {
        &self.accepted
    }

    /// The series that a flow belongs to, before any folding, if it is denied or seems blocked; of a violation with the
    /// exception that accepts it.
    pub fn violation(&self, flow: &Flow) -> Option<ViolationKey> {
        let policy = match &flow.verdict.decision {
            Decision::Denied(denial) => Some(denial.policies().next()?.clone()),
            Decision::Allowed(_) if flow.finding.is_some() => None,
            Decision::Allowed(_) | Decision::Unknown(_) => return None,
        };
        let subject = match flow.subject {
            Subject::Pod(id) => self.workload(&PeerKind::Pod(id), None),
            Subject::Node | Subject::Unknown { .. } => self.workload(&PeerKind::Node(None), None),
        };
        let peer = self.workload(&flow.peer.kind, flow.peer.service.as_ref());
        let (source, destination) = match flow.observation.direction {
            Direction::Egress => (subject, peer),
            Direction::Ingress => (peer, subject),
        };
        let mut key = ViolationKey {
            direction: flow.observation.direction,
            source_namespace: source.0,
            source_workload: source.1,
            destination_namespace: destination.0,
            destination_workload: destination.1,
            protocol: flow.observation.protocol,
            port: Some(flow.port),
            finding: flow.finding?,
            cause: flow.cause,
            policy,
            accepted: None,
        };
        // What is accepted is a violation. Exceptions end by the wall clock.
        if key.policy.is_some() {
            key.accepted = self.accepted.accept(&key, self.wall(flow.observation.at));
        }
        Some(key)
    }

    /// Whether the source's name is one of ever new ones: that of a pod without a controller, or of a Job of no CronJob.
    fn has_unbounded_name(&self, flow: &Flow) -> bool {
        let source = match (flow.observation.direction, &flow.subject, &flow.peer.kind) {
            (Direction::Egress, Subject::Pod(id), _) | (Direction::Ingress, _, PeerKind::Pod(id)) => *id,
            _ => return false,
        };
        self.cluster.pod(source).is_some_and(|pod| matches!(&*pod.workload.kind, "Pod" | "Job"))
    }

    /// (namespace, workload) as metric labels.
    pub(super) fn workload(
        &self,
        kind: &PeerKind,
        service: Option<&(Arc<str>, Arc<str>)>,
    ) -> (Arc<str>, Arc<str>) {
        let none: Arc<str> = "".into();
        match kind {
            PeerKind::Pod(id) => match self.cluster.pod(*id) {
                Some(pod) => (pod.namespace.clone(), pod.workload.name.clone()),
                None => (none, "unknown".into()),
            },
            PeerKind::Service => match service {
                Some((namespace, name)) => (namespace.clone(), name.clone()),
                None => (none, "unknown".into()),
            },
            PeerKind::Node(_) => (none, "node".into()),
            PeerKind::Loopback => (none, "loopback".into()),
            PeerKind::External => (none, "external".into()),
            PeerKind::Unknown => (none, "unknown".into()),
        }
    }
}
