//! Rows put together: what all agents and all their runs know of each rule, on the wall clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{Row, RowKey, Rows, RuleKey, Run, RunKey, Schedule, Slice, Touched, Uses, push_slice};
use crate::{model::Timestamp, policy::Element};

/// How much later than others an agent may tell that a rule is there.
const LATE: Duration = Duration::from_secs(600);

/// By how much two readings of one clock may differ.
const CLOCK_NOISE: Duration = Duration::from_secs(1);

/// What is known of one rule.
#[derive(Clone, Debug)]
pub struct History {
    /// The rule.
    pub key: RuleKey,
    /// Its place in the policy, as last told.
    pub index: u32,
    /// What it allows, in one line.
    pub summary: Arc<str>,
    /// Whether its policy was there when an agent last told.
    pub current: bool,
    /// Whether any sensor can see what it allows.
    pub observable: bool,
    /// The CronJobs that it may be for, as last told.
    pub schedule: Schedule,
    /// Whether it can match anything at all.
    pub possible: bool,
    /// Flows that it had a part in.
    pub uses: Uses,
    /// Those of them that it alone decided.
    pub sole: Uses,
    /// Its elements, by their content.
    pub elements: BTreeMap<u64, (Element, Uses)>,
    /// With whom.
    pub touched: Touched,
    /// When it was watched, as far as that can be placed in time.
    pub slices: Vec<Slice>,
}

impl History {
    /// Since when it has been watched, perhaps with gaps; `None` where that cannot be placed in time.
    pub fn observed_since(&self) -> Option<Timestamp> {
        self.slices.iter().map(|slice| slice.from).min()
    }
}

/// What is known of all rules.
#[derive(Clone, Default, Debug)]
pub struct Histories {
    /// Up to when, on the wall clock: the last time that any agent told something.
    pub told: Option<Timestamp>,
    /// In order of policy, direction and place.
    pub rules: Vec<History>,
    /// Rules that matched the same flows.
    pub together: BTreeMap<BTreeSet<RuleKey>, Uses>,
}

/// What the rows say.
pub fn histories(rows: &Rows) -> Histories {
    let times = Times::new(&rows.runs);
    let mut rules: BTreeMap<&RuleKey, Vec<(&RowKey, &Row)>> = BTreeMap::new();
    for (key, row) in &rows.rules {
        rules.entry(&key.rule).or_default().push((key, row));
    }
    let mut rules: Vec<History> = rules.into_iter().map(|(key, rows)| history(key, &rows, &times)).collect();
    rules.sort_by(|a, b| {
        let place = |it: &History| (it.key.policy.clone(), it.key.direction, it.index, it.key.hash);
        place(a).cmp(&place(b))
    });
    let mut together: BTreeMap<BTreeSet<RuleKey>, Uses> = BTreeMap::new();
    for (key, uses) in &rows.together {
        together.entry(key.rules.clone()).or_default().plus(&uses.shifted(times.shift(&key.run)));
    }
    // A run from before a clock was set back would stand in the future.
    let placed = rows.runs.iter().filter(|(key, _)| times.is_placed(key));
    let told = placed.map(|(key, run)| times.wall(key, run.written)).max();
    Histories { told, rules, together }
}

