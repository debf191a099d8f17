//! Ports: what a rule names, beside what pods and Services have.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Code, Pods,
    reach::{Number, Rule, Whom},
    world::{Out, PARTIAL, Policy, World, listed},
};
use crate::{
    cluster::{
        Service,
        objects::{ServicePort, TargetPort},
    },
    model::{Direction, Protocol},
    policy::{Certainty, Labels, Selector, declared},
};

pub(super) fn check(world: &World<'_>, out: &mut Out) {
    for policy in &world.policies {
        for direction in Direction::ALL {
            if !policy.may_isolate(direction) {
                continue;
            }
            for rule in policy.rules(direction) {
                let own = Whom::Pods {
                    namespaces: Selector::of_namespace(&policy.declared.namespace),
                    pods: policy.selector.clone(),
                    is_own: true,
                };
                let destinations: Vec<&Whom> = match direction {
                    Direction::Ingress => vec![&own],
                    Direction::Egress => rule.peers.iter().map(|it| &it.whom).collect(),
                };
                service_ports(world, policy, rule, &destinations, out);
                named_ports(world, policy, rule, &destinations, out);
            }
        }
    }
    probes(world, out);
    if world.services.is_empty() && !world.policies.is_empty() {
        out.skip(Code::ServicePort, "no Service is among the manifests");
    }
}

/// NA010.
fn service_ports(world: &World<'_>, policy: &Policy<'_>, rule: &Rule, destinations: &[&Whom], out: &mut Out) {
    // What is for addresses too may be for others that listen there.
    if destinations.is_empty() || !destinations.iter().all(|it| matches!(it, Whom::Pods { .. })) {
        return;
    }
    for port in &rule.ports {
        let Some((protocol, number)) = port.single() else { continue };
        let candidates = destinations.iter().find_map(|whom| {
            world.services.iter().find_map(|service| {
                let has_port = |it: &&ServicePort| it.protocol == protocol && it.port == number;
                let wrong = service.ports.iter().find(has_port)?;
                let targets = targets(world, service, wrong)?;
                let is_wrong = !targets.contains(&number)
                    && !targets.iter().any(|it| rule.may_be_for(protocol, *it))
                    && holds_backends(world, whom, service)
                    && is_about_backends(world, whom, service);
                is_wrong.then_some((service, targets))
            })
        });
        let Some((service, targets)) = candidates else { continue };
        if destinations.iter().any(|whom| listens(world, whom, protocol, number)) {
            continue;
        }
        let message = format!(
            "{number} is the port of Service {}/{}, which leads to port {} of its pods, and that is what a policy is about: \
             name that",
            service.namespace,
            service.name,
            listed(&targets)
        );
        out.find(Code::ServicePort, policy.item, format!("{}.port", port.path), message);
    }
}

/// What a Service's port leads to; `None` where that hangs on pods that are not known.
fn targets(world: &World<'_>, service: &Service, port: &ServicePort) -> Option<BTreeSet<u16>> {
    let name = match &port.target {
        TargetPort::Number(number) => return Some([*number].into()),
        TargetPort::Name(name) => name,
    };
    let mut numbers = BTreeSet::new();
    for pods in backends(world, service) {
        let mut named = pods.pod.ports.iter().filter(|it| it.name == *name && it.protocol == port.protocol);
        numbers.insert(named.next()?.port);
    }
    (!numbers.is_empty()).then_some(numbers)
}

/// The pods among the manifests that a Service leads to.
fn backends<'a>(world: &'a World<'_>, service: &'a Service) -> impl Iterator<Item = &'a Pods> {
    let pods = world.pods.get(&service.namespace).into_iter().flatten().map(|(_, it)| *it);
    pods.filter(|it| service.selects(&it.pod.labels))
}

/// Whether everything that the Service leads to is among the pods.
fn holds_backends(world: &World<'_>, whom: &Whom, service: &Service) -> bool {
    let (Whom::Pods { namespaces, pods, .. }, Some(labels)) = (whom, &service.selector) else { return false };
    // Of a label that the Service does not ask for, its pods may have any value.
    world.is_selected(namespaces, &service.namespace) == Some(true)
        && pods.keys().all(|key| labels.get(key).is_some())
        && pods.matches(labels) == Certainty::Yes
}

/// The selector of what has all of these labels.
fn selector_of(labels: &Labels) -> Selector {
    let match_labels = labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Selector::of(&declared::Selector { match_labels, ..Default::default() })
}

/// Whether the pods are those that the Service leads to and no others, so that none of them listens elsewhere.
fn is_about_backends(world: &World<'_>, whom: &Whom, service: &Service) -> bool {
    let (Whom::Pods { namespaces, pods, .. }, Some(labels)) = (whom, &service.selector) else { return false };
    let is_same = pods.is_within(&selector_of(labels))
        && namespaces.is_within(&Selector::of_namespace(&service.namespace));
    if is_same {
        return true;
    }
    // Others that are there say on which ports they listen, or may listen on any.
    world.pods_of(whom).is_ok_and(|all| {
        !all.is_empty() && all.iter().all(|it| service.selects(&it.pod.labels) || !it.ports.is_empty())
    })
}

