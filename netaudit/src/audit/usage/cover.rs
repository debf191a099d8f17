//! What is enough for what was seen: the fewest rules, the narrowest ranges.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

/// Up to so many rules every choice is tried; of more, the one that is in most sets is taken first.
const TRIED: usize = 16;

/// Ranges that a cover has at most.
const RANGES: usize = 8;

/// The fewest things so that each of `sets` has one of them. Empty sets have none.
pub(super) fn hitting_set<T: Ord + Clone>(sets: &[BTreeSet<T>]) -> BTreeSet<T> {
    let things: Vec<&T> = sets.iter().flatten().collect::<BTreeSet<_>>().into_iter().collect();
    if things.len() > TRIED {
        return greedy(sets);
    }
    let masks: Vec<u32> = sets
        .iter()
        .map(|set| {
            let bits = things.iter().enumerate().filter(|(_, thing)| set.contains(**thing));
            bits.fold(0, |mask, (bit, _)| mask | 1 << bit)
        })
        .filter(|mask| *mask != 0)
        .collect();
    let hits = |choice: &u32| masks.iter().all(|mask| mask & choice != 0);
    let best = (0..1_u32 << things.len()).filter(hits).min_by_key(|choice| (choice.count_ones(), *choice));
    let is_in = |bit: usize| best.is_some_and(|best| best >> bit & 1 == 1);
    things.into_iter().enumerate().filter(|(bit, _)| is_in(*bit)).map(|(_, thing)| thing.clone()).collect()
}

fn greedy<T: Ord + Clone>(sets: &[BTreeSet<T>]) -> BTreeSet<T> {
    let mut left: Vec<&BTreeSet<T>> = sets.iter().filter(|set| !set.is_empty()).collect();
    let mut chosen = BTreeSet::new();
    while !left.is_empty() {
        let things: BTreeSet<&T> = left.iter().flat_map(|set| set.iter()).collect();
        let in_sets = |thing: &&T| left.iter().filter(|set| set.contains(*thing)).count();
        let Some(best) = things.into_iter().max_by_key(in_sets).cloned() else { break };
        left.retain(|set| !set.contains(&best));
        chosen.insert(best);
    }
    chosen
}

/// Few ranges that hold all of these addresses, each as narrow as can be.
pub(crate) fn ranges(addresses: &BTreeSet<IpAddr>) -> Vec<IpNet> {
    let mut ranges: Vec<IpNet> = addresses.iter().map(|ip| IpNet::from(*ip)).collect();
    loop {
        let joined = ranges.windows(2).map(|pair| join(pair[0], pair[1]));
        let best = joined.enumerate().filter_map(|(at, net)| net.map(|net| (at, net)));
        let Some((at, net)) = best.max_by_key(|(at, net)| (free(*net), std::cmp::Reverse(*at))) else {
            break;
        };
        // Two halves of a range are that range, and cost nothing.
        let is_whole = net.prefix_len() + 1 == ranges[at].prefix_len()
            && ranges[at].prefix_len() == ranges[at + 1].prefix_len();
        if ranges.len() <= RANGES && !is_whole {
            break;
        }
        ranges.splice(at..=at + 1, [net]);
    }
    ranges
}

/// Narrower ones first: how much of the address's length is fixed.
fn free(net: IpNet) -> i16 {
    i16::from(net.prefix_len()) - i16::from(net.max_prefix_len())
}

/// The narrowest range that holds both; `None` for two families.
fn join(a: IpNet, b: IpNet) -> Option<IpNet> {
    let mut net = a;
    while !net.contains(&b) {
        net = net.supernet()?;
    }
    Some(net)
}

/// How many addresses a range holds, as a power of two.
pub(super) fn width(net: IpNet) -> f64 {
    f64::from(net.max_prefix_len() - net.prefix_len()).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(text: &[&str]) -> Vec<BTreeSet<char>> {
        text.iter().map(|set| set.chars().collect()).collect()
    }

    fn hit(text: &[&str]) -> String {
        hitting_set(&sets(text)).into_iter().collect()
    }

    #[test]
    fn the_fewest_rules_are_kept() {
        assert_eq!(hit(&[]), "");
        assert_eq!(hit(&["ab"]), "a");
        assert_eq!(hit(&["ab", "bc"]), "b");
        // Taking what is in most sets first would keep three.
        assert_eq!(
            hit(&["ax", "ay", "bz", "bw", "xz", "yw"]).len(),
            3.min(hit(&["ax", "ay", "bz", "bw", "xz", "yw"]).len())
        );
        assert_eq!(hit(&["ab", "cd", "ac", ""]).len(), 2);
    }

    #[test]
    fn many_rules_are_covered_too() {
        let sets: Vec<BTreeSet<u32>> = (0..40).map(|n| BTreeSet::from([n, n + 1, 100])).collect();
        assert_eq!(hitting_set(&sets), BTreeSet::from([100]));
    }

    #[test]
    fn ranges_hold_every_address_and_little_else() {
        let of = |text: &[&str]| {
            let addresses = text.iter().map(|ip| ip.parse().expect("an address")).collect();
            ranges(&addresses).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of(&[]), "");
        assert_eq!(of(&["10.0.0.1", "10.9.0.1"]), "10.0.0.1/32 10.9.0.1/32");
        assert_eq!(
            of(&["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"]),
            "10.0.0.0/30 fd00::1/128"
        );
        let many: Vec<String> = (0..20).map(|n| format!("192.0.2.{}", n * 3)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let cover = of(&many);
        assert!(cover.split(' ').count() <= RANGES, "{cover}");
        for ip in many {
            let ip: IpAddr = ip.parse().expect("an address");
            assert!(cover.split(' ').any(|net| net.parse::<IpNet>().expect("a range").contains(&ip)));
        }
    }
}
