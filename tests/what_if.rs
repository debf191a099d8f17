//! `netaudit what-if` on stores that an agent wrote: what changes is found and grouped, and what cannot be judged again is said.

mod cuts;
mod expected;
mod missing;
mod random;
mod revision;

use std::{
    fs,
    net::IpAddr,
    num::NonZeroU64,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netaudit::{
    audit::{Auditor, Budget, Privacy, Settings, line::Telling},
    cluster::{Kind, ObjectKey},
    model::{CgroupId, Folded, NetnsCookie, Observation, Timestamp},
    store::flows::{Beginning, FlowStore, Lost, Retention},
    watch::{self, convert},
};
use serde_json::{Value, json};

use crate::{
    audit::{egress, ingress},
    command::{Run, folder, netaudit, run},
};

/// 2026-01-01T00:00:00Z.
const BEGIN: i64 = 1_767_225_600;
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

pub(crate) fn t(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(BEGIN + seconds)
}

/// An agent without a kernel: what it learns it judges by, and tells the history.
pub(crate) struct Agent {
    node: &'static str,
    path: PathBuf,
    store: FlowStore,
    pub auditor: Auditor,
    privacy: Privacy,
}

impl Agent {
    pub fn new(path: &Path, run: &str) -> Result<Self> {
        Self::of("node-1", path, run)
    }

    fn of(node: &'static str, path: &Path, run: &str) -> Result<Self> {
        let begin = Beginning {
            node: node.into(),
            run: run.into(),
            from: t(0),
            lost: Lost::default(),
            goes_on: false,
        };
        let auditor = Auditor::new(Settings {
            node: node.into(),
            run: run.into(),
            host: NetnsCookie(1),
            budget: Budget::default(),
            unused_after: Duration::from_secs(60),
            unused_coverage: 0.99,
        });
        let store = FlowStore::open(path, Retention { age: FOREVER, bytes: u64::MAX }, None, &begin)?;
        Ok(Self { node, path: path.to_owned(), store, auditor, privacy: Privacy::default() })
    }

    /// An object that both the verdicts and the history go by.
    pub fn apply(&mut self, value: &Value, at: i64) {
        let kind = value["kind"].as_str().and_then(Kind::from_name).expect("a watched kind");
        let content = watch::content(kind, value).expect("an object with a name");
        self.store.history_mut().seen(&content, t(at));
        self.judge_by(value, at);
    }

    /// An object that the verdicts go by, and that the history lacks.
    pub fn judge_by(&mut self, value: &Value, at: i64) {
        let kind = value["kind"].as_str().and_then(Kind::from_name).expect("a watched kind");
        let object = convert::object(kind, value, &Arc::from("test"));
        self.auditor.cluster_mut().apply(object, t(at));
        if kind == Kind::Pod && value["spec"]["nodeName"] == self.node {
            let uid = value["metadata"]["uid"].as_str().unwrap_or_default();
            let number = number(uid);
            let attribution = self.auditor.attribution_mut();
            attribution.cgroup(CgroupId(number), &format!("/kubepods/pod{uid}/c"));
            attribution.pair(NetnsCookie(number), CgroupId(number));
        }
    }

    pub fn delete(&mut self, kind: Kind, name: &str, at: i64) {
        let key = ObjectKey::new(kind, "shop", name);
        self.store.history_mut().deleted(&key, t(at));
        self.auditor.cluster_mut().delete(&key, t(at));
    }

    pub fn ready(&mut self, at: i64) {
        Kind::ALL.into_iter().for_each(|kind| self.store.history_mut().listed(kind, t(at)));
        self.auditor.set_ready();
    }

    pub fn see(&mut self, seen: Observation) -> String {
        let mut flows = Vec::new();
        match seen.folded {
            Some(_) => self.auditor.observe_folded(&[seen], seen.at, &mut flows),
            None => self.auditor.observe(&seen, seen.at, &mut flows),
        }
        let later = seen.at.plus(Duration::from_secs(30));
        self.auditor.settle(later, &mut flows);
        self.auditor.tick(later, &mut flows);
        let [flow] = &flows[..] else { panic!("{flows:?}") };
        let (cluster, privacy) = (self.auditor.cluster(), &self.privacy);
        self.store.push(&Telling { flow, cluster, node: self.node, correction: 0, privacy });
        flow.id.to_string()
    }

    /// The pod of this UID connects.
    pub fn connects(&mut self, uid: &str, from: &str, to: &str, at: i64) -> String {
        let (number, local) = (number(uid), socket(from, 40_000));
        self.see(Observation { at: t(at), socket: at as u64, ..egress(number, number, &local, to) })
    }

    /// The pod of this UID accepts.
    pub fn accepts(&mut self, uid: &str, at_address: &str, from: &str, at: i64) -> String {
        let (number, remote) = (number(uid), socket(from, 40_000));
        self.see(Observation { at: t(at), socket: at as u64, ..ingress(number, number, at_address, &remote) })
    }

    /// Everything until then is on the disk.
    pub fn finish(mut self, until: i64) {
        self.store.tick(t(until), Lost::default());
        assert_eq!(self.store.finish(t(until), Lost::default(), Duration::from_secs(10)), 0);
        let lock = fs::File::open(self.path.join("lock")).expect("a lock");
        lock.lock().expect("the lock");
    }
}

fn number(uid: &str) -> u64 {
    u64::from(*uid.as_bytes().last().expect("a UID"))
}

pub(crate) fn socket(address: &str, port: u16) -> String {
    let ip: IpAddr = address.parse().expect("an address");
    std::net::SocketAddr::new(ip, port).to_string()
}

fn pod_on(node: &str, name: &str, uid: &str, ips: &[&str]) -> Value {
    let app = name.split('-').next().unwrap_or(name);
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"namespace": "shop", "name": name, "uid": uid, "labels": {"app": app},
                     "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": app, "uid": "o", "controller": true}]},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips},
    })
}

