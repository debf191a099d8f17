//! Reports over time: what is written, when, and what goes on in the next run.

use super::*;
use crate::{
    audit::{Finding, FlowId, ViolationCount, ViolationKey},
    publish::testing::key,
};

const EVERY: i64 = 30;
const LIFETIME: i64 = 3_600;

fn seconds(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(1_700_000_000 + seconds)
}

fn reports() -> Reports {
    let duration = |seconds| Duration::from_secs(u64::try_from(seconds).unwrap());
    Reports::new("worker-1", duration(LIFETIME), duration(EVERY))
}

fn entry(key: &ViolationKey, count: u64, last: i64) -> Entry {
    let flow = FlowId { run: "run".into(), sequence: count };
    let count = ViolationCount { total: count, last: Timestamp(0), flow };
    Entry::new(key, &count, seconds(last), |_, _| Some("Deployment".to_owned()))
}

fn snapshot(taken: i64, entries: Vec<Entry>) -> Snapshot {
    let namespaces = if entries.is_empty() { vec![] } else { vec![("shop".to_owned(), entries)] };
    Snapshot {
        taken: seconds(taken),
        namespaces: namespaces.into_iter().collect(),
        no_namespace: 0,
        is_last: false,
    }
}

/// Does what is due, as an API server that takes everything would.
fn write(reports: &mut Reports, snapshot: &Snapshot) -> Vec<Action> {
    let due = reports.due(snapshot);
    due.iter().for_each(|(namespace, action)| reports.done(namespace, action, snapshot.taken));
    due.into_iter().map(|(_, action)| action).collect()
}

fn applied(actions: &[Action]) -> &Value {
    let [Action::Apply(report)] = actions else { panic!("{actions:?}") };
    report
}

fn count(report: &Value, place: usize) -> &str {
    report["results"][place]["properties"]["count"].as_str().unwrap()
}

#[test]
fn a_report_is_written_when_it_changes_and_not_too_often() {
    let mut reports = reports();
    assert_eq!(write(&mut reports, &snapshot(0, vec![])), []);
    let one = entry(&key("web", 80), 1, 0);
    let actions = write(&mut reports, &snapshot(0, vec![one.clone()]));
    let report = applied(&actions);
    assert_eq!(report["metadata"]["name"], "netaudit-worker-1");
    assert_eq!(report["metadata"]["ownerReferences"], json!([]));
    assert_eq!(report["summary"], json!({"pass": 0, "fail": 1, "warn": 0, "error": 0, "skip": 0}));

    assert_eq!(write(&mut reports, &snapshot(40, vec![one.clone()])), [], "nothing changed");
    let more = entry(&key("web", 80), 5, 45);
    assert_eq!(write(&mut reports, &snapshot(45, vec![more.clone()])), [], "counts wait longer");
    let other = entry(&key("api", 80), 1, 29);
    assert_eq!(write(&mut reports, &snapshot(29, vec![one, other.clone()])), [], "too soon");
    let actions = write(&mut reports, &snapshot(46, vec![more.clone(), other.clone()]));
    assert_eq!(applied(&actions)["results"].as_array().map(Vec::len), Some(2), "news");
    let most = entry(&key("web", 80), 9, 345);
    assert_eq!(write(&mut reports, &snapshot(345, vec![most.clone(), other.clone()])), []);
    let actions = write(&mut reports, &snapshot(346, vec![most, other]));
    assert_eq!(count(applied(&actions), 1), "9");
    let end = Snapshot { is_last: true, ..snapshot(347, vec![entry(&key("web", 80), 10, 347)]) };
    assert_eq!(count(applied(&write(&mut reports, &end)), 0), "10", "at the end there is no waiting");
    assert_eq!(write(&mut reports, &end), []);
}

#[test]
fn a_report_goes_with_its_last_result() {
    let mut reports = reports();
    write(&mut reports, &snapshot(0, vec![entry(&key("web", 80), 1, 0)]));
    let gone = snapshot(100, vec![]);
    assert_eq!(reports.due(&gone), [("shop".to_owned(), Action::Delete)]);
    assert_eq!(write(&mut reports, &gone), [Action::Delete], "due until it is done");
    assert_eq!(write(&mut reports, &gone), []);
}

