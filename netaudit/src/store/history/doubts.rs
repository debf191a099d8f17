//! Why what a run knew at a time may not be what was.

use super::state::Run;
use crate::{
    model::Timestamp,
    store::flows::{Coverage, Gap, lost, segment::Mark},
};

/// How long after a mark was written a segment may have more than it says.
const MARKS_APART: std::time::Duration = std::time::Duration::from_secs(15);

/// What is known of the time that a run wrote.
fn of_run<'a>(marks: &'a [Mark], run: &Run) -> impl Iterator<Item = &'a Mark> {
    marks.iter().filter(|mark| mark.node == run.node && mark.run == run.run)
}

/// From when on the history of a run's node says everything; `None` where nothing of it has been folded.
pub fn begins(marks: &[Mark], run: &Run) -> Option<Timestamp> {
    marks.iter().filter(|mark| mark.node == run.node && mark.number == 0).map(|mark| mark.from).max()
}

/// Until when a run was heard of, where that is well before `at`: it may have stopped to listen by then.
pub fn stopped(marks: &[Mark], run: &Run, at: Timestamp) -> Option<Timestamp> {
    let reached = of_run(marks, run).filter(|mark| mark.from <= at).map(|mark| mark.until).max()?;
    (at.since(reached) > MARKS_APART).then_some(reached)
}

/// What is not certain of what a run knew at a time, in sentences: nobody wrote it down then, or a part of it is missing.
pub fn doubts(marks: &[Mark], run: &Run, at: Timestamp) -> Vec<String> {
    let stopped = stopped(marks, run, at).map(|reached| {
        format!("changes of objects are unknown since {reached}: no agent wrote them down on {}", run.node)
    });
    stopped.into_iter().chain(missing(marks, run, at)).collect()
}

/// Times until then, or until the last that is known, of which nothing is there that a run wrote.
pub(in crate::store) fn gaps(marks: &[Mark], node: &str, run: &str, until: Option<Timestamp>) -> Vec<Gap> {
    let is_before = |mark: &Mark| until.is_none_or(|until| mark.from <= until);
    let of_run = marks.iter().filter(|mark| mark.node == node && mark.run == run && is_before(mark));
    Coverage::of(&of_run.cloned().collect::<Vec<_>>(), None, until).gaps
}

/// What is missing of what a run wrote until a time, in sentences. An object that changed then may be told as it was before.
pub fn missing(marks: &[Mark], run: &Run, at: Timestamp) -> Vec<String> {
    let written: Vec<&Mark> = of_run(marks, run).filter(|mark| mark.from <= at).collect();
    let reached = written.iter().map(|mark| mark.until).max().map(|reached| reached.min(at));
    let mut said = Vec::new();
    for gap in gaps(marks, &run.node, &run.run, reached) {
        said.push(format!(
            "what {} wrote down of objects from {} until {} is not there: it was damaged, removed, or never written",
            run.node, gap.from, gap.until
        ));
    }
    if written.iter().any(|mark| mark.holes) {
        said.push(format!("a part of what {} wrote down of objects long before that is not there", run.node));
    }
    match lost(written) {
        0 => {}
        lost => said.push(format!("{lost} changes of objects were lost on {} before that", run.node)),
    }
    said
}
