//! What is counted of rules and their elements, and what is found of it.

use netaudit::{
    audit::usage::{Evidence, Missing, Row, RowKey, Rows, RuleFinding, Run, Uses, histories, judge},
    cluster::Object,
    model::{Direction, Protocol, Timestamp},
};
use serde_json::{Value, json};

use super::{
    World, a_to_b, egress,
    open::{both_ways, look, told},
    policy, t,
    unseen::{ENOUGH, cron_job, daily},
};

/// Everything that was counted so far, as an agent tells it at `now`.
struct Told {
    rows: Rows,
}

impl Told {
    fn new() -> Self {
        Self { rows: Rows::default() }
    }

    fn take(&mut self, world: &mut World, now: Timestamp) {
        world.tick(now);
        let usage = world.auditor.usage_mut();
        let run = Run {
            written: now,
            from: t(0),
            sequence: 1,
            boot: "boot".into(),
            line: 0,
            wall: 0,
            ended: false,
            losses: 0,
        };
        for mut rows in usage.take_closed().into_iter().chain([usage.rows()]) {
            rows.add_run(usage.run().clone(), run.clone());
            self.rows.merge(rows);
        }
    }

    /// (`egress[0]`, what is found) of each rule.
    fn findings(&self) -> Vec<(String, RuleFinding)> {
        let needs = Evidence { window: std::time::Duration::from_secs(60), coverage: 0.99 };
        let histories = histories(&self.rows);
        let judged = judge(&histories, &needs);
        let path = |it: &netaudit::audit::usage::History| format!("{}[{}]", it.key.direction, it.index);
        judged.iter().map(|it| (path(it.history), it.finding.clone())).collect()
    }

    fn words(&self) -> Vec<(String, &'static str)> {
        self.findings().into_iter().map(|(path, finding)| (path, finding.as_str())).collect()
    }

    /// (`to[0]`, matches) of the elements of the rule at this place.
    fn elements(&self, index: u32) -> Vec<(String, u64)> {
        let histories = histories(&self.rows);
        let rule = histories.rules.iter().find(|it| it.index == index && it.current).expect("a rule");
        let mut elements: Vec<(String, u64)> = rule
            .elements
            .values()
            .map(|(element, uses): &(_, Uses)| (element.path(), uses.matches))
            .collect();
        elements.sort();
        elements
    }
}

fn of_a(rules: Value) -> Object {
    let spec =
        json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"], "egress": rules});
    policy("of-a", spec)
}

