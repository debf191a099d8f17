//! How often each rule allowed something, since when it was watched, and how much of what it selects was watched.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use foldhash::{HashMap, HashSet};

use crate::model::{Direction, PolicyId, RuleId, RuleMatch, Timestamp, Verdict};

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
    /// Whether any sensor can see what it allows; none sees SCTP.
    pub observable: bool,
    /// Running pods that its policy selects, wherever they run (as far as this agent is responsible for them).
    pub selected: usize,
    /// Those of them whose flows this agent sees.
    pub observed: usize,
}

/// What is known of one rule's use.
#[derive(Clone, Debug)]
pub struct RuleUsage {
    /// The rule with its position of today.
    pub rule: Arc<RuleId>,
    /// Flows that it allowed, alone or with others.
    pub matches: u64,
    /// Flows that it alone allowed.
    pub sole_matches: u64,
    /// The first match, or when a connection that it allows was first found open.
    pub first: Option<Timestamp>,
    /// The last match, or when a connection that it allows was last found open.
    pub last: Option<Timestamp>,
    /// Since when this agent watches it.
    pub observed_since: Timestamp,
    /// Pod-seconds of the selected pods since then.
    pub existing_pod_seconds: f64,
    /// Pod-seconds of those that this agent watched.
    pub observed_pod_seconds: f64,
    /// Whether its policy exists and concerns this agent today; history is kept where not.
    pub current: bool,
    observable: bool,
    selected: usize,
    observed: usize,
}

impl RuleUsage {
    fn new(watched: &Watched, since: Timestamp) -> Self {
        Self {
            rule: watched.rule.clone(),
            matches: 0,
            sole_matches: 0,
            first: None,
            last: None,
            observed_since: since,
            existing_pod_seconds: 0.0,
            observed_pod_seconds: 0.0,
            current: true,
            observable: watched.observable,
            selected: watched.selected,
            observed: watched.observed,
        }
    }

    /// Observed ÷ existing pod-seconds, from 0 to 1; 0 while no pod that the rule selects has existed.
    pub fn coverage(&self) -> f64 {
        if self.existing_pod_seconds > 0.0 {
            self.observed_pod_seconds / self.existing_pod_seconds
        } else {
            0.0
        }
    }

    /// Whether it can be called unused, or what is missing for saying so either way.
    pub fn unused(&self, now: Timestamp, needs: &Evidence) -> Result<bool, Missing> {
        // Without a match where it allows a connection that began before the agent did.
        if self.last.is_some() {
            return Ok(false);
        }
        if !self.observable {
            return Err(Missing::Sensor);
        }
        let since = self.observed_since.max(now.minus(needs.window));
        if needs.lost_since(since) {
            return Err(Missing::Loss);
        }
        if now.since(self.observed_since) < needs.window {
            return Err(Missing::Window);
        }
        if self.coverage() < needs.coverage {
            return Err(Missing::Coverage);
        }
        Ok(true)
    }
}

/// What it takes to call a rule unused.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// How long it must have been watched.
    pub window: Duration,
    /// The least coverage, from 0 to 1.
    pub coverage: f64,
    /// When a record was last lost, if ever: a loss inside the window may hide a match.
    pub last_loss: Option<Timestamp>,
}

impl Evidence {
    fn lost_since(&self, since: Timestamp) -> bool {
        self.last_loss.is_some_and(|loss| loss >= since)
    }
}

/// What is missing for calling a rule unused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// It has not been watched for long enough.
    Window,
    /// Too little of what it selects was watched.
    Coverage,
    /// Records were lost in the window.
    Loss,
    /// Nothing can see what it allows: SCTP. It is unobservable, not unused.
    Sensor,
}

impl Missing {
    /// Every value.
    pub const ALL: [Self; 4] = [Self::Window, Self::Coverage, Self::Loss, Self::Sensor];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Coverage => "coverage",
            Self::Loss => "loss",
            Self::Sensor => "sensor",
        }
    }
}

/// The use of every rule that was ever watched by this agent run.
#[derive(Debug, Default)]
pub struct Usage {
    rules: HashMap<RuleKey, RuleUsage>,
    ticked: Option<Timestamp>,
}

impl Usage {
    /// The rules to watch from `now` on. Those that are missing keep their history and are no longer current.
    pub fn watch(&mut self, watched: impl IntoIterator<Item = Watched>, now: Timestamp) {
        self.tick(now);
        let current = self.rules.iter().filter(|(_, usage)| usage.current);
        let before: HashSet<RuleKey> = current.map(|(key, _)| key.clone()).collect();
        for usage in self.rules.values_mut() {
            usage.current = false;
            usage.selected = 0;
            usage.observed = 0;
        }
        for rule in watched {
            let usage =
                self.rules.entry(RuleKey::from(&*rule.rule)).or_insert_with(|| RuleUsage::new(&rule, now));
            // Two identical rules of one policy share an identity: the first position is shown.
            if !usage.current || rule.rule.index < usage.rule.index {
                usage.rule = rule.rule;
            }
            usage.current = true;
            usage.observable = rule.observable;
            usage.selected = rule.selected;
            usage.observed = rule.observed;
        }
        for (key, usage) in self.rules.iter_mut().filter(|(_, usage)| usage.current) {
            if !before.contains(key) {
                // It was away: nobody watched it meanwhile, so the time before proves nothing.
                usage.observed_since = now;
                usage.existing_pod_seconds = 0.0;
                usage.observed_pod_seconds = 0.0;
            }
        }
    }

