//! What was lost, and which losses matter to whom.

use super::State;
use crate::{kernel::Loss, store::flows::Lost};

/// Records that were made and that nobody can judge.
pub(super) fn missed(losses: &[Loss]) -> u64 {
    // An attempt that was to be told as pending is told again with its outcome. Names are never known to be all, so rules
    // that need them are not called unused anyway.
    let is_flow = |loss: &&Loss| !matches!(loss.cause, "tcp-pending" | "dns-answer" | "dns-limited");
    losses.iter().filter(is_flow).map(|loss| loss.count).sum()
}

/// Lost records of cgroups.
pub(super) fn of_cgroups(losses: &[Loss]) -> u64 {
    let is_of_cgroup = |loss: &&Loss| matches!(loss.cause, "cgroup-made" | "cgroup-removed");
    losses.iter().filter(is_of_cgroup).map(|loss| loss.count).sum()
}

impl State {
    /// The kernel's losses and ours.
    pub(super) fn losses(&self) -> Vec<Loss> {
        self.losses_with(self.kernel.losses())
    }

    pub(super) fn losses_with(&self, mut losses: Vec<Loss>) -> Vec<Loss> {
        let ours = [
            ("decode", "undecodable", self.kernel.undecodable()),
            ("attribute", "too many pending", self.auditor.pending_dropped()),
            ("attribute", "too many drops", self.auditor.drops_forgotten()),
            ("attribute", "drops not judged", self.auditor.drops_unjudged()),
            ("attribute", "too many host connections", self.auditor.pairs_dropped()),
            ("attribute", "too many open connections", self.auditor.open_connections().forgotten()),
        ];
        let ours = ours.into_iter().chain(self.sinks.losses());
        losses.extend(ours.map(|(stage, cause, count)| Loss { stage, cause, cpu: 0, count }));
        losses
    }

    /// What was lost by now, where the kernel had no room for so many.
    pub(super) fn lost(&self, kernel: u64) -> Lost {
        Lost { kernel, own: self.kernel.undecodable() + self.sinks.store_lost() }
    }
}