pub(crate) fn pod(name: &str, uid: &str, ips: &[&str]) -> Value {
    pod_on("node-1", name, uid, ips)
}

/// Lets only pods with this label in to what is called db.
pub(crate) fn policy(from: &str) -> Value {
    named("db", "db", json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": from}}}]}]}))
}

pub(crate) fn named(name: &str, app: &str, more: Value) -> Value {
    let mut value = json!({
        "kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"podSelector": {"matchLabels": {"app": app}}},
    });
    for (key, part) in more.as_object().expect("an object") {
        value["spec"][key] = part.clone();
    }
    value
}

/// What every story begins with: db, web twice, api, and a policy that lets web in to db.
pub(crate) fn begin(agent: &mut Agent) {
    agent.apply(
        &json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "shop", "labels": {"team": "one"}}}),
        1,
    );
    agent.apply(
        &json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "node-1"}, "spec": {"podCIDR": "10.0.0.0/24"}}),
        1,
    );
    for pod in [
        pod("db-0", "uid-0", &["10.0.0.2", "fd00::2"]),
        pod("web-0", "uid-1", &["10.0.0.1", "fd00::1"]),
        pod("web-1", "uid-2", &["10.0.0.4"]),
        pod("api-0", "uid-3", &["10.0.0.3"]),
    ] {
        agent.apply(&pod, 1);
    }
    agent.apply(&policy("web"), 1);
    agent.ready(2);
}

fn manifests(objects: &[Value]) -> tempfile::TempDir {
    let texts: Vec<String> = objects.iter().map(ToString::to_string).collect();
    folder(&[("all.json", &texts.join("\n"))])
}

fn ask(store: &Path, candidate: &Path, more: &[&str]) -> Run {
    run(netaudit().arg("what-if").arg("--flow-store").arg(store).arg("-f").arg(candidate).args(more))
}

fn answer(store: &Path, objects: &[Value], more: &[&str]) -> Result<(Value, Run)> {
    let candidate = manifests(objects);
    let ran = ask(store, candidate.path(), &[&["--output", "json"], more].concat());
    let value = serde_json::from_str(&ran.out).with_context(|| ran.err.clone())?;
    Ok((value, ran))
}

/// `allowed→denied shop/web→shop/db 5432 ingress 3` for each change.
fn changes(answer: &Value) -> Vec<String> {
    rows(&answer["changes"])
}

