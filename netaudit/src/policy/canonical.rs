//! What makes two rules the same: a hash of their content, without what does not change their meaning.
//!
//! Left out are the rule's place in the policy, the order of labels, expressions, values, peers and ports, repetitions
//! of them, and defaults that are spelled out (`protocol: TCP`, an `endPort` equal to `port`).

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::{compile::parse_cidr, declared, domains::DomainPattern};
use crate::model::Direction;

/// The first 8 bytes of SHA-256 over the rule's canonical text, big-endian.
pub(super) fn hash(direction: Direction, rule: &declared::Rule) -> u64 {
    let mut text = String::from(direction.as_str());
    list(&mut text, "peers", rule.peers.iter().map(peer));
    list(&mut text, "ports", rule.ports.iter().map(port));
    list(&mut text, "invalid", rule.invalid_peers.iter().chain(&rule.invalid_ports).map(invalid));
    digest(&text)
}

/// The same for a rule of a cluster-wide policy. What it does is part of what it is, its name is not. The kind is not
/// part of the text, as it is of the policy's identity.
pub(super) fn cluster_hash(direction: Direction, rule: &declared::ClusterRule) -> u64 {
    let mut text = format!("{direction} {:?}", rule.action.as_deref().unwrap_or_default());
    list(&mut text, "peers", rule.peers.iter().map(cluster_peer));
    list(&mut text, "ports", rule.ports.iter().map(cluster_port));
    let flaws = [&rule.invalid, &rule.invalid_peers, &rule.invalid_ports];
    list(&mut text, "invalid", flaws.into_iter().flatten().map(invalid));
    digest(&text)
}

/// The same for one element of `from` or `to`.
pub(super) fn peer_hash(declared: &declared::Peer) -> u64 {
    digest(&peer(declared))
}

/// The same for one element of `ports`. A peer's text begins otherwise, so the two never meet.
pub(super) fn port_hash(declared: &declared::Port) -> u64 {
    digest(&format!("port {}", port(declared)))
}

/// The same for an element of a cluster-wide policy's `from` or `to`.
pub(super) fn cluster_peer_hash(declared: &declared::ClusterPeer) -> u64 {
    digest(&cluster_peer(declared))
}

/// The same for an element of a cluster-wide policy's ports.
pub(super) fn cluster_port_hash(declared: &declared::ClusterPort) -> u64 {
    digest(&format!("port {}", cluster_port(declared)))
}

fn digest(text: &str) -> u64 {
    let digest = Sha256::digest(text.as_bytes());
    digest[..8].iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// Appends ` name(item item)` with the items sorted and without repetitions.
fn list(text: &mut String, name: &str, items: impl Iterator<Item = String>) {
    let mut items: Vec<String> = items.collect();
    items.sort();
    items.dedup();
    let _ = write!(text, " {name}({})", items.join(" "));
}

fn peer(peer: &declared::Peer) -> String {
    let mut text = String::from("peer");
    list(&mut text, "namespaces", peer.namespace_selector.iter().map(selector));
    list(&mut text, "pods", peer.pod_selector.iter().map(selector));
    list(&mut text, "block", peer.ip_block.iter().map(block));
    list(&mut text, "invalid", peer.invalid.iter().map(invalid));
    text
}

fn cluster_peer(peer: &declared::ClusterPeer) -> String {
    let mut text = String::from("peer");
    list(&mut text, "namespaces", peer.scope.namespaces.iter().map(selector));
    let pods = |(namespaces, pods): &(declared::Selector, declared::Selector)| {
        format!("{} {}", selector(namespaces), selector(pods))
    };
    list(&mut text, "pods", peer.scope.pods.iter().map(pods));
    list(&mut text, "nodes", peer.nodes.iter().map(selector));
    let net = |text: &String| parse_cidr(text).map_or_else(|| format!("{text:?}"), |net| net.to_string());
    list(&mut text, "networks", peer.networks.iter().flatten().map(net));
    let name = |text: &String| match DomainPattern::parse(text) {
        Some(pattern) => pattern.to_string(),
        None => format!("{text:?}"),
    };
    list(&mut text, "domains", peer.domain_names.iter().flatten().map(name));
    list(&mut text, "invalid", peer.scope.invalid.iter().chain(&peer.invalid).map(invalid));
    text
}

fn cluster_port(declared: &declared::ClusterPort) -> String {
    let by_name = matches!(declared.port.port, Some(declared::PortRef::Name(_)));
    if by_name && declared.port.protocol.is_none() {
        return format!("any {}", port(&declared.port));
    }
    port(&declared.port)
}

/// What a lost part said cannot be told, so all parts that are wrong in one way are the same.
fn invalid(invalid: &declared::Invalid) -> String {
    format!("{:?}", invalid.reason)
}

/// A label is an expression with the operator `In` and one value: both spellings are one content.
fn selector(selector: &declared::Selector) -> String {
    let labels = selector.match_labels.iter().map(|(key, value)| requirement(key, "In", [value]));
    let expressions =
        selector.match_expressions.iter().map(|it| requirement(&it.key, &it.operator, &it.values));
    let mut text = String::from("selector");
    list(&mut text, "all", labels.chain(expressions));
    list(&mut text, "invalid", selector.invalid.iter().map(invalid));
    text
}

/// Text from the object is quoted, so that no content can look like another.
fn requirement<'a>(key: &str, operator: &str, values: impl IntoIterator<Item = &'a String>) -> String {
    let mut text = format!("{key:?} {operator:?}");
    list(&mut text, "values", values.into_iter().map(|value| format!("{value:?}")));
    text
}

