//! Which node's pods an address is to be expected among.

use std::{net::IpAddr, sync::Arc};

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
}

impl PodNetworks {
    /// Adds the networks of a node.
    pub fn add(&mut self, node: &Node) {
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
