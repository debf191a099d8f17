//! Which changes are made: those that can be written, and that take nothing from recorded flows.

use std::{collections::BTreeMap, sync::Arc};

use super::{Advice, Broken, Change};
use crate::model::PolicyId;

/// The changes that both proofs hold for.
#[derive(Debug)]
pub struct Settled<P, R> {
    /// Of each policy and proposal: why it is not made, where it is not.
    pub refused: Vec<BTreeMap<usize, String>>,
    /// What was written.
    pub patched: P,
    /// What the recorded flows show of it.
    pub replay: R,
}

/// Makes the changes that both proofs hold for: what the recorded flows need stays.
///
/// `write` writes the changes of each policy, and tells of each policy which it does not make, by their positions, and why. `replay` judges the
/// recorded flows by what was written.
///
/// # Errors
/// Recorded flows that would be denied though no change of a rule that they need is left.
pub fn settle<P, R: AsRef<Broken>>(
    advice: &Advice,
    write: impl Fn(&[Vec<&Change>]) -> (P, Vec<Vec<(usize, String)>>),
    replay: impl Fn(&P) -> R,
) -> Result<Settled<P, R>, String> {
    let mut refused: Vec<BTreeMap<usize, String>> = advice
        .iter()
        .map(|it| {
            let closed =
                it.refused.iter().flat_map(|reason| (0..it.proposals.len()).map(|at| (at, reason.clone())));
            closed.collect()
        })
        .collect();
    loop {
        let open: Vec<Vec<usize>> = advice
            .iter()
            .zip(&refused)
            .map(|(policy, refused)| {
                let open: Vec<usize> =
                    (0..policy.proposals.len()).filter(|at| !refused.contains_key(at)).collect();
                // What only makes another change safe is not made alone.
                let is_alone =
                    open.iter().all(|at| matches!(policy.proposals[*at].change, Change::NameTypes { .. }));
                if is_alone { Vec::new() } else { open }
            })
            .collect();
        let changes: Vec<Vec<&Change>> = advice
            .iter()
            .zip(&open)
            .map(|(policy, open)| open.iter().map(|at| &policy.proposals[*at].change).collect())
            .collect();
        let (patched, unwritten) = write(&changes);
        let mut is_less = false;
        for (((policy, unwritten), open), refused) in
            advice.iter().zip(&unwritten).zip(&open).zip(&mut refused)
        {
            let mut refuse = |at: usize, reason: &str| {
                is_less |= refused.insert(open[at], format!("cannot be written: {reason}")).is_none();
            };
            for (at, reason) in unwritten {
                refuse(*at, reason);
                // Without it nothing of the policy is safe.
                if let Change::NameTypes { .. } = policy.proposals[open[*at]].change {
                    (0..open.len()).for_each(|at| refuse(at, reason));
                }
            }
        }
        if is_less {
            continue;
        }
        let replay = replay(&patched);
        let broken = replay.as_ref();
        if broken.is_empty() {
            return Ok(Settled { refused, patched, replay });
        }
        let worse = broken.denied();
        let reason = worse.first().map(|it| &it.between).map_or_else(String::new, |it| {
            format!(
                "recorded flows need it: {} to {}, {} {}, such as {}",
                it.source, it.destination, it.protocol, it.port, it.example
            )
        });
        for ((policy, open), refused) in advice.iter().zip(&open).zip(&mut refused) {
            for at in open {
                if needed(broken, &policy.id, &policy.proposals[*at].change) {
                    is_less |= refused.insert(*at, reason.clone()).is_none();
                }
            }
        }
        if !is_less {
            return Err(format!(
                "recorded flows would be denied ({reason}), and no single change is what denies them: nothing is proposed; this is an \
                 error of netaudit"
            ));
        }
    }
}

/// Whether a change is of what flows need that it would deny.
fn needed(broken: &Broken, policy: &Arc<PolicyId>, change: &Change) -> bool {
    let Some((direction, rule)) = change.rule() else { return false };
    let rule = u32::try_from(rule).unwrap_or(u32::MAX);
    broken.rules.contains(&(policy.clone(), direction, rule))
        || broken.policies.contains(&(policy.clone(), direction))
}
