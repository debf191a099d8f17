//! Whether a change would deny what was observed and allowed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Serialize;

use super::uses::{Needed, Pair, matches, other_end, pair};
use crate::{
    advise::{
        Outcome,
        what_if::{Class, Judged, Tally, decided_by},
    },
    model::{Decision, Denial, Direction, PolicyId, Timestamp, Verdict},
};

/// Flows that would fare worse.
#[derive(Default, Debug)]
pub struct Broken {
    /// Flows that were judged by both sets of policies.
    pub replayed: u64,
    /// When the first of them began, and the last.
    pub span: Option<(Timestamp, Timestamp)>,
    /// The rules of the policies as they are that let them pass.
    pub rules: BTreeSet<(Arc<PolicyId>, Direction, u32)>,
    /// Policies that stop them, where no rule is known that let them pass.
    pub policies: BTreeSet<(Arc<PolicyId>, Direction)>,
    denied: BTreeMap<Pair, Denied>,
}

/// Flows between two workloads that would fare worse.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Denied {
    /// Whose, and how many records tell so, of both ends.
    #[serde(flatten)]
    pub between: Needed,
    /// What lets them pass: `egress: NetworkPolicy/shop/web egress[0]`.
    pub before: String,
    /// What stops them.
    pub after: String,
}

impl Broken {
    /// Adds flows of one class, as both sets of policies judge both of its ends; `run` is the agent run that told them.
    pub fn add(&mut self, class: &Class, run: &str, tally: &Tally, before: &Judged, after: &Judged) {
        self.replayed += tally.flows;
        let (first, last) = self.span.unwrap_or((tally.first, tally.last));
        self.span = Some((first.min(tally.first), last.max(tally.last)));
        self.add_end(class, run, tally, class.direction, &before.own, &after.own);
        if let (Some(before), Some(after)) = (other_end(before, tally), &after.other) {
            self.add_end(class, run, tally, class.direction.opposite(), before, after);
        }
    }

    fn add_end(
        &mut self,
        class: &Class,
        run: &str,
        tally: &Tally,
        direction: Direction,
        before: &Verdict,
        after: &Verdict,
    ) {
        let (was, is) = (Outcome::of(before), Outcome::of(after));
        // What was denied may be so by another policy now; what was unknown must not become denied, as it may have been allowed.
        let is_worse = match was {
            Outcome::Allowed => is != Outcome::Allowed,
            Outcome::Unknown => is == Outcome::Denied,
            Outcome::Denied => false,
        };
        if !is_worse {
            return;
        }
        let rules = matches(before);
        self.rules.extend(rules.iter().map(|it| (it.rule.policy.clone(), direction, it.rule.index)));
        if let Decision::Denied(denial @ Denial::Isolation(_)) = &after.decision
            && rules.is_empty()
        {
            self.policies.extend(denial.policies().map(|it| (it.clone(), direction)));
        }
        let denied = self.denied.entry(pair(class)).or_insert_with_key(|pair| Denied {
            between: Needed::new(pair),
            before: format!("{direction}: {}", decided_by(before)),
            after: format!("{direction}: {}", decided_by(after)),
        });
        denied.between.flows += tally.flows;
        denied.between.see(tally.last, &format!("{run}-{}", tally.example));
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.denied.is_empty()
    }

    /// Those that would fare worse, those with most flows first.
    pub fn denied(&self) -> Vec<Denied> {
        let mut all: Vec<Denied> = self.denied.values().cloned().collect();
        all.sort_by_key(|it| std::cmp::Reverse(it.between.flows));
        all
    }
}
