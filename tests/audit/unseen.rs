//! Rules that are not called unused though nobody was seen to use them: a CronJob may need one before it had the time to run, and
//! of some servers nobody sees who asks them.

use std::collections::BTreeMap;

use netaudit::{
    audit::Missing,
    cluster::{Kind, Object, ObjectKey},
    model::{BlindReader, NetnsCookie},
};
use serde_json::{Value, json};

use super::{World, egress, object, pod, policy, t};

const DAY: i64 = 86_400;

/// When a CronJob that was made at 0 has had the time to run: a day, a tenth of it and an hour later.
pub(super) const ENOUGH: i64 = DAY + DAY / 10 + 3_600;

pub(super) fn cron_job(namespace: &str, spec: Value, created: Option<i64>) -> Object {
    let created = created.map(|at| t(at).to_string());
    object(json!({
        "apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"namespace": namespace, "name": "report", "creationTimestamp": created},
        "spec": spec,
    }))
}

pub(super) fn daily(labels: Value) -> Value {
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": []}});
    json!({"schedule": "0 3 * * *", "suspend": true, "jobTemplate": {"spec": {"template": template}}})
}

/// What is said of each rule, by path, after so many seconds.
fn said(world: &mut World, policy: &str, seconds: i64) -> BTreeMap<String, Result<bool, Missing>> {
    world.auditor.watch_rules(t(seconds));
    world.auditor.usage_mut().tick(t(seconds));
    let needs = world.auditor.evidence();
    let usage = world.auditor.usage();
    let rules = usage.current().into_iter().filter(|it| *it.rule.policy.name == *policy);
    rules.map(|it| (it.rule.path().to_string(), usage.unused(it, t(seconds), &needs))).collect()
}

fn missing_period(said: &BTreeMap<String, Result<bool, Missing>>) -> Vec<&str> {
    let lacking = said.iter().filter(|(_, it)| **it == Err(Missing::Period));
    let found: Vec<&str> = lacking.map(|(path, _)| path.as_str()).collect();
    let others = said.values().filter(|it| **it != Err(Missing::Period));
    others.for_each(|it| assert_eq!(*it, Ok(true)));
    found
}

fn policies() -> Vec<Object> {
    let from = |peer: Value| json!({"from": [peer], "ports": [{"port": 80}]});
    let pods = |name: &str| json!({"podSelector": {"matchLabels": {"app": name}}});
    vec![
        policy(
            "b",
            json!({
                "podSelector": {"matchLabels": {"app": "b"}},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [
                    from(pods("report")),
                    from(pods("a")),
                    {"ports": [{"port": 8080}]},
                    from(json!({"ipBlock": {"cidr": "10.0.0.0/8"}})),
                    from(json!({"namespaceSelector": {"matchLabels": {"team": "x"}}})),
                    from(json!({"podSelector": {"matchExpressions": [{"key": "job-name", "operator": "Exists"}]}})),
                    from(json!({"ipBlock": {"cidr": "203.0.113.0/24"}})),
                    from(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/16", "10.244.0.0/16"]}})),
                ],
                "egress": [
                    {"ports": [{"port": 443}]},
                    {"to": [pods("report")], "ports": [{"port": 443}]},
                ],
            }),
        ),
        policy(
            "everyone",
            json!({
                "podSelector": {},
                "policyTypes": ["Egress"],
                "egress": [{"to": [pods("a")]}],
            }),
        ),
    ]
}

#[test]
fn rules_wait_for_the_cron_job_that_may_need_them() {
    let mut world = World::new(policies());
    world.apply(cron_job("shop", daily(json!({"app": "report"})), Some(0)), t(0));
    let of_b = said(&mut world, "b", 3_600);
    assert_eq!(missing_period(&of_b), ["egress[1]", "ingress[0]", "ingress[2]", "ingress[3]", "ingress[5]"]);
    assert_eq!(missing_period(&said(&mut world, "everyone", 3_600)), ["egress[0]"]);
    // The selector of a namespace meets it once that has the label.
    let jobs = |labels: Value| {
        object(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "jobs", "labels": labels}}),
        )
    };
    world.apply(jobs(json!({})), t(3_601));
    world.apply(cron_job("jobs", daily(json!({})), Some(0)), t(3_602));
    assert!(!missing_period(&said(&mut world, "b", 3_700)).contains(&"ingress[4]"));
    world.apply(jobs(json!({"team": "x"})), t(3_800));
    assert!(missing_period(&said(&mut world, "b", 3_900)).contains(&"ingress[4]"));
    // Enough for all.
    assert_eq!(missing_period(&said(&mut world, "b", ENOUGH - 60)).len(), 6);
    // Where pods get addresses that they had not before, they may come from there.
    world.apply(pod("elsewhere", Some("10.7.0.9")), t(ENOUGH - 30));
    assert!(missing_period(&said(&mut world, "b", ENOUGH - 20)).contains(&"ingress[7]"));
    assert!(missing_period(&said(&mut world, "b", ENOUGH + 1)).is_empty());
    assert!(missing_period(&said(&mut world, "everyone", ENOUGH + 1)).is_empty());
}

