//! Tests of the index.

mod broken;

use std::{net::IpAddr, time::Duration};

use serde_json::{Value, json};

use super::*;
use crate::model::{Cause, Decision};
use crate::{
    model::{Direction, Protocol},
    watch::convert::{self, Converted},
};

fn t(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(seconds)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn object(value: Value) -> Object {
    let converted = convert::document(&value, &"test".into());
    match converted.as_slice() {
        [Converted::Object(object)] => object.clone(),
        other => panic!("{other:?}"),
    }
}

/// A running pod in namespace `x` with a UID made of its name and number.
fn pod(name: &str, number: u32, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "x", "uid": format!("{name}-{number}"), "labels": { "app": name } },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": 8080 }] }] },
        "status": { "phase": "Running", "podIP": ip },
    })
}

fn key(kind: Kind, name: &str) -> ObjectKey {
    ObjectKey::new(kind, "x", name)
}

fn resolve(cluster: &Cluster, address: &str, at: i64) -> Endpoint {
    cluster.resolve(ip(address), 80, Protocol::Tcp, t(at))
}

fn deny_all() -> Object {
    object(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "deny", "namespace": "x" },
        "spec": { "podSelector": {}, "policyTypes": ["Ingress", "Egress"] },
    }))
}

#[test]
fn a_deleted_pod_is_found_for_earlier_flows_and_then_forgotten() {
    let mut cluster = Cluster::new();
    cluster.apply(object(pod("a", 1, "10.0.0.1")), t(10));
    let id = cluster.pod_by_name("x", "a").unwrap();
    cluster.delete(&key(Kind::Pod, "a"), t(20));
    assert_eq!(cluster.pod_by_name("x", "a"), None);
    assert_eq!(cluster.pod_by_uid("a-1"), Some(id));
    assert_eq!(cluster.deleted(id), Some(t(20)));
    assert_eq!(resolve(&cluster, "10.0.0.1", 19), Endpoint::Pod(id));
    assert_eq!(resolve(&cluster, "10.0.0.1", 20), Endpoint::External);
    assert_eq!(cluster.pods().count(), 0);

    cluster.expire(t(619));
    assert!(cluster.pod(id).is_some());
    assert_eq!(resolve(&cluster, "10.0.0.1", 19), Endpoint::Pod(id));
    cluster.expire(t(621));
    assert!(cluster.pod(id).is_none());
    assert_eq!(cluster.pod_by_uid("a-1"), None);
    assert_eq!(resolve(&cluster, "10.0.0.1", 19), Endpoint::External);
    let verdict = cluster.verdict(Direction::Egress, id, Party::OwnNode, Protocol::Tcp, 1);
    assert_eq!(verdict.decision, Decision::Unknown(Gap::PodNotSeen));

    // The next pod gets an id of its own.
    cluster.apply(object(pod("a", 2, "10.0.0.1")), t(700));
    assert_ne!(cluster.pod_by_name("x", "a"), Some(id));
}

#[test]
fn a_pod_of_the_same_name_with_another_uid_is_another_pod() {
    let mut cluster = Cluster::new();
    cluster.apply(object(pod("a", 1, "10.0.0.1")), t(10));
    let first = cluster.pod_by_name("x", "a").unwrap();
    cluster.apply(object(pod("a", 2, "10.0.0.2")), t(20));
    let second = cluster.pod_by_name("x", "a").unwrap();
    assert_ne!(first, second);
    assert_eq!(cluster.deleted(first), Some(t(20)));
    assert_eq!(resolve(&cluster, "10.0.0.1", 15), Endpoint::Pod(first));
    assert_eq!(resolve(&cluster, "10.0.0.1", 25), Endpoint::External);
    assert_eq!(resolve(&cluster, "10.0.0.2", 25), Endpoint::Pod(second));
}

