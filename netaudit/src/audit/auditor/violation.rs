//! A denied flow as a series of violations.

use std::sync::Arc;

use super::Auditor;
use crate::{
    audit::{Flow, PeerKind, Subject, ViolationKey},
    model::{Decision, Direction},
};

impl Auditor {
    pub(super) fn violation(&self, flow: &Flow) -> Option<ViolationKey> {
        let Decision::Denied(denial) = &flow.verdict.decision else { return None };
        let subject = match flow.subject {
            Subject::Pod(id) => self.workload(&PeerKind::Pod(id), None),
            Subject::Node | Subject::Unknown { .. } => self.workload(&PeerKind::Node(None), None),
        };
        let peer = self.workload(&flow.peer.kind, flow.peer.service.as_ref());
        let (source, destination) = match flow.observation.direction {
            Direction::Egress => (subject, peer),
            Direction::Ingress => (peer, subject),
        };
        Some(ViolationKey {
            direction: flow.observation.direction,
            source_namespace: source.0,
            source_workload: source.1,
            destination_namespace: destination.0,
            destination_workload: destination.1,
            protocol: flow.observation.protocol,
            port: Some(flow.port),
            finding: flow.finding?,
            cause: flow.cause,
            policy: denial.policies().next()?.clone(),
        })
    }

    /// Whether the source is a pod without a controller, whose name has no bound.
    pub(super) fn is_bare_source(&self, flow: &Flow) -> bool {
        let source = match (flow.observation.direction, &flow.subject, &flow.peer.kind) {
            (Direction::Egress, Subject::Pod(id), _) | (Direction::Ingress, _, PeerKind::Pod(id)) => *id,
            _ => return false,
        };
        self.cluster.pod(source).is_some_and(|pod| &*pod.workload.kind == "Pod")
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
