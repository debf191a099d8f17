//! A flow as one JSON object: the flow log's line. Its fields are an API, described in the README.

use crate::{
    audit::{Flow, line::Telling},
    cluster::Cluster,
};

/// Appends `flow` to `line` as one JSON object, without a line break. The agent's own time line never steps;
/// `correction` nanoseconds make today's wall time of it.
pub fn flow_line(flow: &Flow, cluster: &Cluster, node: &str, correction: i64, line: &mut Vec<u8>) {
    // Only a map with keys that are no strings or a failing writer can fail, and there is neither.
    let _ = serde_json::to_writer(line, &Telling { flow, cluster, node, correction }.line());
}
