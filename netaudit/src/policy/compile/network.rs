//! `networking.k8s.io/v1` NetworkPolicy.

use std::sync::Arc;

use super::{
    Certainty, CompiledPolicy, Flaws, Matcher, NamespaceScope, Peer, PodScope, PortMatch, Rule, Tier,
    canonical, declared,
    elements::elements,
    parts::{compile_block, compile_port},
    summary,
};
use crate::{
    model::{Action, Direction, PolicyId, RuleId},
    policy::selector::Selector,
};

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
        let subjects = Arc::new(PodScope {
            namespaces: NamespaceScope::Own(id.namespace.clone()),
            pods: Selector::compile(&declared.pod_selector, "spec.podSelector", &mut flaws),
        });
        let (speaks, types_doubt) = compile_types(declared, &mut flaws);
        let rules = [Direction::Egress, Direction::Ingress].map(|direction| {
            let rules = match direction {
                Direction::Egress => &declared.egress,
                Direction::Ingress => &declared.ingress,
            };
            if !rules.is_empty() && speaks[direction as usize] == Certainty::No {
                flaws.add(
                    format!("spec.{direction}"),
                    "these rules mean nothing, as policyTypes does not name their direction",
                );
            }
            let compile = |(index, rule)| compile_rule(rule, direction, index, &id, &mut flaws);
            rules.iter().enumerate().map(compile).collect()
        });
        Self {
            id,
            tier: Tier::NetworkPolicy,
            priority: 0,
            order_doubt: None,
            subjects,
            subject_doubt: None,
            speaks,
            types_doubt,
            rules,
            warnings: flaws.warnings,
        }
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
    if let Some(invalid) = &declared.invalid_types {
        // Without a list it would be about Ingress; with one that nobody can read, about either.
        isolates = [Certainty::Maybe; 2];
        doubt = Some(flaws.add_invalid(invalid));
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
    let list = direction.peers();
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
        action: Action::Allow,
        name: "".into(),
    };
    let declared_ports = &ports[ports.len().saturating_sub(declared.ports.len())..];
    let elements = elements(
        direction,
        (&peers, declared.peers.iter().map(canonical::peer_hash).collect()),
        (declared_ports, declared.ports.iter().map(canonical::port_hash).collect()),
    );
    let mut rule = Rule { id: Arc::new(id), summary: String::new(), elements, doubt: None, peers, ports };
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
        into.push(compile_block(block, index, &format!("{path}.ipBlock"), ".cidr", doubt, flaws));
    } else if !has_selector {
        let doubt =
            flaws.add(path.to_owned(), "a peer needs a podSelector, a namespaceSelector or an ipBlock");
        into.push(Peer { index, matcher: Matcher::Anyone, doubt: Some(doubt) });
    }
}