    /// Adds the time since the last call to the pod-seconds of every rule.
    pub fn tick(&mut self, now: Timestamp) {
        let seconds = self.ticked.map_or(0.0, |last| now.since(last).as_secs_f64());
        self.ticked = Some(now);
        for usage in self.rules.values_mut() {
            usage.existing_pod_seconds += seconds * usage.selected as f64;
            usage.observed_pod_seconds += seconds * usage.observed as f64;
        }
    }

    /// So many flows were judged, the first and last of which began at these times: every rule that had a part in them was
    /// used. Of a tier with an order one rule alone counts.
    pub fn credit(&mut self, verdict: &Verdict, times: u64, span: RangeInclusive<Timestamp>) {
        let rules = verdict.rules();
        self.credit_rules(rules, rules.len() == 1, times, &span);
        self.credit_rules(verdict.denying_rule().into_iter().chain(&verdict.passed), true, times, &span);
    }

    fn credit_rules<'a>(
        &mut self,
        rules: impl IntoIterator<Item = &'a RuleMatch>,
        sole: bool,
        times: u64,
        span: &RangeInclusive<Timestamp>,
    ) {
        let (began, ended) = (*span.start(), *span.end());
        for matched in rules {
            let Some(usage) = self.rules.get_mut(&RuleKey::from(&*matched.rule)) else { continue };
            usage.matches += times;
            usage.sole_matches += if sole { times } else { 0 };
            usage.first = Some(usage.first.map_or(began, |first| first.min(began)));
            usage.last = Some(usage.last.map_or(ended, |last| last.max(ended)));
        }
    }

    /// A connection with this verdict is open at `at`: what has a part in it is in use. Matches count flows, so it is none.
    pub fn keep(&mut self, verdict: &Verdict, at: Timestamp) {
        let rules = verdict.rules().iter().chain(verdict.denying_rule()).chain(&verdict.passed);
        for matched in rules {
            let Some(usage) = self.rules.get_mut(&RuleKey::from(&*matched.rule)) else { continue };
            usage.first = Some(usage.first.map_or(at, |first| first.min(at)));
            usage.last = Some(usage.last.map_or(at, |last| last.max(at)));
        }
    }

    /// The rules that are current, in order of policy, direction and position.
    pub fn current(&self) -> Vec<&RuleUsage> {
        let mut rules: Vec<_> = self.rules.values().filter(|usage| usage.current).collect();
        rules.sort_by(|a, b| {
            (&a.rule.policy, a.rule.direction, a.rule.index).cmp(&(
                &b.rule.policy,
                b.rule.direction,
                b.rule.index,
            ))
        });
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Action, Cause, Decision, Denial};

    fn rule(hash: u64, index: u32) -> Arc<RuleId> {
        let policy = PolicyId { kind: "NetworkPolicy", namespace: "shop".into(), name: "p".into() };
        Arc::new(RuleId {
            policy: policy.into(),
            direction: Direction::Egress,
            hash,
            index,
            action: Action::Allow,
            name: "".into(),
        })
    }

    fn watched(hash: u64, index: u32) -> Watched {
        Watched { rule: rule(hash, index), observable: true, selected: 2, observed: 1 }
    }

    fn allowed(hashes: &[u64]) -> Verdict {
        let matched = |hash: &u64| RuleMatch { rule: rule(*hash, 0), peer: None, port: None };
        Verdict::plain(Decision::Allowed(Cause::Rules(hashes.iter().map(matched).collect())))
    }

    const T: fn(i64) -> Timestamp = Timestamp::from_seconds;

    #[test]
    fn history_survives_a_rule_inserted_above() {
        let mut usage = Usage::default();
        usage.watch([watched(0xa, 0)], T(0));
        usage.credit(&allowed(&[0xa]), 1, T(5)..=T(5));
        usage.watch([watched(0xb, 0), watched(0xa, 1)], T(10));
        let rules = usage.current();
        assert_eq!((rules[0].rule.hash, rules[0].matches), (0xb, 0));
        assert_eq!((rules[1].rule.hash, rules[1].matches, rules[1].rule.index), (0xa, 1, 1));
        assert_eq!(rules[1].observed_since, T(0));
        assert_eq!(rules[1].last, Some(T(5)));
    }

    #[test]
    fn a_removed_rule_is_not_shown_and_comes_back_with_its_history() {
        let mut usage = Usage::default();
        usage.watch([watched(0xa, 0)], T(0));
        usage.credit(&allowed(&[0xa]), 1, T(1)..=T(1));
        usage.watch([], T(2));
        assert!(usage.current().is_empty());
        usage.watch([watched(0xa, 0)], T(3));
        assert_eq!(usage.current()[0].matches, 1);
        assert_eq!(usage.current()[0].observed_since, T(3), "but nobody watched it meanwhile");
    }

    #[test]
    fn sole_matches_are_those_of_one_rule() {
        let mut usage = Usage::default();
        usage.watch([watched(0xa, 0), watched(0xb, 1)], T(0));
        usage.credit(&allowed(&[0xa, 0xb]), 1, T(1)..=T(1));
        usage.credit(&allowed(&[0xa]), 1, T(2)..=T(2));
        let counts: Vec<_> = usage.current().iter().map(|u| (u.matches, u.sole_matches)).collect();
        assert_eq!(counts, [(2, 1), (1, 0)]);
    }

    #[test]
    fn several_flows_at_once_count_each_and_span_their_time() {
        let mut usage = Usage::default();
        usage.watch([watched(0xa, 0)], T(0));
        usage.credit(&allowed(&[0xa]), 1, T(3)..=T(3));
        usage.credit(&allowed(&[0xa]), 7, T(2)..=T(5));
        let found = usage.current()[0];
        assert_eq!((found.matches, found.sole_matches), (8, 8));
        assert_eq!((found.first, found.last), (Some(T(2)), Some(T(5))));
    }

    #[test]
    fn an_open_connection_keeps_its_rule_in_use_and_is_no_match() {
        let mut usage = Usage::default();
        usage.watch([Watched { observed: 2, ..watched(0xa, 0) }, watched(0xb, 1)], T(0));
        usage.keep(&allowed(&[0xa]), T(40));
        usage.keep(&allowed(&[0xa]), T(70));
        usage.tick(T(100));
        let found = usage.current()[0];
        assert_eq!((found.matches, found.sole_matches), (0, 0));
        assert_eq!((found.first, found.last), (Some(T(40)), Some(T(70))));
        let needs = Evidence { window: Duration::from_secs(50), coverage: 0.5, last_loss: None };
        assert_eq!(found.unused(T(100), &needs), Ok(false));
        assert_eq!(usage.current()[1].unused(T(100), &needs), Ok(true));
    }

    #[test]
    fn a_rule_that_denies_and_one_that_passes_are_used_too() {
        let mut usage = Usage::default();
        usage.watch([watched(0xa, 0), watched(0xb, 1)], T(0));
        let matched = |hash| RuleMatch { rule: rule(hash, 0), peer: None, port: None };
        let mut denied = Verdict::plain(Decision::Denied(Denial::Rule(matched(0xa))));
        denied.passed.push(matched(0xb));
        usage.credit(&denied, 1, T(1)..=T(1));
        let counts: Vec<_> = usage.current().iter().map(|u| (u.matches, u.sole_matches)).collect();
        assert_eq!(counts, [(1, 1), (1, 1)]);
    }

    #[test]
    fn coverage_is_observed_by_existing_pod_seconds() {
        let mut usage = Usage::default();
        usage.watch([watched(0xa, 0)], T(0));
        usage.tick(T(10));
        assert_eq!(usage.current()[0].existing_pod_seconds, 20.0);
        assert_eq!(usage.current()[0].coverage(), 0.5);
    }

    #[test]
    fn unused_needs_window_coverage_and_no_loss() {
        let mut usage = Usage::default();
        usage.watch([Watched { observed: 2, ..watched(0xa, 0) }], T(0));
        usage.tick(T(100));
        let unused = |window, coverage, last_loss| {
            let needs = Evidence { window: Duration::from_secs(window), coverage, last_loss };
            usage.current()[0].unused(T(100), &needs)
        };
        assert_eq!(unused(100, 0.99, None), Ok(true));
        assert_eq!(unused(101, 0.99, None), Err(Missing::Window));
        assert_eq!(unused(100, 1.01, None), Err(Missing::Coverage));
        assert_eq!(unused(100, 0.99, Some(T(50))), Err(Missing::Loss));
        assert_eq!(unused(100, 0.99, Some(T(-1))), Ok(true), "lost before it was watched");
        assert_eq!(unused(40, 0.99, Some(T(50))), Ok(true), "lost before the window");
    }

    #[test]
    fn what_no_sensor_sees_is_not_called_unused() {
        let mut usage = Usage::default();
        usage.watch([Watched { observable: false, observed: 2, ..watched(0xa, 0) }], T(0));
        usage.tick(T(100));
        let needs = Evidence { window: Duration::from_secs(1), coverage: 0.9, last_loss: None };
        assert_eq!(usage.current()[0].unused(T(100), &needs), Err(Missing::Sensor));
    }

    #[test]
    fn a_clock_that_steps_back_takes_nothing_away() {
        let mut usage = Usage::default();
        usage.watch([watched(0xa, 0)], T(100));
        usage.tick(T(50));
        assert_eq!(usage.current()[0].existing_pod_seconds, 0.0);
    }
}
