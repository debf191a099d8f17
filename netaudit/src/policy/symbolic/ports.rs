//! Sets of ports of every protocol.

use std::{fmt, sync::Arc};

use foldhash::HashSet;

use super::intervals::IntervalSet;
use crate::model::Protocol;

/// The protocols that policies can name, in the order of their numbers here.
pub const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// A set of (protocol, port).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct PortSet([IntervalSet<u16>; 3]);

impl PortSet {
    /// Every port of every protocol.
    pub fn all() -> Self {
        Self([(); 3].map(|()| IntervalSet::all()))
    }

    /// From the first to the last port of a protocol, both included; of every protocol where none is named.
    pub fn range(protocol: Option<Protocol>, first: u16, last: u16) -> Self {
        let named = |it: Protocol| protocol.is_none_or(|protocol| protocol == it);
        Self(
            PROTOCOLS
                .map(|it| if named(it) { IntervalSet::range(first, last) } else { IntervalSet::default() }),
        )
    }

    /// The ports of one protocol.
    pub fn of(&self, protocol: Protocol) -> &IntervalSet<u16> {
        &self.0[protocol as usize]
    }

    /// Its intervals, in order of protocol and port.
    pub fn iter(&self) -> impl Iterator<Item = (Protocol, u16, u16)> {
        PROTOCOLS.into_iter().flat_map(|it| self.of(it).iter().map(move |(first, last)| (it, first, last)))
    }

    /// Whether it holds this port.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.of(protocol).contains(port)
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(IntervalSet::is_empty)
    }

    /// Whether it holds every port of every protocol.
    pub fn is_all(&self) -> bool {
        self.0.iter().all(IntervalSet::is_all)
    }

    fn each(
        &self,
        other: &Self,
        f: impl Fn(&IntervalSet<u16>, &IntervalSet<u16>) -> IntervalSet<u16>,
    ) -> Self {
        Self([0, 1, 2].map(|it| f(&self.0[it], &other.0[it])))
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.each(other, IntervalSet::union)
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.each(other, IntervalSet::intersection)
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.each(other, IntervalSet::difference)
    }

    /// What is not in it.
    #[must_use]
    pub fn complement(&self) -> Self {
        Self([0, 1, 2].map(|it| self.0[it].complement()))
    }

    /// Whether the other holds all of it.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(mine, theirs)| mine.is_subset(theirs))
    }
}

/// Of a protocol, or of every one where none is named, from a first to a last port.
impl FromIterator<(Option<Protocol>, u16, u16)> for PortSet {
    fn from_iter<I: IntoIterator<Item = (Option<Protocol>, u16, u16)>>(ranges: I) -> Self {
        // One at a time, the set would be sorted for each of them.
        let mut all = [const { Vec::new() }; 3];
        for (protocol, first, last) in ranges {
            for it in PROTOCOLS.into_iter().filter(|it| protocol.is_none_or(|protocol| protocol == *it)) {
                all[it as usize].push((first, last));
            }
        }
        Self(all.map(|ranges| ranges.into_iter().collect()))
    }
}

/// What is in any of them.
impl<'a> FromIterator<&'a PortSet> for PortSet {
    fn from_iter<I: IntoIterator<Item = &'a Self>>(sets: I) -> Self {
        let ranges = sets.into_iter().flat_map(Self::iter);
        ranges.map(|(protocol, first, last)| (Some(protocol), first, last)).collect()
    }
}

/// `any port`, `no port`, `TCP 443, 8000-8010; any UDP port`.
impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_all() {
            return f.write_str("any port");
        }
        if self.is_empty() {
            return f.write_str("no port");
        }
        let mut before = "";
        for protocol in PROTOCOLS.into_iter().filter(|it| !self.of(*it).is_empty()) {
            f.write_str(before)?;
            before = "; ";
            if self.of(protocol).is_all() {
                write!(f, "any {protocol} port")?;
                continue;
            }
            write!(f, "{protocol} ")?;
            for (n, (first, last)) in self.of(protocol).iter().enumerate() {
                f.write_str(if n == 0 { "" } else { ", " })?;
                if first == last { write!(f, "{first}")? } else { write!(f, "{first}-{last}")? }
            }
        }
        Ok(())
    }
}

/// Keeps one of all sets that are equal, so that what is done with a pair of them need be done only once.
#[derive(Default)]
pub(super) struct Interned(HashSet<Arc<PortSet>>);

impl Interned {
    /// The one that is kept.
    pub fn of(&mut self, ports: PortSet) -> Arc<PortSet> {
        if let Some(known) = self.0.get(&ports) {
            return known.clone();
        }
        let ports = Arc::new(ports);
        self.0.insert(ports.clone());
        ports
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    fn sets() -> impl Strategy<Value = PortSet> {
        let protocol = select(&[None, Some(Protocol::Tcp), Some(Protocol::Udp), Some(Protocol::Sctp)][..]);
        let edge = prop_oneof![Just(1), Just(u16::MAX), 1..=u16::MAX, 79..=82u16];
        let one = (protocol, edge.clone(), edge).prop_map(|(protocol, a, b)| PortSet::range(protocol, a, b));
        vec(one, 0..4).prop_map(|it| it.iter().fold(PortSet::default(), |all, it| all.union(it)))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_algebra_holds_at_every_port(a in sets(), b in sets()) {
            let (or, and, minus, not) = (a.union(&b), a.intersection(&b), a.difference(&b), a.complement());
            let mut subset = true;
            for protocol in PROTOCOLS {
                for port in 1..=u16::MAX {
                    let (in_a, in_b) = (a.contains(protocol, port), b.contains(protocol, port));
                    assert_eq!(or.contains(protocol, port), in_a || in_b);
                    assert_eq!(and.contains(protocol, port), in_a && in_b);
                    assert_eq!(minus.contains(protocol, port), in_a && !in_b);
                    assert_eq!(not.contains(protocol, port), !in_a);
                    subset &= in_b || !in_a;
                }
            }
            prop_assert_eq!(a.is_subset(&b), subset);
            prop_assert_eq!([&a, &b].into_iter().collect::<PortSet>(), a.union(&b));
        }
    }

    #[test]
    fn ports_in_words() {
        let tcp = |first, last| PortSet::range(Some(Protocol::Tcp), first, last);
        let udp = PortSet::range(Some(Protocol::Udp), 1, u16::MAX);
        assert_eq!(PortSet::all().to_string(), "any port");
        assert_eq!(PortSet::default().to_string(), "no port");
        assert_eq!(
            tcp(443, 443).union(&tcp(8000, 8010)).union(&udp).to_string(),
            "TCP 443, 8000-8010; any UDP port"
        );
    }
}
