//! What is missing where names are to be resolved.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    Change, Code, Finding, Severity,
    reach::{Rule, Whom},
    selectors::no_pods,
    world::{Out, Pods, Policy, World, listed},
};
use crate::{
    model::{Direction, Protocol},
    policy::METADATA_NAME,
};

const PORT: u16 = 53;

/// Where a node-local cache listens unless its manifest says otherwise.
const CACHE: &str = "169.254.20.10";

/// The namespace of the cluster's own DNS servers.
const SYSTEM: &str = "kube-system";

pub(super) fn check(world: &World<'_>, out: &mut Out) {
    let mut of_namespace: BTreeMap<&str, Vec<&Policy<'_>>> = BTreeMap::new();
    for policy in &world.policies {
        of_namespace.entry(&policy.declared.namespace).or_default().push(policy);
    }
    let cache = node_local_cache(world);
    for policies in of_namespace.values() {
        let givers: Vec<&Policy<'_>> = policies.iter().copied().filter(|it| gives_dns(it)).collect();
        for policy in policies {
            dns_missing(world, policy, &givers, out);
        }
        for direction in Direction::ALL {
            let of = |protocol| -> Vec<&Policy<'_>> {
                let is_for = |it: &&&Policy<'_>| {
                    it.rules(direction).iter().any(|rule| rule.may_be_for(protocol, PORT))
                };
                policies.iter().filter(is_for).copied().collect()
            };
            let (tcp, udp) = (of(Protocol::Tcp), of(Protocol::Udp));
            for policy in policies {
                other_protocol(world, policy, direction, (Protocol::Udp, Protocol::Tcp), &tcp, out);
                other_protocol(world, policy, direction, (Protocol::Tcp, Protocol::Udp), &udp, out);
            }
        }
        if let Some((what, ip)) = &cache {
            policies.iter().for_each(|it| local_cache(policies, it, what, *ip, out));
        }
    }
    if cache.is_none() && !world.policies.is_empty() {
        out.skip(Code::NodeLocalDns, "no node-local DNS cache is among the manifests");
    }
}

/// Whether a rule of it may be for DNS. A rule for some pods of the own namespace is, if it says the port: servers of one's own
/// are seldom beside the application.
fn gives_dns(policy: &Policy<'_>) -> bool {
    policy.rules(Direction::Egress).iter().any(|it| may_be_dns(it, &policy.declared.namespace))
}

fn may_be_dns(rule: &Rule, namespace: &str) -> bool {
    if ![Protocol::Udp, Protocol::Tcp].into_iter().any(|it| rule.may_be_for(it, PORT)) {
        return false;
    }
    let says_it = [Protocol::Udp, Protocol::Tcp].into_iter().any(|it| rule.names(it, PORT));
    let is_elsewhere = |whom: &Whom| match whom {
        Whom::Pods { is_own, pods, .. } => !is_own || pods.is_empty() || namespace == SYSTEM,
        Whom::Nodes(_) | Whom::Ranges(_) | Whom::Unknown => true,
    };
    says_it || rule.is_doubtful || rule.peers.is_empty() || rule.peers.iter().any(|it| is_elsewhere(&it.whom))
}

/// Whether programs that use what the rule allows look names up: not for single addresses.
fn needs_names(rule: &Rule) -> bool {
    let is_single = |whom: &Whom| match whom {
        Whom::Ranges(ranges) => ranges.iter().all(|(net, _)| net.prefix_len() == net.max_prefix_len()),
        _ => false,
    };
    rule.peers.is_empty() || !rule.peers.iter().all(|it| is_single(&it.whom))
}

