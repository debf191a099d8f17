//! What became of findings that were to be written to the API server; nothing where that is not asked for.

use super::{AgentState, family::Family};

/// What became of findings that deserve an event, in flows.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct EventsState {
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
pub struct ReportsState {
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

pub(super) fn published(state: &AgentState<'_>) -> Vec<Family> {
    let mut families = Vec::new();
    if let Some(counts) = state.events {
        let results = [
            ("written", counts.written),
            ("limited", counts.limited),
            ("late", counts.late),
            ("failed", counts.failed),
        ];
        families.push(
            Family::counter(
                "netaudit_events",
                "Findings that deserve a Kubernetes Event, by what became of them: written, limited, late (their series ended before the API server took it) or failed",
            )
            .with_all(results.map(|(result, count)| (vec![("result", result.to_owned())], count as f64))),
        );
    }
    if let Some(counts) = state.reports {
        let writes = [("written", counts.written), ("failed", counts.failed)];
        let results =
            [("whole", counts.whole), ("folded", counts.folded), ("no-namespace", counts.no_namespace)];
        families.push(
            Family::counter("netaudit_report_writes", "Writes and deletions of Report objects")
                .with_all(writes.map(|(result, count)| (vec![("result", result.to_owned())], count as f64))),
        );
        families.push(
            Family::gauge(
                "netaudit_report_findings",
                "Series of findings by how reports have them: whole, folded with others of their source, or not at all as they are of no namespace",
            )
            .with_all(results.map(|(told, count)| (vec![("told", told.to_owned())], count as f64))),
        );
    }
    families
}
