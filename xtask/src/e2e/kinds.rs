//! Kinds of policy that no API server knows of itself: here they are installed, as a cluster with such a CNI or mesh has them,
//! so that the agent's rights on them can be seen in use.

use anyhow::Result;
use serde_json::{Value, json};

use super::{apps::list, world::World};

/// (group, version, kind, plural, scope).
const KINDS: [(&str, &str, &str, &str, &str); 8] = [
    ("policy.networking.k8s.io", "v1alpha2", "ClusterNetworkPolicy", "clusternetworkpolicies", "Cluster"),
    ("policy.networking.k8s.io", "v1alpha1", "AdminNetworkPolicy", "adminnetworkpolicies", "Cluster"),
    (
        "policy.networking.k8s.io",
        "v1alpha1",
        "BaselineAdminNetworkPolicy",
        "baselineadminnetworkpolicies",
        "Cluster",
    ),
    ("cilium.io", "v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies", "Namespaced"),
    ("cilium.io", "v2", "CiliumClusterwideNetworkPolicy", "ciliumclusterwidenetworkpolicies", "Cluster"),
    ("crd.projectcalico.org", "v1", "NetworkPolicy", "networkpolicies", "Namespaced"),
    ("crd.projectcalico.org", "v1", "GlobalNetworkPolicy", "globalnetworkpolicies", "Cluster"),
    ("security.istio.io", "v1", "AuthorizationPolicy", "authorizationpolicies", "Namespaced"),
];

/// Installs the least definition of each that the API server takes.
pub fn install(world: &World) -> Result<()> {
    let definitions: Vec<Value> = KINDS.iter().map(definition).collect();
    world.cluster.apply(&list(&definitions))?;
    let mut wait =
        vec!["wait".to_owned(), "--for=condition=Established".to_owned(), "--timeout=60s".to_owned()];
    wait.extend(KINDS.iter().map(|(group, _, _, plural, _)| format!("crd/{plural}.{group}")));
    world.kubectl(&wait.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok(())
}

/// The name that the agent gives to a kind: the API's own, but where two groups use one.
pub fn agent_name(group: &str, kind: &str) -> String {
    if group == "crd.projectcalico.org" { format!("Calico{kind}") } else { kind.to_owned() }
}

fn definition((group, version, kind, plural, scope): &(&str, &str, &str, &str, &str)) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{group}"),
            // Groups of Kubernetes are protected, and want to know who approved.
            "annotations": { "api-approved.kubernetes.io": "unapproved, for a test" },
        },
        "spec": {
            "group": group,
            "scope": scope,
            "names": {
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": plural,
                "singular": kind.to_lowercase(),
            },
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "schema": {
                    "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                },
            }],
        },
    })
}
