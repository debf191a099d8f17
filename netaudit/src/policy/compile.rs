//! From a declared policy to its meaning: never all or nothing.
//!
//! What the API server would refuse leaves a [`Warning`], and a *doubt* at the smallest part that it can affect: a
//! selector, a peer, a port, a direction. Evaluation carries the doubt along and answers `unknown` only where the
//! doubtful part would decide.

use std::{net::IpAddr, sync::Arc};

use ipnet::{IpNet, Ipv4Net};

use super::{Certainty, Labels, Warning, canonical, declared, selector::Selector, summary};
use crate::model::{Direction, PolicyId, Protocol, RuleId};

/// A policy whose meaning is known, as far as it is valid.
#[derive(Debug)]
pub struct CompiledPolicy {
    /// Which policy it is.
    pub id: Arc<PolicyId>,
    pub(super) subjects: Selector,
    isolates: [Certainty; 2],
    /// Why `policyTypes` is doubtful, where it is.
    pub(super) types_doubt: Option<Arc<str>>,
    rules: [Vec<Rule>; 2],
    /// What is wrong with it.
    pub warnings: Vec<Warning>,
}

/// One rule of a compiled policy.
#[derive(Debug)]
pub struct Rule {
    /// Its identity and where it stands.
    pub id: Arc<RuleId>,
    /// What it allows, in one line: `to app=postgres TCP 5432`.
    pub summary: String,
    /// Empty: everybody.
    pub(super) peers: Vec<Peer>,
    /// Empty: every port of every protocol.
    pub(super) ports: Vec<PortMatch>,
}

impl Rule {
    /// Whether a sensor can see what the rule allows. SCTP is recorded by none, so a rule for nothing else shows no
    /// use however much it is used. A port whose protocol is invalid may be any.
    pub fn is_observable(&self) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|it| it.protocol != Some(Protocol::Sctp))
    }
}

/// What an element of `from` or `to` matches. An element with contradictory fields gives several, all in doubt.
#[derive(Debug)]
pub(super) struct Peer {
    /// The position in `from` or `to`.
    pub index: u32,
    pub matcher: Matcher,
    /// Set where a match is not certain: why.
    pub doubt: Option<Arc<str>>,
}

#[derive(Debug)]
pub(super) enum Matcher {
    /// Whoever it was meant to match cannot be told: perhaps everybody.
    Anyone,
    Pods(Arc<PodScope>),
    Block(Arc<Block>),
}

/// Pods by their namespace and labels.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct PodScope {
    pub namespaces: NamespaceScope,
    pub pods: Selector,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum NamespaceScope {
    /// The policy's own.
    Own(Arc<str>),
    Matching(Selector),
}

/// An address range with holes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Block {
    pub net: IpNet,
    /// Sorted.
    pub except: Vec<IpNet>,
}

impl Block {
    /// The API: an address matches that is inside `cidr` and inside none of `except`. It may be a pod's.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.net.contains(&ip) && !self.except.iter().any(|hole| hole.contains(&ip))
    }
}

/// An element of `ports`.
#[derive(Debug)]
pub(super) struct PortMatch {
    /// `None` where it is invalid: perhaps every protocol.
    pub protocol: Option<Protocol>,
    pub port: PortTest,
    /// Set where a match is not certain: why.
    pub doubt: Option<Arc<str>>,
}

