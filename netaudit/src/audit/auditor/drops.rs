//! What a drop of this node's filter proves: that an attempt of this node was stopped, and that somebody tried to reach
//! a pod of it, even where nothing watches the source.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use smallvec::SmallVec;

use super::{
    Auditor, FIRST_RETRANSMISSION, HOLD_PAIR, HOLD_START, HOLD_SUBJECT, MAX_WAITING, PENDING_MEMORY, Subject,
    Waiting,
    resolve::{self, NodeView, canonical, judge_pod},
};
use crate::{
    audit::{Flow, Owner, datagrams::HOLD_DROP},
    cluster::{Backend, Endpoint, PodId},
    model::{
        Actor, Comm, Direction, DropReason, NetnsCookie, Observation, Outcome, PacketDrop, Protocol,
        Timestamp, Verdict,
    },
};

impl Auditor {
    /// The kernel tells what the node's filter drops: whether it stopped a datagram is then waited for. See
    /// [`Auditor::settle`].
    pub fn set_sees_drops(&mut self) {
        self.sees_drops = true;
    }

    /// Takes one drop. A denied or otherwise unexplained attempt to reach a pod of this node is appended to `flows`, and so
    /// is one that found nobody listening there.
    pub fn observe_drop(&mut self, seen: &PacketDrop, now: Timestamp, flows: &mut Vec<Flow>) {
        self.taken += 1;
        let seen = canonical_ends(seen);
        // The kernel tells a SYN to a closed port each time that it is sent: to know of it there would cost every refused attempt.
        let is_repeated = seen.found_closed_port() && !self.closed_ports.is_new(&seen);
        // Where its attempt cannot be of this node, no outcome will ask for it.
        let is_new = !self.may_be_from_here(&seen) || self.drops.remember(&seen);
        if is_new && !is_repeated {
            self.judge_or_hold_drop(seen, self.taken, now, flows);
        }
    }

    /// Takes drops of which only the number was kept: which attempts of this node they belong to is not known, but who was
    /// kept from reaching a pod is.
    pub fn observe_folded_drops(&mut self, folds: &[PacketDrop], now: Timestamp, flows: &mut Vec<Flow>) {
        for seen in folds {
            // It holds nothing back in the ring, as it is in none.
            self.judge_or_hold_drop(canonical_ends(seen), self.taken + 1, now, flows);
        }
    }

    fn judge_or_hold_drop(&mut self, seen: PacketDrop, number: u64, now: Timestamp, flows: &mut Vec<Flow>) {
        if !seen.opens {
            return;
        }
        let full = self.held_drops.len() >= MAX_WAITING;
        match self.try_judge_drop(&seen, full) {
            Ok(flow) => flows.extend(flow),
            Err(hold) => self.held_drops.push_back(Waiting { until: now.plus(hold), number, seen }),
        }
    }

    /// Tries held drops again.
    pub(super) fn retry_drops(&mut self, now: Timestamp, flows: &mut Vec<Flow>) {
        for _ in 0..self.held_drops.len() {
            let Some(waiting) = self.held_drops.pop_front() else { break };
            match self.try_judge_drop(&waiting.seen, waiting.until <= now) {
                Ok(flow) => flows.extend(flow),
                Err(_) => self.held_drops.push_back(waiting),
            }
        }
    }

    /// Drops that were not kept until their attempt's end, since too many are.
    pub fn drops_forgotten(&self) -> u64 {
        self.drops.forgotten()
    }

    /// Drops that could not be judged: they came before the objects had been listed, or are on their way to a pod's address
    /// in a namespace that nothing has named.
    pub fn drops_unjudged(&self) -> u64 {
        self.drops_unjudged
    }

    /// Whether a drop can belong to an attempt that this agent sees the end of.
    fn may_be_from_here(&self, seen: &PacketDrop) -> bool {
        let ip = seen.source.ip();
        seen.netns != self.settings.host
            || self.own_addresses.contains(&ip)
            || ip.is_loopback()
            || self.cluster.in_pod_network(ip)
            || self.cluster.resolve(ip, seen.source.port(), seen.protocol, seen.at) != Endpoint::External
    }