fn rows(rows: &Value) -> Vec<String> {
    let text = |row: &Value| {
        let word = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let directions: Vec<&str> =
            row["directions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        format!(
            "{}→{} {}→{} {} {} {}",
            word("before"),
            word("after"),
            word("source"),
            word("destination"),
            row["port"],
            directions.join("+"),
            row["flows"]
        )
    };
    rows.as_array().into_iter().flatten().map(text).collect()
}

#[test]
fn what_changes_is_told_with_who_how_many_when_and_why() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 10);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.4", 20);
    let last = agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 30);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.3", 40);
    agent.accepts("uid-0", "10.0.0.2:5432", "203.0.113.9", 45);
    agent.finish(50);

    let (told, ran) = answer(store, &[policy("api")], &[])?;
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert_eq!(
        changes(&told),
        ["allowed→denied shop/web→shop/db 5432 ingress 3", "denied→allowed shop/api→shop/db 5432 ingress 1"]
    );
    let row = &told["changes"][0];
    assert_eq!((&row["sources"], &row["destinations"]), (&json!(2), &json!(1)));
    assert_eq!(row["first"], "2026-01-01T00:00:10.000000000Z");
    assert_eq!(row["last"], "2026-01-01T00:00:30.000000000Z");
    assert_eq!(row["before_by"][0]["by"], "ingress: NetworkPolicy/shop/db ingress[0].from[0]");
    assert_eq!(row["after_by"][0]["by"], "ingress: isolated by NetworkPolicy/shop/db");
    assert_eq!(row["example"], *last);
    assert_eq!(told["flows"]["replayed"], 5);
    assert_eq!((&told["complete"], &told["unreplayed"]), (&json!(true), &json!([])), "{told:#}");
    assert_eq!(told["compared"]["replaced"], json!(["NetworkPolicy shop/db"]));
    // The example is one that can be explained.
    let ran = run(netaudit().args(["why", &last, "--flow-store"]).arg(store));
    assert!(ran.status == 0 && ran.out.contains("allowed, as recorded"), "{}{}", ran.out, ran.err);

    // The same for people, and as YAML.
    let candidate = manifests(&[policy("api")]);
    let ran = ask(store, candidate.path(), &[]);
    let (head, told) = ran.out.split_once("\n\n").context("a head")?;
    assert!(head.contains("(1 policy), in place of all policies\ncompared with the policies of then, by the history of node-1: at its end 1 that give way, 0 that stay\n5 flows judged again, in 4 classes"), "{head}");
    assert_eq!(
        told,
        format!(
            "\
allowed → denied: 3 flows
  shop/web → shop/db TCP/5432, ingress: 3 flows of 2 sources, 2026-01-01T00:00:10Z to 2026-01-01T00:00:30Z
      before ingress: NetworkPolicy/shop/db ingress[0].from[0]
      after  ingress: isolated by NetworkPolicy/shop/db
      e.g.   {last}

denied → allowed: 1 flow
  shop/api → shop/db TCP/5432, ingress: 1 flow of 1 source, 2026-01-01T00:00:40Z
      before ingress: isolated by NetworkPolicy/shop/db
      after  ingress: NetworkPolicy/shop/db ingress[0].from[0]
      e.g.   run-a-4
"
        )
    );
    let ran = ask(store, candidate.path(), &["--output", "yaml"]);
    assert!(ran.out.contains("source: shop/web"), "{}", ran.out);
    // The same conditions as those of `netaudit flows`.
    for (more, expected) in [
        (&["--until", "2026-01-01T00:00:25Z"][..], &["allowed→denied shop/web→shop/db 5432 ingress 2"][..]),
        (&["--pod", "shop/web-1"], &["allowed→denied shop/web→shop/db 5432 ingress 1"]),
        (&["--workload", "api"], &["denied→allowed shop/api→shop/db 5432 ingress 1"]),
        (&["--port", "80"], &[]),
    ] {
        let (told, _) = answer(store, &[policy("api")], more)?;
        assert_eq!(changes(&told), expected, "{more:?}");
    }
    Ok(())
}

