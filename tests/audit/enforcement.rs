//! What the auditor learns of enforcement, how it names a violation by that, and what somebody has accepted.

use std::time::Duration;

use netaudit::{
    audit::{
        Accepted, AcceptedEnd, AcceptedFlows, Enforced, Finding, Flow, Flows, UnenforcedCause, ViolationKey,
    },
    cluster::{Kind, Object, ObjectKey},
    model::{CgroupId, Direction, NetnsCookie, Observation, Outcome, Timestamp},
};
use serde_json::json;

use super::{World, a_to_b, deny_egress, egress, ingress, object, pod, policy, t, uid};

const NOTHING: Option<UnenforcedCause> = Some(UnenforcedCause::NothingEnforces);

fn state(world: &World, direction: Direction) -> (Enforced, Option<Timestamp>) {
    world.auditor.enforcement().state(direction)
}

/// Ended at this second as said, from a socket of its own.
fn at(seconds: i64, outcome: Outcome, seen: Observation) -> Observation {
    let waited = if outcome == Outcome::Timeout { Duration::from_secs(1) } else { Duration::ZERO };
    let answered = outcome != Outcome::Timeout;
    Observation { at: t(seconds), outcome, waited, answered, sequence: seconds as u32, ..seen }
}

fn deny_all() -> Object {
    policy("deny", json!({"podSelector": {}, "policyTypes": ["Egress"]}))
}

fn series(world: &World) -> Vec<(ViolationKey, u64)> {
    let all = world.auditor.violations().series();
    all.into_iter().map(|(key, count)| (key.clone(), count.total)).collect()
}

#[test]
fn each_direction_is_known_by_its_own_flows() {
    let mut world = World::new(vec![deny_egress()]);
    assert_eq!(state(&world, Direction::Egress), (Enforced::Untested, None));
    let first = world.one(at(10, Outcome::Established, a_to_b()));
    assert_eq!((first.finding, first.cause), (Some(Finding::Unenforced), None), "told, and no more");
    assert_eq!(state(&world, Direction::Egress), (Enforced::Untested, None));
    assert_eq!(world.one(at(130, Outcome::Established, a_to_b())).cause, None);
    assert_eq!(world.one(at(250, Outcome::Established, a_to_b())).cause, NOTHING);
    assert_eq!(state(&world, Direction::Egress), (Enforced::No, Some(t(250))));
    assert_eq!(state(&world, Direction::Ingress), (Enforced::Untested, None));
    world.one(at(260, Outcome::Timeout, a_to_b()));
    assert_eq!(state(&world, Direction::Egress), (Enforced::Partly, Some(t(260))));
    assert_eq!(world.one(at(270, Outcome::Established, a_to_b())).cause, None, "nobody knows why");
    assert_eq!(world.auditor.enforcement().counts(Direction::Egress), (1, 4, 0));
}

#[test]
fn a_new_pod_is_excused_and_its_exposure_measured() {
    let mut world = World::new(vec![deny_all()]);
    world.one(at(10, Outcome::Timeout, a_to_b()));
    world.apply(pod("c", Some("10.0.0.3")), t(100));
    world.auditor.attribution_mut().cgroup(CgroupId(13), &format!("/kubepods/pod{}/c", uid("c")));
    world.auditor.attribution_mut().cgroup_made(CgroupId(13), t(100));
    world.auditor.attribution_mut().pair(NetnsCookie(103), CgroupId(13));
    let c_to_b = || egress(103, 13, "10.0.0.3:40000", "10.0.0.2:80");

    let open = world.one(at(102, Outcome::Established, c_to_b()));
    assert_eq!(
        (open.finding, open.cause),
        (Some(Finding::Unenforced), Some(UnenforcedCause::PodJustStarted))
    );
    world.one(at(104, Outcome::Timeout, c_to_b()));
    assert_eq!(state(&world, Direction::Egress).0, Enforced::Yes, "what was excused says nothing against it");
    let exposures = world.auditor.enforcement().start_exposures(Direction::Egress);
    assert_eq!((exposures.count(), exposures.sum()), (1, 2.0));
    // One that was there before the agent is excused by nothing.
    assert_eq!(world.one(at(105, Outcome::Established, a_to_b())).cause, None);
    let causes: Vec<_> = series(&world).into_iter().map(|(key, _)| (key.finding, key.cause)).collect();
    let excused = (Finding::Unenforced, Some(UnenforcedCause::PodJustStarted));
    assert!(causes.contains(&excused) && causes.contains(&(Finding::Unenforced, None)), "{causes:?}");
}

