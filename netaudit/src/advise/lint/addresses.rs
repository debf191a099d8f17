//! Ranges of addresses.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Change, Code, Finding,
    reach::{Rule, Whom},
    world::{ELSEWHERE, Out, Policy, World},
};
use crate::{
    model::{Direction, Protocol},
    policy::{declared, parse_cidr},
};

pub(super) fn check(world: &World<'_>, out: &mut Out) {
    let backends = outside_backends(world);
    for policy in &world.policies {
        for direction in Direction::ALL {
            let declared = match direction {
                Direction::Egress => &policy.declared.egress,
                Direction::Ingress => &policy.declared.ingress,
            };
            for (index, (rule, declared)) in policy.rules(direction).iter().zip(declared).enumerate() {
                for (number, (peer, declared)) in rule.peers.iter().zip(&declared.peers).enumerate() {
                    let Some(block) = &declared.ip_block else { continue };
                    let path = format!("{}.ipBlock", peer.path);
                    let at = (direction, index, number);
                    excepts(policy, block, &path, at, out);
                    host_bits(policy.item, &format!("{path}.cidr"), &block.cidr, out);
                    for (index, except) in block.except.iter().enumerate() {
                        host_bits(policy.item, &format!("{path}.except[{index}]"), except, out);
                    }
                }
                if policy.may_isolate(direction) {
                    ipv6(world, policy, direction, rule, out);
                }
                if direction == Direction::Egress {
                    private_services(world, policy, rule, &backends, out);
                }
            }
        }
    }
    for policy in &world.wide {
        let both = [("egress", "to", &policy.declared.egress), ("ingress", "from", &policy.declared.ingress)];
        for (direction, list, rules) in both {
            for (number, rule) in rules.iter().enumerate() {
                for (index, peer) in rule.peers.iter().enumerate() {
                    for (place, cidr) in peer.networks.iter().flatten().enumerate() {
                        let path = format!("spec.{direction}[{number}].{list}[{index}].networks[{place}]");
                        host_bits(policy.item, &path, cidr, out);
                    }
                }
            }
        }
    }
    if backends.is_empty() && !world.policies.is_empty() {
        out.skip(
            Code::PrivateServiceExcluded,
            "no Service without a selector is among the manifests with an EndpointSlice that names addresses",
        );
    }
    if !world.policies.is_empty() {
        let reason =
            "the addresses of Endpoints objects and of load balancers are not looked at, only EndpointSlices";
        out.skip(Code::PrivateServiceExcluded, reason);
    }
}

fn has_v6(whom: &Whom) -> bool {
    match whom {
        Whom::Ranges(ranges) => ranges.iter().any(|(net, _)| matches!(net, IpNet::V6(_))),
        _ => false,
    }
}

/// NA008. The API: each must be a proper part of `cidr`.
fn excepts(
    policy: &Policy<'_>,
    block: &declared::IpBlock,
    path: &str,
    (direction, rule, peer): (Direction, usize, usize),
    out: &mut Out,
) {
    let Some(net) = parse_cidr(&block.cidr) else { return };
    for (except, text) in block.except.iter().enumerate() {
        let Some(hole) = parse_cidr(text) else { continue };
        let path = format!("{path}.except[{except}]");
        if hole.contains(&net) {
            let message = format!(
                "{hole} leaves nothing of {net}, and the API server refuses it: an except must be a part of its cidr; \
                 correct one of the two"
            );
            out.find(Code::ExceptOutsideCidr, policy.item, path, message);
        } else if !net.contains(&hole) {
            let message = format!(
                "{hole} does not lie inside {net}, and the API server refuses the policy: correct one of the two, or remove it"
            );
            let severity = Code::ExceptOutsideCidr.about().severity;
            let mut finding = Finding::new(Code::ExceptOutsideCidr, severity, policy.item, path, message);
            // Of the same family it may be a slip of an exclusion that somebody wants.
            let is_other_family =
                matches!((hole, net), (IpNet::V4(_), IpNet::V6(_)) | (IpNet::V6(_), IpNet::V4(_)));
            if is_other_family {
                finding.change = Some(Change::RemoveExcept { direction, rule, peer, except });
            }
            out.tell(finding);
        }
    }
}

/// NA021.
fn host_bits(item: usize, path: &str, text: &str, out: &mut Out) {
    let Ok(net) = text.parse::<IpNet>() else { return };
    if net.addr() == net.network() {
        return;
    }
    let single = format!("{}/{}", net.addr(), net.max_prefix_len());
    let message = format!("{text} is the range {}: write that, or {single} for the one address", net.trunc());
    match net {
        // What is one address in IPv4.
        IpNet::V6(v6) if v6.prefix_len() == 32 => out.find(Code::HostBits, item, path, message),
        _ => out.note(Code::HostBits, item, path, message),
    }
}

