//! `netaudit who`, `why` and `timeline` as a person runs them on a history.

use netaudit::{
    audit::{Auditor, Budget, Privacy, Settings, line::Telling},
    model::{CgroupId, NetnsCookie, Observation},
};

use super::*;
use crate::{
    audit::ingress,
    command::{Run as Ran, netaudit, run},
};

pub(super) fn ask(arguments: &[&str], store: &Path) -> Ran {
    run(netaudit().args(arguments).arg("--flow-store").arg(store))
}

/// An address that two pods had, one after the other, told by both the kernel and the API server or by the latter alone.
#[test]
fn an_address_is_whose_it_was_then() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut writer = Writer::open(store, "run-a", 0, FOREVER)?;
    let first = pod_value("job-1", "u1", "10.0.0.7", "job");
    writer.seen(&content(Kind::Pod, &first), 1);
    writer.seen(
        &content(
            Kind::Service,
            &json!({"metadata": {"namespace": "shop", "name": "db"}, "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}}),
        ),
        1,
    );
    writer.seen(
        &content(
            Kind::Node,
            &json!({"metadata": {"name": "node-1"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]}}),
        ),
        1,
    );
    writer.listed(2);
    writer.bound(&first, "10.0.0.7", false, 3)?;
    // The next pod has the address before the API server says that the first one is gone.
    let second = pod_value("job-2", "u2", "10.0.0.7", "job");
    writer.seen(&content(Kind::Pod, &second), 100);
    writer.bound(&second, "10.0.0.7", false, 98)?;
    writer.deleted(Kind::Pod, "job-1", 110);
    writer.deleted(Kind::Pod, "job-2", 200);
    writer.bound(&second, "10.0.0.7", true, 200)?;
    // Of these the kernel tells nothing.
    writer.seen(&pod("far-1", "u3", "10.0.1.1", "far"), 300);
    writer.seen(&pod("far-2", "u4", "10.0.1.1", "far"), 310);
    writer.deleted(Kind::Pod, "far-1", 320);
    writer.finish(400);

    for (address, at, head, evidence) in [
        ("10.0.0.7", 10, "Pod shop/job-1", "authored"),
        ("10.0.0.7", 97, "Pod shop/job-1", "authored"),
        ("10.0.0.7", 99, "Pod shop/job-2", "authored"),
        ("10.0.0.7", 105, "Pod shop/job-2", "API view"),
        ("10.0.0.7", 150, "Pod shop/job-2", "authored"),
        ("10.0.0.7", 250, "nobody that is known", ""),
        ("10.0.1.1", 305, "Pod shop/far-1", "API view"),
        ("10.0.1.1", 315, "ambiguous: Pod shop/far-1, Pod shop/far-2", "API view"),
        ("10.0.1.1", 350, "Pod shop/far-2", "API view"),
        ("10.96.0.9", 50, "Service shop/db", "API view"),
        ("192.168.0.1", 50, "Node node-1", "API view"),
        ("203.0.113.9", 50, "nobody that is known", ""),
    ] {
        let time = t(at).to_string();
        let ran = ask(&["who", address, "--at", &time], store);
        assert_eq!(ran.status, 0, "{}", ran.err);
        let said = ran.out.lines().next().unwrap_or_default();
        assert!(said.ends_with(&format!("Z: {head}")), "{address} at {at}: {}", ran.out);
        assert!(ran.out.contains(evidence), "{address} at {at}: {}", ran.out);
    }
    let ran = ask(&["who", "10.0.0.7", "--at", &t(105).to_string(), "--output", "json"], store);
    let answer: Value = serde_json::from_str(&ran.out)?;
    assert_eq!((&answer["answer"], &answer["owners"]), (&json!("known"), &json!(["Pod shop/job-2"])));
    let how: Vec<&Value> =
        answer["evidence"].as_array().context("a list")?.iter().map(|it| &it["how"]).collect();
    assert_eq!(how, ["authored", "API view", "API view"], "{answer:#}");
    assert_eq!(answer["evidence"][0]["node"], "node-1");
    let ran = ask(&["who", "10.0.0.7", "--at", &t(105).to_string(), "--output", "yaml"], store);
    assert!(ran.out.contains("answer: known"), "{}", ran.out);
    // What nobody can know is said, and no guess made.
    let ran = ask(&["who", "10.0.0.7", "--at", &t(0).to_string()], store);
    assert_eq!(ran.status, 2);
    assert_eq!(
        ran.err,
        "netaudit: nothing is known of 2026-01-01T00:00:00Z: the history begins at 2026-01-01T00:00:02Z\n"
    );
    let ran = ask(&["who", "10.0.0.7", "--at", &t(9_000).to_string()], store);
    assert!(ran.out.contains("but changes of objects are unknown since 2026-01-01T00:06:40"), "{}", ran.out);
    let ran = ask(&["who", "10.0.0.777", "--at", "1h"], store);
    assert!(ran.status == 2 && ran.err.contains("invalid value '10.0.0.777'"), "{}", ran.err);
    Ok(())
}

