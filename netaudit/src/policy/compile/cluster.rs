//! The cluster-wide kinds of `policy.networking.k8s.io`: ClusterNetworkPolicy `v1alpha2`, AdminNetworkPolicy and
//! BaselineAdminNetworkPolicy `v1alpha1`.

use std::sync::Arc;

use super::{
    CompiledPolicy, Flaws, Matcher, NamespaceScope, Peer, PodScope, PortMatch, Rule, Tier, canonical,
    declared,
    elements::elements,
    parts::{compile_block, compile_cluster_port},
    summary,
};
use crate::{
    model::{Action, Direction, PolicyId, RuleId},
    policy::{
        declared::{ClusterKind, ClusterPeer, ClusterPolicy, ClusterRule},
        domains::DomainPattern,
        selector::Selector,
    },
};

/// The API: priorities are from 0 to 1000.
const LAST_PRIORITY: u16 = 1000;

impl CompiledPolicy {
    /// Compiles a policy of a cluster-wide kind. Its [`warnings`](Self::warnings) say what is wrong with it; the rest
    /// holds.
    pub fn compile_cluster(declared: &ClusterPolicy) -> Self {
        let kind = declared.kind.as_str();
        let id = Arc::new(PolicyId { kind, namespace: "".into(), name: declared.name.clone() });
        let mut flaws = Flaws::new(&format!("{kind} {}", id.name));
        for field in &declared.unknown_fields {
            flaws.add(field.clone(), "unknown field: the API server drops it");
        }
        if declared.kind == ClusterKind::BaselineAdminNetworkPolicy && *declared.name != *"default" {
            flaws.add("metadata.name".to_owned(), "the API server wants the name \"default\"");
        }
        let mut order_doubt = declared.invalid_order.as_ref().map(|it| flaws.add_invalid(it));
        let (mut tier, mut priority) = (Tier::Admin, 0);
        if order_doubt.is_none() {
            let mut doubt = |(field, reason): (&str, String)| {
                let flaw = flaws.add(format!("spec.{field}"), reason);
                order_doubt.get_or_insert(flaw);
            };
            match place_tier(declared) {
                Ok(it) => tier = it,
                Err(flaw) => doubt(flaw),
            }
            match place_priority(declared) {
                Ok(it) => priority = it,
                Err(flaw) => doubt(flaw),
            }
        }
        let (subjects, subject_doubt) = compile_scope(&declared.subject, "spec.subject", &mut flaws);
        let rules = [Direction::Egress, Direction::Ingress].map(|direction| {
            let rules = rules_of(declared, direction);
            let compile =
                |(index, rule)| compile_rule(rule, declared.kind, direction, index, &id, &mut flaws);
            rules.iter().enumerate().map(compile).collect()
        });
        // The API: a policy without rules for a direction does not affect it.
        let speaks =
            [Direction::Egress, Direction::Ingress].map(|it| (!rules_of(declared, it).is_empty()).into());
        Self {
            id,
            tier,
            priority,
            order_doubt,
            subjects: Arc::new(subjects),
            subject_doubt,
            speaks,
            types_doubt: None,
            rules,
            warnings: flaws.warnings,
        }
    }
}

fn rules_of(declared: &ClusterPolicy, direction: Direction) -> &[ClusterRule] {
    match direction {
        Direction::Egress => &declared.egress,
        Direction::Ingress => &declared.ingress,
    }
}

fn place_tier(declared: &ClusterPolicy) -> Result<Tier, (&'static str, String)> {
    match (declared.kind, declared.tier.as_deref()) {
        (ClusterKind::AdminNetworkPolicy, _) | (_, Some("Admin")) => Ok(Tier::Admin),
        (ClusterKind::BaselineAdminNetworkPolicy, _) | (_, Some("Baseline")) => Ok(Tier::Baseline),
        (_, Some(other)) => Err(("tier", format!("unknown tier {other:?}: Admin or Baseline"))),
        (_, None) => Err(("tier", "missing: Admin or Baseline".to_owned())),
    }
}

fn place_priority(declared: &ClusterPolicy) -> Result<u16, (&'static str, String)> {
    // There is one of this kind and it has no priority. Beside ClusterNetworkPolicies, which replace it, it comes last.
    if declared.kind == ClusterKind::BaselineAdminNetworkPolicy {
        return Ok(LAST_PRIORITY + 1);
    }
    let Some(priority) = declared.priority else { return Err(("priority", "missing: 0 to 1000".to_owned())) };
    match u16::try_from(priority) {
        Ok(priority) if priority <= LAST_PRIORITY => Ok(priority),
        _ => Err(("priority", format!("{priority} is not from 0 to 1000"))),
    }
}

