//! Findings on their way to the API server: into events and reports, where they are asked for.

use std::time::Duration;

use super::State;
use crate::{
    audit::{Subject, line::Telling},
    metrics::{EventsState, ReportsState},
    model::Timestamp,
    publish::{self, EventCounts, EventQueue, EventSeries, Events, ReportCounts, ReportFeed, Snapshot},
};

/// The agent's ends of what writes to the API server.
#[derive(Default)]
pub(in crate::agent) struct Publishing {
    events: Option<(Events, EventQueue)>,
    reports: Option<ReportFeed>,
    reports_every: Duration,
    /// When reports were last handed on.
    reported: Option<Timestamp>,
}

impl Publishing {
    pub(in crate::agent) fn new(
        events: Option<EventQueue>,
        reports: Option<ReportFeed>,
        reports_every: Duration,
    ) -> Self {
        Self {
            events: events.map(|queue| (Events::default(), queue)),
            reports,
            reports_every,
            reported: None,
        }
    }

    /// What became of events, for the metrics.
    pub(super) fn events_state(&self) -> Option<EventsState> {
        let (events, queue) = self.events.as_ref()?;
        let EventCounts { written, limited, late, failed } = events.count(queue.counts());
        Some(EventsState { written, limited, late, failed })
    }

    /// What became of reports, for the metrics.
    pub(super) fn reports_state(&self) -> Option<ReportsState> {
        let counts = self.reports.as_ref()?.counts();
        let ReportCounts { written, failed, whole, folded, no_namespace } = counts;
        Some(ReportsState { written, failed, whole, folded, no_namespace })
    }

    /// What is not written, and why.
    pub(super) fn degraded(&self) -> impl Iterator<Item = String> {
        let events = self.events.as_ref().and_then(|(_, queue)| queue.failing());
        let reports = self.reports.as_ref().and_then(ReportFeed::failing);
        let events = events.map(|fault| format!("events are not written: {fault}"));
        events.into_iter().chain(reports.map(|fault| format!("reports are not written: {fault}")))
    }
}

impl State {
    /// Notes what deserves an event in flows that nobody has been told of yet.
    pub(super) fn note_events(&mut self) {
        let Some((events, _)) = &mut self.publishing.events else { return };
        let (now, correction) = (self.kernel.now(), self.kernel.wall_correction());
        let privacy = &self.sinks.privacy;
        for flow in self.told.flows.iter().filter(|flow| flow.finding.is_some()) {
            let Subject::Pod(pod) = flow.subject else { continue };
            let Some(key) = self.auditor.violation(flow).filter(|key| key.accepted.is_none()) else {
                continue;
            };
            let wall = Timestamp(flow.observation.at.0.saturating_add(correction));
            let first = || {
                let (cluster, node) = (self.auditor.cluster(), self.auditor.node());
                publish::event(&Telling { flow, cluster, node, correction, privacy }, &key)
            };
            events.seen(EventSeries { pod, key: key.clone() }, flow.observation.count(), wall, now, first);
        }
    }

    /// Hands on what is due.
    pub(super) fn publish(&mut self, now: Timestamp) {
        if let Some((events, queue)) = &mut self.publishing.events {
            events.due(now, queue.room()).into_iter().for_each(|write| queue.push(write));
        }
        let every = self.publishing.reports_every;
        // Objects that are still missing could be the policies that a finding is about.
        let is_ready = self.watches.iter().all(|watch| watch.state.ready);
        if is_ready && self.publishing.reported.is_none_or(|at| now.since(at) >= every) {
            self.report(now, false);
        }
    }

    /// Hands on all that waits, before the end.
    pub(super) fn publish_last(&mut self, now: Timestamp) {
        self.publish(now);
        self.report(now, true);
    }

    fn report(&mut self, now: Timestamp, is_last: bool) {
        let Some(reports) = &self.publishing.reports else { return };
        let snapshot = publish::snapshot(&self.auditor, now, self.kernel.wall_correction());
        reports.push(Snapshot { is_last, ..snapshot });
        self.publishing.reported = Some(now);
    }
}
