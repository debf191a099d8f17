//! Whose network a node has, told from the pods that run on it.
//!
//! It says who would have to enforce policies, never whether that is done: only flows show that (see [`super::Enforcement`]).

use std::collections::BTreeSet;

use crate::cluster::Pod;

/// What the pods of a network's DaemonSet are known by.
struct Network {
    name: &'static str,
    /// The DaemonSet's name as its makers have it.
    daemon_set: &'static str,
    /// A label and its value, which stay where a distribution gives the DaemonSet another name.
    label: (&'static str, &'static str),
}

const fn network(
    name: &'static str,
    daemon_set: &'static str,
    label: (&'static str, &'static str),
) -> Network {
    Network { name, daemon_set, label }
}

/// As their published manifests have them. Canal is Flannel's network with Calico's enforcer, in one DaemonSet.
const NETWORKS: [Network; 12] = [
    network("antrea", "antrea-agent", ("component", "antrea-agent")),
    network("aws-vpc-cni", "aws-node", ("k8s-app", "aws-node")),
    network("calico", "calico-node", ("k8s-app", "calico-node")),
    network("calico", "canal", ("k8s-app", "canal")),
    network("cilium", "cilium", ("k8s-app", "cilium")),
    network("flannel", "canal", ("k8s-app", "canal")),
    network("flannel", "kube-flannel-ds", ("app", "flannel")),
    network("flannel", "kube-flannel-ds", ("k8s-app", "flannel")),
    network("kindnet", "kindnet", ("k8s-app", "kindnet")),
    network("kube-network-policies", "kube-network-policies", ("k8s-app", "kube-network-policies")),
    network("kube-router", "kube-router", ("k8s-app", "kube-router")),
    network("weave-net", "weave-net", ("name", "weave-net")),
];

/// The names of the networks and enforcers that have a pod of their DaemonSet among `pods`, each once, in order. Those that run
/// as a process of the node, as k3s has them, show no pod and are not found.
pub fn cnis<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> BTreeSet<&'static str> {
    let of_daemon_sets = pods.into_iter().filter(|pod| &*pod.workload.kind == "DaemonSet");
    of_daemon_sets.flat_map(|pod| NETWORKS.iter().filter(|it| it.runs(pod)).map(|it| it.name)).collect()
}

/// All names that [`cnis`] may give.
pub fn cni_names() -> BTreeSet<&'static str> {
    NETWORKS.iter().map(|it| it.name).collect()
}

impl Network {
    fn runs(&self, pod: &Pod) -> bool {
        let (key, value) = self.label;
        *pod.workload.name == *self.daemon_set || pod.labels.get(key).is_some_and(|it| **it == *value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        cluster::Object,
        watch::convert::{self, Converted},
    };

    fn pod(owner: (&str, &str), labels: serde_json::Value) -> Pod {
        let (kind, name) = owner;
        let owner =
            json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u", "controller": true});
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "x", "name": "p", "labels": labels, "ownerReferences": [owner]},
            "spec": {"nodeName": "n", "containers": [{"name": "c"}]},
        });
        let converted = convert::document(&object, &"test".into());
        let [Converted::Object(Object::Pod(pod))] = &*converted else { panic!("{converted:?}") };
        pod.clone()
    }

    fn names(pods: &[Pod]) -> Vec<&'static str> {
        cnis(pods).into_iter().collect()
    }

    #[test]
    fn a_network_is_known_by_its_daemon_sets_name_or_label() {
        let renamed = pod(("DaemonSet", "anetd"), json!({"k8s-app": "cilium"}));
        let plain = pod(("DaemonSet", "kube-flannel-ds"), json!({}));
        assert_eq!(names(std::slice::from_ref(&renamed)), ["cilium"]);
        assert_eq!(names(std::slice::from_ref(&plain)), ["flannel"]);
        let kindnet = pod(("DaemonSet", "kindnet"), json!({"app": "kindnet", "k8s-app": "kindnet"}));
        assert_eq!(names(&[plain, kindnet, renamed]), ["cilium", "flannel", "kindnet"], "each that is there");
        let canal = pod(("DaemonSet", "rke2-canal"), json!({"k8s-app": "canal"}));
        assert_eq!(names(&[canal]), ["calico", "flannel"], "a network and another one's enforcer");
    }

    #[test]
    fn what_only_has_the_name_is_no_network() {
        let none: [&'static str; 0] = [];
        let operator = pod(("Deployment", "cilium"), json!({"k8s-app": "cilium"}));
        let other = pod(("DaemonSet", "cilium-exporter"), json!({"k8s-app": "exporter"}));
        let controllers = pod(
            ("ReplicaSet", "calico-kube-controllers-5d8f7b9c6"),
            json!({"k8s-app": "calico-kube-controllers"}),
        );
        assert_eq!(names(&[operator, other, controllers]), none);
    }
}
