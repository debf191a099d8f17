//! What the index holds, as the ends of connections.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

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
        let told = self.nodes().map(|node| (node.name.clone(), node.ips.as_slice()));
        let unread = self.broken().filter_map(|it| Some((it.key.as_ref()?, it.ips.as_slice())));
        let unread = unread.filter(|(key, _)| key.kind == Kind::Node);
        let unread = unread.map(|(key, ips)| (key.name.clone(), ips));
        let hosts = self.pods().filter(|(_, pod)| pod.host_network && !pod.completed);
        let hosts = hosts.map(|(_, pod)| (self.node_of(pod), pod.ips.as_slice()));
        let mut nodes: BTreeMap<Arc<str>, BTreeSet<IpAddr>> = BTreeMap::new();
        for (name, ips) in told.chain(unread).chain(hosts) {
            nodes.entry(name).or_default().extend(ips);
        }
        let ends = nodes.into_iter().flat_map(|(name, ips)| {
            let nowhere = ips.is_empty().then_some(None);
            let addresses = ips.into_iter().map(Some).chain(nowhere);
            addresses.map(move |address| NodeEnd { name: name.clone(), address })
        });
        ends.collect()
    }
}
