//! A NetworkPolicy as somebody declared it: the API's fields, still as text, before anybody judged them.
//!
//! Kubernetes objects are converted to these types once, at the edge. What the API server would refuse can be held
//! here: [`super::compile`] says what is wrong with it and what is certain all the same.

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