fn is<'a>(words: &'a [(String, &'static str)]) -> Vec<(&'a str, &'static str)> {
    words.iter().map(|(path, word)| (path.as_str(), *word)).collect()
}

#[test]
fn every_element_that_matches_counts_and_is_known_by_its_content() {
    let to_b = json!({"podSelector": {"matchLabels": {"app": "b"}}});
    let net = json!({"ipBlock": {"cidr": "10.0.0.0/8"}});
    let other = json!({"ipBlock": {"cidr": "192.0.2.0/24"}});
    let ports = json!([{"port": 80}, {"port": 8000, "endPort": 9000}, {"port": 70, "endPort": 90}]);
    let mut world = World::new(vec![of_a(json!([{"to": [to_b, net, other], "ports": ports}]))]);
    let mut told = Told::new();
    world.one(a_to_b());
    told.take(&mut world, t(20));

    let expected = |all: [(&str, u64); 6]| all.map(|(path, count)| (path.to_owned(), count)).to_vec();
    assert_eq!(
        told.elements(0),
        expected([
            ("ports[0]", 1),
            ("ports[1]", 0),
            ("ports[2]", 1),
            ("to[0]", 1),
            ("to[1]", 1),
            ("to[2]", 0),
        ])
    );
    // In another order, below another rule.
    let turned = json!([{"port": 70, "endPort": 90}, {"port": 80}, {"port": 8000, "endPort": 9000}]);
    let rules = json!([{"to": [{"namespaceSelector": {}}]}, {"to": [other, net, to_b], "ports": turned}]);
    world.apply(of_a(rules), t(21));
    world.one(netaudit::model::Observation { at: t(30), socket: 2, ..a_to_b() });
    told.take(&mut world, t(40));
    assert_eq!(
        told.elements(1),
        expected([
            ("ports[0]", 2),
            ("ports[1]", 2),
            ("ports[2]", 0),
            ("to[0]", 0),
            ("to[1]", 2),
            ("to[2]", 2),
        ])
    );
}

#[test]
fn of_rules_that_match_the_same_flows_all_but_the_fewest_can_go() {
    let rules = json!([
        {"to": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": 80}]},
        {"to": [{"ipBlock": {"cidr": "10.0.0.2/32"}}], "ports": [{"port": 80}, {"port": 81}]},
        {"to": [{"podSelector": {}}], "ports": [{"port": 81}]},
        {"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"port": 443}]},
        {"to": [{"ipBlock": {"cidr": "192.0.2.8/32"}}], "ports": [{"port": 443}]},
    ]);
    let mut world = World::new(vec![of_a(rules)]);
    let mut told = Told::new();
    world.one(a_to_b());
    world.one(egress(101, 11, "10.0.0.1:40001", "10.0.0.2:81"));
    world.one(egress(101, 11, "10.0.0.1:40002", "192.0.2.7:443"));
    for second in 1..9 {
        told.take(&mut world, t(second * 10));
    }
    // The second is enough for the flows of the first three.
    assert_eq!(
        is(&told.words()),
        [
            ("egress[0]", "redundant"),
            ("egress[1]", "used"),
            ("egress[2]", "redundant"),
            ("egress[3]", "used"),
            ("egress[4]", "unused"),
        ]
    );
    let RuleFinding::Redundant { set } = &told.findings()[0].1 else { panic!("redundant") };
    assert_eq!(set.len(), 2, "both together");
}

#[test]
fn what_is_wider_than_what_matched_is_broad_and_says_what_is_enough() {
    let rules = json!([
        {"to": [{"ipBlock": {"cidr": "192.0.0.0/8"}}], "ports": [{"port": 1, "endPort": 1000}]},
        {"to": [{"podSelector": {"matchLabels": {"app": "b"}}}]},
    ]);
    let mut world = World::new(vec![of_a(rules)]);
    let mut told = Told::new();
    world.one(a_to_b());
    world.one(egress(101, 11, "10.0.0.1:40001", "192.0.2.6:443"));
    world.one(egress(101, 11, "10.0.0.1:40002", "192.0.2.7:444"));
    told.take(&mut world, t(30));
    assert_eq!(is(&told.words()), [("egress[0]", "used"), ("egress[1]", "used")], "too early to say");
    told.take(&mut world, t(80));
    let parts: Vec<String> = told
        .findings()
        .into_iter()
        .flat_map(|(_, finding)| match finding {
            RuleFinding::Broad { parts } => parts,
            other => panic!("{other:?}"),
        })
        .map(|part| format!("{} {}: {}", part.path, part.says, part.enough.words().join(" ")))
        .collect();
    assert_eq!(
        parts,
        ["to[0] 192.0.0.0/8: 192.0.2.6/31", "ports[0] TCP 1-1000: 443 444", "ports every port: TCP 80",]
    );
}

#[test]
fn a_selector_of_many_workloads_of_which_few_matched_is_broad() {
    let to = |peer: Value| json!({"to": [peer], "ports": [{"port": 80}]});
    let rules = json!([
        to(json!({"podSelector": {}})),
        to(json!({"podSelector": {"matchLabels": {"tier": "x"}}})),
        {"to": [{"namespaceSelector": {}}, {"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": 81}]},
        {"to": [{"ipBlock": {"cidr": "192.0.0.0/8", "except": ["192.0.2.0/24"]}}, {"ipBlock": {"cidr": "192.0.2.7/32"}}]},
    ]);
    let pod = |number: usize, replica: usize, tier: &str| {
        super::object(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": format!("w{number}-{replica}"),
                         "uid": super::uid(&format!("w{number}-{replica}")), "labels": {"tier": tier},
                         "ownerReferences": [{"controller": true, "kind": "StatefulSet", "name": format!("w{number}")}]},
            "spec": {"nodeName": "node-2", "containers": [{"name": "c"}]},
            "status": {"phase": "Running"},
        }))
    };
    // With `a` and `b` 17 workloads, 7 of a tier; of each two pods.
    let crowd = (0..15).flat_map(|n| [0, 1].map(|replica| pod(n, replica, if n < 7 { "x" } else { "y" })));
    let mut objects: Vec<_> = crowd.collect();
    objects.push(of_a(rules));
    let mut world = World::new(objects);
    let mut told = Told::new();
    world.one(a_to_b());
    world.one(egress(101, 11, "10.0.0.1:40000", "10.0.0.2:81"));
    world.one(egress(101, 11, "10.0.0.1:40001", "192.9.9.9:443"));
    world.one(egress(101, 11, "10.0.0.1:40002", "192.0.2.7:443"));
    told.take(&mut world, t(30));
    told.take(&mut world, t(80));
    let parts = |finding: &RuleFinding| match finding {
        RuleFinding::Broad { parts } => parts
            .iter()
            .map(|it| format!("{} {}: {}", it.path, it.says, it.enough.words().join(" ")))
            .collect(),
        other => vec![other.as_str().to_owned()],
    };
    let found: Vec<Vec<String>> = told.findings().iter().map(|(_, finding)| parts(finding)).collect();
    assert_eq!(
        found,
        [
            vec!["to[0] every pod of its own namespace (17 workloads): shop/b"],
            vec!["unused"],
            vec!["to[0] every pod in every namespace (17 workloads): shop/b"],
            // What is excepted is nothing to propose.
            vec!["to[0] 192.0.0.0/8 except 192.0.2.0/24: 192.9.9.9/32", "ports every port: TCP 443"],
        ]
    );
}

