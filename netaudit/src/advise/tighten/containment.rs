//! Whether a policy allows nothing that another form of it did not.
//!
//! Whatever other policies there are: what a policy allows is what its rules allow, and a pod that it does not isolate another may.
//!
//! Two ways of showing it. By its elements: each new rule is within one old rule, element for element, which holds in any cluster. Where that does
//! not show it, by what both forms allow between all pods and addresses that they tell apart.

use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use crate::{
    model::Direction,
    policy::{
        Certainty, CompiledPolicy, NamespaceView,
        declared::{self, IpBlock, NetworkPolicy, Peer, Port, PortRef, Rule, Selector},
        parse_cidr,
        symbolic::Comparison,
    },
};

/// How it was shown that nothing new is allowed, or what is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "shown", content = "what", rename_all = "kebab-case")]
pub enum Contained {
    /// Each rule is within one of the old form: in any cluster.
    ByElements,
    /// Between all pods and addresses that the two forms tell apart.
    ByConnections,
    /// The same, but they tell more apart than could be tried.
    InPart,
    /// It may allow something new: an example.
    Not(String),
}

impl Contained {
    /// Whether it is shown.
    pub const fn is_shown(&self) -> bool {
        matches!(self, Self::ByElements | Self::ByConnections)
    }
}

/// Compares two forms of one policy. `namespaces` are those that are known.
pub fn containment(before: &NetworkPolicy, after: &NetworkPolicy, namespaces: &[NamespaceView]) -> Contained {
    let [old, new] = [before, after].map(|it| Arc::new(CompiledPolicy::compile(it)));
    if is_within(before, after, &old, &new) {
        return Contained::ByElements;
    }
    of_sets(&[old], &[new], namespaces)
}

/// Compares two sets of policies by what they allow.
pub fn of_sets(
    before: &[Arc<CompiledPolicy>],
    after: &[Arc<CompiledPolicy>],
    namespaces: &[NamespaceView],
) -> Contained {
    // What pods may do that nothing else isolates, and what they may do where something else does: other policies of the cluster may, that are
    // not among these.
    let compared = [false, true].map(|is_denied| Comparison::new(before, after, namespaces, is_denied));
    match compared.iter().find_map(Comparison::newly_allowed) {
        Some(example) => Contained::Not(example),
        None if compared.iter().all(Comparison::is_complete) => Contained::ByConnections,
        None => Contained::InPart,
    }
}

fn is_within(
    before: &NetworkPolicy,
    after: &NetworkPolicy,
    old: &CompiledPolicy,
    new: &CompiledPolicy,
) -> bool {
    let is_clean = |it: &CompiledPolicy| it.warnings.is_empty();
    let id = |it: &NetworkPolicy| (it.namespace.clone(), it.name.clone());
    is_clean(old)
        && is_clean(new)
        && id(before) == id(after)
        && is_same_selector(&before.pod_selector, &after.pod_selector)
        && Direction::ALL.into_iter().all(|direction| {
            let rules = |it: &NetworkPolicy| match direction {
                Direction::Egress => it.egress.clone(),
                Direction::Ingress => it.ingress.clone(),
            };
            let speaks = [old, new].map(|it| it.speaks_of(direction) == Certainty::Yes);
            match speaks {
                [false, false] => true,
                // Without isolation nothing denied, and no rule counted: another policy may isolate these pods.
                [false, true] => rules(after).is_empty(),
                [true, false] => false,
                [true, true] => {
                    let old = rules(before);
                    rules(after).iter().all(|rule| old.iter().any(|it| is_rule_within(rule, it)))
                }
            }
        })
}

fn is_rule_within(new: &Rule, old: &Rule) -> bool {
    let peers = old.peers.is_empty()
        || !new.peers.is_empty()
            && new.peers.iter().all(|peer| old.peers.iter().any(|it| is_peer_within(peer, it)));
    let ports = old.ports.is_empty()
        || !new.ports.is_empty()
            && new.ports.iter().all(|port| old.ports.iter().any(|it| is_port_within(port, it)));
    peers && ports
}

fn is_peer_within(new: &Peer, old: &Peer) -> bool {
    match (&new.ip_block, &old.ip_block) {
        (Some(new), Some(old)) => is_block_within(new, old),
        (None, None) => {
            let is_same = |new: &Option<Selector>, old: &Option<Selector>| match (new, old) {
                (Some(new), Some(old)) => is_same_selector(new, old),
                (None, None) => true,
                _ => false,
            };
            is_same(&new.namespace_selector, &old.namespace_selector)
                && is_same(&new.pod_selector, &old.pod_selector)
        }
        _ => false,
    }
}

fn is_block_within(new: &IpBlock, old: &IpBlock) -> bool {
    let cidrs = |it: &IpBlock| -> Option<(IpNet, Vec<IpNet>)> {
        let except = it.except.iter().map(|it| parse_cidr(it)).collect::<Option<_>>()?;
        Some((parse_cidr(&it.cidr)?, except))
    };
    let (Some((net, except)), Some((old_net, old_except))) = (cidrs(new), cidrs(old)) else { return false };
    // Two ranges overlap where one holds the other.
    let is_open = |hole: &IpNet| match net.contains(hole) {
        true => !except.iter().any(|it| it.contains(hole)),
        false => hole.contains(&net),
    };
    old_net.contains(&net) && !old_except.iter().any(is_open)
}

fn is_port_within(new: &Port, old: &Port) -> bool {
    let protocol = |it: &Port| it.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let range = |it: &Port| match &it.port {
        Some(PortRef::Number(first)) => Some((*first, it.end_port.unwrap_or(*first))),
        _ => None,
    };
    let is_any = |it: &Port| it.port.is_none();
    protocol(new) == protocol(old)
        && (is_any(old)
            || new.port == old.port && new.end_port == old.end_port
            || range(new).zip(range(old)).is_some_and(|(new, old)| old.0 <= new.0 && new.1 <= old.1))
}

/// Whether two selectors say the same, whatever the order.
pub fn is_same_selector(a: &Selector, b: &Selector) -> bool {
    let sorted = |it: &Selector| -> (Vec<(String, String)>, Vec<declared::Expression>) {
        let (mut labels, mut expressions) = (it.match_labels.clone(), it.match_expressions.clone());
        labels.sort();
        expressions.iter_mut().for_each(|it| it.values.sort());
        expressions.sort_by(|a, b| (&a.key, &a.operator, &a.values).cmp(&(&b.key, &b.operator, &b.values)));
        (labels, expressions)
    };
    sorted(a) == sorted(b)
}
