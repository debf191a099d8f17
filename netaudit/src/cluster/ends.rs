//! What the index holds, as the ends of connections.

use foldhash::HashSet;

use super::{Cluster, Kind, PodId};
use crate::policy::{
    NamespaceView,
    symbolic::{NodeEnd, PodEnd},
};

impl Cluster {
    /// The pods that can talk, in order of namespace and name: those in a network namespace of their own that are not
    /// completed.
    pub fn pod_ends(&self) -> Vec<(PodId, PodEnd)> {
        let mut pods: Vec<_> = self.pods().filter(|(_, pod)| !pod.host_network && !pod.completed).collect();
        pods.sort_by(|(_, a), (_, b)| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let end = |pod: &super::Pod| PodEnd {
            namespace: pod.namespace.clone(),
            labels: pod.labels.clone(),
            ports: pod.ports.clone(),
            addresses: pod.ips.clone(),
        };
        pods.into_iter().map(|(id, pod)| (id, end(pod))).collect()
    }

    /// Every namespace that has an object, in order of name; of one that could not be read only the name is certain.
    pub fn namespace_views(&self) -> Vec<NamespaceView> {
        let mut names = self.keys_of(Kind::Namespace);
        names.sort();
        names.dedup();
        names.iter().map(|key| self.namespace_view(&key.name)).collect()
    }

    /// The addresses of nodes, in order: those that their objects tell and those of pods in their network. A node
    /// without any stands there without.
    pub fn node_ends(&self) -> Vec<NodeEnd> {
        let told = self.nodes().flat_map(|node| node.ips.iter().map(|ip| (&node.name, Some(*ip))));
        let hosted =
            self.pods().filter(|(_, pod)| pod.host_network && !pod.completed).flat_map(|(_, pod)| {
                let node = pod.node.as_ref().filter(|name| self.nodes.contains_key(*name));
                node.into_iter().flat_map(|name| pod.ips.iter().map(move |ip| (name, Some(*ip))))
            });
        let mut ends: Vec<_> = told.chain(hosted).collect();
        let addressed: HashSet<_> = ends.iter().map(|(name, _)| *name).collect();
        ends.extend(self.nodes.keys().filter(|name| !addressed.contains(name)).map(|name| (name, None)));
        ends.sort();
        ends.dedup();
        ends.into_iter().map(|(name, address)| NodeEnd { name: name.clone(), address }).collect()
    }
}
