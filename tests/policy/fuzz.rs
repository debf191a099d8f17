//! The comparison: some thousand flows in every run of the tests, and as many as wanted by `cargo xtask fuzz policy`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{
    case::{Case, Direction},
    compare,
    generate::{self, Kinds},
    matching::Seen,
    naive::Naive,
    random::setting,
    real::{self, Real},
};

/// Flows of a cluster: enough to pay for building it, few enough to see many clusters.
const FLOWS: usize = 60;

/// What the clusters must bring about, each many times: a generator that never makes something tests nothing of it.
#[rustfmt::skip]
const WANTED: &[&str] = &[
    "NetworkPolicy egress Allow", "NetworkPolicy egress Deny", "NetworkPolicy ingress Allow",
    "NetworkPolicy ingress Deny", "V1Alpha1 egress Allow", "V1Alpha1 egress Deny", "V1Alpha1 egress Unknown",
    "V1Alpha1 ingress Allow", "V1Alpha1 ingress Deny", "V1Alpha1 ingress Unknown", "V1Alpha2 egress Allow",
    "V1Alpha2 egress Deny", "V1Alpha2 egress Unknown", "V1Alpha2 ingress Allow", "V1Alpha2 ingress Deny",
    "V1Alpha2 ingress Unknown",
    "egress AdminNetworkPolicy Allow", "egress AdminNetworkPolicy Deny", "egress AdminNetworkPolicy Pass",
    "egress BaselineAdminNetworkPolicy Allow", "egress BaselineAdminNetworkPolicy Deny",
    "egress ClusterNetworkPolicy Allow", "egress ClusterNetworkPolicy Deny", "egress ClusterNetworkPolicy Pass",
    "egress NetworkPolicy Allow", "egress NetworkPolicy SelectsNoRuleMatches",
    "egress NetworkPolicy SelectsPortsDoNotMatch", "egress nobody DefaultAllow", "egress nobody Exempt",
    "ingress AdminNetworkPolicy Allow", "ingress AdminNetworkPolicy Deny", "ingress AdminNetworkPolicy Pass",
    "ingress BaselineAdminNetworkPolicy Allow", "ingress BaselineAdminNetworkPolicy Deny",
    "ingress ClusterNetworkPolicy Allow", "ingress ClusterNetworkPolicy Deny", "ingress ClusterNetworkPolicy Pass",
    "ingress NetworkPolicy Allow", "ingress NetworkPolicy SelectsNoRuleMatches",
    "ingress NetworkPolicy SelectsPortsDoNotMatch", "ingress nobody DefaultAllow", "ingress nobody Exempt",
    "In: is", "In: is not", "In: no such label", "NotIn: is", "NotIn: is not", "NotIn: no such label",
    "Exists: is", "Exists: is not", "DoesNotExist: is", "DoesNotExist: is not",
    "exempt: itself", "exempt: own node",
    "peer: any", "peer: podSelector", "peer: namespaceSelector", "peer: both selectors", "peer: ipBlock",
    "peer: namespaces", "peer: pods", "peer: nodes", "peer: nodes, no object", "peer: networks", "peer: domainNames", "peer: unknown, accept",
    "peer: unknown, deny all", "ipBlock: excepted", "range: IPv4", "range: IPv6", "range: mapped", "range: plain",
    "domain name: exact", "domain name: wildcard",
    "port: protocol only", "port: number", "port: endPort", "port: named", "port: portNumber", "port: portRange",
    "port: namedPort", "port: destinationPort.number", "port: destinationPort.range", "port: destinationNamedPort",
    "tier: policies of one priority differ",
];

#[test]
fn some_thousand_flows_get_the_same_answers() {
    let mut flows = 0;
    for &kinds in real::KINDS {
        for seed in 0..150 {
            flows += compare_one(&real::case(seed, kinds, FLOWS)).unwrap_or_else(|text| panic!("{text}"));
        }
    }
    assert!(flows >= 10_000, "{flows}");
}

