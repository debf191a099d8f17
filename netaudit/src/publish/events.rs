//! Which findings become events, and when: the same again is one event that says how often, and there is a limit.
//!
//! ```text
//! first of its kind ── a token of the source and of the agent? ─ no ─▶ limited
//!        │ yes
//!        ▼
//!     series: waits ──due──▶ a new event ──more of it──▶ waits ──due, ever less often──▶ its count is written
//!        └── nothing new for a while ──▶ ended
//! ```
//!
//! kube's own recorder does not fit: it takes findings on other ports or by other policies for the same, asks the API server
//! for each single one, and cannot name an event on a pod with a long name.

use std::time::Duration;

use foldhash::HashMap;
use k8s_openapi::api::events::v1::{Event, EventSeries as SeriesStatus};

use super::{
    EventCounts,
    event::micro_time,
    limit::{Limiter, Rate},
};
use crate::{
    audit::{FlowSeverity, ViolationKey},
    cluster::PodId,
    model::Timestamp,
};

/// New events that the findings of one source workload may make.
const SOURCE: Rate = Rate { burst: 10, every: Duration::from_secs(60) };

/// The same of all, and so of one agent.
const AGENT: Rate = Rate { burst: 50, every: Duration::from_secs(10) };

/// Writes of how often something happened again, of one agent.
const UPDATES: Rate = Rate { burst: 20, every: Duration::from_secs(5) };

/// How soon an event's count is written after its first write. Each time after that it takes twice as long.
const FIRST_UPDATE: Duration = Duration::from_secs(5);

/// The longest of those times.
const LAST_UPDATE: Duration = Duration::from_secs(320);

/// A series ends when nothing came of it for this long: the next is a new event, and stands on top again. Events live for an
/// hour after their last write unless the API server is told otherwise.
const ENDS_AFTER: Duration = Duration::from_secs(360);

/// Series that are remembered, and sources that have spent some of their tokens.
const MOST_SERIES: usize = 1_024;

/// What is the same again.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EventSeries {
    /// The subject.
    pub pod: PodId,
    /// Who, to whom, by which port and policy, and what became of it and why.
    pub key: ViolationKey,
}

/// What is to be written.
#[derive(Clone, PartialEq, Debug)]
pub struct Write {
    /// The whole event, with the count of its series.
    pub event: Event,
    /// Whether it has been written before.
    pub again: bool,
    /// The flows that this write is for.
    pub flows: u64,
}

#[derive(Debug)]
struct Series {
    event: Event,
    /// Flows that were handed on in writes.
    told: u64,
    /// Those that wait for the next.
    waiting: u64,
    /// The last of them: on the agent's line of time, and as the wall has it.
    last: Timestamp,
    last_wall: Timestamp,
    /// When the next write may be.
    due: Timestamp,
    interval: Duration,
}

/// All series of events, and the limit.
#[derive(Debug)]
pub struct Events {
    series: HashMap<EventSeries, Series>,
    limiter: Limiter,
    updates_full_at: Timestamp,
    limited: u64,
    late: u64,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            series: HashMap::default(),
            limiter: Limiter::new(SOURCE, AGENT, MOST_SERIES),
            updates_full_at: Timestamp::MIN,
            limited: 0,
            late: 0,
        }
    }
}

impl Events {
    /// Some more of `series`, at `wall`. `first` makes the event of it if there is none yet; without one there is nothing to
    /// be told.
    pub fn seen(
        &mut self,
        series: EventSeries,
        flows: u64,
        wall: Timestamp,
        now: Timestamp,
        first: impl FnOnce() -> Option<Event>,
    ) {
        if let Some(known) = self.series.get_mut(&series) {
            known.waiting += flows;
            (known.last, known.last_wall) = (now, known.last_wall.max(wall));
            return;
        }
        let key = &series.key;
        let warns = FlowSeverity::of(key) > FlowSeverity::Info;
        let source = (key.source_namespace.clone(), key.source_workload.clone(), warns);
        // Cheap things first: a flood comes this far with every flow.
        if self.series.len() >= MOST_SERIES || !self.limiter.take(source, now) {
            self.limited += flows;
            return;
        }
        let Some(event) = first() else { return };
        let one = Series {
            event,
            told: 0,
            waiting: flows,
            last: now,
            last_wall: wall,
            due: now,
            interval: FIRST_UPDATE,
        };
        self.series.insert(series, one);
    }

