//! What became of findings that were to be written to the API server; nothing where that is not asked for.

use super::{AgentState, family::Family};

pub(super) fn published(state: &AgentState<'_>) -> Vec<Family> {
    let mut families = Vec::new();
    if let Some(counts) = state.published.events {
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
    if let Some(counts) = state.published.reports {
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