/// An agent without a kernel: what it learns it judges by, and tells the history.
pub(super) struct Agent {
    pub writer: Writer,
    auditor: Auditor,
}

impl Agent {
    pub fn new(store: &Path, run: &str, from: i64) -> Result<Self> {
        let auditor = Auditor::new(Settings {
            node: "node-1".into(),
            run: run.into(),
            host: NetnsCookie(1),
            budget: Budget::default(),
            unused_after: Duration::from_secs(60),
            unused_coverage: 0.99,
        });
        Ok(Self { writer: Writer::open(store, run, from, FOREVER)?, auditor })
    }

    pub fn apply(&mut self, kind: Kind, value: &Value, at: i64) {
        self.writer.seen(&content(kind, value), at);
        let object = watch::convert::object(kind, value, &Arc::from("test"));
        self.auditor.cluster_mut().apply(object, t(at));
        if kind == Kind::Pod {
            let uid = value["metadata"]["uid"].as_str().unwrap_or_default();
            let number = u64::from(*uid.as_bytes().last().expect("a UID"));
            let attribution = self.auditor.attribution_mut();
            attribution.cgroup(CgroupId(number), &format!("/kubepods/pod{uid}/c"));
            attribution.pair(NetnsCookie(number), CgroupId(number));
        }
    }

    pub fn delete(&mut self, kind: Kind, name: &str, at: i64) {
        self.writer.deleted(kind, name, at);
        self.auditor.cluster_mut().delete(&key(kind, name), t(at));
    }

    pub fn ready(&mut self, at: i64) {
        self.writer.listed(at);
        self.auditor.set_ready();
    }

    /// A connection that db-0 accepts from an address. Returns its id and its verdict.
    pub fn accepts(&mut self, from: &str, at: i64) -> (String, &'static str) {
        let number = u64::from(b'0');
        let seen = Observation {
            at: t(at),
            socket: at as u64,
            ..ingress(number, number, "10.0.0.2:5432", &format!("{from}:40000"))
        };
        let mut flows = Vec::new();
        self.auditor.observe(&seen, seen.at, &mut flows);
        let later = seen.at.plus(Duration::from_secs(8));
        self.auditor.settle(later, &mut flows);
        self.auditor.tick(later, &mut flows);
        let [flow] = &flows[..] else { panic!("{flows:?}") };
        let (cluster, privacy) = (self.auditor.cluster(), Privacy::TELLS_ALL);
        self.writer.store.push(&Telling { flow, cluster, node: "node-1", correction: 0, privacy });
        (flow.id.to_string(), flow.verdict.as_str())
    }
}

pub(super) fn policy_value(from: &str, version: &str) -> Value {
    json!({
        "kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"namespace": "shop", "name": "db", "uid": "policy", "resourceVersion": version},
        "spec": {"podSelector": {"matchLabels": {"app": "db"}},
                 "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": from}}}]}]},
    })
}

pub(super) fn db() -> Value {
    // Its UID gives its number: '0'.
    pod_value("db-0", "uid-0", "10.0.0.2", "db")
}

/// A policy that changes between two flows, a pod that goes and another that has its address, and a restart.
pub(crate) fn story(store: &Path) -> Result<Vec<String>> {
    let mut agent = Agent::new(store, "run-a", 0)?;
    let mut namespace = json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "one"}}});
    agent.apply(Kind::Namespace, &namespace, 1);
    agent.apply(Kind::Node, &json!({"metadata": {"name": "node-1"}, "spec": {"podCIDR": "10.0.0.0/24"}}), 1);
    agent.apply(Kind::Pod, &db(), 1);
    agent.apply(Kind::Pod, &pod_value("web-0", "uid-1", "10.0.0.1", "web"), 1);
    agent.apply(Kind::NetworkPolicy, &policy_value("web", "11"), 1);
    agent.ready(2);
    let (mut ids, mut verdicts) = (Vec::new(), Vec::new());
    let mut note = |(id, verdict)| {
        ids.push(id);
        verdicts.push(verdict);
    };
    note(agent.accepts("10.0.0.1", 10));
    note(agent.accepts("10.0.0.1", 11));
    agent.apply(Kind::NetworkPolicy, &policy_value("api", "12"), 30);
    note(agent.accepts("10.0.0.1", 50));
    agent.delete(Kind::Pod, "web-0", 100);
    agent.apply(Kind::Pod, &pod_value("api-0", "uid-2", "10.0.0.1", "api"), 101);
    note(agent.accepts("10.0.0.1", 120));
    namespace["metadata"]["labels"] = json!({"team": "two"});
    agent.apply(Kind::Namespace, &namespace, 130);
    let mut other = db();
    other["metadata"]["labels"] = json!({"app": "db", "tier": "gold"});
    agent.apply(Kind::Pod, &other, 140);
    agent.writer.finish(150);

    let mut agent = Agent::new(store, "run-b", 200)?;
    agent.apply(Kind::Namespace, &namespace, 201);
    agent.apply(Kind::Pod, &other, 201);
    agent.apply(Kind::Pod, &pod_value("api-0", "uid-2", "10.0.0.1", "api"), 201);
    agent.ready(202);
    note(agent.accepts("10.0.0.1", 210));
    agent.delete(Kind::Pod, "db-0", 300);
    agent.writer.finish(310);
    assert_eq!(verdicts, ["allowed", "allowed", "denied", "allowed", "allowed"]);
    Ok(ids)
}

