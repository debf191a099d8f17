//! The auditor from observation to flow, without a kernel: who is named, what is judged, what waits and what is counted.

mod answers;
mod connects;
mod drops;
mod enforcement;
mod folded;
mod identity;
mod metrics;
mod names;
mod open;
mod translated;
mod unseen;
mod usage;

use std::{net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use netaudit::{
    audit::{Auditor, Budget, Finding, Flow, PeerKind, Privacy, Settings, Subject, line::Telling},
    cluster::{Kind, Object, ObjectKey, PodId},
    model::{
        Actor, Cause, CgroupId, Comm, Decision, Direction, Exemption, Gap, NetnsCookie, Observation, Outcome,
        Protocol, Timestamp,
    },
    watch::convert,
};
use serde_json::{Value, json};

const HOST: NetnsCookie = NetnsCookie(1);
const NODE: &str = "node-1";
const NODE_IP: &str = "192.168.0.1";
/// Longer than a connection waits for the record of its other end.
const AFTER_THE_OTHER_END: Duration = Duration::from_millis(6);

/// A flow, of which everything is told.
fn telling<'a>(world: &'a World, flow: &'a Flow) -> Telling<'a> {
    Telling { flow, cluster: world.auditor.cluster(), node: NODE, correction: 0, privacy: Privacy::TELLS_ALL }
}

pub(crate) fn t(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(1_000_000 + seconds)
}

fn uid(name: &str) -> String {
    format!(
        "{:08x}-0000-4000-8000-000000000000",
        name.bytes().fold(7_u32, |sum, b| sum.wrapping_mul(31) + u32::from(b))
    )
}

fn object(value: Value) -> Object {
    let kind = value["kind"].as_str().and_then(Kind::from_name).expect("a watched kind");
    convert::object(kind, &value, &"test".into())
}

fn pod(name: &str, ip: Option<&str>) -> Object {
    object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "uid": uid(name), "labels": {"app": name}},
        "spec": {"nodeName": NODE, "containers": [{"name": "c", "ports": [{"containerPort": 80}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": ip.map(|ip| json!([{"ip": ip}]))},
    }))
}

fn policy(name: &str, spec: Value) -> Object {
    object(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": name}, "spec": spec,
    }))
}

fn service(name: &str, ip: &str, backends: &[(&str, &str)], target: u16) -> [Object; 2] {
    let endpoints: Vec<_> = backends
        .iter()
        .map(|(pod, ip)| {
            json!({"addresses": [ip], "conditions": {"ready": true},
                   "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod}})
        })
        .collect();
    [
        object(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "selector": {"app": name},
                     "ports": [{"port": 80, "targetPort": target, "protocol": "TCP"}]},
        })),
        object(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "shop", "name": format!("{name}-1"),
                         "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "", "port": target, "protocol": "TCP"}], "endpoints": endpoints,
        })),
    ]
}

/// Pods `a` (10.0.0.1, namespace 101, cgroup 11) and `b` (10.0.0.2, 102, 12), and whatever else is given.
pub(crate) struct World {
    pub(crate) auditor: Auditor,
}

impl World {
    pub(crate) fn new(more: Vec<Object>) -> Self {
        let mut world = Self::unready(more);
        world.auditor.set_ready();
        world
    }

    fn unready(more: Vec<Object>) -> Self {
        Self::of_lists(more, |_| true)
    }

