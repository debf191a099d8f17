//! Flows that got one verdict, counted together: what they say of each rule is worked out once for all of them.
//!
//! A flow that twenty rules allow costs what one costs that one rule allows: the verdict is remembered by the evaluator, so
//! its place tells which it is.

use std::{ops::RangeInclusive, sync::Arc};

use foldhash::HashMap;

use super::{OtherEnd, Touched, Uses};
use crate::model::{Timestamp, Verdict};

/// Verdicts that are counted at once: a bound on memory, as each can come with up to 64 peers of each kind.
const MOST_VERDICTS: usize = 1_024;

/// Flows of one verdict with peers that are pods, or with others.
#[derive(Debug)]
pub(super) struct Tally {
    /// Kept, so that no other verdict gets its place.
    pub verdict: Arc<Verdict>,
    /// Whether the other ends are pods.
    pub of_pods: bool,
    pub uses: Uses,
    pub touched: Touched,
}

/// Counts that no rule has been told of.
#[derive(Default, Debug)]
pub(super) struct Tallies {
    by_place: HashMap<(usize, bool), Tally>,
}

impl Tallies {
    /// Counts flows; `true` where they must be taken now.
    pub fn add(
        &mut self,
        verdict: &Arc<Verdict>,
        times: u64,
        span: &RangeInclusive<Timestamp>,
        other: Option<&OtherEnd<'_>>,
    ) -> bool {
        let of_pods = other.is_some_and(|other| other.workload.is_some());
        let tally = self.by_place.entry((Arc::as_ptr(verdict).addr(), of_pods)).or_insert_with(|| Tally {
            verdict: verdict.clone(),
            of_pods,
            uses: Uses::default(),
            touched: Touched::default(),
        });
        tally.uses.add(times, span);
        if let Some(other) = other {
            tally.touched.port(other.protocol, other.port);
            tally.touched.address(other.address);
            other.workload.into_iter().for_each(|name| tally.touched.workload(name));
        }
        self.by_place.len() >= MOST_VERDICTS
    }

    pub fn is_empty(&self) -> bool {
        self.by_place.is_empty()
    }

    /// All of them, each once.
    pub fn take(&mut self) -> Vec<Tally> {
        self.by_place.drain().map(|(_, tally)| tally).collect()
    }
}
