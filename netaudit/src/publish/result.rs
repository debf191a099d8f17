//! A series of findings as a result of a `Report`, to JSON and back: what an agent has written is what the next one knows.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::{Map, Value, json};

use super::words::{Sentence, fate};
use crate::{
    audit::{FlowSeverity, ViolationCount, ViolationKey},
    model::{Direction, Timestamp},
};

/// The properties that tell one result from another: the labels of `netaudit_violations_total`.
const LABELS: [&str; 11] = [
    "direction",
    "source_namespace",
    "source_workload",
    "destination_namespace",
    "destination_workload",
    "protocol",
    "port",
    "finding",
    "policy",
    "cause",
    "accepted",
];

/// One result.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// Those of [`LABELS`] that are not empty.
    pub labels: BTreeMap<String, String>,
    /// How much it weighs.
    pub severity: FlowSeverity,
    /// What it says.
    pub message: String,
    /// The subject's workload, then the peer's; of a folded one, the source.
    pub resources: Vec<ObjectReference>,
    /// Flows.
    pub count: u64,
    /// The last one, by the wall.
    pub last: Timestamp,
    /// The last one, in the flow log.
    pub flow_id: String,
    /// Of one that stands for several: how many.
    pub folded: u64,
}

impl Entry {
    /// Of a series. `kind` knows the kinds of workloads, `last` is by the wall.
    pub fn new(
        key: &ViolationKey,
        count: &ViolationCount,
        last: Timestamp,
        kind: impl Fn(&str, &str) -> Option<String>,
    ) -> Self {
        let policy = key.policy.as_ref().map(ToString::to_string).unwrap_or_default();
        let labels = [
            ("direction", key.direction.to_string()),
            ("source_namespace", key.source_namespace.to_string()),
            ("source_workload", key.source_workload.to_string()),
            ("destination_namespace", key.destination_namespace.to_string()),
            ("destination_workload", key.destination_workload.to_string()),
            ("protocol", key.protocol.to_string()),
            ("port", key.port.map(|port| port.to_string()).unwrap_or_default()),
            ("finding", key.finding.to_string()),
            ("policy", policy.clone()),
            ("cause", key.cause.map(|cause| cause.as_str().to_owned()).unwrap_or_default()),
            ("accepted", key.accepted.as_deref().unwrap_or_default().to_owned()),
        ];
        let source = (&*key.source_namespace, &*key.source_workload);
        let destination = (&*key.destination_namespace, &*key.destination_workload);
        let message = Sentence {
            source: &end(source),
            destination: &end(destination),
            direction: key.direction,
            protocol: key.protocol,
            port: key.port,
            fate: &fate(key, &policy),
        };
        let ends = match key.direction {
            Direction::Egress => [source, destination],
            Direction::Ingress => [destination, source],
        };
        let resource = |(namespace, workload): (&str, &str)| {
            let kind = kind(namespace, workload)?;
            Some(ObjectReference {
                api_version: api_version(&kind).map(str::to_owned),
                kind: Some(kind),
                namespace: Some(namespace.to_owned()),
                name: Some(workload.to_owned()),
                ..ObjectReference::default()
            })
        };
        Self {
            message: message.to_string(),
            labels: labels
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            severity: FlowSeverity::of(key),
            resources: ends.into_iter().filter_map(resource).collect(),
            count: count.total,
            last,
            flow_id: count.flow.to_string(),
            folded: 0,
        }
    }

    /// The namespace and workload that the flows came from; `""` where there is none.
    pub fn source(&self) -> (&str, &str) {
        (self.label("source_namespace"), self.label("source_workload"))
    }

    /// The source as people read it.
    pub fn source_text(&self) -> String {
        end(self.source())
    }

    fn label(&self, name: &str) -> &str {
        self.labels.get(name).map(String::as_str).unwrap_or_default()
    }

    /// As OpenReports has it.
    pub fn to_json(&self) -> Value {
        let several = if self.folded > 0 { "several" } else { "none" };
        let or =
            |label: &str| Some(self.label(label)).filter(|it| !it.is_empty()).unwrap_or(several).to_owned();
        let (severity, result) = match self.severity {
            FlowSeverity::Critical => ("critical", "fail"),
            FlowSeverity::Warning => ("medium", "fail"),
            FlowSeverity::Info => ("info", "warn"),
        };
        let mut properties: Map<String, Value> =
            self.labels.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
        // Properties are texts.
        let also = [
            ("count", self.count.to_string()),
            ("last", self.last.to_string()),
            ("flow_id", self.flow_id.clone()),
        ];
        properties.extend(also.map(|(name, value)| (name.to_owned(), value.into())));
        if self.folded > 0 {
            properties.insert("folded".to_owned(), self.folded.to_string().into());
        }
        json!({
            "policy": or("policy"),
            "rule": or("finding"),
            "category": "Network Policy",
            "severity": severity,
            "result": result,
            "scored": result == "fail",
            "timestamp": {
                "seconds": self.last.0.div_euclid(1_000_000_000),
                "nanos": self.last.0.rem_euclid(1_000_000_000),
            },
            "message": self.message,
            "resources": self.resources,
            "properties": properties,
        })
    }

