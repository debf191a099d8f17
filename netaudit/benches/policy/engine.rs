//! Our side: the index with a generated cluster in it, and a reader of its policies.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use netaudit::{
    cluster::{Cluster, Endpoint, Object, Party, PodId},
    model::{Decision, Direction, Protocol, Timestamp, Verdict},
    policy::{Evaluator, IdentityId, PeerEnd, Question},
};

use crate::world::{Flow, World, object};

/// The time of everything: nothing here depends on it.
pub const NOW: Timestamp = Timestamp::from_seconds(1_000);

/// A cluster, loaded.
pub struct Engine {
    /// The index.
    pub cluster: Cluster,
    /// A reader of its own, so that what it remembers can be dropped.
    pub evaluator: Evaluator,
    identities: HashMap<PodId, IdentityId>,
}

/// What one end of a flow asks, without borrowing.
#[derive(Clone, Copy)]
pub struct Asked {
    direction: Direction,
    subject: IdentityId,
    peer: Option<IdentityId>,
    address: [IpAddr; 1],
    protocol: Protocol,
    port: u16,
}

impl Asked {
    /// As the evaluator takes it.
    pub fn question(&self) -> Question<'_> {
        let peer = PeerEnd { pod: self.peer, addresses: &self.address, ..PeerEnd::default() };
        let Self { direction, subject, protocol, port, .. } = *self;
        Question { direction, subject, peer, protocol, port }
    }

    /// The same at another port, which no rule names.
    pub fn at(&self, port: u16) -> Self {
        Self { port, ..*self }
    }
}

impl Engine {
    /// Loads a cluster.
    pub fn new(world: World) -> Self {
        let mut engine = Self::empty();
        engine.load(world.objects().map(|value| object(&value)).collect());
        engine.identify();
        engine
    }

    /// Without a cluster.
    pub fn empty() -> Self {
        Self { cluster: Cluster::new(), evaluator: Evaluator::default(), identities: HashMap::new() }
    }

    /// Applies these objects.
    pub fn load(&mut self, objects: Vec<Object>) {
        let warnings = self.cluster.reset_all(objects, NOW);
        assert!(warnings.is_empty(), "the generated cluster is not valid: {}", warnings[0]);
    }

    /// Gives every pod its identity.
    pub fn identify(&mut self) {
        self.evaluator.follow(self.cluster.rules());
        self.identities.clear();
        for (id, pod) in self.cluster.pods() {
            let identity = self.evaluator.identity(&pod.namespace, &pod.labels, &pod.ports);
            self.identities.insert(id, identity);
        }
    }

    /// Drops what the reader remembers, and nothing else.
    pub fn forget(&mut self) {
        self.evaluator = Evaluator::default();
        self.identify();
    }

    fn pod_at(&self, flow: &Flow, ip: IpAddr) -> Option<PodId> {
        match self.cluster.resolve(ip, flow.port, flow.protocol, NOW) {
            Endpoint::Pod(id) => Some(id),
            _ => None,
        }
    }

    /// What both ends of a flow ask: the source first.
    pub fn asked(&self, flow: &Flow) -> [Option<Asked>; 2] {
        let identity = |ip| self.pod_at(flow, ip).and_then(|id| self.identities.get(&id)).copied();
        let (source, destination) = (identity(flow.source), identity(flow.destination));
        let asked = |direction, subject: Option<IdentityId>, peer, address| {
            let Flow { protocol, port, .. } = *flow;
            subject.map(|subject| Asked { direction, subject, peer, address: [address], protocol, port })
        };
        [
            asked(Direction::Egress, source, destination, flow.destination),
            asked(Direction::Ingress, destination, source, flow.source),
        ]
    }

    /// Whether a new connection may be made, from addresses alone, nothing remembered. As the peer does it, the second end is
    /// asked only where the first allows.
    pub fn computed(&self, flow: &Flow) -> bool {
        let ends = self.asked(flow);
        ends.iter().flatten().all(|asked| self.evaluator.allows(&asked.question()) == Some(true))
    }

    /// The same, with verdicts that are remembered, as the agent asks.
    pub fn remembered(&mut self, flow: &Flow) -> bool {
        self.verdicts(flow).iter().flatten().all(|verdict| matches!(verdict.decision, Decision::Allowed(_)))
    }

    /// The verdicts of both ends.
    pub fn verdicts(&mut self, flow: &Flow) -> [Option<Arc<Verdict>>; 2] {
        let (source, destination) = (self.pod_at(flow, flow.source), self.pod_at(flow, flow.destination));
        let party = |pod: Option<PodId>, ip| pod.map_or(Party::Ip(ip), |id| Party::PodAt(id, ip));
        let Flow { protocol, port, .. } = *flow;
        let to = party(destination, flow.destination);
        let from = party(source, flow.source);
        let mut ask = |direction, subject: Option<PodId>, peer| {
            subject.map(|id| self.cluster.verdict(direction, id, peer, protocol, port))
        };
        [ask(Direction::Egress, source, to), ask(Direction::Ingress, destination, from)]
    }
}