fn block(block: &declared::IpBlock) -> String {
    let net = |text: &String| match parse_cidr(text) {
        Some(net) => net.to_string(),
        None => format!("{text:?}"),
    };
    let mut text = net(&block.cidr);
    list(&mut text, "except", block.except.iter().map(net));
    text
}

fn port(port: &declared::Port) -> String {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let mut text = format!("{protocol:?}");
    match &port.port {
        None => {}
        Some(declared::PortRef::Number(number)) => {
            let _ = write!(text, " {number}");
        }
        Some(declared::PortRef::Name(name)) => {
            let _ = write!(text, " {name:?}");
        }
    }
    match (&port.port, port.end_port) {
        (_, None) => {}
        (Some(declared::PortRef::Number(first)), Some(last)) if *first == last => {}
        (_, Some(last)) => {
            let _ = write!(text, " to {last}");
        }
    }
    list(&mut text, "invalid", port.invalid.iter().map(invalid));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::declared::{
        ClusterPeer, ClusterPort, ClusterRule, Expression, IpBlock, Peer, Port, PortRef, Rule, Selector,
    };

    fn labels(pairs: &[(&str, &str)]) -> Selector {
        let match_labels = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Selector { match_labels, ..Selector::default() }
    }

    fn expressions(all: &[(&str, &str, &[&str])]) -> Selector {
        let expression = |(key, operator, values): &(&str, &str, &[&str])| Expression {
            key: key.to_string(),
            operator: operator.to_string(),
            values: values.iter().map(ToString::to_string).collect(),
        };
        Selector { match_expressions: all.iter().map(expression).collect(), ..Selector::default() }
    }

    fn pods(selector: Selector) -> Rule {
        Rule { peers: vec![Peer { pod_selector: Some(selector), ..Peer::default() }], ..Rule::default() }
    }

    fn block(cidr: &str, except: &[&str]) -> Rule {
        let block = IpBlock { cidr: cidr.into(), except: except.iter().map(ToString::to_string).collect() };
        Rule { peers: vec![Peer { ip_block: Some(block), ..Peer::default() }], ..Rule::default() }
    }

    fn ports(ports: &[(Option<&str>, Option<i64>, Option<i64>)]) -> Rule {
        let port = |(protocol, port, end): &(Option<&str>, Option<i64>, Option<i64>)| Port {
            protocol: protocol.map(str::to_owned),
            port: port.map(PortRef::Number),
            end_port: *end,
            invalid: None,
        };
        Rule { ports: ports.iter().map(port).collect(), ..Rule::default() }
    }

    #[test]
    fn one_meaning_one_hash() {
        for (a, b) in [
            (pods(labels(&[("a", "1"), ("b", "2")])), pods(labels(&[("b", "2"), ("a", "1")]))),
            (pods(labels(&[("a", "1")])), pods(expressions(&[("a", "In", &["1"])]))),
            (
                pods(expressions(&[("a", "In", &["1", "2", "1"]), ("b", "Exists", &[])])),
                pods(expressions(&[("b", "Exists", &[]), ("a", "In", &["2", "1"])])),
            ),
            (ports(&[(None, Some(80), None)]), ports(&[(Some("TCP"), Some(80), Some(80))])),
            (
                ports(&[(None, Some(80), None), (Some("UDP"), None, None)]),
                ports(&[(Some("UDP"), None, None), (None, Some(80), None), (None, Some(80), None)]),
            ),
            (block("10.1.2.3/8", &["10.1.0.0/16"]), block("10.0.0.0/8", &["10.1.0.0/16", "10.1.0.0/16"])),
            (block("::ffff:10.0.0.0/104", &[]), block("10.0.0.0/8", &[])),
        ] {
            assert_eq!(hash(Direction::Egress, &a), hash(Direction::Egress, &b), "{a:?} {b:?}");
        }
    }

    #[test]
    fn another_meaning_another_hash() {
        let namespaces = |selector| Rule {
            peers: vec![Peer { namespace_selector: Some(selector), ..Peer::default() }],
            ..Rule::default()
        };
        let both = Rule {
            peers: vec![Peer {
                namespace_selector: Some(labels(&[("a", "1")])),
                pod_selector: Some(labels(&[("b", "2")])),
                ..Peer::default()
            }],
            ..Rule::default()
        };
        let either = Rule {
            peers: [namespaces(labels(&[("a", "1")])), pods(labels(&[("b", "2")]))]
                .into_iter()
                .flat_map(|it| it.peers)
                .collect(),
            ..Rule::default()
        };
        let named = |name: &str| Rule {
            ports: vec![Port { port: Some(PortRef::Name(name.into())), ..Port::default() }],
            ..Rule::default()
        };
        let rules = [
            Rule::default(),
            pods(Selector::default()),
            namespaces(Selector::default()),
            pods(labels(&[("a", "1")])),
            pods(labels(&[("a", "1\" \"In")])),
            namespaces(labels(&[("a", "1")])),
            pods(expressions(&[("a", "NotIn", &["1"])])),
            pods(expressions(&[("a", "In", &["1", "2"])])),
            pods(expressions(&[("a", "In", &["1 2"])])),
            both,
            either,
            block("10.0.0.0/8", &[]),
            block("10.0.0.0/9", &[]),
            block("10.0.0.0/8", &["10.0.0.0/9"]),
            ports(&[(None, None, None)]),
            ports(&[(Some("UDP"), None, None)]),
            ports(&[(None, Some(80), None)]),
            ports(&[(None, Some(80), Some(81))]),
            named("80"),
            named("http"),
        ];
        let mut hashes: Vec<_> = [Direction::Egress, Direction::Ingress]
            .iter()
            .flat_map(|direction| rules.iter().map(|rule| hash(*direction, rule)))
            .collect();
        let all = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), all);
    }

    #[test]
    fn the_hash_is_the_same_in_every_version() {
        // Usage that is stored by this hash must be found again: changing the canonical text loses history.
        let mut rule = pods(labels(&[("app", "postgres")]));
        rule.ports = ports(&[(None, Some(5432), None)]).ports;
        assert_eq!(format!("{:016x}", hash(Direction::Egress, &rule)), "6143108598b21d65");
    }

    fn cluster_rule(action: &str, networks: &[&str], names: &[&str]) -> ClusterRule {
        let texts = |texts: &[&str]| Some(texts.iter().map(ToString::to_string).collect());
        let peers = vec![
            ClusterPeer { networks: texts(networks), ..ClusterPeer::default() },
            ClusterPeer { domain_names: texts(names), ..ClusterPeer::default() },
        ];
        ClusterRule { action: Some(action.to_owned()), peers, ..ClusterRule::default() }
    }

    #[test]
    fn of_a_cluster_wide_rule_the_action_counts_and_the_name_does_not() {
        let hash = |rule: &ClusterRule| cluster_hash(Direction::Egress, rule);
        let rule = cluster_rule("Accept", &["10.0.0.0/8", "10.1.2.3/16"], &["*.Example.com."]);
        let named = ClusterRule { name: "n".into(), ..rule.clone() };
        assert_eq!(hash(&rule), hash(&named));
        let mut turned = rule.clone();
        turned.peers.reverse();
        assert_eq!(hash(&rule), hash(&turned));
        assert_eq!(
            hash(&rule),
            hash(&cluster_rule("Accept", &["10.1.0.0/16", "10.0.0.0/8"], &["*.example.com"]))
        );
        assert_ne!(hash(&rule), hash(&ClusterRule { action: Some("Deny".into()), ..rule.clone() }));
        assert_ne!(
            hash(&rule),
            hash(&cluster_rule("Accept", &["10.0.0.0/8", "10.1.2.3/16"], &["example.com"]))
        );
        assert_ne!(hash(&rule), cluster_hash(Direction::Ingress, &rule));
        let port = |protocol: Option<&str>, port| ClusterPort {
            path: "ports[0]".into(),
            port: Port { protocol: protocol.map(str::to_owned), port: Some(port), ..Port::default() },
        };
        let with = |it| ClusterRule { ports: vec![it], ..rule.clone() };
        let http = || PortRef::Name("http".into());
        assert_ne!(hash(&with(port(None, http()))), hash(&with(port(Some("TCP"), http()))), "any protocol");
        assert_eq!(
            hash(&with(port(None, PortRef::Number(80)))),
            hash(&with(port(Some("TCP"), PortRef::Number(80))))
        );
        // Usage that is stored by this hash must be found again.
        assert_eq!(format!("{:016x}", hash(&rule)), "b94771d77b78b2a0");
    }
}
