//! What the policies say of a flow between what the index knows.

use std::{net::IpAddr, sync::Arc};

use smallvec::SmallVec;

use super::{Cluster, Party, Pod, PodId};
use crate::{
    model::{Direction, Protocol, Verdict},
    policy::{
        Explanation, IdentityId, KnownNames, NodeId, PeerEnd, PeerFacts, PodFacts, Question, Ruleset, explain,
    },
};

impl Cluster {
    /// What the policies of this direction say of a flow between the subject and a peer; `port` is the destination's,
    /// after any translation.
    ///
    /// The API: a pod cannot be kept from talking to itself, and traffic between a pod and its own node is always
    /// allowed. A hostNetwork pod is its node: as a subject no policy selects it, and as a peer only its address counts.
    pub fn verdict(
        &mut self,
        direction: Direction,
        subject: PodId,
        peer: Party,
        protocol: Protocol,
        port: u16,
    ) -> Arc<Verdict> {
        self.verdict_by_names(direction, subject, peer, protocol, port, &[])
    }

    /// As [`Cluster::verdict`], where the peer's address is known to have these names, which are normal and in order. It may
    /// have more, unless [all are told](Cluster::set_names).
    pub fn verdict_by_names(
        &mut self,
        direction: Direction,
        subject: PodId,
        peer: Party,
        protocol: Protocol,
        port: u16,
        names: &[Arc<str>],
    ) -> Arc<Verdict> {
        self.evaluator.follow(self.policies.current());
        match self.asked(subject, peer) {
            Err(fixed) => fixed,
            Ok(asked) => {
                let mut question = asked.question(direction, protocol, port);
                if !names.is_empty() && question.peer.names == KnownNames::Unknown {
                    question.peer.names = KnownNames::Some(names);
                }
                self.evaluator.verdict(&question)
            }
        }
    }

    /// Why [`Cluster::verdict`] says what it says; nothing where no policy was asked.
    pub fn explain(
        &mut self,
        direction: Direction,
        subject: PodId,
        peer: Party,
        protocol: Protocol,
        port: u16,
    ) -> Explanation {
        self.evaluator.follow(self.policies.current());
        let Ok(ends) = self.asked(subject, peer) else { return Explanation::default() };
        let Some(subject) = self.pod_facts(subject) else { return Explanation::default() };
        let pod = match peer {
            Party::Pod(id) | Party::PodAt(id, _) => Some(id),
            Party::Ip(_) | Party::OwnNode => None,
        };
        let labels = |name: &Arc<str>| self.nodes.get(name).map(|node| node.labels.clone());
        let node = ends.node_name.as_ref().map(|name| (name.clone(), labels(name)));
        let peer = PeerFacts {
            pod: pod.filter(|_| ends.pod.is_some()).and_then(|id| self.pod_facts(id)),
            node,
            addresses: ends.addresses.to_vec(),
            names: ends.names.clone(),
        };
        explain(&self.evaluator, &ends.question(direction, protocol, port), &subject, &peer)
    }

    fn pod_facts(&self, id: PodId) -> Option<PodFacts> {
        let pod = self.pod(id)?;
        Some(PodFacts {
            namespace: self.namespace_view(&pod.namespace),
            labels: pod.labels.clone(),
            ports: pod.ports.clone(),
        })
    }

