//! What a scrape reads of the auditor: times that alerts can trust, labels of any text, no series twice.

use std::collections::HashSet;

use netaudit::{
    audit::{Accepted, AcceptedFlows, Flows},
    metrics::{AgentState, EventsState, Format, ReportsState, render},
    model::{Outcome, Timestamp},
};

use super::{World, a_to_b, deny_egress, t};

/// What a scrape reads of an agent that started then.
fn state(world: &World, started: Timestamp) -> AgentState<'_> {
    AgentState {
        auditor: &world.auditor,
        losses: &[],
        features: &[],
        drops: &[],
        dns: &[],
        lookups: None,
        watches: &[],
        usage_faults: [("write failed", 0), ("damaged", 0), ("upload failed", 0)],
        flow_store: None,
        flow_bucket: None,
        events: None,
        reports: None,
        accepted_valid: None,
        records: 0,
        record_counts: &[],
        started,
        now: started,
        correction: 0,
    }
}

/// The text that it gives to Prometheus.
fn scraped(world: &World, started: Timestamp) -> String {
    render(&state(world, started), Format::Text)
}

fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(series))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

#[test]
fn what_came_while_no_agent_ran_is_news_when_it_is_told() {
    let last = "netaudit_violation_last_timestamp_seconds{";
    let mut world = World::new(vec![deny_egress()]);
    world.one(a_to_b());
    assert_eq!(value(&scraped(&world, t(0)), last), Some(1_000_010.0));
    // The kernel recorded it, and this agent took it at its start an hour later.
    assert_eq!(value(&scraped(&world, t(3_600)), last), Some(1_003_600.0));
    let mut world = World::new(vec![]);
    let waited = std::time::Duration::from_secs(3);
    world.one(netaudit::model::Observation { outcome: Outcome::Timeout, waited, ..a_to_b() });
    let last = "netaudit_suspected_block_last_timestamp_seconds{";
    assert_eq!(value(&scraped(&world, t(3_600)), last), Some(1_003_600.0));
}

#[test]
fn any_text_is_a_label_and_no_series_is_there_twice() {
    let mut world = World::new(vec![deny_egress()]);
    let flows = Flows { ports: vec![80], ..Flows::default() };
    let name = "a \"b\"\n\\ \u{fffd}";
    let accepted = Accepted { name: name.into(), why: name.into(), owner: name.into(), until: t(1), flows };
    world.auditor.set_accepted(AcceptedFlows(vec![accepted]));
    world.one(a_to_b());
    let text = scraped(&world, t(0));
    assert!(text.contains("name=\"a \\\"b\\\"\\n\\\\ \u{fffd}\""), "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let mut names = HashSet::new();
    for series in samples.filter_map(|line| Some(line.rsplit_once(' ')?.0)) {
        assert!(names.insert(series.to_owned()), "twice: {series}");
    }
}

#[test]
fn suspected_blocks_that_share_a_series_are_counted_as_those_of_violations_are() {
    let mut world = World::new(vec![]);
    let folded = "netaudit_suspected_blocks_folded_total ";
    let room = netaudit::audit::Budget::default().per_namespace as u16;
    for port in 1..=room + 3 {
        if port > room {
            let before = value(&scraped(&world, t(0)), folded);
            assert_eq!(before, Some(f64::from(port - room - 1)));
        }
        let waited = std::time::Duration::from_secs(3);
        let seen = super::egress(101, 11, "10.0.0.1:40000", &format!("10.0.0.2:{port}"));
        world.one(netaudit::model::Observation { outcome: Outcome::Timeout, waited, ..seen });
    }
    let text = scraped(&world, t(0));
    assert_eq!(value(&text, folded), Some(3.0));
    assert_eq!(value(&text, "netaudit_violations_folded_total "), Some(0.0));
}

#[test]
fn what_is_not_asked_for_has_no_metric_and_what_is_has_each_of_its_counts() {
    let world = World::new(vec![]);
    let names = ["netaudit_events_total", "netaudit_report_", "netaudit_accepted_file_valid"];
    let without = scraped(&world, t(0));
    assert_eq!(names.map(|name| value(&without, name)), [None; 3]);
    let events = EventsState { written: 1, limited: 2, late: 3, failed: 4 };
    let reports = ReportsState { written: 5, failed: 6, whole: 7, folded: 8, no_namespace: 9 };
    for valid in [true, false] {
        let (events, reports, accepted_valid) = (Some(events), Some(reports), Some(valid));
        let with = AgentState { events, reports, accepted_valid, ..state(&world, t(0)) };
        let text = render(&with, Format::Text);
        for (series, expected) in [
            ("netaudit_events_total{result=\"written\"}", 1),
            ("netaudit_events_total{result=\"limited\"}", 2),
            ("netaudit_events_total{result=\"late\"}", 3),
            ("netaudit_events_total{result=\"failed\"}", 4),
            ("netaudit_report_writes_total{result=\"written\"}", 5),
            ("netaudit_report_writes_total{result=\"failed\"}", 6),
            ("netaudit_report_findings{told=\"whole\"}", 7),
            ("netaudit_report_findings{told=\"folded\"}", 8),
            ("netaudit_report_findings{told=\"no-namespace\"}", 9),
            ("netaudit_accepted_file_valid", i32::from(valid)),
        ] {
            assert_eq!(value(&text, series), Some(f64::from(expected)), "{series}");
        }
    }
}
