//! The objects that the index holds, as domain types: converted once at the edge and stripped of what nobody reads.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use smallvec::SmallVec;

pub use super::kinds::Kind;

use crate::{
    model::{Protocol, Timestamp},
    policy::{Labels, NamedPort, declared},
};

/// What identifies an object in the index.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// The key of `namespace/name` of this kind; the namespace is dropped for cluster-scoped kinds.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = if kind.is_namespaced() { namespace } else { "" };
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

/// `NetworkPolicy batchivo/backend-policy`, `Node worker-1`.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// What is read of an object, as it is kept: the same conversion reads it again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Content {
    /// Which object.
    pub key: ObjectKey,
    /// Its `apiVersion`.
    pub api_version: Box<str>,
    /// Its UID; empty in manifests that do not say.
    pub uid: Box<str>,
    /// The API server's `resourceVersion`; empty in manifests.
    pub resource_version: Box<str>,
    /// JSON with nothing in it that nobody reads; equal where nothing that is read has changed.
    pub json: Box<str>,
}

/// An object of a watched kind, or what could be read of it.
#[derive(Clone, PartialEq, Debug)]
pub enum Object {
    /// A namespace.
    Namespace(Namespace),
    /// A pod.
    Pod(Pod),
    /// A node.
    Node(Node),
    /// A service.
    Service(Service),
    /// Endpoints of a service.
    EndpointSlice(EndpointSlice),
    /// Something that runs pods from time to time.
    CronJob(CronJob),
    /// A policy, not yet compiled.
    NetworkPolicy(declared::NetworkPolicy),
    /// A policy of a cluster-wide kind, not yet compiled.
    ClusterPolicy(Box<declared::ClusterPolicy>),
    /// A policy of a kind that is not evaluated, and which kind.
    Foreign(Kind, declared::ForeignPolicy),
    /// Something that could not be decoded.
    Broken(Broken),
}

impl Object {
    /// The object's key; `None` where a broken object does not tell it.
    pub fn key(&self) -> Option<ObjectKey> {
        let key = |kind, namespace: &Arc<str>, name: &Arc<str>| ObjectKey {
            kind,
            namespace: namespace.clone(),
            name: name.clone(),
        };
        Some(match self {
            Self::Namespace(it) => key(Kind::Namespace, &"".into(), &it.name),
            Self::Pod(it) => key(Kind::Pod, &it.namespace, &it.name),
            Self::Node(it) => key(Kind::Node, &"".into(), &it.name),
            Self::Service(it) => key(Kind::Service, &it.namespace, &it.name),
            Self::EndpointSlice(it) => key(Kind::EndpointSlice, &it.namespace, &it.name),
            Self::CronJob(it) => key(Kind::CronJob, &it.namespace, &it.name),
            Self::NetworkPolicy(it) => key(Kind::NetworkPolicy, &it.namespace, &it.name),
            Self::ClusterPolicy(it) => key(Kind::from(it.kind), &"".into(), &it.name),
            Self::Foreign(kind, it) => key(*kind, &it.namespace, &it.name),
            Self::Broken(it) => return it.key.clone(),
        })
    }

    /// Whether it is a policy of any kind, or may be one, as it cannot be read.
    pub fn may_be_policy(&self) -> bool {
        match self {
            Self::Broken(Broken { kind, .. }) => kind.is_none_or(Kind::is_policy),
            other => other.key().is_some_and(|key| key.kind.is_policy()),
        }
    }
}

/// An object that could not be decoded: what is known of it, so that the verdicts it could change become unknown, and
/// so that its deletion is not lost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    /// Its key, where kind and name could be read.
    pub key: Option<ObjectKey>,
    /// Its kind, where that could be read; without it, it may be a policy.
    pub kind: Option<Kind>,
    /// Its namespace, where that could be read; without it, it may be in any.
    pub namespace: Option<Arc<str>>,
    /// The service that an endpoint slice belongs to, where that could be read.
    pub service: Option<Arc<str>>,
    /// Addresses that it speaks of (a pod's, a node's), where they could be read.
    pub ips: SmallVec<[IpAddr; 2]>,
    /// Where it is from: `file:document:line`, or the API server.
    pub source: Arc<str>,
    /// What is wrong with it.
    pub reason: Arc<str>,
}

/// `NetworkPolicy batchivo/backend-policy: spec.ingress: expected a list`.
impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.key, self.kind) {
            (Some(key), _) => write!(f, "{key}: {}", self.reason),
            (None, Some(kind)) => write!(f, "{kind} at {}: {}", self.source, self.reason),
            (None, None) => write!(f, "{}: {}", self.source, self.reason),
        }
    }
}

