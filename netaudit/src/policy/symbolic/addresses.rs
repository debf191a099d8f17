//! Sets of addresses of both families.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

use super::intervals::{IntervalSet, Point};

/// A set of addresses. A v4-mapped IPv6 address is the IPv4 one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct AddressSet {
    /// Of IPv4.
    pub v4: IntervalSet<u32>,
    /// Of IPv6.
    pub v6: IntervalSet<u128>,
}

impl AddressSet {
    /// Every address.
    pub fn all() -> Self {
        Self { v4: IntervalSet::all(), v6: IntervalSet::all() }
    }

    /// The addresses of a network.
    pub fn network(net: IpNet) -> Self {
        match net {
            IpNet::V4(net) => Self {
                v4: IntervalSet::range(net.network().into(), net.broadcast().into()),
                v6: IntervalSet::default(),
            },
            IpNet::V6(net) => Self {
                v4: IntervalSet::default(),
                v6: IntervalSet::range(net.network().into(), net.broadcast().into()),
            },
        }
    }

    /// Whether it holds this address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => self.v4.contains(ip.into()),
            IpAddr::V6(ip) => self.v6.contains(ip.into()),
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether it holds every address.
    pub fn is_all(&self) -> bool {
        self.v4.is_all() && self.v6.is_all()
    }

    /// The least address in it.
    pub fn first(&self) -> Option<IpAddr> {
        let v4 = self.v4.iter().next().map(|(first, _)| IpAddr::V4(first.into()));
        v4.or_else(|| self.v6.iter().next().map(|(first, _)| IpAddr::V6(first.into())))
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self { v4: self.v4.union(&other.v4), v6: self.v6.union(&other.v6) }
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self { v4: self.v4.intersection(&other.v4), v6: self.v6.intersection(&other.v6) }
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        Self { v4: self.v4.difference(&other.v4), v6: self.v6.difference(&other.v6) }
    }

    /// What is not in it.
    #[must_use]
    pub fn complement(&self) -> Self {
        Self { v4: self.v4.complement(), v6: self.v6.complement() }
    }

    /// Whether the other holds all of it.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.v4.is_subset(&other.v4) && self.v6.is_subset(&other.v6)
    }

    /// The networks that it consists of, as few as there can be, in order.
    pub fn networks(&self) -> Vec<IpNet> {
        v4_networks(&self.v4).map(IpNet::V4).chain(v6_networks(&self.v6).map(IpNet::V6)).collect()
    }

    /// For people: `any address`, or networks with those that are left out where that is shorter, a family each.
    pub fn words(&self) -> Vec<String> {
        if self.is_all() {
            return vec!["any address".to_owned()];
        }
        let v4 = |set: &IntervalSet<u32>| v4_networks(set).map(IpNet::V4).collect();
        let v6 = |set: &IntervalSet<u128>| v6_networks(set).map(IpNet::V6).collect();
        let mut words = family_words(&self.v4, v4, "any IPv4 address");
        words.extend(family_words(&self.v6, v6, "any IPv6 address"));
        words
    }
}

fn v4_networks(set: &IntervalSet<u32>) -> impl Iterator<Item = Ipv4Net> {
    set.iter().flat_map(|(first, last)| Ipv4Subnets::new(Ipv4Addr::from(first), Ipv4Addr::from(last), 0))
}

fn v6_networks(set: &IntervalSet<u128>) -> impl Iterator<Item = Ipv6Net> {
    set.iter().flat_map(|(first, last)| Ipv6Subnets::new(Ipv6Addr::from(first), Ipv6Addr::from(last), 0))
}

