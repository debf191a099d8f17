//! What is counted of rules, step by step.

use super::*;
use crate::model::{Action, Cause, Decision, Denial, Elements};

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
    Watched {
        schedule: Schedule::default(),
        rule: rule(hash, index),
        summary: "to everybody".into(),
        elements: [].into(),
        possible: true,
        certain: true,
        observable: true,
        here: true,
        selected: 2,
        observed: 1,
        elsewhere: 0,
    }
}

fn allowed(hashes: &[u64]) -> Arc<Verdict> {
    let matched = |hash: &u64| RuleMatch {
        rule: rule(*hash, 0),
        peer: None,
        port: None,
        elements: Elements::default(),
    };
    Verdict::plain(Decision::Allowed(Cause::Rules(hashes.iter().map(matched).collect()))).into()
}

fn current(usage: &mut Usage) -> Vec<RuleUsage> {
    usage.settle();
    usage.current().into_iter().cloned().collect()
}

const T: fn(i64) -> Timestamp = Timestamp::from_seconds;

#[test]
fn history_survives_a_rule_inserted_above() {
    let mut usage = Usage::default();
    usage.watch([watched(0xa, 0)], T(0));
    usage.credit(&allowed(&[0xa]), 1, T(5)..=T(5), None);
    usage.watch([watched(0xb, 0), watched(0xa, 1)], T(10));
    let rules = current(&mut usage);
    assert_eq!((rules[0].rule.hash, rules[0].matches), (0xb, 0));
    assert_eq!((rules[1].rule.hash, rules[1].matches, rules[1].rule.index), (0xa, 1, 1));
    assert_eq!(rules[1].observed_since, T(0));
    assert_eq!(rules[1].last, Some(T(5)));
}

#[test]
fn a_removed_rule_is_not_shown_and_comes_back_with_its_history() {
    let mut usage = Usage::default();
    usage.watch([watched(0xa, 0)], T(0));
    usage.credit(&allowed(&[0xa]), 1, T(1)..=T(1), None);
    usage.watch([], T(2));
    assert!(current(&mut usage).is_empty());
    usage.watch([watched(0xa, 0)], T(3));
    assert_eq!(current(&mut usage)[0].matches, 1);
    assert_eq!(current(&mut usage)[0].observed_since, T(0), "nothing could match it meanwhile");
}

#[test]
fn sole_matches_are_those_of_one_rule() {
    let mut usage = Usage::default();
    usage.watch([watched(0xa, 0), watched(0xb, 1)], T(0));
    usage.credit(&allowed(&[0xa, 0xb]), 1, T(1)..=T(1), None);
    usage.credit(&allowed(&[0xa]), 1, T(2)..=T(2), None);
    let counts: Vec<_> = current(&mut usage).iter().map(|u| (u.matches, u.sole_matches)).collect();
    assert_eq!(counts, [(2, 1), (1, 0)]);
}

#[test]
fn several_flows_at_once_count_each_and_span_their_time() {
    let mut usage = Usage::default();
    usage.watch([watched(0xa, 0)], T(0));
    usage.credit(&allowed(&[0xa]), 1, T(3)..=T(3), None);
    usage.credit(&allowed(&[0xa]), 7, T(2)..=T(5), None);
    let found = &current(&mut usage)[0];
    assert_eq!((found.matches, found.sole_matches), (8, 8));
    assert_eq!((found.first, found.last), (Some(T(2)), Some(T(5))));
}

#[test]
fn an_open_connection_keeps_its_rule_in_use_and_is_no_match() {
    let mut usage = Usage::default();
    usage.watch([Watched { observed: 2, ..watched(0xa, 0) }, watched(0xb, 1)], T(0));
    usage.credit(&allowed(&[0xa]), 0, T(40)..=T(40), None);
    usage.credit(&allowed(&[0xa]), 0, T(70)..=T(70), None);
    usage.tick(T(100));
    let found = &current(&mut usage)[0];
    assert_eq!((found.matches, found.sole_matches), (0, 0));
    assert_eq!((found.first, found.last), (Some(T(40)), Some(T(70))));
    let needs = Evidence { window: Duration::from_secs(50), coverage: 0.5 };
    assert_eq!(usage.unused(found, T(100), &needs), Ok(false));
    let other = &current(&mut usage)[1];
    assert_eq!(usage.unused(other, T(100), &needs), Ok(true));
}