    /// One whose agent has heard a complete list of these kinds, and is not ready.
    fn of_lists(more: Vec<Object>, is_listed: impl Fn(Kind) -> bool) -> Self {
        let mut auditor = Auditor::new(Settings {
            node: NODE.into(),
            run: "run".into(),
            host: HOST,
            budget: Budget::default(),
            unused_after: Duration::from_secs(60),
            unused_coverage: 0.99,
        });
        let mut objects = vec![
            object(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})),
            object(
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"podCIDR": "10.0.0.0/24"},
                          "status": {"addresses": [{"type": "InternalIP", "address": NODE_IP}]}}),
            ),
            pod("a", Some("10.0.0.1")),
            pod("b", Some("10.0.0.2")),
        ];
        objects.extend(more);
        for kind in Kind::ALL.into_iter().filter(|kind| is_listed(*kind)) {
            let is_of = |it: &Object| it.key().is_some_and(|key| key.kind == kind);
            let list = objects.extract_if(.., |it| is_of(it)).collect();
            auditor.cluster_mut().reset(kind, list, t(0));
        }
        assert!(objects.is_empty(), "belongs to no list: {objects:?}");
        auditor.set_own_addresses([NODE_IP.parse().unwrap(), "10.0.0.254".parse().unwrap()]);
        for (cgroup, netns, name) in [(11, 101, "a"), (12, 102, "b")] {
            auditor.attribution_mut().cgroup(CgroupId(cgroup), &format!("/kubepods/pod{}/c", uid(name)));
            auditor.attribution_mut().pair(NetnsCookie(netns), CgroupId(cgroup));
        }
        auditor.watch_rules(t(0));
        Self { auditor }
    }

    fn apply(&mut self, object: Object, at: Timestamp) {
        self.auditor.cluster_mut().apply(object, at);
        self.auditor.watch_rules(at);
    }

    fn see(&mut self, seen: Observation) -> Vec<Flow> {
        let mut flows = Vec::new();
        self.auditor.observe(&seen, seen.at, &mut flows);
        // No other end follows.
        self.auditor.settle(seen.at.plus(seen.waited).plus(AFTER_THE_OTHER_END), &mut flows);
        flows
    }

    pub(crate) fn one(&mut self, seen: Observation) -> Flow {
        let mut flows = self.see(seen);
        assert_eq!(flows.len(), 1, "{:?}", self.auditor.waiting());
        flows.remove(0)
    }

    /// Everything until `now` was observed.
    fn settle(&mut self, now: Timestamp) -> Vec<Flow> {
        let mut flows = Vec::new();
        self.auditor.settle(now, &mut flows);
        flows
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Flow> {
        let mut flows = Vec::new();
        // Since the other end was waited for first.
        self.auditor.tick(now.plus(AFTER_THE_OTHER_END), &mut flows);
        flows
    }

    fn id(&self, name: &str) -> PodId {
        self.auditor.cluster().pod_by_uid(&uid(name)).expect("known")
    }
}

pub(crate) fn egress(netns: u64, cgroup: u64, local: &str, remote: &str) -> Observation {
    Observation {
        at: t(10),
        direction: Direction::Egress,
        protocol: Protocol::Tcp,
        netns: NetnsCookie(netns),
        actor: Actor { cgroup: Some(CgroupId(cgroup)), pid: 1, comm: Comm::new("test") },
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        requested: None,
        outcome: Outcome::Established,
        waited: Duration::ZERO,
        errno: None,
        answered: true,
        socket: 1,
        sequence: 1,
        folded: None,
        handshake: NonZeroU32::new(7),
        translated: None,
        maybe_repeated: false,
    }
}

pub(crate) fn ingress(netns: u64, cgroup: u64, local: &str, remote: &str) -> Observation {
    Observation {
        direction: Direction::Ingress,
        outcome: Outcome::Accepted,
        ..egress(netns, cgroup, local, remote)
    }
}

pub(crate) fn a_to_b() -> Observation {
    egress(101, 11, "10.0.0.1:40000", "10.0.0.2:80")
}