#[test]
fn a_cron_job_that_is_new_has_not_run() {
    let mut world = World::new(policies());
    assert!(missing_period(&said(&mut world, "b", 3 * DAY)).is_empty());
    // Its rules are older than it, and nobody used them.
    world.apply(cron_job("shop", daily(json!({"app": "report"})), Some(3 * DAY)), t(3 * DAY));
    assert_eq!(missing_period(&said(&mut world, "b", 3 * DAY + 60)).len(), 5);
    assert_eq!(missing_period(&said(&mut world, "b", 3 * DAY + ENOUGH - 60)).len(), 5);
    assert!(missing_period(&said(&mut world, "b", 3 * DAY + ENOUGH + 1)).is_empty());
    // One that does not say when it was made was made when it was first seen, or changed.
    world.apply(cron_job("shop", daily(json!({"app": "a"})), None), t(6 * DAY));
    assert!(missing_period(&said(&mut world, "b", 6 * DAY + 60)).contains(&"ingress[1]"));
    let key = ObjectKey::new(Kind::CronJob, "shop", "report");
    world.auditor.cluster_mut().delete(&key, t(6 * DAY + 70));
    assert!(missing_period(&said(&mut world, "b", 6 * DAY + 120)).is_empty());
}

#[test]
fn a_cron_job_whose_pods_are_others_now_has_not_run_as_such() {
    let mut world = World::new(policies());
    let of = |labels: Value| cron_job("shop", daily(labels), Some(-100 * DAY));
    world.apply(of(json!({"app": "report"})), t(0));
    assert!(missing_period(&said(&mut world, "b", ENOUGH + 60)).is_empty());
    // Its pods keep what rules ask for, and with it what their earlier runs show.
    world.apply(of(json!({"app": "report", "version": "2"})), t(2 * DAY));
    assert!(missing_period(&said(&mut world, "b", 2 * DAY + 60)).is_empty());
    // No pod of it was ever one of `a`.
    world.apply(of(json!({"app": "a"})), t(3 * DAY));
    assert_eq!(missing_period(&said(&mut world, "b", 3 * DAY + 60)), ["ingress[1]"]);
    // One that selects it, as before.
    assert!(missing_period(&said(&mut world, "everyone", 3 * DAY + 60)).is_empty());
    for version in 0..20_i64 {
        world.apply(of(json!({"app": "a", "version": version.to_string()})), t(3 * DAY + 100 + version));
    }
    assert_eq!(missing_period(&said(&mut world, "b", 3 * DAY + ENOUGH - 60)), ["ingress[1]"]);
    assert!(missing_period(&said(&mut world, "b", 3 * DAY + ENOUGH + 120)).is_empty());
    // More than are remembered: what is for everybody is for any of them.
    for version in 0..100_i64 {
        world.apply(of(json!({"app": "a", "version": version.to_string()})), t(5 * DAY + version));
    }
    assert!(!missing_period(&said(&mut world, "b", 5 * DAY + 200)).contains(&"ingress[2]"));
    assert!(missing_period(&said(&mut world, "b", 5 * DAY + ENOUGH + 100)).is_empty());
}

#[test]
fn before_cron_jobs_are_listed_any_rule_may_be_for_one() {
    let mut world = World::unready(policies());
    assert_eq!(missing_period(&said(&mut world, "b", 3_600)).len(), 10);
    world.auditor.set_ready();
    assert!(missing_period(&said(&mut world, "b", 3_660)).is_empty());
}

