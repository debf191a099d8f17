//! What policies say of a class of flows.

use std::{net::IpAddr, sync::Arc};

use super::class::{Class, End, Hidden};
use crate::{
    advise::Outcome,
    cluster::{Backend, Cluster, Endpoint, Party, PodId},
    model::{Cause, Decision, Denial, Direction, Exemption, Gap, RuleMatch, Timestamp, Verdict},
};

/// What both ends' policies say.
#[derive(Clone, PartialEq, Debug)]
pub struct Judged {
    /// The subject's.
    pub own: Arc<Verdict>,
    /// The other end's, where that is a pod.
    pub other: Option<Arc<Verdict>>,
}

impl Judged {
    fn own(own: impl Into<Arc<Verdict>>) -> Self {
        Self { own: own.into(), other: None }
    }

    /// What the other end makes of the connection: where it is no pod, nothing stops it there.
    fn at_other(&self) -> Outcome {
        self.other.as_deref().map_or(Outcome::Allowed, Outcome::of)
    }

    /// What becomes of the connection.
    pub fn outcome(&self) -> Outcome {
        Outcome::both(Outcome::of(&self.own), self.at_other())
    }
}

/// Asks the policies of an index about a class, as [the agent](crate::audit) did. `subject` and `peer` are the pods of the index that
/// the ends were; an end that is no pod has none. `at` is the time at which Services' endpoints are asked for.
pub fn judge(
    cluster: &mut Cluster,
    class: &Class,
    subject: Option<PodId>,
    peer: Option<PodId>,
    at: Timestamp,
) -> Judged {
    let judged = match subject {
        Some(subject) => of_pod(cluster, class, subject, peer, at),
        None if matches!(class.subject, End::Pod { .. }) => {
            return Judged::own(Verdict::unknown(Gap::PodNotSeen));
        }
        None => return of_node(cluster, class, peer),
    };
    let Some(hidden) = class.hidden else { return judged };
    let gap = || {
        Verdict::unknown(match hidden {
            Hidden::Source => Gap::SourceTranslated,
            Hidden::Port => Gap::PortTranslated,
        })
    };
    // What a policy says of an end, where that is the same whatever was hidden.
    let is_certain = |pod: Option<PodId>, direction, verdict: &Verdict| {
        is_same_for_all(verdict) || pod.is_some_and(|pod| denies_everybody(cluster, pod, direction, verdict))
    };
    if !is_certain(subject, class.direction, &judged.own) {
        return Judged::own(gap());
    }
    let other = judged
        .other
        .filter(|_| hidden == Hidden::Port)
        .map(|other| if is_certain(peer, class.direction.opposite(), &other) { other } else { gap().into() });
    Judged { other, ..judged }
}

/// Whether no address and no port would be judged otherwise.
fn is_same_for_all(verdict: &Verdict) -> bool {
    matches!(verdict.decision, Decision::Allowed(Cause::NotIsolated | Cause::Exempt(_)))
}

/// Whether a pod is isolated by policies of which none has a rule: whoever it is, at whatever port, is denied.
fn denies_everybody(cluster: &Cluster, pod: PodId, direction: Direction, verdict: &Verdict) -> bool {
    matches!(verdict.decision, Decision::Denied(Denial::Isolation(_)))
        && cluster.selected_by(pod, direction).all(|policy| policy.rules(direction).is_empty())
}

/// Policies do not select a node; the other end's may still say something.
fn of_node(cluster: &mut Cluster, class: &Class, peer: Option<PodId>) -> Judged {
    let own = Arc::new(Verdict::exempt(Exemption::HostNetwork));
    let (Some(peer), End::Node { name, ip }) = (peer, &class.subject) else { return Judged::own(own) };
    let is_own = cluster.pod(peer).is_some_and(|pod| pod.node.as_ref() == Some(name));
    let party = match (is_own, ip) {
        (true, _) => Party::OwnNode,
        (false, Some(ip)) => Party::Ip(*ip),
        // An address that was not chosen yet is none to be judged by.
        (false, None) => {
            let is_isolated = cluster.selected_by(peer, class.direction.opposite()).next().is_some();
            let other = is_isolated.then(|| Arc::new(Verdict::unknown(Gap::Ambiguous)));
            return Judged { own, other };
        }
    };
    let other = cluster.verdict(class.direction.opposite(), peer, party, class.protocol, class.port);
    Judged { own, other: Some(other) }
}

