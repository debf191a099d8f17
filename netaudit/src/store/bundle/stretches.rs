//! Of what time a bundle's tables are complete, so that whoever reads it unpacked is told what is missing as from the store.

use std::collections::BTreeMap;

use crate::{
    model::Timestamp,
    store::flows::{files, segment::Mark},
};

const HOUR_NS: i64 = 3_600_000_000_000;

/// A stretch of one hour.
pub struct Stretch {
    pub hour: i64,
    pub mark: Mark,
}

/// What marks tell of the time from `from` until `until`, in pieces of an hour at most: readers look for what a file tells
/// near its hour. Where nothing was lost, pieces that meet are one. Of a piece of a stretch in which something was lost it is
/// said that all of that was.
pub fn stretches(marks: &[Mark], from: Timestamp, until: Timestamp) -> Vec<Stretch> {
    let mut of_run: BTreeMap<(&str, &str), Vec<Mark>> = BTreeMap::new();
    for mark in marks {
        let (begin, end) = (mark.from.max(from), mark.until.min(until));
        if begin < end || (begin == end && !is_whole(mark)) {
            let within = Mark { from: begin, until: end, ..mark.clone() };
            of_run.entry((&mark.node, &mark.run)).or_default().push(within);
        }
    }
    // A node that is known and was not watched then: that is missing, and is to be told.
    for mark in marks {
        if !of_run.keys().any(|(node, _)| *node == mark.node) {
            let nothing = Mark { from, until: from, lost_before: 0, lost_after: 0, ..mark.clone() };
            of_run.insert((&mark.node, &mark.run), vec![nothing]);
        }
    }
    let mut pieces = Vec::new();
    for (_, mut marks) in of_run {
        marks.sort_by_key(|mark| (mark.from, mark.until));
        let mut joined: Vec<Mark> = Vec::new();
        for mark in marks {
            match joined.last_mut() {
                Some(last) if is_whole(last) && is_whole(&mark) && mark.from <= last.until => {
                    last.until = last.until.max(mark.until);
                }
                _ => joined.push(mark),
            }
        }
        joined.iter().for_each(|mark| pieces.extend(by_hour(mark)));
    }
    pieces
}

fn is_whole(mark: &Mark) -> bool {
    mark.lost() == 0
}

fn by_hour(mark: &Mark) -> Vec<Stretch> {
    let mut pieces = Vec::new();
    let mut from = mark.from;
    loop {
        let hour = files::hour_of(from);
        let end = Timestamp((hour + 1).saturating_mul(HOUR_NS)).min(mark.until);
        pieces.push(Stretch { hour, mark: Mark { from, until: end, ..mark.clone() } });
        if end >= mark.until {
            return pieces;
        }
        from = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_an_hour_long_and_keep_what_was_lost() {
        let mark = |run: &str, from: i64, until: i64, lost: (u64, u64)| Mark {
            version: 1,
            node: "node".to_owned(),
            run: run.to_owned(),
            number: 1,
            from: Timestamp::from_seconds(from),
            until: Timestamp::from_seconds(until),
            lost_before: lost.0,
            lost_after: lost.1,
            kernel_lost: 0,
            holes: false,
        };
        let marks = [
            mark("b", 3_000, 4_000, (2, 5)),
            mark("a", 0, 300, (0, 0)),
            mark("a", 300, 7_300, (0, 0)),
            mark("a", 7_400, 7_500, (0, 0)),
            mark("a", 9_000, 9_900, (0, 0)),
            Mark { node: "idle".to_owned(), ..mark("c", 9_900, 9_950, (0, 1)) },
        ];
        let (from, until) = (Timestamp::from_seconds(100), Timestamp::from_seconds(9_000));
        let seconds = |time: Timestamp| time.0 / 1_000_000_000;
        let found = stretches(&marks, from, until);
        let found: Vec<_> = found
            .iter()
            .map(|it| {
                (&*it.mark.run, it.hour, seconds(it.mark.from), seconds(it.mark.until), it.mark.lost_after)
            })
            .collect();
        assert_eq!(
            found,
            [
                ("c", 0, 100, 100, 0),
                ("a", 0, 100, 3_600, 0),
                ("a", 1, 3_600, 7_200, 0),
                ("a", 2, 7_200, 7_300, 0),
                ("a", 2, 7_400, 7_500, 0),
                ("b", 0, 3_000, 3_600, 5),
                ("b", 1, 3_600, 4_000, 5),
            ]
        );
    }
}
