//! The names of addresses outside the cluster: in flows, and where policies name domains.

use std::net::IpAddr;

use netaudit::{audit::DnsServers, model::DnsAnswer, report::flow_line};

use super::*;
use crate::dns::message::{A, ASKED, Message};

const ADDRESS: &str = "203.0.113.10";

/// Pods may talk to names below `example.com`, and to nobody else outside.
fn by_domain() -> Object {
    let to = |peer: Value, name: &str, action: &str| json!({"name": name, "action": action, "to": [peer]});
    object(json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "domains"},
        "spec": {"tier": "Admin", "priority": 10, "subject": {"namespaces": {}}, "egress": [
            to(json!({"domainNames": ["*.example.com"]}), "named", "Accept"),
            to(json!({"networks": ["0.0.0.0/0"]}), "others", "Deny"),
        ]},
    }))
}

/// The cluster's DNS, which has `kube-system/dns` at 10.96.0.10, a pod of `a`'s own namespace at 10.0.0.2, and a server
/// outside that the configuration names.
fn world(more: Vec<Object>) -> World {
    let mut dns = service("dns", "10.96.0.10", &[], 53);
    for object in &mut dns {
        match object {
            Object::Service(service) => service.namespace = "kube-system".into(),
            Object::EndpointSlice(slice) => slice.namespace = "kube-system".into(),
            _ => {}
        }
    }
    let mut objects = more;
    objects.extend(dns);
    let mut world = World::new(objects);
    world.auditor.set_sees_names(DnsServers {
        namespaces: vec!["kube-system".into()],
        addresses: vec!["198.51.100.53".parse().unwrap()],
    });
    world
}

impl World {
    /// `server` answers `payload` to a socket in this namespace.
    fn told(&mut self, netns: u64, server: &str, at: Timestamp, payload: Message) {
        self.auditor.observe_dns(&DnsAnswer {
            at,
            netns: NetnsCookie(netns),
            server: server.parse().unwrap(),
            payload: payload.0.into(),
            is_cut: false,
            over_loopback: false,
        });
    }

    fn line(&self, flow: &Flow) -> Value {
        let mut line = Vec::new();
        flow_line(&telling(self, flow), &mut line);
        serde_json::from_slice(&line).unwrap()
    }
}

fn answer(name: &str, seconds: u32) -> Message {
    Message::answer(name, A).address_of(&ASKED, ADDRESS, seconds)
}

fn out() -> Observation {
    egress(101, 11, "10.0.0.1:40000", &format!("{ADDRESS}:443"))
}

fn names(flow: &Flow) -> Vec<&str> {
    flow.names.iter().map(|seen| &*seen.name).collect()
}

fn names_unknown(flow: &Flow) -> bool {
    matches!(reason(flow), Some(Gap::NamesUnknown(_)))
}

#[test]
fn a_flow_out_of_the_cluster_has_the_names_that_its_pod_was_told() {
    let mut world = world(vec![]);
    world.told(101, "10.96.0.10", t(5), answer("Connect.SquareUp.com", 30));
    world.told(102, "10.96.0.10", t(5), answer("evil.example", 30));
    let flow = world.one(out());
    assert_eq!(names(&flow), ["connect.squareup.com"], "what another pod asked names nobody here");
    let line = world.line(&flow);
    assert_eq!(
        line["peer"]["names"],
        json!([{
            "name": "connect.squareup.com", "state": "fresh", "asked": true, "counts": true,
            "answered": t(5).to_string(), "server": "10.96.0.10",
        }])
    );
    // An hour later it is stale, and then gone.
    let later = |world: &mut World, seconds| world.one(Observation { at: t(seconds), ..out() });
    let flow = later(&mut world, 40);
    assert_eq!((names(&flow), flow.names[0].is_fresh), (vec!["connect.squareup.com"], false));
    assert_eq!(world.line(&flow)["peer"]["names"][0]["state"], "stale");
    assert!(later(&mut world, 3_636).names.is_empty());
    world.tick(t(3_636));
    assert_eq!(world.auditor.names().unwrap().len(), (0, 0));
}

#[test]
fn pods_and_what_comes_in_have_no_names() {
    let mut world = world(vec![]);
    let to_pod = Message::answer("b.shop.svc.cluster.local", A).address_of(&ASKED, "10.0.0.2", 30);
    world.told(101, "10.96.0.10", t(5), to_pod);
    world.told(101, "10.96.0.10", t(5), answer("connect.squareup.com", 30));
    assert!(world.one(a_to_b()).names.is_empty());
    assert!(world.one(ingress(101, 11, "10.0.0.1:80", "203.0.113.10:40000")).names.is_empty());
    // The node's own processes have names too.
    world.told(HOST.0, "127.0.0.53", t(5), answer("registry.example", 30));
    let of_node = world.one(egress(HOST.0, 1, "192.168.0.1:40000", &format!("{ADDRESS}:443")));
    assert_eq!((names(&of_node), of_node.names[0].counts), (vec!["registry.example"], true));
}

#[test]
fn without_the_option_answers_mean_nothing() {
    let mut world = World::new(vec![by_domain()]);
    world.told(101, "10.96.0.10", t(5), answer("www.example.com", 30));
    let flow = world.one(out());
    assert!(flow.names.is_empty() && names_unknown(&flow) && world.auditor.names().is_none());
    assert_eq!(world.line(&flow)["peer"]["names"], json!([]));
}

