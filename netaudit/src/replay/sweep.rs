//! Two indexes that go through a history side by side: one as it was, or with some policies, and one with the candidate's.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::{
    classes::{Classes, Key, Slot},
    history::{Histories, History, What},
};
use crate::{
    advise::{
        Outcome,
        what_if::{self, Candidate, Class, End, Judged, Missing, Report, Tally},
    },
    cluster::{Cluster, Object, PodId},
    model::Timestamp,
};

/// An index that follows a history.
struct Follower {
    cluster: Cluster,
    /// Addresses that the kernel showed, by pod: it may show them before the pod's object comes.
    bound: HashMap<Arc<str>, Vec<(IpAddr, Timestamp)>>,
    expired: Timestamp,
}

/// How often what is long gone is forgotten.
const EXPIRE_EVERY: std::time::Duration = std::time::Duration::from_secs(3_600);

impl Follower {
    fn new(policies: &[Object]) -> Self {
        let mut cluster = Cluster::new();
        cluster.reset_all(policies.to_vec(), Timestamp::MIN);
        Self { cluster, bound: HashMap::new(), expired: Timestamp::MIN }
    }

    fn step(&mut self, what: &What, at: Timestamp) {
        match what {
            What::Apply(object) => {
                self.cluster.apply((**object).clone(), at);
                if let Object::Pod(pod) = &**object
                    && let Some(bound) = self.bound.get(&pod.uid)
                    && let Some(id) = self.cluster.pod_by_uid(&pod.uid)
                {
                    for (ip, since) in bound {
                        self.cluster.bind(*ip, id, *since);
                    }
                }
            }
            What::Delete(key) => self.cluster.delete(key, at),
            What::Bind(ip, uid) => {
                self.bound.entry(uid.clone()).or_default().push((*ip, at));
                if let Some(id) = self.cluster.pod_by_uid(uid) {
                    self.cluster.bind(*ip, id, at);
                }
            }
            What::Unbind(ip, uid) => {
                if let Some(bound) = self.bound.get_mut(uid) {
                    bound.retain(|(known, _)| known != ip);
                }
            }
        }
        if at.since(self.expired) > EXPIRE_EVERY {
            self.cluster.expire(at);
            self.expired = at;
        }
    }

    /// The pod of this index, which is told of it where it is to come in some seconds.
    fn pod(&mut self, object: &Arc<Object>, at: Timestamp) -> Option<PodId> {
        let Object::Pod(pod) = &**object else { return None };
        self.cluster.pod_by_uid(&pod.uid).or_else(|| {
            self.cluster.apply((**object).clone(), at);
            self.cluster.pod_by_uid(&pod.uid)
        })
    }
}

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
