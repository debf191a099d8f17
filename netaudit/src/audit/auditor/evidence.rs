//! What a record proves beside its flow: whose namespace it is from, whose an address is, and which connections of
//! pods are the node's own.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use super::{Auditor, MAX_WAITING, Owner, Subject};
use crate::{
    audit::{ActorKind, resolve::canonical},
    cluster::{Endpoint, Pod, PodId},
    model::{Direction, Observation, Outcome, Protocol, Timestamp},
};

impl Auditor {
    /// Where the process that acted is from, seen from the subject.
    pub(super) fn actor_kind(&self, seen: &Observation, subject: &Subject) -> ActorKind {
        let Some(cgroup) = seen.actor.cgroup else { return ActorKind::Unknown };
        match (self.attribution.actor(cgroup), subject) {
            (Some(actor), Subject::Pod(id)) => {
                let is_own =
                    |pod: &Pod| *pod.uid == *actor.uid || pod.config_hash.as_ref() == Some(&actor.uid);
                if self.cluster.pod(*id).is_some_and(is_own) { ActorKind::Subject } else { ActorKind::Pod }
            }
            // A hostNetwork pod is its node.
            (_, Subject::Node) => ActorKind::Subject,
            (Some(_), Subject::Unknown { .. }) => ActorKind::Pod,
            (None, _) if self.attribution.knows(cgroup) => ActorKind::Host,
            (None, _) => ActorKind::Unknown,
        }
    }

    /// Learns whose namespace the record is from, if that is not certain yet.
    pub(super) fn learn(&mut self, seen: &Observation) {
        if self.attribution.is_proven(seen.netns) {
            match self.attribution.owner(seen.netns) {
                Owner::Pod(uid) if !self.is_present(&uid, seen.at) => self.attribution.doubt(seen.netns),
                _ => return,
            }
        }
        match self.pod_by_address(seen) {
            Some(uid) if !self.is_outlived(&uid, seen) => self.attribution.prove(seen.netns, uid),
            _ => {
                if let Some(cgroup) = seen.actor.cgroup {
                    self.attribution.pair(seen.netns, cgroup);
                }
            }
        }
    }

    /// The same from a connection that is open. It may be left over from before its address went to another pod, so it proves
    /// something only where whoever holds it is of that very pod.
    pub(super) fn learn_from_open(&mut self, seen: &Observation) {
        if self.attribution.is_proven(seen.netns) {
            return;
        }
        let Some(cgroup) = seen.actor.cgroup else { return };
        let actor = self.attribution.actor(cgroup).and_then(|actor| self.cluster.pod_by_uid(&actor.uid));
        match self.pod_by_address(seen) {
            Some(uid) if actor.is_some() && self.cluster.pod_by_uid(&uid) == actor => {
                self.attribution.prove(seen.netns, uid);
            }
            _ => self.attribution.pair(seen.netns, cgroup),
        }
    }

    /// Whether the pod with this UID was there at `at`: it has a cgroup, or an object that was not deleted before.
    fn is_present(&self, uid: &str, at: Timestamp) -> bool {
        let deleted = |id| self.cluster.deleted(id).is_some_and(|deleted| deleted <= at);
        self.attribution.is_alive(uid) || self.cluster.pod_by_uid(uid).is_some_and(|id| !deleted(id))
    }

    /// Whether the API's owner of an address has no process left here while somebody else acts under that address: the
    /// address was given to a new pod, and the watch has not told yet.
    fn is_outlived(&self, owner: &str, seen: &Observation) -> bool {
        let actor = seen.actor.cgroup.and_then(|cgroup| self.attribution.actor(cgroup));
        let hash = self.cluster.pod_by_uid(owner).and_then(|id| self.cluster.pod(id)?.config_hash.clone());
        let is_owner = |uid: &str| uid == owner || hash.as_deref() == Some(uid);
        let owner_lives = self.attribution.is_alive(owner)
            || hash.as_deref().is_some_and(|hash| self.attribution.is_alive(hash));
        actor.is_some_and(|actor| !is_owner(&actor.uid)) && !owner_lives
    }

