//! What was known at a time, from the history: of a run all objects, bindings, and what had just gone.

use std::{collections::BTreeMap, time::Duration};

use super::{
    BINDING, Verb,
    doubts::{begins, doubts},
    parts::Parts,
    read::{Change, Key, Read, Wanted, read},
};
use crate::{cluster::Kind, model::Timestamp};

/// How long after a flow its pod's object may come: the agent waits for it before it judges.
pub const HELD: Duration = Duration::from_secs(15);

/// An agent run, as its history tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Its node.
    pub node: String,
    /// Its name, as in flow ids.
    pub run: String,
    /// Its first row that is kept.
    pub first: Timestamp,
    /// When each kind had been listed.
    pub listed: BTreeMap<String, Timestamp>,
}

impl Run {
    /// When all kinds had been listed that verdicts hang on: from then on everything is known. `None` where that never was.
    pub fn complete(&self) -> Option<Timestamp> {
        let needed = Kind::ALL.into_iter().filter(|kind| kind.changes_verdicts());
        needed
            .map(|kind| self.listed.get(kind.as_str()).copied())
            .try_fold(self.first, |latest, at| Some(latest.max(at?)))
    }

    /// Kinds that were not listed, of those that verdicts hang on.
    pub fn missing(&self) -> Vec<Kind> {
        let needed = Kind::ALL.into_iter().filter(|kind| kind.changes_verdicts());
        needed.filter(|kind| !self.listed.contains_key(kind.as_str())).collect()
    }
}

/// All runs that these tell of, the earliest first.
///
/// # Errors
///
/// A store cannot be listed.
pub fn runs(parts: &Parts) -> anyhow::Result<(Vec<Run>, Read)> {
    let mut runs: BTreeMap<(String, String), Run> = BTreeMap::new();
    let wanted = Wanted { is_bare: true, ..Wanted::default() };
    let found = read(parts, wanted, &mut |change| {
        let key = (change.node.clone(), change.run.clone());
        let run = runs.entry(key).or_insert_with(|| Run {
            node: change.node.clone(),
            run: change.run.clone(),
            first: change.time,
            listed: BTreeMap::new(),
        });
        run.first = run.first.min(change.time);
        if change.verb == Verb::Listed {
            let at = run.listed.entry(change.kind).or_insert(change.time);
            *at = change.time.min(*at);
        }
        Ok(())
    })?;
    let mut runs: Vec<Run> = runs.into_values().collect();
    runs.sort_by(|a, b| (a.first, &a.run).cmp(&(b.first, &b.run)));
    Ok((runs, found))
}

/// Of each node the run that knew everything at a time: the last one that had listed all kinds by then.
pub fn in_effect(runs: &[Run], at: Timestamp) -> Vec<&Run> {
    let mut of_node: BTreeMap<&str, (Timestamp, &Run)> = BTreeMap::new();
    for run in runs {
        if let Some(complete) = run.complete().filter(|complete| *complete <= at) {
            let known = of_node.entry(&run.node).or_insert((complete, run));
            if complete > known.0 {
                *known = (complete, run);
            }
        }
    }
    of_node.into_values().map(|(_, run)| run).collect()
}

/// The last that is known of a thing.
#[derive(Clone, Debug)]
struct Known {
    order: (Timestamp, u64),
    verb: Verb,
    time: Timestamp,
    /// The last change that says what it is like, or of a binding whose it is.
    shown: Option<Change>,
    /// Of a binding: whose ended since that one, and when.
    ended: Vec<(String, (Timestamp, u64))>,
}

/// What a run knew at a time.
#[derive(Debug)]
pub struct State {
    /// The time.
    pub at: Timestamp,
    things: BTreeMap<Key, Known>,
    /// What the reading came upon.
    pub read: Read,
}

impl State {
    /// What `run` knew at `at`, of these kinds, or of all.
    ///
    /// # Errors
    ///
    /// A store cannot be listed.
    pub fn of(parts: &Parts, run: &Run, at: Timestamp, kinds: &[&str]) -> anyhow::Result<Self> {
        let mut things: BTreeMap<Key, Known> = BTreeMap::new();
        let wanted = Wanted { until: Some(at), run: Some(&run.run), kinds, is_bare: false };
        let read = read(parts, wanted, &mut |change| {
            if change.verb != Verb::Listed {
                note(&mut things, change);
            }
            Ok(())
        })?;
        Ok(Self { at, things, read })
    }

    /// What was there.
    pub fn present(&self) -> impl Iterator<Item = &Change> {
        self.things.values().filter(|known| known.verb != Verb::Deleted).filter_map(|it| it.shown.as_ref())
    }