#[test]
fn a_container_that_starts_anew_makes_no_new_pod() {
    let mut world = World::new(vec![deny_all()]);
    world.one(at(10, Outcome::Timeout, a_to_b()));
    world.auditor.attribution_mut().cgroup(CgroupId(14), &format!("/kubepods/pod{}/d", uid("a")));
    world.auditor.attribution_mut().cgroup_made(CgroupId(14), t(100));
    assert_eq!(world.one(at(101, Outcome::Established, a_to_b())).cause, None);
}

#[test]
fn whatever_changes_what_is_denied_is_a_change_of_policy_or_of_labels() {
    let other_labels = || {
        object(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": "a", "uid": uid("a"), "labels": {"app": "a", "tier": "x"}},
            "spec": {"nodeName": super::NODE, "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        }))
    };
    let allow = || policy("allow", json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}));
    let wider = json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}, "policyTypes": ["Egress"]});
    type Change<'a> = Box<dyn Fn(&mut World, Timestamp) + 'a>;
    let narrowed =
        json!({"podSelector": {"matchLabels": {"app": "other"}}, "policyTypes": ["Egress"], "egress": [{}]});
    let changes: [(&str, Change<'_>); 5] = [
        (
            "a policy that no longer selects the pod",
            Box::new(|world, now| world.apply(policy("allow", narrowed.clone()), now)),
        ),
        ("the policy", Box::new(|world, now| world.apply(policy("deny", wider.clone()), now))),
        ("the pod's labels", Box::new(|world, now| world.apply(other_labels(), now))),
        (
            "the namespace's labels",
            Box::new(|world, now| {
                let labels = json!({"name": "shop", "labels": {"team": "x"}});
                world
                    .apply(object(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": labels})), now);
            }),
        ),
        (
            "a policy that went",
            Box::new(|world, now| {
                let key = allow().key().unwrap();
                world.auditor.cluster_mut().delete(&key, now);
            }),
        ),
    ];
    for (what, change) in changes {
        let mut world = World::new(if what.starts_with("a policy that") {
            vec![deny_all(), allow()]
        } else {
            vec![deny_all()]
        });
        // Listed again, as it was: no change.
        world.apply(deny_all(), t(40));
        let seen = |world: &mut World, at_second| world.one(at(at_second, Outcome::Established, a_to_b()));
        change(&mut world, t(50));
        let cause = if what.ends_with("labels") {
            UnenforcedCause::LabelsJustChanged
        } else {
            UnenforcedCause::PolicyJustChanged
        };
        assert_eq!(seen(&mut world, 51).cause, Some(cause), "{what}");
        world.one(at(52, Outcome::Timeout, a_to_b()));
        assert_eq!(world.auditor.enforcement().change_exposures(Direction::Egress).sum(), 1.0, "{what}");
        assert_eq!(seen(&mut world, 61).cause, None, "{what}: long ago");
    }
}

/// `b` with one label more.
fn relabelled() -> Object {
    object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": "b", "uid": uid("b"), "labels": {"app": "b", "tier": "x"}},
        "spec": {"nodeName": super::NODE, "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.2"},
    }))
}

#[test]
fn a_peer_with_other_labels_excuses_for_as_long_as_the_enforcer_may_not_know_them() {
    for (direction, seen) in [
        (Direction::Egress, a_to_b()),
        (Direction::Ingress, ingress(101, 11, "10.0.0.1:80", "10.0.0.2:40000")),
    ] {
        let outcome = if direction == Direction::Egress { Outcome::Established } else { Outcome::Accepted };
        let types =
            json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress", "Ingress"]});
        let mut world = World::new(vec![policy("closed", types)]);
        // Listed again as it was.
        world.apply(pod("b", Some("10.0.0.2")), t(40));
        assert_eq!(world.one(at(41, outcome, seen)).cause, None, "{direction}");
        world.apply(relabelled(), t(50));
        let cause = world.one(at(51, outcome, seen)).cause;
        assert_eq!(cause, Some(UnenforcedCause::LabelsJustChanged), "{direction}");
        assert_eq!(world.one(at(61, outcome, seen)).cause, None, "{direction}: long ago");
        assert_eq!(world.auditor.enforcement().counts(direction), (0, 2, 1), "{direction}");
        assert_eq!(world.auditor.enforcement().change_exposures(direction).count(), 0, "of one peer");
    }
}

