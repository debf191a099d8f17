//! Tests of one generation after the other.

use std::{net::IpAddr, sync::Arc, thread};

use serde_json::{Value, json};

use super::{CompiledPolicy, Evaluator, Labels, NamespaceView, PeerEnd, Policies, Question, Ruleset};
use crate::{
    cluster::Object,
    model::{Direction, Protocol},
    watch::convert::{self, Converted},
};

fn compiled(policy: Value) -> Arc<CompiledPolicy> {
    match convert::document(&policy, &"test".into()).as_slice() {
        [Converted::Object(Object::NetworkPolicy(policy))] => CompiledPolicy::compile(policy).into(),
        [Converted::Object(Object::ClusterPolicy(policy))] => CompiledPolicy::compile_cluster(policy).into(),
        other => panic!("{other:?}"),
    }
}

/// Lets `app=client` of its namespace reach `app=server`.
fn network(namespace: &str, client: &str) -> Arc<CompiledPolicy> {
    compiled(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": namespace},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": client}}}]}],
        },
    }))
}

fn admin(action: &str, priority: u16, env: &str) -> Arc<CompiledPolicy> {
    compiled(json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": format!("{action}-{priority}")},
        "spec": {
            "tier": "Admin", "priority": priority, "subject": {"namespaces": {}},
            "ingress": [{"action": action, "from": [{"namespaces": {"matchLabels": {"env": env}}}]}],
        },
    }))
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().copied().collect()
}

/// Whether `app=client` may reach `app=server`, both in namespace `x`, and the generation that says so.
fn ask(rules: &Arc<Ruleset>, client: &str) -> (bool, u64) {
    let mut evaluator = Evaluator::default();
    evaluator.follow(rules);
    let namespace: Arc<str> = "x".into();
    let subject = evaluator.identity(&namespace, &labels(&[("app", "server")]), &[]);
    let pod = evaluator.identity(&namespace, &labels(&[("app", client)]), &[]);
    let addresses: [IpAddr; 1] = ["10.0.0.1".parse().unwrap()];
    let peer = PeerEnd { pod: Some(pod), addresses: &addresses, ..PeerEnd::default() };
    let question =
        Question { direction: Direction::Ingress, subject, peer, protocol: Protocol::Tcp, port: 80 };
    let verdict = evaluator.verdict(&question);
    assert_eq!(evaluator.allows(&question), Some(verdict.is_allowed()));
    (verdict.is_allowed(), verdict.generation)
}

#[test]
fn whoever_holds_a_generation_sees_nothing_of_the_next() {
    let mut policies = Policies::default();
    let empty = policies.current().clone();
    policies.put(network("x", "a"));
    let first = policies.current().clone();
    policies.put(network("x", "b"));
    policies.put(admin("Accept", 5, "prod"));
    let view = NamespaceView { name: "x".into(), labels: labels(&[("env", "prod")]), doubt: None };
    let second = policies.current().clone();
    policies.put_namespace(&view);
    let third = policies.current().clone();
    policies.put(admin("Deny", 4, "prod"));
    let fourth = policies.current().clone();
    policies.remove(&network("x", "b").id);
    policies.remove(&admin("Deny", 4, "prod").id);
    policies.remove_namespace(&"x".into());
    let last = policies.current().clone();

    assert_eq!(ask(&empty, "b"), (true, 0));
    assert_eq!((ask(&first, "a").0, ask(&first, "b").0), (true, false));
    assert_eq!((ask(&second, "a").0, ask(&second, "b").0), (false, true));
    assert_eq!((ask(&third, "a").0, ask(&third, "b").0), (true, true), "accepted by the Admin tier");
    assert_eq!((ask(&fourth, "a").0, ask(&fourth, "b").0), (false, false));
    assert_eq!((ask(&last, "a").0, ask(&last, "b").0), (true, true));
    let generations = [&empty, &first, &second, &third, &fourth, &last].map(|rules| rules.generation());
    assert!(generations.is_sorted_by(|a, b| a < b), "{generations:?}");
    assert_eq!(ask(&fourth, "a").1, fourth.generation(), "the verdict carries it");
}

#[test]
fn readers_see_whole_generations_while_a_writer_changes_them() {
    // The policies of even and odd generations allow one of two clients each: a mixture would allow both or none.
    let mut policies = Policies::default();
    policies.put(network("x", "a"));
    let shared = std::sync::Mutex::new(policies.current().clone());
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..300 {
                        let rules = shared.lock().unwrap().clone();
                        let (a, b) = (ask(&rules, "a"), ask(&rules, "b"));
                        assert_ne!(a.0, b.0, "generation {}", rules.generation());
                        assert_eq!((a.1, b.1), (rules.generation(), rules.generation()));
                    }
                })
            })
            .collect();
        for round in 0..300 {
            policies.put(network("x", if round % 2 == 0 { "b" } else { "a" }));
            *shared.lock().unwrap() = policies.current().clone();
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

#[test]
fn a_policy_that_takes_the_name_of_another_takes_its_place_in_another_tier_too() {
    let tier = |tier: &str| {
        compiled(json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "c"},
            "spec": {"tier": tier, "priority": 1, "subject": {"namespaces": {}}, "ingress": [
                {"action": "Deny", "from": [{"namespaces": {}}]},
            ]},
        }))
    };
    let mut policies = Policies::default();
    policies.put(network("x", "a"));
    policies.put(tier("Admin"));
    assert!(!ask(policies.current(), "a").0);
    policies.put(tier("Baseline"));
    assert!(ask(policies.current(), "a").0);
    assert_eq!(policies.current().cluster_policies().count(), 1);
}