/// The API: exactly one of `namespaces` and `pods`. In doubt it holds everybody.
fn compile_scope(
    declared: &declared::PodScope,
    path: &str,
    flaws: &mut Flaws,
) -> (PodScope, Option<Arc<str>>) {
    let everybody =
        || PodScope { namespaces: NamespaceScope::Matching(Selector::default()), pods: Selector::default() };
    if let Some(invalid) = &declared.invalid {
        return (everybody(), Some(flaws.add_invalid(invalid)));
    }
    match (&declared.namespaces, &declared.pods) {
        (Some(namespaces), None) => {
            let namespaces = Selector::compile(namespaces, &format!("{path}.namespaces"), flaws);
            let namespaces = NamespaceScope::Matching(namespaces);
            (PodScope { namespaces, pods: Selector::default() }, None)
        }
        (None, Some((namespaces, pods))) => {
            let path = format!("{path}.pods");
            let namespaces = Selector::compile(namespaces, &format!("{path}.namespaceSelector"), flaws);
            let pods = Selector::compile(pods, &format!("{path}.podSelector"), flaws);
            (PodScope { namespaces: NamespaceScope::Matching(namespaces), pods }, None)
        }
        _ => {
            let reason = "needs exactly one of namespaces and pods";
            (everybody(), Some(flaws.add(path.to_owned(), reason)))
        }
    }
}

fn compile_rule(
    declared: &ClusterRule,
    kind: ClusterKind,
    direction: Direction,
    index: usize,
    policy: &Arc<PolicyId>,
    flaws: &mut Flaws,
) -> Rule {
    let path = format!("spec.{direction}[{index}]");
    let list = direction.peers();
    let mut doubt = declared.invalid.as_ref().map(|it| flaws.add_invalid(it));
    let accept = if kind == ClusterKind::ClusterNetworkPolicy { "Accept" } else { "Allow" };
    let has_pass = kind != ClusterKind::BaselineAdminNetworkPolicy;
    let action = match declared.action.as_deref() {
        Some(it) if it == accept => Action::Allow,
        Some("Deny") => Action::Deny,
        Some("Pass") if has_pass => Action::Pass,
        // Where the rule as a whole cannot be read, that is what is to be said.
        None if doubt.is_some() => Action::Deny,
        other => {
            let known =
                if has_pass { format!("{accept}, Deny or Pass") } else { format!("{accept} or Deny") };
            let reason = match other {
                Some(other) => format!("unknown action {other:?}: {known}"),
                None => format!("missing: {known}"),
            };
            doubt.get_or_insert(flaws.add(format!("{path}.action"), reason));
            Action::Deny
        }
    };
    let mut peers = Vec::new();
    if let Some(invalid) = &declared.invalid_peers {
        peers.push(Peer { index: 0, matcher: Matcher::Anyone, doubt: Some(flaws.add_invalid(invalid)) });
    } else if declared.peers.is_empty() {
        let doubt = flaws.add(format!("{path}.{list}"), "needs at least one element");
        peers.push(Peer { index: 0, matcher: Matcher::Anyone, doubt: Some(doubt) });
    }
    let mut closed = None;
    for (index, peer) in declared.peers.iter().enumerate() {
        let path = format!("{path}.{list}[{index}]");
        if is_unknown(peer) {
            closed = Some(flaws.add(path, closed_reason(action)));
            continue;
        }
        compile_peer(peer, action, index, &path, flaws, &mut peers);
    }
    if closed.is_some() {
        return fails_closed(declared, action, doubt, direction, index, policy);
    }
    let mut ports = Vec::new();
    if let Some(invalid) = &declared.invalid_ports {
        ports.push(PortMatch::anything(flaws.add_invalid(invalid)));
    }
    ports.extend(declared.ports.iter().map(|port| compile_cluster_port(port, &path, flaws)));
    rule_of(declared, action, doubt, direction, index, policy, (peers, ports))
}

/// Whether a peer has no field that the API has. What it has was dropped as unknown: the API's version is another one.
fn is_unknown(peer: &ClusterPeer) -> bool {
    *peer == ClusterPeer::default()
}

fn closed_reason(action: Action) -> &'static str {
    match action {
        Action::Allow => "has no field that is known: the API says that the rule matches nothing then",
        Action::Deny | Action::Pass => {
            "has no field that is known: the API says that the rule denies all then"
        }
    }
}

