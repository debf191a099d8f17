//! Connections that go on: their rules stay in use, those from before the agent are told once, and those that policies
//! have come to deny are violations.

use std::num::NonZeroU32;

use netaudit::{
    audit::{Accepted, AcceptedFlows, Finding, Flow, Flows, Open, Tuple, UnenforcedCause},
    cluster::{Kind, Object, ObjectKey},
    model::{
        CgroupId, Direction, Exemption, Gap, NetnsCookie, Observation, OpenConnection, Timestamp, Translation,
    },
    report::flow_line,
};
use serde_json::{Value, json};

use super::{World, a_to_b, deny_egress, egress, exemption, ingress, pod, policy, reason, service, t};

/// Connected or accepted at the second 10, and never told.
fn open(seen: Observation) -> OpenConnection {
    OpenConnection { seen, looked: seen.at, is_told: false, unknown_end: None }
}

/// The same, told when it began.
pub(super) fn told(seen: Observation) -> OpenConnection {
    OpenConnection { is_told: true, ..open(seen) }
}

/// The next look, at `at`, that finds these in this order.
pub(super) fn look(world: &mut World, at: Timestamp, all: &[OpenConnection]) -> Vec<Flow> {
    let mut flows = Vec::new();
    world.auditor.begin_look();
    for found in all {
        world.auditor.observe_open(&OpenConnection { looked: at, ..*found }, &mut flows);
    }
    while !world.auditor.judge_look(2, &mut |_| None, &mut flows) {}
    flows
}

pub(super) fn both_ways() -> Object {
    policy(
        "both",
        json!({
            "podSelector": {}, "policyTypes": ["Egress", "Ingress"],
            "egress": [{"to": [{"podSelector": {}}]}], "ingress": [{"from": [{"podSelector": {}}]}],
        }),
    )
}

/// (direction, matches, last match) of every rule.
fn usage(world: &mut World) -> Vec<(Direction, u64, Option<Timestamp>)> {
    world.auditor.usage_mut().settle();
    let rules = world.auditor.usage().current().into_iter();
    rules.map(|usage| (usage.rule.direction, usage.matches, usage.last)).collect()
}

/// (direction, verdict) of the connections of the latest look.
fn counts(world: &World) -> Vec<(Direction, &'static str, u64)> {
    world.auditor.open_connections().counts().judged().filter(|it| it.2 > 0).collect()
}

fn line(world: &World, flow: &Flow) -> Value {
    let mut line = Vec::new();
    flow_line(&super::telling(world, flow), &mut line);
    serde_json::from_slice(&line).expect("JSON")
}

#[test]
fn each_end_credits_its_own_direction_for_as_long_as_it_lives_and_matches_nothing_more() {
    let mut world = World::new(vec![both_ways()]);
    let (ours, theirs) = (a_to_b(), ingress(102, 12, "10.0.0.2:80", "10.0.0.1:40000"));
    world.one(ours);
    assert_eq!(usage(&mut world), [(Direction::Egress, 1, Some(t(10))), (Direction::Ingress, 0, None)]);
    for second in [40, 70, 100] {
        assert_eq!(look(&mut world, t(second), &[told(ours)]).len(), 0);
        assert_eq!(usage(&mut world)[0], (Direction::Egress, 1, Some(t(second))));
    }
    look(&mut world, t(130), &[told(Observation { socket: 7, ..theirs })]);
    assert_eq!(
        usage(&mut world),
        [(Direction::Egress, 1, Some(t(100))), (Direction::Ingress, 0, Some(t(130)))],
        "the one is closed"
    );
    assert_eq!(counts(&world), [(Direction::Ingress, "allowed", 1)]);
    assert_eq!(world.auditor.counts().total(), 1, "looks see no flows");
}