    /// The flow that a drop is of at the destination: none where that is no pod of this node. With `last_call` it is
    /// judged in any case; else an error says how long to wait for what is missing.
    fn try_judge_drop(&mut self, drop: &PacketDrop, last_call: bool) -> Result<Option<Flow>, Duration> {
        if !self.ready {
            if !last_call {
                return Err(HOLD_START);
            }
            self.drops_unjudged += drop.count();
            return Ok(None);
        }
        let Some(pod) = self.pod_here(drop.destination, drop, last_call)? else { return Ok(None) };
        // Another node on this kernel may have given the same address to a pod of its own, and whoever makes a namespace can
        // have any packet dropped in it.
        if !self.is_on_the_way(drop, pod) {
            if !last_call {
                return Err(HOLD_SUBJECT);
            }
            self.drops_unjudged += drop.count();
            return Ok(None);
        }
        let seen = attempt(drop);
        let is_own_address = self.own_addresses.contains(&seen.peer_ip());
        let paired_with_host = is_own_address && self.is_paired(&seen);
        if is_own_address && !paired_with_host && !last_call {
            return Err(HOLD_PAIR);
        }
        if !last_call && self.awaits_peer(&seen) {
            return Err(HOLD_SUBJECT);
        }
        let node = NodeView {
            name: &self.settings.node,
            own_addresses: &self.own_addresses,
            paired_with_host,
            names: &[],
        };
        let judged = judge_pod(&mut self.cluster, pod, &seen, &node);
        // What the source's own policies forbid was stopped on its way out: nobody kept it from coming in.
        let stopped_on_its_way_out = !drop.found_closed_port()
            && judged.verdict.is_allowed()
            && judged.other_end.as_deref().is_some_and(Verdict::is_denied);
        let proof = Proof::of([drop], &seen);
        Ok((!stopped_on_its_way_out).then(|| self.account(&seen, Subject::Pod(pod), judged, proof)))
    }

    /// The pod of this node at `address`; waits for one that is not known yet.
    fn pod_here(
        &self,
        address: SocketAddr,
        drop: &PacketDrop,
        last_call: bool,
    ) -> Result<Option<PodId>, Duration> {
        let ip = address.ip();
        if self.own_addresses.contains(&ip) {
            return Ok(None);
        }
        match self.cluster.resolve(ip, address.port(), drop.protocol, drop.at) {
            Endpoint::Pod(id) => {
                let here = self.cluster.pod(id).is_some_and(|pod| self.is_here(pod));
                Ok(here.then_some(id))
            }
            Endpoint::External if !last_call && self.is_of_own_network(ip) => Err(HOLD_SUBJECT),
            _ => Ok(None),
        }
    }

    /// Whether a packet to `pod` can come by where it was dropped: a closed port is in the pod's own namespace, a filter there,
    /// in the node's, or in that of the pod that sent it.
    fn is_on_the_way(&self, drop: &PacketDrop, pod: PodId) -> bool {
        let owner = match self.attribution.owner(drop.netns) {
            Owner::Host => return !drop.found_closed_port(),
            Owner::Pod(uid) => self.cluster.pod_by_uid(&uid),
            Owner::Unknown => None,
        };
        let source = || self.cluster.resolve(drop.source.ip(), drop.source.port(), drop.protocol, drop.at);
        owner.is_some_and(|owner| {
            owner == pod || !drop.found_closed_port() && source() == Endpoint::Pod(owner)
        })
    }

    /// Whether a packet that a socket of `netns` sent can come by where it was dropped.
    fn is_on_the_way_from(&self, drop: &PacketDrop, netns: NetnsCookie) -> bool {
        let Owner::Pod(uid) = self.attribution.owner(drop.netns) else {
            return drop.netns == self.settings.host;
        };
        let destination = drop.destination;
        drop.netns == netns
            || self.cluster.pod_by_uid(&uid).is_some_and(|owner| {
                self.cluster.resolve(destination.ip(), destination.port(), drop.protocol, drop.at)
                    == Endpoint::Pod(owner)
            })
    }

    /// Whether an address can be of one of this node's pods.
    fn is_of_own_network(&self, ip: IpAddr) -> bool {
        self.cluster.in_pod_network(ip)
            && self.cluster.pod_network_node(ip).is_none_or(|node| *node == self.settings.node)
    }

    /// What the drops that belong to this attempt prove of it.
    pub(super) fn proof(&mut self, seen: &Observation, subject: &Subject) -> Proof {
        if self.drops.len() == 0 || seen.direction != Direction::Egress {
            return Proof::default();
        }
        let mut drops = std::mem::take(&mut self.drops);
        let found = drops.take(seen.protocol, seen.local.port(), |drop| self.belongs(drop, seen, subject));
        self.drops = drops;
        // A first SYN that was dropped has no part in a connection that was made after all.
        let went_on = matches!(seen.outcome, Outcome::Established | Outcome::Answered);
        if went_on { Proof::default() } else { Proof::of(&found, seen) }
    }