#[test]
fn an_address_that_was_another_pods_excuses_where_it_is_known_when() {
    let mut world = World::new(vec![deny_egress()]);
    let successor = || {
        let Object::Pod(mut pod) = pod("c", Some("10.0.0.2")) else { panic!("a pod") };
        pod.created = Some(t(42));
        Object::Pod(pod)
    };
    assert_eq!(world.one(at(30, Outcome::Established, a_to_b())).cause, None);
    world.auditor.cluster_mut().delete(&ObjectKey::new(Kind::Pod, "shop", "b"), t(40));
    world.apply(successor(), t(43));
    let flow = world.one(at(44, Outcome::Established, a_to_b()));
    assert_eq!(flow.cause, Some(UnenforcedCause::AddressJustReused), "{flow:?}");
    assert_eq!(world.one(at(50, Outcome::Established, a_to_b())).cause, None, "long ago");

    // The owner before is not known.
    let mut world = World::new(vec![deny_egress()]);
    world.apply(pod("d", Some("10.0.0.4")), t(43));
    let to_d = egress(101, 11, "10.0.0.1:40000", "10.0.0.4:80");
    let flow = world.one(at(44, Outcome::Established, to_d));
    assert_eq!((flow.finding, flow.cause), (Some(Finding::Unenforced), None));
}

#[test]
fn another_nodes_enforcer_says_nothing_of_this_one() {
    let far = object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": "far", "uid": uid("far"), "labels": {"app": "far"}},
        "spec": {"nodeName": "node-2", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": "10.0.1.9"},
    }));
    let closed = |name: &str| {
        let selected = json!({"podSelector": {"matchLabels": {"app": name}}, "policyTypes": ["Ingress"]});
        policy(name, selected)
    };
    let mut world = World::new(vec![far, closed("far"), closed("b")]);
    world.one(at(10, Outcome::Timeout, egress(101, 11, "10.0.0.1:40000", "10.0.1.9:80")));
    assert_eq!(state(&world, Direction::Ingress).0, Enforced::Untested);
    world.one(at(11, Outcome::Timeout, a_to_b()));
    assert_eq!(state(&world, Direction::Ingress).0, Enforced::Yes);
    world.one(at(12, Outcome::Accepted, ingress(102, 12, "10.0.0.2:80", "10.0.0.1:40000")));
    assert_eq!(state(&world, Direction::Ingress).0, Enforced::Partly);
}

#[test]
fn what_is_accepted_stays_visible_under_its_name_until_it_is_over() {
    let mut world = World::new(vec![deny_egress()]);
    let flows = Flows {
        to: AcceptedEnd { namespace: Some("shop".into()), workload: Some("b".into()) },
        ports: vec![80],
        ..Flows::default()
    };
    let (why, owner) = ("known".into(), "team".into());
    let accepted = Accepted { name: "known-flow".into(), why, owner, until: t(20), flows };
    world.auditor.set_accepted(AcceptedFlows(vec![accepted]));
    let flow: Flow = world.one(at(10, Outcome::Established, a_to_b()));
    assert_eq!(flow.finding, Some(Finding::Unenforced), "it is a violation all the same");
    world.one(at(11, Outcome::Established, egress(101, 11, "10.0.0.1:40001", "10.0.0.2:81")));
    world.one(at(21, Outcome::Established, a_to_b()));
    let names: Vec<_> = series(&world)
        .into_iter()
        .map(|(key, total)| (key.port, key.accepted.as_deref().map(str::to_owned), total))
        .collect();
    assert_eq!(
        names,
        [(Some(80), None, 1), (Some(80), Some("known-flow".to_owned()), 1), (Some(81), None, 1)]
    );
}

#[test]
fn a_suspected_block_has_a_series_of_its_own() {
    let mut world = World::new(vec![]);
    let flow = world.one(at(10, Outcome::Timeout, a_to_b()));
    assert_eq!(flow.finding, Some(Finding::SuspectedBlock));
    assert!(series(&world).is_empty());
    let suspected = world.auditor.suspected_blocks().series();
    let [(key, count)] = &suspected[..] else { panic!("{suspected:?}") };
    assert_eq!((&*key.source_workload, &*key.destination_workload, key.port), ("a", "b", Some(80)));
    assert_eq!((count.total, &count.flow), (1, &flow.id));
}