#[test]
fn the_exit_status_is_by_the_changes_that_are_asked_for() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 10);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.3", 11);
    agent.finish(20);
    let opens = named("db", "db", json!({"ingress": [{}]}));
    for (objects, fail_on, status) in [
        (vec![policy("web")], None, 0),
        (vec![policy("web")], Some("any"), 0),
        (vec![policy("api")], None, 1),
        (vec![policy("api")], Some("none"), 0),
        (vec![policy("api")], Some("unknown"), 0),
        (vec![policy("api")], Some("allowed"), 1),
        (vec![opens.clone()], None, 0),
        (vec![opens.clone()], Some("allowed"), 1),
        (vec![opens], Some("denied,any"), 1),
    ] {
        let more: Vec<&str> = fail_on.iter().flat_map(|it| ["--fail-on", *it]).collect();
        let (told, ran) = answer(store, &objects, &more)?;
        assert_eq!(ran.status, status, "{objects:?} {fail_on:?}: {told:#}");
    }
    let candidate = manifests(&[policy("web")]);
    let ran = ask(store, candidate.path(), &[]);
    assert!(ran.out.ends_with("\n\nnothing changes\n"), "{}", ran.out);
    Ok(())
}

/// Flows are judged by the policy that there was then, and by the labels of then, whatever came later.
#[test]
fn each_flow_is_compared_with_the_policies_and_labels_of_its_time() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 10);
    agent.apply(&policy("api"), 30);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 40);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 41);
    // It becomes what the policy lets in, and then another pod has its name and address.
    let mut web = pod("web-0", "uid-1", &["10.0.0.1", "fd00::1"]);
    web["metadata"]["labels"] = json!({"app": "api"});
    agent.apply(&web, 50);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 60);
    agent.delete(Kind::Pod, "web-0", 70);
    agent.apply(&pod("web-0", "uid-9", &["10.0.0.1"]), 71);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 80);
    agent.finish(90);

    let (told, ran) = answer(store, &[policy("api")], &[])?;
    // Of the first one only: from then on the policy was the candidate.
    assert_eq!(changes(&told), ["allowed→denied shop/web→shop/db 5432 ingress 1"], "{}", ran.err);
    let (told, _) = answer(store, &[policy("web")], &[])?;
    assert_eq!(
        changes(&told),
        ["allowed→denied shop/web→shop/db 5432 ingress 1", "denied→allowed shop/web→shop/db 5432 ingress 3"]
    );
    assert_eq!(told["changes"][0]["first"], "2026-01-01T00:01:00.000000000Z", "when it was labelled api");
    assert_eq!(told["recorded_otherwise"], json!([]));
    // Once for each state that matters, not for each flow.
    assert_eq!(told["flows"]["judgements"], 4);
    Ok(())
}

#[test]
fn what_is_replaced_is_said_and_can_be_less_than_all() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    agent.apply(&named("web", "web", json!({"policyTypes": ["Egress"], "egress": [{}]})), 3);
    agent.apply(
        &json!({"kind": "ClusterNetworkPolicy", "apiVersion": "policy.networking.k8s.io/v1alpha2",
                "metadata": {"name": "guard"},
                "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
                         "ingress": [{"name": "no-api", "action": "Deny",
                                      "from": [{"pods": {"podSelector": {"matchLabels": {"app": "api"}}}}]}]}}),
        3,
    );
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.3", 10);
    agent.finish(20);

    let opens = named("db", "db", json!({"ingress": [{}]}));
    let (told, _) = answer(store, std::slice::from_ref(&opens), &[])?;
    assert_eq!(changes(&told), ["denied→allowed shop/api→shop/db 5432 ingress 1"], "the guard is gone too");
    for more in [&["--keep-others"][..], &["--replace-namespace", "shop"]] {
        let (told, _) = answer(store, std::slice::from_ref(&opens), more)?;
        assert_eq!(changes(&told), [""; 0], "{more:?}");
        let kept = told["compared"]["kept"].to_string();
        assert!(kept.contains("ClusterNetworkPolicy guard"), "{kept}");
        let others = if more.len() == 1 { 1 } else { 2 };
        assert_eq!(told["compared"]["replaced"].as_array().map(Vec::len), Some(others), "{told:#}");
    }
    let mut elsewhere = opens;
    elsewhere["metadata"]["namespace"] = json!("bank");
    let candidate = manifests(&[elsewhere]);
    let ran = ask(store, candidate.path(), &["--replace-namespace", "shop"]);
    assert_eq!(ran.status, 2);
    assert!(
        ran.err.contains("outside the namespaces whose policies are to be replaced: NetworkPolicy bank/db"),
        "{}",
        ran.err
    );
    // Nothing at all is asked for by name, as an empty directory is more likely a mistake.
    let candidate =
        manifests(&[json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "shop"}})]);
    let ran = ask(store, candidate.path(), &[]);
    assert!(
        ran.status == 2 && ran.err.contains("no policy in") && ran.err.contains("--no-policies"),
        "{}",
        ran.err
    );
    let ran =
        run(netaudit().args(["what-if", "--no-policies", "--output", "json", "--flow-store"]).arg(store));
    let told: Value = serde_json::from_str(&ran.out)?;
    assert_eq!(changes(&told), ["denied→allowed shop/api→shop/db 5432 ingress 1"]);
    assert_eq!(told["changes"][0]["after_by"][0]["by"], "ingress: no policy isolates it");
    Ok(())
}

