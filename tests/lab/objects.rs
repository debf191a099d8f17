//! The Kubernetes objects that describe the lab, as an API server would show them to netaudit.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::node::{NODE_NAME, NODE_V4, NODE_V6, POD_CIDR_V4, POD_CIDR_V6, Pod, Qos, Service};

/// What controls a pod.
#[derive(Clone, Debug)]
pub enum Owner {
    /// Nothing: a pod of its own.
    Bare,
    /// A Deployment of this name, through a ReplicaSet with this template hash.
    Deployment(&'static str, &'static str),
    /// A StatefulSet of this name.
    StatefulSet(&'static str),
    /// A CronJob of this name, through the Job of this scheduled minute.
    CronJob(&'static str, u32),
}

impl Owner {
    /// The label that the controller adds to its pods' own.
    fn label(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Bare => None,
            Self::Deployment(_, hash) => Some(("pod-template-hash", (*hash).to_owned())),
            Self::StatefulSet(name) => Some(("statefulset.kubernetes.io/pod-name", format!("{name}-0"))),
            Self::CronJob(name, minute) => Some(("batch.kubernetes.io/job-name", format!("{name}-{minute}"))),
        }
    }

    fn references(&self) -> Value {
        let (api, kind, name) = match self {
            Self::Bare => return json!([]),
            Self::Deployment(name, hash) => ("apps/v1", "ReplicaSet", format!("{name}-{hash}")),
            Self::StatefulSet(name) => ("apps/v1", "StatefulSet", (*name).to_owned()),
            Self::CronJob(name, minute) => ("batch/v1", "Job", format!("{name}-{minute}")),
        };
        let uid = format!(
            "00000000-0000-4000-9000-{:012x}",
            name.bytes()
                .fold(7_u64, |sum, byte| { (sum.wrapping_mul(31) + u64::from(byte)) & 0xffff_ffff_ffff })
        );
        json!([{
            "apiVersion": api, "kind": kind, "name": name, "uid": uid,
            "controller": true, "blockOwnerDeletion": true,
        }])
    }
}

/// A Namespace with the label that the API server gives to every one, and `labels` beside it.
pub fn namespace(name: &str, labels: &BTreeMap<String, String>) -> Value {
    let mut labels = labels.clone();
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
        "status": {"phase": "Active"},
    })
}

/// The lab's node.
pub fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE_NAME, "labels": {"kubernetes.io/hostname": NODE_NAME, "kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": POD_CIDR_V4, "podCIDRs": [POD_CIDR_V4, POD_CIDR_V6]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": NODE_V4},
            {"type": "InternalIP", "address": NODE_V6},
            {"type": "Hostname", "address": NODE_NAME},
        ]},
    })
}

/// A running pod.
pub fn pod(pod: &Pod) -> Value {
    let spec = &pod.spec;
    let mut labels: BTreeMap<&str, String> =
        spec.labels.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    labels.extend(spec.owner.label());
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "containerPort": port}))
        .collect();
    let resources = match spec.qos {
        Qos::Guaranteed => {
            json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}})
        }
        Qos::Burstable => json!({"requests": {"cpu": "100m"}}),
        Qos::BestEffort => json!({}),
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": spec.name, "namespace": spec.namespace, "uid": pod.uid, "labels": labels,
            "ownerReferences": spec.owner.references(),
        },
        "spec": {
            "nodeName": NODE_NAME,
            "containers": [{"name": spec.container, "image": spec.container, "ports": ports, "resources": resources}],
        },
        "status": {
            "phase": "Running", "qosClass": spec.qos.as_str(),
            "hostIP": NODE_V4, "hostIPs": [{"ip": NODE_V4}, {"ip": NODE_V6}],
            "podIP": pod.v4, "podIPs": [{"ip": pod.v4}, {"ip": pod.v6}],
            "containerStatuses": [{
                "name": spec.container, "ready": true, "containerID": format!("containerd://{}", pod.container_id),
                "state": {"running": {}},
            }],
        },
    })
}

/// A Service, and the EndpointSlices of its two address families over `endpoints`.
pub fn service(service: &Service, endpoints: &[&Pod]) -> Vec<Value> {
    let spec = &service.spec;
    let node_ports = spec.ports.iter().any(|port| port.node_port.is_some());
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| {
            let mut value = json!({
                "name": port.name, "protocol": port.protocol, "port": port.port, "targetPort": port.target_port,
            });
            if let Some(node_port) = port.node_port {
                value["nodePort"] = node_port.into();
            }
            value
        })
        .collect();
    let selector: BTreeMap<_, _> = spec.selector.iter().copied().collect();
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": spec.name, "namespace": spec.namespace},
        "spec": {
            "type": if node_ports { "NodePort" } else { "ClusterIP" },
            "clusterIP": service.v4, "clusterIPs": [service.v4, service.v6],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "selector": selector, "ports": ports,
        },
    });
    if node_ports {
        object["spec"]["externalTrafficPolicy"] = "Local".into();
    }
    let slices = [("IPv4", "v4"), ("IPv6", "v6")].map(|(family, suffix)| {
        let ports: Vec<Value> = spec
            .ports
            .iter()
            .map(|port| json!({"name": port.name, "protocol": port.protocol, "port": port.target_port}))
            .collect();
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|pod| {
                let address = if family == "IPv4" { pod.v4.to_string() } else { pod.v6.to_string() };
                json!({
                    "addresses": [address], "nodeName": NODE_NAME,
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                    "targetRef": {
                        "kind": "Pod", "namespace": pod.spec.namespace, "name": pod.spec.name, "uid": pod.uid,
                    },
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{suffix}", spec.name), "namespace": spec.namespace,
                "labels": {"kubernetes.io/service-name": spec.name},
            },
            "addressType": family, "endpoints": endpoints, "ports": ports,
        })
    });
    [object].into_iter().chain(slices).collect()
}
