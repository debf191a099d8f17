//! `netaudit eval --matrix`: who may talk to whom on what.

use std::io::Write;

use serde_json::{Value, json};

use super::{
    Exit,
    ends::{Ends, Row},
    source::Input,
};
use crate::{cluster::Cluster, policy::symbolic::Connections};

/// What every matrix leaves out, as it never depends on policies.
const ALWAYS: &str = "A pod to itself, and between a pod and its own node, is always allowed.";

/// Prints what the policies of a cluster allow, of the ends that are asked for.
pub(super) fn run(
    cluster: &mut Cluster,
    passed_over: &[String],
    from: Option<&str>,
    to: Option<&str>,
    as_json: bool,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let ends = Ends::new(&mut [cluster], false);
    let [from, to] = [from, to].map(|words| words.map(|it| ends.filter(it)).transpose());
    let (from, to) = (from?, to?);
    let connections = Connections::new(&ends.universe, 0);
    let rows = |set| -> Vec<Row> {
        let part = |row: Row| {
            let from = from.as_ref().map_or(Some(row.from.clone()), |it| it.part(&row.from))?;
            let to = to.as_ref().map_or(Some(row.to.clone()), |it| it.part(&row.to))?;
            Some(Row { from, to, ports: row.ports })
        };
        ends.rows(set).into_iter().filter_map(part).collect()
    };
    let (allowed, unknown) = (rows(&connections.surely), rows(&connections.unknown()));
    if as_json {
        let json = |rows: &[Row]| -> Value { rows.iter().map(|it| ends.row_json(it)).collect() };
        let value = json!({
            "allowed": json(&allowed),
            "unknown": json(&unknown),
            "representatives": ends.are_representatives,
            "notes": ends.notes.iter().map(String::as_str).chain([ALWAYS]).collect::<Vec<_>>(),
            "warnings": Input::warnings(cluster, passed_over),
        });
        writeln!(out, "{value:#}")?;
        return Ok(Exit::Clean);
    }
    for note in &ends.notes {
        writeln!(out, "{note}")?;
    }
    writeln!(out, "allowed")?;
    if allowed.is_empty() {
        writeln!(out, "  nothing")?;
    }
    for row in &allowed {
        writeln!(out, "  {}", ends.row_text(row))?;
    }
    if !unknown.is_empty() {
        writeln!(out, "unknown: neither allowed nor denied for certain")?;
        for row in &unknown {
            writeln!(out, "  {}", ends.row_text(row))?;
        }
    }
    writeln!(out, "{ALWAYS}")?;
    Ok(Exit::Clean)
}
