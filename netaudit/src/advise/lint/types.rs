//! `policyTypes`, lists that are written and empty, and what the API server does not take.

use super::{
    Code, Finding, Severity,
    world::{Out, Policy, World},
};
use crate::{model::Direction, policy::Warning};

/// What could be looked for in cluster-wide policies, and is not.
const NOT_OF_WIDE: [Code; 10] = [
    Code::SelectsNothing,
    Code::PeerMatchesNothing,
    Code::DnsEgressMissing,
    Code::DnsTcpMissing,
    Code::DnsUdpMissing,
    Code::NodeLocalDns,
    Code::PrivateServiceExcluded,
    Code::ServicePort,
    Code::NamedPortUnknown,
    Code::Ipv6Forgotten,
];

pub(super) fn check(world: &World<'_>, out: &mut Out) {
    let isolating: Vec<&Policy<'_>> =
        world.policies.iter().filter(|it| it.surely_isolates(Direction::Ingress)).collect();
    for policy in &world.policies {
        defaulted(world, policy, &isolating, out);
        without_type(world, policy, out);
        empty_peers(world, policy, out);
        invalid(policy.item, &policy.compiled.warnings, out);
    }
    if !world.wide.is_empty() {
        for code in NOT_OF_WIDE {
            out.skip(code, "of cluster-wide policies this is not looked at");
        }
    }
    for policy in &world.wide {
        invalid(policy.item, &policy.compiled.warnings, out);
    }
    for it in &world.manifests.items {
        if let super::What::Object(crate::cluster::Object::Foreign(kind, _)) = &it.what {
            out.skip(
                Code::Invalid,
                format!("{kind}: policies of this kind are read for whom they select only"),
            );
        }
    }
}

fn has_no_types(policy: &Policy<'_>) -> bool {
    policy.declared.policy_types.is_empty() && policy.declared.invalid_types.is_none()
}

/// NA013. The API: without `policyTypes` a policy is about Ingress always.
fn defaulted(world: &World<'_>, policy: &Policy<'_>, isolating: &[&Policy<'_>], out: &mut Out) {
    let declared = policy.declared;
    if !has_no_types(policy) || declared.egress.is_empty() || !declared.ingress.is_empty() {
        return;
    }
    let isolates_all = |other: &&Policy<'_>| {
        other.item != policy.item
            && other.declared.namespace == declared.namespace
            && !policy.is_copy(other)
            && policy.selector.is_within(&other.selector)
            // Of two that are alike, each would excuse the other.
            && (!has_no_types(other) || !other.declared.ingress.is_empty() || other.declared.egress.is_empty())
    };
    if isolating.iter().any(isolates_all) {
        return;
    }
    // As of an ingress that is written and empty, somebody has thought of it.
    if world.is_written(policy.item, "spec.ingress") {
        return;
    }
    let message =
        "without policyTypes this policy of egress rules is about Ingress too, and denies all that the pods \
                   receive: write [Ingress, Egress] if that is meant, [Egress] if not"
            .to_owned();
    let is_perhaps = world.options.is_partial || world.may_be_accepted(Direction::Ingress, |_| true);
    let severity = match is_perhaps {
        true => Severity::Note,
        false => Code::TypesDefaulted.about().severity,
    };
    // It has two remedies, and only its author knows which of them is meant: nothing is corrected.
    out.tell(Finding::new(Code::TypesDefaulted, severity, policy.item, "spec".to_owned(), message));
}

/// NA014 and NA015.
fn without_type(world: &World<'_>, policy: &Policy<'_>, out: &mut Out) {
    let declared = policy.declared;
    for (direction, name, rules) in
        [(Direction::Egress, "Egress", &declared.egress), (Direction::Ingress, "Ingress", &declared.ingress)]
    {
        if policy.may_isolate(direction) {
            continue;
        }
        let path = format!("spec.{direction}");
        if !rules.is_empty() {
            let message = format!(
                "policyTypes does not name {name}, so these rules mean nothing and all {direction} passes: add {name}, or \
                 remove them"
            );
            out.find(Code::RulesWithoutType, policy.item, path, message);
        } else if has_no_types(policy) && world.is_empty_list(policy.item, &path) {
            let message = format!(
                "an empty {direction} is the same as none, and without policyTypes the policy is about Ingress only: to deny \
                 all {direction} write policyTypes: [Ingress, {name}]"
            );
            out.find(Code::EmptyEgressWithoutType, policy.item, path, message);
        }
    }
}

/// NA023.
fn empty_peers(world: &World<'_>, policy: &Policy<'_>, out: &mut Out) {
    for direction in Direction::ALL {
        for rule in policy.rules(direction).iter().filter(|it| it.peers.is_empty()) {
            let path = format!("{}.{}", rule.path, rule.list);
            if policy.may_isolate(direction)
                && !rule.is_doubtful
                && world.is_empty_or_null(policy.item, &path)
            {
                let message = format!(
                    "an empty {} is everybody, as if it were not written: remove the rule if nobody is meant, the field if \
                     everybody is",
                    rule.list
                );
                out.find(Code::EmptyPeers, policy.item, path, message);
            }
        }
    }
}

/// NA024: what compiling has found.
fn invalid(item: usize, warnings: &[Warning], out: &mut Out) {
    for Warning { path, reason, .. } in warnings {
        out.find(Code::Invalid, item, path.clone(), reason.clone());
    }
}