#[test]
fn a_flow_is_told_by_the_policy_of_then() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let ids = story(store)?;
    let [before, _, after, heir, unselected] = &ids[..] else { anyhow::bail!("{ids:?}") };
    let ran = ask(&["why", before], store);
    let (_, told) = ran.out.split_once("by the objects of then\n").with_context(|| ran.err.clone())?;
    assert_eq!(
        told,
        "\
ingress at shop/db-0 (10.0.0.2): allowed, as recorded
  by NetworkPolicy/shop/db ingress[0].from[0]: from app=web on any port

NetworkPolicy/shop/db, there at 2026-01-01T00:00:01Z, resourceVersion 11
  apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata:
    name: db
    namespace: shop
    uid: policy
  spec:
    ingress:
    - from:
      - podSelector:
          matchLabels:
            app: web
    podSelector:
      matchLabels:
        app: db
",
        "{}",
        ran.err
    );
    assert_eq!(ran.status, 0);
    let ran = ask(&["why", after], store);
    assert!(ran.out.contains("ingress at shop/db-0 (10.0.0.2): denied, as recorded\n"), "{}", ran.out);
    assert!(ran.out.contains("but pod: app=api wanted, app is \"web\""), "{}", ran.out);
    assert!(
        ran.out.contains("NetworkPolicy/shop/db, since 2026-01-01T00:00:30Z, resourceVersion 12"),
        "{}",
        ran.out
    );
    assert_eq!(ran.status, 0);
    // The same address, another pod.
    let ran = ask(&["why", heir, "--output", "json"], store);
    let answer: Value = serde_json::from_str(&ran.out)?;
    let then = &answer["then"];
    assert_eq!(
        (&then["verdict"], &then["same_as_recorded"]),
        (&json!("allowed"), &json!(true)),
        "{answer:#}"
    );
    assert_eq!(
        then["policies_of_then"][0]["content"]["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
            ["app"],
        "api"
    );
    assert_eq!((&then["run"], &then["notes"]), (&json!("run-a"), &json!([])));
    // By the next run there was no policy any more.
    let ran = ask(&["why", unselected], store);
    assert!(ran.out.contains("allowed, as recorded\n  no policy isolates it for ingress\n"), "{}", ran.out);
    Ok(())
}

#[test]
fn what_the_history_lacks_is_said_and_not_guessed() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    // A run that never had all objects.
    let mut agent = Agent::new(store, "run-a", 0)?;
    agent.apply(Kind::Pod, &db(), 1);
    agent.auditor.set_ready();
    let (id, _) = agent.accepts("203.0.113.9", 10);
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::NetworkPolicy) {
        agent.writer.store.history_mut().listed(kind, t(11));
    }
    agent.writer.finish(12);
    let ran = ask(&["why", &id], store);
    assert!(
        ran.out.contains("unknown: run run-a never had a list of all objects: NetworkPolicy were missing\n"),
        "{}{}",
        ran.out,
        ran.err
    );
    assert_eq!(ran.status, 0);
    // One whose recorded verdict came from an object that the history has otherwise.
    let mut agent = Agent::new(store, "run-b", 100)?;
    agent.apply(Kind::Pod, &db(), 101);
    agent.ready(102);
    let denies = watch::convert::object(Kind::NetworkPolicy, &policy_value("api", "1"), &Arc::from("test"));
    agent.auditor.cluster_mut().apply(denies, t(103));
    let (id, verdict) = agent.accepts("203.0.113.9", 110);
    assert_eq!(verdict, "denied");
    agent.writer.finish(120);
    let ran = ask(&["why", &id], store);
    assert!(ran.out.contains("allowed, which is not what was recorded"), "{}", ran.out);
    assert!(ran.out.contains("NetworkPolicy/shop/db is not in the history of that time"), "{}", ran.out);
    assert_eq!(ran.status, 1);
    // Another policy decides the same.
    let mut agent = Agent::new(store, "run-c", 200)?;
    agent.apply(Kind::Pod, &db(), 201);
    let mut other = policy_value("api", "2");
    other["metadata"]["name"] = json!("other");
    agent.writer.seen(&content(Kind::NetworkPolicy, &other), 201);
    agent.ready(202);
    let denies = watch::convert::object(Kind::NetworkPolicy, &policy_value("api", "1"), &Arc::from("test"));
    agent.auditor.cluster_mut().apply(denies, t(203));
    let (other_id, _) = agent.accepts("203.0.113.9", 210);
    agent.writer.finish(220);
    let ran = ask(&["why", &other_id], store);
    assert!(ran.out.contains("denied, as recorded"), "{}", ran.out);
    assert!(ran.out.contains("but it was recorded as decided by NetworkPolicy/shop/db\n"), "{}", ran.out);
    // No history at all.
    fs::remove_dir_all(OBJECTS.directory(store))?;
    fs::remove_dir_all(OBJECTS.open_directory(store))?;
    let ran = ask(&["why", &id], store);
    assert!(
        ran.out.contains("unknown: the stores hold no history of the objects of run run-b"),
        "{}",
        ran.out
    );
    assert_eq!(ran.status, 0, "{}", ran.err);
    Ok(())
}

