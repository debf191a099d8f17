//! What each unit of the chosen namespaces was seen to send and to receive.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::units::{Unit, Units};
use crate::{
    advise::what_if::{Class, End},
    model::{Direction, Protocol, Timestamp},
};

/// Flows of a class that count.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// Which.
    pub class: &'a Class,
    /// How many.
    pub flows: u64,
    /// When the first began.
    pub first: Timestamp,
    /// When the last did.
    pub last: Timestamp,
    /// Whether nothing proves that they arrived: datagrams without an answer.
    pub is_sent: bool,
    /// Of flows to a Service of which it is not known where they went: all ends behind it, with the target port of each.
    pub behind: Vec<(End, u16)>,
}

/// A port that policies speak of.
pub type Port = (Protocol, u16);

/// How many flows, and when.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Count {
    by_source: u64,
    by_destination: u64,
    /// When the first began.
    pub first: Timestamp,
    /// When the last did.
    pub last: Timestamp,
    /// Whether at least one is proven to have arrived.
    pub arrived: bool,
}

impl Default for Count {
    fn default() -> Self {
        Self { by_source: 0, by_destination: 0, first: Timestamp::MAX, last: Timestamp::MIN, arrived: false }
    }
}

impl Count {
    fn add(&mut self, seen: &Seen<'_>) {
        match seen.class.direction {
            Direction::Egress => self.by_source += seen.flows,
            Direction::Ingress => self.by_destination += seen.flows,
        }
        self.first = self.first.min(seen.first);
        self.last = self.last.max(seen.last);
        self.arrived |= !seen.is_sent;
    }

    /// These and others.
    pub fn join(&mut self, other: &Self) {
        self.by_source += other.by_source;
        self.by_destination += other.by_destination;
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.arrived |= other.arrived;
    }

    /// How many: what the end told that told more, as both tell of one connection.
    pub fn flows(&self) -> u64 {
        self.by_source.max(self.by_destination)
    }
}

/// How many flows there were to each port.
pub type Ports = BTreeMap<Port, Count>;

/// An address that no label selects.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Address {
    /// The node that has it.
    pub node: Option<Arc<str>>,
    /// What was asked of it, or what it asked for.
    pub ports: Ports,
}

impl Address {
    /// Of two that had it at different times the first by name, whatever was read first.
    pub fn belongs_to(&mut self, node: Option<&Arc<str>>) {
        if let Some(node) = node
            && self.node.as_ref().is_none_or(|known| node < known)
        {
            self.node = Some(node.clone());
        }
    }
}

/// What a unit's pods sent, or received.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Side {
    /// Pods at the other end.
    pub pods: BTreeMap<Unit, Ports>,
    /// Other addresses at the other end.
    pub addresses: BTreeMap<IpAddr, Address>,
    /// The pods' own nodes: no policy can keep them apart.
    pub own_nodes: BTreeMap<IpAddr, Address>,
    /// Who asked is not known, or at which port: a translation hid it.
    pub hidden: Ports,
    /// Through a port on the nodes, so that a node's address may stand for anybody.
    pub through_nodes: Ports,
    /// Pods at the other end that no history tells of.
    pub unknown_pods: BTreeSet<String>,
}

impl Side {
    /// Whether no rule follows from it.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.addresses.is_empty()
    }

    /// Whether nothing at all was seen.
    pub fn is_unseen(&self) -> bool {
        self.is_empty() && self.own_nodes.is_empty() && self.hidden.is_empty() && self.unknown_pods.is_empty()
    }

    /// What another unit sent or received beside it.
    pub fn join(&mut self, other: &Self) {
        for (unit, ports) in &other.pods {
            join(self.pods.entry(unit.clone()).or_default(), ports);
        }
        for (own, others) in
            [(&mut self.addresses, &other.addresses), (&mut self.own_nodes, &other.own_nodes)]
        {
            for (ip, address) in others {
                let known = own.entry(*ip).or_default();
                known.belongs_to(address.node.as_ref());
                join(&mut known.ports, &address.ports);
            }
        }
        join(&mut self.hidden, &other.hidden);
        join(&mut self.through_nodes, &other.through_nodes);
        self.unknown_pods.extend(other.unknown_pods.iter().cloned());
    }

    fn add_address(&mut self, ip: IpAddr, node: Option<&Arc<str>>, port: Port, seen: &Seen<'_>) {
        let address = self.addresses.entry(ip).or_default();
        address.belongs_to(node);
        address.ports.entry(port).or_default().add(seen);
    }
}

/// Adds up what was counted for each port.
pub fn join(ports: &mut Ports, others: &Ports) {
    for (port, count) in others {
        ports.entry(*port).or_default().join(count);
    }
}

/// What all units of the chosen namespaces sent and received.
#[derive(Default, Debug)]
pub struct Traffic {
    sides: BTreeMap<Unit, [Side; 2]>,
}

