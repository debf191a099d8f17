//! Errors in NetworkPolicy: see `mutants.rs`.

use serde_json::{Value, json};

use super::mutants::{
    Mutant, add, any_protocol, each, each_of, each_of_kind, keep, mutant, nobody, on, peers, remove, rules,
    selectors,
};

pub const NETWORK_POLICY: &[Mutant] = &[
    mutant("exceptions are ignored", |case| each(case, "ipBlock", |it| remove(it, "except"))),
    mutant("only the first exception counts", |case| each(case, "except", |it| keep(it, 1))),
    mutant("endPort is ignored", |case| each_of(case, "ports", |it| remove(it, "endPort"))),
    mutant("endPort is not in the range", |case| each_of(case, "ports", |it| add(it, "endPort", -1))),
    mutant("a named port is always 80", |case| {
        each_of(case, "ports", |it| {
            if it["port"].is_string() {
                it["port"] = 80.into()
            }
        })
    }),
    mutant("a named port is of any protocol", |case| {
        each_of_kind(case, "Pod", |pod| on(pod, "ports", &mut |it| any_protocol(it, |_| true)))
    }),
    mutant("a port without a protocol is of any", |case| {
        each(case, "ports", |it| {
            any_protocol(it, |port| port.get("protocol").is_none() && port.get("containerPort").is_none())
        })
    }),
    mutant("a port without a protocol is UDP", |case| {
        each_of(case, "ports", |it| {
            if it.get("protocol").is_none() {
                it["protocol"] = "UDP".into()
            }
        })
    }),
    mutant("protocols are ignored where there is a number", |case| {
        each(case, "ports", |it| any_protocol(it, |port| port["port"].is_number()))
    }),
    mutant("no ports are none instead of all", |case| {
        rules(case, |rule| {
            if rule.get("ports") == Some(&json!([])) {
                rule["ports"] = json!([{ "port": 1 }])
            }
        })
    }),
    mutant("no peers are none instead of all", |case| {
        rules(case, |rule| {
            for peers in ["from", "to"] {
                if rule.get(peers) == Some(&json!([])) {
                    rule[peers] = json!([nobody()])
                }
            }
        })
    }),
    mutant("no rules allow everything", |case| {
        each_of_kind(case, "NetworkPolicy", |it| {
            if it["spec"].get("ingress") == Some(&json!([])) {
                it["spec"]["ingress"] = json!([{}])
            }
        })
    }),
    mutant("namespaceSelector is ignored beside podSelector", |case| {
        peers(case, |it| {
            if it.get("podSelector").is_some() {
                remove(it, "namespaceSelector")
            }
        })
    }),
    mutant("podSelector is ignored beside namespaceSelector", |case| {
        peers(case, |it| {
            if it.get("namespaceSelector").is_some() {
                remove(it, "podSelector")
            }
        })
    }),
    mutant("podSelector alone is about every namespace", |case| {
        peers(case, |it| {
            if it.get("podSelector").is_some() && it.get("namespaceSelector").is_none() {
                it["namespaceSelector"] = json!({})
            }
        })
    }),
    mutant("ranges do not count for pods", |case| {
        each(case, "ipBlock", |it| {
            let mut excepts: Vec<Value> = it["except"].as_array().into_iter().flatten().cloned().collect();
            if ["0.0.0.0/0", "10.0.0.0/8"].iter().any(|range| it["cidr"] == *range) {
                excepts.push("10.0.0.0/22".into())
            }
            if ["::/0", "fd00::/16"].iter().any(|range| it["cidr"] == *range) {
                excepts.push("fd00::/64".into())
            }
            it["except"] = excepts.into();
        })
    }),
    mutant("only the first peer of a rule counts", |case| {
        rules(case, |it| {
            ["from", "to"].iter().for_each(|name| {
                if let Some(list) = it.get_mut(*name) {
                    keep(list, 1)
                }
            })
        })
    }),
    mutant("only the first port of a rule counts", |case| {
        rules(case, |it| {
            if let Some(list) = it.get_mut("ports") {
                keep(list, 1)
            }
        })
    }),
    mutant("only the last rule of a policy counts", |case| {
        each_of_kind(case, "NetworkPolicy", |it| {
            for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
                let list = it["spec"].get_mut(direction).and_then(Value::as_array_mut);
                if let Some((_, others)) = list.and_then(|it| it.split_last_mut()) {
                    others.iter_mut().for_each(|rule| rule[peers] = json!([nobody()]));
                }
            }
        })
    }),
    mutant("only one policy of a namespace counts", |case| {
        let mut seen = Vec::new();
        case.objects.retain(|it| {
            let namespace = it["metadata"]["namespace"].clone();
            let is_second = it["kind"] == "NetworkPolicy" && seen.contains(&namespace);
            if it["kind"] == "NetworkPolicy" {
                seen.push(namespace)
            }
            !is_second
        });
    }),
    mutant("without policyTypes no egress is affected", |case| {
        each_of_kind(case, "NetworkPolicy", |it| {
            if it["spec"]["policyTypes"].as_array().is_none_or(Vec::is_empty) {
                it["spec"]["policyTypes"] = json!(["Ingress"])
            }
        })
    }),
    mutant("without policyTypes both are affected", |case| {
        each_of_kind(case, "NetworkPolicy", |it| {
            if it["spec"]["policyTypes"].as_array().is_none_or(Vec::is_empty) {
                it["spec"]["policyTypes"] = json!(["Ingress", "Egress"])
            }
        })
    }),
    mutant("without policyTypes ingress is affected by its rules only", |case| {
        each_of_kind(case, "NetworkPolicy", |it| {
            let has = |name: &str| it["spec"][name].as_array().is_some_and(|it| !it.is_empty());
            if !has("policyTypes") && !has("ingress") {
                it["spec"]["policyTypes"] = json!([if has("egress") { "Egress" } else { "Ingress" }])
            }
        })
    }),
    mutant("policyTypes are ignored", |case| {
        each_of_kind(case, "NetworkPolicy", |it| remove(&mut it["spec"], "policyTypes"))
    }),
    mutant("matchExpressions are ignored", |case| selectors(case, |it| remove(it, "matchExpressions"))),
    mutant("matchLabels are ignored beside matchExpressions", |case| {
        selectors(case, |it| {
            if it.get("matchExpressions").is_some() {
                remove(it, "matchLabels")
            }
        })
    }),
    mutant("NotIn wants the label", |case| {
        each(case, "matchExpressions", |list| {
            let wanted = |it: &Value| {
                (it["operator"] == "NotIn").then(|| json!({ "key": it["key"], "operator": "Exists" }))
            };
            let more: Vec<Value> = list.as_array().into_iter().flatten().filter_map(wanted).collect();
            list.as_array_mut().into_iter().for_each(|it| it.extend(more.clone()));
        })
    }),
    mutant("only the first value of In and NotIn counts", |case| each(case, "values", |it| keep(it, 1))),
    mutant("Exists and DoesNotExist are mixed up", |case| {
        each_of(case, "matchExpressions", |it| {
            if it["operator"] == "Exists" {
                it["operator"] = "DoesNotExist".into()
            } else if it["operator"] == "DoesNotExist" {
                it["operator"] = "Exists".into()
            }
        })
    }),
    mutant("an empty value is no label", |case| {
        each(case, "labels", |it| {
            if let Some(labels) = it.as_object_mut() {
                labels.retain(|_, value| value != "")
            }
        })
    }),
    mutant("namespaces have no label with their name", |case| {
        each(case, "matchLabels", |it| {
            if it.get("kubernetes.io/metadata.name").is_some() {
                it["kubernetes.io/metadata.name"] = "other".into()
            }
        })
    }),
    mutant("a pod has its first address only", |case| each(case, "podIPs", |it| keep(it, 1))),
    mutant("IPv6 ranges match nothing", |case| {
        each(case, "ipBlock", |it| {
            if it["cidr"].as_str().is_some_and(|it| it.contains(':')) {
                *it = json!({ "cidr": "240.0.0.0/32" })
            }
        })
    }),
    mutant("mapped ranges match nothing", |case| {
        each(case, "ipBlock", |it| {
            if it["cidr"].as_str().is_some_and(|it| it.starts_with("::ffff")) {
                *it = json!({ "cidr": "240.0.0.0/32" })
            }
        })
    }),
    mutant("bits below the mask count", |case| {
        each(case, "ipBlock", |it| {
            if it["cidr"] == "10.0.1.5/24" {
                it["cidr"] = "10.0.1.5/32".into()
            }
        })
    }),
    mutant("hostNetwork pods are pods", |case| {
        each_of_kind(case, "Pod", |it| remove(&mut it["spec"], "hostNetwork"))
    }),
    mutant("its own node may be kept from a pod", |case| {
        each_of_kind(case, "Pod", |it| remove(&mut it["spec"], "nodeName"))
    }),
    mutant("a node has its first address only", |case| each(case, "addresses", |it| keep(it, 2))),
    mutant("sidecars have no named ports", |case| {
        each_of_kind(case, "Pod", |it| remove(&mut it["spec"], "initContainers"))
    }),
    mutant("init containers that ended have named ports", |case| {
        each_of(case, "initContainers", |it| it["restartPolicy"] = "Always".into())
    }),
];
