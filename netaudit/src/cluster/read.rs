//! The index's read surface: who is there, what an address stands for, what the policies say.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use smallvec::SmallVec;

use super::{
    Backend, Broken, Cluster, Endpoint, Kind, ObjectKey, Pod, PodId, Service, Workload,
    addresses::Found,
    objects::{Namespace, Node, ServicePort, SliceEndpoint},
};
use crate::{
    model::{Direction, PolicyId, Protocol, Timestamp},
    policy::{Certainty, CompiledForeign, CompiledPolicy, Crowd, Labels, NamespaceView, Warning},
};

impl Cluster {
    /// Changes whenever an answer of this index may change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The pod; `None` once it has been gone for [`super::REMEMBERED`] and [`Cluster::expire`] ran.
    pub fn pod(&self, id: PodId) -> Option<&Pod> {
        self.pods.get(id).map(|slot| &slot.pod)
    }

    /// When the pod was deleted, if it was.
    pub fn deleted(&self, id: PodId) -> Option<Timestamp> {
        self.pods.get(id)?.deleted
    }

    /// The pod with this UID (with `_` for `-` too, as the systemd cgroup driver writes it), or the static pod with
    /// this `kubernetes.io/config.hash`. Deleted pods are found as long as they are remembered.
    pub fn pod_by_uid(&self, uid: &str) -> Option<PodId> {
        self.pods.by_uid(uid)
    }

    /// The present pod of this name.
    pub fn pod_by_name(&self, namespace: &str, name: &str) -> Option<PodId> {
        self.pods.by_name(namespace, name)
    }

    /// Every present pod, in no order.
    pub fn pods(&self) -> impl Iterator<Item = (PodId, &Pod)> {
        self.pods.present()
    }

    /// Every node, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Whether a pod is to be expected at `ip`, by what the nodes say of their pods' networks.
    pub fn in_pod_network(&self, ip: IpAddr) -> bool {
        self.pod_network_node(ip).is_some()
    }

    /// The node whose pods have their addresses from a network (`spec.podCIDRs`) that holds `ip`; of several the one
    /// with the smallest network.
    pub fn pod_network_node(&self, ip: IpAddr) -> Option<&Arc<str>> {
        self.pod_networks.node(ip)
    }

