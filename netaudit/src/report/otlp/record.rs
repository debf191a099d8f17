//! A flow as a log record: everything that the flow log says of it. What has a name in OpenTelemetry's semantic conventions has that;
//! everything else is `netaudit.` and its name in the flow log.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList, any_value},
    logs::v1::{LogRecord, SeverityNumber},
    resource::v1::Resource,
};
use serde_json::Value;

use crate::audit::{
    FlowSeverity,
    line::{End, Line, Telling},
};

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

/// A flow as a log record, but for when it was sent.
pub fn record(telling: &Telling<'_>) -> LogRecord {
    let line = telling.line();
    let severity = telling.flow.finding.map(|finding| FlowSeverity::of_finding(finding, telling.flow.cause));
    let (number, word) = match severity {
        None | Some(FlowSeverity::Info) => (SeverityNumber::Info, "INFO"),
        Some(FlowSeverity::Warning) => (SeverityNumber::Warn, "WARN"),
        Some(FlowSeverity::Critical) => (SeverityNumber::Error, "ERROR"),
    };
    LogRecord {
        time_unix_nano: u64::try_from(line.time.0).unwrap_or(0),
        severity_number: number.into(),
        severity_text: word.to_owned(),
        body: Some(string(&sentence(&line))),
        attributes: attributes(&line),
        event_name: EVENT.to_owned(),
        ..LogRecord::default()
    }
}

/// For people.
fn sentence(line: &Line<'_>) -> String {
    let name = |end: &End<'_>| match (end.namespace, end.pod, end.node) {
        (Some(namespace), Some(pod), _) => format!("{namespace}/{pod}"),
        (_, _, Some(node)) => format!("{} {node}", end.kind),
        _ => end.kind.to_owned(),
    };
    let subject = name(&line.subject.end);
    let peer = match line.peer.end.kind {
        "pod" | "node" => name(&line.peer.end),
        kind => format!("{kind} {}", line.peer.ip),
    };
    let (from, to) = if line.direction == "egress" { (subject, peer) } else { (peer, subject) };
    let finding = line.finding.map(|finding| format!(", {finding}")).unwrap_or_default();
    let Line { protocol, port, direction, outcome, .. } = line;
    format!("{from} to {to} {protocol}/{port} ({direction}): {outcome}, {}{finding}", line.verdict.verdict)
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

fn attributes(line: &Line<'_>) -> Vec<KeyValue> {
    let mut attributes = Vec::with_capacity(48);
    let (subject_address, peer_address, is_ingress) = match line.direction {
        "egress" => ("source.address", "destination.address", false),
        _ => ("destination.address", "source.address", true),
    };
    attributes.push(text("network.transport", &line.protocol.to_ascii_lowercase()));
    let subject = &line.subject.end;
    let workload = subject.workload_kind.and_then(|kind| WORKLOADS.iter().find(|(of, _)| *of == kind));
    if let Some(((_, name), workload)) = workload.zip(subject.workload) {
        attributes.push(text(name, workload));
    }
    // A line always is an object.
    let whole = serde_json::to_value(line).unwrap_or_default();
    flatten(String::new(), whole, &mut |name, value| {
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
