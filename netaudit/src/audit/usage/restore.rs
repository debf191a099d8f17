//! How a run goes on from those before it.

use std::sync::Arc;

use foldhash::HashSet;

use super::{History, Resumed, Rows, RuleKey, RuleUsage, Run, RunKey, Slice, Watched, histories};
use crate::model::{Action, RuleId, Timestamp};

/// How long before its end a run may have told of a rule for the last time.
const LAST_WORD: std::time::Duration = std::time::Duration::from_secs(2);

/// What a new run begins with.
#[derive(Debug)]
pub struct Restored {
    /// What is known of each rule, for [`super::Usage::restore`].
    pub histories: Vec<(RuleKey, RuleUsage)>,
    /// Set where nothing has been missed since the last run.
    pub resumed: Option<Resumed>,
}

/// The number of a run whose store holds these rows: above all that are there. `wall_seconds` is for a store that holds none, so that a
/// store that was lost does not put the runs before it after those that come.
pub fn next_sequence(rows: &Rows, node: &str, wall_seconds: u64) -> u64 {
    let known = rows.runs.iter().filter(|(key, _)| *key.node == *node).map(|(_, run)| run.sequence).max();
    known.map_or(wall_seconds, |known| known.saturating_add(1))
}

/// What `stored` says to the run `key`, which begins as `run` says. `records_go_on` is whether everything since the last run's end
/// was recorded and is still to come; what was lost of it is counted by [`Run::losses`].
pub fn restore(mut stored: Rows, key: &RunKey, run: &Run, records_go_on: bool) -> Restored {
    stored.rules.retain(|row, _| row.run.node == key.node);
    stored.together.clear();
    stored.runs.retain(|other, _| other.node == key.node);
    let last = stored.runs.iter().max_by_key(|(_, run)| (run.sequence, run.written));
    let last = last.map(|(key, run)| (key.clone(), run.clone()));
    let resumed = last.filter(|(_, last)| records_go_on && last.ended && last.boot == run.boot).map(
        |(last_key, last)| Resumed {
            until: Timestamp(last.written.0.saturating_sub(last.line).saturating_add(run.line)),
            // Programs that were loaded anew count from nothing.
            lost: run.losses.checked_sub(last.losses).unwrap_or(run.losses),
            rules: watched_to_the_end(&stored, &last_key, &last),
        },
    );
    // So that it is known whether they ended before this one begins.
    stored.add_run(key.clone(), run.clone());
    let to_line = run.line.saturating_sub(run.wall);
    let histories = histories(&stored).rules.into_iter();
    let histories = histories.map(|history| (history.key.clone(), restored(&history, to_line, run.from)));
    Restored { histories: histories.collect(), resumed }
}

fn watched_to_the_end(rows: &Rows, key: &RunKey, run: &Run) -> HashSet<RuleKey> {
    let is_last = |(row_key, row): &(&super::RowKey, &super::Row)| {
        row_key.run == *key && row.current && row.until.plus(LAST_WORD) >= run.written
    };
    rows.rules.iter().filter(is_last).map(|(row_key, _)| row_key.rule.clone()).collect()
}

/// A history on the run's time line, which is `to_line` after the wall clock.
fn restored(history: &History, to_line: i64, now: Timestamp) -> RuleUsage {
    let rule = RuleId {
        policy: history.key.policy.clone(),
        direction: history.key.direction,
        hash: history.key.hash,
        index: history.index,
        // Told again by the policy, before anybody asks for it.
        action: Action::Allow,
        name: "".into(),
    };
    let elements = history.elements.iter().map(|(hash, (element, _))| (*hash, element.clone())).collect();
    let watched = Watched {
        rule: Arc::new(rule),
        summary: history.summary.clone(),
        elements,
        possible: history.possible,
        certain: true,
        observable: history.observable,
        schedule: history.schedule.shifted(to_line),
        here: false,
        selected: 0,
        observed: 0,
        elsewhere: 0,
    };
    let shift = |at: Timestamp| Timestamp(at.0.saturating_add(to_line));
    let slices = history.slices.iter();
    let slices = slices.map(|slice| Slice { from: shift(slice.from), until: shift(slice.until), ..*slice });
    let (uses, sole) = (history.uses.shifted(to_line), history.sole.shifted(to_line));
    RuleUsage::restored(&watched, &uses, sole.matches, slices.collect(), now)
}
