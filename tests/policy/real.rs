//! The evaluator that is tested, asked in the words of a case. Nothing else here knows it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use netaudit::{
    cluster::{Cluster, Endpoint, Party, PodId},
    model::{self, Action, Cause, Decision, Denial, Timestamp},
    watch::convert::{self, Converted},
};
use serde_json::{Value, json};

use super::{
    case::{Answer, By, Case, Direction, Effect, End, Flow, Protocol, Verdict},
    generate::{self, Kinds},
};

/// What it knows today.
pub const KINDS: &[Kinds] = &Kinds::ALL;

/// Whether a peer of no known kind closes the rule, as the API wants: the rule accepts nothing, or denies everything. It
/// calls the rule invalid instead.
pub const FAILS_CLOSED: bool = false;
/// Whether `nodes` of a rule hold a node's address that is written as a mapped IPv6 one.
const KNOWS_MAPPED_NODES: bool = false;
/// Whether `domainNames` of a rule hold a pod, given by its name, if they were resolved to any of its addresses, as
/// `networks` do. It asks for its first one only.
const KNOWS_NAMES_OF_EVERY_ADDRESS: bool = false;

/// A case by chance that both can be asked.
pub fn case(seed: u64, kinds: Kinds, flows: usize) -> Case {
    let mut case = generate::case(seed, kinds, flows);
    leave_out_what_is_known(&mut case);
    case
}

/// Whether an explanation of a verdict holds where policies of one priority differ and all ways end alike: the one that
/// did not decide allows or denies too, and the explanation calls that a contradiction.
pub const EXPLAINS_TIES: bool = false;

/// Takes out of a case what the real evaluator is known to answer otherwise, so that the rest can be compared.
fn leave_out_what_is_known(case: &mut Case) {
    if !FAILS_CLOSED {
        for policy in case.objects.iter_mut().filter(|it| it["apiVersion"] != "v1") {
            for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
                let rules = policy["spec"].get_mut(direction).and_then(Value::as_array_mut);
                let lists = rules.into_iter().flatten().filter_map(|it| it.get_mut(peers)?.as_array_mut());
                lists
                    .flatten()
                    .filter(|it| **it == json!({}))
                    .for_each(|it| *it = json!({ "namespaces": {} }));
            }
        }
    }
    for flow in case.flows.iter_mut().filter(|_| !KNOWS_MAPPED_NODES) {
        for end in [&mut flow.from, &mut flow.to] {
            if let End::Ip(ip) = end {
                *ip = ip.to_canonical();
            }
        }
    }
    if !KNOWS_NAMES_OF_EVERY_ADDRESS {
        let is_second = |ip: &IpAddr| {
            let mut later = case.objects.iter().filter_map(|it| it["status"]["podIPs"].as_array()?.get(1));
            later.any(|it| it["ip"].as_str().is_some_and(|it| it.parse() == Ok(*ip)))
        };
        case.dns.iter_mut().flat_map(|it| it.values_mut()).for_each(|ips| ips.retain(|ip| !is_second(ip)));
    }
}

const NOW: Timestamp = Timestamp::from_seconds(1_000);

pub struct Real {
    cluster: Cluster,
}

/// An end of a flow, found.
enum Found {
    Pod(PodId, Option<IpAddr>),
    Node(Arc<str>, IpAddr),
    External(IpAddr),
}

impl Real {
    pub fn new(case: &Case) -> Self {
        let source: Arc<str> = case.name.as_str().into();
        let converted = case.objects.iter().flat_map(|object| convert::document(object, &source));
        let objects = converted.filter_map(|it| match it {
            Converted::Object(object) => Some(object),
            Converted::Ignored(_) => None,
        });
        let mut cluster = Cluster::new();
        cluster.reset_all(objects.collect(), NOW);
        if let Some(dns) = &case.dns {
            let pairs = dns.iter().flat_map(|(name, ips)| ips.iter().map(|ip| (name.clone(), *ip)));
            cluster.set_names(pairs);
        }
        Self { cluster }
    }

    /// What each end's policies say.
    pub fn ask(&mut self, flow: &Flow) -> [Answer; 2] {
        [(Direction::Egress, &flow.from, &flow.to), (Direction::Ingress, &flow.to, &flow.from)]
            .map(|(direction, own, peer)| self.ask_end(direction, own, peer, flow))
    }

    fn ask_end(&mut self, direction: Direction, own: &End, peer: &End, flow: &Flow) -> Answer {
        let exempt = || Answer { verdict: Verdict::Allow, ways: vec![vec![By::nobody(Effect::Exempt)]] };
        let Some((subject, party)) = self.ends(own, peer, flow) else { return exempt() };
        answer(&self.cluster.verdict(known(direction), subject, party, protocol(flow), flow.port))
    }

