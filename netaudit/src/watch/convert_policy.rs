//! A NetworkPolicy's JSON to its declared form. Only types are judged here; values are judged when it is compiled.

use std::sync::Arc;

use super::convert_fields::{Field, Flaw};
use crate::policy::declared::{Expression, IpBlock, NetworkPolicy, Peer, Port, PortRef, Rule, Selector};

/// Reads the policy at `root`.
pub(super) fn network_policy(
    root: &Field<'_>,
    namespace: &Arc<str>,
    name: &Arc<str>,
) -> Result<NetworkPolicy, Flaw> {
    let spec = root.get("spec")?;
    let mut unknown = spec.unknown(&["podSelector", "policyTypes", "ingress", "egress"]);
    Ok(NetworkPolicy {
        namespace: namespace.clone(),
        name: name.clone(),
        pod_selector: selector(&spec.get("podSelector")?, &mut unknown)?,
        policy_types: spec.get("policyTypes")?.texts()?,
        ingress: rules(&spec.get("ingress")?, "from", &mut unknown)?,
        egress: rules(&spec.get("egress")?, "to", &mut unknown)?,
        unknown_fields: unknown,
    })
}

fn rules(field: &Field<'_>, list: &str, unknown: &mut Vec<String>) -> Result<Vec<Rule>, Flaw> {
    let mut rules = Vec::new();
    for rule in field.items()? {
        unknown.extend(rule.unknown(&[list, "ports"]));
        let mut peers = Vec::new();
        for peer in rule.get(list)?.items()? {
            peers.push(self::peer(&peer, unknown)?);
        }
        let mut ports = Vec::new();
        for port in rule.get("ports")?.items()? {
            unknown.extend(port.unknown(&["protocol", "port", "endPort"]));
            ports.push(self::port(&port)?);
        }
        rules.push(Rule { peers, ports });
    }
    Ok(rules)
}

fn peer(field: &Field<'_>, unknown: &mut Vec<String>) -> Result<Peer, Flaw> {
    unknown.extend(field.unknown(&["podSelector", "namespaceSelector", "ipBlock"]));
    let mut optional = |name| -> Result<Option<Selector>, Flaw> {
        let field = field.get(name)?;
        if field.is_present() { Ok(Some(selector(&field, unknown)?)) } else { Ok(None) }
    };
    let (namespace_selector, pod_selector) = (optional("namespaceSelector")?, optional("podSelector")?);
    let block = field.get("ipBlock")?;
    let ip_block = if block.is_present() {
        unknown.extend(block.unknown(&["cidr", "except"]));
        let cidr = block.get("cidr")?.text()?.unwrap_or_default().to_owned();
        Some(IpBlock { cidr, except: block.get("except")?.texts()? })
    } else {
        None
    };
    Ok(Peer { namespace_selector, pod_selector, ip_block })
}

fn port(field: &Field<'_>) -> Result<Port, Flaw> {
    let port = field.get("port")?;
    let number_or_name = if port.is_text() {
        port.text()?.map(|name| PortRef::Name(name.to_owned()))
    } else {
        port.integer()?.map(PortRef::Number)
    };
    Ok(Port {
        protocol: field.get("protocol")?.text()?.map(str::to_owned),
        port: number_or_name,
        end_port: field.get("endPort")?.integer()?,
    })
}

fn selector(field: &Field<'_>, unknown: &mut Vec<String>) -> Result<Selector, Flaw> {
    unknown.extend(field.unknown(&["matchLabels", "matchExpressions"]));
    let labels = field.get("matchLabels")?.labels()?;
    let mut match_expressions = Vec::new();
    for expression in field.get("matchExpressions")?.items()? {
        unknown.extend(expression.unknown(&["key", "operator", "values"]));
        match_expressions.push(Expression {
            key: expression.get("key")?.text()?.unwrap_or_default().to_owned(),
            operator: expression.get("operator")?.text()?.unwrap_or_default().to_owned(),
            values: expression.get("values")?.texts()?,
        });
    }
    let match_labels = labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Ok(Selector { match_labels, match_expressions })
}