/// What an agent at the source saw is judged by the destination's policies too, and a connection that both ends told of is one.
#[test]
fn both_ends_are_asked_and_a_connection_is_counted_once() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let [one, two] = ["one", "two"].map(|name| directory.path().join(name));
    let far = pod_on("node-2", "db-0", "uid-0", &["10.0.1.2"]);
    let mut agent = Agent::new(&one, "run-a")?;
    begin(&mut agent);
    agent.apply(&far, 3);
    for at in 10..13 {
        agent.connects("uid-1", "10.0.0.1", "10.0.1.2:5432", at);
    }
    agent.finish(20);
    let (told, _) = answer(&one, &[policy("api")], &[])?;
    assert_eq!(changes(&told), ["allowed→denied shop/web→shop/db 5432 ingress 3"]);
    let mut agent = Agent::of("node-2", &two, "run-b")?;
    begin(&mut agent);
    agent.apply(&far, 3);
    for at in 10..12 {
        agent.accepts("uid-0", "10.0.1.2:5432", "10.0.0.1", at);
    }
    agent.finish(20);
    let candidate = manifests(&[policy("api")]);
    let ran = run(netaudit()
        .args(["what-if", "--output", "json", "-f"])
        .arg(candidate.path())
        .arg("--flow-store")
        .args([&one, &two]));
    let told: Value = serde_json::from_str(&ran.out).with_context(|| ran.err)?;
    assert_eq!(changes(&told), ["allowed→denied shop/web→shop/db 5432 ingress 3"]);
    let row = &told["changes"][0];
    assert_eq!((&row["flows_told_by_source"], &row["flows_told_by_destination"]), (&json!(3), &json!(2)));

    // The other end stops it as before.
    let closed = named("web", "web", json!({"policyTypes": ["Egress"]}));
    let directory = tempfile::tempdir()?;
    let mut agent = Agent::new(directory.path(), "run-a")?;
    begin(&mut agent);
    agent.connects("uid-3", "10.0.0.3", "10.0.0.2:5432", 10);
    agent.finish(20);
    let mut api = closed;
    api["spec"]["podSelector"] = json!({"matchLabels": {"app": "api"}});
    let (told, ran) = answer(directory.path(), &[policy("web"), api], &[])?;
    assert_eq!((ran.status, changes(&told).len()), (0, 0), "{told:#}");
    assert_eq!(rows(&told["one_end_only"]), ["denied→denied shop/api→shop/db 5432 egress 1"]);
    Ok(())
}