/// Whether some of the pods are known to listen on this port: a container says so, or a Service leads there.
fn listens(world: &World<'_>, whom: &Whom, protocol: Protocol, number: u16) -> bool {
    let Whom::Pods { namespaces, pods, .. } = whom else { return true };
    let declares = |it: &&Pods| it.may_match(pods) && it.ports.contains(&(protocol, number));
    let in_namespace = |name: &Arc<str>| world.is_selected(namespaces, name) != Some(false);
    let mut known = world.pods.iter().filter(|(name, _)| in_namespace(name)).flat_map(|(_, it)| it);
    if known.any(|(_, it)| declares(it)) {
        return true;
    }
    let leads = |it: &&&Service| {
        // Its pods may be others than these only where their labels contradict.
        let apart = it.selector.as_ref().is_none_or(|labels| selector_of(labels).is_disjoint(pods));
        in_namespace(&it.namespace) && !apart
    };
    world.services.iter().filter(|it| leads(it)).any(|service| {
        let same = service.ports.iter().filter(|it| it.protocol == protocol);
        same.into_iter().any(|it| targets(world, service, it).is_none_or(|it| it.contains(&number)))
    })
}

/// NA011.
fn named_ports(world: &World<'_>, policy: &Policy<'_>, rule: &Rule, destinations: &[&Whom], out: &mut Out) {
    for port in &rule.ports {
        let Number::Named(name) = &port.number else { continue };
        let path = format!("{}.port", port.path);
        if !destinations.is_empty() && destinations.iter().all(|it| matches!(it, Whom::Ranges(_))) {
            let message = format!(
                "the port {name} is looked up at the pods that a rule is about, and addresses have none: name its number; right \
                 if these ranges hold pods that have it"
            );
            out.note(Code::NamedPortUnknown, policy.item, path, message);
            continue;
        }
        let all: Result<Vec<Vec<&Pods>>, String> = match destinations.is_empty() {
            true => Err("a rule with a named port is for everybody".to_owned()),
            false => destinations.iter().map(|it| world.pods_of(it)).collect(),
        };
        let all = match all {
            _ if world.options.is_partial => Err(PARTIAL.to_owned()),
            all => all,
        };
        let all = match all {
            Ok(all) => all,
            Err(reason) => {
                out.skip(Code::NamedPortUnknown, reason);
                continue;
            }
        };
        let pods: Vec<&Pods> = all.into_iter().flatten().collect();
        let named = || pods.iter().flat_map(|it| it.pod.ports.iter()).filter(|it| *it.name == **name);
        let is_right = |it: Protocol| port.protocol.is_none_or(|own| own == it);
        if pods.is_empty() || named().any(|it| is_right(it.protocol)) {
            continue;
        }
        let who = listed(&pods);
        let protocol = port.protocol.map_or("", Protocol::as_str);
        let names: BTreeSet<_> = pods.iter().flat_map(|it| it.pod.ports.iter()).map(|it| &it.name).collect();
        let message = match named().next() {
            Some(other) => format!(
                "the port {name} of {who} is one of {}, and this is for {protocol}: the rule allows nothing; add protocol: {}",
                other.protocol, other.protocol
            ),
            None => format!(
                "no container of {who} has a {protocol} port with the name {name}, so the rule allows nothing: name the number, \
                 or a name that they have ({})",
                if names.is_empty() { "none".to_owned() } else { listed(names) }
            ),
        };
        out.find(Code::NamedPortUnknown, policy.item, path, message);
    }
}

/// NA012.
fn probes(world: &World<'_>, out: &mut Out) {
    if world.policies.is_empty() {
        return;
    }
    if !world.options.probes_need_rule {
        return out
            .skip(Code::ProbesDenied, "without --probes-need-rule, as the API lets a pod's own node in");
    }
    let lets_in = |rule: &Rule, port: u16| {
        let is_from_node = |whom: &Whom| !matches!(whom, Whom::Pods { .. });
        rule.may_be_for(Protocol::Tcp, port)
            && (rule.peers.is_empty() || rule.peers.iter().any(|it| is_from_node(&it.whom)))
    };
    for (namespace, all) in &world.pods {
        for (item, pods) in all.iter().filter(|(_, it)| !it.pod.host_network) {
            let selecting = world.policies_of(namespace).filter(|it| pods.may_match(&it.selector));
            let policies: Vec<&Policy<'_>> = selecting.collect();
            let Some(isolating) = policies.iter().find(|it| it.surely_isolates(Direction::Ingress)) else {
                continue;
            };
            for probe in &pods.probes {
                let ingress = |it: &&Policy<'_>| {
                    it.rules(Direction::Ingress).iter().any(|rule| lets_in(rule, probe.port))
                };
                let wide = world.wide.iter().flat_map(|it| it.rules(Direction::Ingress));
                let mut accepting = wide.filter(|it| it.action.as_deref() != Some("Deny"));
                if policies.iter().any(ingress) || accepting.any(|it| lets_in(it, probe.port)) {
                    continue;
                }
                let message = format!(
                    "{} isolates these pods, and no rule lets the kubelet probe port {}: allow it from the nodes' range",
                    isolating.declared.name, probe.port
                );
                out.find(Code::ProbesDenied, *item, probe.path.clone(), message);
            }
        }
    }
}
