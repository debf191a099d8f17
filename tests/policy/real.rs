//! The evaluator that is tested, asked in the words of a case. Nothing else here knows it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use netaudit::{
    cluster::{Cluster, Endpoint, Party, PodId},
    model::{self, Action, Cause, Decision, Denial, Timestamp},
    watch::convert::{self, Converted},
};

use super::{
    case::{Answer, By, Case, Direction, Effect, End, Flow, Protocol, Verdict},
    generate::{self, Kinds},
};

/// What it knows today.
pub const KINDS: &[Kinds] = &Kinds::ALL;

/// A case by chance that both can be asked.
pub fn case(seed: u64, kinds: Kinds, flows: usize) -> Case {
    generate::case(seed, kinds, flows)
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
            Converted::Ignored(_) | Converted::Nothing(_) => None,
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
