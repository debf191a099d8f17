//! A rule in one line, for people.

use super::compile::{
    Block, CompiledPolicy, Matcher, NamespaceScope, Peer, PodScope, PortMatch, PortTest, Rule,
};
use crate::model::Action;

/// `to app=postgres TCP 5432`, `from every pod in namespace traefik TCP 8080`, `to 0.0.0.0/0 except 10.0.0.0/8 TCP 443`,
/// `deny to nodes with infra on any port`.
pub(super) fn of(rule: &Rule) -> String {
    let word = rule.id.direction.peers();
    let peers = match rule.peers.as_slice() {
        [] => "anyone".to_owned(),
        peers => joined(peers.iter().map(peer), " or "),
    };
    let ports = match rule.ports.as_slice() {
        [] => "on any port".to_owned(),
        ports => joined(ports.iter().map(port), ", "),
    };
    let action = match rule.id.action {
        _ if rule.doubt.is_some() => "<invalid> ",
        Action::Allow => "",
        Action::Deny => "deny ",
        Action::Pass => "pass ",
    };
    format!("{action}{word} {peers} {ports}")
}

/// Whom a policy selects: `app=web`, `app=web in namespace shop`; empty for every pod of a NetworkPolicy's namespace, or
/// of the cluster for a cluster-wide one.
pub(super) fn subjects(policy: &CompiledPolicy) -> String {
    if policy.subject_doubt.is_some() {
        return "<invalid>".to_owned();
    }
    match &policy.subjects.namespaces {
        NamespaceScope::Matching(selector) if selector.is_empty() && policy.subjects.pods.is_empty() => {
            String::new()
        }
        NamespaceScope::Matching(_) => pods(&policy.subjects),
        NamespaceScope::Own(_) => policy.subjects.pods.to_string(),
    }
}

fn joined(items: impl Iterator<Item = String>, separator: &str) -> String {
    items.collect::<Vec<_>>().join(separator)
}

pub(super) fn peer(peer: &Peer) -> String {
    match &peer.matcher {
        Matcher::Anyone => "<invalid>".to_owned(),
        Matcher::Nobody => "nobody".to_owned(),
        Matcher::Pods(scope) => pods(scope),
        Matcher::Nodes(selector) if selector.is_empty() => "every node".to_owned(),
        Matcher::Nodes(selector) => format!("nodes with {selector}"),
        Matcher::Block(it) => block(it),
        Matcher::Domain(pattern) => pattern.to_string(),
    }
}

pub(super) fn pods(scope: &PodScope) -> String {
    let pods = if scope.pods.is_empty() { "every pod".to_owned() } else { scope.pods.to_string() };
    match &scope.namespaces {
        NamespaceScope::Own(_) if scope.pods.is_empty() => "every pod of its own namespace".to_owned(),
        NamespaceScope::Own(_) => pods,
        NamespaceScope::Matching(selector) => match selector.only_namespace() {
            Some(name) => format!("{pods} in namespace {name}"),
            None if selector.is_empty() => format!("{pods} in every namespace"),
            None => format!("{pods} in namespaces with {selector}"),
        },
    }
}

pub(super) fn block(block: &Block) -> String {
    if block.except.is_empty() {
        return block.net.to_string();
    }
    format!("{} except {}", block.net, joined(block.except.iter().map(ToString::to_string), ", "))
}

pub(super) fn port(port: &PortMatch) -> String {
    let protocol = match (port.protocol, &port.doubt) {
        (Some(protocol), _) => protocol.as_str(),
        (None, None) => "port",
        (None, Some(_)) => "<invalid>",
    };
    match &port.port {
        _ if port.doubt.is_some() => format!("{protocol} <invalid>"),
        PortTest::Any => format!("any {protocol} port"),
        PortTest::Range(first, last) if first == last => format!("{protocol} {first}"),
        PortTest::Range(first, last) => format!("{protocol} {first}-{last}"),
        PortTest::Named(name) => format!("{protocol} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{
        cluster::Object,
        model::Direction,
        policy::CompiledPolicy,
        watch::convert::{self, Converted},
    };

    #[test]
    fn rules_in_words() {
        let ingress = json!([
            {},
            { "from": [{ "podSelector": { "matchLabels": { "app": "web" } } }], "ports": [{ "port": 5432 }] },
            { "from": [{ "podSelector": {} }, { "namespaceSelector": {} }], "ports": [{ "protocol": "UDP" }] },
            {
                "from": [{
                    "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "traefik" } },
                    "podSelector": { "matchLabels": { "app": "traefik" } },
                }],
                "ports": [{ "port": 8000, "endPort": 8010 }, { "port": "http" }],
            },
            { "from": [{ "namespaceSelector": { "matchExpressions": [{ "key": "env", "operator": "Exists" }] } }] },
            { "from": [{ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "192.168.0.0/16"] } }] },
            { "from": [{ "ipBlock": { "cidr": "x" } }], "ports": [{ "port": 0 }] },
        ]);
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "name": "p" },
            "spec": { "podSelector": {}, "ingress": ingress },
        });
        let converted = convert::document(&policy, &"test".into());
        let [Converted::Object(Object::NetworkPolicy(declared))] = converted.as_slice() else {
            panic!("{converted:?}");
        };
        let compiled = CompiledPolicy::compile(declared);
        let summaries: Vec<_> =
            compiled.rules(Direction::Ingress).iter().map(|it| it.summary.as_str()).collect();
        assert_eq!(
            summaries,
            [
                "from anyone on any port",
                "from app=web TCP 5432",
                "from every pod of its own namespace or every pod in every namespace any UDP port",
                "from app=traefik in namespace traefik TCP 8000-8010, TCP http",
                "from every pod in namespaces with env on any port",
                "from 0.0.0.0/0 except 10.0.0.0/8, 192.168.0.0/16 on any port",
                "from <invalid> TCP <invalid>",
            ]
        );
    }
}