#[test]
fn one_from_before_is_told_once_with_its_time_and_is_no_flow_of_now() {
    let mut world = World::new(vec![both_ways()]);
    let flows = look(&mut world, t(10), &[open(a_to_b())]);
    let [flow] = &flows[..] else { panic!("{flows:?}") };
    assert_eq!((flow.open, flow.finding, flow.cause), (Some(Open::BeforeStart), None, None));
    let line = line(&world, flow);
    assert_eq!(line["open_before_start"], true);
    assert_eq!((&line["outcome"], &line["reach"]), (&json!("established"), &json!("reached")));
    assert_eq!((&line["verdict"], &line["peer"]["pod"]), (&json!("allowed"), &json!("b")));
    assert_eq!(line["time"], json!(t(10).to_string()));
    assert!(line["open_since"].is_null() && line["finding_cause"].is_null());
    assert_eq!(usage(&mut world)[0], (Direction::Egress, 0, Some(t(10))), "a rule in use, without a match");
    assert_eq!(world.auditor.counts().total(), 0);
    let found: Vec<_> = world.auditor.open_connections().found().judged().filter(|it| it.2 > 0).collect();
    assert_eq!(found, [(Direction::Egress, "allowed", 1)]);
    // The second look tells it as not told too, in case that we had been killed.
    assert_eq!(look(&mut world, t(40), &[open(a_to_b())]).len(), 0);
    assert_eq!(look(&mut world, t(70), &[told(a_to_b())]).len(), 0);
    assert_eq!(world.auditor.open_connections().found().total(), 1);
    assert_eq!(usage(&mut world)[0].2, Some(t(70)));
}

#[test]
fn a_denied_one_from_before_is_a_violation_that_says_so() {
    let mut world = World::new(vec![deny_egress()]);
    let flows = look(&mut world, t(10), &[open(a_to_b())]);
    assert_eq!(
        (flows[0].finding, flows[0].cause),
        (Some(Finding::Unenforced), Some(UnenforcedCause::OlderConnection))
    );
    assert_eq!(line(&world, &flows[0])["finding_cause"], "older connection");
    look(&mut world, t(40), &[open(a_to_b())]);
    look(&mut world, t(70), &[told(a_to_b())]);
    let violations = world.auditor.violations().series();
    let [(key, count)] = violations[..] else { panic!("{violations:?}") };
    assert_eq!(
        (&*key.source_workload, key.policy.as_ref().map_or("", |it| &*it.name), count.total, count.last),
        ("a", "deny", 1, t(70)),
        "one violation, that goes on"
    );
    assert_eq!(counts(&world), [(Direction::Egress, "denied", 1)]);
}

/// (the exception, violations, when the last was, its flow) of every series of violations.
fn series(world: &World) -> Vec<(Option<String>, u64, Timestamp, u64)> {
    let all = world.auditor.violations().series().into_iter();
    all.map(|(key, count)| {
        (key.accepted.as_deref().map(str::to_owned), count.total, count.last, count.flow.sequence)
    })
    .collect()
}

#[test]
fn a_violation_goes_on_until_its_connection_is_closed_or_allowed() {
    let mut world = World::new(vec![both_ways()]);
    let mine = told(a_to_b());
    world.one(mine.seen);
    look(&mut world, t(40), &[mine]);
    world.apply(deny_egress(), t(45));
    world.auditor.cluster_mut().delete(&ObjectKey::new(Kind::NetworkPolicy, "shop", "both"), t(45));
    let flow = look(&mut world, t(50), &[mine]).remove(0);
    assert_eq!(flow.cause, Some(UnenforcedCause::OlderThanPolicy));
    for second in [80, 110] {
        assert_eq!(look(&mut world, t(second), &[mine]).len(), 0, "no other line");
        assert_eq!(series(&world), [(None, 1, t(second), flow.id.sequence)]);
    }
    assert_eq!(world.auditor.counts().total(), 1, "and no other flow");
    // One that is allowed again, and then one that is closed.
    world.apply(both_ways(), t(111));
    look(&mut world, t(140), &[mine]);
    assert_eq!(series(&world)[0].2, t(110));
    world.auditor.cluster_mut().delete(&ObjectKey::new(Kind::NetworkPolicy, "shop", "both"), t(141));
    assert_eq!(look(&mut world, t(170), &[mine]).len(), 1);
    look(&mut world, t(200), &[]);
    // Its cookie, taken for another one's: nothing is left of the former.
    look(&mut world, t(230), &[mine]);
    assert_eq!((series(&world)[0].1, series(&world)[0].2), (2, t(170)));
}