#[test]
fn a_pod_thought_gone_that_comes_back_is_the_same() {
    let mut cluster = Cluster::new();
    cluster.apply(object(pod("a", 1, "10.0.0.1")), t(10));
    let id = cluster.pod_by_name("x", "a").unwrap();
    cluster.reset(Kind::Pod, Vec::new(), t(20));
    cluster.reset(Kind::Pod, vec![object(pod("a", 1, "10.0.0.1"))], t(30));
    assert_eq!(cluster.pod_by_name("x", "a"), Some(id));
    assert_eq!(cluster.deleted(id), None);
    assert_eq!(resolve(&cluster, "10.0.0.1", 31), Endpoint::Pod(id));
}

#[test]
fn a_completed_pod_no_longer_owns_what_its_status_shows() {
    let mut cluster = Cluster::new();
    cluster.apply(object(pod("job", 1, "10.0.0.1")), t(10));
    let id = cluster.pod_by_name("x", "job").unwrap();
    cluster.bind(ip("10.0.0.1"), id, t(11));
    let mut done = pod("job", 1, "10.0.0.1");
    done["status"]["phase"] = json!("Succeeded");
    cluster.apply(object(done), t(20));
    assert_eq!(resolve(&cluster, "10.0.0.1", 19), Endpoint::Pod(id));
    assert_eq!(resolve(&cluster, "10.0.0.1", 21), Endpoint::External);
    cluster.apply(object(pod("next", 1, "10.0.0.1")), t(22));
    let next = cluster.pod_by_name("x", "next").unwrap();
    assert_eq!(resolve(&cluster, "10.0.0.1", 23), Endpoint::Pod(next));
    assert_eq!(resolve(&cluster, "10.0.0.1", 19), Endpoint::Pod(id));
}

#[test]
fn two_pods_with_one_address_are_ambiguous_unless_the_kernel_saw_it() {
    let mut cluster = Cluster::new();
    cluster.apply(object(pod("a", 1, "10.0.0.1")), t(10));
    cluster.apply(object(pod("b", 1, "10.0.0.1")), t(20));
    assert_eq!(resolve(&cluster, "10.0.0.1", 21), Endpoint::Ambiguous);
    let b = cluster.pod_by_name("x", "b").unwrap();
    cluster.bind(ip("::ffff:10.0.0.1"), b, t(30));
    assert_eq!(resolve(&cluster, "10.0.0.1", 29), Endpoint::Ambiguous);
    assert_eq!(resolve(&cluster, "10.0.0.1", 30), Endpoint::Pod(b));
    let generation = cluster.generation();
    cluster.bind(ip("10.0.0.1"), b, t(33));
    assert_eq!(cluster.generation(), generation, "no news");
    assert_eq!(resolve(&cluster, "10.0.0.1", 31), Endpoint::Pod(b));
    // An address that only the kernel knows goes with the pod too.
    cluster.bind(ip("fe80::1"), b, t(31));
    cluster.delete(&key(Kind::Pod, "b"), t(40));
    assert_eq!(resolve(&cluster, "fe80::1", 35), Endpoint::Pod(b));
    assert_eq!(resolve(&cluster, "fe80::1", 41), Endpoint::External);
}

#[test]
fn pods_are_found_by_the_names_that_cgroups_give_them() {
    let mut cluster = Cluster::new();
    let mut mirror = pod("static-n1", 1, "10.0.0.1");
    mirror["metadata"]["uid"] = json!("aaaa-bbbb");
    mirror["metadata"]["annotations"] = json!({ "kubernetes.io/config.hash": "0123abcd" });
    mirror["metadata"]["ownerReferences"] = json!([{ "kind": "Node", "name": "n1", "controller": true }]);
    cluster.apply(object(mirror), t(1));
    let id = cluster.pod_by_name("x", "static-n1");
    assert!(id.is_some());
    assert_eq!(cluster.pod_by_uid("aaaa_bbbb"), id);
    assert_eq!(cluster.pod_by_uid("0123abcd"), id);
    assert_eq!(cluster.pod_by_uid("aaaa-cccc"), None);
    assert_eq!(&*cluster.pod(id.unwrap()).unwrap().workload.name, "static");
}

