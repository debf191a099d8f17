//! Where a source address may stand for somebody else.

use super::{Cluster, PodId};
use crate::model::Protocol;

impl Cluster {
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