#[test]
fn only_violations_are_accepted_so_that_a_suspected_block_keeps_its_one_series() {
    let mut world = World::new(vec![]);
    let flows = Flows { ports: vec![80], ..Flows::default() };
    let (why, owner) = ("known".into(), "team".into());
    let accepted = Accepted { name: "known-flow".into(), why, owner, until: t(20), flows };
    world.auditor.set_accepted(AcceptedFlows(vec![accepted]));
    world.one(at(10, Outcome::Timeout, a_to_b()));
    world.one(at(30, Outcome::Timeout, a_to_b()));
    let suspected = world.auditor.suspected_blocks().series();
    let [(key, count)] = &suspected[..] else { panic!("the same labels twice: {suspected:?}") };
    assert_eq!((key.accepted.as_deref(), count.total), (None, 2));
}

#[test]
fn an_exception_ends_by_the_wall_clock_whatever_line_times_are_on() {
    let mut world = World::new(vec![deny_egress()]);
    let flows = Flows { ports: vec![80], ..Flows::default() };
    let (why, owner) = ("known".into(), "team".into());
    let accepted = Accepted { name: "known-flow".into(), why, owner, until: t(86_400), flows };
    world.auditor.set_accepted(AcceptedFlows(vec![accepted]));
    world.one(at(10, Outcome::Established, a_to_b()));
    // The node booted with an old clock, which was then set forward by two days.
    world.auditor.set_correction(2 * 86_400 * 1_000_000_000);
    world.one(at(20, Outcome::Established, a_to_b()));
    let accepted: Vec<_> = series(&world).into_iter().map(|(key, _)| key.accepted.is_some()).collect();
    assert_eq!(accepted, [false, true]);
}

#[test]
fn a_violation_is_as_late_as_its_end_or_an_alert_on_the_last_minutes_would_miss_it() {
    let mut world = World::new(vec![deny_egress()]);
    let slow = Observation { waited: Duration::from_secs(511), ..at(10, Outcome::Timeout, a_to_b()) };
    world.one(slow);
    let last: Vec<_> = world.auditor.violations().series().iter().map(|it| it.1.last).collect();
    assert_eq!(last, [t(521)]);
}

#[test]
fn no_answer_from_outside_does_not_show_that_anything_enforces() {
    let mut world = World::new(vec![deny_all()]);
    let outside = || egress(101, 11, "10.0.0.1:40001", "192.0.2.9:443");
    // A host that is down answers nobody, whether or not something enforces.
    world.one(at(10, Outcome::Timeout, outside()));
    assert_eq!(state(&world, Direction::Egress).0, Enforced::Untested);
    for second in [20, 140, 260] {
        world.one(at(second, Outcome::Established, a_to_b()));
    }
    assert_eq!(state(&world, Direction::Egress).0, Enforced::No);
    world.one(at(330, Outcome::Timeout, outside()));
    assert_eq!(state(&world, Direction::Egress).0, Enforced::No, "as before");
    // A filter that answers may be another network's.
    world.one(at(340, Outcome::Rejected, outside()));
    assert_eq!(state(&world, Direction::Egress).0, Enforced::No);
    world.one(at(350, Outcome::Timeout, a_to_b()));
    assert_eq!(state(&world, Direction::Egress).0, Enforced::Partly, "a pod that is there answers");
}

#[test]
fn the_network_is_known_by_the_pods_of_this_node() {
    let of = |name: &str, daemon_set: &str, node: &str, phase: &str| {
        object(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": "kube-system", "name": name, "uid": uid(name),
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "DaemonSet", "name": daemon_set, "uid": "d", "controller": true,
                }],
            },
            "spec": {"nodeName": node, "hostNetwork": true, "containers": [{"name": "c"}]},
            "status": {"phase": phase, "podIP": "192.168.0.1"},
        }))
    };
    let mut world = World::new(vec![
        of("cilium-x", "cilium", "node-2", "Running"),
        of("weave-x", "weave-net", super::NODE, "Failed"),
    ]);
    let names = |world: &World| world.auditor.cnis().into_iter().collect::<Vec<_>>().join(",");
    assert_eq!(names(&world), "", "another node's, and one that has ended");
    world.apply(of("flannel-x", "kube-flannel-ds", super::NODE, "Running"), t(10));
    assert_eq!(names(&world), "flannel");
    world.apply(of("router-x", "kube-router", super::NODE, "Running"), t(11));
    assert_eq!(names(&world), "flannel,kube-router", "one's network with another one's enforcer");
    assert_eq!(state(&world, Direction::Egress).0, Enforced::Untested, "a name is no evidence");
}