#[test]
fn nodes_and_host_network_pods_are_nodes() {
    let mut cluster = Cluster::new();
    cluster.apply(
        object(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" },
            "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
        })),
        t(1),
    );
    let mut host = pod("agent", 1, "192.0.2.9");
    host["spec"]["hostNetwork"] = json!(true);
    cluster.apply(object(host), t(1));
    assert_eq!(resolve(&cluster, "192.0.2.1", 2), Endpoint::Node("n1".into()));
    assert_eq!(resolve(&cluster, "192.0.2.9", 2), Endpoint::Node("n1".into()));
    cluster.delete(&ObjectKey::new(Kind::Node, "", "n1"), t(5));
    assert_eq!(resolve(&cluster, "192.0.2.1", 6), Endpoint::External);
    let agent = cluster.pod_by_name("x", "agent").unwrap();
    cluster.apply(deny_all(), t(6));
    let verdict = cluster.verdict(Direction::Egress, agent, Party::Ip(ip("198.51.100.1")), Protocol::Tcp, 1);
    assert_eq!(verdict.decision, Decision::Allowed(Cause::Exempt(Exemption::HostNetwork)));
    assert_eq!(cluster.selected_by(agent, Direction::Egress).count(), 0);
}

fn service(extra: Value) -> Object {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s", "namespace": "x" },
        "spec": {
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "externalIPs": ["203.0.113.1"],
            "selector": { "app": "a" },
            "ports": [{ "port": 80, "targetPort": "http" }, { "name": "dns", "port": 53, "protocol": "UDP" }],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.2" }, { "hostname": "lb" }] } },
    });
    for (name, value) in extra.as_object().unwrap() {
        service["spec"][name] = value.clone();
    }
    object(service)
}

fn backends(cluster: &Cluster, address: &str, port: u16, protocol: Protocol) -> Vec<(String, u16, bool)> {
    match cluster.resolve(ip(address), port, protocol, t(100)) {
        Endpoint::Service { name, backends, .. } => {
            assert_eq!(&*name, "s");
            backends.iter().map(|it| (it.ip.to_string(), it.port, it.pod.is_some())).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_leads_to_ready_endpoints_with_target_ports() {
    let mut cluster = Cluster::new();
    cluster.apply(object(pod("a", 1, "10.0.0.1")), t(1));
    cluster.apply(service(json!({})), t(1));
    for address in ["10.96.0.1", "203.0.113.1", "203.0.113.2", "::ffff:10.96.0.1"] {
        // No slices: as manifests are, the selector decides, and a named port is looked up on the pod.
        assert_eq!(backends(&cluster, address, 80, Protocol::Tcp), [("10.0.0.1".to_owned(), 8080, true)]);
    }
    assert_eq!(backends(&cluster, "10.96.0.1", 53, Protocol::Udp), [("10.0.0.1".to_owned(), 53, true)]);
    assert_eq!(backends(&cluster, "10.96.0.1", 81, Protocol::Tcp), []);
    assert_eq!(backends(&cluster, "fd00::1", 80, Protocol::Tcp), []);

    let slice = |name: &str, endpoints: Value| {
        object(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": name, "namespace": "x", "labels": { "kubernetes.io/service-name": "s" } },
            "addressType": "IPv4", "ports": [{ "name": "", "port": 9090 }, { "name": "dns", "port": 5353, "protocol": "UDP" }],
            "endpoints": endpoints,
        }))
    };
    let ready = json!({ "addresses": ["10.0.0.1"], "conditions": { "ready": true } });
    let terminating = json!({ "addresses": ["10.0.0.7"], "conditions": { "ready": false, "serving": true } });
    let dead = json!({ "addresses": ["10.0.0.8"], "conditions": { "ready": false } });
    cluster.apply(slice("s-1", json!([ready, terminating, dead])), t(2));
    cluster.apply(slice("s-2", json!([{ "addresses": ["203.0.113.77"] }])), t(2));
    assert_eq!(
        backends(&cluster, "10.96.0.1", 80, Protocol::Tcp),
        [("10.0.0.1".to_owned(), 9090, true), ("203.0.113.77".to_owned(), 9090, false)]
    );
    assert_eq!(backends(&cluster, "10.96.0.1", 53, Protocol::Udp)[0].1, 5353);
    cluster.apply(slice("s-1", json!([terminating, dead])), t(3));
    cluster.delete(&key(Kind::EndpointSlice, "s-2"), t(3));
    assert_eq!(backends(&cluster, "10.96.0.1", 80, Protocol::Tcp), [("10.0.0.7".to_owned(), 9090, false)]);

    // Another address: the old one is no service's any more. Then headless: none.
    cluster.apply(service(json!({ "clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2"] })), t(4));
    assert_eq!(resolve(&cluster, "10.96.0.1", 5), Endpoint::External);
    assert_eq!(backends(&cluster, "10.96.0.2", 80, Protocol::Tcp).len(), 1);
    cluster.apply(service(json!({ "clusterIP": "None", "clusterIPs": ["None"], "externalIPs": [] })), t(6));
    assert_eq!(resolve(&cluster, "10.96.0.2", 7), Endpoint::External);
    cluster.apply(service(json!({ "type": "ExternalName", "externalName": "example.org" })), t(8));
    assert_eq!(resolve(&cluster, "10.96.0.1", 9), Endpoint::External);
}

