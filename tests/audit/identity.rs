//! Who somebody is, against everything that can make it look otherwise: visitors, bound addresses, reuse, node ports.

use netaudit::{
    audit::ActorKind,
    cluster::{Kind, Object, ObjectKey},
    model::{CgroupId, Exemption, Gap, Observation, Outcome, Protocol},
};
use serde_json::json;

use super::*;

#[test]
fn who_acts_first_in_a_namespace_is_not_its_owner() {
    let mut world = World::new(vec![deny_egress()]);
    // b's container acts in the namespace of a, which nothing has named yet; the address says whose it is.
    let flow = world.one(egress(555, 12, "10.0.0.1:40000", "10.0.0.2:80"));
    assert_eq!(
        (&flow.subject, flow.actor_pod.as_deref(), flow.actor_kind),
        (&Subject::Pod(world.id("a")), Some(uid("b").as_str()), ActorKind::Pod)
    );
    let mut line = Vec::new();
    netaudit::report::flow_line(&telling(&world, &flow), &mut line);
    let line: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!((&line["subject"]["pod"], &line["actor"]["pod"]), (&json!("a"), &json!("b")));
    assert_eq!((&line["actor"]["kind"], &line["actor"]["workload"]), (&json!("pod"), &json!("b")));
    // Without an address the actor is the best guess, until an address says otherwise.
    let mut sent = egress(556, 12, "0.0.0.0:5000", "10.0.0.2:53");
    (sent.protocol, sent.outcome) = (Protocol::Udp, Outcome::Sent);
    assert!(world.see(sent).is_empty(), "an answer may come");
    assert_eq!(world.settle(t(15))[0].subject, Subject::Pod(world.id("b")));
    assert_eq!(
        world.one(egress(556, 12, "10.0.0.1:40000", "10.0.0.2:80")).subject,
        Subject::Pod(world.id("a"))
    );
}

#[test]
fn where_an_actor_is_from_is_said_of_each() {
    let mut world = World::new(vec![]);
    world.auditor.attribution_mut().cgroup(CgroupId(90), "/system.slice/containerd.service");
    // A port-forward dials the loopback of the pod's namespace.
    let forwarded = world.one(egress(101, 90, "127.0.0.1:40000", "127.0.0.1:80"));
    assert_eq!((forwarded.actor_kind, &forwarded.subject), (ActorKind::Host, &Subject::Pod(world.id("a"))));
    assert_eq!(exemption(&forwarded), Some(Exemption::Loopback));
    // And who enters it to reach others acts as the pod, for the policies.
    let entered = world.one(egress(101, 90, "10.0.0.1:40001", "10.0.0.2:80"));
    assert_eq!((entered.actor_kind, &entered.subject), (ActorKind::Host, &Subject::Pod(world.id("a"))));
    for (cgroup, kind) in
        [(Some(11), ActorKind::Subject), (Some(77), ActorKind::Unknown), (None, ActorKind::Unknown)]
    {
        let mut seen = egress(101, 0, "10.0.0.1:40002", "10.0.0.2:80");
        seen.actor.cgroup = cgroup.map(CgroupId);
        assert_eq!(world.one(seen).actor_kind, kind, "{cgroup:?}");
    }
    // The node's own processes and hostNetwork pods are the node.
    assert_eq!(world.one(egress(1, 90, "192.168.0.1:40003", "10.0.0.2:80")).actor_kind, ActorKind::Subject);
}

#[test]
fn a_bound_address_proves_nothing_until_traffic_came_back() {
    let remote = object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": "far", "uid": uid("far")},
        "spec": {"nodeName": "node-2"}, "status": {"phase": "Running", "podIP": "10.0.1.5"},
    }));
    let mut world = World::new(vec![remote]);
    let far = world.id("far");
    let owner = |world: &mut World, address: &str| {
        let seen = egress(102, 12, "10.0.0.2:40000", &format!("{address}:80"));
        world.one(seen).peer.kind
    };
    // Any program may bind an address that is not its own (IP_FREEBIND) and send from it.
    for (outcome, local, peer) in [
        (Outcome::Sent, "10.0.1.5:9", "10.0.0.2:53"),
        (Outcome::Aborted, "10.0.1.5:9", "10.0.0.2:53"),
        // It may even have it on its loopback, and talk to itself.
        (Outcome::Established, "10.0.1.5:9", "10.0.0.1:80"),
        (Outcome::Established, "10.0.1.5:9", "127.0.0.1:80"),
        // An address of a pod on another node cannot be in use here at all.
        (Outcome::Established, "10.0.1.5:9", "10.0.0.2:80"),
    ] {
        world.see(Observation { outcome, ..egress(101, 11, local, peer) });
        world.settle(t(15));
        assert_eq!(owner(&mut world, "10.0.1.5"), PeerKind::Pod(far), "{outcome} from {local} to {peer}");
    }
}