#[test]
fn an_agent_that_may_not_list_cron_jobs_calls_no_rule_unused() {
    let mut world = World::of_lists(policies(), |kind| kind != Kind::CronJob);
    world.auditor.set_ready();
    assert_eq!(missing_period(&said(&mut world, "b", 100 * DAY)).len(), 10);
    // It may, now, and there is one.
    let jobs = vec![cron_job("shop", daily(json!({"app": "report"})), Some(0))];
    world.auditor.cluster_mut().reset(Kind::CronJob, jobs, t(100 * DAY));
    assert!(missing_period(&said(&mut world, "b", 100 * DAY + 60)).is_empty());
    // Another, of none: that too is a list.
    let mut world = World::of_lists(policies(), |kind| kind != Kind::CronJob);
    world.auditor.set_ready();
    assert_eq!(missing_period(&said(&mut world, "b", 3_600)).len(), 10);
    world.auditor.cluster_mut().reset(Kind::CronJob, Vec::new(), t(3_660));
    assert!(missing_period(&said(&mut world, "b", 3_720)).is_empty());
}

#[test]
fn what_is_not_known_of_a_cron_job_is_waited_for_without_end() {
    let mut world = World::new(policies());
    let mut strange = daily(json!({"app": "report"}));
    strange["schedule"] = "every now and then".into();
    let warnings =
        world.auditor.cluster_mut().apply(cron_job("shop", strange.clone(), Some(-100 * DAY)), t(0));
    let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
    let text = warning.to_string();
    assert!(text.contains("CronJob shop/report") && text.contains("\"every now and then\""), "{text}");
    assert_eq!(missing_period(&said(&mut world, "b", 100 * DAY)).len(), 5);
    // It may be anybody's.
    let broken = json!({"schedule": "@daily", "jobTemplate": "none"});
    world.apply(cron_job("shop", broken, None), t(100 * DAY));
    assert_eq!(world.auditor.cluster().broken().count(), 1);
    assert_eq!(missing_period(&said(&mut world, "b", 200 * DAY)).len(), 10);
    world.apply(cron_job("shop", daily(json!({"app": "report"})), Some(0)), t(200 * DAY));
    assert!(missing_period(&said(&mut world, "b", 200 * DAY + 60)).is_empty());
}

#[test]
fn whose_use_is_not_seen_is_in_doubt_for_the_ports_that_it_serves() {
    let ports = |ports: Value| json!({"from": [{"podSelector": {}}], "ports": ports});
    let mut world = World::new(vec![policy(
        "b",
        json!({
            "podSelector": {"matchLabels": {"app": "b"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                ports(json!([{"port": 8125, "protocol": "UDP"}])),
                ports(json!([{"port": 8125}])),
                ports(json!([{"port": 53, "protocol": "UDP"}])),
                ports(json!([{"port": 8000, "endPort": 9000, "protocol": "UDP"}])),
                ports(json!([{"port": "metrics", "protocol": "UDP"}])),
                {"from": [{"podSelector": {}}]},
            ],
            "egress": [{"ports": [{"port": 8125, "protocol": "UDP"}]}],
        }),
    )]);
    let reader = |netns| BlindReader {
        socket: 7,
        netns: NetnsCookie(netns),
        local: "0.0.0.0:8125".parse().unwrap(),
        actor: egress(102, 12, "10.0.0.2:1", "10.0.0.1:1").actor,
    };
    let look = |world: &mut World| {
        world.auditor.begin_look();
        // Two descriptors of one socket, and one of nobody.
        for netns in [102, 102, 999] {
            world.auditor.observe_blind_reader(&reader(netns));
        }
        assert!(world.auditor.judge_look(100, &mut |_| None, &mut Vec::new()));
    };
    look(&mut world);
    assert_eq!(world.auditor.open_connections().blind_readers(), 1);
    let of_b = said(&mut world, "b", 30);
    let in_doubt = of_b.iter().filter(|(_, it)| **it == Err(Missing::Verdicts));
    let in_doubt: Vec<&str> = in_doubt.map(|(path, _)| path.as_str()).collect();
    assert_eq!(in_doubt, ["ingress[0]", "ingress[3]", "ingress[4]", "ingress[5]"]);
    // For as long as it is there.
    look(&mut world);
    assert_eq!(said(&mut world, "b", 80)["ingress[0]"], Err(Missing::Verdicts));
    world.auditor.begin_look();
    assert!(world.auditor.judge_look(100, &mut |_| None, &mut Vec::new()));
    assert_eq!(world.auditor.open_connections().blind_readers(), 0);
    assert_eq!(said(&mut world, "b", 200)["ingress[0]"], Ok(true));
}