    /// Every namespace with an object, in no order.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// The service of this name.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.get(&namespace.into(), &name.into())
    }

    /// Namespaces that pods or policies live in and that have no object, in order: each is taken to have the label
    /// `kubernetes.io/metadata.name` and no others.
    pub fn implied_namespaces(&self) -> Vec<Arc<str>> {
        let pods = self.pods().map(|(_, pod)| &pod.namespace);
        let policies = self.declared.keys().map(|key| &key.namespace).filter(|it| !it.is_empty());
        let missing =
            |name: &&Arc<str>| !self.namespaces.contains_key(*name) && self.namespace_doubt(name).is_none();
        let mut names: Vec<_> = pods.chain(policies).filter(missing).cloned().collect();
        names.sort();
        names.dedup();
        names
    }

    /// What `ip` stands for at a time; `port` and `protocol` choose a service's port.
    pub fn resolve(&self, ip: IpAddr, port: u16, protocol: Protocol, at: Timestamp) -> Endpoint {
        let ip = ip.to_canonical();
        match self.addresses.at(ip, at) {
            Found::Pod(id) => Endpoint::Pod(id),
            Found::Node(name) => Endpoint::Node(name.clone()),
            Found::Host(id) => {
                let node = |id| self.pod(id).and_then(|pod| pod.node.clone());
                let node = node(id).or_else(|| self.addresses.hosts(ip).find_map(node));
                Endpoint::Node(node.unwrap_or_else(|| ip.to_string().into()))
            }
            Found::Broken(reason) => Endpoint::Invalid(reason.clone()),
            Found::Ambiguous => Endpoint::Ambiguous,
            Found::Nobody => Endpoint::External,
            Found::Services(keys) => {
                let candidates = keys.iter().filter_map(|key| self.services.get(&key.namespace, &key.name));
                // Load balancers may share one address among services with different ports.
                let chosen =
                    candidates.filter_map(|service| Some((service, service.port(port, protocol)?))).next();
                match chosen {
                    Some((service, port)) => self.service_endpoint(service, port, ip, at),
                    None => Endpoint::Service {
                        namespace: keys[0].namespace.clone(),
                        name: keys[0].name.clone(),
                        backends: SmallVec::new(),
                    },
                }
            }
        }
    }

    /// What answers at a port of a node's address instead of the node: a service that has the address itself (as an
    /// external or a load balancer's address) and this port, or else the one that has the port as its node port on
    /// every node. `family_of` is the node's address that was dialled: the backends are those of its family. `None`
    /// where no service has the port, for that protocol and family.
    ///
    /// `externalTrafficPolicy: Local` is not heeded: each of the service's endpoints is a backend on every node.
    pub fn node_port(
        &self,
        port: u16,
        protocol: Protocol,
        family_of: IpAddr,
        at: Timestamp,
    ) -> Option<Endpoint> {
        let ip = family_of.to_canonical();
        let (service, port) = self.service_on_node(port, protocol, ip, at)?;
        Some(self.service_endpoint(service, port, ip, at))
    }

    /// The service that [`Cluster::node_port`] leads to, and the port of it.
    pub(crate) fn service_on_node(
        &self,
        port: u16,
        protocol: Protocol,
        ip: IpAddr,
        at: Timestamp,
    ) -> Option<(&Service, &ServicePort)> {
        let by_address = self.addresses.services(ip, at).find_map(|key| {
            let service = self.services.get(&key.namespace, &key.name)?;
            Some((service, service.port(port, protocol)?))
        });
        by_address.or_else(|| {
            self.services.at_node_port(port, protocol).find(|(service, _)| service.has_family_of(ip))
        })
    }

    /// A service with the backends that one of its ports has in the family of `ip`.
    fn service_endpoint(&self, service: &Service, port: &ServicePort, ip: IpAddr, at: Timestamp) -> Endpoint {
        let all = self.backends(service, port, at);
        Endpoint::Service {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            backends: all.into_iter().filter(|backend| backend.ip.is_ipv4() == ip.is_ipv4()).collect(),
        }
    }

    /// Whether anybody has said which endpoints the service has; if not, they follow from its selector, as manifests
    /// seldom hold the endpoint slices that the API server's controller makes of it.
    pub fn has_endpoint_slices(&self, service: &Service) -> bool {
        self.services.has_slices(&service.namespace, &service.name)
    }

    /// Where a service's port leads at a time, in order of address: the endpoints that get traffic, in both families. Of a
    /// headless service that is every endpoint at the very port.
    pub fn backends(&self, service: &Service, port: &ServicePort, at: Timestamp) -> Vec<Backend> {
        let mut backends = Vec::new();
        let mut add = |endpoint: &SliceEndpoint, port: u16| {
            for &ip in &endpoint.ips {
                let pod = match self.addresses.at(ip, at) {
                    Found::Pod(id) => Some(id),
                    // Known by name, though its object does not show the address yet.
                    Found::Nobody => (endpoint.pod.as_ref())
                        .and_then(|name| self.pod_by_name(&service.namespace, name))
                        .filter(|id| self.pod(*id).is_some_and(|pod| !pod.host_network)),
                    _ => None,
                };
                backends.push(Backend { ip, port, pod });
            }
        };
        if self.has_endpoint_slices(service) && service.headless {
            self.services.named_endpoints(service).for_each(|endpoint| add(endpoint, port.port));
        } else if self.has_endpoint_slices(service) {
            for (endpoint, number) in self.services.endpoints(service, port) {
                add(endpoint, number);
            }
        } else {
            for (id, number) in self.selected_backends(service, port) {
                let (Some(pod), Some(port)) = (self.pod(id), number) else { continue };
                let id = (!pod.host_network).then_some(id);
                backends.extend(pod.ips.iter().map(|ip| Backend { ip: *ip, port, pod: id }));
            }
        }
        backends.sort();
        backends.dedup();
        backends
    }

    /// The pods that a service's selector selects, in order of name, with the target port of each; `None` where the
    /// port is named and the pod has no port of that name.
    pub fn selected_backends(&self, service: &Service, port: &ServicePort) -> Vec<(PodId, Option<u16>)> {
        let mut found: Vec<_> = (self.pods.in_namespace(&service.namespace))
            .filter(|(_, pod)| !pod.completed && service.selects(&pod.labels))
            .collect();
        found.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        let target = |pod: &Pod| if service.headless { Some(port.port) } else { port.target_on(&pod.ports) };
        found.into_iter().map(|(id, pod)| (id, target(pod))).collect()
    }

    pub(super) fn namespace_view(&self, name: &Arc<str>) -> NamespaceView {
        match self.namespaces.get(name) {
            Some(namespace) => {
                NamespaceView { name: name.clone(), labels: namespace.labels.clone(), doubt: None }
            }
            None => {
                NamespaceView { doubt: self.namespace_doubt(name), ..NamespaceView::implied(name.clone()) }
            }
        }
    }

    /// Why the labels of a namespace without a readable object are not known: the object is broken, or a broken one
    /// does not tell its name.
    fn namespace_doubt(&self, name: &Arc<str>) -> Option<Arc<str>> {
        let is_it = |broken: &&Broken| match &broken.key {
            Some(key) => key.kind == Kind::Namespace && key.name == *name,
            None => broken.kind == Some(Kind::Namespace),
        };
        self.broken().find(is_it).map(|broken| broken.to_string().into())
    }

    /// Every policy, in order of kind, namespace and name.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<CompiledPolicy>> {
        self.declared.values().map(|entry| &entry.compiled)
    }

    /// The policy of this id.
    pub fn policy(&self, id: &PolicyId) -> Option<&Arc<CompiledPolicy>> {
        let key = ObjectKey::new(Kind::from_name(id.kind)?, &id.namespace, &id.name);
        self.declared.get(&key).map(|entry| &entry.compiled)
    }

    /// The policies that select this pod and say something of this direction, in the order in which they are asked;
    /// those that are invalid and only may select it are left out.
    pub fn selected_by(
        &self,
        pod: PodId,
        direction: Direction,
    ) -> impl Iterator<Item = &Arc<CompiledPolicy>> {
        let pod = self.pod(pod).filter(|pod| !pod.host_network);
        pod.into_iter().flat_map(move |pod| {
            let namespace = self.namespace_view(&pod.namespace);
            self.policies.current().policies(&pod.namespace).filter(move |policy| {
                policy.speaks_of(direction).and(policy.selects(&namespace, &pod.labels)) == Certainty::Yes
            })
        })
    }

    /// The policies that are not evaluated, in order of kind, namespace and name.
    pub fn foreign_policies(&self) -> impl Iterator<Item = &Arc<CompiledForeign>> {
        self.foreign.values().map(|(_, policy)| policy)
    }

    /// What is wrong with the objects that are here now; for those that could not be decoded see [`Cluster::broken`].
    pub fn warnings(&self) -> impl Iterator<Item = &Warning> {
        let foreign = self.foreign_policies().flat_map(|policy| &policy.warnings);
        self.duplicates.values().chain(self.policies().flat_map(|policy| &policy.warnings)).chain(foreign)
    }

    /// The objects that could not be decoded and are still there.
    pub fn broken(&self) -> impl Iterator<Item = &Broken> {
        self.broken.values().chain(&self.unkeyed)
    }

    /// The workloads, each with the labels of one of its pods. Those that are their node are not there.
    pub fn crowd(&self) -> Crowd {
        let mut workloads: BTreeMap<&Arc<str>, BTreeMap<&Workload, &Labels>> = BTreeMap::new();
        for (_, pod) in self.pods().filter(|(_, pod)| !pod.host_network && !pod.completed) {
            workloads.entry(&pod.namespace).or_default().entry(&pod.workload).or_insert(&pod.labels);
        }
        let of_namespace = |(name, workloads): (&Arc<str>, BTreeMap<&Workload, &Labels>)| {
            (self.namespace_view(name), workloads.into_values().cloned().collect())
        };
        Crowd::new(workloads.into_iter().map(of_namespace))
    }

    /// The keys of everything of a kind, in no order.
    pub fn keys_of(&self, kind: Kind) -> Vec<ObjectKey> {
        let key = |namespace: &Arc<str>, name: &Arc<str>| ObjectKey {
            kind,
            namespace: namespace.clone(),
            name: name.clone(),
        };
        let cluster: Arc<str> = "".into();
        let mut keys: Vec<ObjectKey> = match kind {
            Kind::Namespace => self.namespaces.keys().map(|name| key(&cluster, name)).collect(),
            Kind::Node => self.nodes.keys().map(|name| key(&cluster, name)).collect(),
            Kind::Pod => self.pods().map(|(_, pod)| key(&pod.namespace, &pod.name)).collect(),
            Kind::Service => self.services.by_name.keys().map(|(a, b)| key(a, b)).collect(),
            Kind::EndpointSlice => self.services.slices.keys().map(|(a, b)| key(a, b)).collect(),
            Kind::CronJob => self.cron_jobs.names().map(|(a, b)| key(a, b)).collect(),
            foreign if foreign.is_foreign() => {
                self.foreign.keys().filter(|key| key.kind == kind).cloned().collect()
            }
            _ => self.declared.keys().filter(|key| key.kind == kind).cloned().collect(),
        };
        keys.extend(self.broken.keys().filter(|key| key.kind == kind).cloned());
        keys
    }
}
