//! Policies of a tier between which the API leaves the order open.

use std::collections::BTreeMap;

use super::{
    Code,
    reach::Rule,
    world::{Out, Wide, World},
};
use crate::{
    model::Direction,
    policy::{
        Selector, Tier,
        declared::{ClusterKind, PodScope},
    },
};

/// NA019.
pub(super) fn check(world: &World<'_>, out: &mut Out) {
    let mut by_order: BTreeMap<(Tier, u16), Vec<&Wide<'_>>> = BTreeMap::new();
    let has_order = |it: &&Wide<'_>| {
        let is_order = |path: &str| ["spec.tier", "spec.priority", "spec"].contains(&path);
        it.declared.kind != ClusterKind::BaselineAdminNetworkPolicy
            && !it.compiled.warnings.iter().any(|it| is_order(&it.path))
    };
    for policy in world.wide.iter().filter(has_order) {
        by_order.entry((policy.compiled.tier, policy.compiled.priority)).or_default().push(policy);
    }
    for ((tier, priority), policies) in by_order {
        for (index, policy) in policies.iter().enumerate() {
            let earlier = policies[..index].iter().find_map(|it| Some((it, contradiction(it, policy)?)));
            let Some((other, (direction, theirs, own))) = earlier else { continue };
            let message = format!(
                "{} {} of tier {tier} has priority {priority} too, and for pods of both its {theirs} says otherwise than \
                 {own} ({direction}): which of them counts the API leaves open; give them different priorities",
                other.declared.kind.as_str(),
                other.declared.name
            );
            out.find(Code::PriorityTie, policy.item, "spec.priority", message);
        }
    }
}

/// Two rules that may be for the same and do something else.
fn contradiction<'a>(a: &'a Wide<'_>, b: &'a Wide<'_>) -> Option<(Direction, &'a str, &'a str)> {
    if scope(&a.declared.subject).zip(scope(&b.declared.subject)).is_some_and(|(a, b)| are_apart(&a, &b)) {
        return None;
    }
    Direction::ALL.into_iter().find_map(|direction| {
        a.rules(direction).iter().find_map(|own| {
            let differs = |it: &&Rule| it.action != own.action && own.may_meet(it);
            let other = b.rules(direction).iter().find(differs)?;
            Some((direction, own.path.as_str(), other.path.as_str()))
        })
    })
}

/// The namespaces and the pods; `None` where they cannot be read.
fn scope(declared: &PodScope) -> Option<(Selector, Selector)> {
    match (&declared.namespaces, &declared.pods) {
        (Some(namespaces), None) => Some((Selector::of(namespaces), Selector::default())),
        (None, Some((namespaces, pods))) => Some((Selector::of(namespaces), Selector::of(pods))),
        _ => None,
    }
}

fn are_apart(a: &(Selector, Selector), b: &(Selector, Selector)) -> bool {
    a.0.is_disjoint(&b.0) || a.1.is_disjoint(&b.1)
}