impl Traffic {
    /// Of all flows that count. `through_nodes` are ports that a Service leads to from a port on every node.
    pub fn of(
        seen: &[Seen<'_>],
        units: &Units,
        namespaces: &BTreeSet<Arc<str>>,
        through_nodes: &BTreeSet<(Unit, Port)>,
    ) -> Self {
        let mut traffic = Self::default();
        for seen in seen {
            let class = seen.class;
            if class.hidden.is_some() {
                traffic.add_hidden(seen, units, namespaces);
                continue;
            }
            let behind = seen.behind.iter().map(|(end, port)| (end, *port));
            let known = (!matches!(class.destination(), End::Service { .. }))
                .then_some((class.destination(), class.port));
            // Where a flow went is one of several ports, or pods: it is counted once.
            let mut counted = BTreeSet::new();
            let again = Seen { flows: 0, behind: Vec::new(), ..seen.clone() };
            for (destination, port) in known.into_iter().chain(behind) {
                let (source, port) = (class.source(), (class.protocol, port));
                if is_same_pod(source, destination) {
                    continue;
                }
                for (direction, own, peer) in
                    [(Direction::Egress, source, destination), (Direction::Ingress, destination, source)]
                {
                    if let Some(unit) = units.of(own).filter(|unit| namespaces.contains(&unit.namespace)) {
                        let side = &mut traffic.sides.entry(unit.clone()).or_default()[direction as usize];
                        let hides =
                            direction == Direction::Ingress && through_nodes.contains(&(unit.clone(), port));
                        let is_new = counted.insert((unit, direction, units.of(peer)));
                        side.add(if is_new { seen } else { &again }, units, (own, peer), port, hides);
                    }
                }
            }
        }
        traffic
    }

    fn add_hidden(&mut self, seen: &Seen<'_>, units: &Units, namespaces: &BTreeSet<Arc<str>>) {
        let Some(unit) = units.of(&seen.class.subject).filter(|it| namespaces.contains(&it.namespace)) else {
            return;
        };
        let side = &mut self.sides.entry(unit.clone()).or_default()[seen.class.direction as usize];
        side.hidden.entry((seen.class.protocol, seen.class.port)).or_default().add(seen);
    }

    /// What a unit sent and received, by [`Direction`].
    pub fn of_unit(&self, unit: &Unit) -> Option<&[Side; 2]> {
        self.sides.get(unit)
    }

    /// What all of these did.
    pub fn of_units(&self, units: &[Unit]) -> [Side; 2] {
        let mut all: [Side; 2] = Default::default();
        for sides in units.iter().filter_map(|unit| self.sides.get(unit)) {
            all.iter_mut().zip(sides).for_each(|(own, other)| own.join(other));
        }
        all
    }

    /// All units that sent something, with what.
    pub fn egress(&self) -> impl Iterator<Item = (&Unit, &Side)> {
        self.sides.iter().map(|(unit, sides)| (unit, &sides[Direction::Egress as usize]))
    }
}

fn is_same_pod(one: &End, other: &End) -> bool {
    match (one, other) {
        (_, End::Loopback) | (End::Loopback, _) => true,
        (
            End::Pod { namespace, name, uid, .. },
            End::Pod { namespace: other_namespace, name: other_name, uid: other_uid, .. },
        ) => (namespace, name, uid) == (other_namespace, other_name, other_uid),
        _ => false,
    }
}

impl Side {
    fn add(&mut self, seen: &Seen<'_>, units: &Units, (own, peer): (&End, &End), port: Port, may_hide: bool) {
        match peer {
            End::Pod { namespace, name, .. } => match units.of(peer) {
                Some(unit) => {
                    self.pods.entry(unit.clone()).or_default().entry(port).or_default().add(seen);
                }
                None => drop(self.unknown_pods.insert(format!("{namespace}/{name}"))),
            },
            End::Node { name, ip: Some(ip) } => {
                let own_node = match own {
                    End::Pod { node, .. } => node,
                    _ => name,
                };
                let is_own = own_node == name && !name.is_empty();
                let node = (!name.is_empty()).then_some(name);
                if is_own {
                    let address = self.own_nodes.entry(*ip).or_default();
                    address.belongs_to(node);
                    address.ports.entry(port).or_default().add(seen);
                }
                // A DNS cache on the node: not every CNI takes its address for the node's.
                if !is_own || seen.class.direction == Direction::Egress && port.1 == super::dns::PORT {
                    self.add_address(*ip, node, port, seen);
                }
                if !is_own && may_hide {
                    self.through_nodes.entry(port).or_default().add(seen);
                }
            }
            End::Node { name, ip: None } => drop(self.unknown_pods.insert(format!("node {name}"))),
            End::External { ip, .. } => self.add_address(*ip, None, port, seen),
            End::Service { .. } | End::Loopback => {}
        }
    }
}
