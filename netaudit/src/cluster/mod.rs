//! The index of what the API server (or a directory of manifests) says: which pods, nodes, services and policies are
//! there, who owns an address at a given time, and what the policies say of a flow.
//!
//! Three verbs change it, [`Cluster::apply`], [`Cluster::delete`] and [`Cluster::reset`]; the rest reads. It is pure:
//! time is an argument. Nothing here knows Kubernetes clients.

pub mod objects;

use std::{net::IpAddr, sync::Arc};

use smallvec::SmallVec;

pub use self::objects::{Broken, Kind, Namespace, Node, Object, ObjectKey, Pod, Service, Workload};
use crate::{
    model::{Direction, Protocol, Timestamp, Verdict},
    policy::{CompiledPolicy, Warning},
};

/// A pod in the index. Valid for at least ten minutes after the pod's deletion; never given to another pod.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PodId(u32);

/// What an address stands for at a given time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// A pod in a network namespace of its own.
    Pod(PodId),
    /// A node, or a hostNetwork pod on it: the node's name.
    Node(Arc<str>),
    /// A service's address.
    Service {
        /// The service's namespace.
        namespace: Arc<str>,
        /// The service's name.
        name: Arc<str>,
        /// Where the asked port leads: ready endpoints with their target ports. Empty where the service has none.
        backends: SmallVec<[Backend; 4]>,
    },
    /// Nothing in the cluster.
    External,
    /// Two owners at that time.
    Ambiguous,
    /// Perhaps an object that could not be read: which, and why.
    Invalid(Arc<str>),
}

/// Where a service's port leads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Backend {
    /// The endpoint's address.
    pub ip: IpAddr,
    /// The target port.
    pub port: u16,
    /// The pod that owns the address; `None` for a node, a hostNetwork pod or an address outside the cluster.
    pub pod: Option<PodId>,
}

/// The other end of a flow, as the caller resolved it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Party {
    /// A pod, with the address that carried the flow: an `ipBlock` is compared with this address only.
    PodAt(PodId, IpAddr),
    /// A pod whose address in this flow is not known: an `ipBlock` is compared with all its addresses.
    Pod(PodId),
    /// An address that is no pod's: outside the cluster, or a node that is not the subject's own.
    Ip(IpAddr),
    /// The subject's own node.
    OwnNode,
}

/// The index.
#[derive(Default)]
pub struct Cluster {}

#[allow(unused_variables, reason = "interim")]
#[allow(clippy::unimplemented, reason = "interim")]
impl Cluster {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an object, or replaces the one with its key. Returns what is wrong with it.
    pub fn apply(&mut self, object: Object, now: Timestamp) -> Vec<Warning> {
        unimplemented!()
    }

    /// Removes an object; nothing happens where it is not known.
    pub fn delete(&mut self, key: &ObjectKey, now: Timestamp) {
        unimplemented!()
    }

    /// Replaces all objects of a kind by this complete list (the first list, or one after a gap in the watch).
    pub fn reset(&mut self, kind: Kind, objects: Vec<Object>, now: Timestamp) -> Vec<Warning> {
        unimplemented!()
    }

    /// Replaces everything by this complete list of all kinds, broken objects without a key included: what a
    /// directory of manifests gives.
    pub fn reset_all(&mut self, objects: Vec<Object>, now: Timestamp) -> Vec<Warning> {
        unimplemented!()
    }

    /// Changes whenever an answer of this index may change.
    pub fn generation(&self) -> u64 {
        unimplemented!()
    }

    /// The pod; `None` once it has been deleted for more than ten minutes and [`Cluster::expire`] ran.
    pub fn pod(&self, id: PodId) -> Option<&Pod> {
        unimplemented!()
    }

    /// When the pod was deleted, if it was.
    pub fn deleted(&self, id: PodId) -> Option<Timestamp> {
        unimplemented!()
    }

    /// The pod with this UID (with `_` for `-` too, as the systemd cgroup driver writes it), or the static pod with
    /// this `kubernetes.io/config.hash`.
    pub fn pod_by_uid(&self, uid: &str) -> Option<PodId> {
        unimplemented!()
    }

    /// The present pod of this name.
    pub fn pod_by_name(&self, namespace: &str, name: &str) -> Option<PodId> {
        unimplemented!()
    }

    /// Every present pod, in no order.
    pub fn pods(&self) -> impl Iterator<Item = (PodId, &Pod)> {
        std::iter::empty()
    }

    /// What `ip` stands for at a time; `port` and `protocol` choose a service's port.
    pub fn resolve(&self, ip: IpAddr, port: u16, protocol: Protocol, at: Timestamp) -> Endpoint {
        unimplemented!()
    }

    /// Records that this pod's network namespace owns this address from `at` on, as seen in the kernel. That beats
    /// what the API server says until the pod goes or another pod is seen with the address.
    pub fn bind(&mut self, ip: IpAddr, pod: PodId, at: Timestamp) {
        unimplemented!()
    }

    /// Forgets pods and addresses that have been gone for ten minutes. To be called every minute or so.
    pub fn expire(&mut self, now: Timestamp) {
        unimplemented!()
    }

    /// What the policies of this direction say of a flow between the subject and a peer; `port` is the destination's.
    pub fn verdict(
        &mut self,
        direction: Direction,
        subject: PodId,
        peer: Party,
        protocol: Protocol,
        port: u16,
    ) -> Arc<Verdict> {
        unimplemented!()
    }

    /// Every policy, in order of namespace and name.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<CompiledPolicy>> {
        std::iter::empty()
    }

    /// The policies that isolate this pod in this direction, in order of name.
    pub fn selected_by(&self, pod: PodId, direction: Direction) -> impl Iterator<Item = &Arc<CompiledPolicy>> {
        std::iter::empty()
    }

    /// What is wrong with the objects that are here now.
    pub fn warnings(&self) -> impl Iterator<Item = &Warning> {
        std::iter::empty()
    }

    /// The objects that could not be decoded and are still there.
    pub fn broken(&self) -> impl Iterator<Item = &Broken> {
        std::iter::empty()
    }
}
