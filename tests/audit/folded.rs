//! Flows of which the kernel kept only the number: judged once, counted each.

use std::{num::NonZeroU64, time::Duration};

use netaudit::{
    audit::{Auditor, Finding, Flow},
    model::{Actor, Comm, Direction, Folded, Gap, NetnsCookie, Observation, Outcome, Protocol, Reach},
    report::flow_line,
};
use serde_json::{Value, json};

use super::{World, a_to_b, egress, ingress, object, policy, reason, t};

/// `count` flows like `seen`, as the kernel folds them: from the second 5 to the second 10.
fn fold(seen: Observation, count: u64) -> Observation {
    let (mut local, mut remote) = (seen.local, seen.remote);
    match seen.direction {
        Direction::Egress => local.set_port(0),
        Direction::Ingress => remote.set_port(0),
    }
    Observation {
        actor: Actor { pid: 0, comm: Comm::default(), ..seen.actor },
        local,
        remote,
        socket: 0,
        sequence: 0,
        folded: Some(Folded { count: NonZeroU64::new(count).unwrap(), first: t(5) }),
        ..seen
    }
}

fn see(auditor: &mut Auditor, folds: &[Observation]) -> Vec<Flow> {
    let mut flows = Vec::new();
    auditor.observe_folded(folds, t(10), &mut flows);
    flows
}

fn only_port_80() -> netaudit::cluster::Object {
    let spec = json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"],
                      "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": 80}]}]});
    policy("only-80", spec)
}

#[test]
fn each_flow_of_a_fold_counts_for_rules_violations_and_totals() {
    let mut world = World::new(vec![only_port_80()]);
    let denied = egress(101, 11, "10.0.0.1:40000", "10.0.0.2:81");
    let folds = [fold(a_to_b(), 1_000), fold(Observation { outcome: Outcome::Refused, ..denied }, 7)];
    let flows = see(&mut world.auditor, &folds);
    assert_eq!(flows.len(), 2, "one each");
    assert_eq!(flows[1].finding, Some(Finding::DeniedRefused));

    world.auditor.usage_mut().settle();
    let usage = world.auditor.usage().current();
    assert_eq!((usage[0].matches, usage[0].sole_matches), (1_000, 1_000));
    assert_eq!((usage[0].first, usage[0].last), (Some(t(5)), Some(t(10))));
    let violations = world.auditor.violations().series();
    let [(key, count)] = violations[..] else { panic!("{violations:?}") };
    assert_eq!((key.port, &*key.source_workload, count.total, count.last), (Some(81), "a", 7, t(10)));
    assert_eq!(world.auditor.counts().total(), 1_007);
    let of = |reach| -> u64 {
        let counts = world.auditor.counts().flows();
        counts.filter(|(key, _)| key.reach == reach).map(|(_, count)| count).sum()
    };
    assert_eq!((of(Reach::Reached), of(Reach::Rejected)), (1_000, 7));
    assert_eq!(world.one(a_to_b()).id.to_string(), "run-3", "a fold has one number");
}

#[test]
fn a_fold_waits_for_its_pod_as_a_record_does_and_keeps_its_number() {
    let mut world = World::new(vec![]);
    let late = egress(103, 13, "10.0.0.3:40000", "10.0.0.2:80");
    assert!(see(&mut world.auditor, &[fold(late, 9)]).is_empty());
    assert_eq!(world.auditor.waiting().0, 1);
    world.apply(super::pod("late", Some("10.0.0.3")), t(11));
    let flows = world.tick(t(11));
    assert_eq!(flows.len(), 1);
    assert_eq!((flows[0].observation.count(), reason(&flows[0])), (9, None));

    let unknown = egress(999, 999, "0.0.0.0:0", "10.0.0.2:80");
    see(&mut world.auditor, &[fold(unknown, 4)]);
    world.tick(t(20));
    let gap = Gap::SubjectUnknown.reason();
    assert!(world.auditor.counts().unknown().any(|of| of == (gap, 4)));
    assert_eq!(world.auditor.counts().total(), 13);
}

#[test]
fn datagrams_in_a_fold_wait_for_no_drop() {
    let mut world = World::new(vec![]);
    world.auditor.set_sees_drops();
    let sent = Observation { protocol: Protocol::Udp, outcome: Outcome::Sent, ..a_to_b() };
    assert_eq!(see(&mut world.auditor, &[fold(sent, 3)]).len(), 1);
}

#[test]
fn from_the_own_node_nobody_can_be_paired_and_that_is_said() {
    let mut world = World::new(vec![]);
    let probe = fold(ingress(102, 12, "10.0.0.2:80", "192.168.0.1:40000"), 5);
    assert!(see(&mut world.auditor, &[probe]).is_empty());
    let flows = world.tick(t(12));
    assert_eq!(reason(&flows[0]), Some(Gap::SourceTranslated));
}

#[test]
fn an_attempt_that_was_pending_and_ended_in_a_fold_is_counted_once() {
    let mut world = World::new(vec![]);
    for socket in 1..=3 {
        world.see(Observation { outcome: Outcome::Pending, socket, ..a_to_b() });
    }
    // Another's, and one to another port, are not meant.
    world.see(Observation { outcome: Outcome::Pending, netns: NetnsCookie(102), socket: 4, ..a_to_b() });
    let elsewhere = egress(101, 11, "10.0.0.1:40000", "10.0.0.2:81");
    world.see(Observation { outcome: Outcome::Pending, socket: 5, ..elsewhere });
    assert_eq!(world.auditor.waiting().1, 5);
    let quick = fold(a_to_b(), 10);
    let timeout = Observation { outcome: Outcome::Timeout, waited: Duration::from_secs(3), ..quick };
    see(&mut world.auditor, &[quick]);
    assert_eq!(world.auditor.waiting().1, 5, "none of these was ever pending");
    see(&mut world.auditor, &[fold(timeout, 2)]);
    assert_eq!(world.auditor.waiting().1, 3);
    see(&mut world.auditor, &[fold(timeout, 2)]);
    assert_eq!(world.auditor.waiting().1, 2);
}

#[test]
fn the_flow_log_says_how_many_and_from_when_to_when() {
    let mut world = World::new(vec![only_port_80()]);
    let line = |flow: &Flow, world: &World| -> Value {
        let mut line = Vec::new();
        flow_line(&super::telling(world, flow), &mut line);
        serde_json::from_slice(&line).unwrap()
    };
    let flows = see(&mut world.auditor, &[fold(a_to_b(), 1_000)]);
    let folded = line(&flows[0], &world);
    assert_eq!((&folded["folded"], &folded["count"]), (&json!(true), &json!(1_000)), "{folded:#}");
    assert_eq!(
        (&folded["time"], &folded["last_time"]),
        (&json!(t(5).to_string()), &json!(t(10).to_string()))
    );
    assert_eq!((&folded["subject"]["pod"], &folded["peer"]["pod"]), (&json!("a"), &json!("b")));
    let plain = world.one(a_to_b());
    let plain = line(&plain, &world);
    for field in ["folded", "count", "last_time"] {
        assert!(plain.get(field).is_none(), "{field} in {plain:#}");
    }
}

#[test]
fn whose_a_namespace_is_can_be_said_in_words() {
    let node = object(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}));
    let world = World::new(vec![node]);
    for (netns, name) in [(101, "pod shop/a"), (1, "node node-1"), (77, "network namespace 77")] {
        assert_eq!(world.auditor.owner_name(NetnsCookie(netns)), name);
    }
}
