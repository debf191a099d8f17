//! The agent's metrics: read from the auditor's state at scrape, never kept twice.
//!
//! Names, labels and meaning are an API, described in the README. Every label's values are bounded: there is no address, no
//! pod name and no ephemeral port.

mod enforcement;
mod families;
mod family;
mod flow_store;
mod published;

pub use families::{AgentState, WatchState};
pub use flow_store::{FlowBucketState, FlowStoreState};
pub use published::{EventsState, ReportsState};

use prometheus_client::{
    encoding::{prometheus_text, text},
    registry::Registry,
};

use family::Families;

/// The exposition formats that a scraper can ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The Prometheus text format 0.0.4.
    Text,
}

impl Format {
    /// The format for a request with this `Accept` header: OpenMetrics where it is named, else text.
    pub fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Text,
        }
    }

    /// The `Content-Type` of the answer.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// Everything of `state` as one exposition.
pub fn render(state: &AgentState<'_>, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families::new(families::families(state))));
    let mut out = String::new();
    // Writing to a String cannot fail, and the encoders add no failure of their own to what `family` gives them.
    let result = match format {
        Format::OpenMetrics => text::encode(&mut out, &registry),
        Format::Text => prometheus_text::encode(&mut out, &registry),
    };
    if let Err(error) = result {
        tracing::error!(%error, "metrics could not be rendered");
    }
    out
}
