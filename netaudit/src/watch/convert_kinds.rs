//! Which kind of object a document is of, and which one it was surely meant to be.

use crate::cluster::Kind;

/// What a document's `apiVersion` and `kind` say.
pub(super) enum Judged {
    Watched(Kind),
    /// One that changes no verdict, by name.
    Other(String),
    /// One that the API server does not know, though somebody surely meant it: why.
    Misspelt(Kind, String),
}

/// Kinds of `networking.k8s.io` that are no policies. Whatever else somebody writes there was meant to be one.
const NO_POLICIES: [&str; 4] = ["Ingress", "IngressClass", "IPAddress", "ServiceCIDR"];

/// What something without a kind may be, by its `apiVersion`: the policy of that group that concerns most pods. A namespace
/// does not tell which, as the API server takes it out of what is in none.
pub(super) fn widest_policy(version: &str) -> Option<Kind> {
    Kind::policies_of_group(version).min_by_key(|kind| kind.is_namespaced())
}

/// A kind is known by its group too: Calico has a NetworkPolicy, Knative a Service.
pub(super) fn judge(version: &str, kind: &str) -> Judged {
    let Some(known) = Kind::called(kind).find(|known| known.is_of_group(version)) else {
        return match meant(version, kind) {
            Some(known) => {
                let (right, right_kind) = (known.api_version(), known.api_kind());
                let reason =
                    format!("no API has {kind:?} of {version:?}: {right_kind:?} of {right:?} is meant");
                Judged::Misspelt(known, reason)
            }
            None if Kind::called(kind).next().is_some() => Judged::Other(format!("{kind} of {version}")),
            None => Judged::Other(kind.to_owned()),
        };
    };
    if !known.api_versions().contains(&version) {
        Judged::Misspelt(known, format!("apiVersion: {version:?} instead of {:?}", known.api_version()))
    } else if kind != known.api_kind() {
        Judged::Misspelt(known, format!("kind: {kind:?} instead of {:?}", known.api_kind()))
    } else {
        Judged::Watched(known)
    }
}

/// The kind that was meant by one that does not exist. Groups of other projects may have what they want: only what is
/// Kubernetes' own, or all but one of the kinds that we know, can be wrong for certain.
pub(super) fn meant(version: &str, kind: &str) -> Option<Kind> {
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    let is_own = !group.contains('.') || group.ends_with(".k8s.io");
    let is_unique = |known: &Kind| known.api_kind().starts_with("Cilium");
    let is_policy = |known: &Kind| *known == Kind::NetworkPolicy || known.is_cluster_policy();
    let in_another_group = Kind::called(kind).find(|known| is_unique(known) || is_own && is_policy(known));
    let in_its_group = || Kind::ALL.into_iter().filter(|known| known.is_of_group(version));
    in_another_group.or_else(|| in_its_group().find(|known| is_near(kind, *known))).or_else(|| match group {
        "networking.k8s.io" if !NO_POLICIES.contains(&kind) => Some(Kind::NetworkPolicy),
        // It has nothing but policies.
        "policy.networking.k8s.io" => widest_policy(version),
        _ => None,
    })
}

/// Whether a kind is a policy of another project, which nobody here can read.
pub(super) fn is_other_policy(kind: &str) -> bool {
    let name = kind.split(' ').next().unwrap_or_default();
    // Calico's staged ones enforce nothing.
    name.ends_with("NetworkPolicy") && !name.starts_with("Staged")
}

/// Whether a name is that of a kind but for a slip or its plural.
fn is_near(name: &str, kind: Kind) -> bool {
    let (name, right) = (name.to_ascii_lowercase(), kind.api_kind().to_ascii_lowercase());
    let slips = if right.len() < 6 { 1 } else { 2 };
    name == kind.plural() || name.len().abs_diff(right.len()) <= slips && distance(&name, &right) <= slips
}

/// How many letters are to be added, removed or replaced to make one text the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (number, letter) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], number + 1);
        for (at, other) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(letter != other);
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(diagonal + 1).min(row[at] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_understood_and_other_kinds_are_not_taken_for_slips() {
        let policy = Some(Kind::NetworkPolicy);
        for (version, kind, expected) in [
            ("networking.k8s.io/v1", "NetworkPolcy", policy),
            ("networking.k8s.io/v1", "networkpolicies", policy),
            ("networking.k8s.io/v1", "NetPol", policy),
            ("networking.k8s.io/v1", "IngressClass", None),
            ("extensions/v1beta1", "NetworkPolicy", policy),
            ("extensions/v1beta1", "Ingress", None),
            ("networking/v1", "NetworkPolicy", policy),
            ("v1", "NetworkPolicy", policy),
            ("policy.k8s.io/v1alpha2", "ClusterNetworkPolicy", Some(Kind::ClusterNetworkPolicy)),
            ("cilium/v2", "CiliumNetworkPolicy", Some(Kind::CiliumNetworkPolicy)),
            ("cilium.io/v2", "CiliumNetworkPolcy", Some(Kind::CiliumNetworkPolicy)),
            ("cilium.io/v2", "CiliumEndpoint", None),
            ("cilium.io/v2", "CiliumEgressGatewayPolicy", None),
            ("projectcalico.org/v3", "StagedNetworkPolicy", None),
            ("projectcalico.org/v3", "NetworkSet", None),
            ("security.istio.io/v1", "PeerAuthentication", None),
            ("crd.antrea.io/v1beta1", "NetworkPolicy", None),
            ("v1", "Pods", Some(Kind::Pod)),
            ("v1", "Namepsace", Some(Kind::Namespace)),
            ("v1", "ConfigMap", None),
            ("v1", "Secret", None),
            ("v1", "ServiceAccount", None),
            ("serving.knative.dev/v1", "Service", None),
        ] {
            assert_eq!(meant(version, kind), expected, "{version} {kind}");
        }
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