#[test]
fn explanations_say_of_each_rule_what_is_so() {
    let (mut rules, mut unknown) = (0, 0);
    for &kinds in real::KINDS {
        for seed in 0..40 {
            let case = real::case(seed, kinds, FLOWS);
            let naive = Naive { objects: &case.objects, dns: case.dns.as_ref(), seen: None };
            let mut real = Real::new(&case);
            for flow in &case.flows {
                for direction in Direction::BOTH {
                    let question = naive.question(flow, direction);
                    let plain = question.as_ref().map(|it| naive.trace(it)).unwrap_or_default();
                    let (real, explains) = real.trace(flow, direction);
                    let place = format!("{}: {} of {flow}", case.name, direction.as_str());
                    assert_eq!(plain, real, "{place}");
                    assert!(explains, "{place}: not explained");
                    rules += plain.values().flatten().count();
                    unknown += plain.values().flatten().filter(|it| it.is_none()).count();
                }
            }
        }
    }
    assert!(rules > 10_000 && unknown > 0, "{rules} rules, {unknown} unknown");
}

/// Compares every flow of a case; the description of the smallest difference if there is one.
fn compare_one(case: &Case) -> Result<usize, String> {
    match compare::first(case, case) {
        None => Ok(case.flows.len()),
        Some(found) => {
            let (small, difference) = compare::smallest(case, &Case::clone, &found);
            Err(compare::describe(&small, &difference))
        }
    }
}

#[test]
fn the_generator_makes_everything_that_the_policies_have() {
    let seen = Seen::default();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut answers = 0_u64;
    for kinds in Kinds::ALL {
        for seed in 0..200 {
            let case = generate::case(seed, kinds, FLOWS);
            let naive = Naive { objects: &case.objects, dns: case.dns.as_ref(), seen: Some(&seen) };
            for flow in &case.flows {
                for (direction, answer) in Direction::BOTH.into_iter().zip(naive.ask(flow)) {
                    answers += 1;
                    *counts
                        .entry(format!("{kinds:?} {} {:?}", direction.as_str(), answer.verdict))
                        .or_default() += 1;
                    for by in answer.by() {
                        let kind =
                            by.policy.as_deref().and_then(|it| it.split('/').next()).unwrap_or("nobody");
                        *counts
                            .entry(format!("{} {kind} {:?}", direction.as_str(), by.effect))
                            .or_default() += 1;
                    }
                }
            }
        }
    }
    let mut counts: BTreeMap<&str, u64> =
        counts.iter().map(|(what, count)| (what.as_str(), *count)).collect();
    let seen = seen.borrow();
    counts.extend(seen.iter());
    for (what, count) in &counts {
        println!("{what}: {count}");
    }
    let seldom: Vec<_> =
        WANTED.iter().filter(|it| counts.get(**it).is_none_or(|count| *count < 30)).collect();
    assert!(seldom.is_empty(), "less than 30 times in {answers} answers: {seldom:?}");
    let unnamed: Vec<_> = counts.keys().filter(|it| !WANTED.contains(it)).collect();
    assert!(unnamed.is_empty(), "not in the list: {unnamed:?}");
}

/// `cargo xtask fuzz policy`: NETAUDIT_FUZZ_FLOWS flows from NETAUDIT_FUZZ_SEED on, up to the NETAUDIT_FUZZ_MOST different
/// differences.
#[test]
#[ignore = "as long as one likes"]
fn long_run() {
    let wanted = setting("NETAUDIT_FUZZ_FLOWS", 1_000_000);
    let first = setting("NETAUDIT_FUZZ_SEED", 0);
    let most = usize::try_from(setting("NETAUDIT_FUZZ_MOST", 1)).expect("a usize");
    let start = Instant::now();
    let (mut flows, mut said) = (0_usize, 0_u64);
    let mut found = BTreeSet::new();
    for seed in first.. {
        let kinds = real::KINDS[usize::try_from(seed).expect("a usize") % real::KINDS.len()];
        let case = real::case(seed, kinds, FLOWS);
        flows += case.flows.len();
        if let Some(difference) = compare::first(&case, &case) {
            let (small, difference) = compare::smallest(&case, &Case::clone, &difference);
            if found.insert(compare::words(&small, &difference)) {
                println!("fuzz: seed {seed}: {}", compare::describe(&small, &difference));
            }
        }
        let seconds = start.elapsed().as_secs();
        let is_over = flows as u64 >= wanted || found.len() >= most;
        if seconds / 10 > said || is_over {
            said = seconds / 10;
            let rate = flows as f64 / start.elapsed().as_secs_f64();
            let differences = found.len();
            println!(
                "fuzz: seeds {first} to {seed}: {flows} flows, {rate:.0} a second, {differences} differences"
            );
        }
        if is_over {
            break;
        }
    }
    assert!(found.is_empty(), "{} differences", found.len());
}