#[test]
fn a_rule_that_selects_nobody_is_dead_and_one_of_a_pod_elsewhere_lacks_coverage() {
    let nobody = json!({"podSelector": {"matchLabels": {"app": "nobody"}}, "egress": [{}]});
    let mut world = World::new(vec![policy("nobody", nobody), of_a(json!([{"ports": [{"port": 1}]}]))]);
    let mut told = Told::new();
    told.take(&mut world, t(1));
    told.take(&mut world, t(80));
    assert_eq!(is(&told.words()), [("egress[0]", "dead"), ("egress[0]", "unused")], "{:?}", told.findings());
    let mut elsewhere = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": "far", "uid": super::uid("far"), "labels": {"app": "a"}},
        "spec": {"nodeName": "node-2", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": "10.0.1.9", "podIPs": [{"ip": "10.0.1.9"}]},
    });
    world.apply(super::object(elsewhere.clone()), t(81));
    told.take(&mut world, t(100));
    assert_eq!(told.words()[1].1, "insufficient evidence");
    elsewhere["status"]["phase"] = "Succeeded".into();
    world.apply(super::object(elsewhere), t(101));
    told.take(&mut world, t(180));
    assert_eq!(told.words()[1].1, "unused");
}

#[test]
fn identical_rules_of_one_policy_are_one_and_the_one_that_stays_is_needed() {
    let to_b = || json!({"to": [{"podSelector": {"matchLabels": {"app": "b"}}}]});
    let mut world = World::new(vec![of_a(json!([to_b(), to_b()]))]);
    let mut told = Told::new();
    world.one(a_to_b());
    told.take(&mut world, t(20));
    let matches = |told: &Told| {
        let histories = histories(&told.rows);
        histories.rules.iter().map(|it| (it.uses.matches, it.sole.matches)).collect::<Vec<_>>()
    };
    assert_eq!(matches(&told), [(1, 1)], "a flow is one match");
    // One of the two goes, and nothing has flowed since.
    world.apply(of_a(json!([to_b()])), t(30));
    for second in 4..12 {
        told.take(&mut world, t(second * 10));
    }
    assert_eq!(told.words().iter().map(|it| it.1).collect::<Vec<_>>(), ["broad"], "{:?}", told.findings());
}

#[test]
fn a_flow_of_nobody_with_a_pods_address_may_be_any_rules_use() {
    let missing = |local: &str| {
        let mut world = World::new(vec![of_a(json!([{"ports": [{"port": 1}]}]))]);
        let mut told = Told::new();
        told.take(&mut world, t(1));
        told.take(&mut world, t(49));
        let sent = netaudit::model::Observation {
            at: t(50),
            outcome: netaudit::model::Outcome::Timeout,
            ..egress(199, 99, local, "192.0.2.1:1")
        };
        world.see(sent);
        told.take(&mut world, t(55));
        told.take(&mut world, t(80));
        match &told.findings()[0].1 {
            RuleFinding::Insufficient(lack) => lack.missing.as_str(),
            other => other.as_str(),
        }
    };
    assert_eq!(missing("10.0.0.77:40000"), "verdicts");
    assert_eq!(missing("172.17.0.2:40000"), "unused", "a container that is no pod's");
}