/// The API on a peer without a known field: fail closed. A rule that accepts matches nothing; one that denies or passes
/// denies all.
fn fails_closed(
    declared: &ClusterRule,
    action: Action,
    doubt: Option<Arc<str>>,
    direction: Direction,
    index: usize,
    policy: &Arc<PolicyId>,
) -> Rule {
    let (action, peers) = match action {
        Action::Allow => (action, vec![Peer { index: 0, matcher: Matcher::Nobody, doubt: None }]),
        Action::Deny | Action::Pass => (Action::Deny, Vec::new()),
    };
    rule_of(declared, action, doubt, direction, index, policy, (peers, Vec::new()))
}

fn rule_of(
    declared: &ClusterRule,
    action: Action,
    doubt: Option<Arc<str>>,
    direction: Direction,
    index: usize,
    policy: &Arc<PolicyId>,
    (peers, ports): (Vec<Peer>, Vec<PortMatch>),
) -> Rule {
    let id = RuleId {
        policy: policy.clone(),
        direction,
        hash: canonical::cluster_hash(direction, declared),
        index: u32::try_from(index).unwrap_or(u32::MAX),
        action,
        name: declared.name.as_str().into(),
    };
    let declared_ports = &ports[ports.len().saturating_sub(declared.ports.len())..];
    let elements = elements(
        direction,
        (&peers, declared.peers.iter().map(canonical::cluster_peer_hash).collect()),
        (declared_ports, declared.ports.iter().map(canonical::cluster_port_hash).collect()),
    );
    let mut rule = Rule { id: Arc::new(id), summary: String::new(), elements, doubt, peers, ports };
    rule.summary = summary::of(&rule);
    rule
}

/// The API on peers: exactly one field. `namespaces` and `pods` select pods, `nodes` selects the addresses of nodes,
/// `networks` any address in them, a pod's too, and `domainNames` addresses by the names that DNS gave for them.
fn compile_peer(
    declared: &ClusterPeer,
    action: Action,
    index: usize,
    path: &str,
    flaws: &mut Flaws,
    into: &mut Vec<Peer>,
) {
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    let mut push = |matcher, doubt| into.push(Peer { index, matcher, doubt });
    if let Some(invalid) = &declared.invalid {
        push(Matcher::Anyone, Some(flaws.add_invalid(invalid)));
        return;
    }
    let has_scope = declared.scope != declared::PodScope::default();
    let fields = usize::from(has_scope)
        + usize::from(declared.nodes.is_some())
        + usize::from(declared.networks.is_some())
        + usize::from(declared.domain_names.is_some());
    let both = (fields > 1).then(|| flaws.add(path.to_owned(), "has more than one field"));
    if has_scope {
        let (scope, doubt) = compile_scope(&declared.scope, path, flaws);
        push(Matcher::Pods(Arc::new(scope)), both.clone().or(doubt));
    }
    if let Some(nodes) = &declared.nodes {
        push(Matcher::Nodes(Selector::compile(nodes, &format!("{path}.nodes"), flaws)), both.clone());
    }
    let mut list = |name: &str, empty: bool| {
        let reason = "needs at least one element";
        empty.then(|| flaws.add(format!("{path}.{name}"), reason)).map(|doubt| (Matcher::Anyone, Some(doubt)))
    };
    let empty_networks = list("networks", declared.networks.as_ref().is_some_and(Vec::is_empty));
    let empty_domains = list("domainNames", declared.domain_names.as_ref().is_some_and(Vec::is_empty));
    for (matcher, doubt) in empty_networks.into_iter().chain(empty_domains) {
        push(matcher, doubt);
    }
    for (n, cidr) in declared.networks.iter().flatten().enumerate() {
        let block = declared::IpBlock { cidr: cidr.clone(), except: Vec::new() };
        let place = format!("{path}.networks[{n}]");
        let peer = compile_block(&block, index, &place, "", both.clone(), flaws);
        push(peer.matcher, peer.doubt);
    }
    // The API: names are only for rules that accept.
    let refused = match declared.domain_names {
        Some(_) if action != Action::Allow => {
            Some(flaws.add(format!("{path}.domainNames"), "only a rule that accepts can name domains"))
        }
        _ => None,
    };
    for (n, name) in declared.domain_names.iter().flatten().enumerate() {
        match DomainPattern::parse(name) {
            Some(pattern) => push(Matcher::Domain(pattern), both.clone().or_else(|| refused.clone())),
            None => {
                let reason = format!("{name:?} is no domain name such as example.com or *.example.com");
                push(Matcher::Anyone, Some(flaws.add(format!("{path}.domainNames[{n}]"), reason)));
            }
        }
    }
}