#[test]
fn one_that_is_accepted_meanwhile_goes_on_under_the_exceptions_name_until_that_is_over() {
    let mut world = World::new(vec![deny_egress()]);
    look(&mut world, t(10), &[open(a_to_b())]);
    let accepted = |until| {
        let (name, why, owner) = ("known-flow".into(), "known".into(), "team".into());
        AcceptedFlows(vec![Accepted { name, why, owner, until, flows: Flows::default() }])
    };
    world.auditor.set_accepted(accepted(t(60)));
    look(&mut world, t(40), &[told(a_to_b())]);
    let known = || Some("known-flow".to_owned());
    assert_eq!(series(&world), [(None, 1, t(10), 1), (known(), 0, t(40), 1)]);
    look(&mut world, t(70), &[told(a_to_b())]);
    assert_eq!(series(&world), [(None, 1, t(70), 1), (known(), 0, t(40), 1)]);
}

#[test]
fn one_that_a_new_policy_denies_is_a_violation_once_for_each_time() {
    let mut world = World::new(vec![both_ways()]);
    world.one(a_to_b());
    assert_eq!(look(&mut world, t(40), &[told(a_to_b())]).len(), 0);
    let of_policy = |name| ObjectKey::new(Kind::NetworkPolicy, "shop", name);
    let mut told_at = Vec::new();
    for second in (50..170).step_by(20) {
        // Denied from 50, allowed from 90, denied from 130.
        let denied = !(90..130).contains(&second);
        let cluster = world.auditor.cluster_mut();
        if denied {
            cluster.delete(&of_policy("both"), t(second));
            cluster.apply(deny_egress(), t(second));
        } else {
            cluster.delete(&of_policy("deny"), t(second));
            cluster.apply(both_ways(), t(second));
        }
        let flows = look(&mut world, t(second), &[told(a_to_b())]);
        for flow in &flows {
            assert_eq!(flow.cause, Some(UnenforcedCause::OlderThanPolicy));
            let line = line(&world, flow);
            assert_eq!(line["finding_cause"], "older than the policy");
            assert_eq!(
                (&line["open_since"], &line["time"]),
                (&json!(t(10).to_string()), &json!(t(second).to_string()))
            );
            assert_eq!(line["open_before_start"], Value::Null);
        }
        told_at.extend(flows.iter().map(|_| second));
    }
    assert_eq!(told_at, [50, 130]);
    assert_eq!(world.auditor.violations().series()[0].1.total, 2);
    assert_eq!(world.auditor.counts().total(), 1);
}

#[test]
fn one_that_is_denied_since_it_was_told_is_not_told_again() {
    let mut world = World::new(vec![deny_egress()]);
    world.one(a_to_b());
    for second in [40, 70] {
        assert_eq!(look(&mut world, t(second), &[told(a_to_b())]).len(), 0);
    }
    assert_eq!(world.auditor.violations().series()[0].1.total, 1);
    // Told by an earlier run of the agent, which this one knows nothing of.
    let other = told(Observation { socket: 99, ..a_to_b() });
    assert_eq!(look(&mut world, t(100), &[other]).len(), 0);
    assert_eq!(counts(&world), [(Direction::Egress, "denied", 1)]);
}