pub(crate) fn deny_egress() -> Object {
    policy("deny", json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"]}))
}

fn reason(flow: &Flow) -> Option<Gap> {
    match &flow.verdict.decision {
        Decision::Unknown(gap) => Some(gap.clone()),
        _ => None,
    }
}

fn exemption(flow: &Flow) -> Option<Exemption> {
    match &flow.verdict.decision {
        Decision::Allowed(Cause::Exempt(exemption)) => Some(*exemption),
        _ => None,
    }
}

#[test]
fn both_ends_are_named_and_both_directions_judged() {
    let mut world = World::new(vec![deny_egress()]);
    let flow = world.one(a_to_b());
    assert_eq!(flow.subject, Subject::Pod(world.id("a")));
    assert_eq!(flow.peer.kind, PeerKind::Pod(world.id("b")));
    assert!(flow.verdict.is_denied() && flow.other_end.as_ref().is_some_and(|verdict| verdict.is_allowed()));
    assert_eq!(flow.finding, Some(Finding::Unenforced));
    let series = world.auditor.violations().series();
    assert_eq!((&*series[0].0.source_workload, &*series[0].0.destination_workload), ("a", "b"));
    assert_eq!(series[0].0.policy.as_ref().map(|it| &*it.name), Some("deny"));
}

#[test]
fn the_namespace_is_the_subject_and_the_cgroup_the_actor() {
    let mut world = World::new(vec![deny_egress()]);
    // b's container acts in a's namespace, as a mesh tunnel does.
    let flow = world.one(egress(101, 12, "10.0.0.1:40000", "10.0.0.2:80"));
    assert_eq!(flow.subject, Subject::Pod(world.id("a")));
    assert_eq!(flow.actor_pod.as_deref(), Some(uid("b").as_str()));
}

#[test]
fn a_record_waits_for_its_pods_object_and_then_says_what_was_missing() {
    let mut world = World::new(vec![]);
    world.auditor.attribution_mut().cgroup(CgroupId(13), &format!("/kubepods/pod{}/c", uid("c")));
    let early = egress(103, 13, "10.0.0.3:40000", "10.0.0.2:80");
    assert!(world.see(early).is_empty());
    assert_eq!(world.auditor.waiting().0, 1);
    world.apply(pod("c", Some("10.0.0.3")), t(11));
    let flows = world.tick(t(11));
    assert_eq!(flows[0].subject, Subject::Pod(world.id("c")));

    world.auditor.attribution_mut().cgroup(CgroupId(14), &format!("/kubepods/pod{}/c", uid("d")));
    assert!(world.see(egress(104, 14, "10.0.0.4:40000", "10.0.0.2:80")).is_empty());
    let flows = world.tick(t(13));
    assert_eq!(reason(&flows[0]), Some(Gap::PodNotSeen));
    assert_eq!(world.auditor.waiting(), (0, 0));
}

#[test]
fn a_record_waits_for_a_peer_that_must_be_a_pod() {
    let mut world = World::new(vec![]);
    let to_c = egress(101, 11, "10.0.0.1:40000", "10.0.0.3:80");
    assert!(world.see(to_c).is_empty());
    world.apply(pod("c", Some("10.0.0.3")), t(11));
    assert_eq!(world.tick(t(11))[0].peer.kind, PeerKind::Pod(world.id("c")));
    // One that never comes is only an address.
    assert!(world.see(egress(101, 11, "10.0.0.1:40000", "10.0.0.9:80")).is_empty());
    assert_eq!(world.tick(t(12))[0].peer.kind, PeerKind::External);
    // The internet is not waited for.
    assert_eq!(world.one(egress(101, 11, "10.0.0.1:40000", "203.0.113.1:80")).peer.kind, PeerKind::External);
}

#[test]
fn records_before_the_first_list_wait_for_it() {
    let mut world = World::unready(vec![deny_egress()]);
    assert!(world.see(a_to_b()).is_empty());
    world.auditor.set_ready();
    assert!(world.tick(t(11))[0].verdict.is_denied());
}

#[test]
fn a_list_that_never_comes_is_said_and_not_waited_for() {
    let mut world = World::unready(vec![]);
    assert!(world.see(a_to_b()).is_empty());
    assert!(world.tick(t(19)).is_empty());
    assert_eq!(reason(&world.tick(t(20))[0]), Some(Gap::NotReady));
}

#[test]
fn an_unnamed_namespace_is_known_by_the_address_it_uses() {
    let mut world = World::new(vec![]);
    let mut seen = ingress(777, 0, "10.0.0.2:80", "10.0.0.1:40000");
    seen.actor.cgroup = None;
    assert_eq!(world.one(seen).subject, Subject::Pod(world.id("b")));
}

#[test]
fn an_address_that_becomes_known_while_the_record_waits_names_it() {
    let mut world = World::new(vec![]);
    let mut seen = ingress(777, 0, "10.0.0.3:80", "10.0.0.1:40000");
    seen.actor.cgroup = None;
    assert!(world.see(seen).is_empty());
    world.apply(pod("c", Some("10.0.0.3")), t(9));
    assert_eq!(world.tick(t(11))[0].subject, Subject::Pod(world.id("c")));
}

#[test]
fn a_pod_without_an_address_is_still_judged_and_bound_by_what_the_kernel_shows() {
    let mut world = World::new(vec![pod("c", None), deny_egress()]);
    world.auditor.attribution_mut().cgroup(CgroupId(13), &format!("/kubepods/pod{}/c", uid("c")));
    let flow = world.one(egress(103, 13, "10.0.0.3:40000", "10.0.0.2:80"));
    assert_eq!(flow.subject, Subject::Pod(world.id("c")));
    // Its namespace used 10.0.0.3, so that address is its from now on.
    let later = Observation { at: t(12), ..egress(101, 11, "10.0.0.1:40001", "10.0.0.3:80") };
    assert_eq!(world.one(later).peer.kind, PeerKind::Pod(world.id("c")));
}

#[test]
fn an_address_with_two_owners_is_ambiguous() {
    let mut world = World::new(vec![pod("c", Some("10.0.0.2"))]);
    let flow = world.one(a_to_b());
    assert_eq!((flow.peer.kind.clone(), reason(&flow)), (PeerKind::Unknown, Some(Gap::Ambiguous)));
    assert_eq!(flow.finding, None);
}

#[test]
fn a_deleted_pod_is_still_who_it_was() {
    let mut world = World::new(vec![deny_egress()]);
    let (a, b) = (world.id("a"), world.id("b"));
    for name in ["a", "b"] {
        world.auditor.cluster_mut().delete(&ObjectKey::new(Kind::Pod, "shop", name), t(11));
    }
    // The record is older than the deletion, and comes after it.
    let flow = world.one(a_to_b());
    assert_eq!((flow.subject, flow.peer.kind), (Subject::Pod(a), PeerKind::Pod(b)));
    assert!(flow.verdict.is_denied());
    // A newer one to the same address is somebody else's.
    let later = Observation { at: t(300), ..a_to_b() };
    assert!(world.see(later).is_empty(), "its new owner is waited for");
    assert_eq!(world.tick(t(302))[0].peer.kind, PeerKind::External);
}

#[test]
fn a_probe_is_exempt_only_if_the_node_has_a_socket_for_it() {
    let deny = policy("deny-in", json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
    let mut world = World::new(vec![deny]);
    // The kubelet dials from the bridge's address, which is in no Node object.
    let probe = world.one(egress(1, 99, "10.0.0.254:50000", "10.0.0.2:80"));
    assert_eq!(
        (probe.subject, exemption(&world.one(ingress(102, 12, "10.0.0.2:80", "10.0.0.254:50000")))),
        (Subject::Node, Some(Exemption::OwnNode))
    );
    // Somebody behind the node's address, through a NodePort.
    assert!(world.see(ingress(102, 12, "10.0.0.2:80", "10.0.0.254:50001")).is_empty());
    let flows = world.tick(t(11));
    assert_eq!(reason(&flows[0]), Some(Gap::SourceTranslated));
    assert_eq!(flows[0].finding, None);
}

#[test]
fn a_probe_whose_record_comes_second_is_paired_all_the_same() {
    let mut world =
        World::new(vec![policy("deny-in", json!({"podSelector": {}, "policyTypes": ["Ingress"]}))]);
    assert!(world.see(ingress(102, 12, "10.0.0.2:80", "10.0.0.254:50000")).is_empty());
    world.one(egress(1, 99, "10.0.0.254:50000", "10.0.0.2:80"));
    assert_eq!(exemption(&world.tick(t(10))[0]), Some(Exemption::OwnNode));
}

#[test]
fn a_service_is_judged_by_its_endpoints_and_target_port() {
    let allow = policy(
        "allow",
        json!({
            "podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": 8080}]}],
        }),
    );
    let mut objects = vec![allow];
    objects.extend(service("b", "10.96.0.1", &[("b", "10.0.0.2")], 8080));
    let mut world = World::new(objects);
    let flow = world.one(egress(101, 11, "10.0.0.1:40000", "10.96.0.1:80"));
    assert_eq!(flow.verdict.rules()[0].path(), "egress[0].to[0].ports[0]");
    assert_eq!((flow.port, flow.peer.kind.clone()), (8080, PeerKind::Pod(world.id("b"))));
    assert_eq!(flow.requested, Some("10.96.0.1:80".parse::<SocketAddr>().unwrap()));
    assert_eq!(flow.peer.service, Some((Arc::from("shop"), Arc::from("b"))));
}

