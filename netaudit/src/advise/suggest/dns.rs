//! Whom pods ask for names.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    traffic::{Address, Port, Ports, Side, Traffic},
    units::{Unit, Units},
};
use crate::{cluster::Service, model::Protocol};

/// The port of DNS, before any translation.
pub const PORT: u16 = 53;

/// Both protocols: what does not fit into a datagram is asked for again over TCP.
const BOTH: [Protocol; 2] = [Protocol::Udp, Protocol::Tcp];

/// Where DNS servers are.
#[derive(Default, Debug)]
pub struct Dns {
    /// Units that a Service leads to on its port 53, with the port of the pods.
    targets: BTreeSet<(Unit, u16)>,
}

/// Servers to allow.
#[derive(Clone, Default, Debug)]
pub struct Servers {
    /// Pods.
    pub pods: BTreeMap<Unit, BTreeSet<u16>>,
    /// Others.
    pub addresses: BTreeMap<IpAddr, (Option<Arc<str>>, BTreeSet<u16>)>,
}

impl Servers {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.addresses.is_empty()
    }
}

impl Dns {
    /// By all Services that there were.
    pub fn new<'a>(services: impl IntoIterator<Item = &'a Service>, units: &Units) -> Self {
        let mut targets = BTreeSet::new();
        for service in services {
            for port in service.ports.iter().filter(|port| port.port == PORT) {
                for unit in units.of_namespace(&service.namespace) {
                    let states = units.states(unit).filter(|(labels, _)| service.selects(labels));
                    let ports = states.filter_map(|(_, named)| port.target_on(named));
                    targets.extend(ports.map(|target| (unit.clone(), target)));
                }
            }
        }
        Self { targets }
    }

    /// Whether a unit's pods answer for names at this port.
    pub fn is_of(&self, unit: &Unit, port: Port) -> bool {
        port.1 == PORT || self.targets.contains(&(unit.clone(), port.1))
    }

    /// Adds the other protocol to whatever is DNS. Returns the servers.
    pub fn complete(&self, side: &mut Side) -> Servers {
        let mut servers = Servers::default();
        for (unit, ports) in &mut side.pods {
            let found = complete(ports, |port| self.is_of(unit, port));
            if !found.is_empty() {
                servers.pods.insert(unit.clone(), found);
            }
        }
        for (ip, address) in &mut side.addresses {
            let found = complete(&mut address.ports, |port| port.1 == PORT);
            if !found.is_empty() {
                servers.addresses.insert(*ip, (address.node.clone(), found));
            }
        }
        servers
    }

    /// Adds the other protocol to what a DNS server receives.
    pub fn complete_own(&self, members: &[Unit], side: &mut Side) {
        let is_dns = |port: Port| members.iter().any(|unit| self.targets.contains(&(unit.clone(), port.1)));
        side.pods.values_mut().for_each(|ports| drop(complete(ports, is_dns)));
        side.addresses.values_mut().for_each(|address| drop(complete(&mut address.ports, is_dns)));
    }

    /// Servers for a unit of a namespace that was not seen to ask, and how they are known: those that others of the namespace asked, or
    /// anybody did; else those of kube-system's Services. None where there are none either.
    pub fn instead(&self, traffic: &Traffic, namespace: &str) -> (Servers, &'static str) {
        for (is_in, why) in [
            (true, "others of this namespace ask it, these pods were not seen to"),
            (false, "others ask it, these pods were not seen to"),
        ] {
            let mut all = Servers::default();
            for (unit, side) in traffic.egress().filter(|(unit, _)| !is_in || *unit.namespace == *namespace) {
                let servers = self.complete(&mut side.clone());
                // A server that asks others is none to follow.
                if !self.targets.iter().any(|(server, _)| server == unit) {
                    for (unit, ports) in servers.pods {
                        all.pods.entry(unit).or_default().extend(ports);
                    }
                    for (ip, (node, ports)) in servers.addresses {
                        all.addresses.entry(ip).or_insert_with(|| (node, BTreeSet::new())).1.extend(ports);
                    }
                }
            }
            // A server outside that somebody asks is not everybody's, where the cluster has its own.
            if !all.pods.is_empty() {
                all.addresses.retain(|ip, (node, _)| node.is_some() || is_link_local(*ip));
            }
            if !all.is_empty() {
                return (all, why);
            }
        }
        let mut all = Servers::default();
        for (unit, port) in self.targets.iter().filter(|(unit, _)| *unit.namespace == *"kube-system") {
            all.pods.entry(unit.clone()).or_default().insert(*port);
        }
        (all, "ASSUMED: nobody was seen to ask, and a Service of kube-system leads there")
    }
}

/// As node-local caches have them.
fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn complete(ports: &mut Ports, is_dns: impl Fn(Port) -> bool) -> BTreeSet<u16> {
    let found: BTreeSet<u16> = ports.keys().filter(|port| is_dns(**port)).map(|(_, port)| *port).collect();
    for port in &found {
        for protocol in BOTH {
            ports.entry((protocol, *port)).or_default();
        }
    }
    found
}

/// Both protocols of these ports, of which no flow was seen.
pub fn unseen(ports: &BTreeSet<u16>) -> Ports {
    let both = ports.iter().flat_map(|port| BOTH.map(|protocol| (protocol, *port)));
    both.map(|port| (port, Default::default())).collect()
}

/// Adds servers that were not seen to be asked.
pub fn add_unseen(side: &mut Side, servers: &Servers) {
    for (unit, ports) in &servers.pods {
        side.pods.entry(unit.clone()).or_default().extend(unseen(ports));
    }
    for (ip, (node, ports)) in &servers.addresses {
        let address = Address { node: node.clone(), ports: unseen(ports) };
        side.addresses.entry(*ip).or_insert(address);
    }
}
