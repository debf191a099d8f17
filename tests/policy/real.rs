//! The evaluator that is tested, asked in the words of a case. Nothing else here knows it.

use std::{net::IpAddr, sync::Arc};

use netaudit::{
    cluster::{Cluster, Endpoint, Party, PodId},
    model::{self, Cause, Timestamp},
    watch::convert::{self, Converted},
};

use super::{
    case::{Answer, By, Case, Direction, Effect, End, Flow, Protocol, Verdict},
    generate::Kinds,
};

/// What it knows today.
pub const KINDS: &[Kinds] = &[Kinds::NetworkPolicy];

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
        Self { cluster }
    }

    /// What each end's policies say.
    pub fn ask(&mut self, flow: &Flow) -> [Answer; 2] {
        [(Direction::Egress, &flow.from, &flow.to), (Direction::Ingress, &flow.to, &flow.from)]
            .map(|(direction, own, peer)| self.ask_end(direction, own, peer, flow))
    }

    fn ask_end(&mut self, direction: Direction, own: &End, peer: &End, flow: &Flow) -> Answer {
        let exempt = || Answer { verdict: Verdict::Allow, by: vec![By::nobody(Effect::Exempt)] };
        // An end by address has no policy of its own, even if a pod has the address.
        let (Found::Pod(subject, _), End::Pod(_)) = (self.find(own, flow), own) else { return exempt() };
        let own_node = self.cluster.pod(subject).and_then(|pod| pod.node.clone());
        let party = match self.find(peer, flow) {
            Found::Pod(id, None) => Party::Pod(id),
            Found::Pod(id, Some(ip)) => Party::PodAt(id, ip),
            Found::Node(name, _) if Some(&name) == own_node.as_ref() => Party::OwnNode,
            Found::Node(_, ip) | Found::External(ip) => Party::Ip(ip),
        };
        let direction = match direction {
            Direction::Egress => model::Direction::Egress,
            Direction::Ingress => model::Direction::Ingress,
        };
        answer(&self.cluster.verdict(direction, subject, party, protocol(flow), flow.port))
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

fn protocol(flow: &Flow) -> model::Protocol {
    match flow.protocol {
        Protocol::Tcp => model::Protocol::Tcp,
        Protocol::Udp => model::Protocol::Udp,
        Protocol::Sctp => model::Protocol::Sctp,
    }
}

fn answer(verdict: &model::Verdict) -> Answer {
    let index = |it: u32| usize::try_from(it).expect("32 bits");
    match verdict {
        model::Verdict::Allowed(Cause::NotIsolated) => {
            Answer { verdict: Verdict::Allow, by: vec![By::nobody(Effect::DefaultAllow)] }
        }
        model::Verdict::Allowed(Cause::Exempt(_)) => {
            Answer { verdict: Verdict::Allow, by: vec![By::nobody(Effect::Exempt)] }
        }
        model::Verdict::Allowed(Cause::Rules(rules)) => {
            let rule = |found: &model::RuleMatch| By {
                policy: Some(found.rule.policy.to_string()),
                effect: Effect::Allow,
                rule_index: Some(index(found.rule.index)),
                rule_name: None,
                peer: found.peer.map(index),
                port: found.port.map(index),
            };
            Answer { verdict: Verdict::Allow, by: rules.iter().map(rule).collect() }
        }
        model::Verdict::Denied { by } => {
            let miss = |miss: &model::NearMiss| By {
                policy: Some(miss.policy.to_string()),
                rule_index: miss.peer_matches_rule.map(index),
                ..By::nobody(match miss.peer_matches_rule {
                    Some(_) => Effect::SelectsPortsDoNotMatch,
                    None => Effect::SelectsNoRuleMatches,
                })
            };
            Answer { verdict: Verdict::Deny, by: by.iter().map(miss).collect() }
        }
        model::Verdict::Unknown(gap) => {
            let why = By { policy: Some(gap.to_string()), ..By::nobody(Effect::DefaultAllow) };
            Answer { verdict: Verdict::Unknown, by: vec![why] }
        }
    }
}
