//! A NetworkPolicy's JSON to its declared form. Only types are judged here; values are judged when
//! it is compiled.

use std::sync::Arc;

use super::convert_fields::{Field, Flaw};
use crate::policy::declared::{
    Expression, Invalid, IpBlock, NetworkPolicy, Peer, Port, PortRef, Rule, Selector,
};

/// Reads the policy at `root`.
pub(super) fn network_policy(
    root: &Field<'_>,
    namespace: &Arc<str>,
    name: &Arc<str>,
) -> Result<NetworkPolicy, Flaw> {
    let spec = root.get("spec")?;
    let mut unknown = unknown_outside(root);
    unknown.extend(spec.unknown(&["podSelector", "policyTypes", "ingress", "egress"]));
    let types = spec.get("policyTypes")?;
    Ok(NetworkPolicy {
        namespace: namespace.clone(),
        name: name.clone(),
        pod_selector: selector(&spec.get("podSelector")?, &mut unknown)
            .unwrap_or_else(|flaw| Selector { invalid: vec![invalid(flaw)], ..Selector::default() }),
        policy_types: types.texts().unwrap_or_default(),
        invalid_types: types.texts().err().map(|flaw| Box::new(invalid(flaw))),
        ingress: rules(&spec.get("ingress")?, "from", &mut unknown),
        egress: rules(&spec.get("egress")?, "to", &mut unknown),
        unknown_fields: unknown,
    })
}

/// What the API does not know outside of a policy's `spec`: most often a `spec` or a field of it that is misspelt or
/// stands too far left.
pub(super) fn unknown_outside(root: &Field<'_>) -> Vec<String> {
    let mut unknown = root.unknown(&["apiVersion", "kind", "metadata", "spec", "status"]);
    unknown.extend(root.get("metadata").iter().flat_map(|it| it.unknown(&METADATA)));
    unknown
}

/// The fields that every object's metadata may have.
const METADATA: [&str; 16] = [
    "annotations",
    "clusterName",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// A part that has the wrong type is kept as invalid where it stands: the rest of the policy is still certain.
pub(super) fn invalid(flaw: Flaw) -> Invalid {
    Invalid { path: flaw.path, reason: flaw.reason }
}

/// What is no list of rules stands for one that nobody can read: its direction is in doubt, the other is not.
fn rules(field: &Field<'_>, list: &str, unknown: &mut Vec<String>) -> Vec<Rule> {
    let items = match field.items() {
        Ok(items) => items,
        Err(flaw) => return vec![Rule { invalid_peers: Some(invalid(flaw)), ..Rule::default() }],
    };
    let mut rules = Vec::new();
    for field in items {
        unknown.extend(field.unknown(&[list, "ports"]));
        let mut rule = Rule::default();
        match field.get(list).and_then(|it| it.items()) {
            Ok(peers) => rule.peers = peers.iter().map(|it| peer(it, unknown)).collect(),
            Err(flaw) => rule.invalid_peers = Some(invalid(flaw)),
        }
        match field.get("ports").and_then(|it| it.items()) {
            Ok(ports) => rule.ports = ports.iter().map(|it| port(it, unknown)).collect(),
            Err(flaw) => rule.invalid_ports = Some(invalid(flaw)),
        }
        rules.push(rule);
    }
    rules
}

fn peer(field: &Field<'_>, unknown: &mut Vec<String>) -> Peer {
    unknown.extend(field.unknown(&["podSelector", "namespaceSelector", "ipBlock"]));
    let mut read = || -> Result<Peer, Flaw> {
        Ok(Peer {
            namespace_selector: optional_selector(&field.get("namespaceSelector")?, unknown)?,
            pod_selector: optional_selector(&field.get("podSelector")?, unknown)?,
            ip_block: ip_block(&field.get("ipBlock")?, unknown)?,
            invalid: None,
        })
    };
    read().unwrap_or_else(|flaw| Peer { invalid: Some(invalid(flaw)), ..Peer::default() })
}

pub(super) fn optional_selector(
    field: &Field<'_>,
    unknown: &mut Vec<String>,
) -> Result<Option<Selector>, Flaw> {
    if field.is_present() { selector(field, unknown).map(Some) } else { Ok(None) }
}

fn ip_block(field: &Field<'_>, unknown: &mut Vec<String>) -> Result<Option<IpBlock>, Flaw> {
    if !field.is_present() {
        return Ok(None);
    }
    unknown.extend(field.unknown(&["cidr", "except"]));
    let cidr = field.get("cidr")?.text()?.unwrap_or_default().to_owned();
    Ok(Some(IpBlock { cidr, except: field.get("except")?.texts()? }))
}

fn port(field: &Field<'_>, unknown: &mut Vec<String>) -> Port {
    unknown.extend(field.unknown(&["protocol", "port", "endPort"]));
    let read = || -> Result<Port, Flaw> {
        let port = field.get("port")?;
        let port = if port.is_text() {
            port.text()?.map(|name| PortRef::Name(name.to_owned()))
        } else {
            port.integer()?.map(PortRef::Number)
        };
        let protocol = field.get("protocol")?.text()?.map(str::to_owned);
        Ok(Port { protocol, port, end_port: field.get("endPort")?.integer()?, invalid: None })
    };
    read().unwrap_or_else(|flaw| Port { invalid: Some(invalid(flaw)), ..Port::default() })
}

pub(super) fn selector(field: &Field<'_>, unknown: &mut Vec<String>) -> Result<Selector, Flaw> {
    unknown.extend(field.unknown(&["matchLabels", "matchExpressions"]));
    let mut selector = Selector::default();
    let (labels, expressions) = (field.get("matchLabels")?, field.get("matchExpressions")?);
    for (key, value) in labels.entries()? {
        match value.label() {
            Ok(value) => selector.match_labels.push((key.to_owned(), value.to_owned())),
            Err(flaw) => selector.invalid.push(invalid(flaw)),
        }
    }
    for field in expressions.items()? {
        unknown.extend(field.unknown(&["key", "operator", "values"]));
        match expression(&field) {
            Ok(expression) => selector.match_expressions.push(expression),
            Err(flaw) => selector.invalid.push(invalid(flaw)),
        }
    }
    Ok(selector)
}

fn expression(field: &Field<'_>) -> Result<Expression, Flaw> {
    Ok(Expression {
        key: field.get("key")?.text()?.unwrap_or_default().to_owned(),
        operator: field.get("operator")?.text()?.unwrap_or_default().to_owned(),
        values: field.get("values")?.texts()?,
    })
}
