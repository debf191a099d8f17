//! A flow as a log record: everything that the flow log says of it. What has a name in OpenTelemetry's semantic conventions has that;
//! everything else is `netaudit.` and its name in the flow log.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList, any_value},
    logs::v1::{LogRecord, SeverityNumber},
    resource::v1::Resource,
};
use serde_json::Value;

use crate::audit::{FlowSeverity, line::Telling};

/// What a record of a flow is called.
const EVENT: &str = "netaudit.flow";

/// Who sends.
pub(super) fn resource(node: &str) -> Resource {
    let attributes = vec![
        text("service.name", "netaudit"),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("service.instance.id", node),
        text("k8s.node.name", node),
    ];
    Resource { attributes, ..Resource::default() }
}

/// What is told of a record beside its line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    /// When the flow began, in nanoseconds since the epoch.
    time: u64,
    severity: Option<FlowSeverity>,
    /// When it was told, in the same; 0 where that is not said.
    observed: u64,
}

impl Head {
    pub fn new(telling: &Telling<'_>, observed: u64) -> Self {
        let flow = telling.flow;
        Self {
            time: u64::try_from(telling.wall(flow.observation.first()).0).unwrap_or(0),
            severity: flow.finding.map(|finding| FlowSeverity::of_finding(finding, flow.cause)),
            observed,
        }
    }
}

/// A flow as a log record, but for when it was sent.
pub fn record(telling: &Telling<'_>) -> LogRecord {
    // A line always is an object.
    of_line(&Head::new(telling, 0), serde_json::to_value(telling.line()).unwrap_or_default())
}

/// A line of the flow log as a log record.
pub(super) fn of_line(head: &Head, line: Value) -> LogRecord {
    let (number, word) = match head.severity {
        None | Some(FlowSeverity::Info) => (SeverityNumber::Info, "INFO"),
        Some(FlowSeverity::Warning) => (SeverityNumber::Warn, "WARN"),
        Some(FlowSeverity::Critical) => (SeverityNumber::Error, "ERROR"),
    };
    LogRecord {
        time_unix_nano: head.time,
        observed_time_unix_nano: head.observed,
        severity_number: number.into(),
        severity_text: word.to_owned(),
        body: Some(string(&sentence(&line))),
        attributes: attributes(line),
        event_name: EVENT.to_owned(),
        ..LogRecord::default()
    }
}

fn word<'a>(of: &'a Value, name: &str) -> Option<&'a str> {
    of.get(name)?.as_str()
}

/// For people.
fn sentence(line: &Value) -> String {
    let (subject, peer) = (&line["subject"], &line["peer"]);
    let kind = |end| word(end, "kind").unwrap_or_default();
    let name = |end| match (word(end, "namespace"), word(end, "pod"), word(end, "node")) {
        (Some(namespace), Some(pod), _) => format!("{namespace}/{pod}"),
        (_, _, Some(node)) => format!("{} {node}", kind(end)),
        _ => kind(end).to_owned(),
    };
    let other = match kind(peer) {
        "pod" | "node" => name(peer),
        kind => format!("{kind} {}", word(peer, "ip").unwrap_or_default()),
    };
    let field = |name| word(line, name).unwrap_or_default();
    let direction = field("direction");
    let (from, to) = if direction == "egress" { (name(subject), other) } else { (other, name(subject)) };
    let finding = word(line, "finding").map(|finding| format!(", {finding}")).unwrap_or_default();
    let (protocol, port, outcome) = (field("protocol"), &line["port"], field("outcome"));
    format!("{from} to {to} {protocol}/{port} ({direction}): {outcome}, {}{finding}", field("verdict"))
}

/// Names in the flow log, and those of the semantic conventions.
const CONVENTIONS: [(&str, &str); 8] = [
    ("subject.namespace", "k8s.namespace.name"),
    ("subject.pod", "k8s.pod.name"),
    ("subject.uid", "k8s.pod.uid"),
    ("subject.node", "k8s.node.name"),
    ("actor.container", "container.id"),
    ("actor.pid", "process.pid"),
    ("actor.comm", "process.executable.name"),
    ("port", "destination.port"),
];

/// Kinds of workloads that have a name of their own there.
const WORKLOADS: [(&str, &str); 6] = [
    ("Deployment", "k8s.deployment.name"),
    ("StatefulSet", "k8s.statefulset.name"),
    ("DaemonSet", "k8s.daemonset.name"),
    ("ReplicaSet", "k8s.replicaset.name"),
    ("Job", "k8s.job.name"),
    ("CronJob", "k8s.cronjob.name"),
];

fn attributes(line: Value) -> Vec<KeyValue> {
    let mut attributes = Vec::with_capacity(48);
    let (subject_address, peer_address, is_ingress) = match word(&line, "direction") {
        Some("egress") => ("source.address", "destination.address", false),
        _ => ("destination.address", "source.address", true),
    };
    let protocol = word(&line, "protocol").unwrap_or_default();
    attributes.push(text("network.transport", &protocol.to_ascii_lowercase()));
    let subject = &line["subject"];
    let workload =
        word(subject, "workload_kind").and_then(|kind| WORKLOADS.iter().find(|(of, _)| *of == kind));
    if let Some(((_, name), workload)) = workload.zip(word(subject, "workload")) {
        attributes.push(text(name, workload));
    }
    flatten(String::new(), line, &mut |name, value| {
        let conventional = match name.as_str() {
            // Told above, or as the record's own time.
            "time" | "protocol" => return,
            "subject.ip" => Some(subject_address),
            "peer.ip" => Some(peer_address),
            "peer.port" if is_ingress => Some("source.port"),
            // The port that was judged says it.
            "peer.port" => return,
            name => CONVENTIONS.iter().find(|(of, _)| *of == name).map(|(_, conventional)| *conventional),
        };
        let key = conventional.map_or_else(|| format!("netaudit.{name}"), str::to_owned);
        attributes.push(KeyValue { key, value: Some(value), ..KeyValue::default() });
    });
    attributes
}

/// Hands on everything in a value that is something, by its path.
fn flatten(path: String, value: Value, each: &mut dyn FnMut(String, AnyValue)) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                flatten(path, value, each);
            }
        }
        Value::Null => {}
        Value::String(text) if text.is_empty() => {}
        Value::Array(items) if items.is_empty() => {}
        value => each(path, any(value)),
    }
}

fn any(value: Value) -> AnyValue {
    use any_value::Value as Any;
    let value = match value {
        Value::Null => None,
        Value::Bool(is) => Some(Any::BoolValue(is)),
        Value::Number(number) => Some(match number.as_i64() {
            Some(whole) => Any::IntValue(whole),
            None => Any::DoubleValue(number.as_f64().unwrap_or(0.0)),
        }),
        Value::String(text) => Some(Any::StringValue(text)),
        Value::Array(items) => {
            Some(Any::ArrayValue(ArrayValue { values: items.into_iter().map(any).collect() }))
        }
        Value::Object(fields) => {
            let field = |(key, value)| KeyValue { key, value: Some(any(value)), ..KeyValue::default() };
            Some(Any::KvlistValue(KeyValueList { values: fields.into_iter().map(field).collect() }))
        }
    };
    AnyValue { value }
}

fn string(text: &str) -> AnyValue {
    AnyValue { value: Some(any_value::Value::StringValue(text.to_owned())) }
}

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(string(value)), ..KeyValue::default() }
}