#[test]
fn a_node_port_leads_to_the_services_backends_of_one_family() {
    let mut cluster = Cluster::new();
    let mut dual = pod("a", 1, "10.0.0.1");
    dual["status"]["podIPs"] = json!([{ "ip": "10.0.0.1" }, { "ip": "fd01::1" }]);
    cluster.apply(object(dual), t(1));
    let ports = json!([
        { "port": 80, "targetPort": "http", "nodePort": 30080 },
        { "name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053 },
        { "name": "inside", "port": 81 },
    ]);
    let ask = |cluster: &Cluster, port: u16, protocol, family: &str| {
        cluster.node_port(port, protocol, ip(family), t(2)).map(|found| match found {
            Endpoint::Service { namespace, name, backends } => {
                let backends: Vec<_> = backends.iter().map(|it| format!("{} {}", it.ip, it.port)).collect();
                format!("{namespace}/{name} {}", backends.join(" "))
            }
            other => panic!("{other:?}"),
        })
    };
    // The API server refuses node ports on services of this type.
    cluster.apply(service(json!({ "ports": ports })), t(1));
    assert_eq!(ask(&cluster, 30080, Protocol::Tcp, "192.0.2.1"), None);

    cluster.apply(service(json!({ "type": "NodePort", "ports": ports })), t(1));
    let leads = |text: &str| Some(text.to_owned());
    assert_eq!(ask(&cluster, 30080, Protocol::Tcp, "192.0.2.1"), leads("x/s 10.0.0.1 8080"));
    assert_eq!(ask(&cluster, 30080, Protocol::Tcp, "::ffff:192.0.2.1"), leads("x/s 10.0.0.1 8080"));
    assert_eq!(ask(&cluster, 30080, Protocol::Tcp, "fd02::1"), leads("x/s fd01::1 8080"));
    assert_eq!(ask(&cluster, 30053, Protocol::Udp, "192.0.2.1"), leads("x/s 10.0.0.1 53"));
    for (port, protocol) in
        [(30080, Protocol::Udp), (30053, Protocol::Tcp), (80, Protocol::Tcp), (81, Protocol::Tcp)]
    {
        assert_eq!(ask(&cluster, port, protocol, "192.0.2.1"), None, "{port} {protocol}");
    }

    // A service of one family has no port on the addresses of the other; one without backends still has its port.
    let only_v4 = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "externalIPs": [],
        "selector": { "app": "nobody" }, "ports": [{ "port": 80, "nodePort": 30081 }],
    });
    cluster.apply(service(only_v4), t(1));
    assert_eq!(ask(&cluster, 30080, Protocol::Tcp, "192.0.2.1"), None, "the port of before");
    assert_eq!(ask(&cluster, 30081, Protocol::Tcp, "fd02::1"), None);
    assert_eq!(ask(&cluster, 30081, Protocol::Tcp, "192.0.2.1"), leads("x/s "));
    cluster.delete(&key(Kind::Service, "s"), t(1));
    assert_eq!(ask(&cluster, 30081, Protocol::Tcp, "192.0.2.1"), None);
}

