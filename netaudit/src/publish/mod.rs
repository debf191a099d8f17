//! Findings as Kubernetes objects, so that what shows those shows findings too: Events on pods, and OpenReports' `Report`s.
//!
//! ```text
//! flows ──────────▶ Events (series, limit) ──due, each second──▶ queue ──▶ event writer ──▶ events.k8s.io
//! violations ──every reportsEvery──▶ Snapshot ──the latest──▶ report writer (Reports: merge, fold, differ) ──▶ openreports.io
//! ```
//!
//! What decides is pure, with time as an argument. The writers are tasks of their own; the agent's loop never waits for
//! them: it hands on what there is room for, and what they say comes back as counts that it reads.

#[deny(clippy::disallowed_methods, reason = "what decides is pure: time is an argument")]
mod event;
mod event_writer;
#[deny(clippy::disallowed_methods, reason = "what decides is pure: time is an argument")]
mod events;
#[deny(clippy::disallowed_methods, reason = "what decides is pure: time is an argument")]
mod limit;
mod report_writer;
#[deny(clippy::disallowed_methods, reason = "what decides is pure: time is an argument")]
mod reports;
#[deny(clippy::disallowed_methods, reason = "what decides is pure: time is an argument")]
mod result;
#[deny(clippy::disallowed_methods, reason = "what decides is pure: time is an argument")]
mod snapshot;
#[cfg(test)]
mod testing;
#[deny(clippy::disallowed_methods, reason = "what decides is pure: time is an argument")]
mod words;

use std::time::Duration;

use crate::causes::with_causes;
pub use event::event;
pub use event_writer::{EventQueue, event_writer};
pub use events::{EventSeries, Events, Write};
pub use report_writer::{ReportFeed, ReportSettings, report_writer};
pub use snapshot::{Snapshot, snapshot};

/// Who writes, as objects name it: `reportingController`, `source` and the manager of fields.
const CONTROLLER: &str = "netaudit";

/// How long the API server may take to answer a write.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of the findings that deserve an event, in flows.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct EventCounts {
    /// They stand in events.
    pub written: u64,
    /// The limit held them back.
    pub limited: u64,
    /// Their series ended before the API server took them.
    pub late: u64,
    /// The API server did not take them.
    pub failed: u64,
}

/// What became of reports.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ReportCounts {
    /// Writes and deletions of reports.
    pub written: u64,
    /// Those that failed.
    pub failed: u64,
    /// Findings that have a result of their own.
    pub whole: u64,
    /// Findings that share a result with others of the same source.
    pub folded: u64,
    /// Findings of no namespace: no report can have them.
    pub no_namespace: u64,
}

/// What kube says of a fault, without its structures. The API server's own words suffice where it has answered.
fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        error => with_causes(error),
    }
}

/// Whether the namespace to write into is gone or going: nothing of it needs to be told any more.
fn is_namespace_gone(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let Some(details) = &status.details else { return false };
    (status.code == 404 && details.kind == "namespaces")
        || details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
}