#[test]
fn one_whose_pod_becomes_known_later_is_a_violation_then() {
    let mut world = World::new(vec![deny_egress()]);
    let seen = egress(103, 13, "10.0.0.3:40000", "10.0.0.2:80");
    let flows = look(&mut world, t(10), &[open(seen)]);
    assert!(reason(&flows[0]).is_some());
    let deny =
        policy("deny-c", json!({"podSelector": {"matchLabels": {"app": "c"}}, "policyTypes": ["Egress"]}));
    world.apply(deny, t(11));
    world.apply(pod("c", Some("10.0.0.3")), t(11));
    world.auditor.attribution_mut().cgroup(CgroupId(13), &format!("/kubepods/pod{}/c", super::uid("c")));
    let flows = look(&mut world, t(40), &[open(seen)]);
    assert_eq!(
        (flows[0].finding, flows[0].cause),
        (Some(Finding::Unenforced), Some(UnenforcedCause::OlderConnection))
    );
    assert_eq!(look(&mut world, t(70), &[told(seen)]).len(), 0);
    assert_eq!(world.auditor.open_connections().found().total(), 1);
}

#[test]
fn descriptors_of_one_socket_are_one_connection() {
    let mut world = World::new(vec![both_ways()]);
    let flows = look(&mut world, t(10), &[open(a_to_b()), open(a_to_b()), told(a_to_b())]);
    assert_eq!((flows.len(), counts(&world)), (1, vec![(Direction::Egress, "allowed", 1)]));
}

#[test]
fn an_end_that_is_not_known_is_counted_and_nothing_is_said_of_it() {
    let mut world = World::new(vec![both_ways(), deny_egress()]);
    let odd = OpenConnection { unknown_end: Some("ambiguous"), ..open(a_to_b()) };
    for second in [10, 40] {
        assert_eq!(look(&mut world, t(second), &[odd, odd]).len(), 0);
    }
    let unjudged: Vec<_> =
        world.auditor.open_connections().counts().unjudged().filter(|it| it.1 > 0).collect();
    assert_eq!((unjudged, counts(&world)), (vec![("ambiguous", 1)], vec![]));
    assert!(usage(&mut world).iter().all(|(_, matches, last)| *matches == 0 && last.is_none()));
}

#[test]
fn one_to_a_pod_that_is_gone_says_nothing_of_whoever_has_its_address() {
    let mut world = World::new(vec![both_ways()]);
    let b_again = |created: i64| {
        let Object::Pod(mut other) = pod("c", Some("10.0.0.2")) else { panic!("a pod") };
        other.created = Some(t(created));
        Object::Pod(other)
    };
    world.one(a_to_b());
    look(&mut world, t(40), &[told(a_to_b())]);
    world.auditor.cluster_mut().delete(&ObjectKey::new(Kind::Pod, "shop", "b"), t(50));
    assert_eq!(look(&mut world, t(70), &[told(a_to_b())]).len(), 0);
    assert_eq!(usage(&mut world)[0].2, Some(t(40)), "nobody has the address");
    world.apply(b_again(80), t(81));
    world.apply(deny_egress(), t(82));
    world.auditor.cluster_mut().delete(&ObjectKey::new(Kind::NetworkPolicy, "shop", "both"), t(82));
    assert_eq!(look(&mut world, t(100), &[told(a_to_b())]).len(), 0, "not a violation towards the new pod");
    let unjudged: Vec<_> =
        world.auditor.open_connections().counts().unjudged().filter(|it| it.1 > 0).collect();
    assert_eq!(unjudged, [("peer gone", 1)]);
    // Even when nobody remembers the former one.
    world.tick(t(2_000));
    assert_eq!(look(&mut world, t(2_001), &[told(a_to_b())]).len(), 0);
    // A connection to the new pod is one.
    let new = Observation { at: t(2_010), socket: 5, ..a_to_b() };
    assert_eq!(look(&mut world, t(2_040), &[open(new)])[0].finding, Some(Finding::Unenforced));
}

#[test]
fn a_service_address_is_judged_by_its_endpoints_of_now() {
    let mut objects = vec![both_ways()];
    objects.extend(service("b", "10.96.0.1", &[("b", "10.0.0.2")], 8080));
    let mut world = World::new(objects);
    let seen = egress(101, 11, "10.0.0.1:40000", "10.96.0.1:80");
    let flows = look(&mut world, t(10), &[open(seen)]);
    assert_eq!((flows[0].port, flows[0].peer.service.is_some()), (8080, true));
    look(&mut world, t(40), &[told(seen)]);
    assert_eq!(usage(&mut world)[0], (Direction::Egress, 0, Some(t(40))));
}

