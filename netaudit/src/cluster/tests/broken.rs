//! Objects that could not be read.

use super::*;

#[test]
fn a_broken_pod_spoils_its_address_until_it_is_mended_or_gone() {
    let mut cluster = Cluster::new();
    cluster.apply(object(pod("a", 1, "10.0.0.1")), t(1));
    let mut bad = pod("a", 1, "10.0.0.1");
    bad["metadata"]["labels"] = json!(["no labels"]);
    let warnings = cluster.apply(object(bad.clone()), t(10));
    assert_eq!(warnings[0].to_string(), "Pod x/a: metadata.labels: expected an object, found a list");
    assert_eq!(cluster.broken().count(), 1);
    assert!(
        matches!(resolve(&cluster, "10.0.0.1", 11), Endpoint::Invalid(reason) if reason.starts_with("Pod x/a"))
    );
    assert!(matches!(resolve(&cluster, "10.0.0.1", 9), Endpoint::Pod(_)), "what was before is still known");
    let generation = cluster.generation();
    cluster.apply(object(bad.clone()), t(11));
    assert_eq!(cluster.generation(), generation, "the same again changes nothing");

    cluster.apply(object(pod("a", 1, "10.0.0.1")), t(20));
    assert_eq!(cluster.broken().count(), 0);
    assert!(matches!(resolve(&cluster, "10.0.0.1", 21), Endpoint::Pod(_)));
    cluster.apply(object(bad), t(30));
    cluster.delete(&key(Kind::Pod, "a"), t(40));
    assert_eq!(cluster.broken().count(), 0);
    assert_eq!(resolve(&cluster, "10.0.0.1", 41), Endpoint::External);
}

#[test]
fn a_broken_node_keeps_its_name_and_addresses() {
    let mut cluster = Cluster::new();
    let node = |labels: Value| {
        object(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1", "labels": labels },
            "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
        }))
    };
    let ends = |cluster: &Cluster| -> Vec<(String, Option<IpAddr>)> {
        cluster.node_ends().into_iter().map(|it| (it.name.to_string(), it.address)).collect()
    };
    cluster.apply(node(json!({})), t(1));
    cluster.apply(node(json!(7)), t(2));
    assert_eq!(cluster.broken().count(), 1);
    assert_eq!(resolve(&cluster, "192.0.2.1", 3), Endpoint::Node("n1".into()));
    assert_eq!(ends(&cluster), [("n1".to_owned(), Some(ip("192.0.2.1")))]);
    cluster.apply(node(json!({})), t(4));
    assert_eq!(cluster.broken().count(), 0);
    assert_eq!(resolve(&cluster, "192.0.2.1", 5), Endpoint::Node("n1".into()));
    cluster.apply(node(json!(7)), t(6));
    cluster.delete(&ObjectKey::new(Kind::Node, "", "n1"), t(7));
    assert_eq!(resolve(&cluster, "192.0.2.1", 8), Endpoint::External);
    assert_eq!(ends(&cluster), []);

    // Of a node without an object its pods tell the address; of a pod without a node the pod is all that is known.
    let mut host = pod("cni", 1, "192.0.2.4");
    host["spec"]["hostNetwork"] = json!(true);
    cluster.apply(object(host.clone()), t(9));
    assert_eq!(ends(&cluster), [("n1".to_owned(), Some(ip("192.0.2.4")))]);
    host["spec"]["nodeName"] = Value::Null;
    cluster.apply(object(host), t(10));
    assert_eq!(ends(&cluster), [("of x/cni".to_owned(), Some(ip("192.0.2.4")))]);
}

#[test]
fn an_unreadable_document_blinds_until_the_next_complete_list() {
    let mut cluster = Cluster::new();
    let unreadable = Object::Broken(Broken {
        key: None,
        kind: None,
        namespace: None,
        service: None,
        ips: SmallVec::new(),
        source: "file.yaml:1".into(),
        reason: "no YAML".into(),
    });
    let pod = object(pod("a", 1, "10.0.0.1"));
    cluster.reset_all(vec![pod.clone(), unreadable.clone()], t(1));
    let id = cluster.pod_by_name("x", "a").unwrap();
    let ask = |cluster: &mut Cluster| {
        cluster.verdict(Direction::Egress, id, Party::Ip(ip("198.51.100.1")), Protocol::Tcp, 1)
    };
    let no_yaml = Gap::Invalid("file.yaml:1: no YAML".into());
    assert_eq!(ask(&mut cluster).decision, Decision::Unknown(no_yaml));
    let generation = cluster.generation();
    cluster.reset_all(vec![pod.clone(), unreadable], t(2));
    assert_eq!(cluster.generation(), generation, "the same list changes nothing");
    cluster.reset_all(vec![pod], t(3));
    assert_eq!(ask(&mut cluster).decision, Decision::Allowed(Cause::NotIsolated));
    assert!(cluster.generation() > generation);
}
