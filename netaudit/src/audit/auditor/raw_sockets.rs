//! Raw sockets: whose they are, once that is known.

use super::{Auditor, HOLD_START, HOLD_SUBJECT, MAX_WAITING, PeerKind, Subject, Waiting};
use crate::{
    audit::{Owner, RawSocketKey, RawSocketSeen, RawSockets},
    model::{NetnsCookie, RawSocket, Timestamp},
};

impl Auditor {
    /// Takes one. It is named, counted and appended to `named` at once, or by [`Auditor::name_raw_sockets`] later.
    pub fn observe_raw_socket(&mut self, seen: &RawSocket, now: Timestamp, named: &mut Vec<RawSocketSeen>) {
        self.taken += 1;
        let full = self.held_raw_sockets.len() >= MAX_WAITING;
        if self.may_name(seen) || full {
            named.push(self.name_raw_socket(seen));
        } else {
            let hold = if self.ready { HOLD_SUBJECT } else { HOLD_START };
            let waiting = Waiting { until: now.plus(hold), number: self.taken, seen: *seen };
            self.held_raw_sockets.push_back(waiting);
        }
    }

    /// Names those that had to wait, as far as that can be done now. With [`Timestamp::MAX`] all of them.
    pub fn name_raw_sockets(&mut self, now: Timestamp, named: &mut Vec<RawSocketSeen>) {
        for _ in 0..self.held_raw_sockets.len() {
            let Some(waiting) = self.held_raw_sockets.pop_front() else { break };
            if waiting.until <= now || self.may_name(&waiting.seen) {
                named.push(self.name_raw_socket(&waiting.seen));
            } else {
                self.held_raw_sockets.push_back(waiting);
            }
        }
    }

    /// Who made how many.
    pub fn raw_sockets(&self) -> &RawSockets {
        &self.raw_sockets
    }

    /// Whether everything that names it is there.
    fn may_name(&mut self, seen: &RawSocket) -> bool {
        if let Some(cgroup) = seen.actor.cgroup {
            self.attribution.pair(seen.netns, cgroup);
        }
        self.ready && !matches!(self.subject_of_namespace(seen.netns), Subject::Unknown { .. })
    }

    /// Whose the namespace is, where the record proves nothing of it.
    pub(super) fn subject_of_namespace(&self, netns: NetnsCookie) -> Subject {
        match self.attribution.owner(netns) {
            Owner::Host => Subject::Node,
            Owner::Pod(uid) => match self.cluster.pod_by_uid(&uid) {
                Some(pod) => Subject::Pod(pod),
                None => Subject::Unknown { uid: Some(uid) },
            },
            Owner::Unknown => Subject::Unknown { uid: None },
        }
    }

    fn name_raw_socket(&mut self, seen: &RawSocket) -> RawSocketSeen {
        let subject = self.subject_of_namespace(seen.netns);
        let of = match subject {
            Subject::Pod(id) => PeerKind::Pod(id),
            Subject::Node => PeerKind::Node(None),
            Subject::Unknown { .. } => PeerKind::Unknown,
        };
        let (namespace, workload) = self.workload(&of, None);
        let key = RawSocketKey { kind: seen.kind, namespace, workload };
        self.raw_sockets.count(key.clone(), seen.at);
        let actor = seen.actor.cgroup.and_then(|cgroup| self.attribution.actor(cgroup));
        RawSocketSeen {
            seen: *seen,
            subject,
            key,
            actor_pod: actor.map(|actor| actor.uid.clone()),
            actor_container: actor.and_then(|actor| actor.container.clone()),
        }
    }
}