    /// What policies see of the two ends, or the verdict that needs none.
    fn asked(&mut self, subject: PodId, peer: Party) -> Result<Ends, Arc<Verdict>> {
        let Some(slot) = self.pods.get(subject) else { return Err(self.fixed.pod_not_seen.clone()) };
        if slot.pod.host_network {
            return Err(self.fixed.host_network.clone());
        }
        let (peer_id, at) = match peer {
            Party::OwnNode => return Err(self.fixed.own_node.clone()),
            Party::Pod(id) => (Some(id), None),
            Party::PodAt(id, ip) => (Some(id), Some(ip)),
            Party::Ip(ip) => (None, Some(ip)),
        };
        if peer_id == Some(subject) {
            return Err(self.fixed.self_traffic.clone());
        }
        let (mut pod, mut node) = (None, None);
        let mut addresses: SmallVec<[IpAddr; 2]> = at.into_iter().collect();
        if let Some(id) = peer_id {
            let Some(other) = self.pods.get(id) else { return Err(self.fixed.pod_not_seen.clone()) };
            if addresses.is_empty() {
                addresses.extend(other.pod.ips.iter().copied());
            }
            if other.pod.host_network {
                node = Some(self.node_of(&other.pod));
                if node == slot.pod.node {
                    return Err(self.fixed.own_node.clone());
                }
            } else {
                pod = self.identity(id);
            }
        }
        if pod.is_none() {
            node = node.or_else(|| addresses.iter().find_map(|ip| self.node_at(ip.to_canonical())));
        }
        let node_name = node;
        let node = node_name.as_ref().map(|name| self.evaluator.node(name));
        let names = self.names.of_any(&addresses);
        let Some(subject) = self.identity(subject) else { return Err(self.fixed.pod_not_seen.clone()) };
        Ok(Ends { subject, pod, node, node_name, addresses, names })
    }

    /// The node of a hostNetwork pod: as its object says, or else the one whose address it has.
    pub(super) fn node_of(&self, pod: &Pod) -> Arc<str> {
        let by_address = || pod.ips.iter().find_map(|ip| self.node_at(*ip));
        pod.node.clone().or_else(by_address).unwrap_or_else(|| unknown_node(pod))
    }

    /// The node that has an address, as its object says, or else a hostNetwork pod on it.
    fn node_at(&self, ip: IpAddr) -> Option<Arc<str>> {
        self.addresses.node(ip).cloned().or_else(|| {
            let mut pods = self.addresses.hosts(ip).filter_map(|id| self.pod(id)).peekable();
            let first = *pods.peek()?;
            Some(pods.find_map(|pod| pod.node.clone()).unwrap_or_else(|| unknown_node(first)))
        })
    }

    /// What policies know a pod as: computed when first asked for in an epoch.
    fn identity(&mut self, id: PodId) -> Option<IdentityId> {
        let epoch = self.evaluator.epoch();
        let slot = self.pods.get_mut(id)?;
        if let Some((known, identity)) = slot.identity
            && known == epoch
        {
            return Some(identity);
        }
        let pod = &slot.pod;
        let identity = self.evaluator.identity(&pod.namespace, &pod.labels, &pod.ports);
        slot.identity = Some((epoch, identity));
        Some(identity)
    }

    /// The names that DNS gave for addresses: all of them, in place of those known so far. Until it is first called the
    /// names of an address are not known, and a policy that names domains gives no certain verdict.
    pub fn set_names(&mut self, answers: impl IntoIterator<Item = (String, IpAddr)>) {
        self.names.replace(answers, false);
        self.generation += 1;
    }

    /// As [`Cluster::set_names`], where addresses may have more names than these.
    pub fn set_some_names(&mut self, answers: impl IntoIterator<Item = (String, IpAddr)>) {
        self.names.replace(answers, true);
        self.generation += 1;
    }

    /// The policies that verdicts come from now. A reader that keeps it is not disturbed by changes to come.
    pub fn rules(&self) -> &Arc<Ruleset> {
        self.policies.current()
    }
}

/// Stands for the name of a node of which only a pod on it is known. No node can be called so.
fn unknown_node(pod: &Pod) -> Arc<str> {
    format!("of {}/{}", pod.namespace, pod.name).into()
}

/// The two ends of a flow as policies see them.
struct Ends {
    subject: IdentityId,
    pod: Option<IdentityId>,
    node: Option<NodeId>,
    node_name: Option<Arc<str>>,
    addresses: SmallVec<[IpAddr; 2]>,
    names: KnownNames<Arc<[Arc<str>]>>,
}

impl Ends {
    fn question(&self, direction: Direction, protocol: Protocol, port: u16) -> Question<'_> {
        let peer = PeerEnd {
            pod: self.pod,
            node: self.node,
            addresses: &self.addresses,
            names: self.names.as_slice(),
        };
        Question { direction, subject: self.subject, peer, protocol, port }
    }
}