/// The Service of `b` with a port on the nodes.
fn node_port() -> Vec<Object> {
    let [_, slice] = service("b", "10.96.0.1", &[("b", "10.0.0.2")], 8080);
    let service = object(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "b"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "selector": {"app": "b"},
                 "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}]},
    }));
    let other = object(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2"},
        "spec": {"podCIDR": "10.0.1.0/24"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.2"}]}}));
    vec![service, slice, other]
}

#[test]
fn a_node_port_is_judged_by_the_endpoints_behind_it() {
    let mut objects = node_port();
    objects.push(deny_egress());
    let mut world = World::new(objects);
    for address in ["192.168.0.1", "192.168.0.2"] {
        let flow = world.one(egress(101, 11, "10.0.0.1:40000", &format!("{address}:30080")));
        assert!(flow.verdict.is_denied(), "{:?}", flow.verdict);
        assert_eq!((flow.port, flow.peer.kind), (8080, PeerKind::Pod(world.id("b"))));
    }
    let plain = world.one(egress(101, 11, "10.0.0.1:40000", "192.168.0.1:30081"));
    assert_eq!(exemption(&plain), Some(Exemption::OwnNode));
}

#[test]
fn another_nodes_address_may_stand_for_anybody_where_a_node_port_leads_here() {
    let deny = || policy("deny-in", json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
    let seen = |source: &str| ingress(102, 12, "10.0.0.2:8080", &format!("{source}:40000"));
    let mut objects = node_port();
    objects.push(deny());
    let mut world = World::new(objects);
    assert_eq!(reason(&world.one(seen("192.168.0.2"))), Some(Gap::SourceTranslated));
    // Its bridge is in its pods' network, and nobody's pod.
    assert!(world.see(seen("10.0.1.1")).is_empty());
    assert_eq!(reason(&world.tick(t(12))[0]), Some(Gap::SourceTranslated));
    // Without a node port the node is an ordinary source: a hostNetwork pod.
    let mut world = World::new(vec![deny(), node_port().remove(2)]);
    assert!(world.one(seen("192.168.0.2")).verdict.is_denied());
}

#[test]
fn an_address_given_to_a_new_pod_does_not_make_it_the_old_one() {
    let mut world = World::new(vec![
        pod("old", Some("10.0.0.9")),
        policy(
            "deny-new",
            json!({
                "podSelector": {"matchLabels": {"app": "new"}}, "policyTypes": ["Egress"],
            }),
        ),
    ]);
    // The watch is late: the API still shows the old pod, whose last process is gone; the new one acts already.
    world.auditor.attribution_mut().cgroup(CgroupId(13), &format!("/kubepods/pod{}/c", uid("new")));
    let seen = egress(700, 13, "10.0.0.9:40000", "10.0.0.2:80");
    assert!(world.see(seen).is_empty(), "its object is waited for");
    world.auditor.cluster_mut().delete(&ObjectKey::new(Kind::Pod, "shop", "old"), t(11));
    world.apply(pod("new", Some("10.0.0.9")), t(11));
    let flows = world.tick(t(11));
    assert_eq!(flows[0].subject, Subject::Pod(world.id("new")));
    assert!(flows[0].verdict.is_denied());
}

#[test]
fn a_proof_ends_with_the_pod_that_it_named() {
    let mut world = World::new(vec![pod("old", Some("10.0.0.9"))]);
    // Nothing names the actor, so the late API is all there is: the old pod.
    let mut seen = egress(700, 0, "10.0.0.9:40000", "10.0.0.2:80");
    seen.actor.cgroup = None;
    assert_eq!(world.one(seen).subject, Subject::Pod(world.id("old")));
    world.auditor.cluster_mut().delete(&ObjectKey::new(Kind::Pod, "shop", "old"), t(11));
    world.apply(pod("new", Some("10.0.0.9")), t(11));
    assert_eq!(world.one(Observation { at: t(12), ..seen }).subject, Subject::Pod(world.id("new")));
}

#[test]
fn a_group_or_an_inner_bridge_is_nobodys_address() {
    let mut world = World::new(vec![]);
    for address in
        ["239.1.1.1:5353", "255.255.255.255:67", "[ff02::fb]:5353", "[fe80::1]:5353", "172.17.0.1:80"]
    {
        let mut received = ingress(101, 11, address, "10.0.0.2:5353");
        (received.protocol, received.outcome) = (Protocol::Udp, Outcome::Received);
        world.see(received);
        let to_it = Observation { protocol: Protocol::Udp, ..egress(102, 12, "10.0.0.2:40000", address) };
        assert_eq!(world.one(to_it).peer.kind, PeerKind::External, "{address}");
    }
}

#[test]
fn a_pod_without_a_uid_is_known_by_its_name() {
    let plain = object(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "plain"},
        "status": {"podIP": "10.0.0.7"},
    }));
    let mut world = World::new(vec![plain]);
    let flow = world.one(egress(707, 99, "10.0.0.7:40000", "10.0.0.2:80"));
    let plain = world.auditor.cluster().pod_by_name("shop", "plain").expect("known");
    assert_eq!(flow.subject, Subject::Pod(plain));
}