#[test]
fn a_load_balancer_may_have_a_nodes_address() {
    let mut cluster = Cluster::new();
    cluster.apply(object(pod("a", 1, "10.0.0.1")), t(1));
    cluster.apply(
        object(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" },
            "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
        })),
        t(1),
    );
    let balanced = |mode: &str| {
        object(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s", "namespace": "x" },
            "spec": { "type": "LoadBalancer", "selector": { "app": "a" }, "ports": [{ "port": 443, "targetPort": 8443 }] },
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1", "ipMode": mode }] } },
        }))
    };
    let leads_to = |cluster: &Cluster, port| {
        assert_eq!(resolve(cluster, "192.0.2.1", 2), Endpoint::Node("n1".into()));
        match cluster.node_port(port, Protocol::Tcp, ip("192.0.2.1"), t(2)) {
            Some(Endpoint::Service { backends, .. }) => Some(backends[0].port),
            None => None,
            other => panic!("{other:?}"),
        }
    };
    cluster.apply(balanced("VIP"), t(1));
    assert_eq!(leads_to(&cluster, 443), Some(8443));
    assert_eq!(leads_to(&cluster, 8443), None);
    cluster.apply(balanced("Proxy"), t(1));
    assert_eq!(leads_to(&cluster, 443), None);
}

#[test]
fn an_address_is_expected_on_the_node_with_the_smallest_network() {
    let mut cluster = Cluster::new();
    let node = |name: &str, networks: &[&str]| {
        object(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name }, "spec": { "podCIDRs": networks },
        }))
    };
    let on = |cluster: &Cluster, address: &str| {
        let found = cluster.pod_network_node(ip(address)).map(ToString::to_string);
        assert_eq!(cluster.in_pod_network(ip(address)), found.is_some());
        found
    };
    let is = |name: &str| Some(name.to_owned());
    cluster.apply(node("n1", &["10.0.0.0/16", "fd00::/64"]), t(1));
    cluster.apply(node("n2", &["10.0.1.7/24"]), t(1));
    assert_eq!(on(&cluster, "10.0.0.1"), is("n1"));
    assert_eq!(on(&cluster, "10.0.1.1"), is("n2"));
    assert_eq!(on(&cluster, "::ffff:10.0.1.1"), is("n2"));
    assert_eq!(on(&cluster, "fd00::1"), is("n1"));
    assert_eq!(on(&cluster, "10.1.0.1"), None);
    assert_eq!(on(&cluster, "fd00:0:0:1::1"), None);
    // Two nodes with one network: the first by name, until it goes.
    cluster.apply(node("n0", &["10.0.1.0/24"]), t(2));
    assert_eq!(on(&cluster, "10.0.1.1"), is("n0"));
    cluster.delete(&ObjectKey::new(Kind::Node, "", "n0"), t(3));
    assert_eq!(on(&cluster, "10.0.1.1"), is("n2"));
    cluster.apply(node("n2", &["10.2.0.0/24"]), t(4));
    assert_eq!(on(&cluster, "10.0.1.1"), is("n1"));
    assert_eq!(on(&cluster, "10.2.0.1"), is("n2"));
    cluster.reset(Kind::Node, Vec::new(), t(5));
    assert_eq!(
        [on(&cluster, "10.0.1.1"), on(&cluster, "10.2.0.1"), on(&cluster, "fd00::1")],
        [None, None, None]
    );
}

