//! Makes a case smaller as long as something holds of it: takes away objects, rules, peers, ports, labels, flows, one by
//! one, until nothing more can go. What remains is as valid as the case was.

use serde_json::Value;

use super::case::Case;

/// A step into a JSON value.
#[derive(Clone, PartialEq, Debug)]
enum Step {
    Index(usize),
    Name(String),
}

/// The smallest case reached by taking away one thing after the other. `holds` is true of the case itself.
pub fn shrink(case: &Case, holds: &mut dyn FnMut(&Case) -> bool) -> Case {
    let mut value = serde_json::to_value(case).expect("a case is JSON");
    loop {
        let mut went = false;
        let mut gone: Vec<Step> = Vec::new();
        for path in removable(&value) {
            // What was in what has gone: the path leads somewhere else now.
            if !gone.is_empty() && path.starts_with(&gone) {
                continue;
            }
            let Some(smaller) = without(&value, &path) else { continue };
            let Ok(case) = serde_json::from_value::<Case>(smaller.clone()) else { continue };
            if holds(&case) {
                value = smaller;
                went = true;
                gone = path;
            }
        }
        if !went {
            return serde_json::from_value(value).expect("it was read before");
        }
    }
}

fn without(value: &Value, path: &[Step]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    let mut copy = value.clone();
    let mut place = &mut copy;
    for step in parents {
        place = match step {
            Step::Index(index) => place.get_mut(*index)?,
            Step::Name(name) => place.get_mut(name.as_str())?,
        };
    }
    match last {
        Step::Index(index) => {
            let list = place.as_array_mut()?;
            if *index >= list.len() {
                return None;
            }
            list.remove(*index);
        }
        Step::Name(name) => {
            place.as_object_mut()?.remove(name)?;
        }
    }
    Some(copy)
}

/// The paths of everything that can go, large things before their parts and the end of a list before its start, so that
/// a path still leads there when others have gone.
fn removable(value: &Value) -> Vec<Vec<Step>> {
    let mut paths = Vec::new();
    walk(value, &mut Vec::new(), &mut paths);
    paths
}

fn walk(value: &Value, path: &mut Vec<Step>, paths: &mut Vec<Vec<Step>>) {
    let parent = path.iter().rev().find_map(|step| match step {
        Step::Name(name) => Some(name.clone()),
        Step::Index(_) => None,
    });
    let parent = parent.unwrap_or_default();
    match value {
        Value::Array(list) => {
            for (index, item) in list.iter().enumerate().rev() {
                path.push(Step::Index(index));
                if list.len() > least(&parent, path) {
                    paths.push(path.clone());
                }
                walk(item, path, paths);
                path.pop();
            }
        }
        Value::Object(fields) => {
            for (name, item) in fields {
                path.push(Step::Name(name.clone()));
                if may_go(&parent, name, value) {
                    paths.push(path.clone());
                }
                walk(item, path, paths);
                path.pop();
            }
        }
        _ => {}
    }
}

/// How many elements a list must keep. Rules of the tiers need peers; those of a NetworkPolicy do not, but an empty list
/// means another thing there than one element less, which the field's own going covers.
fn least(name: &str, path: &[Step]) -> usize {
    match name {
        "values" | "networks" | "domainNames" | "policyTypes" | "ports" | "protocols" | "from" | "to" => 1,
        "flows" if path.len() == 2 => 1,
        _ => 0,
    }
}