#[test]
fn endpoints_that_disagree_are_not_guessed_between() {
    let allow = policy(
        "allow",
        json!({
            "podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "b"}}}]}],
        }),
    );
    let mut objects = vec![allow, pod("c", Some("10.0.0.3"))];
    objects.extend(service("b", "10.96.0.1", &[("b", "10.0.0.2"), ("c", "10.0.0.3")], 80));
    objects.extend(service("empty", "10.96.0.2", &[], 80));
    let mut world = World::new(objects);
    let disagree = world.one(egress(101, 11, "10.0.0.1:40000", "10.96.0.1:80"));
    assert_eq!(reason(&disagree), Some(Gap::EndpointsDisagree));
    let empty = world.one(egress(101, 11, "10.0.0.1:40000", "10.96.0.2:80"));
    assert_eq!(reason(&empty), Some(Gap::NoEndpoints));
}

#[test]
fn an_address_rewritten_at_the_socket_is_judged_as_it_was_carried() {
    let mut objects = vec![deny_egress()];
    objects.extend(service("b", "10.96.0.1", &[("b", "10.0.0.2")], 80));
    let mut world = World::new(objects);
    let seen = Observation { requested: Some("10.96.0.1:80".parse().unwrap()), ..a_to_b() };
    let flow = world.one(seen);
    assert_eq!((flow.peer.kind.clone(), flow.requested), (PeerKind::Pod(world.id("b")), seen.requested));
    assert_eq!(flow.peer.service, Some((Arc::from("shop"), Arc::from("b"))));
}

