//! What Batchivo's document and the seven policies say, written down by hand for the ledger.

use super::ledger::Says;

/// Allowed by rules, each as `policy path`.
pub fn by(rules: &[&str]) -> Says {
    Says::Rules(rules.iter().map(|rule| format!("batchivo/{rule}")).collect())
}

/// Allowed since nothing isolates the pod in this direction.
pub const OPEN: Says = Says::Because("not isolated");
/// Allowed since it is between a pod and its own node.
pub const OWN_NODE: Says = Says::Because("own node");
/// Allowed since policies do not select the node.
pub const HOST: Says = Says::Because("host network");
/// Lookups: every pod of the namespace, by the first port over UDP, by the second over TCP.
pub fn dns(protocol: &str) -> Says {
    let port = if protocol == "UDP" { 0 } else { 1 };
    by(&[&format!("allow-dns-egress egress[0].to[0].ports[{port}]")])
}

/// Denied egress of the pods with `app`: whatever isolates them.
pub fn no_egress(app: &str) -> Says {
    let own = match app {
        // These have an egress section of their own.
        "backend" | "postgres" | "redis" | "minio" => Some(format!("{app}-policy")),
        // The frontend's policy is about ingress only; the others have none.
        _ => None,
    };
    denied(["allow-dns-egress", "default-deny-all"].map(str::to_owned).into_iter().chain(own))
}

/// Denied ingress of the pods with `app`.
pub fn no_ingress(app: &str) -> Says {
    denied(["default-deny-all".to_owned(), format!("{app}-policy")])
}

fn denied(policies: impl IntoIterator<Item = String>) -> Says {
    let mut names: Vec<String> =
        policies.into_iter().map(|name| format!("NetworkPolicy/batchivo/{name}")).collect();
    names.sort();
    Says::Denied(names)
}