    /// What [`Entry::to_json`] has written; `None` if it is something else.
    pub fn read(result: &Value) -> Option<Self> {
        let properties = result["properties"].as_object()?;
        let text = |name: &str| properties.get(name).and_then(Value::as_str);
        let labels: BTreeMap<String, String> =
            LABELS.into_iter().filter_map(|name| Some((name.to_owned(), text(name)?.to_owned()))).collect();
        let timestamp = &result["timestamp"];
        let last = timestamp["seconds"].as_i64()?.checked_mul(1_000_000_000)?;
        Some(Self {
            severity: match result["severity"].as_str()? {
                "critical" => FlowSeverity::Critical,
                "medium" => FlowSeverity::Warning,
                "info" => FlowSeverity::Info,
                _ => return None,
            },
            message: result["message"].as_str()?.to_owned(),
            // An empty list is left out on its way through some clients.
            resources: match &result["resources"] {
                Value::Null => Vec::new(),
                list => serde_json::from_value(list.clone()).ok()?,
            },
            count: text("count")?.parse().ok()?,
            last: Timestamp(last.checked_add(timestamp["nanos"].as_i64()?)?),
            flow_id: text("flow_id")?.to_owned(),
            folded: text("folded").map_or(Some(0), |folded| folded.parse().ok())?,
            labels: Some(labels).filter(|labels| labels.contains_key("source_workload"))?,
        })
    }
}

/// `shop/web`, or `node` and `external`, which are of no namespace.
fn end((namespace, workload): (&str, &str)) -> String {
    if namespace.is_empty() { workload.to_owned() } else { format!("{namespace}/{workload}") }
}

/// Where the API has the kinds that Kubernetes itself knows.
fn api_version(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" | "ReplicationController" => Some("v1"),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" => Some("apps/v1"),
        "Job" | "CronJob" => Some("batch/v1"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{Finding, FlowId, UnenforcedCause},
        publish::testing::key,
    };

    fn entry(key: &ViolationKey) -> Entry {
        let flow = FlowId { run: "worker-1-run".into(), sequence: 7 };
        let count = ViolationCount { total: 3, last: Timestamp(0), flow };
        let kind = |_: &str, workload: &str| (workload == "web").then(|| "Deployment".to_owned());
        Entry::new(key, &count, Timestamp(1_700_000_000_000_000_042), kind)
    }

    #[test]
    fn it_says_all_of_the_series() {
        let mut key = key("web", 5432);
        key.cause = Some(UnenforcedCause::NothingEnforces);
        let result = entry(&key).to_json();
        assert_eq!(
            result,
            json!({
                "policy": "NetworkPolicy/shop/deny", "rule": "unenforced", "category": "Network Policy",
                "severity": "critical", "result": "fail", "scored": true,
                "timestamp": {"seconds": 1_700_000_000, "nanos": 42},
                "message": "shop/web to shop/db TCP/5432 (egress) passed though NetworkPolicy/shop/deny denies it; cause: nothing enforces",
                "resources": [{"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "web"}],
                "properties": {
                    "direction": "egress", "source_namespace": "shop", "source_workload": "web",
                    "destination_namespace": "shop", "destination_workload": "db", "protocol": "TCP",
                    "port": "5432", "finding": "unenforced", "cause": "nothing enforces",
                    "policy": "NetworkPolicy/shop/deny", "count": "3",
                    "last": "2023-11-14T22:13:20.000000042Z", "flow_id": "worker-1-run-7",
                },
            })
        );
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut suspected = ViolationKey { finding: Finding::SuspectedBlock, policy: None, ..key("web", 80) };
        suspected.port = None;
        suspected.source_namespace = "".into();
        let accepted = ViolationKey { accepted: Some("known".into()), ..key("other", 1) };
        for key in [key("web", 80), suspected, accepted] {
            let entry = entry(&key);
            assert_eq!(Entry::read(&entry.to_json()), Some(entry));
        }
    }

    #[test]
    fn what_somebody_else_wrote_is_not_taken() {
        for change in ["severity", "timestamp", "properties", "message"] {
            let mut result = entry(&key("web", 80)).to_json();
            result.as_object_mut().unwrap().remove(change);
            assert_eq!(Entry::read(&result), None, "{change}");
        }
    }
}
