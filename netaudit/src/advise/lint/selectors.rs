//! Selectors that select nothing, and elements of which either was written where both were meant.

use std::collections::BTreeSet;

use super::{
    Code,
    reach::{Peer, Rule, Whom},
    world::{Out, PARTIAL, Policy, World, listed},
};
use crate::{
    model::Direction,
    policy::{METADATA_NAME, Selector, declared},
};

/// Namespaces that every cluster has.
const SYSTEM: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// Labels that are taken for the one with a namespace's name, and that Kubernetes does not set.
const NEAR_NAMES: [&str; 7] = [
    "kubernetes.io/metadata-name",
    "kubernetes.io/metadata.namespace",
    "kubernetes.io/name",
    "kubernetes.io/namespace",
    "metadata.name",
    "name",
    "namespace",
];

pub(super) fn check(world: &World<'_>, out: &mut Out) {
    for policy in &world.policies {
        subjects(world, policy, out);
        let rules = Direction::ALL.into_iter().flat_map(|it| policy.rules(it));
        for rule in rules {
            let declared = declared_rule(policy, rule);
            for (index, peer) in rule.peers.iter().enumerate() {
                if let Some(selector) =
                    declared.and_then(|it| it.peers.get(index)?.namespace_selector.as_ref())
                {
                    let path = format!("{}.namespaceSelector", peer.path);
                    namespaces(world, policy.item, &path, selector, out);
                }
                peer_matches(world, policy, peer, out);
            }
            and_meant(world, policy, rule, out);
        }
    }
    for policy in &world.wide {
        let scope = |scope: &declared::PodScope, path: &str, out: &mut Out| {
            if let Some(selector) = &scope.namespaces {
                namespaces(world, policy.item, &format!("{path}.namespaces"), selector, out);
            }
            if let Some((selector, _)) = &scope.pods {
                namespaces(world, policy.item, &format!("{path}.pods.namespaceSelector"), selector, out);
            }
        };
        scope(&policy.declared.subject, "spec.subject", out);
        let both = [("egress", "to", &policy.declared.egress), ("ingress", "from", &policy.declared.ingress)];
        for (direction, list, rules) in both {
            for (number, rule) in rules.iter().enumerate() {
                for (index, peer) in rule.peers.iter().enumerate() {
                    scope(&peer.scope, &format!("spec.{direction}[{number}].{list}[{index}]"), out);
                }
            }
        }
    }
}

fn declared_rule<'a>(policy: &'a Policy<'_>, rule: &Rule) -> Option<&'a declared::Rule> {
    let of = |direction: Direction, declared: &'a [declared::Rule]| {
        let all = policy.rules(direction);
        let index = all.iter().position(|it| std::ptr::eq(it, rule))?;
        declared.get(index)
    };
    of(Direction::Egress, &policy.declared.egress)
        .or_else(|| of(Direction::Ingress, &policy.declared.ingress))
}

/// NA002: whom the policy itself selects.
fn subjects(world: &World<'_>, policy: &Policy<'_>, out: &mut Out) {
    let (path, selector) = ("spec.podSelector", &policy.selector);
    if selector.is_contradictory() {
        let message =
            format!("the selector {selector} contradicts itself, so the policy selects no pod: correct it");
        return out.find(Code::SelectsNothing, policy.item, path, message);
    }
    // What is wrong with it is told, and it may have been meant to select anybody.
    if selector.is_doubtful() {
        return;
    }
    let namespace = &policy.declared.namespace;
    let all = match world.all_pods(namespace) {
        Ok(all) => all,
        Err(reason) => return out.skip(Code::SelectsNothing, reason),
    };
    let selected: Vec<_> = all.iter().map(|(_, it)| *it).filter(|it| it.may_match(selector)).collect();
    if selected.is_empty() {
        let labels: BTreeSet<String> = all.iter().map(|(_, it)| it.pod.labels.to_string()).collect();
        let message = format!(
            "none of the {} pods and workloads of namespace {namespace} among the manifests has the labels {selector}, so the \
             policy does nothing: the pods have {}",
            all.len(),
            listed(labels.iter().map(|it| if it.is_empty() { "no labels" } else { it }))
        );
        out.find(Code::SelectsNothing, policy.item, path, message);
    } else if !selector.is_empty() && selected.iter().all(|it| it.pod.host_network) {
        let message = format!(
            "only pods on their node's network have the labels {selector} ({}), and no policy selects those: the policy does \
             nothing",
            listed(selected)
        );
        out.find(Code::SelectsNothing, policy.item, path, message);
    }
}

