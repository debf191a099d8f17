//! What every cluster has in kube-system: CoreDNS, and the rights of the node's programs that are no kubelets.

use serde_json::{Value, json};

use super::{images::COREDNS, network::DNS_SERVICE};

/// All objects, as one list.
pub fn objects() -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        account(),
        role("system:coredns", &[
            (&[""], &["endpoints", "services", "pods", "namespaces"]),
            (&["discovery.k8s.io"], &["endpointslices"]),
        ]),
        binding("system:coredns", json!({ "kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system" })),
        role("kube-router", &[
            (&[""], &["namespaces", "pods", "services", "nodes", "endpoints"]),
            (&["networking.k8s.io"], &["networkpolicies"]),
            (&["discovery.k8s.io"], &["endpointslices"]),
        ]),
        binding("kube-router", json!({ "kind": "User", "name": "kube-router", "apiGroup": "rbac.authorization.k8s.io" })),
        corefile(),
        deployment(),
        service(),
    ] })
}

fn account() -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "coredns", "namespace": "kube-system" } })
}

fn role(name: &str, reads: &[(&[&str], &[&str])]) -> Value {
    let rules: Vec<Value> = reads
        .iter()
        .map(|(groups, resources)| {
            json!({ "apiGroups": groups, "resources": resources, "verbs": ["get", "list", "watch"] })
        })
        .collect();
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": { "name": name }, "rules": rules,
    })
}

fn binding(name: &str, subject: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
        "subjects": [subject],
    })
}

fn corefile() -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "coredns", "namespace": "kube-system" },
        "data": { "Corefile": ".:53 {\n    errors\n    health :8080\n    ready :8181\n    \
            kubernetes cluster.local in-addr.arpa ip6.arpa {\n        pods insecure\n        ttl 5\n    }\n    \
            forward . /etc/resolv.conf\n    cache 5\n}\n" },
    })
}

fn deployment() -> Value {
    let probe =
        |path: &str, port: u16| json!({ "httpGet": { "path": path, "port": port }, "periodSeconds": 2 });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "coredns", "namespace": "kube-system", "labels": { "k8s-app": "kube-dns" } },
        "spec": {
            "replicas": 1,
            "selector": { "matchLabels": { "k8s-app": "kube-dns" } },
            "template": {
                "metadata": { "labels": { "k8s-app": "kube-dns" } },
                "spec": {
                    "serviceAccountName": "coredns",
                    "priorityClassName": "system-cluster-critical",
                    // Names of the internet are asked where the node asks.
                    "dnsPolicy": "Default",
                    "containers": [{
                        "name": "coredns", "image": COREDNS, "imagePullPolicy": "Never",
                        "args": ["-conf", "/etc/coredns/Corefile"],
                        "ports": [
                            { "name": "dns", "containerPort": 53, "protocol": "UDP" },
                            { "name": "dns-tcp", "containerPort": 53, "protocol": "TCP" },
                        ],
                        "livenessProbe": probe("/health", 8080),
                        "readinessProbe": probe("/ready", 8181),
                        "volumeMounts": [{ "name": "config", "mountPath": "/etc/coredns" }],
                    }],
                    "volumes": [{ "name": "config", "configMap": { "name": "coredns" } }],
                },
            },
        },
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "kube-dns", "namespace": "kube-system", "labels": { "k8s-app": "kube-dns" } },
        "spec": {
            "clusterIP": DNS_SERVICE.to_string(),
            "selector": { "k8s-app": "kube-dns" },
            "ports": [
                { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53 },
                { "name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53 },
            ],
        },
    })
}