#[test]
fn a_rule_that_denies_and_one_that_passes_are_used_too() {
    let mut usage = Usage::default();
    usage.watch([watched(0xa, 0), watched(0xb, 1)], T(0));
    let matched =
        |hash| RuleMatch { rule: rule(hash, 0), peer: None, port: None, elements: Elements::default() };
    let mut denied = Verdict::plain(Decision::Denied(Denial::Rule(matched(0xa))));
    denied.passed.push(matched(0xb));
    usage.credit(&denied.into(), 1, T(1)..=T(1), None);
    let counts: Vec<_> = current(&mut usage).iter().map(|u| (u.matches, u.sole_matches)).collect();
    assert_eq!(counts, [(1, 1), (1, 1)]);
}

#[test]
fn coverage_is_observed_by_existing_pod_seconds() {
    let mut usage = Usage::default();
    usage.watch([watched(0xa, 0)], T(0));
    usage.tick(T(10));
    assert_eq!(current(&mut usage)[0].existing_pod_seconds, 20.0);
    assert_eq!(current(&mut usage)[0].coverage(T(10)), 0.5);
}

/// What is said of the first rule, a window of ten seconds at a time.
fn unused(usage: &mut Usage, now: i64, window: u64, coverage: f64) -> Result<bool, Missing> {
    let needs = Evidence { window: Duration::from_secs(window), coverage };
    let found = &current(usage)[0];
    usage.unused(found, T(now), &needs)
}

fn in_windows_of_ten() -> Usage {
    Usage::new(RunKey { node: "node-1".into(), run: "run".into() }, Duration::from_secs(10))
}

#[test]
fn unused_needs_window_coverage_and_no_loss() {
    let mut usage = in_windows_of_ten();
    usage.watch([Watched { observed: 2, ..watched(0xa, 0) }], T(0));
    usage.tick(T(100));
    assert_eq!(unused(&mut usage, 100, 100, 0.99), Ok(true));
    assert_eq!(unused(&mut usage, 100, 101, 0.99), Err(Missing::Window));
    assert_eq!(unused(&mut usage, 100, 100, 1.01), Err(Missing::Coverage));
    usage.lost(3);
    assert_eq!(unused(&mut usage, 100, 100, 0.99), Err(Missing::Loss));
    usage.tick(T(150));
    assert_eq!(unused(&mut usage, 150, 100, 0.99), Err(Missing::Loss));
    assert_eq!(unused(&mut usage, 150, 40, 0.99), Ok(true), "lost before the window");
}

#[test]
fn a_flow_without_a_verdict_may_have_been_allowed_by_those_who_could() {
    let mut usage = in_windows_of_ten();
    usage.watch([Watched { observed: 2, ..watched(0xa, 0) }], T(0));
    let another = PolicyId { kind: "NetworkPolicy", namespace: "shop".into(), name: "other".into() };
    usage.doubt([Arc::new(another)], Direction::Egress, 1);
    usage.doubt([rule(0xa, 0).policy.clone()], Direction::Ingress, 1);
    usage.tick(T(100));
    assert_eq!(unused(&mut usage, 100, 100, 0.99), Ok(true));
    usage.doubt([rule(0xa, 0).policy.clone()], Direction::Egress, 1);
    assert_eq!(unused(&mut usage, 100, 100, 0.99), Err(Missing::Verdicts));
    usage.tick(T(210));
    assert_eq!(unused(&mut usage, 210, 100, 0.99), Ok(true), "that is over");
    usage.doubt_all(1);
    assert_eq!(unused(&mut usage, 210, 100, 0.99), Err(Missing::Verdicts));
}

#[test]
fn what_is_not_certain_is_not_called_unused() {
    let mut usage = in_windows_of_ten();
    usage.watch([Watched { certain: false, observed: 2, ..watched(0xa, 0) }], T(0));
    usage.tick(T(100));
    assert_eq!(unused(&mut usage, 100, 50, 0.9), Err(Missing::Verdicts));
}