/// NA001: whether there can be a namespace such as it wants.
fn namespaces(world: &World<'_>, item: usize, path: &str, declared: &declared::Selector, out: &mut Out) {
    let selector = Selector::of(declared);
    if selector.is_empty() || selector.is_doubtful() {
        return;
    }
    let mut known = world.namespaces.values().flatten();
    if known.any(|it| selector.matches(&it.labels) != crate::policy::Certainty::No) {
        return;
    }
    // By its name alone it may be any other; with another label, one of those that it names.
    if let Some(names) = selector.values_of(METADATA_NAME) {
        let others = || selector.keys().filter(|it| *it != METADATA_NAME);
        if names.iter().all(|it| world.namespaces.contains_key(it)) && !names.is_empty() {
            let message = format!(
                "Namespace {} among the manifests has not all of the labels {selector}, so this matches nothing: remove {}, or \
                 put it on the Namespace",
                listed(names),
                listed(others())
            );
            out.find(Code::NamespaceLabel, item, path, message);
        } else if others().next().is_some() {
            let reason = "a Namespace that is named with another label is not among the manifests";
            out.skip(Code::NamespaceLabel, reason);
        }
        return;
    }
    // The names that are meant, and the key under which they are looked for.
    let meant = |is_meant: &dyn Fn(&[std::sync::Arc<str>]) -> bool| {
        let keys: Vec<&str> = selector.keys().collect();
        keys.into_iter().filter(|key| NEAR_NAMES.contains(key)).find_map(|key| {
            let values = selector.values_of(key).filter(|it| is_meant(it))?;
            Some((key.to_owned(), values.to_vec()))
        })
    };
    let is_known = |it: &std::sync::Arc<str>| world.namespaces.contains_key(it);
    if let Some((key, names)) = meant(&|all| all.iter().any(is_known)) {
        let (known, others): (Vec<_>, Vec<_>) = names.into_iter().partition(is_known);
        let says = format!("Namespace {} among the manifests has no such label {key}", listed(&known));
        let advice = format!(
            "ask for {METADATA_NAME}, which every namespace has with its name, or put the label on it"
        );
        if others.is_empty() {
            let message = format!("{says}, so this matches nothing: {advice}");
            out.find(Code::NamespaceLabel, item, path, message);
        } else {
            let message = format!(
                "{says}, so that this matches at most {} as it may have it: {advice}",
                listed(&others)
            );
            out.note(Code::NamespaceLabel, item, path, message);
        }
        return;
    }
    if let Some(key) =
        selector.keys().find(|it| NEAR_NAMES.contains(it) && *it != "name" && *it != "namespace")
    {
        let message = format!(
            "Kubernetes sets no label {key} on namespaces: {METADATA_NAME} is the one with the name; right if somebody sets it"
        );
        return out.note(Code::NamespaceLabel, item, path, message);
    }
    if let Some((key, names)) = meant(&|all| all.iter().any(|it| SYSTEM.contains(&&**it))) {
        let name = listed(&names);
        let message = format!(
            "namespace {name} has the label {key} only where somebody has put it there; {METADATA_NAME}: {name} is always there"
        );
        return out.note(Code::NamespaceLabel, item, path, message);
    }
    if world.options.is_partial || world.namespaces.is_empty() {
        let reason = match world.options.is_partial {
            true => PARTIAL,
            false => "no Namespace is among the manifests, so labels but the name are not known",
        };
        return out.skip(Code::NamespaceLabel, reason);
    }
    let message = format!(
        "none of the {} Namespaces among the manifests has the labels {selector}; right if another one has",
        world.namespaces.len()
    );
    out.note(Code::NamespaceLabel, item, path, message);
}

