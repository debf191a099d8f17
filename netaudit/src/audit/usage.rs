//! How often each rule allowed something, since when it was watched, and how much of what it selects was watched.
//!
//! ```text
//! watch, tick, credit, keep, doubt, lost ──► Usage: the window of now ──rows──► Rows ──merge──► Rows of many agents
//!                                               │ at its end                                       │
//!                                               └─► closed rows, for whoever stores them           └─► histories, findings
//! ```

mod cover;
mod evidence;
mod findings;
mod history;
mod live;
mod restore;
mod row;
mod tally;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use foldhash::{HashMap, HashSet};

pub(crate) use cover::ranges;
use evidence::push_slice;
pub use evidence::{Coverage, Evidence, Lack, MOST_KEPT, Missing, Schedule, Slice, coverage, unused_since};
pub use findings::{BroadPart, Enough, Judgement, RuleFinding, Severity, judge};
pub use history::{Histories, History, histories};
pub use live::RuleUsage;
pub use restore::{Restored, next_sequence, restore};
pub use row::{Row, RowKey, Rows, Run, RunKey, TogetherKey, Touched, Uses};

use tally::{Tallies, Tally};

use crate::{
    model::{Direction, PolicyId, Protocol, RuleId, RuleMatch, Timestamp, Verdict},
    policy::Element,
};

/// Windows that one step of time may pass; of a longer one the rest is in the last.
const MOST_WINDOWS: usize = 1_000;

/// A rule's identity: policy, direction and content hash. Today's position is not part of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleKey {
    /// The policy that holds the rule.
    pub policy: Arc<PolicyId>,
    /// The direction that it allows.
    pub direction: Direction,
    /// [`RuleId::hash`].
    pub hash: u64,
}

impl From<&RuleId> for RuleKey {
    fn from(rule: &RuleId) -> Self {
        Self { policy: rule.policy.clone(), direction: rule.direction, hash: rule.hash }
    }
}

/// A rule that is to be watched, and how many pods it selects right now.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The rule with its position of today.
    pub rule: Arc<RuleId>,
    /// What it allows, in one line.
    pub summary: Arc<str>,
    /// Whether it can match anything at all.
    pub possible: bool,
    /// Whether it is certain whom its policy selects and what it means. Otherwise what it allows is not known, and so not whether
    /// it was used.
    pub certain: bool,
    /// Its elements with the hashes of their content: those of `from` or `to`, then those of `ports`.
    pub elements: Arc<[(u64, Element)]>,
    /// Whether any sensor can see what it allows; none sees SCTP.
    pub observable: bool,
    /// The CronJobs that it may be for, on the time line of the run.
    pub schedule: Schedule,
    /// Whether it concerns this agent. Otherwise it is only watched on where it did before.
    pub here: bool,
    /// Running pods that its policy selects, as far as this agent is responsible for them.
    pub selected: usize,
    /// Those of them whose flows this agent sees.
    pub observed: usize,
    /// Other pods of the cluster that its policy selects.
    pub elsewhere: usize,
}

/// The other end of a flow, and its port: what a rule's use is compared with to say that the rule is broad.
#[derive(Clone, Copy, Debug)]
pub struct OtherEnd<'a> {
    /// Namespace and workload, where it is a pod.
    pub workload: Option<&'a (Arc<str>, Arc<str>)>,
    /// Its address.
    pub address: IpAddr,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The destination's port.
    pub port: u16,
}

/// What an earlier run of this node's agent left, which this one goes on from.
#[derive(Clone, Debug)]
pub struct Resumed {
    /// Until when it watched, on this run's time line.
    pub until: Timestamp,
    /// Records that were lost since.
    pub lost: u64,
    /// The rules that it watched at its end.
    pub rules: HashSet<RuleKey>,
}