/// Whether an object's field can go without making it invalid.
fn may_go(parent: &str, name: &str, object: &Value) -> bool {
    let has = |name: &str| object.get(name).is_some();
    match name {
        _ if matches!(parent, "labels" | "matchLabels" | "dns") => true,
        "labels" | "matchLabels" | "matchExpressions" | "protocols" | "endPort" | "except" | "ingress"
        | "egress" | "policyTypes" | "hostNetwork" | "nodeName" | "containers" | "initContainers"
        | "podIPs" | "dns" => true,
        "podIP" => has("podIPs"),
        // Of a rule, a container, or a NetworkPolicy's rule.
        "ports" => true,
        "name" => has("action"),
        // Not those of a flow.
        "from" | "to" => !has("action") && !has("expect") && !has("port") && parent != "flows",
        "podSelector" => parent == "spec" || (has("namespaceSelector") && parent != "pods"),
        "namespaceSelector" => has("podSelector") && parent != "pods",
        // Of a NetworkPolicy's or a container's port.
        "protocol" => parent == "ports",
        "port" => parent == "ports" && !has("endPort"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::policy::{compare, generate::Kinds, real};

    #[test]
    fn what_does_not_matter_goes() {
        let case = json!({
            "name": "planted",
            "objects": [
                { "kind": "Namespace", "metadata": { "name": "n", "labels": { "a": "b", "c": "d" } } },
                { "kind": "NetworkPolicy", "spec": { "podSelector": {}, "egress": [{}], "ingress": [
                    { "from": [{ "podSelector": { "matchLabels": { "a": "b" } } }, { "podSelector": {} }] },
                    { "ports": [{ "port": 1, "protocol": "UDP" }, { "port": 2, "endPort": 3 }] },
                ] } },
            ],
            "flows": [
                { "from": { "ip": "10.0.0.1" }, "to": { "ip": "10.0.0.2" }, "protocol": "TCP", "port": 1 },
                { "from": { "ip": "10.0.0.1" }, "to": { "ip": "10.0.0.2" }, "protocol": "TCP", "port": 2 },
            ],
            "dns": { "example.com": ["10.0.0.1"] },
        });
        let case: Case = serde_json::from_value(case).expect("a case");
        let has_range =
            |case: &Case| serde_json::to_string(case).expect("JSON").contains(r#""endPort":3,"port":2"#);
        let has_flow = |case: &Case| case.flows.iter().any(|it| it.port == 2);
        let small = shrink(&case, &mut |case| has_range(case) && has_flow(case));
        let expected = json!({
            "name": "planted",
            "objects": [{ "kind": "NetworkPolicy", "spec": { "ingress": [{ "ports": [{ "port": 2, "endPort": 3 }] }] } }],
            "flows": [{ "from": { "ip": "10.0.0.1" }, "to": { "ip": "10.0.0.2" }, "protocol": "TCP", "port": 2 }],
        });
        assert_eq!(serde_json::to_value(small).expect("JSON"), expected);
    }

    #[test]
    fn a_planted_disagreement_becomes_one_policy_with_one_rule() {
        // The real evaluator is given the objects without their exceptions.
        let alter = |case: &Case| {
            let mut case = case.clone();
            for policy in case.objects.iter_mut().filter(|it| it["kind"] == "NetworkPolicy") {
                for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
                    let rules = policy["spec"].get_mut(direction).and_then(Value::as_array_mut);
                    let lists =
                        rules.into_iter().flatten().filter_map(|it| it.get_mut(peers)?.as_array_mut());
                    for block in lists.flatten().filter_map(|it| it.get_mut("ipBlock")?.as_object_mut()) {
                        block.remove("except");
                    }
                }
            }
            case
        };
        let found = (0..).find_map(|seed| {
            let case = real::case(seed, Kinds::NetworkPolicy, 40);
            compare::first(&case, &alter(&case)).map(|it| (case, it))
        });
        let (case, found) = found.expect("there are seeds enough");
        let (small, difference) = compare::smallest(&case, &alter, &found);
        let text = compare::describe(&small, &difference);
        let policies: Vec<_> = small.objects.iter().filter(|it| it["kind"] == "NetworkPolicy").collect();
        assert!(policies.len() == 1 && small.objects.len() <= 3 && small.flows.len() == 1, "{text}");
        let direction = difference.direction.as_str();
        let peers = &policies[0]["spec"][direction][0][difference.direction.peers()];
        assert_eq!(peers.as_array().map(Vec::len), Some(1), "{text}");
        assert_eq!(peers[0]["ipBlock"]["except"].as_array().map(Vec::len), Some(1), "{text}");
        // The line is a case that can be kept.
        let line = text.lines().last().expect("the case");
        let kept: Case = serde_json::from_str(line).expect("a case");
        assert_eq!(crate::policy::suites::check(&kept, &kept.flows[0]), [""; 0]);
        assert!(kept.flows[0].expect.is_some());
    }
}