#[test]
fn one_to_a_service_that_is_gone_says_nothing_of_whoever_has_its_address() {
    let mut objects = vec![both_ways()];
    objects.extend(service("b", "10.96.0.1", &[("b", "10.0.0.2")], 8080));
    let mut world = World::new(objects);
    let seen = told(egress(101, 11, "10.0.0.1:40000", "10.96.0.1:80"));
    world.one(seen.seen);
    look(&mut world, t(40), &[seen]);
    assert_eq!(counts(&world), [(Direction::Egress, "allowed", 1)]);
    world.auditor.cluster_mut().delete(&ObjectKey::new(Kind::Service, "shop", "b"), t(50));
    world.auditor.watch_rules(t(50));
    assert_eq!(look(&mut world, t(70), &[seen]).len(), 0, "an external address would be denied");
    for object in service("other", "10.96.0.1", &[("b", "10.0.0.2")], 8080) {
        world.apply(object, t(80));
    }
    look(&mut world, t(100), &[seen]);
    assert_eq!(counts(&world), []);
    // Even when nobody remembers the former one.
    world.auditor.cluster_mut().delete(&ObjectKey::new(Kind::Service, "shop", "other"), t(110));
    world.tick(t(2_000));
    assert_eq!(look(&mut world, t(2_001), &[seen]).len(), 0);
    assert!(world.auditor.violations().series().is_empty());
}

#[test]
fn the_same_holds_of_pods_where_no_node_tells_their_network() {
    let mut world = World::new(vec![both_ways(), pod("c", Some("172.20.0.3"))]);
    let seen = told(egress(101, 11, "10.0.0.1:40000", "172.20.0.3:80"));
    world.one(seen.seen);
    look(&mut world, t(40), &[seen]);
    world.auditor.cluster_mut().delete(&ObjectKey::new(Kind::Pod, "shop", "c"), t(50));
    for second in [70, 100] {
        assert_eq!(look(&mut world, t(second), &[seen]).len(), 0, "an external address would be denied");
    }
    world.tick(t(2_000));
    assert_eq!(look(&mut world, t(2_001), &[seen]).len(), 0);
    assert!(world.auditor.violations().series().is_empty());
}

#[test]
fn the_nodes_own_connection_is_paired_though_its_end_is_found_later() {
    let mut world =
        World::new(vec![policy("deny-in", json!({"podSelector": {}, "policyTypes": ["Ingress"]}))]);
    let served = open(Observation { socket: 1, ..ingress(102, 12, "10.0.0.2:80", "10.0.0.254:50000") });
    let probe = open(Observation { socket: 2, ..egress(1, 99, "10.0.0.254:50000", "10.0.0.2:80") });
    let behind = open(Observation { socket: 3, ..ingress(102, 12, "10.0.0.2:80", "10.0.0.254:50001") });
    let flows = look(&mut world, t(10), &[served, behind, probe]);
    assert_eq!(flows.len(), 3);
    let of = |port: u16| flows.iter().find(|flow| flow.observation.remote.port() == port).expect("told");
    assert!(exemption(of(50_000)).is_some());
    assert!(reason(of(50_001)).is_some());
    assert_eq!(look(&mut world, t(40), &[told(served.seen), told(probe.seen), told(behind.seen)]).len(), 0);
}

#[test]
fn a_look_that_breaks_off_forgets_nothing() {
    let mut world = World::new(vec![both_ways()]);
    look(&mut world, t(10), &[open(a_to_b())]);
    world.auditor.begin_look();
    // Nothing came, and no end.
    assert_eq!(counts(&world), [(Direction::Egress, "allowed", 1)], "the last whole one stands");
    assert_eq!(look(&mut world, t(70), &[open(a_to_b())]).len(), 0, "it is known still");
}