#[test]
fn a_pods_timeline_has_its_flows_and_what_changed_for_it() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    story(store)?;
    let ran = ask(&["timeline", "shop/db-0", "--output", "json"], store);
    let answer: Value = serde_json::from_str(&ran.out).with_context(|| ran.err.clone())?;
    let entries = answer["entries"].as_array().context("a list")?;
    let lines: Vec<String> = entries
        .iter()
        .map(|entry| {
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            let times = entry["count"].as_u64().map(|count| format!("{count}x ")).unwrap_or_default();
            format!("{} {}: {times}{}", &text("time")[14..19], text("what"), text("text"))
        })
        .collect();
    assert_eq!(
        lines,
        [
            "00:01 pod: is there: Pod db-0 on node-1, labels app=db, addresses 10.0.0.2",
            "00:01 policy: NetworkPolicy/shop/db is there, selects it (resourceVersion 11)",
            "00:10 flow: 2x ingress shop/web-0 → shop/db-0 TCP/5432: accepted, allowed (shop/db ingress[0].from[0])",
            "00:30 policy: NetworkPolicy/shop/db changed, selects it (resourceVersion 12)",
            "00:50 flow: 1x ingress shop/web-0 → shop/db-0 TCP/5432: accepted, denied (NetworkPolicy/shop/db), unenforced",
            "02:00 flow: 1x ingress shop/api-0 → shop/db-0 TCP/5432: accepted, allowed (shop/db ingress[0].from[0])",
            "02:10 namespace labels: team=two (were team=one)",
            "02:20 labels: app=db,tier=gold (were app=db)",
            "03:22 policy: NetworkPolicy/shop/db is gone: deleted while no agent wrote it down",
            "03:30 flow: 1x ingress shop/api-0 → shop/db-0 TCP/5432: accepted, allowed (not isolated)",
            "05:00 pod: deleted",
        ]
    );
    assert!(
        ran.err
            .contains("nothing was recorded on node-1 from 2026-01-01T00:02:30Z until 2026-01-01T00:03:20Z"),
        "{}",
        ran.err
    );
    assert!(
        ran.err.contains(
            "changes of objects from 2026-01-01T00:02:30Z until 2026-01-01T00:03:20Z are not known"
        ),
        "{}",
        ran.err
    );

    let since = t(40).to_string();
    let ran = ask(&["timeline", "shop/db-0", "--since", &since, "--until", &t(125).to_string()], store);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), 5, "{}", ran.out);
    assert!(lines[1].contains("is there: Pod db-0 on node-1"), "{}", ran.out);
    assert!(lines[2].ends_with("selected by NetworkPolicy/shop/db"), "{}", ran.out);
    assert!(lines[3].contains("denied") && lines[4].contains("api-0"), "{}", ran.out);

    let ran = ask(&["timeline", "shop/nobody"], store);
    assert_eq!(
        (ran.status, &*ran.err),
        (2, "netaudit: no flow and no object tells of a pod shop/nobody in that time\n")
    );
    let ran = ask(&["timeline", "db-0"], store);
    assert!(ran.status == 2 && ran.err.contains("give NAMESPACE/POD"), "{}", ran.err);
    let ran = ask(&["timeline", "shop/db-0", "--since", &since, "--until", &since], store);
    assert!(ran.status == 2 && ran.err.contains("--since is not before --until"), "{}", ran.err);
    Ok(())
}