#[test]
fn a_pod_whose_kernel_is_its_own_counts_as_not_watched_until_it_shows_a_flow() {
    let mut world = World::new(vec![of_a(json!([{"ports": [{"port": 1}]}]))]);
    let sandboxed = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": "a", "uid": super::uid("a"), "labels": {"app": "a"}},
        "spec": {"nodeName": super::NODE, "runtimeClassName": "kata-qemu", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
    });
    world.apply(super::object(sandboxed), t(1));
    let mut told = Told::new();
    told.take(&mut world, t(2));
    told.take(&mut world, t(80));
    let insufficient = |told: &Told| match &told.findings()[0].1 {
        RuleFinding::Insufficient(lack) => Some(lack.missing.as_str()),
        _ => None,
    };
    assert_eq!(insufficient(&told), Some("coverage"));
    // A class whose pods share the node's kernel: its sockets are seen.
    world.one(netaudit::model::Observation { at: t(90), ..a_to_b() });
    told.take(&mut world, t(100));
    told.take(&mut world, t(180));
    assert_eq!(told.words()[0].1, "unused");
}

#[test]
fn a_policy_for_pods_that_a_cron_job_is_still_to_make_is_not_dead() {
    let rules = json!([{"to": [{"podSelector": {}}], "ports": [{"port": 80}]}]);
    let spec = json!({"podSelector": {"matchLabels": {"app": "report"}}, "policyTypes": ["Egress"], "egress": rules});
    let mut world = World::new(vec![policy("of-report", spec), of_a(json!([{"to": [{"podSelector": {}}]}]))]);
    world.apply(cron_job("shop", daily(json!({"app": "report"})), Some(-100 * ENOUGH)), t(0));
    let mut told = Told::new();
    let of_report = |told: &Told| {
        let histories = histories(&told.rows);
        let needs = Evidence { window: std::time::Duration::from_secs(60), coverage: 0.99 };
        let judged = judge(&histories, &needs);
        judged.iter().find(|it| &*it.history.key.policy.name == "of-report").map(|it| it.finding.clone())
    };
    // Its pods are there once a day.
    for second in [100, 1_000, ENOUGH - 10] {
        told.take(&mut world, t(second));
        let found = of_report(&told);
        let Some(RuleFinding::Insufficient(lack)) = found else { panic!("{second}: {found:?}") };
        assert_eq!(lack.missing, Missing::Period);
        assert_eq!(lack.enough_at, Some(t(ENOUGH)));
    }
    told.take(&mut world, t(ENOUGH + 10));
    assert_eq!(of_report(&told), Some(RuleFinding::Dead { why: "its policy selects no pod" }));
    // Another one, which is new.
    world.apply(cron_job("shop", daily(json!({"app": "report"})), Some(ENOUGH)), t(ENOUGH + 20));
    told.take(&mut world, t(ENOUGH + 90));
    let found = of_report(&told);
    assert!(matches!(found, Some(RuleFinding::Insufficient(_))), "{found:?}");
    told.take(&mut world, t(2 * ENOUGH + 10));
    assert_eq!(of_report(&told), Some(RuleFinding::Dead { why: "its policy selects no pod" }));
}

#[test]
fn a_connection_that_goes_on_says_with_whom_its_rules_are_used_and_at_which_port() {
    let mut world = World::new(vec![both_ways()]);
    world.auditor.watch_rules(t(5));
    look(&mut world, t(40), &[told(a_to_b())]);
    let mut known = Told::new();
    known.take(&mut world, t(50));
    let is_it =
        |(key, row): &(&RowKey, &Row)| key.rule.direction == Direction::Egress && row.uses.last.is_some();
    let (_, row) = known.rows.rules.iter().find(is_it).expect("a row of the egress rule, in use");
    assert_eq!(row.uses.matches, 0, "it is no flow");
    assert!(row.touched.ports.contains(&(Protocol::Tcp, 80)), "{row:?}");
    assert_eq!(row.touched.workloads.len(), 1, "{row:?}");
}