#[test]
fn a_left_over_connection_does_not_give_its_namespace_to_whoever_has_its_address() {
    let mut world = World::new(vec![]);
    // A namespace that nobody has named; its process is of a pod that used 10.0.0.2 before b did.
    world
        .auditor
        .attribution_mut()
        .cgroup(CgroupId(13), "/kubepods/pod11111111-0000-4000-8000-000000000000/c");
    let stale = open(egress(777, 13, "10.0.0.2:40000", "203.0.113.1:443"));
    let flows = look(&mut world, t(10), &[stale]);
    assert!(reason(&flows[0]).is_some(), "{:?}", flows[0].subject);
    // The pod itself proves it.
    let own = open(Observation { socket: 2, ..egress(778, 12, "10.0.0.2:40001", "203.0.113.1:443") });
    look(&mut world, t(40), &[own]);
    assert!(world.auditor.attribution_mut().is_proven(NetnsCookie(778)));
    assert!(!world.auditor.attribution_mut().is_proven(NetnsCookie(777)));
}

#[test]
fn whatever_looks_find_in_whatever_order_is_told_and_again_only_where_a_look_missed_it() {
    // Every subset of three connections in each of four looks.
    let sockets = [1_u64, 2, 3];
    for pattern in 0_u32..4_096 {
        let mut world = World::new(vec![]);
        let mut told_of = [0; 4];
        let mut seen_in = [0; 4];
        for turn in 0..4 {
            let present =
                sockets.iter().filter(|socket| pattern >> (turn * 3 + **socket as u32 - 1) & 1 == 1);
            let found: Vec<_> = present
                .map(|socket| {
                    seen_in[*socket as usize] += 1;
                    let seen = Observation { socket: *socket, ..a_to_b() };
                    // From when on is up to the flow log; here it takes two looks.
                    OpenConnection { is_told: seen_in[*socket as usize] > 2, ..open(seen) }
                })
                .collect();
            for flow in look(&mut world, t(10 + 30 * i64::from(turn)), &found) {
                told_of[flow.observation.socket as usize] += 1;
            }
        }
        for socket in sockets {
            let (seen, told) = (seen_in[socket as usize], told_of[socket as usize]);
            let looks =
                (0..4).map(|turn| pattern >> (turn * 3 + socket as u32 - 1) & 1 == 1).collect::<Vec<_>>();
            let first = looks.iter().position(|found| *found);
            let missed = first.is_some_and(|first| looks.get(first + 1) == Some(&false));
            let most = if missed { 2 } else { 1 };
            assert!(
                told >= usize::from(seen > 0) && told <= most,
                "{pattern:b}: {socket} seen {seen}, told {told}"
            );
        }
    }
}

/// The next look, at the second 10, whose judge may ask connection tracking.
fn look_and_ask(world: &mut World, all: &[Observation], answer: Option<&str>) -> (Vec<Flow>, usize) {
    let (mut flows, mut asked) = (Vec::new(), 0);
    world.auditor.begin_look();
    all.iter().for_each(|seen| world.auditor.observe_open(&open(*seen), &mut flows));
    let mut ask = |_: &Tuple| {
        asked += 1;
        answer.map(|to| to.parse().unwrap())
    };
    while !world.auditor.judge_look(100, &mut ask, &mut flows) {}
    (flows, asked)
}

#[test]
fn a_way_to_a_proxy_in_the_pod_is_no_use_of_a_rule_and_the_proxys_own_connection_is() {
    let mut world = World::new(vec![both_ways()]);
    let to_proxy = Observation { socket: 1, ..egress(101, 11, "10.0.0.1:40000", "10.0.0.2:80") };
    let at_proxy = Observation { socket: 2, ..ingress(101, 11, "127.0.0.1:15001", "10.0.0.1:40000") };
    let (flows, _) = look_and_ask(&mut world, &[to_proxy, at_proxy], None);
    assert_eq!(exemption(&flows[0]), Some(Exemption::Proxied));
    assert_eq!(line(&world, &flows[0])["translation"], "proxy");
    assert_eq!(usage(&mut world)[0], (Direction::Egress, 0, None));
    let upstream = Observation { socket: 3, ..egress(101, 11, "10.0.0.1:40001", "10.0.0.2:80") };
    look_and_ask(&mut world, &[at_proxy, to_proxy, upstream], None);
    assert_eq!(usage(&mut world)[0], (Direction::Egress, 0, Some(t(10))));
}