/// A namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels. The index adds `kubernetes.io/metadata.name`, as the API server does.
    pub labels: Labels,
}

/// A pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its UID; `namespace/name` in manifests that do not say.
    pub uid: Arc<str>,
    /// The `kubernetes.io/config.hash` of a static pod's mirror: the UID that the kubelet names its cgroup by.
    pub config_hash: Option<Arc<str>>,
    /// Its labels.
    pub labels: Labels,
    /// The node it runs on, once it is scheduled.
    pub node: Option<Arc<str>>,
    /// Its addresses, canonical, in the API's order.
    pub ips: SmallVec<[IpAddr; 2]>,
    /// Whether it shares its node's network namespace: then it is its node, and no policy selects it.
    pub host_network: bool,
    /// Whether it is `Succeeded` or `Failed`: its addresses are given back though its status still shows them.
    pub completed: bool,
    /// Whether it has a RuntimeClass: then it may run in a kernel of its own (gVisor, Kata), which this one knows nothing of.
    pub has_runtime_class: bool,
    /// The named ports of its containers.
    pub ports: Arc<[NamedPort]>,
    /// The top controller.
    pub workload: Workload,
    /// When it was created; `None` in manifests that do not say.
    pub created: Option<Timestamp>,
}

/// The controller that stands for a pod: bounded in number, unlike pods.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Workload {
    /// `Deployment`, `StatefulSet`, `CronJob` …, or `Pod` for one without a controller.
    pub kind: Arc<str>,
    /// The controller's name.
    pub name: Arc<str>,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// The addresses in its status (internal and external), canonical.
    pub ips: SmallVec<[IpAddr; 2]>,
    /// What its pods get their addresses from (`spec.podCIDRs`); none where the CNI keeps its own account.
    pub pod_networks: SmallVec<[IpNet; 2]>,
}

/// A service: addresses that stand for other addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Whether its name stands for its endpoints' own addresses: then no port of it is translated.
    pub headless: bool,
    /// Cluster, external and load balancer addresses, canonical; none for headless and `ExternalName` services.
    pub ips: SmallVec<[IpAddr; 2]>,
    /// Its ports.
    pub ports: Arc<[ServicePort]>,
    /// Its selector; `None` where endpoints are made by hand.
    pub selector: Option<Labels>,
}

/// A service's port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServicePort {
    /// Its name; empty for the only port of a service.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on the service's address.
    pub port: u16,
    /// What it leads to on a backend.
    pub target: TargetPort,
    /// The port on every node's address, if any.
    pub node_port: Option<u16>,
}

/// A service's `targetPort`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TargetPort {
    /// A number; the service's own port where nothing is said.
    Number(u16),
    /// A named port of each backend.
    Name(Arc<str>),
}

/// Some of a service's endpoints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The service that it belongs to, by the label `kubernetes.io/service-name`.
    pub service: Option<Arc<str>>,
    /// Ports that every endpoint serves.
    pub ports: Arc<[EndpointPort]>,
    /// The endpoints.
    pub endpoints: Arc<[SliceEndpoint]>,
}

/// A port of an endpoint slice.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EndpointPort {
    /// The name of the service's port.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The target port; `None` means every port, unchanged.
    pub port: Option<u16>,
}

/// One endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SliceEndpoint {
    /// Its addresses, canonical.
    pub ips: SmallVec<[IpAddr; 1]>,
    /// Whether traffic is sent to it: ready, or not said.
    pub ready: bool,
    /// Whether it still serves while it terminates: used where no endpoint is ready.
    pub serving: bool,
    /// The pod behind it, by name in the slice's namespace.
    pub pod: Option<Arc<str>>,
}

/// Something that runs pods from time to time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CronJob {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The labels of its pods. Those that the Job controller adds are there too, with the CronJob's name as value, since nobody
    /// knows theirs before they are there.
    pub labels: Labels,
    /// The longest time between two runs; what is not understood of its schedule, where that cannot be told.
    pub period: Result<Duration, Arc<str>>,
    /// When it was created; `None` in manifests that do not say.
    pub created: Option<Timestamp>,
}

/// Since when a rule may be for a CronJob.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Met {
    /// Since it was made, which was not after this.
    SinceMade(Timestamp),
    /// Since its pods have other labels.
    Since(Timestamp),
}
