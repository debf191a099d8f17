//! Services and what their ports lead to.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use foldhash::HashMap;
use smallvec::SmallVec;

use super::objects::{EndpointSlice, Service, ServicePort, SliceEndpoint, TargetPort};
use crate::{
    model::Protocol,
    policy::{Labels, NamedPort},
};

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

/// Services and endpoint slices by name.
#[derive(Default)]
pub(super) struct Services {
    pub by_name: HashMap<Name, Service>,
    /// By slice.
    pub slices: HashMap<Name, EndpointSlice>,
    /// By service: its slices in order of name.
    of_service: HashMap<Name, BTreeMap<Arc<str>, EndpointSlice>>,
    /// Services by the ports that they have on every node, in order of name: the API server gives each port to one
    /// service only, which manifests may not heed.
    node_ports: HashMap<(u16, Protocol), SmallVec<[Name; 1]>>,
}

impl Services {
    pub fn get(&self, namespace: &Arc<str>, name: &Arc<str>) -> Option<&Service> {
        self.by_name.get(&(namespace.clone(), name.clone()))
    }

    /// Adds a service, or replaces the one of its name.
    pub fn put(&mut self, service: Service) {
        let name = (service.namespace.clone(), service.name.clone());
        self.remove(&name);
        for key in service.node_ports() {
            let holders = self.node_ports.entry(key).or_default();
            if let Err(at) = holders.binary_search(&name) {
                holders.insert(at, name.clone());
            }
        }
        self.by_name.insert(name, service);
    }

    /// Removes the service of this name and returns it.
    pub fn remove(&mut self, name: &Name) -> Option<Service> {
        let old = self.by_name.remove(name)?;
        for key in old.node_ports() {
            if let Some(holders) = self.node_ports.get_mut(&key) {
                holders.retain(|it| it != name);
                if holders.is_empty() {
                    self.node_ports.remove(&key);
                }
            }
        }
        Some(old)
    }

    /// The services that have this port on every node, with the port of theirs that it stands for.
    pub fn at_node_port(
        &self,
        port: u16,
        protocol: Protocol,
    ) -> impl Iterator<Item = (&Service, &ServicePort)> {
        let holders = self.node_ports.get(&(port, protocol)).into_iter().flatten();
        holders.filter_map(move |name| {
            let service = self.by_name.get(name)?;
            let is_it = |it: &&ServicePort| it.node_port == Some(port) && it.protocol == protocol;
            Some((service, service.ports.iter().find(is_it)?))
        })
    }

    pub fn put_slice(&mut self, slice: EndpointSlice) {
        self.remove_slice(&slice.namespace, &slice.name);
        if let Some(service) = &slice.service {
            self.of_service
                .entry((slice.namespace.clone(), service.clone()))
                .or_default()
                .insert(slice.name.clone(), slice.clone());
        }
        self.slices.insert((slice.namespace.clone(), slice.name.clone()), slice);
    }

    pub fn remove_slice(&mut self, namespace: &Arc<str>, name: &Arc<str>) -> bool {
        let Some(old) = self.slices.remove(&(namespace.clone(), name.clone())) else { return false };
        if let Some(service) = old.service {
            let key = (namespace.clone(), service);
            if let Some(slices) = self.of_service.get_mut(&key) {
                slices.remove(name);
                if slices.is_empty() {
                    self.of_service.remove(&key);
                }
            }
        }
        true
    }

    /// Whether anybody has said which endpoints the service has.
    pub fn has_slices(&self, namespace: &Arc<str>, name: &Arc<str>) -> bool {
        self.of_service.contains_key(&(namespace.clone(), name.clone()))
    }

    /// The endpoints that a headless service's name stands for, whatever their ports: those that are ready.
    pub fn named_endpoints(&self, service: &Service) -> impl Iterator<Item = &SliceEndpoint> {
        let key = (service.namespace.clone(), service.name.clone());
        let slices = self.of_service.get(&key).into_iter().flat_map(BTreeMap::values);
        slices.flat_map(|slice| slice.endpoints.iter()).filter(|it| it.ready)
    }

    /// The endpoints that get the traffic of a service's port, with their target ports.
    ///
    /// That is who is ready; where nobody is, those that still serve while they terminate.
    pub fn endpoints(&self, service: &Service, port: &ServicePort) -> Vec<(&SliceEndpoint, u16)> {
        let key = (service.namespace.clone(), service.name.clone());
        let mut all = Vec::new();
        for slice in self.of_service.get(&key).into_iter().flat_map(BTreeMap::values) {
            for target in slice.ports.iter().filter(|it| it.name == port.name && it.protocol == port.protocol)
            {
                let number = target.port.unwrap_or(port.port);
                all.extend(slice.endpoints.iter().map(|endpoint| (endpoint, number)));
            }
        }
        let any_ready = all.iter().any(|(endpoint, _)| endpoint.ready);
        all.retain(|(endpoint, _)| if any_ready { endpoint.ready } else { endpoint.serving });
        all
    }
}

impl Service {
    /// The service's port with this number and protocol.
    pub fn port(&self, port: u16, protocol: Protocol) -> Option<&ServicePort> {
        self.ports.iter().find(|it| it.port == port && it.protocol == protocol)
    }

    /// The ports that it has on every node.
    fn node_ports(&self) -> impl Iterator<Item = (u16, Protocol)> {
        self.ports.iter().filter_map(|it| Some((it.node_port?, it.protocol)))
    }

    /// Whether it serves this family: one of its addresses is of it, or none is known, as in manifests.
    pub(super) fn has_family_of(&self, ip: IpAddr) -> bool {
        self.ips.is_empty() || self.ips.iter().any(|own| own.is_ipv4() == ip.is_ipv4())
    }

    /// Whether its selector selects pods with these labels.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.selector.as_ref().is_some_and(|selector| {
            selector.iter().all(|(key, value)| labels.get(key).is_some_and(|have| **have == *value))
        })
    }
}

impl ServicePort {
    /// The port on a pod with these named ports that this port leads to; `None` where the pod lacks the name.
    pub fn target_on(&self, ports: &[NamedPort]) -> Option<u16> {
        match &self.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => {
                let named = ports.iter().find(|it| it.name == *name && it.protocol == self.protocol);
                named.map(|it| it.port)
            }
        }
    }
}