/// The use of every rule that was ever watched by this agent run, and what is known from those before it.
#[derive(Debug)]
pub struct Usage {
    run: RunKey,
    window: Duration,
    rules: HashMap<RuleKey, RuleUsage>,
    /// Those of the rules.
    policies: HashSet<Arc<PolicyId>>,
    /// What the rules have not been told of yet.
    tallies: Tallies,
    together: HashMap<BTreeSet<RuleKey>, Uses>,
    /// Those of this window.
    doubts: Doubts,
    lost: u64,
    resumed: Option<Resumed>,
    ticked: Option<Timestamp>,
    closed: Vec<Rows>,
    most_series: usize,
    without_series: usize,
}

/// Flows without a verdict, by who could have allowed them.
#[derive(Default, Debug)]
struct Doubts {
    of_policies: HashMap<(Arc<PolicyId>, Direction), u64>,
    /// How often it could not be seen whether a rule was used.
    of_rules: HashMap<RuleKey, u64>,
    of_anybody: u64,
}

impl Doubts {
    /// Those that a rule may have allowed.
    fn of(&self, key: &RuleKey) -> u64 {
        let of_policy = self.of_policies.get(&(key.policy.clone(), key.direction)).copied().unwrap_or(0);
        let of_rule = self.of_rules.get(key).copied().unwrap_or(0);
        of_policy.saturating_add(of_rule).saturating_add(self.of_anybody)
    }
}

impl Default for Usage {
    fn default() -> Self {
        Self::new(RunKey { node: "".into(), run: "".into() }, Duration::from_secs(3_600))
    }
}

impl Usage {
    /// Knows no rule yet. Windows are `window` long.
    pub fn new(run: RunKey, window: Duration) -> Self {
        Self {
            run,
            window,
            rules: HashMap::default(),
            policies: HashSet::default(),
            tallies: Tallies::default(),
            together: HashMap::default(),
            doubts: Doubts::default(),
            lost: 0,
            resumed: None,
            ticked: None,
            closed: Vec::new(),
            most_series: usize::MAX,
            without_series: 0,
        }
    }

    /// No more than so many rules have series.
    pub fn with_series(self, most_series: usize) -> Self {
        Self { most_series, ..self }
    }

    /// Goes on from what earlier runs have told, before anything is watched. `resumed` is set where no time has passed
    /// unseen since: what was recorded meanwhile is still to come.
    pub fn restore(&mut self, histories: Vec<(RuleKey, RuleUsage)>, resumed: Option<Resumed>) {
        self.policies.extend(histories.iter().map(|(key, _)| key.policy.clone()));
        self.rules.extend(histories);
        self.lost += resumed.as_ref().map_or(0, |resumed| resumed.lost);
        self.resumed = resumed;
    }

    /// The rules to watch from `now` on. Those that are missing keep their history and are no longer current.
    pub fn watch(&mut self, watched: impl IntoIterator<Item = Watched>, now: Timestamp) {
        self.tick(now);
        self.settle();
        let mut seen: HashSet<RuleKey> = HashSet::default();
        for rule in watched {
            let key = RuleKey::from(&*rule.rule);
            if !rule.here && !self.rules.contains_key(&key) {
                continue;
            }
            self.policies.insert(key.policy.clone());
            let usage = self.rules.entry(key.clone()).or_insert_with(|| RuleUsage::new(&rule, now));
            let is_first = seen.insert(key);
            // Two identical rules of one policy share an identity: the first position is shown.
            if is_first || rule.rule.index < usage.rule.index {
                usage.watch(&rule, now);
            }
        }
        // Nothing can match the others now, which is known and so no gap.
        let gone = self.rules.iter_mut().filter(|(key, _)| !seen.contains(*key));
        gone.for_each(|(_, usage)| usage.leave());
        self.give_series();
    }