/// NA003: whether an element can match a pod.
fn peer_matches(world: &World<'_>, policy: &Policy<'_>, peer: &Peer, out: &mut Out) {
    let Whom::Pods { namespaces, pods, is_own } = &peer.whom else { return };
    if pods.is_contradictory() || namespaces.is_contradictory() {
        let message = "the element contradicts itself, so it matches no pod: correct it".to_owned();
        return out.find(Code::PeerMatchesNothing, policy.item, peer.path.clone(), message);
    }
    // Without labels it matches the pods that there will be.
    if pods.is_empty() || pods.is_doubtful() || namespaces.is_doubtful() {
        return;
    }
    let found = match world.pods_of(&peer.whom) {
        _ if world.options.is_partial => return out.skip(Code::PeerMatchesNothing, PARTIAL),
        Ok(found) => found,
        Err(reason) => return out.skip(Code::PeerMatchesNothing, reason),
    };
    if found.iter().any(|it| !it.pod.host_network) {
        return;
    }
    let place = match is_own {
        true => format!("namespace {}", policy.declared.namespace),
        false => format!("the namespaces with {namespaces}"),
    };
    let message = match found.is_empty() {
        true => format!(
            "no pod and no workload among the manifests has the labels {pods} in {place}: the element allows nothing"
        ),
        false => format!(
            "only pods on their node's network have the labels {pods} in {place} ({}), and no selector matches those: name \
             the nodes' addresses by ipBlock",
            listed(found)
        ),
    };
    out.find(Code::PeerMatchesNothing, policy.item, peer.path.clone(), message);
}

/// NA016: `- namespaceSelector` and then `- podSelector`, with two dashes.
fn and_meant(world: &World<'_>, policy: &Policy<'_>, rule: &Rule, out: &mut Out) {
    let Some(declared) = declared_rule(policy, rule) else { return };
    for (index, pair) in rule.peers.windows(2).enumerate() {
        let [first, second] = pair else { continue };
        let is_namespace_alone = declared.peers.get(index).is_some_and(|it| it.pod_selector.is_none());
        let (
            Whom::Pods { namespaces, is_own: false, .. },
            Whom::Pods { namespaces: own, pods, is_own: true },
        ) = (&first.whom, &second.whom)
        else {
            continue;
        };
        if !is_namespace_alone || pods.is_empty() || pods.is_doubtful() || namespaces.is_doubtful() {
            continue;
        }
        let says = format!(
            "two elements: every pod of the namespaces with {}, and besides the pods with {pods} of namespace {}",
            if namespaces.is_empty() { "any label".to_owned() } else { namespaces.to_string() },
            policy.declared.namespace
        );
        let advice = "for these pods in these namespaces remove the second dash";
        let is_nothing_here = world.pods_of(&second.whom).is_ok_and(|it| it.is_empty());
        let both = Whom::Pods { namespaces: namespaces.clone(), pods: pods.clone(), is_own: false };
        let there = world.pods_of(&both).unwrap_or_default();
        let path = second.path.clone();
        if namespaces.is_empty() {
            let message = format!("{says}, who are among the first: the second adds nothing; {advice}");
            out.find(Code::AndMeant, policy.item, path, message);
        } else if is_nothing_here && !there.is_empty() {
            let message = format!(
                "{says}, where there is none, while the first have them ({}): {advice}",
                listed(there)
            );
            out.find(Code::AndMeant, policy.item, path, message);
        } else if !own.is_within(namespaces) {
            out.note(Code::AndMeant, policy.item, path, format!("{says}; {advice}"));
        }
    }
}
