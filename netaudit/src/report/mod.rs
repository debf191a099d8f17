//! What people and log shippers read of flows: the flow log and its JSON form.

mod findings;
mod flow_log;
mod json;
pub mod otlp;

pub use findings::{
    AcceptedLine, EndLine, EnforcementState, FORM as FINDINGS_FORM, FindingLine, Findings, findings,
};
pub use flow_log::FlowLog;
pub use json::flow_line;
