//! Each point of the sets is what the evaluator says of it; and the algebra of the sets is that of their points.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use netaudit::{
    cluster::{Cluster, Party, PodId},
    model::{Decision, Direction, Protocol, Verdict},
    policy::symbolic::{
        AddressSet, ConnectionSet, Connections, NodeEnd, Other, PROTOCOLS, PortSet, Universe,
    },
};
use proptest::prelude::*;

use super::worlds::{self, World};

const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// `PROPTEST_CASES` makes it longer.
fn config() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: usual.cases.div_ceil(4), failure_persistence: None, ..usual }
}

/// What both ends say, as the sets tell it: surely, possibly.
type Answer = (bool, bool);

fn answer(verdict: &Verdict) -> Answer {
    match verdict.decision {
        Decision::Allowed(_) => (true, true),
        Decision::Denied(_) => (false, false),
        Decision::Unknown(_) => (false, true),
    }
}

fn both(a: Answer, b: Answer) -> Answer {
    (a.0 && b.0, a.1 && b.1)
}

struct Ends {
    pods: Vec<PodId>,
    nodes: Vec<NodeEnd>,
    universe: Arc<Universe>,
}

fn universe(clusters: &[&Cluster]) -> Ends {
    let (pods, ends): (Vec<_>, Vec<_>) = clusters[0].pod_ends().into_iter().unzip();
    let nodes = clusters[0].node_ends();
    let rules: Vec<_> = clusters.iter().map(|it| it.rules().clone()).collect();
    Ends { universe: Arc::new(Universe::new(&rules, ends, nodes.clone())), pods, nodes }
}

/// Both sides of each end of a set's intervals, and some ports that have nothing to do with it.
fn ports(sets: &[&PortSet]) -> BTreeSet<(Protocol, u16)> {
    let mut ports: BTreeSet<_> =
        PROTOCOLS.iter().flat_map(|it| [1, 80, 443, 8080, 65535].map(|port| (*it, port))).collect();
    for (protocol, first, last) in sets.iter().flat_map(|it| it.iter()) {
        for port in [first - 1, first, last, last.saturating_add(1)] {
            ports.insert((protocol, port.max(1)));
        }
    }
    ports
}

/// Both sides of each end of a set's ranges.
fn edges(set: &AddressSet) -> impl Iterator<Item = IpAddr> {
    let v4 = set.v4.iter().flat_map(|(a, b)| [a.checked_sub(1), Some(a), Some(b), b.checked_add(1)]);
    let v6 = set.v6.iter().flat_map(|(a, b)| [a.checked_sub(1), Some(a), Some(b), b.checked_add(1)]);
    let v4: Vec<_> = v4.flatten().map(|ip| IpAddr::V4(ip.into())).collect();
    v4.into_iter().chain(v6.flatten().map(|ip| IpAddr::V6(ip.into())).collect::<Vec<_>>())
}

fn outside(set: &ConnectionSet) -> BTreeSet<IpAddr> {
    let mut all: BTreeSet<IpAddr> =
        ["10.0.0.77", "198.51.100.1", "2001:db8::77", "2001:db9::1"].map(|ip| ip.parse().unwrap()).into();
    for group in 0..set.universe().groups().len() {
        for outside in DIRECTIONS.map(|it| set.outside(it, group)) {
            let external = outside.named.iter().chain([&outside.unnamed]);
            all.extend(external.flat_map(|it| it.iter()).flat_map(|(addresses, _)| edges(addresses)));
        }
    }
    // A v4-mapped address is the v4 one.
    all.into_iter().filter(|ip| *ip == ip.to_canonical()).collect()
}

