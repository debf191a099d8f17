//! What the demo prints.

use std::collections::BTreeMap;

use crate::account::{
    compare::usage,
    record::{End, Metrics, Record},
};

/// A table with left-aligned columns as wide as their widest cell.
fn table(title: &str, header: &[&str], rows: &[Vec<String>]) {
    println!("\n{title}");
    let header: Vec<String> = header.iter().map(|&cell| cell.to_owned()).collect();
    let width = |column: usize| {
        rows.iter().chain([&header]).map(|row| row[column].chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    for row in [&header].into_iter().chain(rows) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}", width = *width)).collect();
        println!("  {}", cells.join("  ").trim_end());
    }
}

/// Every flow.
pub fn flows(records: &[Record]) {
    let rows: Vec<Vec<String>> = records
        .iter()
        .map(|record| {
            let party = |end: &End| {
                let party = end.party().map_or_else(|_| end.kind.clone(), |party| party.to_string());
                // Those that were asked for come first.
                end.names.first().map_or(party.clone(), |it| format!("{} ({party})", it.name))
            };
            let (subject, peer) = (party(&record.subject), party(&record.peer));
            let (from, to) = if record.direction == "egress" { (subject, peer) } else { (peer, subject) };
            vec![
                record.time.get(11..23).unwrap_or(&record.time).to_owned(),
                record.direction.clone(),
                from,
                to,
                format!("{}/{}", record.protocol, record.port),
                record.outcome.clone(),
                record.verdict.clone(),
                record.why(),
                record.finding.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let header =
        ["time", "end", "from", "to", "port", "outcome", "verdict", "rule, policy or reason", "finding"];
    table(&format!("Flows ({})", rows.len()), &header, &rows);
}

/// Denied flows, by who tried what.
pub fn violations(metrics: &Metrics) {
    let label = |labels: &BTreeMap<String, String>, name: &str| labels.get(name).cloned().unwrap_or_default();
    let rows: Vec<Vec<String>> = metrics
        .named("netaudit_violations_total")
        .filter(|sample| sample.value > 0.0)
        .map(|sample| {
            let end = |side: &str| {
                let namespace = label(&sample.labels, &format!("{side}_namespace"));
                let workload = label(&sample.labels, &format!("{side}_workload"));
                if namespace.is_empty() { workload } else { format!("{namespace}/{workload}") }
            };
            vec![
                label(&sample.labels, "finding"),
                label(&sample.labels, "direction"),
                end("source"),
                end("destination"),
                format!("{}/{}", label(&sample.labels, "protocol"), label(&sample.labels, "port")),
                label(&sample.labels, "policy"),
                sample.value.to_string(),
            ]
        })
        .collect();
    let header = ["finding", "direction", "from", "to", "port", "policy", "times"];
    table(
        &format!("Violations ({} series, {} flows)", rows.len(), metrics.sum("netaudit_violations_total")),
        &header,
        &rows,
    );
}

/// Rules and how often they matched; returns those that never did.
pub fn rules(metrics: &Metrics) -> Vec<String> {
    let usage = usage(metrics);
    let rows: Vec<Vec<String>> = usage
        .iter()
        .map(|(rule, times)| {
            vec![rule.clone(), times.to_string(), if *times == 0 { "no match" } else { "" }.to_owned()]
        })
        .collect();
    table(&format!("Rules ({})", rows.len()), &["rule", "matches", ""], &rows);
    usage.into_iter().filter(|(_, times)| *times == 0).map(|(rule, _)| rule).collect()
}

/// Lost records, by where and why.
pub fn losses(metrics: &Metrics) {
    let lost = "netaudit_records_lost_total";
    println!("\nLosses: {} of {} kernel records", metrics.sum(lost), metrics.sum("netaudit_records_total"));
    for sample in metrics.named(lost).filter(|sample| sample.value > 0.0) {
        println!("  {:?}: {}", sample.labels, sample.value);
    }
}
