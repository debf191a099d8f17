//! Whether anything is missing in what was asked for.

use std::collections::{BTreeMap, BTreeSet};

use super::segment::Mark;
use crate::model::Timestamp;

/// How far apart the end of one stretch and the beginning of the next may be: stretches of one run, and of runs that go on
/// from one another, meet exactly.
const NOISE_NS: i64 = 1_000_000;

/// A time in which a node's flows were not recorded, as far as anything in the store tells.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize, Debug)]
pub struct Gap {
    /// Which node.
    pub node: String,
    /// From when on.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
}

/// What is known of what is missing between two times.
#[derive(Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, Debug)]
pub struct Coverage {
    /// Nodes that anything is known of.
    pub nodes: Vec<String>,
    /// When they were not watched.
    pub gaps: Vec<Gap>,
    /// Records that were lost, by node: those of every stretch of which a part was asked for.
    pub lost: BTreeMap<String, u64>,
}

/// Records that were lost, as stretches of one node tell. Files of two hours, and copies of one store, tell of one loss more
/// than once: a run's counter was the same before and after.
pub fn lost<'a>(marks: impl IntoIterator<Item = &'a Mark>) -> u64 {
    let marks = marks.into_iter().map(|mark| (&*mark.run, mark.lost_before, mark.lost_after));
    let different: BTreeSet<(&str, u64, u64)> = marks.collect();
    different.into_iter().map(|(_, before, after)| after.saturating_sub(before)).sum()
}

impl Coverage {
    /// What stretches of time, each complete but for what it says is lost, tell of the time from `from` until `until`. Where
    /// nothing limits that time, it is as long as what is known.
    pub fn of(marks: &[Mark], from: Option<Timestamp>, until: Option<Timestamp>) -> Self {
        let mut nodes: BTreeMap<&str, Vec<&Mark>> = BTreeMap::new();
        for mark in marks {
            nodes.entry(&mark.node).or_default().push(mark);
        }
        let mut coverage =
            Self { nodes: nodes.keys().map(|node| (*node).to_owned()).collect(), ..Self::default() };
        for (node, mut marks) in nodes {
            marks.sort_by_key(|mark| (mark.from, mark.until));
            let first = marks.first().map_or(Timestamp::MAX, |mark| mark.from);
            let last = marks.iter().map(|mark| mark.until).max().unwrap_or(Timestamp::MIN);
            let (from, until) = (from.unwrap_or(first), until.unwrap_or(last));
            let mut reached = from;
            marks.retain(|mark| mark.until > from && mark.from < until);
            let lost = lost(marks.iter().copied());
            for mark in marks {
                // Of a stretch without length nothing is known but what was lost.
                if mark.from < mark.until {
                    coverage.gap(node, reached, mark.from);
                    reached = reached.max(mark.until);
                }
            }
            coverage.gap(node, reached, until);
            // Of a time after all that is known, and without an end, it is known that nothing is.
            coverage.gap(node, until, from);
            if lost > 0 {
                coverage.lost.insert(node.to_owned(), lost);
            }
        }
        coverage
    }

    fn gap(&mut self, node: &str, from: Timestamp, until: Timestamp) {
        if until.0.saturating_sub(from.0) > NOISE_NS {
            self.gaps.push(Gap { node: node.to_owned(), from, until });
        }
    }

    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        !self.nodes.is_empty() && self.gaps.is_empty() && self.lost.is_empty()
    }

    /// In sentences, one a line.
    pub fn sentences(&self) -> Vec<String> {
        if self.nodes.is_empty() {
            return vec!["nothing is known of this time: no node recorded it here".to_owned()];
        }
        let lost = self.lost.iter().map(|(node, lost)| {
            let records = if *lost == 1 { "1 record was".to_owned() } else { format!("{lost} records were") };
            format!("{records} lost on {node}")
        });
        let gaps = self.gaps.iter().map(|gap| {
            format!(
                "nothing was recorded on {} from {} until {}",
                gap.node,
                gap.from.to_the_second(),
                gap.until.to_the_second()
            )
        });
        let mut said: Vec<String> = lost.chain(gaps).collect();
        if said.is_empty() {
            said.push(format!("complete: no record was lost on {}", self.nodes.join(", ")));
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(node: &str, from: i64, until: i64, lost: (u64, u64)) -> Mark {
        Mark {
            version: 1,
            node: node.to_owned(),
            run: "run".to_owned(),
            number: 1,
            from: Timestamp::from_seconds(from),
            until: Timestamp::from_seconds(until),
            lost_before: lost.0,
            lost_after: lost.1,
            kernel_lost: 0,
            holes: false,
        }
    }

    fn said(marks: &[Mark], from: i64, until: i64) -> Vec<String> {
        let time = |seconds| Some(Timestamp::from_seconds(seconds));
        Coverage::of(marks, time(from), time(until)).sentences()
    }

    #[test]
    fn what_nobody_recorded_is_said_and_what_was_lost() {
        let marks = [
            mark("b", 0, 100, (0, 0)),
            mark("a", 0, 300, (3, 3)),
            mark("a", 300, 400, (3, 5)),
            mark("b", 150, 400, (0, 0)),
        ];
        assert_eq!(said(&marks, 10, 90), ["complete: no record was lost on a, b"]);
        assert_eq!(
            said(&marks, 50, 350),
            [
                "2 records were lost on a",
                "nothing was recorded on b from 1970-01-01T00:01:40Z until 1970-01-01T00:02:30Z"
            ]
        );
        assert_eq!(said(&marks, 160, 300), ["complete: no record was lost on a, b"]);
        assert_eq!(
            said(&marks, 390, 500),
            [
                "2 records were lost on a",
                "nothing was recorded on a from 1970-01-01T00:06:40Z until 1970-01-01T00:08:20Z",
                "nothing was recorded on b from 1970-01-01T00:06:40Z until 1970-01-01T00:08:20Z"
            ]
        );
        assert_eq!(said(&[], 0, 1), ["nothing is known of this time: no node recorded it here"]);
        assert!(Coverage::of(&marks[1..2], None, None).is_complete());
        let later = Coverage::of(&marks[1..2], Some(Timestamp::from_seconds(500)), None);
        assert_eq!(
            later.sentences(),
            ["nothing was recorded on a from 1970-01-01T00:05:00Z until 1970-01-01T00:08:20Z"]
        );
    }

    #[test]
    fn one_loss_that_is_told_twice_is_one() {
        // The files of two hours that one segment became, a copy of one, and a stretch without length.
        let marks =
            [(0, 100, (0, 4)), (0, 100, (0, 4)), (100, 200, (4, 5)), (150, 150, (5, 5)), (200, 300, (5, 5))];
        let marks = marks.map(|(from, until, lost)| mark("a", from, until, lost));
        assert_eq!(said(&marks, 0, 300), ["5 records were lost on a"]);
        assert_eq!(said(&marks, 0, 50), ["4 records were lost on a"]);
        assert_eq!(said(&marks, 220, 300), ["complete: no record was lost on a"]);
    }
}