/// Compares all points of one ruleset's sets with the cluster's verdicts. Returns how many there were.
fn compare(cluster: &mut Cluster, ends: &Ends, view: usize) -> Result<usize, TestCaseError> {
    let universe = &ends.universe;
    let sets = Connections::new(universe, view);
    let mut points = 0;
    let mut check = |direction,
                     subject: usize,
                     other: Other,
                     (protocol, port),
                     told: Answer,
                     what: &dyn std::fmt::Debug| {
        points += 1;
        let is = |set: &ConnectionSet| set.contains(direction, subject, other, protocol, port);
        let got = (is(&sets.surely), is(&sets.possibly));
        prop_assert_eq!(
            got,
            told,
            "{:?} {:?} {:?} {:?} {} {}: {:?}",
            view,
            direction,
            subject,
            other,
            protocol,
            port,
            what
        );
        Ok(())
    };
    cluster.set_names([]);
    for (subject, group) in universe.groups().iter().enumerate() {
        for pod in group.members.iter().map(|it| ends.pods[*it]) {
            for (peer, peers) in universe.groups().iter().enumerate() {
                for other in peers.members.iter().map(|it| ends.pods[*it]).filter(|it| *it != pod) {
                    let ports =
                        ports(&[sets.surely.between(subject, peer), sets.possibly.between(subject, peer)]);
                    for (protocol, port) in ports {
                        let egress =
                            cluster.verdict(Direction::Egress, pod, Party::Pod(other), protocol, port);
                        let ingress =
                            cluster.verdict(Direction::Ingress, other, Party::Pod(pod), protocol, port);
                        let told = both(answer(&egress), answer(&ingress));
                        check(
                            Direction::Egress,
                            subject,
                            Other::Pod(peer),
                            (protocol, port),
                            told,
                            &(&egress, &ingress),
                        )?;
                        let told = universe.verdict(
                            view,
                            Direction::Egress,
                            subject,
                            Other::Pod(peer),
                            protocol,
                            port,
                        );
                        prop_assert_eq!(&told, &*egress);
                    }
                }
            }
            for direction in DIRECTIONS {
                for (peer, nodes) in universe.nodes().iter().enumerate() {
                    let sets =
                        [&sets.surely, &sets.possibly].map(|it| &*it.outside(direction, subject).nodes[peer]);
                    for end in nodes.members.iter().map(|it| &ends.nodes[*it]) {
                        let Some(ip) = end.address else { continue };
                        // A pod in the host's network; else the node's own address.
                        let host = cluster.pods().find(|(_, pod)| pod.host_network && pod.ips.contains(&ip));
                        let own = cluster.pod(pod).and_then(|pod| pod.node.clone());
                        if host.is_some() && own.as_ref() == Some(&end.name) {
                            continue;
                        }
                        let party = host.map_or(Party::Ip(ip), |(id, _)| Party::Pod(id));
                        for (protocol, port) in ports(&sets) {
                            let verdict = cluster.verdict(direction, pod, party, protocol, port);
                            check(
                                direction,
                                subject,
                                Other::Node(peer),
                                (protocol, port),
                                answer(&verdict),
                                &verdict,
                            )?;
                        }
                    }
                }
            }
        }
    }
    let mut addresses: Vec<_> = outside(&sets.possibly).union(&outside(&sets.surely)).copied().collect();
    // The nodes' addresses are the nodes.
    addresses.retain(|ip| ends.nodes.iter().all(|node| node.address != Some(*ip)));
    for pattern in (0..universe.patterns().len()).map(Some).chain([None]) {
        let name = pattern.map(|it| universe.example(it).to_string());
        cluster.set_names(name.iter().flat_map(|name| addresses.iter().map(|ip| (name.clone(), *ip))));
        for (subject, group) in universe.groups().iter().enumerate() {
            let pod = ends.pods[group.members[0]];
            for direction in DIRECTIONS {
                for ip in &addresses {
                    let of = |set: &ConnectionSet| {
                        let outside = set.outside(direction, subject);
                        let external = pattern.map_or(&outside.unnamed, |it| &outside.named[it]);
                        external.at(*ip).cloned().unwrap_or_default()
                    };
                    for (protocol, port) in ports(&[&of(&sets.surely), &of(&sets.possibly)]) {
                        let verdict = cluster.verdict(direction, pod, Party::Ip(*ip), protocol, port);
                        let other = Other::External(*ip, pattern);
                        check(direction, subject, other, (protocol, port), answer(&verdict), &verdict)?;
                    }
                }
            }
        }
    }
    Ok(points)
}