#[test]
fn own_node_loopback_and_self_are_exempt() {
    let deny = policy("deny", json!({"podSelector": {}, "policyTypes": ["Egress", "Ingress"]}));
    // Only a pod on its network tells that an address is the node's, also where a Service leads there.
    let host = object(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "host", "uid": "u-host"},
        "spec": {"nodeName": NODE, "hostNetwork": true},
        "status": {"phase": "Running", "podIP": "172.20.0.7", "podIPs": [{"ip": "172.20.0.7"}]},
    }));
    let mut objects = vec![deny, host];
    objects.extend(service("host", "10.96.0.7", &[("host", "172.20.0.7")], 80));
    let mut world = World::new(objects);
    for (remote, expected) in [
        ("192.168.0.1:6443", Exemption::OwnNode),
        ("10.0.0.254:53", Exemption::OwnNode),
        ("172.20.0.7:80", Exemption::OwnNode),
        ("10.96.0.7:80", Exemption::OwnNode),
        ("127.0.0.1:80", Exemption::Loopback),
        ("[::ffff:127.0.0.1]:80", Exemption::Loopback),
        ("10.0.0.1:80", Exemption::SelfTraffic),
    ] {
        assert_eq!(
            exemption(&world.one(egress(101, 11, "10.0.0.1:40000", remote))),
            Some(expected),
            "{remote}"
        );
    }
}

#[test]
fn a_pending_attempt_is_counted_once_by_its_outcome() {
    let mut world = World::new(vec![deny_egress()]);
    let pending = Observation { outcome: Outcome::Pending, ..a_to_b() };
    assert!(world.see(pending).is_empty());
    assert_eq!(world.auditor.counts().total(), 0);
    let done =
        world.one(Observation { outcome: Outcome::Timeout, waited: Duration::from_secs(3), ..a_to_b() });
    assert_eq!(done.finding, Some(Finding::Blocked));
    assert_eq!((world.auditor.counts().total(), world.auditor.waiting()), (1, (0, 0)));
}

#[test]
fn what_is_under_way_at_the_end_is_written_as_it_is() {
    let mut world = World::new(vec![]);
    world.see(Observation { outcome: Outcome::Pending, ..a_to_b() });
    world.see(Observation { socket: 2, ..egress(999, 999, "0.0.0.0:0", "10.0.0.2:80") });
    let mut flows = Vec::new();
    world.auditor.finish(&mut flows);
    world.auditor.finish_pending(&mut flows);
    let outcomes: Vec<_> = flows.iter().map(|flow| flow.observation.outcome).collect();
    assert_eq!(outcomes, [Outcome::Established, Outcome::Pending]);
    assert_eq!(reason(&flows[0]), Some(Gap::SubjectUnknown));
}

#[test]
fn flow_ids_have_no_gaps() {
    let mut world = World::new(vec![]);
    let ids: Vec<_> = (0..3).map(|_| world.one(a_to_b()).id.to_string()).collect();
    assert_eq!(ids, ["run-1", "run-2", "run-3"]);
}

#[test]
fn only_the_subjects_own_direction_credits_a_rule() {
    let both = policy(
        "both",
        json!({
            "podSelector": {}, "policyTypes": ["Egress", "Ingress"],
            "egress": [{"to": [{"podSelector": {}}]}], "ingress": [{"from": [{"podSelector": {}}]}],
        }),
    );
    let mut world = World::new(vec![both]);
    world.one(a_to_b());
    let matches = |world: &mut World| -> Vec<_> {
        world.auditor.usage_mut().settle();
        world.auditor.usage().current().iter().map(|usage| (usage.rule.direction, usage.matches)).collect()
    };
    assert_eq!(matches(&mut world), [(Direction::Egress, 1), (Direction::Ingress, 0)]);
    world.one(ingress(102, 12, "10.0.0.2:80", "10.0.0.1:40000"));
    assert_eq!(matches(&mut world), [(Direction::Egress, 1), (Direction::Ingress, 1)]);
}

#[test]
fn two_nodes_mean_that_unused_is_not_this_agents_to_say() {
    let mut world = World::new(vec![]);
    assert!(world.auditor.is_only_agent());
    world.apply(object(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2"}})), t(1));
    assert!(!world.auditor.is_only_agent());
}