    /// What was there or had been gone for no longer than this, with when it went.
    pub fn gone(&self, within: Duration) -> impl Iterator<Item = (&Change, Timestamp)> {
        let since = self.at.minus(within);
        let gone = self.things.values().filter(move |it| it.verb == Verb::Deleted && it.time >= since);
        gone.filter_map(|known| Some((known.shown.as_ref()?, known.time)))
    }

    /// A thing that was there.
    pub fn get(&self, key: &Key) -> Option<&Change> {
        self.things.get(key).filter(|known| known.verb != Verb::Deleted)?.shown.as_ref()
    }

    /// From when on the history of the run's node says everything: what was before has been folded.
    pub fn begins(&self, run: &Run) -> Option<Timestamp> {
        begins(&self.read.marks, run)
    }

    /// What is not certain, in sentences.
    pub fn doubts(&self, run: &Run) -> Vec<String> {
        doubts(&self.read.marks, run, self.at)
    }
}

fn note(things: &mut BTreeMap<Key, Known>, change: Change) {
    let (order, verb, time) = (change.order(), change.verb, change.time);
    let known = things.entry(change.key()).or_insert_with(|| Known {
        order: (Timestamp::MIN, 0),
        verb,
        time,
        shown: None,
        ended: Vec::new(),
    });
    if change.kind == BINDING {
        return known.bind(change);
    }
    let is_later = order >= known.order;
    if is_later {
        (known.order, known.verb, known.time) = (order, verb, time);
    }
    if change.content.is_some() && known.shown.as_ref().is_none_or(|shown| change.order() >= shown.order()) {
        known.shown = Some(change);
    }
}

impl Known {
    /// The address is another pod's, or one's no more. Records come late: the end of a pod's that is told first is not that of the pod
    /// that has had it since before then.
    fn bind(&mut self, change: Change) {
        if change.verb == Verb::Deleted {
            let order = change.order();
            self.ended.push((change.uid, order));
        } else if self.shown.as_ref().is_none_or(|shown| change.order() >= shown.order()) {
            self.shown = Some(change);
        }
        let Some(shown) = &self.shown else { return };
        self.ended.retain(|(_, order)| *order > shown.order());
        let end = self.ended.iter().filter(|(uid, _)| *uid == shown.uid).map(|(_, (at, _))| *at).max();
        (self.verb, self.time) = end.map_or((shown.verb, shown.time), |end| (Verb::Deleted, end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_ones_address_is_not_the_end_of_anothers() {
        let binding = |sequence, verb, uid: &str, seconds| Change {
            time: Timestamp::from_seconds(seconds),
            node: "n".to_owned(),
            run: "r".to_owned(),
            sequence,
            verb,
            kind: BINDING.to_owned(),
            namespace: "shop".to_owned(),
            name: uid.to_owned(),
            uid: uid.to_owned(),
            resource_version: String::new(),
            address: "10.0.0.7".parse().ok(),
            content: None,
        };
        let told = [
            binding(1, Verb::Applied, "a", 10),
            binding(2, Verb::Deleted, "a", 20),
            // It had the address before the other's end was told, and its record came later.
            binding(3, Verb::Applied, "b", 15),
            binding(4, Verb::Deleted, "b", 40),
        ];
        // Files are read in no order.
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]] {
            for (many, expected) in [(1, Some("a")), (2, None), (3, Some("b")), (4, None)] {
                let mut things = BTreeMap::new();
                order.iter().filter(|it| **it < many).for_each(|it| note(&mut things, told[*it].clone()));
                let state = State { at: Timestamp::from_seconds(60), things, read: Read::default() };
                let holds = state.present().map(|change| change.uid.as_str()).next();
                assert_eq!(holds, expected, "the first {many}, in order {order:?}");
                let gone = state.gone(Duration::from_secs(60)).next().map(|(_, at)| at.0 / 1_000_000_000);
                assert_eq!(gone, [None, Some(20), None, Some(40)][many - 1]);
            }
        }
    }

    #[test]
    fn what_changes_no_verdict_is_not_waited_for() {
        let at = |seconds| Timestamp::from_seconds(seconds);
        let listed = Kind::ALL.into_iter().map(|kind| (kind.as_str().to_owned(), at(5))).collect();
        let mut run = Run { node: "n".into(), run: "r".into(), first: at(1), listed };
        assert_eq!((run.complete(), run.missing()), (Some(at(5)), vec![]));
        run.listed.insert(Kind::Pod.as_str().to_owned(), at(7));
        run.listed.insert(Kind::CronJob.as_str().to_owned(), at(3_600));
        assert_eq!(run.complete(), Some(at(7)), "the policies of an hour later decided nothing");
        run.listed.remove(Kind::CronJob.as_str());
        assert_eq!((run.complete(), run.missing()), (Some(at(7)), vec![]));
        run.listed.remove(Kind::NetworkPolicy.as_str());
        assert_eq!((run.complete(), run.missing()), (None, vec![Kind::NetworkPolicy]));
    }
}