impl PortMatch {
    /// Perhaps every port of every protocol.
    fn anything(doubt: Arc<str>) -> Self {
        Self { protocol: None, port: PortTest::Any, doubt: Some(doubt) }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum PortTest {
    /// Every port.
    Any,
    /// From the first to the last, both included.
    Range(u16, u16),
    /// The destination pod's port of this name and the rule's protocol.
    Named(Arc<str>),
}

/// What is wrong with one object: collects warnings and hands out the text that verdicts carry.
pub(super) struct Flaws {
    object: Arc<str>,
    pub warnings: Vec<Warning>,
}

impl Flaws {
    pub fn new(object: &str) -> Self {
        Self { object: object.into(), warnings: Vec::new() }
    }

    /// Records a flaw and returns its full text: object, path and reason.
    pub fn add(&mut self, path: String, reason: impl Into<String>) -> Arc<str> {
        let warning = Warning { object: self.object.clone(), path, reason: reason.into() };
        let text = warning.to_string().into();
        self.warnings.push(warning);
        text
    }

    /// Records a part of the wrong type.
    pub fn add_invalid(&mut self, invalid: &declared::Invalid) -> Arc<str> {
        self.add(invalid.path.clone(), invalid.reason.as_str())
    }
}

impl CompiledPolicy {
    /// Compiles a policy. Its [`warnings`](Self::warnings) say what is wrong with it; the rest holds.
    pub fn compile(declared: &declared::NetworkPolicy) -> Self {
        let id = Arc::new(PolicyId {
            kind: "NetworkPolicy",
            namespace: declared.namespace.clone(),
            name: declared.name.clone(),
        });
        let mut flaws = Flaws::new(&format!("NetworkPolicy {}/{}", id.namespace, id.name));
        for field in &declared.unknown_fields {
            flaws.add(field.clone(), "unknown field: the API server drops it");
        }
        let subjects = Selector::compile(&declared.pod_selector, "spec.podSelector", &mut flaws);
        let (isolates, types_doubt) = compile_types(declared, &mut flaws);
        let rules = [Direction::Egress, Direction::Ingress].map(|direction| {
            let rules = match direction {
                Direction::Egress => &declared.egress,
                Direction::Ingress => &declared.ingress,
            };
            if !rules.is_empty() && isolates[direction as usize] == Certainty::No {
                flaws.add(
                    format!("spec.{direction}"),
                    "these rules mean nothing, as policyTypes does not name their direction",
                );
            }
            let compile = |(index, rule)| compile_rule(rule, direction, index, &id, &mut flaws);
            rules.iter().enumerate().map(compile).collect()
        });
        Self { id, subjects, isolates, types_doubt, rules, warnings: flaws.warnings }
    }

    /// The rules of a direction, in the policy's order.
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        &self.rules[direction as usize]
    }

    /// Whether the pods that it selects are isolated in this direction.
    pub fn isolates(&self, direction: Direction) -> Certainty {
        self.isolates[direction as usize]
    }

    /// Whether its `podSelector` selects a pod with these labels in this namespace.
    pub fn selects(&self, namespace: &str, labels: &Labels) -> Certainty {
        if *self.id.namespace != *namespace { Certainty::No } else { self.subjects.matches(labels) }
    }

    /// Its `podSelector` as `kubectl` prints it; empty where it selects every pod of the namespace.
    pub fn pod_selector(&self) -> String {
        self.subjects.to_string()
    }
}

/// The API on `policyTypes`: it names the directions that the policy is about. Where it is missing or empty, that is
/// Ingress always, and Egress if there is an egress rule.
fn compile_types(
    declared: &declared::NetworkPolicy,
    flaws: &mut Flaws,
) -> ([Certainty; 2], Option<Arc<str>>) {
    let mut isolates = [Certainty::No; 2];
    let mut doubt = None;
    if declared.policy_types.is_empty() {
        isolates[Direction::Ingress as usize] = Certainty::Yes;
        isolates[Direction::Egress as usize] = (!declared.egress.is_empty()).into();
    }
    for (index, name) in declared.policy_types.iter().enumerate() {
        match name.as_str() {
            "Ingress" => isolates[Direction::Ingress as usize] = Certainty::Yes,
            "Egress" => isolates[Direction::Egress as usize] = Certainty::Yes,
            other => {
                let reason = format!("unknown type {other:?}: Ingress or Egress");
                doubt = Some(flaws.add(format!("spec.policyTypes[{index}]"), reason));
            }
        }
    }
    if doubt.is_some() {
        isolates = isolates.map(|it| it.or(Certainty::Maybe));
    }
    (isolates, doubt)
}

fn compile_rule(
    declared: &declared::Rule,
    direction: Direction,
    index: usize,
    policy: &Arc<PolicyId>,
    flaws: &mut Flaws,
) -> Rule {
    let path = format!("spec.{direction}[{index}]");
    let list = match direction {
        Direction::Egress => "to",
        Direction::Ingress => "from",
    };
    let mut peers = Vec::new();
    if let Some(invalid) = &declared.invalid_peers {
        peers.push(Peer { index: 0, matcher: Matcher::Anyone, doubt: Some(flaws.add_invalid(invalid)) });
    }
    for (index, peer) in declared.peers.iter().enumerate() {
        compile_peer(peer, index, &format!("{path}.{list}[{index}]"), &policy.namespace, flaws, &mut peers);
    }
    let mut ports = Vec::new();
    if let Some(invalid) = &declared.invalid_ports {
        ports.push(PortMatch::anything(flaws.add_invalid(invalid)));
    }
    for (index, port) in declared.ports.iter().enumerate() {
        ports.push(compile_port(port, &format!("{path}.ports[{index}]"), flaws));
    }
    let id = RuleId {
        policy: policy.clone(),
        direction,
        hash: canonical::hash(direction, declared),
        index: u32::try_from(index).unwrap_or(u32::MAX),
    };
    let mut rule = Rule { id: Arc::new(id), summary: String::new(), peers, ports };
    rule.summary = summary::of(&rule);
    rule
}

/// The API on peers: `podSelector` alone selects pods in the policy's namespace; `namespaceSelector` alone selects all
/// pods in the matching namespaces; both select the pods that match in the namespaces that match; `ipBlock` excludes
/// the other two; a peer with nothing is refused.
fn compile_peer(
    declared: &declared::Peer,
    index: usize,
    path: &str,
    own: &Arc<str>,
    flaws: &mut Flaws,
    into: &mut Vec<Peer>,
) {
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    if let Some(invalid) = &declared.invalid {
        let doubt = flaws.add_invalid(invalid);
        into.push(Peer { index, matcher: Matcher::Anyone, doubt: Some(doubt) });
        return;
    }
    let mut doubt = None;
    let has_selector = declared.pod_selector.is_some() || declared.namespace_selector.is_some();
    if declared.ip_block.is_some() && has_selector {
        doubt = Some(flaws.add(path.to_owned(), "ipBlock cannot stand beside a selector"));
    }
    if has_selector {
        let mut selector = |field: &str, declared: &declared::Selector| {
            Selector::compile(declared, &format!("{path}.{field}"), flaws)
        };
        let namespaces = match &declared.namespace_selector {
            None => NamespaceScope::Own(own.clone()),
            Some(declared) => NamespaceScope::Matching(selector("namespaceSelector", declared)),
        };
        let pods = declared.pod_selector.as_ref().map(|it| selector("podSelector", it)).unwrap_or_default();
        let scope = Arc::new(PodScope { namespaces, pods });
        into.push(Peer { index, matcher: Matcher::Pods(scope), doubt: doubt.clone() });
    }
    if let Some(block) = &declared.ip_block {
        into.push(compile_block(block, index, &format!("{path}.ipBlock"), doubt, flaws));
    } else if !has_selector {
        let doubt =
            flaws.add(path.to_owned(), "a peer needs a podSelector, a namespaceSelector or an ipBlock");
        into.push(Peer { index, matcher: Matcher::Anyone, doubt: Some(doubt) });
    }
}

/// The API on `except`: each must be a proper part of `cidr`.
fn compile_block(
    declared: &declared::IpBlock,
    index: u32,
    path: &str,
    mut doubt: Option<Arc<str>>,
    flaws: &mut Flaws,
) -> Peer {
    let Some(net) = parse_cidr(&declared.cidr) else {
        let reason = format!("{:?} is not a CIDR such as 10.0.0.0/8", declared.cidr);
        let doubt = flaws.add(format!("{path}.cidr"), reason);
        return Peer { index, matcher: Matcher::Anyone, doubt: Some(doubt) };
    };
    let mut except = Vec::new();
    for (hole_index, text) in declared.except.iter().enumerate() {
        let path = format!("{path}.except[{hole_index}]");
        let Some(hole) = parse_cidr(text) else {
            doubt.get_or_insert(flaws.add(path, format!("{text:?} is not a CIDR such as 10.0.0.0/8")));
            continue;
        };
        if !net.contains(&hole) && !hole.contains(&net) {
            // One of the two is not what was meant, so no address of the block is certain.
            doubt.get_or_insert(flaws.add(path, format!("{hole} is not inside {net}")));
            continue;
        }
        if hole.contains(&net) {
            // Refused by the API server, yet clear in what it says: nobody.
            flaws.add(path, format!("{hole} leaves nothing of {net}"));
        }
        except.push(hole);
    }
    except.sort();
    except.dedup();
    Peer { index, matcher: Matcher::Block(Arc::new(Block { net, except })), doubt }
}

/// An address range; host bits are ignored, as the API does, and a v4-mapped range is the v4 range.
pub(super) fn parse_cidr(text: &str) -> Option<IpNet> {
    let net: IpNet = text.parse().ok()?;
    if let IpNet::V6(v6) = net
        && v6.prefix_len() >= 96
        && let Some(v4) = v6.addr().to_ipv4_mapped()
    {
        return Some(IpNet::V4(Ipv4Net::new(v4, v6.prefix_len() - 96).ok()?.trunc()));
    }
    Some(net.trunc())
}

/// The API on ports: no `protocol` means TCP; no `port` means every port of the protocol; `endPort` makes a range,
/// needs a numeric `port`, and is not less than it.
fn compile_port(declared: &declared::Port, path: &str, flaws: &mut Flaws) -> PortMatch {
    if let Some(invalid) = &declared.invalid {
        return PortMatch::anything(flaws.add_invalid(invalid));
    }
    let mut doubt = None;
    let protocol = match declared.protocol.as_deref() {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(other) => {
            let reason = format!("unknown protocol {other:?}: TCP, UDP or SCTP");
            doubt = Some(flaws.add(format!("{path}.protocol"), reason));
            None
        }
    };
    match compile_port_test(declared) {
        Ok(port) => PortMatch { protocol, port, doubt },
        Err((field, reason)) => {
            let flaw = flaws.add(format!("{path}.{field}"), reason);
            PortMatch { protocol, port: PortTest::Any, doubt: Some(doubt.unwrap_or(flaw)) }
        }
    }
}

fn compile_port_test(declared: &declared::Port) -> Result<PortTest, (&'static str, String)> {
    let number = |field, number: i64| match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err((field, format!("{number} is not a port: 1 to 65535"))),
    };
    match (&declared.port, declared.end_port) {
        (None, None) => Ok(PortTest::Any),
        (None, Some(_)) => Err(("endPort", "needs a port to start from".to_owned())),
        (Some(declared::PortRef::Number(first)), None) => {
            let port = number("port", *first)?;
            Ok(PortTest::Range(port, port))
        }
        (Some(declared::PortRef::Number(first)), Some(last)) => {
            let (first, last) = (number("port", *first)?, number("endPort", last)?);
            if last < first {
                return Err(("endPort", format!("{last} is less than port {first}")));
            }
            Ok(PortTest::Range(first, last))
        }
        (Some(declared::PortRef::Name(name)), Some(_)) => {
            Err(("endPort", format!("cannot extend the named port {name:?}")))
        }
        (Some(declared::PortRef::Name(name)), None) if is_port_name(name) => {
            Ok(PortTest::Named(name.as_str().into()))
        }
        (Some(declared::PortRef::Name(name)), None) => {
            Err(("port", format!("{name:?} cannot be a port's name, and is text, not a number")))
        }
    }
}

