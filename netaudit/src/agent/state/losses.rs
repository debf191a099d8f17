//! Which losses matter to whom.

use crate::kernel::Loss;

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
