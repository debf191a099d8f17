//! What people and log shippers read of flows: the flow log and its JSON form.

mod flow_log;
mod json;

pub use flow_log::FlowLog;
pub use json::flow_line;