#[test]
fn addresses_of_both_families_services_and_folds_are_judged_again() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    agent.apply(
        &json!({"kind": "Service", "apiVersion": "v1", "metadata": {"namespace": "shop", "name": "both"},
                "spec": {"clusterIP": "10.96.0.1", "selector": {"tier": "x"}, "ports": [{"port": 80, "targetPort": 8080}]}}),
        2,
    );
    agent.apply(
        &json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
                "metadata": {"namespace": "shop", "name": "both-x", "labels": {"kubernetes.io/service-name": "both"}},
                "addressType": "IPv4", "ports": [{"port": 8080}],
                "endpoints": [{"addresses": ["10.0.0.4"], "targetRef": {"kind": "Pod", "name": "web-1"}},
                              {"addresses": ["10.0.0.3"], "targetRef": {"kind": "Pod", "name": "api-0"}}]}),
        2,
    );
    // From a pod by IPv6, to addresses outside of both families, to a Service with two endpoints.
    agent.accepts("uid-0", "[fd00::2]:5432", "fd00::1", 10);
    agent.connects("uid-1", "fd00::1", "[2001:db8::7]:443", 11);
    agent.connects("uid-1", "10.0.0.1", "203.0.113.9:443", 12);
    let to_service = agent.connects("uid-1", "10.0.0.1", "10.96.0.1:80", 13);
    // Many, of which the kernel kept the number only, before and after the policy was another.
    let folded = |from: i64, until: i64| Observation {
        at: t(until),
        folded: Some(Folded { count: NonZeroU64::new(100).expect("not 0"), first: t(from) }),
        ..egress(number("uid-1"), number("uid-1"), "10.0.0.1:0", "203.0.113.9:443")
    };
    agent.see(folded(20, 30));
    agent.apply(&named("web", "web", json!({"policyTypes": ["Egress"], "egress": [{}]})), 45);
    agent.see(folded(40, 50));
    agent.finish(60);

    // Nothing but 2001:db8::/32 and api.
    let egress = json!([
        {"to": [{"ipBlock": {"cidr": "2001:db8::/32"}}]},
        {"to": [{"podSelector": {"matchLabels": {"app": "api"}}}]},
    ]);
    let narrow = named("web", "web", json!({"policyTypes": ["Egress"], "egress": egress}));
    let (told, ran) = answer(store, &[policy("api"), narrow], &[])?;
    assert_eq!(
        changes(&told),
        [
            "allowed→denied shop/web→external 443 egress 201",
            "allowed→denied shop/web→shop/db 5432 egress+ingress 1",
            "allowed→unknown shop/web→service shop/both 8080 egress 1",
        ],
        "{told:#}"
    );
    assert_eq!(told["changes"][0]["addresses"], json!(["203.0.113.9"]));
    assert_eq!(told["changes"][2]["after_by"][0]["by"], "egress: endpoints disagree");
    assert_eq!(told["changes"][2]["example"], *to_service);
    let ran_why = run(netaudit().args(["why", &to_service, "--flow-store"]).arg(store));
    assert!(
        ran_why.out.contains("allowed, as recorded\n  at shop/api-0 (10.0.0.3) 8080: allowed"),
        "{}",
        ran_why.out
    );
    // One fold was before the change and after it.
    assert_eq!(told["flows"]["of_folded_records"], 200);
    assert!(ran.err.contains("100 flows of folded records lasted over a change of objects"), "{}", ran.err);
    assert_eq!(told["complete"], false);
    Ok(())
}

#[test]
fn what_is_enforced_only_after_the_change_is_told() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    // Denied, and passes; nothing isolates the next; a rule allows the last one.
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.3", 10);
    agent.accepts("uid-3", "10.0.0.3:8080", "10.0.0.1", 11);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 12);
    agent.finish(20);
    let closed = named("api", "api", json!({"ingress": []}));
    let shuts = named("db", "db", json!({"ingress": []}));
    let (told, ran) =
        answer(store, &[shuts.clone(), closed.clone()], &["--enforcement", "--fail-on", "enforced"])?;
    let mut rows: Vec<String> = told["enforced_only_after"]
        .as_array()
        .context("a list")?
        .iter()
        .map(|row| format!("{} {} {}", row["today"], row["source"], row["destination"]))
        .collect();
    rows.sort();
    assert_eq!(
        rows,
        [r#""not isolated" "shop/web" "shop/api""#, r#""unenforced" "shop/api" "shop/db""#,],
        "{told:#}"
    );
    assert_eq!(ran.status, 1);
    let candidate = manifests(&[shuts, closed]);
    let ran = ask(store, candidate.path(), &["--enforcement"]);
    assert!(ran.out.contains("would be stopped after the change where policies are enforced"), "{}", ran.out);
    // It is told only where it is asked for.
    let (told, _) = answer(store, &[policy("web")], &[])?;
    assert_eq!(told.get("enforced_only_after"), None);
    Ok(())
}
