//! Recorded flows as the proof that a change of policies denies nothing that was observed and allowed.

use std::collections::BTreeMap;

use super::cannot_be_read;
use crate::{
    advise::{tighten::Broken, what_if::Candidate},
    replay::{self, Both, Classes, Histories},
    store::{
        bundle::partly,
        flows::ask::{Scanned, Store},
    },
};

/// What the recorded flows show.
pub(super) struct Replay {
    pub broken: Broken,
    /// Flows that could not be judged again, by the reason.
    pub missing: BTreeMap<&'static str, u64>,
    /// What is missing or not certain, in sentences.
    pub doubts: Vec<String>,
    pub complete: bool,
}

impl AsRef<Broken> for Replay {
    fn as_ref(&self) -> &Broken {
        &self.broken
    }
}

impl Replay {
    /// With more that is missing.
    pub fn lacks(&mut self, doubts: Vec<String>) {
        self.complete &= doubts.is_empty();
        self.doubts.splice(0..0, doubts);
    }
}

/// The recorded flows, and what is known of them.
pub(super) struct Recorded<'a> {
    pub stores: &'a [Store],
    pub histories: &'a Histories,
    pub classes: &'a Classes<'a>,
    pub scanned: &'a Scanned,
}

/// Judges all recorded flows by two sets of policies.
pub(super) fn replayed(flows: &Recorded<'_>, before: &Candidate, after: &Candidate) -> Replay {
    let mut broken = Broken::default();
    let mut missing: BTreeMap<&'static str, u64> = BTreeMap::new();
    replay::judge_both(
        flows.classes,
        flows.histories,
        [Some(before), Some(after)],
        &mut |flows| match &flows.judged {
            Ok(Both { class, before, after }) => broken.add(class, flows.run, flows.tally, before, after),
            Err(reason) => *missing.entry(reason.reason()).or_default() += flows.tally.flows,
        },
    );
    let mut doubts: Vec<String> = flows
        .scanned
        .unreadable
        .iter()
        .map(|(path, reason)| format!("{} cannot be read, its flows are missing: {reason}", path.display()))
        .collect();
    doubts.extend(flows.histories.unreadable().iter().map(cannot_be_read));
    doubts.extend(flows.stores.iter().filter_map(partly));
    for (run, last) in flows.classes.runs() {
        doubts.extend(
            flows.histories.doubts(&run, last).into_iter().map(|doubt| format!("run {run}: {doubt}")),
        );
    }
    doubts.extend(
        missing.iter().map(|(reason, flows)| format!("{flows} flows could not be judged again: {reason}")),
    );
    if broken.replayed == 0 {
        doubts.push("no recorded flow was judged again".to_owned());
    }
    let complete = doubts.is_empty() && flows.scanned.coverage.is_complete();
    doubts.extend(flows.scanned.coverage.sentences());
    Replay { broken, missing, doubts, complete }
}