/// Names as IANA has them: at most 15 lower-case letters, digits and single dashes inside, with a letter among them.
fn is_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        cluster::Object,
        watch::convert::{self, Converted},
    };

    #[test]
    fn only_rules_for_nothing_but_sctp_cannot_be_observed() {
        let is_observable = |ports: Value| {
            let policy = json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": { "name": "p", "namespace": "x" },
                "spec": { "podSelector": {}, "ingress": [{ "ports": ports }] },
            });
            match convert::document(&policy, &"test".into()).as_slice() {
                [Converted::Object(Object::NetworkPolicy(declared))] => {
                    CompiledPolicy::compile(declared).rules(Direction::Ingress)[0].is_observable()
                }
                other => panic!("{other:?}"),
            }
        };
        let sctp = json!({ "protocol": "SCTP", "port": 3868 });
        assert!(!is_observable(json!([sctp])));
        assert!(!is_observable(json!([sctp, { "protocol": "SCTP" }])));
        assert!(is_observable(json!([])));
        assert!(is_observable(Value::Null));
        assert!(is_observable(json!([{ "port": 80 }])), "TCP unless it is said");
        assert!(is_observable(json!([sctp, { "protocol": "UDP", "port": 53 }])));
        assert!(is_observable(json!([sctp, { "protocol": "sctp", "port": 53 }])), "invalid: perhaps any");
    }
}
