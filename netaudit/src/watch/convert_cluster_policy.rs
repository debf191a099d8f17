//! The JSON of a cluster-wide policy to its declared form. Only types are judged here; values are judged when it is
//! compiled.

use std::sync::Arc;

use super::{
    convert_fields::{Field, Flaw},
    convert_policy::{invalid, optional_selector, selector, unknown_outside},
};
use crate::{
    cluster::Object,
    policy::declared::{
        ClusterKind, ClusterPeer, ClusterPolicy, ClusterPort, ClusterRule, PodScope, Port, PortRef,
    },
};

/// Reads the policy at `root`.
pub(super) fn cluster_policy(root: &Field<'_>, kind: ClusterKind, name: &Arc<str>) -> Result<Object, Flaw> {
    let spec = root.get("spec")?;
    let fields: &[&str] = match kind {
        ClusterKind::ClusterNetworkPolicy => &["tier", "priority", "subject", "ingress", "egress"],
        ClusterKind::AdminNetworkPolicy => &["priority", "subject", "ingress", "egress"],
        ClusterKind::BaselineAdminNetworkPolicy => &["subject", "ingress", "egress"],
    };
    let mut unknown = unknown_outside(root);
    unknown.extend(spec.unknown(fields));
    let mut policy = ClusterPolicy {
        kind,
        name: name.clone(),
        tier: None,
        priority: None,
        subject: scope(&spec.get("subject")?, true, &mut unknown),
        ingress: rules(&spec.get("ingress")?, kind, "from", &mut unknown),
        egress: rules(&spec.get("egress")?, kind, "to", &mut unknown),
        invalid_order: None,
        unknown_fields: Vec::new(),
    };
    let mut order = || -> Result<(), Flaw> {
        if kind == ClusterKind::ClusterNetworkPolicy {
            policy.tier = spec.get("tier")?.text()?.map(str::to_owned);
        }
        if kind != ClusterKind::BaselineAdminNetworkPolicy {
            policy.priority = spec.get("priority")?.integer()?;
        }
        Ok(())
    };
    policy.invalid_order = order().err().map(invalid);
    policy.unknown_fields = unknown;
    Ok(Object::ClusterPolicy(Box::new(policy)))
}

/// `namespaces` or `pods`; `alone` where there is nothing else beside the two.
fn scope(field: &Field<'_>, alone: bool, unknown: &mut Vec<String>) -> PodScope {
    let mut read = || -> Result<PodScope, Flaw> {
        if alone {
            unknown.extend(field.unknown(&["namespaces", "pods"]));
        }
        let namespaces = field.get("namespaces")?;
        for old in ["namespaceSelector", "sameLabels", "notSameLabels"] {
            // To drop them, as fields that are not known are dropped, would leave a selector of everything.
            let old = namespaces.get(old)?;
            if old.is_present() {
                return Err(old.flaw("is of an older version of the API, which is not read"));
            }
        }
        let pods = field.get("pods")?;
        let pods = if pods.is_present() {
            unknown.extend(pods.unknown(&["namespaceSelector", "podSelector"]));
            let of_namespaces = selector(&pods.get("namespaceSelector")?, unknown)?;
            Some((of_namespaces, selector(&pods.get("podSelector")?, unknown)?))
        } else {
            None
        };
        Ok(PodScope { namespaces: optional_selector(&namespaces, unknown)?, pods, invalid: None })
    };
    read().unwrap_or_else(|flaw| PodScope { invalid: Some(invalid(flaw)), ..PodScope::default() })
}

/// What is no list of rules stands for one that nobody can read: its direction is in doubt, the other is not.
fn rules(field: &Field<'_>, kind: ClusterKind, list: &str, unknown: &mut Vec<String>) -> Vec<ClusterRule> {
    let items = match field.items() {
        Ok(items) => items,
        Err(flaw) => {
            let flaw = invalid(flaw);
            // What it does is lost with whom it means.
            return vec![ClusterRule {
                invalid: Some(flaw.clone()),
                invalid_peers: Some(flaw),
                ..ClusterRule::default()
            }];
        }
    };
    let ports_name = if kind == ClusterKind::ClusterNetworkPolicy { "protocols" } else { "ports" };
    let mut rules = Vec::new();
    for field in items {
        unknown.extend(field.unknown(&["name", "action", list, ports_name]));
        let mut rule = ClusterRule::default();
        let mut head = || -> Result<(), Flaw> {
            rule.name = field.get("name")?.text()?.unwrap_or_default().to_owned();
            rule.action = field.get("action")?.text()?.map(str::to_owned);
            Ok(())
        };
        rule.invalid = head().err().map(invalid);
        match field.get(list).and_then(|it| it.items()) {
            Ok(peers) => rule.peers = peers.iter().map(|it| peer(it, list == "to", unknown)).collect(),
            Err(flaw) => rule.invalid_peers = Some(invalid(flaw)),
        }
        match field.get(ports_name).and_then(|it| it.items()) {
            Ok(ports) => {
                rule.ports = (ports.iter().enumerate())
                    .map(|(index, it)| port(it, kind, &format!("{ports_name}[{index}]"), unknown))
                    .collect();
            }
            Err(flaw) => rule.invalid_ports = Some(invalid(flaw)),
        }
        rules.push(rule);
    }
    rules
}