#[test]
fn a_policy_goes_by_the_name_that_the_clusters_dns_has_just_told() {
    let mut world = world(vec![by_domain()]);
    // Nobody knows what the address is called: it may be allowed, and nothing is said.
    assert!(names_unknown(&world.one(out())));
    world.told(101, "10.96.0.10", t(5), answer("www.example.com", 30));
    let flow = world.one(out());
    assert!(flow.verdict.is_allowed(), "{:?}", flow.verdict);
    let line = world.line(&flow);
    assert_eq!(line["rule_paths"], json!(["domains egress[0].to[0]"]));
    // The same flow of another pod, which was told nothing.
    assert!(names_unknown(&world.one(egress(102, 12, "10.0.0.2:40000", &format!("{ADDRESS}:443")))));
    // And after the answer's time.
    assert!(names_unknown(&world.one(Observation { at: t(35), ..out() })));
}

#[test]
fn what_is_not_certain_decides_nothing() {
    // Another name is known; that it has no such name is not.
    let mut world = world(vec![by_domain()]);
    world.told(101, "10.96.0.10", t(5), answer("www.example.org", 30));
    let flow = world.one(out());
    assert!(names_unknown(&flow) && names(&flow) == ["www.example.org"]);
    // The name is what another is an alias of.
    let alias = Message::answer("www.example.org", A)
        .alias("www.example.org", "edge.example.com", 30)
        .address("edge.example.com", ADDRESS, 30);
    world.told(101, "10.96.0.10", t(6), alias);
    let flow = world.one(out());
    assert!(names_unknown(&flow) && names(&flow) == ["www.example.org", "edge.example.com"]);
}

#[test]
fn a_pods_own_server_names_its_flows_and_allows_nothing() {
    for (server, counts) in [
        // Its loopback, another pod, the world.
        ("127.0.0.1", false),
        ("::1", false),
        ("10.0.0.2", false),
        ("198.51.100.1", false),
        // The cluster's DNS, the node's cache, another address of the node, one that is named.
        ("10.96.0.10", true),
        ("10.0.0.254", true),
        (NODE_IP, true),
        ("198.51.100.53", true),
        ("::ffff:198.51.100.53", true),
    ] {
        let mut world = world(vec![by_domain()]);
        world.told(101, server, t(5), answer("www.example.com", 30));
        let flow = world.one(out());
        assert_eq!(names(&flow), ["www.example.com"], "{server}");
        assert_eq!((flow.names[0].counts, flow.verdict.is_allowed()), (counts, counts), "{server}");
        assert_eq!(names_unknown(&flow), !counts);
        let server: IpAddr = server.parse().unwrap();
        assert_eq!(flow.names[0].server, server.to_canonical());
    }
}

#[test]
fn a_rule_for_names_is_never_called_unused() {
    let world = world(vec![by_domain()]);
    let needs = world.auditor.evidence();
    let rules: Vec<_> = world.auditor.usage().current().into_iter().collect();
    let of = |path: &str| rules.iter().find(|usage| usage.rule.path() == path).unwrap();
    let unused = |path: &str| world.auditor.usage().unused(of(path), t(100_000), &needs);
    assert_eq!(unused("egress[0]"), Err(netaudit::audit::Missing::Sensor));
    assert_ne!(unused("egress[1]"), Err(netaudit::audit::Missing::Sensor));
}

#[test]
fn hostile_answers_are_counted_and_harm_nobody() {
    let mut world = world(vec![]);
    let payloads = [
        Message(b"GET / HTTP/1.1".to_vec()),
        Message::answer_to(b"\x05\x1b[31m\0", A).address_of(&ASKED, ADDRESS, 60),
        Message::answer("loop.example", A).record(&[0xc0, 30], A, 60, &[1, 2, 3, 4]),
        Message::answer("many.example", A).address_of(&ASKED, ADDRESS, 60).count(u16::MAX),
        Message::answer("text.example", A).flags(0x8380).record(&ASKED, 16, 60, b"\x03abc"),
    ];
    for payload in payloads {
        world.told(101, "10.96.0.10", t(5), payload);
    }
    assert!(world.one(out()).names.is_empty());
    let counts = *world.auditor.names().unwrap().counts();
    assert_eq!((counts.malformed, counts.not_a_host, counts.without_address, counts.named), (3, 1, 1, 0));
    assert_eq!(counts.truncated, 1);
}

#[test]
fn what_a_namespace_answers_itself_counts_for_no_policy_whatever_address_it_claims() {
    let told = |netns: u64| {
        let mut world = world(vec![by_domain()]);
        world.auditor.observe_dns(&DnsAnswer {
            at: t(9),
            netns: NetnsCookie(netns),
            server: "10.96.0.10".parse().unwrap(),
            payload: answer("api.example.com", 60).0.into(),
            is_cut: false,
            over_loopback: true,
        });
        world
    };
    // Whoever may make raw packets sends them to itself under the address of the cluster's DNS.
    let flow = told(101).one(out());
    assert_eq!(names(&flow), ["api.example.com"]);
    assert!(!flow.names[0].counts && flow.names[0].server.is_loopback());
    assert!(!flow.verdict.is_allowed(), "{:?}", flow.verdict);
    // On the node a server of the cluster may well be at its own loopback.
    let names = told(HOST.0).auditor.names().unwrap().len();
    assert_eq!(names, (1, 1));
}
