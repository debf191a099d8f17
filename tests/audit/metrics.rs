//! What a scrape reads of the auditor: times that alerts can trust, labels of any text, no series twice.

use std::collections::HashSet;

use netaudit::{
    audit::{Accepted, AcceptedFlows, Flows},
    metrics::{AgentState, Format, render},
    model::{Outcome, Timestamp},
};

use super::{World, a_to_b, deny_egress, t};

/// The text that an agent that started then gives to Prometheus.
fn scraped(world: &World, started: Timestamp) -> String {
    let state = AgentState {
        auditor: &world.auditor,
        losses: &[],
        features: &[],
        drops: &[],
        dns: &[],
        lookups: None,
        watches: &[],
        usage_faults: (0, 0),
        flow_store: None,
        flow_bucket: None,
        published: Default::default(),
        records: 0,
        record_counts: &[],
        started,
        now: started,
        correction: 0,
    };
    render(&state, Format::Text)
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
