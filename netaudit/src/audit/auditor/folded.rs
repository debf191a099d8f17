//! Flows of which the kernel kept only the number, since nobody took its records quickly enough.

use std::{net::SocketAddr, time::Duration};

use foldhash::HashMap;

use super::Auditor;
use crate::{
    audit::{Flow, Owner},
    model::{CgroupId, Direction, NetnsCookie, Observation, Protocol, Timestamp},
};

/// An attempt that ended before cannot have been told as pending: the first retransmission comes after a second.
const NEVER_PENDING: Duration = Duration::from_millis(200);

/// What an attempt and the fold that it ended in have in common.
type Attempt = (NetnsCookie, Option<CgroupId>, SocketAddr);

impl Auditor {
    /// Takes folds: each is judged once, and counts as often as flows are in it.
    pub fn observe_folded(&mut self, folds: &[Observation], now: Timestamp, flows: &mut Vec<Flow>) {
        self.forget_pending(folds);
        for seen in folds {
            self.learn(seen);
            // It holds nothing back in the ring, as it is in none.
            self.judge_or_hold(seen, self.taken + 1, now, flows);
        }
    }

    /// Whose the namespace is, in words for a log.
    pub fn owner_name(&self, netns: NetnsCookie) -> String {
        let uid = match self.attribution.owner(netns) {
            Owner::Host => return format!("node {}", self.settings.node),
            Owner::Unknown => return format!("network namespace {}", netns.0),
            Owner::Pod(uid) => uid,
        };
        match self.cluster.pod_by_uid(&uid).and_then(|id| self.cluster.pod(id)) {
            Some(pod) => format!("pod {}/{}", pod.namespace, pod.name),
            None => format!("pod {uid}"),
        }
    }

    /// An attempt that was told as pending ended in a fold, and must not be counted a second time as one that never
    /// ended. Which of several alike does not matter.
    fn forget_pending(&mut self, folds: &[Observation]) {
        if self.pending.is_empty() {
            return;
        }
        let mut ended: HashMap<Attempt, u64> = HashMap::default();
        let may_have_been_told = |seen: &&Observation| {
            seen.direction == Direction::Egress
                && seen.protocol == Protocol::Tcp
                && seen.waited >= NEVER_PENDING
        };
        for seen in folds.iter().filter(may_have_been_told) {
            *ended.entry(attempt(seen)).or_default() += seen.count();
        }
        self.pending.retain(|_, seen| match ended.get_mut(&attempt(seen)) {
            Some(left) if *left > 0 => {
                *left -= 1;
                false
            }
            _ => true,
        });
    }
}

fn attempt(seen: &Observation) -> Attempt {
    (seen.netns, seen.actor.cgroup, seen.remote)
}