    /// Whoever has a series keeps it while it is current; room that is left goes to the others.
    fn give_series(&mut self) {
        let mut room = self.most_series;
        let mut others: Vec<&mut RuleUsage> = Vec::new();
        for usage in self.rules.values_mut() {
            usage.has_series &= usage.current;
            if usage.has_series {
                room = room.saturating_sub(1);
            } else if usage.current {
                others.push(usage);
            }
        }
        // In an order of their own, so that agents that know the same rules show the same ones.
        others.sort_unstable_by(|a, b| place(a).cmp(&place(b)));
        self.without_series = others.len().saturating_sub(room);
        others.into_iter().take(room).for_each(|usage| usage.has_series = true);
    }

    /// Current rules that have no series, as there are too many.
    pub fn without_series(&self) -> usize {
        self.without_series
    }

    /// All objects are known: what was recorded since an earlier run's end can be judged, so that time counts as watched.
    pub fn resume(&mut self) {
        let Some(resumed) = self.resumed.take() else { return };
        for (key, usage) in &mut self.rules {
            if resumed.rules.contains(key) {
                usage.resume(resumed.until);
            }
        }
    }

    /// Adds the time since the last call to the pod-seconds of every rule. Windows that end in it are closed.
    pub fn tick(&mut self, now: Timestamp) {
        let Some(mut last) = self.ticked else {
            self.ticked = Some(now);
            return;
        };
        for _ in 0..MOST_WINDOWS {
            let end = self.window_of(last).plus(self.window);
            if now < end {
                break;
            }
            self.pass(last, end);
            last = end;
            self.close(end);
        }
        self.pass(last, now);
    }

    fn pass(&mut self, last: Timestamp, now: Timestamp) {
        // A line that steps back is none of ours: nothing passes until it is where it was.
        if now > last {
            self.rules.values_mut().for_each(|usage| usage.pass(now.since(last), now));
            self.ticked = Some(now);
        }
    }

    /// The window that holds this time begins then.
    fn window_of(&self, at: Timestamp) -> Timestamp {
        let length = i64::try_from(self.window.as_nanos()).unwrap_or(i64::MAX).max(1);
        Timestamp(at.0.div_euclid(length).saturating_mul(length))
    }

    fn close(&mut self, end: Timestamp) {
        let rows = self.rows_of(self.window_of(Timestamp(end.0 - 1)));
        self.closed.push(rows);
        let (lost, doubts) = (self.lost, std::mem::take(&mut self.doubts));
        self.lost = 0;
        self.together.clear();
        for (key, usage) in &mut self.rules {
            usage.close(end, lost > 0, doubts.of(key) > 0);
        }
    }

    /// Forgets what is older than `age`: slices, and rules that have not been there for as long.
    pub fn forget(&mut self, now: Timestamp, age: Duration) {
        self.rules.retain(|_, usage| usage.forget(now, age));
        self.policies = self.rules.keys().map(|key| key.policy.clone()).collect();
    }

    /// Windows that have ended, each handed out once.
    pub fn take_closed(&mut self) -> Vec<Rows> {
        std::mem::take(&mut self.closed)
    }

    /// The rows of the window that goes on, as of the last [`Usage::tick`].
    pub fn rows(&mut self) -> Rows {
        self.settle();
        self.ticked.map(|ticked| self.rows_of(self.window_of(ticked))).unwrap_or_default()
    }

    /// Whether a rule of this policy is watched, or was.
    pub fn knows(&self, policy: &Arc<PolicyId>) -> bool {
        self.policies.contains(policy)
    }

    /// Which run this is.
    pub fn run(&self) -> &RunKey {
        &self.run
    }

    fn rows_of(&mut self, window: Timestamp) -> Rows {
        self.settle();
        let mut rows = Rows::default();
        for (key, usage) in &self.rules {
            let unjudged = self.doubts.of(key);
            if let Some(row) = usage.row(self.lost, unjudged) {
                rows.rules.insert(RowKey { rule: key.clone(), run: self.run.clone(), window }, row);
            }
        }
        for (rules, uses) in &self.together {
            let key = TogetherKey { rules: rules.clone(), run: self.run.clone(), window };
            rows.together.insert(key, *uses);
        }
        rows
    }

