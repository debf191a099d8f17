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

/// The versions of Kubernetes' own workloads, also of those that no API server has any more: their templates are the same.
const VERSIONS: [&str; 7] =
    ["v1", "apps/v1", "apps/v1beta1", "apps/v1beta2", "batch/v1", "batch/v1beta1", "extensions/v1beta1"];

/// What is of another group may have a template in the usual place.
const OTHER: Workload = Workload { kind: "", template: "/spec/template", adds: &[] };

fn version(value: &Value) -> &str {
    value.get("apiVersion").and_then(Value::as_str).unwrap_or("v1")
}

fn workload(kind: &str, value: &Value) -> Option<&'static Workload> {
    // Other groups have a Job or a Deployment, too, and templates of another form.
    let is_own = VERSIONS.contains(&version(value));
    if let Some(own) = WORKLOADS.iter().find(|it| is_own && it.kind == kind) {
        return Some(own);
    }
    let part = |path: &str| value.pointer(&format!("{}{path}", OTHER.template));
    let has_template = part("/metadata/labels").is_some_and(Value::is_object)
        && part("/spec/containers").is_some_and(Value::is_array);
    has_template.then_some(&OTHER)
}

/// Groups that are not Kubernetes' own, none of whose kinds makes pods where it stands.
const MAKE_NONE: [&str; 20] = [
    "acme.cert-manager.io",
    "bitnami.com",
    "cert-manager.io",
    "cilium.io",
    "crd.antrea.io",
    "crd.projectcalico.org",
    "external-secrets.io",
    "gateway.networking.k8s.io",
    "kustomize.config.k8s.io",
    "kyverno.io",
    "networking.gke.io",
    "networking.istio.io",
    "notification.toolkit.fluxcd.io",
    "policy.networking.k8s.io",
    "projectcalico.org",
    "security.istio.io",
    "snapshot.storage.k8s.io",
    "source.toolkit.fluxcd.io",
    "traefik.containo.us",
    "traefik.io",
];

/// Kinds of other groups that make no pods, beside some that do.
const MAKES_NONE: [&str; 9] = [
    "AlertmanagerConfig",
    "AppProject",
    "PodMonitor",
    "Probe",
    "PrometheusRule",
    "ScaledObject",
    "ScrapeConfig",
    "ServiceMonitor",
    "TriggerAuthentication",
];

/// What an object is, if something may make pods of it that its manifest does not show: it is of a kind of another group, and
/// that is not known to make none.
pub(super) fn may_make_pods(kind: &str, value: &Value) -> Option<String> {
    value.get("metadata").and_then(Value::as_object)?;
    let group = version(value).rsplit_once('/').map_or("", |(group, _)| group);
    // An implementation of the Gateway API may run each Gateway as pods beside it.
    let is_gateway = group == "gateway.networking.k8s.io" && kind == "Gateway";
    let is_own = !group.contains('.') || group.ends_with(".k8s.io");
    let makes_none = is_own || MAKE_NONE.contains(&group) || MAKES_NONE.contains(&kind);
    if makes_none && !is_gateway {
        return None;
    }
    let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    Some(format!("{kind} {name} of {group}"))
}

/// The namespaces in which something may be made of an object: its own, and the one that it names for this.
pub(super) fn namespaces(value: &Value) -> impl Iterator<Item = &str> {
    let text = |path: &str| value.pointer(path).and_then(Value::as_str).filter(|it| !it.is_empty());
    let own = text("/metadata/namespace").unwrap_or(DEFAULT_NAMESPACE);
    let others = ["/spec/targetNamespace", "/spec/destination/namespace"].into_iter().filter_map(text);
    std::iter::once(own).chain(others.collect::<Vec<_>>())
}

/// The pods of an object; `None` where none are made of it, and the reason where they cannot be read.
pub(super) fn pods(kind: &str, value: &Value) -> Option<Result<Pods, String>> {
    let workload = workload(kind, value)?;
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
        kind: kind.to_owned(),
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