#[test]
fn the_next_run_goes_on_with_it() {
    let mut earlier = reports();
    let both = vec![entry(&key("web", 80), 3, 0), entry(&key("api", 80), 2, 100)];
    let actions = write(&mut earlier, &snapshot(100, both));
    let report = applied(&actions).clone();

    let mut reports = reports();
    reports.set_owner(Some("uid-1".to_owned()));
    reports.found(vec![("shop".to_owned(), report)]);
    assert_eq!(write(&mut reports, &snapshot(200, vec![])), [], "all stands there already");
    let again = vec![entry(&key("web", 80), 4, 600)];
    let actions = write(&mut reports, &snapshot(600, again.clone()));
    let report = applied(&actions);
    assert_eq!((count(report, 0), count(report, 1)), ("2", "7"), "{report:#}");
    assert_eq!(report["metadata"]["ownerReferences"][0]["uid"], "uid-1");
    // The kind is served anew: what is found then is of this run, and counted already.
    reports.found(vec![("shop".to_owned(), report.clone())]);
    assert_eq!(write(&mut reports, &snapshot(700, again)), []);

    // What nothing new came of ends, as if one run had seen it all; also if it had ended before this one began.
    let actions = write(&mut reports, &snapshot(100 + LIFETIME, vec![entry(&key("web", 80), 4, 600)]));
    let report = applied(&actions);
    assert_eq!(report["results"].as_array().map(Vec::len), Some(1));
    assert_eq!(write(&mut reports, &snapshot(2 * LIFETIME, vec![])), [Action::Delete]);
}

#[test]
fn kinds_of_workloads_whose_pods_are_gone_are_still_known() {
    let mut reports = reports();
    write(&mut reports, &snapshot(0, vec![entry(&key("web", 80), 1, 0)]));
    let gone = Entry { resources: vec![], ..entry(&key("web", 80), 2, 5) };
    let actions = write(&mut reports, &snapshot(10 * EVERY, vec![gone]));
    assert_eq!(applied(&actions)["results"][0]["resources"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_clock_that_was_set_back_holds_nothing_up() {
    let mut reports = reports();
    write(&mut reports, &snapshot(0, vec![entry(&key("web", 80), 1, 0)]));
    assert_eq!(write(&mut reports, &snapshot(-86_400, vec![entry(&key("web", 80), 2, -86_400)])).len(), 1);
}

#[test]
fn a_severity_that_changes_is_news() {
    let accepted = ViolationKey { accepted: Some("known".into()), ..key("web", 80) };
    let mut reports = reports();
    write(&mut reports, &snapshot(0, vec![entry(&key("web", 80), 1, 0)]));
    let actions = write(&mut reports, &snapshot(EVERY, vec![entry(&accepted, 1, EVERY)]));
    assert_eq!(applied(&actions)["results"][0]["result"], "warn");
}

/// Findings of `ports` ports of each of some sources.
fn scans(sources: usize, ports: u16) -> Vec<Entry> {
    let of = |source: usize| {
        (1..=ports).map(move |port| entry(&key(&format!("scan-{source:04}"), port), 1, i64::from(port)))
    };
    (0..sources).flat_map(of).collect()
}

#[test]
fn a_scan_folds_and_nothing_of_it_is_lost() {
    let mut first = reports();
    let blocked = ViolationKey { finding: Finding::Blocked, ..key("zzz", 1) };
    let mut entries = scans(2, 500);
    entries.push(entry(&blocked, 1, 0));
    let actions = write(&mut first, &snapshot(1_000, entries));
    let report = applied(&actions);
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), MOST_RESULTS + 3);
    let total: u64 = (0..results.len()).map(|place| count(report, place).parse::<u64>().unwrap()).sum();
    assert_eq!(total, 1_001);
    assert_eq!(first.results(), (200, 801));
    let folded: Vec<_> =
        results[MOST_RESULTS..].iter().map(|it| &it["properties"]["source_workload"]).collect();
    assert_eq!(folded, ["scan-0000", "scan-0001", "zzz"]);
    assert_eq!(results[MOST_RESULTS]["severity"], "critical");
    assert_eq!(results[MOST_RESULTS]["rule"], "several");
    assert_eq!(results[MOST_RESULTS + 2]["result"], "warn");

    // The next run knows how many they were.
    let mut next = reports();
    next.found(vec![("shop".to_owned(), report.clone())]);
    assert_eq!(write(&mut next, &snapshot(1_001, vec![])), []);
    assert_eq!(next.results(), (200, 801));
}

#[test]
fn no_number_of_sources_makes_it_too_large_or_hides_one() {
    let mut reports = reports();
    let actions = write(&mut reports, &snapshot(1_000, scans(1_000, 2)));
    let report = applied(&actions);
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), 2 * MOST_RESULTS);
    let text = report.to_string();
    assert!((0..1_000).all(|source| text.contains(&format!("scan-{source:04}"))));
    assert_eq!(results.last().unwrap()["resources"].as_array().map(Vec::len), Some(801));
    assert!(text.len() < 1_000_000, "{}", text.len());
}

#[test]
fn names_of_nodes_are_names_of_reports() {
    assert_eq!(name("worker-1.example.com"), "netaudit-worker-1.example.com");
    let (a, b) = (name(&("a".repeat(252) + "b")), name(&("a".repeat(252) + "c")));
    assert!(a.len() <= 253 && a != b, "{a}");
}