fn of_pod(
    cluster: &mut Cluster,
    class: &Class,
    subject: PodId,
    peer: Option<PodId>,
    at: Timestamp,
) -> Judged {
    let Class { direction, protocol, port, .. } = *class;
    match (&class.peer, peer) {
        (End::Loopback, _) => Judged::own(Verdict::exempt(Exemption::Loopback)),
        (End::Pod { ip, .. }, Some(peer)) => {
            let party = ip.map_or(Party::Pod(peer), |ip| Party::PodAt(peer, ip));
            let own = cluster.verdict(direction, subject, party, protocol, port);
            Judged { own, other: Some(other_end(cluster, class, subject, peer, port)) }
        }
        (End::Pod { .. }, None) => Judged::own(Verdict::unknown(Gap::PodNotSeen)),
        (End::Node { name, ip }, _) => {
            let own_node = cluster.pod(subject).and_then(|pod| pod.node.clone());
            let ip = match (ip, own_node) {
                // Behind it may be anybody, whatever policies there are: that is what was recorded.
                (_, Some(own)) if own == *name && class.hidden == Some(Hidden::Source) => {
                    return Judged::own(Verdict::unknown(Gap::SourceTranslated));
                }
                (_, Some(own)) if own == *name => {
                    return Judged::own(cluster.verdict(direction, subject, Party::OwnNode, protocol, port));
                }
                (Some(ip), _) => *ip,
                (None, _) => return Judged::own(Verdict::unknown(Gap::Ambiguous)),
            };
            let own = cluster.verdict(direction, subject, Party::Ip(ip), protocol, port);
            let may_hide =
                direction == Direction::Ingress && cluster.may_hide_source(subject, port, protocol);
            if may_hide && !is_same_for_all(&own) {
                return Judged::own(Verdict::unknown(Gap::SourceTranslated));
            }
            Judged::own(own)
        }
        (End::External { ip, names }, _) => {
            Judged::own(cluster.verdict_by_names(direction, subject, Party::Ip(*ip), protocol, port, names))
        }
        (End::Service { namespace, name, ip }, _) => {
            of_service(cluster, class, subject, (namespace, name, *ip), at)
        }
    }
}

fn other_end(cluster: &mut Cluster, class: &Class, subject: PodId, peer: PodId, port: u16) -> Arc<Verdict> {
    let party = match class.subject {
        End::Pod { ip: Some(ip), .. } if !ip.is_unspecified() => Party::PodAt(subject, ip),
        _ => Party::Pod(subject),
    };
    cluster.verdict(class.direction.opposite(), peer, party, class.protocol, port)
}

/// A Service is judged by all of its endpoints, where they agree.
fn of_service(
    cluster: &mut Cluster,
    class: &Class,
    subject: PodId,
    (namespace, name, ip): (&str, &str, IpAddr),
    at: Timestamp,
) -> Judged {
    let Some(service) = cluster.service(namespace, name).cloned() else {
        return Judged::own(Verdict::unknown(Gap::NoEndpoints));
    };
    let Some(port) = cluster.recorded_port(&service, class.protocol, class.port, Some(ip), at).cloned()
    else {
        return Judged::own(Verdict::unknown(Gap::NoEndpoints));
    };
    let is_family = |backend: &Backend| backend.ip.is_ipv4() == ip.is_ipv4();
    let backends: Vec<Backend> =
        cluster.backends(&service, &port, at).into_iter().filter(is_family).collect();
    let own_node = cluster.pod(subject).and_then(|pod| pod.node.clone());
    let mut all: Option<Judged> = None;
    for backend in backends {
        let node = || match cluster.resolve(backend.ip, backend.port, class.protocol, at) {
            Endpoint::Node(name) => Some(name),
            _ => None,
        };
        let party = match backend.pod {
            Some(peer) => Party::PodAt(peer, backend.ip),
            None if own_node.is_some() && node() == own_node => Party::OwnNode,
            None => Party::Ip(backend.ip),
        };
        let own = cluster.verdict(class.direction, subject, party, class.protocol, backend.port);
        let other = backend.pod.map(|peer| other_end(cluster, class, subject, peer, backend.port));
        let judged = Judged { own, other };
        match &mut all {
            None => all = Some(judged),
            Some(known) if !known.own.agrees_with(&judged.own) => {
                return Judged::own(Verdict::unknown(Gap::EndpointsDisagree));
            }
            Some(known) if known.at_other() != judged.at_other() => {
                known.other = Some(Verdict::unknown(Gap::EndpointsDisagree).into());
            }
            Some(known) => known.other = known.other.take().or(judged.other),
        }
    }
    all.unwrap_or_else(|| Judged::own(Verdict::unknown(Gap::NoEndpoints)))
}

/// What decides, in a few words: `NetworkPolicy/shop/db ingress[0].from[0]`, `isolated by NetworkPolicy/shop/db`, `no policy isolates it`.
pub fn decided_by(verdict: &Verdict) -> String {
    let rule = |found: &RuleMatch| format!("{} {}", found.rule.policy, found.path());
    match &verdict.decision {
        Decision::Allowed(Cause::NotIsolated) => "no policy isolates it".to_owned(),
        Decision::Allowed(Cause::Exempt(why)) => format!("policies do not apply: {why}"),
        Decision::Allowed(Cause::Rules(rules)) => rules.iter().map(rule).collect::<Vec<_>>().join(", "),
        Decision::Denied(Denial::Rule(found)) => format!("denied by {}", rule(found)),
        Decision::Denied(denial @ Denial::Isolation(_)) => {
            let names: Vec<String> = denial.policies().map(ToString::to_string).collect();
            format!("isolated by {}", names.join(", "))
        }
        Decision::Unknown(gap) => gap.to_string(),
    }
}