#[test]
fn services_that_share_an_address_are_told_apart_by_port() {
    let mut cluster = Cluster::new();
    for (name, port) in [("one", 80), ("two", 443)] {
        cluster.apply(
            object(json!({
                "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "x" },
                "spec": { "externalIPs": ["203.0.113.1"], "ports": [{ "port": port }] },
            })),
            t(1),
        );
    }
    for (port, expected) in [(80, "one"), (443, "two")] {
        match cluster.resolve(ip("203.0.113.1"), port, Protocol::Tcp, t(2)) {
            Endpoint::Service { name, .. } => assert_eq!(&*name, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_foreign_policy_that_is_about_other_pods_now_leaves_nothing_behind() {
    let mut cluster = Cluster::new();
    cluster.apply(object(pod("a", 1, "10.0.0.1")), t(1));
    let id = cluster.pod_by_name("x", "a").unwrap();
    let policy = |selector: Value| {
        object(json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": { "name": "c", "namespace": "x" },
            "spec": { "endpointSelector": selector, "egress": [{}] },
        }))
    };
    let mut caveats = |object: Option<Object>| {
        match object {
            Some(object) => drop(cluster.apply(object, t(2))),
            None => cluster.delete(&key(Kind::CiliumNetworkPolicy, "c"), t(2)),
        }
        let peer = Party::Ip(ip("198.51.100.1"));
        cluster.verdict(Direction::Egress, id, peer, Protocol::Tcp, 1).caveats.len()
    };
    let by_name = "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name";
    let of_namespaces = policy(
        json!({ "matchExpressions": [{ "key": "k8s:io.cilium.k8s.namespace.labels.env", "operator": "DoesNotExist" }] }),
    );
    assert_eq!(caveats(Some(policy(json!({})))), 1);
    assert_eq!(caveats(Some(of_namespaces.clone())), 1);
    assert_eq!(caveats(Some(policy(json!({ "matchLabels": { by_name: "y", "app": "b" } })))), 0);
    assert_eq!(caveats(Some(of_namespaces.clone())), 1);
    assert_eq!(caveats(Some(policy(json!({ "matchLabels": { "app": "b" } })))), 0);
    assert_eq!(caveats(Some(of_namespaces)), 1);
    assert_eq!(caveats(None), 0);
}

#[test]
fn every_change_is_seen_by_the_next_verdict() {
    let mut cluster = Cluster::new();
    for (name, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        cluster.apply(object(pod(name, 1, address)), t(1));
    }
    let (a, b) = (cluster.pod_by_name("x", "a").unwrap(), cluster.pod_by_name("x", "b").unwrap());
    let policy = |env: &str| {
        object(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": "p", "namespace": "x" },
            "spec": { "podSelector": { "matchLabels": { "app": "b" } }, "ingress": [{
                "from": [{ "namespaceSelector": { "matchLabels": { "env": env } } }],
                "ports": [{ "port": "http" }],
            }] },
        }))
    };
    let ask = |cluster: &mut Cluster| {
        let before = cluster.generation();
        let verdict = cluster.verdict(Direction::Ingress, b, Party::Pod(a), Protocol::Tcp, 8080);
        assert_eq!(cluster.generation(), before, "asking changes nothing");
        verdict.as_str()
    };
    let mut generation = cluster.generation();
    let mut changed = |cluster: &Cluster| {
        assert!(cluster.generation() > generation);
        generation = cluster.generation();
    };
    assert_eq!(ask(&mut cluster), "allowed");
    cluster.apply(policy("prod"), t(2));
    changed(&cluster);
    assert_eq!(cluster.implied_namespaces(), ["x".into()]);
    assert_eq!(ask(&mut cluster), "denied");
    let namespace = |labels: Value| {
        object(
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "x", "labels": labels } }),
        )
    };
    cluster.apply(namespace(json!({ "env": "prod" })), t(3));
    changed(&cluster);
    assert_eq!(ask(&mut cluster), "allowed");
    assert!(cluster.implied_namespaces().is_empty());
    let mut renamed = pod("b", 1, "10.0.0.2");
    renamed["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9090);
    cluster.apply(object(renamed), t(4));
    changed(&cluster);
    assert_eq!(ask(&mut cluster), "denied");
    cluster.apply(object(pod("b", 1, "10.0.0.2")), t(5));
    assert_eq!(ask(&mut cluster), "allowed");
    cluster.apply(policy("test"), t(6));
    assert_eq!(ask(&mut cluster), "denied");
    cluster.delete(&ObjectKey::new(Kind::Namespace, "", "x"), t(7));
    assert_eq!(ask(&mut cluster), "denied");
    cluster.reset(Kind::NetworkPolicy, Vec::new(), t(8));
    assert_eq!(ask(&mut cluster), "allowed");
    assert_eq!(cluster.policies().count(), 0);
}