#[test]
fn what_no_sensor_sees_is_not_called_unused() {
    let mut usage = Usage::default();
    usage.watch([Watched { observable: false, observed: 2, ..watched(0xa, 0) }], T(0));
    usage.tick(T(100));
    let needs = Evidence { window: Duration::from_secs(1), coverage: 0.9 };
    let found = &current(&mut usage)[0];
    assert_eq!(usage.unused(found, T(100), &needs), Err(Missing::Sensor));
}

#[test]
fn a_clock_that_steps_back_takes_nothing_away() {
    let mut usage = Usage::default();
    usage.watch([watched(0xa, 0)], T(100));
    usage.tick(T(50));
    assert_eq!(current(&mut usage)[0].existing_pod_seconds, 0.0);
}

#[test]
fn what_was_used_long_ago_is_forgotten_by_a_run_that_goes_on_as_by_one_that_begins() {
    let mut usage = Usage::new(RunKey { node: "n".into(), run: "r".into() }, Duration::from_secs(10));
    let needs = Evidence { window: Duration::from_secs(60), coverage: 0.5 };
    usage.watch([watched(0xa, 0)], T(0));
    usage.credit(&allowed(&[0xa]), 1, T(5)..=T(5), None);
    let mut at = |now: i64| {
        usage.tick(T(now));
        usage.settle();
        usage.forget(T(now), Duration::from_secs(120));
        let rules = current(&mut usage);
        (rules[0].matches, rules[0].last, usage.unused(&rules[0], T(now), &needs))
    };
    assert_eq!(at(100), (1, Some(T(5)), Ok(false)));
    assert_eq!(at(126), (1, None, Ok(true)), "the counter goes on");
}

#[test]
fn a_bounded_number_of_rules_has_series_and_whoever_has_them_keeps_them() {
    let mut usage = Usage::default().with_series(2);
    let shown = |usage: &mut Usage| -> Vec<u64> {
        current(usage).iter().filter(|it| it.has_series).map(|it| it.rule.hash).collect()
    };
    usage.watch([watched(0xb, 1), watched(0xc, 2), watched(0xd, 3)], T(0));
    assert_eq!((shown(&mut usage), usage.without_series()), (vec![0xb, 0xc], 1));
    usage.watch([watched(0xa, 0), watched(0xb, 1), watched(0xc, 2), watched(0xd, 3)], T(1));
    assert_eq!((shown(&mut usage), usage.without_series()), (vec![0xb, 0xc], 2));
    usage.watch([watched(0xa, 0), watched(0xc, 1), watched(0xd, 2)], T(2));
    assert_eq!((shown(&mut usage), usage.without_series()), (vec![0xa, 0xc], 1), "room for another one");
    usage.watch([watched(0xc, 0)], T(3));
    assert_eq!((shown(&mut usage), usage.without_series()), (vec![0xc], 0));
}

#[test]
fn a_history_of_weeks_in_which_nothing_changes_is_one_slice_and_says_the_same() {
    let slice = |from: i64, until: i64, pods: u64, lost: bool| Slice {
        node: 0,
        from: T(from),
        until: T(until),
        watched: Duration::from_secs((until - from) as u64),
        selected: Duration::from_secs((until - from) as u64 * pods),
        observed: Duration::from_secs((until - from) as u64),
        lost,
        unjudged: false,
    };
    let all = [
        slice(0, 10, 1, false),
        slice(10, 30, 1, false),
        slice(30, 40, 1, true),
        slice(40, 50, 1, false),
        slice(50, 60, 2, false),
        slice(60, 70, 2, false),
        slice(71, 80, 2, false),
    ];
    let mut kept = Vec::new();
    all.iter().for_each(|it| push_slice(&mut kept, *it));
    let times: Vec<_> = kept.iter().map(|it| (it.from, it.until)).collect();
    assert_eq!(
        times,
        [(T(0), T(30)), (T(30), T(40)), (T(40), T(50)), (T(50), T(70)), (T(71), T(80))],
        "a loss, another number of pods and a gap stay apart"
    );
    for (since, now) in [(0, 80), (5, 25), (15, 75), (45, 65), (35, 72)] {
        assert_eq!(coverage(&kept, T(since), T(now)), coverage(&all, T(since), T(now)), "{since} to {now}");
    }
}