/// NA004.
fn dns_missing(world: &World<'_>, policy: &Policy<'_>, givers: &[&Policy<'_>], out: &mut Out) {
    let rules = policy.rules(Direction::Egress);
    if !policy.surely_isolates(Direction::Egress)
        || !rules.iter().any(needs_names)
        || policy.selector.is_contradictory()
        || gives_dns(policy)
    {
        return;
    }
    if world.options.is_partial {
        return out.skip(Code::DnsEgressMissing, no_pods(world, ""));
    }
    let is_accepted = world.wide.iter().any(|it| {
        let accepts = |rule: &Rule| {
            matches!(rule.action.as_deref(), Some("Accept" | "Allow")) && rule.may_be_for(Protocol::Udp, PORT)
        };
        it.rules(Direction::Egress).iter().any(accepts)
    });
    if world.may_allow_elsewhere || is_accepted {
        let reason = "a policy of another kind, or one that cannot be read, may allow it";
        return out.skip(Code::DnsEgressMissing, reason);
    }
    let namespace = &policy.declared.namespace;
    let without = |message: String, out: &mut Out| {
        out.find(Code::DnsEgressMissing, policy.item, "spec.egress", message);
    };
    let advice =
        format!("allow egress to namespaceSelector {METADATA_NAME}: {SYSTEM}, UDP {PORT} and TCP {PORT}");
    match world.pods.get(namespace) {
        Some(pods) if pods.iter().any(|(_, it)| it.may_match(&policy.selector)) => {
            let selected = pods.iter().map(|(_, it)| *it).filter(|it| it.may_match(&policy.selector));
            let lacks = |it: &&Pods| {
                !it.pod.host_network && !givers.iter().any(|giver| it.may_match(&giver.selector))
            };
            let lacking: Vec<&Pods> = selected.filter(lacks).collect();
            if !lacking.is_empty() {
                let who = listed(lacking);
                let message = format!(
                    "{who} may open connections but not look up names: no policy that selects them allows DNS; {advice}"
                );
                without(message, out);
            }
        }
        _ if !givers.iter().any(|it| policy.meets(it)) => {
            let message = format!(
                "pods that this policy selects may open connections but not look up names: no policy of namespace \
                 {namespace} allows them DNS; {advice}"
            );
            without(message, out);
        }
        _ => {}
    }
}

/// NA005 and NA006: one of the two protocols.
fn other_protocol(
    world: &World<'_>,
    policy: &Policy<'_>,
    direction: Direction,
    (have, lack): (Protocol, Protocol),
    givers: &[&Policy<'_>],
    out: &mut Out,
) {
    if !policy.may_isolate(direction) {
        return;
    }
    let (code, why) = match lack {
        Protocol::Tcp => {
            (Code::DnsTcpMissing, "answers that do not fit into a datagram are asked for again over TCP")
        }
        _ => (Code::DnsUdpMissing, "nearly every resolver asks over UDP"),
    };
    for (rule_index, rule) in policy.rules(direction).iter().enumerate() {
        if rule.may_be_for(lack, PORT) {
            continue;
        }
        for (index, port) in rule.ports.iter().enumerate() {
            if port.single() != Some((have, PORT)) || givers.iter().any(|it| policy.meets(it)) {
                continue;
            }
            let is_written = port.says_protocol;
            let may_be_meant = world.options.is_partial || code == Code::DnsUdpMissing && is_written;
            let default = if is_written { "" } else { " (a port without a protocol is TCP)" };
            let message = format!(
                "{have} port {PORT} is allowed{default} and {lack} port {PORT} is not, by this rule or another: {why}; add \
                 protocol: {lack}, port: {PORT}"
            );
            let severity = if may_be_meant { Severity::Note } else { code.about().severity };
            let mut finding = Finding::new(code, severity, policy.item, port.path.clone(), message);
            if code == Code::DnsTcpMissing || !is_written {
                let (protocol, number) = (lack, PORT);
                finding.change =
                    Some(Change::AddPort { direction, rule: rule_index, port: index, protocol, number });
            }
            out.tell(finding);
            // One of them is enough to say, and to add.
            break;
        }
    }
}

/// A cache on every node, and the address at which pods ask it.
fn node_local_cache(world: &World<'_>) -> Option<(String, IpAddr)> {
    let is_cache = |it: &&Pods| {
        let is_called = it.pod.labels.get("k8s-app").is_some_and(|it| **it == *"node-local-dns");
        it.kind == "DaemonSet" && it.pod.host_network && (is_called || *it.pod.name == *"node-local-dns")
    };
    let cache = world.pods.values().flatten().map(|(_, it)| *it).find(is_cache)?;
    let mut arguments = cache.arguments.iter();
    let mut said = None;
    while let Some(argument) = arguments.next() {
        let name = argument.trim_start_matches('-');
        said = match name.split_once('=') {
            Some(("localip", value)) => Some(value),
            None if name == "localip" => arguments.next().map(String::as_str),
            _ => continue,
        };
    }
    let is_link_local = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if ip.is_link_local());
    let said =
        said.unwrap_or_default().split(',').filter_map(|it| it.trim().parse().ok()).find(is_link_local);
    let ip = said.or_else(|| CACHE.parse().ok())?;
    Some((cache.to_string(), ip))
}

/// NA007.
fn local_cache(policies: &[&Policy<'_>], policy: &Policy<'_>, cache: &str, ip: IpAddr, out: &mut Out) {
    if !policy.may_isolate(Direction::Egress) {
        return;
    }
    let holds = |rule: &Rule| {
        rule.may_be_for(Protocol::Udp, PORT)
            && (rule.is_doubtful || rule.peers.is_empty() || rule.peers.iter().any(|it| it.whom.may_hold(ip)))
    };
    let is_dns = |rule: &&Rule| rule.names(Protocol::Udp, PORT) && !holds(rule);
    let Some(rule) = policy.rules(Direction::Egress).iter().find(is_dns) else { return };
    let gives = |it: &&&Policy<'_>| it.rules(Direction::Egress).iter().any(holds) && policy.meets(it);
    if policies.iter().any(|it| gives(&it)) {
        return;
    }
    let message = format!(
        "{cache} answers names on the pods' own node, at {ip}, which this rule does not name: where the CNI does not take it \
         for the node, add - ipBlock: {{cidr: {ip}/32}}"
    );
    out.find(Code::NodeLocalDns, policy.item, rule.path.clone(), message);
}