#[test]
fn the_other_end_tells_at_which_port_a_proxy_was_reached() {
    let only_80 = policy(
        "in",
        json!({"podSelector": {"matchLabels": {"app": "b"}}, "policyTypes": ["Ingress"],
               "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}]}),
    );
    let mut world = World::new(vec![only_80]);
    let made = Observation { socket: 1, ..egress(101, 11, "10.0.0.1:40000", "10.0.0.2:80") };
    let at_proxy = Observation { socket: 2, ..ingress(102, 12, "10.0.0.2:15006", "10.0.0.1:40000") };
    let (flows, _) = look_and_ask(&mut world, &[at_proxy, made], None);
    let inward = flows.iter().find(|flow| flow.observation.direction == Direction::Ingress).expect("told");
    assert!(inward.verdict.is_allowed(), "{inward:?}");
    assert_eq!((inward.port, usage(&mut world)[0]), (80, (Direction::Ingress, 0, Some(t(10)))));
    // Of a client elsewhere only the proxy's port shows.
    let elsewhere = Observation { socket: 3, ..ingress(102, 12, "10.0.0.2:15006", "203.0.113.1:40000") };
    let (flows, _) = look_and_ask(&mut world, &[elsewhere], None);
    assert_eq!(reason(&flows[0]), Some(Gap::PortTranslated));
}

#[test]
fn a_connection_to_oneself_from_the_same_port_hides_none() {
    let mut world = World::new(vec![deny_egress()]);
    let denied = Observation { socket: 1, ..egress(101, 11, "10.0.0.1:40000", "10.0.0.2:80") };
    // Its other end is closed already.
    let own = Observation {
        socket: 2,
        handshake: NonZeroU32::new(8),
        ..ingress(101, 11, "10.0.0.1:9000", "10.0.0.1:40000")
    };
    for (own, denied) in [(Some(own), denied), (None, Observation { socket: 3, handshake: None, ..denied })] {
        let found: Vec<_> = own.into_iter().chain([denied]).collect();
        let (flows, _) = look_and_ask(&mut world, &found, None);
        let of_denied = flows.iter().find(|flow| flow.observation.socket == denied.socket).expect("told");
        assert_eq!(of_denied.cause, Some(UnenforcedCause::OlderConnection), "{of_denied:?}");
    }
}

#[test]
fn connection_tracking_is_asked_where_endpoints_disagree_and_only_there() {
    let allow = policy(
        "allow",
        json!({
            "podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "b"}}}]}],
        }),
    );
    let world = || {
        let mut objects = vec![allow.clone(), pod("c", Some("10.0.0.3"))];
        objects.extend(service("b", "10.96.0.1", &[("b", "10.0.0.2"), ("c", "10.0.0.3")], 80));
        World::new(objects)
    };
    let seen = egress(101, 11, "10.0.0.1:40000", "10.96.0.1:80");
    let (flows, asked) = look_and_ask(&mut world(), &[seen], Some("10.0.0.2:80"));
    assert!(flows[0].verdict.is_allowed() && asked == 1, "{asked}: {flows:?}");
    let (flows, _) = look_and_ask(&mut world(), &[seen], Some("10.0.0.3:80"));
    assert_eq!(flows[0].finding, Some(Finding::Unenforced));
    let (flows, _) = look_and_ask(&mut world(), &[seen], None);
    assert_eq!(reason(&flows[0]), Some(Gap::EndpointsDisagree));
    let (_, asked) = look_and_ask(&mut world(), &[a_to_b()], None);
    assert_eq!(asked, 0);
}

#[test]
fn the_endpoint_that_it_leads_to_counts_and_not_those_of_now() {
    let allow = policy(
        "allow",
        json!({
            "podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "b"}}}]}],
        }),
    );
    let world = |endpoints: &[(&str, &str)]| {
        let mut objects = vec![allow.clone(), pod("c", Some("10.0.0.3"))];
        objects.extend(service("b", "10.96.0.1", endpoints, 80));
        World::new(objects)
    };
    let seen = egress(101, 11, "10.0.0.1:40000", "10.96.0.1:80");
    // b was an endpoint when it began, and c is now; or nobody is.
    for now in [&[("c", "10.0.0.3")][..], &[]] {
        let (flows, asked) = look_and_ask(&mut world(now), &[seen], Some("10.0.0.2:80"));
        let flow = &flows[0];
        assert!(flow.verdict.is_allowed() && asked == 1, "{now:?}: {flow:?}");
        assert_eq!(flow.translation, Some(Translation::Conntrack));
        assert!(flow.peer.service.is_some());
        let accepted = Observation { socket: 2, ..ingress(102, 12, "10.0.0.2:80", "10.0.0.1:40000") };
        let mut world = world(now);
        let (flows, asked) = look_and_ask(&mut world, &[seen, accepted], None);
        let flow = flows.iter().find(|flow| flow.observation.socket == seen.socket).expect("told");
        assert!(flow.verdict.is_allowed() && asked == 0, "{now:?}: {flow:?}");
        assert_eq!(flow.translation, Some(Translation::Destination));
    }
    // Nobody knows.
    let (flows, _) = look_and_ask(&mut world(&[("c", "10.0.0.3")]), &[seen], None);
    assert_eq!(
        (flows[0].finding, flows[0].translation),
        (Some(Finding::Unenforced), Some(Translation::Endpoints))
    );
    // The answer is one of the endpoints of now: they are told as ever.
    let (flows, _) = look_and_ask(&mut world(&[("c", "10.0.0.3")]), &[seen], Some("10.0.0.3:80"));
    assert_eq!(
        (flows[0].finding, flows[0].translation),
        (Some(Finding::Unenforced), Some(Translation::Endpoints))
    );
}

#[test]
fn an_endpoint_that_is_gone_says_nothing_of_the_pod_that_took_its_place() {
    let allow = policy(
        "allow",
        json!({
            "podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["b", "c"]}]}}]}],
        }),
    );
    let mut objects = vec![allow, pod("c", Some("10.0.0.3"))];
    objects.extend(service("b", "10.96.0.1", &[("b", "10.0.0.2"), ("c", "10.0.0.3")], 80));
    let mut world = World::new(objects);
    let seen = told(egress(101, 11, "10.0.0.1:40000", "10.96.0.1:80"));
    world.one(seen.seen);
    look(&mut world, t(40), &[seen]);
    assert_eq!(counts(&world), [(Direction::Egress, "allowed", 1)]);
    world.auditor.cluster_mut().delete(&ObjectKey::new(Kind::Pod, "shop", "c"), t(50));
    let Object::Pod(mut other) = pod("d", Some("10.0.0.3")) else { panic!("a pod") };
    other.created = Some(t(60));
    world.apply(Object::Pod(other), t(61));
    for object in service("b", "10.96.0.1", &[("b", "10.0.0.2"), ("d", "10.0.0.3")], 80) {
        world.apply(object, t(61));
    }
    let mut flows = Vec::new();
    world.auditor.begin_look();
    world.auditor.observe_open(&OpenConnection { looked: t(70), ..seen }, &mut flows);
    // It remembers for days.
    while !world.auditor.judge_look(2, &mut |_| "10.0.0.3:80".parse().ok(), &mut flows) {}
    assert_eq!((flows.len(), counts(&world)), (0, vec![]), "{flows:?}");
}