    /// What it says of each rule of the policies that select the pod, and whether it calls that an explanation of its
    /// verdict.
    pub fn trace(
        &mut self,
        flow: &Flow,
        direction: Direction,
    ) -> (BTreeMap<String, Vec<Option<bool>>>, bool) {
        let (own, peer) = match direction {
            Direction::Egress => (&flow.from, &flow.to),
            Direction::Ingress => (&flow.to, &flow.from),
        };
        let Some((subject, party)) = self.ends(own, peer, flow) else { return (BTreeMap::new(), true) };
        let (direction, protocol) = (known(direction), protocol(flow));
        let verdict = self.cluster.verdict(direction, subject, party, protocol, flow.port);
        let why = self.cluster.explain(direction, subject, party, protocol, flow.port);
        let explains = why.explains(&verdict);
        let says = why
            .policies
            .into_iter()
            .filter(|it| !it.rules.is_empty() || it.policy.starts_with("NetworkPolicy/"));
        (says.map(|it| (it.policy, it.rules.iter().map(|rule| rule.matches).collect())).collect(), explains)
    }

    /// The pod whose policies are asked, and the other end.
    fn ends(&self, own: &End, peer: &End, flow: &Flow) -> Option<(PodId, Party)> {
        // An end by address has no policy of its own, even if a pod has the address.
        let (Found::Pod(subject, _), End::Pod(_)) = (self.find(own, flow), own) else { return None };
        let own_node = self.cluster.pod(subject).and_then(|pod| pod.node.clone());
        let party = match self.find(peer, flow) {
            Found::Pod(id, None) => Party::Pod(id),
            Found::Pod(id, Some(ip)) => Party::PodAt(id, ip),
            Found::Node(name, _) if Some(&name) == own_node.as_ref() => Party::OwnNode,
            Found::Node(_, ip) | Found::External(ip) => Party::Ip(ip),
        };
        Some((subject, party))
    }

    fn find(&self, end: &End, flow: &Flow) -> Found {
        match end {
            End::Pod(name) => {
                let (namespace, name) = name.split_once('/').expect("namespace/name");
                let id = self.cluster.pod_by_name(namespace, name);
                Found::Pod(id.unwrap_or_else(|| panic!("no pod {namespace}/{name}")), None)
            }
            End::Ip(ip) => match self.cluster.resolve(*ip, flow.port, protocol(flow), NOW) {
                Endpoint::Pod(id) => Found::Pod(id, Some(*ip)),
                Endpoint::Node(name) => Found::Node(name, *ip),
                _ => Found::External(*ip),
            },
        }
    }
}

fn known(direction: Direction) -> model::Direction {
    match direction {
        Direction::Egress => model::Direction::Egress,
        Direction::Ingress => model::Direction::Ingress,
    }
}

fn protocol(flow: &Flow) -> model::Protocol {
    match flow.protocol {
        Protocol::Tcp => model::Protocol::Tcp,
        Protocol::Udp => model::Protocol::Udp,
        Protocol::Sctp => model::Protocol::Sctp,
    }
}

fn answer(verdict: &model::Verdict) -> Answer {
    let mut by: Vec<By> = verdict.passed.iter().map(rule).collect();
    let verdict = match &verdict.decision {
        Decision::Allowed(Cause::NotIsolated) => {
            by.push(By::nobody(Effect::DefaultAllow));
            Verdict::Allow
        }
        Decision::Allowed(Cause::Exempt(_)) => {
            by.push(By::nobody(Effect::Exempt));
            Verdict::Allow
        }
        Decision::Allowed(Cause::Rules(rules)) => {
            by.extend(rules.iter().map(rule));
            Verdict::Allow
        }
        Decision::Denied(Denial::Rule(found)) => {
            by.push(rule(found));
            Verdict::Deny
        }
        Decision::Denied(Denial::Isolation(misses)) => {
            by.extend(misses.iter().map(miss));
            Verdict::Deny
        }
        // Why is for the reader of a difference.
        Decision::Unknown(gap) => {
            by.push(By { policy: Some(gap.to_string()), ..By::nobody(Effect::DefaultAllow) });
            Verdict::Unknown
        }
    };
    Answer { verdict, ways: vec![by] }
}

fn rule(found: &model::RuleMatch) -> By {
    By {
        policy: Some(found.rule.policy.to_string()),
        effect: match found.rule.action {
            Action::Allow => Effect::Allow,
            Action::Deny => Effect::Deny,
            Action::Pass => Effect::Pass,
        },
        rule_index: Some(index(found.rule.index)),
        rule_name: (!found.rule.name.is_empty()).then(|| found.rule.name.to_string()),
        peer: found.peer.map(index),
        port: found.port.map(index),
    }
}

fn miss(miss: &model::NearMiss) -> By {
    let effect = match miss.peer_matches_rule {
        Some(_) => Effect::SelectsPortsDoNotMatch,
        None => Effect::SelectsNoRuleMatches,
    };
    let rule_index = miss.peer_matches_rule.map(index);
    By { policy: Some(miss.policy.to_string()), rule_index, ..By::nobody(effect) }
}

fn index(index: u32) -> usize {
    usize::try_from(index).expect("32 bits")
}
