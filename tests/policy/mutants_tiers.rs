//! Errors in the tiers around NetworkPolicy: see `mutants.rs`.

use serde_json::{Value, json};

use super::mutants::{
    Mutant, UNKNOWN_PEER, action, add, disable, each, each_of, each_of_kind, invert, keep, mutant, on_each,
    remove, rules, spread, tier_rules,
};

/// AdminNetworkPolicy and BaselineAdminNetworkPolicy.
pub const V1_ALPHA1: &[Mutant] = &[
    mutant("priorities are upside down", |case| each_of_kind(case, "AdminNetworkPolicy", invert)),
    mutant("Pass is Allow", |case| rules(case, |it| action(it, "Pass", "Allow"))),
    mutant("Pass rules are skipped", |case| {
        tier_rules(case, |list| list.iter_mut().filter(|it| it["action"] == "Pass").for_each(disable))
    }),
    mutant("rules of a policy are upside down", |case| tier_rules(case, |list| list.reverse())),
    mutant("the baseline is before NetworkPolicy", |case| {
        each_of_kind(case, "BaselineAdminNetworkPolicy", |it| {
            it["kind"] = "AdminNetworkPolicy".into();
            it["spec"]["priority"] = 1_000.into();
        })
    }),
    mutant("the baseline is ignored", |case| {
        case.objects.retain(|it| it["kind"] != "BaselineAdminNetworkPolicy")
    }),
    mutant("of one priority the first by name wins", |case| spread(case, "AdminNetworkPolicy")),
    mutant("portRange ends before its end", |case| each(case, "portRange", |it| add(it, "end", -1))),
    mutant("portRange starts after its start", |case| each(case, "portRange", |it| add(it, "start", 1))),
    mutant("namedPort is of TCP only", |case| {
        each_of_kind(case, "Pod", |pod| {
            on_each(pod, "ports", &mut |it| {
                if it.get("protocol").is_some_and(|it| it != "TCP") {
                    remove(it, "name")
                }
            })
        })
    }),
    mutant("nodes match pods' nodes too", |case| {
        each_of(case, "to", |it| {
            if it.get("nodes").is_some() {
                *it = json!({ "networks": ["172.16.0.0/24", "10.0.0.0/22"] })
            }
        })
    }),
    mutant("a wildcard matches the name itself", |case| {
        each(case, "domainNames", |list| {
            let bare = |it: &Value| it.as_str().and_then(|it| it.strip_prefix("*.")).map(Value::from);
            let more: Vec<Value> = list.as_array().into_iter().flatten().filter_map(bare).collect();
            list.as_array_mut().into_iter().for_each(|it| it.extend(more.clone()));
        })
    }),
    mutant("nothing known of names is no name known", |case| {
        case.dns.get_or_insert_default();
    }),
];

/// ClusterNetworkPolicy.
pub const V1_ALPHA2: &[Mutant] = &[
    mutant("priorities are upside down", |case| each_of_kind(case, "ClusterNetworkPolicy", invert)),
    mutant("Pass is Accept", |case| rules(case, |it| action(it, "Pass", "Accept"))),
    mutant("Pass is Deny", |case| rules(case, |it| action(it, "Pass", "Deny"))),
    mutant("the Baseline tier is in the Admin tier", |case| {
        each_of_kind(case, "ClusterNetworkPolicy", |it| {
            if it["spec"]["tier"] == "Baseline" {
                add(&mut it["spec"], "priority", 2_000)
            }
            it["spec"]["tier"] = "Admin".into();
        })
    }),
    mutant("NetworkPolicy is after the Baseline tier", |case| {
        each_of_kind(case, "ClusterNetworkPolicy", |it| {
            if it["spec"]["tier"] == "Baseline" {
                add(&mut it["spec"], "priority", 2_000);
                it["spec"]["tier"] = "Admin".into();
            }
        })
    }),
    mutant("of one priority the first by name wins", |case| spread(case, "ClusterNetworkPolicy")),
    mutant("a range ends before its end", |case| each(case, "range", |it| add(it, "end", -1))),
    mutant("destinationNamedPort is of TCP only", |case| {
        each_of_kind(case, "Pod", |pod| {
            on_each(pod, "ports", &mut |it| {
                if it.get("protocol").is_some_and(|it| it != "TCP") {
                    remove(it, "name")
                }
            })
        })
    }),
    mutant("nodes match nothing", |case| {
        each_of(case, "to", |it| {
            if it.get("nodes").is_some() {
                *it = json!({ "networks": ["240.0.0.0/32"] })
            }
        })
    }),
    mutant("nodes match every node", |case| each(case, "nodes", |it| *it = json!({}))),
    mutant("a node has internal addresses only", |case| {
        each(case, "addresses", |list| {
            list.as_array_mut().into_iter().for_each(|list| list.retain(|it| it["type"] != "ExternalIP"));
        })
    }),
    mutant("networks are of their first range", |case| each(case, "networks", |it| keep(it, 1))),
    mutant("networks do not count for pods", |case| {
        each(case, "networks", |list| {
            let list = list.as_array_mut().expect("a list");
            list.iter_mut()
                .filter(|it| {
                    it.as_str().is_some_and(|it| it.starts_with("10.0.") || it.starts_with("fd00::"))
                })
                .for_each(|it| *it = "240.0.0.0/32".into());
        })
    }),
    mutant("a wildcard stands for one label", |case| {
        case.dns.iter_mut().for_each(|dns| {
            dns.remove("v1.api.example.com");
        });
    }),
    mutant("names know case", |case| {
        each(case, "domainNames", |list| {
            let list = list.as_array_mut().expect("a list");
            list.iter_mut()
                .filter(|it| it.as_str().is_some_and(|it| it.contains(char::is_uppercase)))
                .for_each(|it| *it = "a.b".into());
        })
    }),
    mutant(UNKNOWN_PEER, |case| {
        rules(case, |it| {
            ["from", "to"].iter().for_each(|name| {
                let list = it.get_mut(*name).and_then(Value::as_array_mut).into_iter();
                let unknown = list.flatten().filter(|it| **it == json!({}));
                unknown.for_each(|it| *it = json!({ "namespaces": { "matchLabels": { "nowhere": "" } } }));
            })
        })
    }),
    mutant("a subject's podSelector is ignored", |case| {
        each(case, "subject", |it| {
            if let Some(pods) = it.get_mut("pods") {
                pods["podSelector"] = json!({})
            }
        })
    }),
];