#[test]
fn selected_by_names_the_policies_of_one_direction() {
    let mut cluster = Cluster::new();
    cluster.apply(object(pod("a", 1, "10.0.0.1")), t(1));
    cluster.apply(deny_all(), t(1));
    for (name, namespace, app) in [("b", "x", "a"), ("c", "x", "other"), ("d", "y", "a")] {
        cluster.apply(
            object(json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": { "name": name, "namespace": namespace },
                "spec": { "podSelector": { "matchLabels": { "app": app } } },
            })),
            t(1),
        );
    }
    let a = cluster.pod_by_name("x", "a").unwrap();
    let names =
        |direction| cluster.selected_by(a, direction).map(|it| it.id.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(Direction::Ingress), ["b", "deny"]);
    assert_eq!(names(Direction::Egress), ["deny"]);
}

#[test]
fn memory_does_not_grow_with_pods_that_came_and_went() {
    let mut cluster = Cluster::new();
    for round in 0..2_000 {
        let now = t(i64::from(round) * 10);
        cluster.apply(object(pod("job", round, &format!("10.0.{}.{}", round / 250, round % 250))), now);
        cluster.expire(now);
    }
    // Ten minutes of tombstones, one every ten seconds.
    assert!(cluster.pods.len() <= 62, "{}", cluster.pods.len());
    assert!(cluster.addresses.len() <= 62, "{}", cluster.addresses.len());
    assert_eq!(REMEMBERED, Duration::from_secs(600));
}

#[test]
fn a_scan_over_all_ports_and_many_addresses_stays_right() {
    let mut cluster = Cluster::new();
    cluster.apply(object(pod("a", 1, "10.0.0.1")), t(1));
    cluster.apply(
        object(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": "p", "namespace": "x" },
            "spec": { "podSelector": {}, "policyTypes": ["Egress"], "egress": [{
                "to": [{ "ipBlock": { "cidr": "198.18.0.0/15" } }], "ports": [{ "port": 100, "endPort": 200 }],
            }] },
        })),
        t(1),
    );
    let a = cluster.pod_by_name("x", "a").unwrap();
    // More questions than are kept.
    for number in 0..70_000_u32 {
        let address = IpAddr::from((0xc612_0000_u32 + number).to_be_bytes());
        let port = (number % 65_535 + 1) as u16;
        let verdict = cluster.verdict(Direction::Egress, a, Party::Ip(address), Protocol::Tcp, port);
        assert_eq!(verdict.is_allowed(), (100..=200).contains(&port), "{address} {port}");
    }
}
