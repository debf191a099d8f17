//! One flow against an index: who the ends are, what both ends' policies say, and how to tell a tired person.

use std::{fmt::Write as _, net::IpAddr, sync::Arc};

use anyhow::bail;
use serde_json::{Value, json};

use super::{eval_explain, eval_service, one_line, source::Input};
use crate::{
    cluster::{Cluster, Endpoint, Kind, ObjectKey, Party, PodId},
    model::{Direction, Exemption, Gap, Protocol, Timestamp, Verdict},
    policy::Explanation,
};

/// Manifests have no history: everything is asked at one moment after all that they speak of.
pub(super) const NOW: Timestamp = Timestamp(i64::MAX - 1);

/// What is asked about two ends. For a service as destination the port is the service's.
#[derive(Clone, Copy)]
pub(super) struct Question {
    pub protocol: Protocol,
    pub port: u16,
}

/// An end of a flow, found.
#[derive(Clone)]
pub(super) enum End {
    /// A pod, with the address that was asked for, if one was.
    Pod(PodId, Option<IpAddr>),
    /// An address of a node.
    Node(Arc<str>, IpAddr),
    /// An address of nothing in the cluster.
    External(IpAddr),
    /// An end of which it cannot be said what it is: how it was asked for, and why.
    Gap(Arc<str>, Gap),
}

/// One pair of ends and what the policies of each say.
pub(super) struct Pair {
    pub from: End,
    pub to: End,
    /// On the destination, after any translation.
    pub port: u16,
    pub egress: Side,
    pub ingress: Side,
}

/// What the policies of one end say, and why.
pub(super) struct Side {
    pub verdict: Arc<Verdict>,
    pub why: Explanation,
}

impl Side {
    /// A verdict that no policy had a part in.
    pub fn plain(verdict: Verdict) -> Self {
        Self { verdict: Arc::new(verdict), why: Explanation::default() }
    }
}

/// The answer for a flow: one pair, or one for each backend of a service.
pub(super) struct Answer {
    pub question: Question,
    pub service: Option<AskedService>,
    pub pairs: Vec<Pair>,
    /// Why there may be another pair.
    pub doubt: Option<Gap>,
}

/// The service that was asked for, by name or by an address that leads to it.
pub(super) struct AskedService {
    /// `namespace/name`.
    pub name: String,
    /// The service's own port.
    pub port: u16,
    /// The port on the node's address that was asked for, if that leads to the service.
    pub node_port: Option<u16>,
    /// What is to be said of its translation.
    pub note: String,
}

/// What both directions together mean.
pub(super) use crate::advise::Outcome;

impl Pair {
    /// Asks the policies of both ends.
    pub fn ask(cluster: &mut Cluster, from: End, to: End, protocol: Protocol, port: u16) -> Self {
        let mut side = |direction, own: &End, peer: &End| match (own, peer) {
            (End::Gap(_, gap), _) | (_, End::Gap(_, gap)) => Side::plain(Verdict::unknown(gap.clone())),
            // Within the pod's own namespace, from either end.
            (End::Pod(..), End::External(ip)) | (End::External(ip), End::Pod(..)) if ip.is_loopback() => {
                Side::plain(Verdict::exempt(Exemption::Loopback))
            }
            (End::Node(..), _) => Side::plain(Verdict::exempt(Exemption::HostNetwork)),
            (End::External(_), _) => Side::plain(Verdict::exempt(Exemption::External)),
            (End::Pod(id, _), peer) => {
                let node = cluster.pod(*id).and_then(|pod| pod.node.clone());
                let party = match peer {
                    End::Pod(peer, None) => Party::Pod(*peer),
                    End::Pod(peer, Some(ip)) => Party::PodAt(*peer, *ip),
                    End::Node(name, _) if node.as_ref() == Some(name) => Party::OwnNode,
                    End::Node(_, ip) | End::External(ip) => Party::Ip(*ip),
                    End::Gap(_, gap) => return Side::plain(Verdict::unknown(gap.clone())),
                };
                Side {
                    verdict: cluster.verdict(direction, *id, party, protocol, port),
                    why: cluster.explain(direction, *id, party, protocol, port),
                }
            }
        };
        let egress = side(Direction::Egress, &from, &to);
        let ingress = side(Direction::Ingress, &to, &from);
        Self { from, to, port, egress, ingress }
    }