    /// Whether a drop that was told belongs to this datagram's flow.
    pub(super) fn is_stopped(&mut self, seen: &Observation) -> bool {
        if self.drops.len() == 0 || seen.direction != Direction::Egress {
            return false;
        }
        let subject = self.subject(seen);
        let belongs = |drop: &_| self.belongs(drop, seen, &subject);
        self.drops.find(seen.protocol, seen.local.port(), belongs).is_some()
    }

    /// Whether a drop is of a packet of this attempt.
    pub(super) fn belongs(&self, drop: &PacketDrop, seen: &Observation, subject: &Subject) -> bool {
        // A reset answers the very SYN that was dropped only if no other was sent since; else a first one was lost, and
        // a later one got as far as a closed port.
        let end = seen.at.plus(seen.waited);
        let (from, until) = match (seen.protocol, seen.outcome) {
            // A connected socket's flow is told when its datagram has been sent, and may have been dropped in between.
            (Protocol::Udp, _) => (seen.at.minus(HOLD_DROP), seen.at.plus(HOLD_DROP)),
            (_, Outcome::Refused) => (seen.at.max(end.minus(FIRST_RETRANSMISSION)), end),
            // It goes on while the agent ends.
            (_, Outcome::Pending) => (seen.at, Timestamp::MAX),
            _ => (seen.at, end),
        };
        (from..=until).contains(&drop.at)
            && self.is_on_the_way_from(drop, seen.netns)
            && self.is_source(seen.local.ip().to_canonical(), drop.source.ip(), subject)
            && self.leads_to(seen, drop.destination)
    }

    /// Whether a packet from `of_packet` is of a socket at `source`. A datagram's socket may have chosen no address.
    fn is_source(&self, source: IpAddr, of_packet: IpAddr, subject: &Subject) -> bool {
        if !source.is_unspecified() {
            return source == of_packet;
        }
        match subject {
            Subject::Pod(id) => self.cluster.pod(*id).is_some_and(|pod| pod.ips.contains(&of_packet)),
            Subject::Node => self.own_addresses.contains(&of_packet),
            Subject::Unknown { .. } => false,
        }
    }

    /// Whether a packet of this attempt can have had that destination: the one that was asked for, or where a Service
    /// leads from there.
    fn leads_to(&self, seen: &Observation, destination: SocketAddr) -> bool {
        let is_it = |backend: &Backend| backend.address() == destination;
        canonical(seen.remote) == destination
            || self.backends(seen).is_some_and(|backends| backends.iter().any(is_it))
    }

    /// The endpoints of the Service that an attempt asked for, if it did.
    pub(super) fn backends(&self, seen: &Observation) -> Option<SmallVec<[Backend; 4]>> {
        let node = NodeView {
            name: &self.settings.node,
            own_addresses: &self.own_addresses,
            paired_with_host: false,
            names: &[],
        };
        resolve::backends(&self.cluster, seen, &node)
    }

    /// Forgets drops whose attempts must have ended.
    pub(super) fn expire_drops(&mut self, now: Timestamp) {
        self.drops.expire(now.minus(PENDING_MEMORY));
        self.closed_ports.expire(now.minus(PENDING_MEMORY));
    }
}

/// What drops prove of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Proof {
    /// Why this node's filter stopped it.
    pub stopped_by: Option<DropReason>,
    /// That it came to a port where nobody listens.
    pub closed_port: bool,
}

impl Proof {
    fn of<'a>(drops: impl IntoIterator<Item = &'a PacketDrop>, seen: &Observation) -> Self {
        let mut proof = Self::default();
        for drop in drops {
            if drop.found_closed_port() {
                proof.closed_port = seen.outcome == Outcome::Refused;
            } else {
                proof.stopped_by.get_or_insert(drop.reason);
            }
        }
        // Then an earlier packet of it was dropped, and a later one came through.
        if proof.closed_port { Self { stopped_by: None, ..proof } } else { proof }
    }
}

fn canonical_ends(drop: &PacketDrop) -> PacketDrop {
    PacketDrop { source: canonical(drop.source), destination: canonical(drop.destination), ..*drop }
}

/// A drop as the destination would have seen the attempt.
fn attempt(drop: &PacketDrop) -> Observation {
    Observation {
        at: drop.at,
        direction: Direction::Ingress,
        protocol: drop.protocol,
        netns: drop.netns,
        actor: Actor { cgroup: None, pid: 0, comm: Comm::default() },
        local: drop.destination,
        remote: drop.source,
        requested: None,
        outcome: if drop.found_closed_port() { Outcome::Refused } else { Outcome::Dropped },
        errno: None,
        waited: Duration::ZERO,
        answered: false,
        socket: 0,
        sequence: drop.sequence,
        handshake: None,
        folded: drop.folded,
        translated: None,
        maybe_repeated: drop.maybe_repeated,
    }
}