fn peer(field: &Field<'_>, egress: bool, unknown: &mut Vec<String>) -> ClusterPeer {
    let mut read = || -> Result<ClusterPeer, Flaw> {
        let mut peer = ClusterPeer { scope: scope(field, false, unknown), ..ClusterPeer::default() };
        // Only what pods may reach can be told by nodes, networks and names; where they come from cannot.
        let known: &[&str] = match egress {
            true => &["namespaces", "pods", "nodes", "networks", "domainNames"],
            false => &["namespaces", "pods"],
        };
        unknown.extend(field.unknown(known));
        if egress {
            peer.nodes = optional_selector(&field.get("nodes")?, unknown)?;
            let texts = |name: &str| -> Result<Option<Vec<String>>, Flaw> {
                let field = field.get(name)?;
                if field.is_present() { field.texts().map(Some) } else { Ok(None) }
            };
            peer.networks = texts("networks")?;
            peer.domain_names = texts("domainNames")?;
        }
        Ok(peer)
    };
    read().unwrap_or_else(|flaw| ClusterPeer { invalid: Some(invalid(flaw)), ..ClusterPeer::default() })
}

fn port(field: &Field<'_>, kind: ClusterKind, path: &str, unknown: &mut Vec<String>) -> ClusterPort {
    let mut read = || match kind {
        ClusterKind::ClusterNetworkPolicy => protocol(field, path, unknown),
        ClusterKind::AdminNetworkPolicy | ClusterKind::BaselineAdminNetworkPolicy => {
            admin_port(field, path, unknown)
        }
    };
    read().unwrap_or_else(|flaw| broken_port(path, flaw))
}

fn broken_port(path: &str, flaw: Flaw) -> ClusterPort {
    ClusterPort { path: path.to_owned(), port: Port { invalid: Some(invalid(flaw)), ..Port::default() } }
}

/// The only one of these fields that is there.
fn only<'a>(field: &Field<'a>, names: &[&'static str]) -> Result<(&'static str, Field<'a>), Flaw> {
    let mut present = Vec::new();
    for name in names {
        let inner = field.get(name)?;
        if inner.is_present() {
            present.push((*name, inner));
        }
    }
    match (present.pop(), present.is_empty()) {
        (Some(one), true) => Ok(one),
        _ => Err(field.flaw(format!("needs exactly one of {}", names.join(", ")))),
    }
}

/// `v1alpha2`: `{tcp: {destinationPort: {number: 80}}}`, `{udp: {destinationPort: {range: {start: 1, end: 2}}}}`,
/// `{destinationNamedPort: http}`.
fn protocol(field: &Field<'_>, path: &str, unknown: &mut Vec<String>) -> Result<ClusterPort, Flaw> {
    unknown.extend(field.unknown(&["tcp", "udp", "sctp", "destinationNamedPort"]));
    let (name, inner) = only(field, &["tcp", "udp", "sctp", "destinationNamedPort"])?;
    let path = format!("{path}.{name}");
    if name == "destinationNamedPort" {
        return Ok(ClusterPort { path, port: named(&inner)? });
    }
    unknown.extend(inner.unknown(&["destinationPort"]));
    let mut port = Port { protocol: Some(name.to_ascii_uppercase()), ..Port::default() };
    let destination = inner.get("destinationPort")?;
    if destination.is_present() {
        unknown.extend(destination.unknown(&["number", "range"]));
        match only(&destination, &["number", "range"])? {
            ("number", number) => port.port = number.integer()?.map(PortRef::Number),
            (_, range) => (port.port, port.end_port) = span(&range, &["start", "end"], unknown)?,
        }
    }
    Ok(ClusterPort { path: format!("{path}.destinationPort"), port })
}

/// `v1alpha1`: `{portNumber: {protocol: TCP, port: 80}}`, `{portRange: {protocol: TCP, start: 1, end: 2}}`,
/// `{namedPort: http}`.
fn admin_port(field: &Field<'_>, path: &str, unknown: &mut Vec<String>) -> Result<ClusterPort, Flaw> {
    unknown.extend(field.unknown(&["portNumber", "portRange", "namedPort"]));
    let (name, inner) = only(field, &["portNumber", "portRange", "namedPort"])?;
    let path = format!("{path}.{name}");
    let mut port = Port::default();
    match name {
        "namedPort" => port = named(&inner)?,
        "portNumber" => {
            unknown.extend(inner.unknown(&["protocol", "port"]));
            let number = inner.get("port")?;
            port.port = Some(PortRef::Number(number.integer()?.ok_or_else(|| number.flaw("missing"))?));
            port.protocol = inner.get("protocol")?.text()?.map(str::to_owned);
        }
        _ => {
            (port.port, port.end_port) = span(&inner, &["protocol", "start", "end"], unknown)?;
            port.protocol = inner.get("protocol")?.text()?.map(str::to_owned);
        }
    }
    Ok(ClusterPort { path, port })
}

fn named(field: &Field<'_>) -> Result<Port, Flaw> {
    let name = field.text()?.unwrap_or_default().to_owned();
    Ok(Port { port: Some(PortRef::Name(name)), ..Port::default() })
}

fn span(
    field: &Field<'_>,
    fields: &[&str],
    unknown: &mut Vec<String>,
) -> Result<(Option<PortRef>, Option<i64>), Flaw> {
    unknown.extend(field.unknown(fields));
    let number = |name: &str| -> Result<i64, Flaw> {
        let field = field.get(name)?;
        field.integer()?.ok_or_else(|| field.flaw("missing"))
    };
    Ok((Some(PortRef::Number(number("start")?)), Some(number("end")?)))
}
