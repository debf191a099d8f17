//! Addresses outside, as few ranges.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A range, and which of its addresses were seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// The range; a single address where it is one.
    pub net: IpNet,
    /// Those that were seen.
    pub holds: Vec<IpAddr>,
}

/// No range is wider than this: beyond it, addresses say nothing of each other.
const WIDEST_V4: u8 = 16;
const WIDEST_V6: u8 = 32;

/// The smallest range that holds the address and has this prefix.
fn around(ip: IpAddr, prefix: u8) -> Option<IpNet> {
    match ip {
        IpAddr::V4(ip) => Ipv4Net::new(ip, prefix).ok().map(|net| IpNet::V4(net.trunc())),
        IpAddr::V6(ip) => Ipv6Net::new(ip, prefix).ok().map(|net| IpNet::V6(net.trunc())),
    }
}

/// Addresses as ranges, in order: each as itself where there are no more than `most` of its family; else neighbours are put together,
/// the closest first, until there are `most`, and never so that a range holds one of `others`.
pub fn merge(addresses: &BTreeSet<IpAddr>, most: usize, others: &BTreeSet<IpAddr>) -> Vec<Range> {
    let mut all = Vec::new();
    for (is_v4, full, widest) in [(true, 32, WIDEST_V4), (false, 128, WIDEST_V6)] {
        let own = addresses.iter().filter(|ip| ip.is_ipv4() == is_v4);
        let single = |ip: &IpAddr| Some(Range { net: around(*ip, full)?, holds: vec![*ip] });
        let mut ranges: Vec<Range> = own.filter_map(single).collect();
        let mut prefix = full;
        while ranges.len() > most && prefix > widest {
            prefix -= 1;
            ranges = merge_at(ranges, prefix, most, others);
        }
        all.extend(ranges);
    }
    all
}

/// Puts together what is in one range of this prefix, from the front on, while there are too many.
fn merge_at(ranges: Vec<Range>, prefix: u8, most: usize, others: &BTreeSet<IpAddr>) -> Vec<Range> {
    let mut left = ranges.len();
    let mut merged: Vec<Range> = Vec::with_capacity(left);
    for range in ranges {
        let wide = around(range.net.network(), prefix);
        if left > most
            && let (Some(wide), Some(last)) = (wide, merged.last_mut())
            && wide.contains(&last.net)
            && others.range(wide.network()..=wide.broadcast()).next().is_none()
        {
            last.net = wide;
            last.holds.extend(range.holds);
            left -= 1;
            continue;
        }
        merged.push(range);
    }
    merged
}

/// How many addresses a range has, in words.
pub fn size(net: &IpNet) -> String {
    match net.max_prefix_len() - net.prefix_len() {
        bits @ 0..=63 => (1_u64 << bits).to_string(),
        bits => format!("2^{bits}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|it| it.parse().unwrap()).collect()
    }

    fn merged(addresses: &[&str], most: usize, others: &[&str]) -> Vec<String> {
        let ranges = merge(&set(addresses), most, &set(others));
        ranges.iter().map(|it| format!("{} {}", it.net, it.holds.len())).collect()
    }

    #[test]
    fn few_stay_single_and_many_become_the_narrowest_ranges() {
        let few = ["203.0.113.9", "2001:db8::1"];
        assert_eq!(merged(&few, 1, &[]), ["203.0.113.9/32 1", "2001:db8::1/128 1"], "each family by itself");
        let many = ["203.0.113.8", "203.0.113.9", "203.0.113.12", "198.51.100.1"];
        assert_eq!(merged(&many, 3, &[]), ["198.51.100.1/32 1", "203.0.113.8/31 2", "203.0.113.12/32 1"]);
        assert_eq!(merged(&many, 2, &[]), ["198.51.100.1/32 1", "203.0.113.8/29 3"]);
        assert_eq!(merged(&many, 1, &[]), ["198.51.100.1/32 1", "203.0.113.8/29 3"], "never wider than /16");
        assert_eq!(merged(&["2001:db8::1", "2001:db8::ff"], 1, &[]), ["2001:db8::/120 2"]);
    }

    #[test]
    fn no_range_holds_what_is_of_somebody_else() {
        let own = ["10.0.0.8", "10.0.0.10"];
        assert_eq!(merged(&own, 1, &[]), ["10.0.0.8/30 2"]);
        assert_eq!(merged(&own, 1, &["10.0.0.9"]), ["10.0.0.8/32 1", "10.0.0.10/32 1"]);
        assert_eq!(size(&"10.0.0.8/30".parse().unwrap()), "4");
        assert_eq!(size(&"2001:db8::/32".parse().unwrap()), "2^96");
    }
}