    /// What the policies of the end say that is the subject of a direction.
    pub fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }

    pub fn outcome(&self) -> Outcome {
        Outcome::both(Outcome::of(&self.egress.verdict), Outcome::of(&self.ingress.verdict))
    }
}

/// Finds the ends by the words of the command line and asks the policies of both.
pub(super) fn ask(cluster: &mut Cluster, from: &str, to: &str, question: Question) -> anyhow::Result<Answer> {
    let from = end(cluster, from, question)?;
    if let Some((namespace, name)) = to.strip_prefix("svc/").and_then(|it| it.split_once('/')) {
        return eval_service::by_name(cluster, from, namespace, name, None, question);
    }
    if let Ok(ip) = to.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        match cluster.resolve(ip, question.port, question.protocol, NOW) {
            Endpoint::Service { namespace, name, .. } => {
                return eval_service::by_name(cluster, from, &namespace, &name, Some(ip), question);
            }
            // A service's node port goes before what the node itself listens on.
            Endpoint::Node(_) => {
                let found = cluster.service_on_node(question.port, question.protocol, ip, NOW);
                if let Some((service, port)) = found.map(|(service, port)| (service.clone(), port.clone())) {
                    return eval_service::ask(cluster, from, service, port, Some(ip), question);
                }
            }
            _ => {}
        }
    }
    let to = end(cluster, to, question)?;
    let pair = Pair::ask(cluster, from, to, question.protocol, question.port);
    Ok(Answer { question, service: None, pairs: vec![pair], doubt: None })
}

pub(super) fn end(cluster: &Cluster, words: &str, question: Question) -> anyhow::Result<End> {
    if let Ok(ip) = words.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        return Ok(match cluster.resolve(ip, question.port, question.protocol, NOW) {
            Endpoint::Pod(id) => End::Pod(id, Some(ip)),
            Endpoint::Node(name) => End::Node(name, ip),
            Endpoint::External => End::External(ip),
            Endpoint::Ambiguous => End::Gap(ip.to_string().into(), Gap::Ambiguous),
            Endpoint::Invalid(reason) => End::Gap(ip.to_string().into(), Gap::Invalid(reason)),
            Endpoint::Service { namespace, name, .. } => {
                bail!("{ip} is the address of service {namespace}/{name}, which opens no connections")
            }
        });
    }
    let Some((namespace, name)) = words.split_once('/').filter(|(_, name)| !name.contains('/')) else {
        bail!(
            "{words:?} is no end of a flow: use NAMESPACE/POD, an address, or svc/NAMESPACE/NAME (for --to)"
        );
    };
    match cluster.pod_by_name(namespace, name) {
        Some(id) => Ok(End::Pod(id, None)),
        None => {
            if let Some(gap) = unread(cluster, Kind::Pod, namespace, name) {
                return Ok(End::Gap(words.into(), gap));
            }
            let mut known: Vec<_> = cluster
                .pods()
                .filter(|(_, pod)| *pod.namespace == *namespace)
                .map(|(_, pod)| pod.name.to_string())
                .collect();
            known.sort();
            let more = known.len().saturating_sub(8);
            known.truncate(8);
            let known = match known.as_slice() {
                [] => format!("and no other pod in namespace {namespace}"),
                names => format!(
                    "but {}{}",
                    names.join(", "),
                    if more > 0 { format!(" and {more} more") } else { String::new() }
                ),
            };
            bail!("there is no Pod {namespace}/{name} in the manifests, {known}")
        }
    }
}

/// Why nothing can be said of an object that is there and cannot be read.
pub(super) fn unread(cluster: &Cluster, kind: Kind, namespace: &str, name: &str) -> Option<Gap> {
    let key = ObjectKey::new(kind, namespace, name);
    let found = cluster.broken().find(|it| it.key.as_ref() == Some(&key))?;
    Some(Gap::Invalid(found.to_string().into()))
}

impl Answer {
    /// Whether every pair is allowed.
    pub fn is_allowed(&self) -> bool {
        self.outcome() == Outcome::Allowed
    }

    /// What all pairs agree on.
    pub fn outcome(&self) -> Outcome {
        if self.doubt.is_some() {
            return Outcome::Unknown;
        }
        let mut outcomes = self.pairs.iter().map(Pair::outcome);
        match outcomes.next() {
            Some(first) if outcomes.all(|other| other == first) => first,
            _ => Outcome::Unknown,
        }
    }

