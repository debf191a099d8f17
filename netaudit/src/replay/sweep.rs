//! Two indexes that go through a history side by side: one as it was, or with some policies, and one with the candidate's.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arrow::array::RecordBatch;

use super::{
    classes::{Classes, Key, Slot},
    follow::Follower,
    history::{Histories, History, What},
};
use crate::{
    advise::{
        Outcome,
        what_if::{self, Candidate, Class, End, Judged, Missing, Report, Tally},
    },
    cluster::Object,
    model::Timestamp,
};

/// Both indexes, at one time of a history.
struct Pair<'a> {
    history: &'a History,
    /// With whose policies, where not with those of then.
    candidates: [Option<&'a Candidate>; 2],
    followers: [Follower; 2],
    done: usize,
}

impl<'a> Pair<'a> {
    fn new(history: &'a History, candidates: [Option<&'a Candidate>; 2]) -> Self {
        let followers = candidates.map(|it| Follower::new(it.map_or(&[], Candidate::policies)));
        Self { history, candidates, followers, done: 0 }
    }

    /// Goes on until then.
    fn reach(&mut self, at: Timestamp) {
        for step in self.history.steps_until(at, &mut self.done) {
            for (candidate, follower) in self.candidates.iter().zip(&mut self.followers) {
                let gives_way = candidate.is_some_and(|candidate| match &step.what {
                    What::Apply(object) => candidate.replaces(object),
                    What::Delete(key) => candidate.replaces_key(key),
                    What::Bind(..) | What::Unbind(..) => false,
                });
                if !gives_way {
                    follower.step(&step.what, step.at);
                }
            }
        }
    }

    fn judge(&mut self, class: &Class, at: Timestamp) -> Result<(Judged, Judged), Missing> {
        if let Some(missing) = self.history.lacks(at) {
            return Err(missing);
        }
        let (subject, peer) = (self.find(&class.subject, at)?, self.find(&class.peer, at)?);
        let [first, second] = &mut self.followers;
        let [then, after] = [first, second].map(|follower| {
            let subject = subject.and_then(|pod| follower.pod(pod, at));
            let peer = peer.and_then(|pod| follower.pod(pod, at));
            what_if::judge(&mut follower.cluster, class, subject, peer, at)
        });
        Ok((then, after))
    }

    fn find(&self, end: &End, at: Timestamp) -> Result<Option<&'a Arc<Object>>, Missing> {
        let End::Pod { namespace, name, uid, .. } = end else { return Ok(None) };
        let found = self.history.pod(namespace, name, uid, at);
        found.map(Some).ok_or_else(|| Missing::Pod(format!("{namespace}/{name}").into()))
    }
}

/// Classes by the times between cuts that are in memory at once: some 300 MiB.
const MOST: usize = 500_000;

/// Flows on their way into a report. They are counted by class, and judged whenever there are so many classes that more would not
/// fit into memory: clients outside the cluster can be very many.
#[derive(Debug)]
pub struct Replay<'a> {
    histories: &'a Histories,
    candidate: &'a Candidate,
    most: usize,
    classes: Classes<'a>,
    judged: usize,
    runs: BTreeMap<Arc<str>, Timestamp>,
    report: Report,
}

/// What came of it.
#[derive(Debug)]
pub struct Replayed {
    /// What changes.
    pub report: Report,
    /// How many classes were judged; one that came again after it had been judged counts again.
    pub classes: usize,
    /// Of each run that told of flows the time of the last one.
    pub runs: BTreeMap<Arc<str>, Timestamp>,
}

impl<'a> Replay<'a> {
    /// No flow yet.
    pub fn new(histories: &'a Histories, candidate: &'a Candidate) -> Self {
        Self::within(MOST, histories, candidate)
    }

    /// The same, with at most so many, and those of one batch, in memory.
    pub fn within(most: usize, histories: &'a Histories, candidate: &'a Candidate) -> Self {
        Self {
            histories,
            candidate,
            most,
            classes: Classes::new(histories),
            judged: 0,
            runs: BTreeMap::new(),
            report: Report::default(),
        }
    }

    /// Adds the flows of a batch that has [`COLUMNS`](super::COLUMNS).
    ///
    /// # Errors
    ///
    /// A column is missing or of another type.
    pub fn add(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        self.classes.add(batch)?;
        if self.classes.slots() > self.most {
            self.judge();
        }
        Ok(())
    }