fn history(key: &RuleKey, rows: &[(&RowKey, &Row)], times: &Times) -> History {
    let until = |(key, row): &(&RowKey, &Row)| times.wall(&key.run, row.until);
    let newest = rows.iter().map(until).max().unwrap_or(Timestamp::MIN);
    let latest = rows.iter().max_by_key(|it| (until(it), it.0));
    let mut last_words: BTreeMap<&RunKey, &(&RowKey, &Row)> = BTreeMap::new();
    for it in rows {
        let known = last_words.entry(&it.0.run).or_insert(it);
        if until(it) > until(known) {
            *known = it;
        }
    }
    let now = last_words.values().filter(|it| it.1.current && until(it).plus(LATE) >= newest);
    let mut schedule = Schedule::default();
    let mut current = false;
    for (key, row) in now {
        current = true;
        schedule.join(&row.schedule.shifted(times.shift(&key.run)));
    }
    let mut history = History {
        key: key.clone(),
        index: latest.map_or(0, |it| it.1.index),
        summary: latest.map_or_else(|| "".into(), |it| it.1.summary.clone()),
        current,
        observable: rows.iter().all(|it| it.1.observable),
        schedule,
        possible: latest.is_none_or(|it| it.1.possible),
        uses: Uses::default(),
        sole: Uses::default(),
        elements: latest.map_or_else(BTreeMap::new, |it| {
            let known = it.1.elements.iter();
            known.map(|(hash, (element, _))| (*hash, (element.clone(), Uses::default()))).collect()
        }),
        touched: Touched::default(),
        slices: Vec::new(),
    };
    for (key, row) in rows {
        let shift = times.shift(&key.run);
        history.uses.plus(&row.uses.shifted(shift));
        history.sole.plus(&row.sole.shifted(shift));
        history.touched.join(&row.touched);
        for (hash, (element, uses)) in &row.elements {
            let known = history.elements.entry(*hash).or_insert_with(|| (element.clone(), Uses::default()));
            known.1.plus(&uses.shifted(shift));
        }
        if times.is_placed(&key.run) {
            let slice = Slice {
                node: times.node(&key.run),
                from: times.wall(&key.run, row.from),
                until: times.wall(&key.run, row.until),
                watched: Duration::from_millis(row.watched_ms),
                selected: Duration::from_millis(row.selected_ms),
                observed: Duration::from_millis(row.observed_ms),
                lost: row.lost > 0,
                unjudged: row.unjudged > 0,
            };
            push_slice(&mut history.slices, slice);
        }
    }
    history
}

/// Where the time lines of runs lie on the wall clock.
struct Times {
    runs: BTreeMap<RunKey, Placed>,
    nodes: BTreeMap<Arc<str>, u32>,
}

#[derive(Clone, Copy)]
struct Placed {
    shift: i64,
    certain: bool,
}

impl Times {
    /// All runs of one boot lie on one line, the time since boot, and the wall clock of the last of them places it. From one boot to
    /// the next only the wall clock tells how much time passed. Where a run seems to have ended after a later one began, the
    /// clock was set back between: nobody knows how long nobody watched, so that run and those before it prove nothing.
    fn new(runs: &BTreeMap<RunKey, Run>) -> Self {
        let mut walls: BTreeMap<(&str, &str), (i64, i64)> = BTreeMap::new();
        let mut nodes: BTreeMap<Arc<str>, u32> = BTreeMap::new();
        for (key, run) in runs {
            let since_boot = run.written.0.saturating_sub(run.line);
            let wall = walls.entry((&key.node, &run.boot)).or_insert((since_boot, run.wall));
            *wall = (*wall).max((since_boot, run.wall));
            let next = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
            nodes.entry(key.node.clone()).or_insert(next);
        }
        let shift = |key: &RunKey, run: &Run| {
            walls.get(&(&*key.node, &*run.boot)).map_or(0, |(_, wall)| wall.saturating_sub(run.line))
        };
        let mut in_order: Vec<(&RunKey, &Run)> = runs.iter().collect();
        in_order.sort_by_key(|(key, run)| (&key.node, run.sequence, run.from, *key));
        let mut placed = BTreeMap::new();
        let mut later: Option<(&str, Timestamp, bool)> = None;
        for (key, run) in in_order.into_iter().rev() {
            let shift = shift(key, run);
            let [from, until] = [run.from, run.written].map(|at| Timestamp(at.0.saturating_add(shift)));
            let certain = match later {
                Some((node, began, certain)) if *node == *key.node => {
                    certain && until <= began.plus(CLOCK_NOISE)
                }
                _ => true,
            };
            later = Some((&key.node, from, certain));
            placed.insert(key.clone(), Placed { shift, certain });
        }
        Self { runs: placed, nodes }
    }

    fn shift(&self, run: &RunKey) -> i64 {
        self.runs.get(run).map_or(0, |placed| placed.shift)
    }

    /// A time of a run on the wall clock.
    fn wall(&self, run: &RunKey, at: Timestamp) -> Timestamp {
        Timestamp(at.0.saturating_add(self.shift(run)))
    }

    fn is_placed(&self, run: &RunKey) -> bool {
        self.runs.get(run).is_some_and(|placed| placed.certain)
    }

    fn node(&self, run: &RunKey) -> u32 {
        self.nodes.get(&run.node).copied().unwrap_or(u32::MAX)
    }
}
