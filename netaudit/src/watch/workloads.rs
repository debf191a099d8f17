//! What pods are made of: a Pod's own manifest, or the template of a workload, to the pods that there will be.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::convert::{self, DEFAULT_NAMESPACE};
use crate::{
    advise::lint::{Pods, Probe},
    cluster::{Kind, Object},
    model::Protocol,
};

/// A kind that makes pods.
struct Workload {
    kind: &'static str,
    /// Where the pod's metadata and spec are.
    template: &'static str,
    /// The labels that its controller adds to each pod.
    adds: &'static [&'static str],
}

/// As the API has them: a Job's pods also have what the Job controller adds, whoever makes the Job.
const WORKLOADS: [Workload; 8] = [
    Workload { kind: "Pod", template: "", adds: &[] },
    Workload { kind: "Deployment", template: "/spec/template", adds: &["pod-template-hash"] },
    Workload { kind: "ReplicaSet", template: "/spec/template", adds: &["pod-template-hash"] },
    Workload { kind: "ReplicationController", template: "/spec/template", adds: &[] },
    Workload {
        kind: "StatefulSet",
        template: "/spec/template",
        adds: &[
            "apps.kubernetes.io/pod-index",
            "controller-revision-hash",
            "statefulset.kubernetes.io/pod-name",
        ],
    },
    Workload {
        kind: "DaemonSet",
        template: "/spec/template",
        adds: &["controller-revision-hash", "pod-template-generation"],
    },
    Workload { kind: "Job", template: "/spec/template", adds: &JOB },
    Workload { kind: "CronJob", template: "/spec/jobTemplate/spec/template", adds: &JOB },
];

const JOB: [&str; 5] = [
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-name",
    "controller-uid",
    "job-name",
];

/// Whether pods are made of what is of this kind.
pub(super) fn makes_pods(kind: &str) -> bool {
    WORKLOADS.iter().any(|it| it.kind == kind)
}

/// The pods of an object; `None` where none are made of it, and the reason where they cannot be read.
pub(super) fn pods(kind: &str, value: &Value) -> Option<Result<Pods, String>> {
    let workload = WORKLOADS.iter().find(|it| it.kind == kind)?;
    // Other groups have a Job or a Deployment, too, and templates of another form.
    let version = value.get("apiVersion").and_then(Value::as_str).unwrap_or("v1");
    if !["v1", "apps/v1", "batch/v1", "batch/v1beta1"].contains(&version) {
        return None;
    }
    let template = value.pointer(workload.template)?;
    let metadata = |name: &str| value.pointer(&format!("/metadata/{name}")).and_then(Value::as_str);
    let namespace = metadata("namespace").filter(|it| !it.is_empty()).unwrap_or(DEFAULT_NAMESPACE);
    let name = metadata("name").or(metadata("generateName")).unwrap_or_default();
    let mut pod = json!({
        "metadata": template.get("metadata").cloned().unwrap_or_else(|| json!({})),
        "spec": template.get("spec").cloned().unwrap_or_else(|| json!({})),
        "status": template.get("status").cloned().unwrap_or_else(|| json!({})),
    });
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.insert("name".to_owned(), name.into());
        metadata.insert("namespace".to_owned(), namespace.into());
        if kind != "Pod" {
            metadata.insert(
                "ownerReferences".to_owned(),
                json!([{ "kind": kind, "name": name, "controller": true }]),
            );
        }
    }
    let pod = match convert::object(Kind::Pod, &pod, &"".into()) {
        Object::Pod(pod) => pod,
        Object::Broken(broken) => return Some(Err(format!("{kind} {namespace}/{name}: {}", broken.reason))),
        _ => return None,
    };
    let mut pods = Pods {
        pod,
        kind: workload.kind,
        open: workload.adds,
        ports: BTreeSet::new(),
        probes: Vec::new(),
        containers: Vec::new(),
        arguments: Vec::new(),
    };
    let path = format!("{}.spec", workload.template.replace('/', ".")).trim_start_matches('.').to_owned();
    for list in ["containers", "initContainers"] {
        let containers = template.get("spec").and_then(|it| it.get(list)).and_then(Value::as_array);
        for (index, container) in containers.into_iter().flatten().enumerate() {
            // Others are over before the pod is ready, but those that stay serve, too.
            if list == "containers" || container.get("restartPolicy").is_some_and(|it| it == "Always") {
                read_container(container, &format!("{path}.{list}[{index}]"), &mut pods);
            }
        }
    }
    Some(Ok(pods))
}

/// What is not as it should be the pod's own conversion has told.
fn read_container(container: &Value, path: &str, pods: &mut Pods) {
    let list = |name: &str| container.get(name).and_then(Value::as_array).into_iter().flatten();
    pods.containers.extend(container.get("name").and_then(Value::as_str).map(str::to_owned));
    for name in ["command", "args"] {
        pods.arguments.extend(list(name).filter_map(Value::as_str).map(str::to_owned));
    }
    let number = |value: &Value| value.as_u64().and_then(|it| u16::try_from(it).ok()).filter(|it| *it != 0);
    let mut named = Vec::new();
    for port in list("ports") {
        let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").parse::<Protocol>();
        if let (Some(number), Ok(protocol)) = (port.get("containerPort").and_then(number), protocol) {
            pods.ports.insert((protocol, number));
            named.extend(port.get("name").and_then(Value::as_str).map(|name| (name, number)));
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        for way in ["httpGet", "tcpSocket", "grpc"] {
            let Some(action) = container.get(probe).and_then(|it| it.get(way)) else { continue };
            // A host of its own is not the pod.
            if action.get("host").and_then(Value::as_str).is_some_and(|it| !it.is_empty()) {
                continue;
            }
            let Some(port) = action.get("port") else { continue };
            // A probe by name is for a port of its own container.
            let by_name = || named.iter().find(|(name, _)| port.as_str() == Some(name)).map(|(_, it)| *it);
            if let Some(port) = number(port).or_else(by_name) {
                pods.probes.push(Probe { path: format!("{path}.{probe}.{way}.port"), port });
            }
        }
    }
}
