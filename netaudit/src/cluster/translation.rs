//! Where an address may stand for somebody else, and where a service led.

use std::net::IpAddr;

use super::{Backend, Cluster, PodId, Service, objects::ServicePort};
use crate::model::{Protocol, Timestamp};

impl Cluster {
    /// The port of a service that a flow went to of which `port` was recorded: that is the endpoints' own where they all have the same,
    /// and else the one that was asked for, the service's or, at a node's address, its node port. `family_of` is the address that was
    /// asked for, where that is known: behind it are only endpoints of its family.
    pub fn recorded_port<'a>(
        &self,
        service: &'a Service,
        protocol: Protocol,
        port: u16,
        family_of: Option<IpAddr>,
        at: Timestamp,
    ) -> Option<&'a ServicePort> {
        let ports = || service.ports.iter().filter(|it| it.protocol == protocol);
        let is_family = |it: &Backend| family_of.is_none_or(|ip| ip.is_ipv4() == it.ip.is_ipv4());
        let leads_to_it = |of: &&ServicePort| {
            let mut all = self.backends(service, of, at).into_iter().filter(is_family).peekable();
            all.peek().is_some() && all.all(|backend| backend.port == port)
        };
        let own = || ports().find(|it| it.port == port);
        let of_nodes = || ports().find(|it| it.node_port == Some(port));
        let is_own = family_of.is_none_or(|ip| service.ips.contains(&ip.to_canonical()));
        ports().find(leads_to_it).or_else(|| match is_own {
            true => own().or_else(of_nodes),
            false => of_nodes().or_else(own),
        })
    }

    /// Whether traffic to this port of a pod may have come through a port on a node's address, so that the node's address
    /// stands for whoever asked there: a Service with such a port selects the pod.
    pub fn may_hide_source(&self, pod: PodId, port: u16, protocol: Protocol) -> bool {
        let Some(pod) = self.pod(pod) else { return true };
        let in_namespace =
            self.services.by_name.values().filter(|service| service.namespace == pod.namespace);
        in_namespace.filter(|service| service.selects(&pod.labels)).any(|service| {
            service.ports.iter().any(|it| {
                it.node_port.is_some() && it.protocol == protocol && it.target_on(&pod.ports) == Some(port)
            })
        })
    }
}
