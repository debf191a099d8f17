//! Without pods: whatever pod there could be, a representative stands for it.

use std::sync::Arc;

use netaudit::{
    cluster::{Cluster, Namespace, Object, Pod},
    model::Direction,
    policy::{
        CompiledForeign, CompiledPolicy, Labels,
        symbolic::{ConnectionSet, Connections, Representatives, Universe},
    },
};
use proptest::prelude::*;

use super::worlds::{self, NOW, World};

fn represented(world: &World, combined: bool) -> Representatives {
    let cluster = world.cluster();
    let policies: Vec<&CompiledPolicy> = cluster.policies().map(|it| &**it).collect();
    let foreign: Vec<&CompiledForeign> = cluster.foreign_policies().map(|it| &**it).collect();
    Representatives::new(&policies, &foreign, &cluster.namespace_views(), combined)
}

/// A pod as a representative is one: of a namespace and labels, and nothing else.
fn plain(template: &Pod, name: String, namespace: &Arc<str>, labels: &Labels) -> Pod {
    Pod {
        namespace: namespace.clone(),
        uid: name.as_str().into(),
        name: name.into(),
        labels: labels.clone(),
        node: None,
        ips: Default::default(),
        host_network: false,
        ports: [].into(),
        ..template.clone()
    }
}

/// Whether nothing in a set tells two groups apart.
fn alike(set: &ConnectionSet, a: usize, b: usize) -> bool {
    let groups = 0..set.universe().groups().len();
    [Direction::Egress, Direction::Ingress].into_iter().all(|it| set.outside(it, a) == set.outside(it, b))
        && groups
            .into_iter()
            .all(|it| set.between(a, it) == set.between(b, it) && set.between(it, a) == set.between(it, b))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_possible_pod_is_like_a_representative(world in worlds::world()) {
        let found = represented(&world, true);
        prop_assume!(found.complete);
        let template = world.pods[0].clone();
        let mut cluster: Cluster = World { pods: Vec::new(), ..world.clone() }.cluster();
        for (name, labels) in &found.namespaces {
            cluster.apply(Object::Namespace(Namespace { name: name.clone(), labels: labels.clone() }), NOW);
        }
        // Names in order, so that representatives come first in each namespace.
        for (index, (namespace, labels)) in found.pods.iter().enumerate() {
            cluster.apply(Object::Pod(plain(&template, format!("a-{index}"), namespace, labels)), NOW);
        }
        for (index, pod) in world.pods.iter().enumerate() {
            cluster.apply(Object::Pod(plain(&template, format!("z-{index}"), &pod.namespace, &pod.labels)), NOW);
        }
        let (ids, ends): (Vec<_>, Vec<_>) = cluster.pod_ends().into_iter().unzip();
        let is_representative: Vec<bool> =
            ids.iter().map(|id| cluster.pod(*id).is_some_and(|pod| pod.name.starts_with("a-"))).collect();
        let universe = Arc::new(Universe::new(&[cluster.rules().clone()], ends, cluster.node_ends()));
        let sets = Connections::new(&universe, 0);
        let representatives: Vec<usize> = (universe.groups().iter().enumerate())
            .filter(|(_, group)| group.members.iter().any(|it| is_representative[*it]))
            .map(|(at, _)| at)
            .collect();
        for group in 0..universe.groups().len() {
            let is_like = |it: &usize| alike(&sets.surely, group, *it) && alike(&sets.possibly, group, *it);
            prop_assert!(representatives.iter().any(is_like), "group {group} of {universe:?}");
        }
    }
}

#[test]
fn without_combinations_there_is_a_pod_for_each_selector() {
    let policy = serde_json::json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "p", "namespace": "shop" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "web" } },
            "ingress": [{ "from": [
                { "podSelector": { "matchExpressions": [{ "key": "tier", "operator": "Exists" }] } },
                { "namespaceSelector": { "matchLabels": { "env": "prod" } } },
                { "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "edge" } } },
            ] }],
        },
    });
    let loaded = netaudit::watch::manifests::load_text("p.json", &policy.to_string());
    let mut cluster = Cluster::new();
    cluster.reset_all(loaded.into_objects(), NOW);
    let policies: Vec<&CompiledPolicy> = cluster.policies().map(|it| &**it).collect();
    let text = |found: &Representatives| -> Vec<String> {
        found.pods.iter().map(|(namespace, labels)| format!("{namespace}: {labels}")).collect()
    };
    let few = Representatives::new(&policies, &[], &[], false);
    assert!(!few.complete);
    let expected = [
        "any other namespace: ",
        "edge: ",
        "namespaces with env=prod: ",
        "shop: ",
        "shop: app=web",
        "shop: tier=any",
    ];
    assert_eq!(text(&few), expected);
    let all = Representatives::new(&policies, &[], &[], true);
    assert!(all.complete);
    assert!(text(&all).contains(&"shop: app=web,tier=any".to_owned()), "{:?}", text(&all));
}