    /// Why the whole is unknown though the pairs may not be.
    fn gap(&self) -> Option<Gap> {
        if self.doubt.is_some() {
            return self.doubt.clone();
        }
        match self.pairs.as_slice() {
            [] => Some(Gap::NoEndpoints),
            [_] => None,
            [first, others @ ..] if others.iter().all(|it| it.outcome() == first.outcome()) => None,
            _ => Some(Gap::EndpointsDisagree),
        }
    }

    /// The same of one end's verdicts alone.
    pub fn gap_of(&self, direction: Direction) -> Option<Gap> {
        if self.doubt.is_some() {
            return self.doubt.clone();
        }
        let outcome = |pair: &Pair| Outcome::of(&pair.side(direction).verdict);
        match self.pairs.as_slice() {
            [] => Some(Gap::NoEndpoints),
            [first, others @ ..] if others.iter().all(|it| outcome(it) == outcome(first)) => None,
            _ => Some(Gap::EndpointsDisagree),
        }
    }

    /// For people: each pair with both ends' reasons, and the result as the last line.
    pub fn text(&self, cluster: &Cluster) -> String {
        let mut text = String::new();
        if let Some(AskedService { name, port, node_port, note }) = &self.service {
            let by = node_port.map(|port| format!(" by node port {port}")).unwrap_or_default();
            let _ = writeln!(text, "service {name} {} {port}{by}: {note}", self.question.protocol);
        }
        for pair in &self.pairs {
            let flow = describe(cluster, pair, self.question.protocol);
            for (direction, side, own) in
                [(Direction::Egress, &pair.egress, &pair.from), (Direction::Ingress, &pair.ingress, &pair.to)]
            {
                let _ = writeln!(text, "{direction} at {}: {}", name(cluster, own), side.verdict.as_str());
                for line in eval_explain::lines(direction, side) {
                    let _ = writeln!(text, "  {line}");
                }
            }
            let _ = writeln!(text, "{flow}: {}", pair.outcome().as_str());
        }
        if let Some(gap) = self.gap() {
            let gap = one_line(&gap.to_string());
            let _ = writeln!(text, "{}: {}: {gap}", self.service_name(), self.outcome().as_str());
        }
        text
    }

    fn service_name(&self) -> &str {
        self.service.as_ref().map_or("", |it| &it.name)
    }

    /// For programs.
    pub fn json(&self, cluster: &Cluster, passed_over: &[String]) -> Value {
        let pairs: Vec<_> = (self.pairs.iter())
            .map(|pair| {
                json!({
                    "from": name(cluster, &pair.from),
                    "to": name(cluster, &pair.to),
                    "protocol": self.question.protocol,
                    "port": pair.port,
                    "verdict": pair.outcome().as_str(),
                    "egress": eval_explain::json(&pair.egress),
                    "ingress": eval_explain::json(&pair.ingress),
                })
            })
            .collect();
        let mut value = json!({ "verdict": self.outcome().as_str(), "flows": pairs });
        if let Some(AskedService { name, port, node_port, note }) = &self.service {
            value["service"] = json!({ "name": name, "port": port, "note": note });
            if let Some(port) = node_port {
                value["service"]["node_port"] = json!(port);
            }
        }
        if let Some(gap) = self.gap() {
            value["reason"] = json!(gap.to_string());
        }
        value["implied_namespaces"] = cluster.implied_namespaces().iter().map(|it| it.to_string()).collect();
        value["warnings"] = json!(Input::warnings(cluster, passed_over));
        value
    }
}

/// An end by name, with its address where that was asked for.
pub(super) fn name(cluster: &Cluster, end: &End) -> String {
    let name = match end {
        End::Pod(id, ip) => {
            let name = cluster.pod(*id).map_or_else(
                || "a pod that is gone".to_owned(),
                |pod| format!("{}/{}", pod.namespace, pod.name),
            );
            match ip {
                Some(ip) => format!("{name} ({ip})"),
                None => name,
            }
        }
        End::Node(name, ip) => format!("node {name} ({ip})"),
        End::External(ip) => ip.to_string(),
        End::Gap(words, _) => words.to_string(),
    };
    one_line(&name)
}

/// `x/a → x/b TCP 80`.
pub(super) fn describe(cluster: &Cluster, pair: &Pair, protocol: Protocol) -> String {
    format!("{} → {} {protocol} {}", name(cluster, &pair.from), name(cluster, &pair.to), pair.port)
}
