//! What is missing where names are to be resolved.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    Change, Code, Finding, Severity,
    reach::{Rule, Whom},
    world::{ELSEWHERE, Out, PARTIAL, Pods, Policy, World, listed},
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

/// Where OpenShift has them.
const OPENSHIFT: &str = "openshift-dns";

pub(super) fn check(world: &World<'_>, out: &mut Out) {
    let mut of_namespace: BTreeMap<&str, Vec<&Policy<'_>>> = BTreeMap::new();
    for policy in &world.policies {
        of_namespace.entry(&policy.declared.namespace).or_default().push(policy);
    }
    let cache = node_local_cache(world);
    for policies in of_namespace.values() {
        for policy in policies {
            dns_missing(world, policy, policies, out);
            nothing_but_denied(world, policy, policies, out);
        }
        for direction in Direction::ALL {
            let of = |protocol| {
                let all =
                    policies.iter().flat_map(|it| it.rules(direction).iter().map(move |rule| (*it, rule)));
                let gives = |(policy, rule): &(&Policy<'_>, &Rule)| {
                    gives(world, rule, &policy.declared.namespace, direction, protocol)
                };
                all.filter(gives).collect::<Vec<_>>()
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

/// Whether an element may be for servers of names, where the rule does not say the port. Those are in kube-system, or in a
/// namespace with a Service for names; who names others, or some pods beside the application, means something else.
fn may_be_server(world: &World<'_>, whom: &Whom, namespace: &str) -> bool {
    let has_servers = |name: &str| {
        let mut services = world.services.iter().filter(|it| *it.namespace == *name);
        [SYSTEM, OPENSHIFT].contains(&name)
            || services.any(|it| it.ports.iter().any(|port| port.port == PORT))
    };
    match whom {
        Whom::Pods { is_own: true, .. } => has_servers(namespace),
        Whom::Pods { namespaces, .. } => {
            namespaces.values_of(METADATA_NAME).is_none_or(|all| all.iter().any(|it| has_servers(it)))
        }
        Whom::Nodes(_) | Whom::Ranges(_) | Whom::Unknown => true,
    }
}

/// Whether a rule may give DNS by this protocol: it says the port, or may be for any port of what may be a server.
fn gives(world: &World<'_>, rule: &Rule, namespace: &str, direction: Direction, protocol: Protocol) -> bool {
    let may_be = || {
        direction == Direction::Ingress
            || rule.peers.is_empty()
            || rule.peers.iter().any(|it| may_be_server(world, &it.whom, namespace))
    };
    rule.is_doubtful || rule.names(protocol, PORT) || rule.may_be_for(protocol, PORT) && may_be()
}

fn is_single(whom: &Whom) -> bool {
    match whom {
        Whom::Ranges(ranges) => ranges.iter().all(|(net, _)| net.prefix_len() == net.max_prefix_len()),
        _ => false,
    }
}

/// Whether a rule may give DNS, and whether that is likely: a single address with any port may be that of a server.
fn dns_of(world: &World<'_>, rule: &Rule, namespace: &str) -> Option<bool> {
    let both = [Protocol::Udp, Protocol::Tcp];
    let is_given = both.into_iter().any(|it| gives(world, rule, namespace, Direction::Egress, it));
    let is_said = rule.is_doubtful || both.into_iter().any(|it| rule.names(it, PORT));
    let is_only_single = || {
        let mut servers = rule.peers.iter().filter(|it| may_be_server(world, &it.whom, namespace));
        !rule.peers.is_empty() && servers.all(|it| is_single(&it.whom))
    };
    is_given.then(|| is_said || !is_only_single())
}

/// What the rules of a policy give, at most.
fn dns_of_policy(world: &World<'_>, policy: &Policy<'_>) -> Option<bool> {
    let rules = policy.rules(Direction::Egress).iter();
    rules.filter_map(|it| dns_of(world, it, &policy.declared.namespace)).max()
}

/// Whether programs that use what the rule allows look names up: not for single addresses.
fn needs_names(rule: &Rule) -> bool {
    rule.peers.is_empty() || !rule.peers.iter().all(|it| is_single(&it.whom))
}

/// Whether a rule is for ranges alone, such as that of the API server or of the nodes, which programs may know by address.
fn is_for_few_addresses(rule: &Rule) -> bool {
    const INTERNET: u8 = 8;
    let is_few = |whom: &Whom| match whom {
        Whom::Ranges(ranges) => ranges.iter().all(|(net, _)| net.prefix_len() >= INTERNET),
        _ => false,
    };
    !rule.peers.is_empty() && rule.peers.iter().all(|it| is_few(&it.whom))
}

/// Whether a policy is for the cluster's own DNS servers, who ask others by address.
fn is_for_servers(policy: &Policy<'_>) -> bool {
    let servers = policy.selector.values_of("k8s-app");
    *policy.declared.namespace == *SYSTEM
        && servers.is_some_and(|it| it.iter().all(|it| ["kube-dns", "coredns"].contains(&&**it)))
}

/// NA004.
fn dns_missing(world: &World<'_>, policy: &Policy<'_>, policies: &[&Policy<'_>], out: &mut Out) {
    let rules = policy.rules(Direction::Egress);
    if !policy.surely_isolates(Direction::Egress)
        || !rules.iter().any(needs_names)
        || policy.selector.is_contradictory()
        || is_for_servers(policy)
        || dns_of_policy(world, policy) == Some(true)
    {
        return;
    }
    if world.options.is_partial {
        return out.skip(Code::DnsEgressMissing, PARTIAL);
    }
    if world.may_be_accepted(Direction::Egress, |rule| rule.may_be_for(Protocol::Udp, PORT)) {
        return out.skip(Code::DnsEgressMissing, ELSEWHERE);
    }
    let namespace = &policy.declared.namespace;
    // Of the same object there is one document.
    let others = policies.iter().filter(|it| !policy.is_copy(it));
    let givers: Vec<(&Policy<'_>, bool)> =
        others.filter_map(|it| Some((*it, dns_of_policy(world, it)?))).collect();
    let advice =
        format!("allow egress to namespaceSelector {METADATA_NAME}: {SYSTEM}, UDP {PORT} and TCP {PORT}");
    let tell = |message: String, is_perhaps: bool, out: &mut Out| {
        let path = "spec.egress";
        if is_perhaps {
            let message = format!("{message}; right if a single address that is allowed is that of a server");
            out.note(Code::DnsEgressMissing, policy.item, path, message);
        } else if rules.iter().all(is_for_few_addresses) {
            let message = format!("{message}; right if what they call is known by address");
            out.note(Code::DnsEgressMissing, policy.item, path, message);
        } else {
            out.find(Code::DnsEgressMissing, policy.item, path, message);
        }
    };
    match world.pods.get(namespace) {
        Some(pods) if pods.iter().any(|(_, it)| it.may_match(&policy.selector)) => {
            let selected = pods.iter().map(|(_, it)| *it).filter(|it| it.may_match(&policy.selector));
            let given = |it: &Pods| {
                let of = givers.iter().filter(|(giver, _)| it.may_match(&giver.selector));
                of.map(|(_, is_likely)| *is_likely).max()
            };
            let lacking: Vec<&Pods> =
                selected.filter(|it| !it.pod.host_network && given(it) != Some(true)).collect();
            if !lacking.is_empty() {
                let is_perhaps = lacking.iter().all(|it| given(it).is_some());
                let who = listed(lacking);
                let message = format!(
                    "{who} may open connections but not look up names: no policy that selects them allows DNS; {advice}"
                );
                tell(message, is_perhaps, out);
            }
        }
        _ => {
            let given =
                givers.iter().filter(|(it, _)| policy.meets(it)).map(|(_, is_likely)| *is_likely).max();
            if given != Some(true) {
                let message = format!(
                    "pods that this policy selects may open connections but not look up names: no policy of namespace \
                     {namespace} allows them DNS; {advice}"
                );
                tell(message, given.is_some(), out);
            }
        }
    }
}

/// NA004 too: all egress of every pod is denied, and nothing allows any.
fn nothing_but_denied(world: &World<'_>, policy: &Policy<'_>, policies: &[&Policy<'_>], out: &mut Out) {
    let denies_all = policy.surely_isolates(Direction::Egress)
        && !policy.may_isolate(Direction::Ingress)
        && policy.selector.is_empty()
        && policy.rules(Direction::Egress).is_empty();
    if !denies_all {
        return;
    }
    let Ok(pods) = world.all_pods(&policy.declared.namespace) else { return };
    let allowing: Vec<_> = policies.iter().filter(|it| !it.rules(Direction::Egress).is_empty()).collect();
    let is_closed =
        |it: &&Pods| !it.pod.host_network && !allowing.iter().any(|policy| it.may_match(&policy.selector));
    let closed: Vec<&Pods> = pods.iter().map(|(_, it)| *it).filter(is_closed).collect();
    if !closed.is_empty() && !world.may_be_accepted(Direction::Egress, |_| true) {
        let message = format!(
            "{} may open no connection and look up no name: this denies all egress, and no policy allows any; right if they \
             need none",
            listed(closed)
        );
        out.note(Code::DnsEgressMissing, policy.item, "spec", message);
    }
}

/// NA005 and NA006: one of the two protocols.
fn other_protocol(
    world: &World<'_>,
    policy: &Policy<'_>,
    direction: Direction,
    (have, lack): (Protocol, Protocol),
    givers: &[(&Policy<'_>, &Rule)],
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
            let helps =
                |(other, more): &(&Policy<'_>, &Rule)| policy.meets(other) && rule.peers_may_meet(more);
            if port.single() != Some((have, PORT)) || givers.iter().any(helps) {
                continue;
            }
            if world.may_be_accepted(direction, |rule| rule.may_be_for(lack, PORT)) {
                out.skip(code, ELSEWHERE);
                break;
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