/// A few points everywhere: enough to tell sets of these worlds apart.
fn points(sets: &[&ConnectionSet]) -> Vec<(Direction, usize, Other)> {
    let universe = sets[0].universe();
    let addresses: BTreeSet<_> = sets.iter().flat_map(|it| outside(it)).collect();
    let mut points = Vec::new();
    for subject in 0..universe.groups().len() {
        points.extend((0..universe.groups().len()).map(|it| (Direction::Egress, subject, Other::Pod(it))));
        for direction in DIRECTIONS {
            points.extend((0..universe.nodes().len()).map(|it| (direction, subject, Other::Node(it))));
            for ip in &addresses {
                let patterns = (0..universe.patterns().len()).map(Some).chain([None]);
                points.extend(patterns.map(|it| (direction, subject, Other::External(*ip, it))));
            }
        }
    }
    points
}

fn with_policies(world: &World, other: &World) -> World {
    World {
        policies: other.policies.clone(),
        cluster_policies: other.cluster_policies.clone(),
        broken: world.broken.clone(),
        ..world.clone()
    }
    .settled()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_point_is_what_the_evaluator_says(world in worlds::world()) {
        let mut cluster = world.cluster();
        let ends = universe(&[&cluster]);
        let points = compare(&mut cluster, &ends, 0)?;
        prop_assert!(ends.pods.is_empty() || points > 100);
    }

    #[test]
    fn two_rulesets_over_one_universe_stay_exact(world in worlds::world(), other in worlds::world()) {
        let other = with_policies(&world, &other);
        let world = with_policies(&other, &world);
        let (mut a, mut b) = (world.cluster(), other.cluster());
        let ends = universe(&[&a, &b]);
        compare(&mut a, &ends, 0)?;
        compare(&mut b, &ends, 1)?;
    }

    #[test]
    fn the_algebra_of_connections_is_that_of_their_points(world in worlds::world(), other in worlds::world()) {
        let other = with_policies(&world, &other);
        let (a, b) = (world.cluster(), other.cluster());
        let ends = universe(&[&a, &b]);
        let [a, b] = [0, 1].map(|view| Connections::new(&ends.universe, view));
        prop_assert!(a.surely.is_subset(&a.possibly));
        let (a, b) = (a.surely, b.possibly);
        let (or, and, minus) = (a.union(&b), a.intersection(&b), a.difference(&b));
        let mut subset = true;
        for (direction, subject, other) in points(&[&a, &b]) {
            for protocol in PROTOCOLS {
                for port in [1, 79, 80, 81, 442, 443, 444, 8080, 65535] {
                    let is = |set: &ConnectionSet| set.contains(direction, subject, other, protocol, port);
                    prop_assert_eq!(is(&or), is(&a) || is(&b));
                    prop_assert_eq!(is(&and), is(&a) && is(&b));
                    prop_assert_eq!(is(&minus), is(&a) && !is(&b));
                    subset &= is(&b) || !is(&a);
                }
            }
        }
        prop_assert_eq!(a.is_subset(&b), subset);
        prop_assert_eq!(minus.is_empty(), subset);
        prop_assert_eq!(&minus.union(&and), &a);
        prop_assert_eq!(&or.intersection(&a), &a);
        prop_assert!(and.is_subset(&a) && and.is_subset(&b) && a.is_subset(&or) && b.is_subset(&or));
    }

    /// What tightening rests on: without one of its rules, a NetworkPolicy that names its types allows nothing new.
    #[test]
    fn a_rule_less_allows_nothing_new(world in worlds::world(), pick in any::<prop::sample::Index>()) {
        let mut world = world;
        world.policies.retain(|it| !it.ingress.is_empty() || !it.egress.is_empty());
        prop_assume!(!world.policies.is_empty());
        let index = pick.index(world.policies.len());
        world.policies[index].policy_types = vec!["Ingress".to_owned(), "Egress".to_owned()];
        let mut smaller = world.clone();
        let policy = &mut smaller.policies[index];
        if policy.ingress.pop().is_none() {
            policy.egress.pop();
        }
        let (before, after) = (world.cluster(), smaller.cluster());
        let ends = universe(&[&before, &after]);
        let [before, after] = [0, 1].map(|view| Connections::new(&ends.universe, view));
        prop_assert!(after.surely.is_subset(&before.surely));
        prop_assert!(after.possibly.is_subset(&before.possibly));
        let (newly, perhaps) = after.beyond(&before);
        prop_assert!(newly.is_empty() && perhaps.is_empty());
        if after.unknown().is_empty() {
            prop_assert!(after.is_surely_within(&before));
        }
    }
}
