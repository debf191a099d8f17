//! What the proof of containment takes for shown, and what not.

use netaudit::{
    advise::tighten::{Contained, containment},
    cluster::Object,
    policy::declared::NetworkPolicy,
    watch::convert,
};
use serde_json::{Value, json};

use super::command::{DB, Scene, TIGHT, usual};
use crate::command::{Run, folder, netaudit, run};

fn policy(spec: &Value) -> NetworkPolicy {
    let value = json!({"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1",
                       "metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
    match convert::object(netaudit::cluster::Kind::NetworkPolicy, &value, &"test".into()) {
        Object::NetworkPolicy(policy) => policy,
        other => panic!("{other:?}"),
    }
}

fn shown(before: &Value, after: &Value) -> Contained {
    containment(&policy(before), &policy(after), &[])
}

#[test]
fn what_a_policy_allows_is_what_its_rules_allow_whatever_else_isolates() {
    let ingress =
        json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress"], "ingress": []});
    // It did not isolate, and now lets out to everybody: another policy may have isolated.
    let mut opens = ingress.clone();
    opens["policyTypes"] = json!(["Ingress", "Egress"]);
    opens["egress"] = json!([{}]);
    assert!(matches!(shown(&ingress, &opens), Contained::Not(_)));
    // Isolated without a rule it only takes away.
    opens["egress"] = json!([]);
    assert_eq!(shown(&ingress, &opens), Contained::ByElements);
    // For more pods.
    let out = json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"],
                     "egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]});
    let mut wide = out.clone();
    wide["podSelector"] = json!({});
    assert!(matches!(shown(&out, &wide), Contained::Not(_)));
    assert!(matches!(shown(&wide, &out), Contained::Not(_)), "the others are isolated no more");
}

#[test]
fn labels_that_nobody_knows_and_ports_by_name_are_any() {
    let from =
        |peer: Value| json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [peer]}]});
    for selector in [
        json!({"key": "env", "operator": "NotIn", "values": ["prod"]}),
        json!({"key": "env", "operator": "DoesNotExist"}),
    ] {
        let before = from(json!({"namespaceSelector": {"matchExpressions": [selector]}}));
        let after = from(json!({"podSelector": {}}));
        assert!(matches!(shown(&before, &after), Contained::Not(_)), "shop may have the label");
        assert_eq!(shown(&before, &before), Contained::ByElements);
    }
    let ports =
        |ports: Value| json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": ports}]});
    let some = ports(json!([{"port": 1, "endPort": 65534}, {"port": "http"}]));
    let other = ports(json!([{"port": 1, "endPort": 65534}, {"port": "web"}]));
    assert!(!shown(&some, &other).is_shown(), "no number is left to tell the two apart");
    let few = ports(json!([{"port": 80}]));
    assert!(matches!(shown(&few, &ports(json!([{"port": "http"}]))), Contained::Not(_)));
    let all = ports(json!([{"protocol": "TCP"}]));
    assert_eq!(
        shown(&all, &ports(json!([{"port": "http"}, {"port": 7, "endPort": 9}]))),
        Contained::ByElements
    );
    // Split in two, it is the same.
    let split = ports(json!([{"port": 1, "endPort": 100}, {"port": 101, "endPort": 200}]));
    let whole = ports(json!([{"port": 1, "endPort": 200}]));
    assert_eq!(
        (shown(&split, &whole), shown(&whole, &split)),
        (Contained::ByConnections, Contained::ByElements)
    );
}

#[test]
fn ranges_are_within_with_their_holes() {
    let block = |block: Value| json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": block}]}]});
    let wide = block(json!({"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}));
    for (inner, is_within) in [
        (json!({"cidr": "10.2.0.0/16"}), true),
        (json!({"cidr": "10.0.0.0/15", "except": ["10.1.0.0/16"]}), true),
        (json!({"cidr": "10.0.0.0/15"}), false),
        (json!({"cidr": "10.1.2.0/24"}), false),
        (json!({"cidr": "10.0.0.0/7", "except": ["10.1.0.0/16"]}), false),
        (json!({"cidr": "fd00::/8"}), false),
    ] {
        let found = shown(&wide, &block(inner.clone()));
        assert_eq!(found.is_shown(), is_within, "{inner}: {found:?}");
    }
}

fn verify(scene: &Scene, before: &[(&str, &str)], after: &[(&str, &str)], more: &[&str]) -> Run {
    let (before, after) = (folder(before), folder(after));
    let mut command = netaudit();
    command.arg("verify-tighten").arg("--before").arg(before.path()).arg("-f").arg(after.path());
    run(command.arg("--flow-store").arg(scene.path("store")).args(more))
}

#[test]
fn a_replay_that_says_nothing_of_a_policy_is_no_proof() -> anyhow::Result<()> {
    let scene = Scene::new(DB, usual)?;
    let bare = |text: &str| text.replace("  namespace: shop\n", "");
    let worse = TIGHT.replace("app: web", "app: api");
    let ran = verify(&scene, &[("a.yaml", &bare(DB))], &[("a.yaml", &bare(&worse))], &["--require-complete"]);
    assert_eq!(ran.status, 1, "{}", ran.out);
    assert!(ran.out.contains("NetworkPolicy default/db was in no cluster of these stores"), "{}", ran.out);
    let ran = verify(
        &scene,
        &[("a.yaml", &bare(DB))],
        &[("a.yaml", &bare(&worse))],
        &["--default-namespace", "shop"],
    );
    assert!(ran.status == 1 && ran.out.contains("shop/web → shop/db TCP 5432: 5 flows"), "{}", ran.out);
    let ran = verify(&scene, &[("a.yaml", DB)], &[("a.yaml", TIGHT)], &["--since", "2026-01-01T01:00:00Z"]);
    assert!(ran.out.contains("no recorded flow was judged again"), "{}", ran.out);
    // Twice, nobody knows which of the two counts.
    let open = DB.replace("  ingress:\n", "  ingress:\n    - {}\n");
    let ran = verify(&scene, &[("a.yaml", DB), ("b.yaml", DB)], &[("a.yaml", &open), ("b.yaml", DB)], &[]);
    assert!(ran.status == 2 && ran.err.contains("NetworkPolicy shop/db is there twice"), "{}", ran.err);
    // A new policy may open what another one of the cluster has closed.
    let new = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: new, namespace: shop}\nspec: {podSelector: {}, policyTypes: \
               [Egress], egress: [{}]}\n";
    let ran = verify(&scene, &[("a.yaml", DB)], &[("a.yaml", DB), ("b.yaml", new)], &[]);
    assert!(ran.status == 1 && ran.out.contains("all policies together: NOT SHOWN"), "{}", ran.out);
    Ok(())
}