    /// So many records were lost: any rule may have been used by them.
    pub fn lost(&mut self, count: u64) {
        self.lost = self.lost.saturating_add(count);
    }

    /// So many flows have no verdict: a rule of these policies for that direction may have allowed them.
    pub fn doubt(
        &mut self,
        policies: impl IntoIterator<Item = Arc<PolicyId>>,
        direction: Direction,
        times: u64,
    ) {
        for policy in policies {
            let count = self.doubts.of_policies.entry((policy, direction)).or_default();
            *count = count.saturating_add(times);
        }
    }

    /// Whether these rules are used cannot be seen.
    pub fn doubt_rules(&mut self, rules: impl IntoIterator<Item = RuleKey>) {
        for rule in rules {
            *self.doubts.of_rules.entry(rule).or_default() += 1;
        }
    }

    /// So many flows have no verdict and nobody who is known: any rule may have allowed them.
    pub fn doubt_all(&mut self, times: u64) {
        self.doubts.of_anybody = self.doubts.of_anybody.saturating_add(times);
    }

    /// So many flows were judged, the first and last of which began at these times: every rule that had a part in them was
    /// used. Of a tier with an order one rule alone counts.
    ///
    /// A connection that is open keeps what has a part in it in use, and is no flow: `times` is 0, `span` the time of the look.
    pub fn credit(
        &mut self,
        verdict: &Arc<Verdict>,
        times: u64,
        span: RangeInclusive<Timestamp>,
        other: Option<&OtherEnd<'_>>,
    ) {
        let names_rules =
            !verdict.rules().is_empty() || verdict.denying_rule().is_some() || !verdict.passed.is_empty();
        if names_rules && self.tallies.add(verdict, times, &span, other) {
            self.settle();
        }
    }

    /// Tells each rule what it was used for since the last time. What is read of rules is as of then.
    pub fn settle(&mut self) {
        for tally in self.tallies.take() {
            // Two identical rules of one policy are one: it matched once, and what is left when one of them goes is needed.
            let mut keys: BTreeSet<RuleKey> = BTreeSet::new();
            let rules = tally.verdict.rules();
            let rules: Vec<&RuleMatch> =
                rules.iter().filter(|it| keys.insert(RuleKey::from(&*it.rule))).collect();
            self.credit_rules(rules, keys.len() == 1, &tally);
            let deciding = tally.verdict.denying_rule().into_iter().chain(&tally.verdict.passed);
            self.credit_rules(deciding, true, &tally);
            if keys.len() > 1 {
                self.together.entry(keys).or_default().plus(&tally.uses);
            }
        }
    }

    fn credit_rules<'a>(
        &mut self,
        rules: impl IntoIterator<Item = &'a RuleMatch>,
        sole: bool,
        tally: &Tally,
    ) {
        for matched in rules {
            if let Some(usage) = self.rules.get_mut(&RuleKey::from(&*matched.rule)) {
                usage.credit(matched, sole, tally);
            }
        }
    }

    /// The rules that are current, in order of policy, direction and position, as [settled](Self::settle).
    pub fn current(&self) -> Vec<&RuleUsage> {
        debug_assert!(self.tallies.is_empty(), "read before it was settled");
        let mut rules: Vec<_> = self.rules.values().filter(|usage| usage.current).collect();
        rules.sort_by(|a, b| place(a).cmp(&place(b)));
        rules
    }

    /// Whether this rule can be called unused, or what is missing for saying so either way.
    pub fn unused(&self, usage: &RuleUsage, now: Timestamp, needs: &Evidence) -> Result<bool, Missing> {
        let unjudged = self.doubts.of(&RuleKey::from(&*usage.rule));
        usage.unused(self.lost > 0, unjudged > 0, now, needs)
    }
}

/// The order in which rules are shown.
fn place(usage: &RuleUsage) -> (&PolicyId, Direction, u32) {
    (&usage.rule.policy, usage.rule.direction, usage.rule.index)
}
