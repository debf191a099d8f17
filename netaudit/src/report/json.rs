//! A flow as one JSON object: the flow log's line. Its fields are an API, described in docs/flow-log.md.

use crate::audit::line::Telling;

/// Appends a flow to `line` as one JSON object, without a line break.
pub fn flow_line(telling: &Telling<'_>, line: &mut Vec<u8>) {
    // Only a map with keys that are no strings or a failing writer can fail, and there is neither.
    let _ = serde_json::to_writer(line, &telling.line());
}
