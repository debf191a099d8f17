//! Sets of (address outside, protocol, port).

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    addresses::AddressSet,
    intervals::{IntervalSet, Point},
    ports::PortSet,
};
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
        let mut met: BTreeMap<(Option<usize>, Option<usize>), Ranges> = BTreeMap::new();
        overlay(&self.ranges(|it| &it.v4), &other.ranges(|it| &it.v4), |both, range| {
            met.entry(both).or_default().v4.push(range);
        });
        overlay(&self.ranges(|it| &it.v6), &other.ranges(|it| &it.v6), |both, range| {
            met.entry(both).or_default().v6.push(range);
        });
        let ports = |set: &'_ Self, at: Option<usize>| at.map_or(none.clone(), |at| set.0[at].1.clone());
        let parts =
            met.into_iter().map(|((a, b), ranges)| (ranges.into(), f(&ports(self, a), &ports(other, b))));
        parts.collect()
    }

    /// Its ranges of one family in order, each with the part that it belongs to.
    fn ranges<T: Point>(&self, family: impl Fn(&AddressSet) -> &IntervalSet<T>) -> Vec<(T, T, usize)> {
        let parts = self.0.iter().enumerate();
        let ranges =
            parts.flat_map(|(at, (addresses, _))| family(addresses).iter().map(move |(a, b)| (a, b, at)));
        let mut ranges: Vec<_> = ranges.collect();
        ranges.sort_unstable();
        ranges
    }

    /// Whether the other holds all of it.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.difference(other).is_empty()
    }
}

/// The addresses of two parts must be apart.
impl FromIterator<(AddressSet, PortSet)> for ExternalSet {
    fn from_iter<I: IntoIterator<Item = (AddressSet, PortSet)>>(parts: I) -> Self {
        let mut by_ports: BTreeMap<PortSet, Ranges> = BTreeMap::new();
        for (addresses, ports) in parts {
            if !ports.is_empty() && !addresses.is_empty() {
                let known = by_ports.entry(ports).or_default();
                known.v4.extend(addresses.v4.iter());
                known.v6.extend(addresses.v6.iter());
            }
        }
        Self(by_ports.into_iter().map(|(ports, ranges)| (ranges.into(), ports)).collect())
    }
}

/// Addresses while they are gathered: a set that grows by one range at a time is sorted each time.
#[derive(Default)]
struct Ranges {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl From<Ranges> for AddressSet {
    fn from(ranges: Ranges) -> Self {
        Self { v4: ranges.v4.into_iter().collect(), v6: ranges.v6.into_iter().collect() }
    }
}

/// Goes over two lists of ranges that are in order and apart, and tells each range that either holds, with who holds it.
fn overlay<T: Point>(
    mine: &[(T, T, usize)],
    theirs: &[(T, T, usize)],
    mut add: impl FnMut((Option<usize>, Option<usize>), (T, T)),
) {
    let (mut mine, mut theirs) = (mine.iter().copied().peekable(), theirs.iter().copied().peekable());
    let mut next = Some(T::MIN);
    while let Some(first) = next {
        while mine.next_if(|(_, last, _)| *last < first).is_some() {}
        while theirs.next_if(|(_, last, _)| *last < first).is_some() {}
        // Who holds the first address, and until where nothing changes.
        let holder = |ahead: Option<&(T, T, usize)>| match ahead {
            Some((begin, end, at)) if *begin <= first => (Some(*at), *end),
            Some((begin, ..)) => (None, begin.before().unwrap_or(T::MAX)),
            None => (None, T::MAX),
        };
        let ((a, a_last), (b, b_last)) = (holder(mine.peek()), holder(theirs.peek()));
        let last = a_last.min(b_last);
        if a.is_some() || b.is_some() {
            add((a, b), (first, last));
        }
        next = last.after();
    }
}
