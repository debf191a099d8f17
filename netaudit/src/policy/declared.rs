//! Policies as somebody declared them: the API's fields, still as text, before anybody judged them.
//!
//! Kubernetes objects are converted to these types once, at the edge. What the API server would refuse can be held
//! here: [`super::CompiledPolicy::compile`] says what is wrong with it and what is certain all the same.

use std::sync::Arc;

/// `networking.k8s.io/v1` NetworkPolicy. A missing list and an empty one mean the same in every field here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkPolicy {
    /// The namespace whose pods it selects.
    pub namespace: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
    /// `spec.podSelector`.
    pub pod_selector: Selector,
    /// `spec.policyTypes`.
    pub policy_types: Vec<String>,
    /// Set where `spec.policyTypes` cannot be read: which directions it is about is then in doubt.
    pub invalid_types: Option<Box<Invalid>>,
    /// `spec.ingress`.
    pub ingress: Vec<Rule>,
    /// `spec.egress`.
    pub egress: Vec<Rule>,
    /// Fields of the object that the API does not know, as paths: most often a misspelt one that means nothing.
    pub unknown_fields: Vec<String>,
}

/// A part that is not of the type that the API gives it, so that what it was meant to say is lost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invalid {
    /// Where: `spec.ingress[0].from`.
    pub path: String,
    /// What is wrong.
    pub reason: String,
}

/// An element of `spec.ingress` or `spec.egress`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Rule {
    /// `from` or `to`.
    pub peers: Vec<Peer>,
    /// `ports`.
    pub ports: Vec<Port>,
    /// Why its peers are not known, where they are not.
    pub invalid_peers: Option<Invalid>,
    /// Why its ports are not known, where they are not.
    pub invalid_ports: Option<Invalid>,
}

/// An element of `from` or `to`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Peer {
    /// `namespaceSelector`: absent and empty differ.
    pub namespace_selector: Option<Selector>,
    /// `podSelector`: absent and empty differ.
    pub pod_selector: Option<Selector>,
    /// `ipBlock`.
    pub ip_block: Option<IpBlock>,
    /// Why whom it means is not known, where it is not.
    pub invalid: Option<Invalid>,
}

/// `ipBlock`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct IpBlock {
    /// `cidr`, as written.
    pub cidr: String,
    /// `except`, as written.
    pub except: Vec<String>,
}

/// An element of `ports`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Port {
    /// `protocol`, as written.
    pub protocol: Option<String>,
    /// `port`.
    pub port: Option<PortRef>,
    /// `endPort`.
    pub end_port: Option<i64>,
    /// Why which it means is not known, where it is not.
    pub invalid: Option<Invalid>,
}

/// A port by number or by the name that a container gives it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PortRef {
    /// A number, not yet known to be a port.
    Number(i64),
    /// A container port's name.
    Name(String),
}

/// A label selector: all its labels and expressions must hold; without any it selects everything.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Selector {
    /// `matchLabels`.
    pub match_labels: Vec<(String, String)>,
    /// `matchExpressions`.
    pub match_expressions: Vec<Expression>,
    /// Labels and expressions that are not known.
    pub invalid: Vec<Invalid>,
}

/// An element of `matchExpressions`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Expression {
    /// The label's key.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`; anything else is held as written.
    pub operator: String,
    /// The values, for `In` and `NotIn`.
    pub values: Vec<String>,
}

/// A cluster-wide kind of `policy.networking.k8s.io`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ClusterKind {
    /// `v1alpha2`: one kind with two tiers.
    ClusterNetworkPolicy,
    /// `v1alpha1`: the Admin tier.
    AdminNetworkPolicy,
    /// `v1alpha1`: the Baseline tier, one object named `default`.
    BaselineAdminNetworkPolicy,
}

impl ClusterKind {
    /// The name that the API uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
        }
    }
}

/// A policy of a cluster-wide kind. Their fields mean the same, under names that differ a little.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterPolicy {
    /// Which kind it is.
    pub kind: ClusterKind,
    /// The object's name.
    pub name: Arc<str>,
    /// `spec.tier`, which only ClusterNetworkPolicy has.
    pub tier: Option<String>,
    /// `spec.priority`, which BaselineAdminNetworkPolicy has not.
    pub priority: Option<i64>,
    /// `spec.subject`.
    pub subject: PodScope,
    /// `spec.ingress`.
    pub ingress: Vec<ClusterRule>,
    /// `spec.egress`.
    pub egress: Vec<ClusterRule>,
    /// Why its tier or priority is not known, where it is not.
    pub invalid_order: Option<Invalid>,
    /// Fields of the object that the API does not know, as paths.
    pub unknown_fields: Vec<String>,
}

/// Pods by namespace, or by namespace and labels: exactly one of the two.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PodScope {
    /// `namespaces`.
    pub namespaces: Option<Selector>,
    /// `pods`: `namespaceSelector` and `podSelector`.
    pub pods: Option<(Selector, Selector)>,
    /// Why whom it means is not known, where it is not.
    pub invalid: Option<Invalid>,
}

/// A rule of a cluster-wide policy.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ClusterRule {
    /// `name`.
    pub name: String,
    /// `action`, as written.
    pub action: Option<String>,
    /// `from` or `to`.
    pub peers: Vec<ClusterPeer>,
    /// `ports` or `protocols`.
    pub ports: Vec<ClusterPort>,
    /// Why its name or action is not known, where it is not.
    pub invalid: Option<Invalid>,
    /// Why its peers are not known, where they are not.
    pub invalid_peers: Option<Invalid>,
    /// Why its ports are not known, where they are not.
    pub invalid_ports: Option<Invalid>,
}

/// An element of `from` or `to` of a cluster-wide policy: exactly one field.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ClusterPeer {
    /// `namespaces` or `pods`.
    pub scope: PodScope,
    /// `nodes`.
    pub nodes: Option<Selector>,
    /// `networks`, as written.
    pub networks: Option<Vec<String>>,
    /// `domainNames`, as written.
    pub domain_names: Option<Vec<String>>,
    /// Why whom it means is not known, where it is not.
    pub invalid: Option<Invalid>,
}

/// A policy of a kind that netaudit does not evaluate: whom it selects, and what it could do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ForeignPolicy {
    /// `CiliumNetworkPolicy`, `CalicoNetworkPolicy` …
    pub kind: &'static str,
    /// The namespace; empty for cluster-wide kinds.
    pub namespace: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
    /// Its parts, each with pods of its own.
    pub parts: Vec<ForeignPart>,
}

/// What a foreign policy does to some pods.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ForeignPart {
    /// The namespaces; `None` for the policy's own.
    pub namespaces: Option<Selector>,
    /// The pods in them.
    pub pods: Selector,
    /// What it does to what they receive.
    pub ingress: ForeignEffect,
    /// What it does to what they send.
    pub egress: ForeignEffect,
}

/// What a foreign policy could do to a flow of a pod that it selects.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ForeignEffect {
    /// What nobody allows is denied.
    pub isolates: bool,
    /// It may allow what NetworkPolicies deny.
    pub allows: bool,
    /// It may deny what NetworkPolicies allow.
    pub denies: bool,
    /// It acts on requests in a proxy, so that the flow itself is not touched.
    pub in_proxy: bool,
}

/// An element of `ports` or `protocols` of a cluster-wide policy.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ClusterPort {
    /// The field that says it, below the rule: `protocols[0].tcp.destinationPort`.
    pub path: String,
    /// What it says. A port by name has no protocol: it is the pod's port of this name, whatever its protocol.
    pub port: Port,
}
