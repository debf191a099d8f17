//! Planted errors: an evaluator with any of them must be found out. Each is planted in what the real evaluator is given, as
//! if it read, matched or ordered one thing wrongly.

use serde_json::{Value, json};

use super::{
    case::{Answer, Case, Verdict},
    compare,
    generate::Kinds,
    mutants_network_policy::NETWORK_POLICY,
    mutants_tiers::{V1_ALPHA1, V1_ALPHA2},
    real,
};

/// Flows within which an error must show.
const BOUND: usize = 60_000;
const FLOWS: usize = 120;

/// The error that only an evaluator that fails closed can have.
pub const UNKNOWN_PEER: &str = "a peer of no known kind is ignored";

pub struct Mutant {
    name: &'static str,
    plant: fn(&mut Case),
}

pub const fn mutant(name: &'static str, plant: fn(&mut Case)) -> Mutant {
    Mutant { name, plant }
}

#[test]
fn every_planted_error_is_found() {
    let (mut missed, mut tried) = (Vec::new(), 0);
    for (kinds, mutants) in
        [(Kinds::NetworkPolicy, NETWORK_POLICY), (Kinds::V1Alpha1, V1_ALPHA1), (Kinds::V1Alpha2, V1_ALPHA2)]
    {
        if !real::KINDS.contains(&kinds) {
            continue;
        }
        let mut left: Vec<_> = mutants.iter().collect();
        tried += left.len();
        for seed in 0..BOUND / FLOWS {
            let case = real::case(u64::try_from(seed).expect("64 bits"), kinds, FLOWS);
            let (plain, real) = (compare::plain_answers(&case), compare::real_answers(&case));
            left.retain(|mutant| {
                let found = is_found(mutant, &case, &plain, &real);
                if found {
                    println!("{kinds:?}: {}: in {} flows", mutant.name, (seed + 1) * FLOWS);
                }
                !found
            });
            if left.is_empty() {
                break;
            }
        }
        missed.extend(left.iter().map(|it| format!("{kinds:?}: {}", it.name)));
    }
    assert!(missed.is_empty(), "not found in {BOUND} flows: {missed:#?}");
    assert!(tried >= 30, "{tried}");
}

/// Whether the error gives another verdict, not only another cause, and one that is not there without the error.
fn is_found(mutant: &Mutant, case: &Case, plain: &[[Answer; 2]], real: &[[Answer; 2]]) -> bool {
    let mut altered = case.clone();
    (mutant.plant)(&mut altered);
    if altered.objects == case.objects && altered.dns == case.dns {
        return false;
    }
    let verdicts = |answers: &[[Answer; 2]]| -> Vec<Verdict> {
        answers.iter().flatten().map(|answer| answer.verdict).collect()
    };
    let (plain, real) = (verdicts(plain), verdicts(real));
    let altered = verdicts(&compare::real_answers(&altered));
    altered
        .iter()
        .zip(plain.iter().zip(real))
        .any(|(altered, (plain, real))| altered != plain && *plain == real)
}

/// Every value of this name, anywhere.
pub fn each(case: &mut Case, name: &str, mut change: impl FnMut(&mut Value)) {
    case.objects.iter_mut().for_each(|it| on(it, name, &mut change));
}

/// Every element of the lists of this name.
pub fn each_of(case: &mut Case, name: &str, mut change: impl FnMut(&mut Value)) {
    case.objects.iter_mut().for_each(|it| on_each(it, name, &mut change));
}

pub fn each_of_kind(case: &mut Case, kind: &str, change: impl FnMut(&mut Value)) {
    case.objects.iter_mut().filter(|it| it["kind"] == kind).for_each(change);
}

pub fn on(value: &mut Value, name: &str, change: &mut dyn FnMut(&mut Value)) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(|it| on(it, name, change)),
        Value::Object(fields) => {
            for (field, value) in fields {
                if field == name {
                    change(value);
                }
                on(value, name, change);
            }
        }
        _ => {}
    }
}

pub fn on_each(value: &mut Value, name: &str, change: &mut dyn FnMut(&mut Value)) {
    on(value, name, &mut |it| it.as_array_mut().into_iter().flatten().for_each(&mut *change));
}

/// Every rule of every policy.
pub fn rules(case: &mut Case, mut change: impl FnMut(&mut Value)) {
    for direction in ["ingress", "egress"] {
        each_of(case, direction, &mut change);
    }
}

/// The lists of rules of the policies of tiers.
pub fn tier_rules(case: &mut Case, mut change: impl FnMut(&mut Vec<Value>)) {
    for policy in case.objects.iter_mut().filter(|it| it["kind"] != "NetworkPolicy") {
        for direction in ["ingress", "egress"] {
            policy["spec"].get_mut(direction).and_then(Value::as_array_mut).into_iter().for_each(&mut change);
        }
    }
}

/// Every peer of every rule.
pub fn peers(case: &mut Case, mut change: impl FnMut(&mut Value)) {
    for name in ["from", "to"] {
        each_of(case, name, &mut change);
    }
}

/// Every selector that has something to select by.
pub fn selectors(case: &mut Case, mut change: impl FnMut(&mut Value)) {
    for name in ["podSelector", "namespaceSelector", "namespaces", "nodes"] {
        each(case, name, &mut change);
    }
}

pub fn remove(value: &mut Value, name: &str) {
    value.as_object_mut().into_iter().for_each(|it| {
        it.remove(name);
    });
}

pub fn keep(list: &mut Value, count: usize) {
    list.as_array_mut().into_iter().for_each(|it| it.truncate(count));
}

pub fn add(value: &mut Value, name: &str, more: i64) {
    if let Some(number) = value.get(name).and_then(Value::as_i64) {
        value[name] = (number + more).into();
    }
}

/// Adds to each port of a list that is wanted those of the other protocols.
pub fn any_protocol(list: &mut Value, wanted: impl Fn(&Value) -> bool) {
    let list = list.as_array_mut().expect("a list");
    for mut port in list.clone().into_iter().filter(wanted) {
        for protocol in ["TCP", "UDP", "SCTP"] {
            port["protocol"] = protocol.into();
            list.push(port.clone());
        }
    }
}

/// Makes a rule of a tier match nothing, in its place.
pub fn disable(rule: &mut Value) {
    for name in ["from", "to"] {
        if rule.get(name).is_some() {
            rule[name] = json!([{ "namespaces": { "matchLabels": { "nowhere": "" } } }]);
        }
    }
}

/// A NetworkPolicy's peer that is nobody.
pub fn nobody() -> Value {
    json!({ "ipBlock": { "cidr": "240.0.0.0/32" } })
}

pub fn action(rule: &mut Value, from: &str, to: &str) {
    if rule["action"] == from {
        rule["action"] = to.into();
    }
}

pub fn invert(policy: &mut Value) {
    let priority = policy["spec"]["priority"].as_i64().expect("a priority");
    policy["spec"]["priority"] = (1_000 - priority).into();
}

/// Gives every policy of a kind a priority of its own, those of one priority in order of name.
pub fn spread(case: &mut Case, kind: &str) {
    each_of_kind(case, kind, |it| {
        let rank = it["metadata"]["name"].as_str().and_then(|it| it.rsplit_once('-')?.1.parse::<i64>().ok());
        let priority = it["spec"]["priority"].as_i64().expect("a priority");
        it["spec"]["priority"] = (priority.min(90) * 10 + rank.expect("a number")).into();
    });
}
