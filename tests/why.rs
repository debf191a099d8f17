//! `netaudit why` as a person runs it.

use std::{fs, io::Write as _, process::Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Run, netaudit, run};

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, labels: {app: db}}
status: {podIP: 10.1.0.3}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}
"#;

const ALLOWED_THEN: &str = r#"{"time":"2026-01-01T00:00:00Z","flow_id":"n1-1a/7","direction":"ingress","subject":{"kind":"pod","namespace":"shop","pod":"db-0"},"peer":{"kind":"pod","namespace":"shop","pod":"web-0","ip":"10.1.0.1","port":40000},"protocol":"TCP","port":5432,"outcome":"accepted","reach":"reached","verdict":"allowed","rule_paths":["shop/db ingress[0].from[0]"]}"#;

const EXTERNAL: &str = r#"{"time":"2026-01-01T00:00:01Z","flow_id":"n1-1a/8","direction":"egress","subject":{"kind":"pod","namespace":"shop","pod":"web-0"},"peer":{"kind":"external","ip":"203.0.113.9","port":443},"protocol":"TCP","port":443,"outcome":"established","reach":"reached","verdict":"allowed","reason":"not isolated"}"#;

fn lab() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let log = format!("somebody else's line with n1-1a/7\n{ALLOWED_THEN}\n{EXTERNAL}\n");
    fs::write(folder.path().join("flows.log"), log).expect("written");
    fs::create_dir(folder.path().join("objects")).expect("made");
    fs::write(folder.path().join("objects/all.yaml"), MANIFESTS).expect("written");
    folder
}

fn why(lab: &TempDir, args: &[&str]) -> Run {
    run(netaudit().current_dir(lab.path()).arg("why").args(args))
}

#[test]
fn a_flow_is_told_again_and_judged_by_the_policies_of_now() {
    let run = why(&lab(), &["n1-1a/7", "--flow-log", "flows.log", "-f", "objects"]);
    assert_eq!(
        run.out,
        "\
flow n1-1a/7, 2026-01-01T00:00:00Z, ingress of shop/db-0
  shop/web-0 (10.1.0.1) → shop/db-0 TCP 5432: accepted, reached
allowed then
  by shop/db ingress[0].from[0]

by the policies of now
ingress at shop/db-0: denied, which is not what it was then
  isolated by NetworkPolicy/shop/db (selects app=db)
    its only rule is ingress[0].from[0]: from app=api on any port
    but pod: app=api wanted, app is \"web\"
"
    );
    assert_eq!(run.status, 1, "{}", run.err);
    let run = why(&lab(), &["n1-1a/8", "--flow-log", "flows.log", "-f", "objects"]);
    assert!(
        run.out.ends_with("egress at shop/web-0: allowed, as then\n  no policy isolates it for egress\n")
    );
    assert_eq!(run.status, 0, "{}", run.err);
}

#[test]
fn without_objects_the_record_alone_is_told_and_json_has_both() {
    let lab = lab();
    let run = why(&lab, &["n1-1a/8", "--flow-log", "flows.log"]);
    assert!(run.out.contains("allowed then\n  not isolated\n"), "{}", run.out);
    assert!(run.out.contains("name objects with -f or --cluster"), "{}", run.out);
    assert_eq!(run.status, 0);
    let run = why(&lab, &["n1-1a/7", "--flow-log", "flows.log", "-f", "objects", "--output", "json"]);
    let value: Value = serde_json::from_str(&run.out).expect("JSON");
    assert_eq!(value["record"]["outcome"], "accepted");
    assert_eq!(value["now"]["same_as_then"], false);
    assert_eq!(value["now"]["denied_by"][0]["nearest"]["peer"]["element"], "from[0]");
}