    /// Judges what there is.
    fn judge(&mut self) {
        let classes = std::mem::replace(&mut self.classes, Classes::new(self.histories));
        judge_into(&classes, self.histories, self.candidate, &mut self.report);
        self.judged += classes.len();
        for (run, last) in classes.runs() {
            let known = self.runs.entry(run).or_insert(last);
            *known = last.max(*known);
        }
    }

    /// Judges the rest.
    pub fn finish(mut self) -> Replayed {
        self.judge();
        Replayed { report: self.report, classes: self.judged, runs: self.runs }
    }
}

/// Judges all classes by the policies of then and by a candidate's.
pub fn judge(classes: &Classes<'_>, histories: &Histories, candidate: &Candidate) -> Report {
    let mut report = Report::default();
    judge_into(classes, histories, candidate, &mut report);
    report
}

fn judge_into(classes: &Classes<'_>, histories: &Histories, candidate: &Candidate, report: &mut Report) {
    judge_both(classes, histories, [None, Some(candidate)], &mut |flows| match flows.judged {
        Ok(Both { class, before, after }) => {
            report.add((class, flows.run), flows.recorded, flows.tally, &before, &after);
        }
        Err(missing) => report.add_missing(flows.run, flows.tally, &missing),
    });
}

/// Flows of one class and one state of the objects.
#[derive(Debug)]
pub struct Flows<'a> {
    /// The agent run that told them.
    pub run: &'a str,
    /// What it said of the subject's end.
    pub recorded: Outcome,
    /// How many they are.
    pub tally: &'a Tally,
    /// What both sets of policies say, or why that cannot be asked.
    pub judged: Result<Both<'a>, Missing>,
}

/// What two sets of policies say of a class.
#[derive(Debug)]
pub struct Both<'a> {
    /// The class.
    pub class: &'a Class,
    /// What the first says.
    pub before: Judged,
    /// What the second says.
    pub after: Judged,
}

/// Judges all classes by two sets of policies; without a candidate by those of then.
pub fn judge_both<'a>(
    classes: &'a Classes<'_>,
    histories: &Histories,
    candidates: [Option<&Candidate>; 2],
    tell: &mut dyn FnMut(Flows<'a>),
) {
    let mut by_run: HashMap<&str, Vec<(&Key, &Slot)>> = HashMap::new();
    for (key, slots) in classes.iter() {
        by_run.entry(&key.run).or_default().extend(slots.iter().map(|slot| (key, slot)));
    }
    let mut runs: Vec<(&str, Vec<(&Key, &Slot)>)> = by_run.into_iter().collect();
    runs.sort_by_key(|(run, _)| *run);
    for (run, mut slots) in runs {
        let Some(history) = histories.of(run) else {
            let missing = Missing::History(run.into());
            for (key, slot) in slots {
                let judged = Err(key.class.as_ref().err().unwrap_or(&missing).clone());
                tell(Flows { run, recorded: key.recorded, tally: &slot.tally, judged });
            }
            continue;
        };
        slots.sort_by_key(|(_, slot)| slot.tally.first);
        let mut pair = Pair::new(history, candidates);
        for (key, slot) in slots {
            let at = history.judged_at(slot.tally.first);
            pair.reach(at);
            let judged = key.class.as_ref().map_err(Clone::clone).and_then(|class| {
                let (before, after) = pair.judge(class, at)?;
                Ok(Both { class, before, after })
            });
            tell(Flows { run, recorded: key.recorded, tally: &slot.tally, judged });
        }
    }
}

/// Judges flows one by one, each at its time, in order of time: what [`judge`] is compared with. Returns how many connections fare
/// otherwise.
pub fn judge_each<'a>(
    flows: impl IntoIterator<Item = (&'a Class, Timestamp)>,
    history: &History,
    candidate: &Candidate,
) -> u64 {
    let mut pair = Pair::new(history, [None, Some(candidate)]);
    let mut changed = 0;
    for (class, time) in flows {
        let at = history.judged_at(time);
        pair.reach(at);
        let differs = pair.judge(class, at).is_ok_and(|(then, after)| then.outcome() != after.outcome());
        changed += u64::from(differs);
    }
    changed
}