    /// What is to be written now: at most `room` of it, what has waited longest first.
    pub fn due(&mut self, now: Timestamp, room: usize) -> Vec<Write> {
        self.expire(now);
        let is_due = |series: &&mut Series| series.waiting > 0 && series.due <= now;
        let mut due: Vec<&mut Series> = self.series.values_mut().filter(is_due).collect();
        due.sort_by_key(|series| (series.told > 0, series.due));
        let updates_full_at = &mut self.updates_full_at;
        let allowed = |series: &&mut Series| series.told == 0 || UPDATES.take(updates_full_at, now);
        due.into_iter().take(room).filter(allowed).map(|series| series.write(now)).collect()
    }

    fn expire(&mut self, now: Timestamp) {
        let late = &mut self.late;
        self.series.retain(|_, series| {
            let keep = now.since(series.last) < ENDS_AFTER;
            if !keep {
                *late += series.waiting;
            }
            keep
        });
        self.limiter.expire(now);
    }

    /// Adds what became of flows that were never handed on.
    pub fn count(&self, counts: EventCounts) -> EventCounts {
        EventCounts { limited: self.limited, late: self.late, ..counts }
    }
}

impl Series {
    fn write(&mut self, now: Timestamp) -> Write {
        let (again, flows) = (self.told > 0, self.waiting);
        self.told += flows;
        self.waiting = 0;
        if again {
            self.interval = LAST_UPDATE.min(self.interval * 2);
        }
        self.due = now.plus(self.interval);
        if self.told > 1 {
            self.event.series = Some(SeriesStatus {
                count: i32::try_from(self.told).unwrap_or(i32::MAX),
                last_observed_time: micro_time(self.last_wall),
            });
        }
        Write { event: self.event.clone(), again, flows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::testing::key;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_seconds(second)
    }

    fn see(events: &mut Events, workload: &str, port: u16, at: i64) {
        let series = EventSeries { pod: PodId(1), key: key(workload, port) };
        let event = Event { reason: Some(format!("{workload}:{port}")), ..Event::default() };
        events.seen(series, 1, second(at), second(at), || Some(event));
    }

    fn counts(writes: &[Write]) -> Vec<(bool, u64, Option<i32>)> {
        let count = |write: &Write| write.event.series.as_ref().map(|series| series.count);
        writes.iter().map(|write| (write.again, write.flows, count(write))).collect()
    }

    #[test]
    fn a_burst_is_one_event_with_its_count_and_what_follows_is_added() {
        let mut events = Events::default();
        (0..100).for_each(|_| see(&mut events, "web", 80, 0));
        assert_eq!(counts(&events.due(second(0), 10)), [(false, 100, Some(100))]);
        see(&mut events, "web", 80, 1);
        assert_eq!(events.due(second(4), 10), [], "not that soon");
        assert_eq!(counts(&events.due(second(5), 10)), [(true, 1, Some(101))]);
        assert_eq!(events.due(second(100), 10), [], "nothing new");
        assert_eq!(events.count(EventCounts::default()), EventCounts::default());
    }

    #[test]
    fn one_flow_is_no_series() {
        let mut events = Events::default();
        see(&mut events, "web", 80, 0);
        assert_eq!(counts(&events.due(second(0), 10)), [(false, 1, None)]);
    }

    #[test]
    fn what_goes_on_is_written_ever_less_often_and_nothing_of_it_is_lost() {
        let mut events = Events::default();
        let mut written = Vec::new();
        for at in 0..3_600 {
            see(&mut events, "web", 80, at);
            let writes = events.due(second(at), 10);
            written.extend(writes.into_iter().map(|write| (at, write.flows)));
        }
        let times: Vec<i64> = written.iter().map(|(at, _)| *at).collect();
        assert_eq!(times[..6], [0, 5, 15, 35, 75, 155]);
        assert!(times.len() < 20, "{times:?}");
        let waiting: u64 = events.series.values().map(|series| series.waiting).sum();
        assert_eq!(written.iter().map(|(_, flows)| flows).sum::<u64>() + waiting, 3_600);
    }

    #[test]
    fn a_series_that_came_to_rest_begins_anew() {
        let mut events = Events::default();
        see(&mut events, "web", 80, 0);
        assert_eq!(events.due(second(0), 10).len(), 1);
        assert_eq!(events.due(second(360), 10), []);
        see(&mut events, "web", 80, 361);
        assert_eq!(counts(&events.due(second(361), 10)), [(false, 1, None)]);
    }

    #[test]
    fn a_scan_is_limited_and_counted_and_hides_no_other_source() {
        let mut events = Events::default();
        (1..=1_000).for_each(|port| see(&mut events, "scanner", port, 0));
        see(&mut events, "web", 80, 0);
        let writes = events.due(second(0), usize::MAX);
        assert_eq!(writes.len(), 11);
        assert_eq!(events.count(EventCounts::default()).limited, 990);
        assert!(writes.iter().any(|write| write.event.reason.as_deref() == Some("web:80")));
    }

    #[test]
    fn many_sources_are_limited_together() {
        let mut events = Events::default();
        (0..200).for_each(|number| see(&mut events, &format!("job-{number}"), 80, 0));
        assert_eq!(events.due(second(0), usize::MAX).len(), 50);
        assert_eq!(events.count(EventCounts::default()).limited, 150);
    }

    #[test]
    fn without_room_they_wait_and_when_that_takes_too_long_they_are_counted() {
        let mut events = Events::default();
        see(&mut events, "web", 80, 0);
        see(&mut events, "web", 81, 0);
        see(&mut events, "web", 80, 1);
        assert_eq!(events.due(second(1), 0), []);
        assert_eq!(events.due(second(2), 1).len(), 1);
        assert_eq!(events.due(second(3), 0), []);
        assert_eq!(events.due(second(400), 10), []);
        let late = events.count(EventCounts::default()).late;
        assert!(late == 1 || late == 2, "what is left: {late}");
        assert!(events.series.is_empty());
    }

    #[test]
    fn counts_of_many_series_are_limited_and_wait() {
        let mut events = Events::default();
        for source in 0..5 {
            (0..10).for_each(|port| see(&mut events, &format!("web-{source}"), port, 0));
        }
        assert_eq!(events.due(second(0), usize::MAX).len(), 50);
        for source in 0..5 {
            (0..10).for_each(|port| see(&mut events, &format!("web-{source}"), port, 6));
        }
        assert_eq!(events.due(second(6), usize::MAX).len(), 20);
        let later: usize = (7..=160).map(|at| events.due(second(at), usize::MAX).len()).sum();
        assert_eq!(later, 30, "none is lost");
        assert_eq!(events.count(EventCounts::default()), EventCounts::default());
    }

    #[test]
    fn other_causes_are_other_events() {
        let mut events = Events::default();
        let mut new = key("web", 80);
        new.cause = Some(crate::audit::UnenforcedCause::PodJustStarted);
        for key in [new, key("web", 80)] {
            let series = EventSeries { pod: PodId(1), key };
            events.seen(series, 1, second(0), second(0), || Some(Event::default()));
        }
        assert_eq!(events.due(second(0), 10).len(), 2);
    }
}