    /// Remembers what the node's own processes connect to, where that can be one of its pods (the kubelet's probes).
    pub(super) fn remember_host_connection(&mut self, seen: &Observation) {
        if seen.netns != self.settings.host || seen.direction != Direction::Egress {
            return;
        }
        let (local, remote) = (canonical(seen.local), canonical(seen.remote));
        let owner = self.cluster.resolve(remote.ip(), remote.port(), seen.protocol, seen.at);
        let may_be_pod = match owner {
            Endpoint::Pod(_) => true,
            Endpoint::External => self.cluster.in_pod_network(remote.ip()),
            _ => false,
        };
        if !may_be_pod {
            return;
        }
        if self.host_connections.len() < MAX_WAITING {
            // A datagram socket may not have chosen its address yet: its port is then all that is known of it.
            self.host_connections.insert((seen.protocol, local, remote), seen.at);
        } else {
            self.pairs_dropped += 1;
        }
    }

    pub(super) fn is_paired(&self, seen: &Observation) -> bool {
        let (local, remote) = (canonical(seen.local), canonical(seen.remote));
        // A dual-stack socket that has not chosen an address shows the v6 one even to a v4 peer.
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let open = any.map(|ip| [SocketAddr::new(ip, remote.port()), SocketAddr::new(ip, 0)]);
        let sources = [remote, open[0][0], open[0][1], open[1][0], open[1][1]];
        // A TCP connection that was made has both ends; only datagram sockets leave theirs open.
        let known = if seen.protocol == Protocol::Udp { &sources[..] } else { &sources[..1] };
        known.iter().any(|source| self.host_connections.contains_key(&(seen.protocol, *source, local)))
    }

    /// The UID of this node's pod that owns the socket's own address, if the record proves that the address is in use there.
    fn pod_by_address(&self, seen: &Observation) -> Option<Arc<str>> {
        let ip = seen.local.ip().to_canonical();
        if !is_proof_of_address(seen) || self.own_addresses.contains(&ip) {
            return None;
        }
        match self.cluster.resolve(ip, seen.local.port(), seen.protocol, seen.at) {
            Endpoint::Pod(id) => {
                self.cluster.pod(id).filter(|pod| self.is_here(pod)).map(|pod| pod.uid.clone())
            }
            _ => None,
        }
    }

    /// The kernel showed this pod's namespace using an address: that is whose it is, whatever the API says later.
    ///
    /// Any program may bind an address that is not its own, so only an address that carried an answer counts, and never
    /// one that the API gives to a node, a Service or a pod of another node.
    pub(super) fn bind(&mut self, seen: &Observation, pod: PodId) {
        let ip = seen.local.ip().to_canonical();
        if !is_proof_of_address(seen) || self.bound.get(&(seen.netns, ip)) == Some(&pod) {
            return;
        }
        let free = match self.cluster.resolve(ip, seen.local.port(), seen.protocol, seen.at) {
            Endpoint::Pod(owner) => {
                owner == pod || self.cluster.pod(owner).is_none_or(|owner| self.is_here(owner))
            }
            Endpoint::External => self.may_be_own(ip, pod),
            Endpoint::Ambiguous => true,
            Endpoint::Node(_) | Endpoint::Service { .. } | Endpoint::Invalid(_) => false,
        };
        if !free || self.own_addresses.contains(&ip) || seen.peer_ip() == ip {
            return;
        }
        // A pod that talks to itself can do so under any name.
        let peer = self.cluster.resolve(seen.peer_ip(), seen.remote.port(), seen.protocol, seen.at);
        if peer == Endpoint::Pod(pod) {
            return;
        }
        self.bound.insert((seen.netns, ip), pod);
        self.cluster.bind(ip, pod, seen.at);
    }

    /// Whether an address that nobody owns can be the pod's: it is of the pods' network, or the pod's object does not
    /// say yet which it has. A bridge inside a pod, say, has addresses that mean nothing outside.
    fn may_be_own(&self, ip: IpAddr, pod: PodId) -> bool {
        self.cluster.in_pod_network(ip) || self.cluster.pod(pod).is_some_and(|pod| pod.ips.is_empty())
    }
}

/// Whether the record shows that traffic reached this end at its own address, which a program cannot make up.
fn is_proof_of_address(seen: &Observation) -> bool {
    let ip = seen.local.ip().to_canonical();
    let carried = matches!(seen.outcome, Outcome::Established | Outcome::Accepted | Outcome::Received);
    carried && is_of_one_host(ip) && !seen.peer_ip().is_loopback()
}

/// Whether an address can belong to one host alone: no group, no broadcast, nothing that is the same on every link.
fn is_of_one_host(ip: IpAddr) -> bool {
    let shared = match ip {
        IpAddr::V4(ip) => ip.is_broadcast() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(shared || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
}
