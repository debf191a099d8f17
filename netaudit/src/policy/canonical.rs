//! What makes two rules the same: a hash of their content, without what does not change their meaning.
//!
//! Left out are the rule's place in the policy, the order of labels, expressions, values, peers and ports, repetitions
//! of them, and defaults that are spelled out (`protocol: TCP`, an `endPort` equal to `port`).

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::{compile::parse_cidr, declared};
use crate::model::Direction;

/// The first 8 bytes of SHA-256 over the rule's canonical text, big-endian.
pub(super) fn hash(direction: Direction, rule: &declared::Rule) -> u64 {
    let mut text = String::from(direction.as_str());
    list(&mut text, "peers", rule.peers.iter().map(peer));
    list(&mut text, "ports", rule.ports.iter().map(port));
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
    text
}

/// A label is an expression with the operator `In` and one value: both spellings are one content.
fn selector(selector: &declared::Selector) -> String {
    let labels = selector.match_labels.iter().map(|(key, value)| requirement(key, "In", [value]));
    let expressions =
        selector.match_expressions.iter().map(|it| requirement(&it.key, &it.operator, &it.values));
    let mut text = String::from("selector");
    list(&mut text, "all", labels.chain(expressions));
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
    text
}
