//! Which node's pods an address is to be expected among, and which addresses pods have at all.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use smallvec::SmallVec;

use super::Node;

/// The nodes of one network in order of name: one, unless the nodes contradict each other.
type Nodes = SmallVec<[Arc<str>; 1]>;

/// What nodes say of the networks of their pods.
#[derive(Default)]
pub(super) struct PodNetworks {
    v4: PrefixMap<Ipv4Net, Nodes>,
    v6: PrefixMap<Ipv6Net, Nodes>,
    /// Around addresses that pods had, and those of nodes, which hostNetwork pods have. None is forgotten: what had one
    /// may have one again.
    had: BTreeSet<IpNet>,
}

impl PodNetworks {
    /// Notes addresses of a pod. Returns whether others than were known are to be expected now.
    pub fn had(&mut self, ips: &[IpAddr]) -> bool {
        let around = |ip: &IpAddr| match ip {
            IpAddr::V4(_) => IpNet::new(*ip, 24),
            IpAddr::V6(_) => IpNet::new(*ip, 64),
        };
        let before = self.had.len();
        self.had.extend(ips.iter().filter_map(|ip| Some(around(ip).ok()?.trunc())));
        self.had.len() > before
    }

    /// Networks in which pods have their addresses, as far as anything tells.
    pub fn all(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.v4.keys().map(IpNet::V4);
        let v6 = self.v6.keys().map(IpNet::V6);
        v4.chain(v6).chain(self.had.iter().copied())
    }

    /// Adds the networks of a node.
    pub fn add(&mut self, node: &Node) {
        self.had.extend(node.ips.iter().map(|ip| IpNet::from(*ip)));
        for network in &node.pod_networks {
            let nodes = match network.trunc() {
                IpNet::V4(network) => self.v4.entry(network).or_default(),
                IpNet::V6(network) => self.v6.entry(network).or_default(),
            };
            if let Err(at) = nodes.binary_search(&node.name) {
                nodes.insert(at, node.name.clone());
            }
        }
    }

    /// Removes the networks of a node, as it was when they were added.
    pub fn remove(&mut self, node: &Node) {
        for network in &node.pod_networks {
            match network.trunc() {
                IpNet::V4(network) => {
                    if let Some(nodes) = self.v4.get_mut(&network)
                        && is_last(nodes, &node.name)
                    {
                        self.v4.remove(&network);
                    }
                }
                IpNet::V6(network) => {
                    if let Some(nodes) = self.v6.get_mut(&network)
                        && is_last(nodes, &node.name)
                    {
                        self.v6.remove(&network);
                    }
                }
            }
        }
    }

    /// The node with the smallest network that holds the address.
    pub fn node(&self, ip: IpAddr) -> Option<&Arc<str>> {
        let nodes = match ip.to_canonical() {
            IpAddr::V4(ip) => self.v4.get_lpm(&ip.into()).map(|(_, nodes)| nodes),
            IpAddr::V6(ip) => self.v6.get_lpm(&ip.into()).map(|(_, nodes)| nodes),
        };
        nodes?.first()
    }
}

/// Takes a name out and tells whether none is left.
fn is_last(nodes: &mut Nodes, name: &Arc<str>) -> bool {
    nodes.retain(|it| it != name);
    nodes.is_empty()
}
