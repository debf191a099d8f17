//! What a flow tells about enforcement on this node.

use std::collections::BTreeSet;

use super::Auditor;
use crate::{
    audit::{
        self, Enforcement, Finding, Isolated, Peer, PeerKind, Subject, Tried, UnenforcedCause,
        resolve::Judged,
    },
    cluster::{Pod, PodId},
    model::{Decision, Direction, Observation, Reach, Timestamp, Verdict},
};

impl Auditor {
    /// What is known of the enforcement of policies on this node.
    pub fn enforcement(&self) -> &Enforcement {
        &self.enforcement
    }

    /// The networks and enforcers whose pods run on this node, by name: whose task enforcement would be.
    pub fn cnis(&self) -> BTreeSet<&'static str> {
        let runs_here = |pod: &&Pod| pod.node.as_ref() == Some(&self.settings.node) && !pod.completed;
        audit::cnis(self.cluster.pods().map(|(_, pod)| pod).filter(runs_here))
    }

    /// Learns from a flow, and says why it passed where that is what it is.
    pub(super) fn learn_enforcement(
        &mut self,
        seen: &Observation,
        subject: &Subject,
        judged: &Judged,
        reach: Reach,
        finding: Option<Finding>,
    ) -> Option<UnenforcedCause> {
        let (own, others) = match seen.direction {
            Direction::Egress => (Direction::Egress, Direction::Ingress),
            Direction::Ingress => (Direction::Ingress, Direction::Egress),
        };
        let mut tried = Tried {
            at: seen.at,
            count: seen.count(),
            reach,
            refused: seen.found_closed_port(),
            denied: [None, None],
        };
        // Most flows are allowed, or their end proves nothing: since when a pod is isolated is not looked up for those.
        if !tried.is_stopped() && !tried.is_passed() {
            return None;
        }
        let elsewhere = match judged.peer.kind {
            PeerKind::Pod(peer) => self.cluster.pod(peer).is_some_and(|pod| !self.is_here(pod)),
            _ => false,
        };
        let by_other_end = elsewhere && judged.other_end.as_deref().is_some_and(Verdict::is_denied);
        if tried.is_stopped() && !proves_enforcement(reach, &judged.peer.kind, by_other_end) {
            return None;
        }
        let isolated = match subject {
            Subject::Pod(pod) => self.isolated(own, *pod, &judged.verdict).map(|isolated| Isolated {
                peer_relabelled: self.peer_relabelled(&judged.peer),
                readdressed: self.readdressed(*pod, seen, &judged.peer),
                ..isolated
            }),
            Subject::Node | Subject::Unknown { .. } => None,
        };
        tried.denied[0] = isolated;
        // What passes is told by the other end itself. Another node's enforcer says nothing of this one's.
        if tried.is_stopped()
            && let PeerKind::Pod(peer) = judged.peer.kind
            && let Some(verdict) = judged.other_end.as_deref()
            && !elsewhere
        {
            tried.denied[1] = self.isolated(others, peer, verdict);
        }
        self.enforcement.learn(&tried);
        if finding == Some(Finding::Unenforced) {
            self.enforcement.cause(&isolated?, seen.first())
        } else {
            None
        }
    }

    /// The pod that a verdict isolates, if it denies.
    fn isolated(&self, direction: Direction, pod: PodId, verdict: &Verdict) -> Option<Isolated> {
        let Decision::Denied(denial) = &verdict.decision else { return None };
        let object = self.cluster.pod(pod)?;
        let hash = object.config_hash.as_deref();
        let started = self.attribution.started(&object.uid).or_else(|| self.attribution.started(hash?));
        let changed = self.cluster.policies_changed(denial.policies());
        let relabelled = self.cluster.relabelled(pod);
        let (peer_relabelled, readdressed) = (None, None);
        Some(Isolated { direction, pod, started, changed, relabelled, peer_relabelled, readdressed })
    }

    fn peer_relabelled(&self, peer: &Peer) -> Option<Timestamp> {
        let PeerKind::Pod(pod) = peer.kind else { return None };
        self.cluster.relabelled(pod)
    }

    /// When the address of either end was last known to be another pod's: what is allowed to that one may still be allowed here.
    fn readdressed(&self, pod: PodId, seen: &Observation, peer: &Peer) -> Option<Timestamp> {
        let own = self.cluster.had_by_another(seen.local.ip(), pod, seen.at);
        let PeerKind::Pod(other) = peer.kind else { return own };
        own.max(self.cluster.had_by_another(peer.ip, other, seen.at))
    }
}

/// Whether what stopped a denied flow can only have been this node's enforcer. A host outside that is down answers nobody, or another
/// network's filter answers for it; where no endpoint is known behind a Service, it is the proxy that rejects; and a pod of another node
/// has an enforcer of its own, which may have been it where `by_other_end` says that this pod's policies deny the flow too.
fn proves_enforcement(reach: Reach, peer: &PeerKind, by_other_end: bool) -> bool {
    match peer {
        PeerKind::Service => false,
        _ if reach == Reach::Stopped => true,
        PeerKind::Pod(_) => !by_other_end,
        PeerKind::Node(_) | PeerKind::Loopback | PeerKind::External | PeerKind::Unknown => false,
    }
}