/// NA020.
fn ipv6(world: &World<'_>, policy: &Policy<'_>, direction: Direction, rule: &Rule, out: &mut Out) {
    let is_all_v4 = |whom: &Whom| match whom {
        Whom::Ranges(ranges) => {
            ranges.iter().any(|(net, _)| matches!(net, IpNet::V4(v4) if v4.prefix_len() == 0))
        }
        _ => false,
    };
    let Some(peer) = rule.peers.iter().find(|it| is_all_v4(&it.whom)) else { return };
    let opens = |other: &Rule| {
        let has_any = other.peers.is_empty() || other.peers.iter().any(|it| has_v6(&it.whom));
        other.is_doubtful || has_any && other.ports_may_meet(rule)
    };
    let mut others = world.policies_of(&policy.declared.namespace).filter(|it| policy.meets(it));
    if rule.is_doubtful || others.any(|it| it.rules(direction).iter().any(opens)) {
        return;
    }
    let may_be_v6 = |other: &Rule| {
        let is_v4 = |whom: &Whom| matches!(whom, Whom::Ranges(_)) && !has_v6(whom);
        other.ports_may_meet(rule) && (other.is_doubtful || !other.peers.iter().all(|it| is_v4(&it.whom)))
    };
    if world.may_be_accepted(direction, may_be_v6) {
        return out.skip(Code::Ipv6Forgotten, ELSEWHERE);
    }
    let path = format!("{}.ipBlock.cidr", peer.path);
    let says = "0.0.0.0/0 is no IPv6 address, and no rule names any: IPv6 stays denied";
    if world.has_ipv6 {
        let message =
            format!("{says}, though there are IPv6 addresses among the manifests; add an ipBlock for ::/0");
        out.find(Code::Ipv6Forgotten, policy.item, path, message);
    } else {
        let message =
            format!("{says}; in a cluster with both, add an ipBlock for ::/0, unless that is meant");
        out.note(Code::Ipv6Forgotten, policy.item, path, message);
    }
}

/// What is behind a Service without pods.
struct Backend {
    service: String,
    ip: IpAddr,
    protocol: Protocol,
    /// `None`: every port.
    port: Option<u16>,
}

fn outside_backends(world: &World<'_>) -> Vec<Backend> {
    let mut backends = Vec::new();
    for slice in &world.slices {
        let is_of_no_pods = |name: &std::sync::Arc<str>| {
            world
                .services
                .iter()
                .any(|it| it.namespace == slice.namespace && it.name == *name && it.selector.is_none())
        };
        let Some(name) = slice.service.as_ref().filter(|name| is_of_no_pods(name)) else { continue };
        for endpoint in slice.endpoints.iter().filter(|it| it.pod.is_none()) {
            for (ip, port) in endpoint.ips.iter().flat_map(|ip| slice.ports.iter().map(move |it| (ip, it))) {
                let service = format!("{}/{name}", slice.namespace);
                backends.push(Backend { service, ip: *ip, protocol: port.protocol, port: port.port });
            }
        }
    }
    backends
}

/// NA009.
fn private_services(
    world: &World<'_>,
    policy: &Policy<'_>,
    rule: &Rule,
    backends: &[Backend],
    out: &mut Out,
) {
    let is_for = |rule: &Rule, it: &Backend| match it.port {
        Some(port) => rule.may_be_for(it.protocol, port),
        None => true,
    };
    for peer in &rule.peers {
        let Whom::Ranges(ranges) = &peer.whom else { continue };
        for backend in backends.iter().filter(|it| is_for(rule, it)) {
            let in_hole = ranges.iter().filter(|(net, _)| net.contains(&backend.ip));
            let Some(hole) = in_hole.flat_map(|(_, holes)| holes).position(|it| it.contains(&backend.ip))
            else {
                continue;
            };
            let allows = |rule: &Rule| {
                is_for(rule, backend)
                    && (rule.is_doubtful
                        || rule.peers.is_empty()
                        || rule.peers.iter().any(|it| it.whom.may_hold(backend.ip)))
            };
            let others = world.policies_of(&policy.declared.namespace);
            let mut others = others.filter(|it| policy.meets(it));
            if others.any(|it| it.rules(Direction::Egress).iter().any(allows)) {
                continue;
            }
            let port = backend.port.map(|it| format!(" {it}")).unwrap_or_default();
            let message = format!(
                "this takes out {}, which Service {} leads to on {}{port}, and no other rule allows it: if these pods use it, \
                 allow {}/{} by a rule of its own",
                backend.ip,
                backend.service,
                backend.protocol,
                backend.ip,
                if backend.ip.is_ipv4() { 32 } else { 128 }
            );
            let path = format!("{}.ipBlock.except[{hole}]", peer.path);
            out.find(Code::PrivateServiceExcluded, policy.item, path, message);
        }
    }
}
