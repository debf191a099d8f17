//! Two indexes that go through a history side by side: one as it was, or with some policies, and one with the candidate's.

use std::{collections::HashMap, sync::Arc};

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
        let steps = self.history.steps();
        while let Some(step) = steps.get(self.done).filter(|step| step.at <= at) {
            self.done += 1;
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

/// Judges all classes by the policies of then and by a candidate's.
pub fn judge(classes: &Classes<'_>, histories: &Histories, candidate: &Candidate) -> Report {
    let mut report = Report::default();
    judge_both(classes, histories, [None, Some(candidate)], &mut |flows| match flows.judged {
        Ok(Both { class, before, after }) => {
            report.add((class, flows.run), flows.recorded, flows.tally, &before, &after);
        }
        Err(missing) => report.add_missing(flows.run, flows.tally, &missing),
    });
    report
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