#[test]
fn stdin_is_read_too() {
    let mut child = netaudit()
        .args(["why", "n1-1a/8", "--flow-log", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("netaudit runs");
    child.stdin.take().expect("a pipe").write_all(EXTERNAL.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("shop/web-0 → external (203.0.113.9) TCP 443"));
}

#[test]
fn what_is_not_there_is_said() {
    let lab = lab();
    let run = why(&lab, &["n1-1a/9", "--flow-log", "flows.log"]);
    assert_eq!(run.err, "netaudit: no flow n1-1a/9 among the 3 lines of flows.log\n");
    assert_eq!(run.status, 2);
    let run = why(&lab, &["n1-1a/7", "--flow-log", "missing.log"]);
    assert!(run.err.starts_with("netaudit: cannot open the flow log missing.log: "), "{}", run.err);
    assert_eq!(run.status, 2);
    let gone = MANIFESTS.replace("name: web-0", "name: web-1");
    fs::write(lab.path().join("objects/all.yaml"), gone).expect("written");
    let run = why(&lab, &["n1-1a/7", "--flow-log", "flows.log", "-f", "objects"]);
    assert!(run.err.contains("the peer is not among the objects: there is no Pod shop/web-0"), "{}", run.err);
    assert_eq!(run.status, 2);
}

/// A record of an ingress at, or an egress of, a pod with more of the same in it.
fn record(id: &str, direction: &str, subject: &str, peer: &str, rest: &str) -> String {
    format!(
        r#"{{"time":"2026-01-01T00:00:00Z","flow_id":"{id}","direction":"{direction}","subject":{subject},"peer":{peer},"protocol":"TCP","port":5432,"outcome":"accepted","reach":"reached",{rest}}}"#
    )
}

const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: n1}
status: {podIP: 10.1.0.2, podIPs: [{ip: 10.1.0.2}, {ip: 'fd00::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1}
status: {podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: nobody}, ports: [{port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: both, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: db}, ports: [{port: 5432}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/24}}]}]
";

#[test]
fn a_record_is_judged_as_what_it_was() {
    let db = r#"{"kind":"pod","namespace":"shop","pod":"db"}"#;
    let web = r#"{"kind":"pod","namespace":"shop","pod":"web"}"#;
    let unknown = |reason: &str| format!(r#""verdict":"unknown","reason":"{reason}""#);
    let allowed = |reason: &str| format!(r#""verdict":"allowed","reason":"{reason}""#);
    for (what, line, says) in [
        (
            "the address that carried the flow counts",
            record(
                "r/1",
                "ingress",
                db,
                r#"{"kind":"pod","namespace":"shop","pod":"web","ip":"fd00::1"}"#,
                r#""verdict":"denied""#,
            ),
            "ingress at shop/db: denied, as then\n  isolated by NetworkPolicy/shop/db (selects app=db)\n    its only rule is \
             ingress[0].from[0]: from 10.1.0.0/24 on any port\n    but fd00::1 is not in 10.1.0.0/24\n",
        ),
        (
            "a service without backends",
            record(
                "r/1",
                "egress",
                web,
                r#"{"kind":"service","service":"shop/db","ip":"10.96.0.1"}"#,
                &unknown("no endpoints"),
            ),
            "egress at shop/web: unknown, as then\n  no endpoints\n",
        ),
        (
            "a service is asked for each backend",
            record(
                "r/1",
                "egress",
                web,
                r#"{"kind":"service","service":"shop/both","ip":"10.96.0.2"}"#,
                &allowed("not isolated"),
            ),
            "egress at shop/web: allowed, as then\n  at shop/db (10.1.0.2) 5432: allowed\n    no policy isolates it for egress\n",
        ),
        (
            "loopback",
            record("r/1", "egress", db, r#"{"kind":"loopback","ip":"127.0.0.1"}"#, &allowed("loopback")),
            "egress at shop/db: allowed, as then\n  policies do not apply: loopback\n",
        ),
        (
            "the node itself",
            record("r/1", "egress", r#"{"kind":"node","node":"n1"}"#, db, &allowed("host network")),
            "egress at node n1: allowed, as then\n  policies do not apply: host network\n",
        ),
        (
            "nobody knows who stood behind the node",
            record(
                "r/1",
                "ingress",
                db,
                r#"{"kind":"node","node":"n1","ip":"192.0.2.1"}"#,
                &unknown("source translated"),
            ),
            "ingress at shop/db: unknown, as then\n  source translated\n",
        ),
        (
            "an address of the node that its object does not tell",
            record(
                "r/1",
                "ingress",
                db,
                r#"{"kind":"node","node":"n1","ip":"10.244.0.1"}"#,
                &allowed("own node"),
            ),
            "ingress at shop/db: allowed, as then\n  policies do not apply: own node\n",
        ),
        (
            "what was missing then is no change of policies",
            record(
                "r/1",
                "ingress",
                db,
                r#"{"kind":"pod","namespace":"shop","pod":"web","ip":"10.1.0.1"}"#,
                &unknown("pod not seen"),
            ),
            "ingress at shop/db: allowed, which was not known then\n  by NetworkPolicy/shop/db ingress[0].from[0]: from 10.1.0.0/24 on any port\n",
        ),
    ] {
        let lab = tempfile::tempdir().expect("a temporary directory");
        fs::write(lab.path().join("log"), line).expect("written");
        fs::write(lab.path().join("objects.yaml"), NODE).expect("written");
        let run = why(&lab, &["r/1", "--flow-log", "log", "-f", "objects.yaml"]);
        let now = run.out.split_once("by the policies of now\n").map(|(_, now)| now).unwrap_or_default();
        assert_eq!(now, says, "{what}: {}{}", run.out, run.err);
        assert_eq!(run.status, i32::from(!says.contains("as then")), "{what}");
    }
}

#[test]
fn a_log_that_cannot_be_read_says_so() {
    let lab = tempfile::tempdir().expect("a temporary directory");
    fs::write(lab.path().join("log"), "{}\n{\"flow_id\":\"r/10\",\"time\":\"2026\n").expect("written");
    let run = why(&lab, &["r/10", "--flow-log", "log"]);
    let says =
        "netaudit: no flow r/10 among the 2 lines of log; torn or no JSON, though it holds the id: log:2\n";
    assert_eq!((run.err.as_str(), run.status), (says, 2));
    fs::write(lab.path().join("log.gz"), [0x1f, 0x8b, 8, 0, 0, 0]).expect("written");
    let run = why(&lab, &["r/10", "--flow-log", "log.gz"]);
    let says = "it is compressed (gzip): zcat log.gz | netaudit why r/10 --flow-log -\n";
    assert!(run.err.ends_with(says), "{}", run.err);
    assert_eq!(run.status, 2);
}

const NAMED: &str = r#"{"time":"2026-01-01T00:00:02Z","flow_id":"n1-1a/9","direction":"egress","subject":{"kind":"pod","namespace":"shop","pod":"web-0"},"peer":{"kind":"external","ip":"203.0.113.9","port":443,"names":[{"name":"www.example.com","state":"fresh","asked":true,"counts":true,"answered":"2026-01-01T00:00:01Z","server":"10.96.0.10"},{"name":"edge.example.net","state":"stale","asked":false,"counts":false,"answered":"2025-12-31T23:00:00Z","server":"10.96.0.10"}]},"protocol":"TCP","port":443,"outcome":"established","reach":"reached","verdict":"allowed","rule_paths":["domains egress[0].to[0]"]}"#;

const DOMAINS: &str = r#"
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: domains}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {}}
  egress:
  - {name: named, action: Accept, to: [{domainNames: [DOMAIN]}]}
  - {name: others, action: Deny, to: [{networks: [0.0.0.0/0]}]}
"#;

#[test]
fn the_names_of_then_are_told_and_asked_again() {
    let lab = lab();
    fs::write(lab.path().join("flows.log"), format!("{NAMED}\n")).expect("written");
    for (domain, verdict, status) in
        [("www.example.com", "allowed, as then", 0), ("edge.example.net", "unknown, which is not", 1)]
    {
        fs::write(lab.path().join("objects/cnp.yaml"), DOMAINS.replace("DOMAIN", domain)).expect("written");
        let run = why(&lab, &["n1-1a/9", "--flow-log", "flows.log", "-f", "objects"]);
        let told = "  203.0.113.9 is www.example.com, fresh, answered 2026-01-01T00:00:01Z\n  \
                    203.0.113.9 is edge.example.net, stale, answered 2025-12-31T23:00:00Z\nallowed then\n";
        assert!(run.out.contains(told), "{}", run.out);
        assert!(run.out.contains(&format!("egress at shop/web-0: {verdict}")), "{}", run.out);
        assert_eq!(run.status, status, "{}", run.err);
    }
}