/// What is written as a network with exceptions was mostly declared so, and reads as it was written.
fn family_words<T: Point>(
    set: &IntervalSet<T>,
    networks: impl Fn(&IntervalSet<T>) -> Vec<IpNet>,
    all: &str,
) -> Vec<String> {
    if set.is_all() {
        return vec![all.to_owned()];
    }
    let texts = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
    let plain = networks(set);
    let (Some(first), Some(last)) = (plain.first(), plain.last()) else { return Vec::new() };
    if plain.len() <= 2 {
        return texts(&plain);
    }
    let mut cover = *first;
    while !cover.contains(last)
        && let Some(wider) = cover.supernet()
    {
        cover = wider;
    }
    // Networks are nested or apart, and none of these can hold the cover, which holds something of the set.
    let mut holes = networks(&set.complement());
    holes.retain(|hole| cover.contains(hole));
    if holes.len() + 1 < plain.len() {
        vec![format!("{cover} except {}", texts(&holes).join(", "))]
    } else {
        texts(&plain)
    }
}

/// The [words](AddressSet::words), with commas; `no address` for none.
impl fmt::Display for AddressSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() { f.write_str("no address") } else { f.write_str(&self.words().join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    const NETWORKS: [&str; 9] = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.3/32",
        "255.255.255.255/32",
        "::/0",
        "2001:db8::/32",
        "2001:db8::1/128",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
    ];

    fn network(text: &str) -> AddressSet {
        AddressSet::network(text.parse().unwrap())
    }

    fn sets() -> impl Strategy<Value = AddressSet> {
        vec((select(&NETWORKS[..]), any::<bool>()), 0..5).prop_map(|parts| {
            parts.into_iter().fold(AddressSet::default(), |all, (text, add)| {
                if add { all.union(&network(text)) } else { all.difference(&network(text)) }
            })
        })
    }

    /// Both sides of every edge that a set of these networks can have.
    fn points() -> Vec<IpAddr> {
        let mut points = Vec::new();
        for text in NETWORKS {
            let set = network(text);
            let near_v4 = |at: u32| [Some(at), at.checked_sub(1), at.checked_add(1)];
            let near_v6 = |at: u128| [Some(at), at.checked_sub(1), at.checked_add(1)];
            let v4 = set.v4.iter().flat_map(|(a, b)| [near_v4(a), near_v4(b)]).flatten().flatten();
            let v6 = set.v6.iter().flat_map(|(a, b)| [near_v6(a), near_v6(b)]).flatten().flatten();
            points.extend(v4.map(|it| IpAddr::V4(it.into())));
            points.extend(v6.map(|it| IpAddr::V6(it.into())));
        }
        points
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_algebra_holds_at_every_edge(a in sets(), b in sets()) {
            let mut subset = true;
            for ip in points() {
                // A v4-mapped address is the v4 one, so it is no point of IPv6.
                if ip != ip.to_canonical() {
                    continue;
                }
                let (in_a, in_b) = (a.contains(ip), b.contains(ip));
                prop_assert_eq!(a.union(&b).contains(ip), in_a || in_b);
                prop_assert_eq!(a.intersection(&b).contains(ip), in_a && in_b);
                prop_assert_eq!(a.difference(&b).contains(ip), in_a && !in_b);
                prop_assert_eq!(a.complement().contains(ip), !in_a);
                subset &= in_b || !in_a;
            }
            prop_assert_eq!(a.is_subset(&b), subset);
        }

        #[test]
        fn networks_are_the_set(a in sets()) {
            let again = a.networks().into_iter().fold(AddressSet::default(), |all, it| all.union(&AddressSet::network(it)));
            prop_assert_eq!(again, a);
        }
    }

    #[test]
    fn ranges_in_words() {
        let public = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
            .iter()
            .fold(network("0.0.0.0/0"), |set, hole| set.difference(&network(hole)));
        assert_eq!(public.to_string(), "0.0.0.0/0 except 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16");
        assert_eq!(AddressSet::all().to_string(), "any address");
        assert_eq!(network("::/0").to_string(), "any IPv6 address");
        assert_eq!(
            network("10.0.0.0/8").union(&network("2001:db8::/32")).to_string(),
            "10.0.0.0/8, 2001:db8::/32"
        );
        assert_eq!(
            network("10.0.0.0/8").difference(&network("10.1.0.0/16")).to_string(),
            "10.0.0.0/8 except 10.1.0.0/16"
        );
        assert_eq!(AddressSet::default().to_string(), "no address");
    }
}
