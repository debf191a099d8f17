//! Sets of (address outside, protocol, port).

use std::{collections::BTreeMap, net::IpAddr};

use super::{addresses::AddressSet, ports::PortSet};
use crate::model::Protocol;

/// For every address outside a set of ports. One set is one value.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct ExternalSet(
    /// Apart from each other, of different ports each, in order of these; what is left out has no port.
    Vec<(AddressSet, PortSet)>,
);

impl ExternalSet {
    /// Addresses that have the same ports, each with these; no two with equal ports, all apart, none without ports.
    pub fn iter(&self) -> impl Iterator<Item = (&AddressSet, &PortSet)> {
        self.0.iter().map(|(addresses, ports)| (addresses, ports))
    }

    /// The ports of an address; `None` for none.
    pub fn at(&self, ip: IpAddr) -> Option<&PortSet> {
        self.0.iter().find(|(addresses, _)| addresses.contains(ip)).map(|(_, ports)| ports)
    }

    /// Whether it holds this.
    pub fn contains(&self, ip: IpAddr, protocol: Protocol, port: u16) -> bool {
        self.at(ip).is_some_and(|ports| ports.contains(protocol, port))
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, PortSet::difference)
    }

    /// The set that has for each address `f` of what both have for it. `f` of nothing and nothing must be nothing.
    pub(super) fn combine(&self, other: &Self, f: impl Fn(&PortSet, &PortSet) -> PortSet) -> Self {
        let none = PortSet::default();
        let mut parts = Vec::new();
        for (mine, a) in &self.0 {
            let mut alone = mine.clone();
            for (theirs, b) in &other.0 {
                let both = mine.intersection(theirs);
                if !both.is_empty() {
                    alone = alone.difference(&both);
                    parts.push((both, f(a, b)));
                }
            }
            if !alone.is_empty() {
                parts.push((alone, f(a, &none)));
            }
        }
        for (theirs, b) in &other.0 {
            let alone = self.0.iter().fold(theirs.clone(), |rest, (mine, _)| rest.difference(mine));
            if !alone.is_empty() {
                parts.push((alone, f(&none, b)));
            }
        }
        parts.into_iter().collect()
    }

    /// Whether the other holds all of it.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.difference(other).is_empty()
    }
}

/// The addresses of two parts must be apart.
impl FromIterator<(AddressSet, PortSet)> for ExternalSet {
    fn from_iter<I: IntoIterator<Item = (AddressSet, PortSet)>>(parts: I) -> Self {
        let mut by_ports: BTreeMap<PortSet, AddressSet> = BTreeMap::new();
        for (addresses, ports) in parts {
            if !ports.is_empty() && !addresses.is_empty() {
                let known = by_ports.entry(ports).or_default();
                *known = known.union(&addresses);
            }
        }
        Self(by_ports.into_iter().map(|(ports, addresses)| (addresses, ports)).collect())
    }
}
