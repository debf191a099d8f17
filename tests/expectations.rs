//! `netaudit test`: expectations hold or do not, say why, and are read strictly.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::command::{Run, folder, netaudit, run};

const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: 5432}]
";

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, canary: yes-it-is}}
---
apiVersion: v1
kind: Pod
metadata:
  name: db-0
  namespace: shop
  labels: {app: db}
  ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: db, uid: u, controller: true}]
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.9, selector: {app: db}, ports: [{port: 80, targetPort: 5432}]}
";

/// A file with these cases, in YAML without their indent.
fn file(cases: &str) -> String {
    format!("apiVersion: netaudit/v1\nkind: Expectations\ncases:\n{cases}")
}

fn test(cases: &str, more: &[&str]) -> Run {
    let expectations = folder(&[("expect.yaml", &file(cases))]);
    let manifests = folder(&[("policies.yaml", POLICIES), ("pods.yaml", PODS)]);
    let path = expectations.path().join("expect.yaml");
    run(netaudit().arg("test").arg(path).arg("-f").arg(manifests.path()).args(more))
}

#[track_caller]
fn check(cases: &str, status: i32, said: &[&str]) {
    let ran = test(cases, &[]);
    assert_eq!(ran.status, status, "{cases}\n{}{}", ran.out, ran.err);
    for text in said {
        assert!(ran.out.contains(text), "no {text:?} in\n{}{}", ran.out, ran.err);
    }
}

#[test]
fn cases_hold_for_pods_addresses_services_workloads_and_labels() {
    check(
        "
  - {name: by pod, expect: allow, from: shop/web-0, to: shop/db-0, port: 5432}
  - {name: other port, expect: deny, from: shop/web-0, to: shop/db-0, port: [5433, 80]}
  - {name: by service, expect: allow, from: shop/web-0, to: svc/shop/db, port: 80}
  - {name: by its address, expect: allow, from: shop/web-0, to: 10.96.0.9, port: 80}
  - {name: by address, expect: deny, from: 203.0.113.9, to: 10.0.0.2, port: 5432}
  - {name: by labels, expect: allow, from: {namespace: shop, labels: {app: web}}, to: {namespace: shop, workload: db, kind: StatefulSet}, port: 5432}
  - {name: several, expect: allow, from: [shop/web-0, shop/web-1], to: [shop/db-0, svc/shop/db], port: 5432, protocol: TCP}
  - {name: udp, expect: deny, from: shop/web-0, to: shop/db-0, port: 5432, protocol: UDP}
",
        1,
        &["ok   by pod", "ok   by labels", "ok   udp", "FAIL several", "service shop/db has no port TCP 5432", "7 passed, 1 failed"],
    );
}

#[test]
fn what_does_not_hold_says_what_decides_and_what_to_do() {
    check(
        "
  - {name: closed, expect: allow, from: shop/web-0, to: shop/db-0, port: 80}
  - {name: open, expect: deny, from: {namespace: shop, labels: {app: web}}, to: shop/db-0, port: 5432}
",
        1,
        &[
            "expect.yaml:5",
            "shop/web-0 → shop/db-0 TCP 80: expected allowed, and it is denied",
            "isolated by NetworkPolicy/shop/db (selects app=db)",
            "to do: allow ingress from shop/web-0 on TCP 80 in a policy that selects shop/db-0 (isolated by NetworkPolicy/shop/db)",
            "to do: or change the expectation",
            "shop/web-1 → shop/db-0 TCP 5432: expected denied, and it is allowed",
            "to do: narrow what allows it: NetworkPolicy/shop/db ingress[0].from[0].ports[0]",
            "0 passed, 2 failed\n",
        ],
    );
}

#[test]
fn an_end_that_is_not_there_fails_its_case_and_no_other() {
    check(
        "
  - {name: nobody, expect: deny, from: shop/nobody, to: shop/db-0, port: 5432}
  - {name: no labels, expect: deny, from: {namespace: shop, labels: {app: nobody}}, to: shop/db-0, port: 5432}
  - {name: no service, expect: deny, from: shop/web-0, to: svc/shop/nothing, port: 80}
  - {name: there, expect: allow, from: shop/web-0, to: shop/db-0, port: 5432}
",
        1,
        &[
            "there is no Pod shop/nobody in the manifests",
            "there are no pods of namespace shop, app=nobody",
            "there is no Service shop/nothing",
            "ok   there",
            "1 passed, 3 failed",
        ],
    );
}

#[test]
fn a_file_is_read_strictly_and_its_flaws_have_lines() {
    let whole = |text: &str| {
        let expectations = folder(&[("expect.yaml", text)]);
        let manifests = folder(&[("policies.yaml", POLICIES)]);
        let path = expectations.path().join("expect.yaml");
        run(netaudit().arg("test").arg(path).arg("-f").arg(manifests.path()))
    };
    for (text, said) in [
        (file("  - {name: a, expect: allow, from: x/a, to: x/b, port: 1}\n  - {name: b, expect: allow, from: x/a, to: x/b, prot: 1}\n"), "expect.yaml:5: unknown field"),
        (file("  - {name: a, expect: allow, from: x/a, to: {namespace: x, lables: {a: b}}, port: 1}\n"), "expect.yaml:4: unknown field"),
        (file("  - {name: a, expect: perhaps, from: x/a, to: x/b, port: 1}\n"), "expect.yaml:4: unknown variant"),
        (file("  - {name: a, expect: allow, from: x/a, to: x/b}\n"), "missing field `port`"),
        (file("  - {name: a, expect: allow, from: [], to: x/b, port: 1}\n"), "an empty list means nobody"),
        (file("  - {name: a, expect: allow, from: x/a, to: x/b, port: 70000}\n"), "expect.yaml:4:"),
        (file("  - {name: a, expect: allow, from: x/a, to: x/b, port: 0}\n"), "expect.yaml:4: case \"a\": port 0 is no port"),
        (file("  - {name: a, expect: allow, from: svc/x/a, to: x/b, port: 1}\n"), "a service opens no connections"),
        (file("  - {name: a, expect: allow, from: {namespace: x}, to: x/b, port: 1}\n"), "say which by workload or labels"),
        (file("  - {name: a, expect: allow, from: x/a, to: x/b, port: 1}\n  - {name: a, expect: deny, from: x/a, to: x/b, port: 2}\n"), "expect.yaml:5: the case of line 4 has this name too"),
        (file("  []\n"), "there are no cases"),
        (file("  - {").to_owned(), "expect.yaml:"),
        ("apiVersion: netaudit/v2\nkind: Expectations\ncases: [{name: a, expect: allow, from: x/a, to: x/b, port: 1}]\n".to_owned(), "expect.yaml:1: \"netaudit/v2\" is not \"netaudit/v1\""),
    ] {
        let ran = whole(&text);
        assert_eq!(ran.status, 2, "{text}{}", ran.out);
        assert!(ran.err.contains(said), "{text}no {said:?} in {}", ran.err);
    }
    let ran = run(netaudit().args(["test", "nowhere.yaml", "-f", "nowhere"]));
    assert!(ran.status == 2 && ran.err.contains("cannot read nowhere.yaml"), "{}", ran.err);
    let expectations =
        folder(&[("expect.yaml", &file("  - {name: a, expect: allow, from: x/a, to: x/b, port: 1}\n"))]);
    let ran = run(netaudit().arg("test").arg(expectations.path().join("expect.yaml")));
    assert!(ran.status == 2 && ran.err.contains("no objects to judge by"), "{}", ran.err);
}

#[test]
fn what_ci_servers_read_is_well_formed_whatever_a_case_is_called() -> Result<()> {
    let cases = "
  - {name: 'holds # 1', expect: allow, from: shop/web-0, to: shop/db-0, port: 5432, observed: true}
  - {name: 'a <b> & \"c\"', expect: allow, from: shop/web-0, to: shop/db-0, port: 80}
";
    let ran = test(cases, &["--output", "tap"]);
    assert_eq!(ran.status, 1);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(
        lines[..5],
        [
            "TAP version 14",
            "1..2",
            "ok 1 - holds \\# 1",
            "# observed: not checked, as no --flow-store tells of recorded flows",
            "not ok 2 - a <b> & \"c\"",
        ]
    );
    // What is between --- and ... is YAML.
    let inner: Vec<&str> =
        ran.out.lines().skip_while(|it| *it != "  ---").skip(1).take_while(|it| *it != "  ...").collect();
    let inner: String = inner.iter().map(|line| format!("{}\n", line.trim_start_matches("  "))).collect();
    assert!(inner.starts_with("message: \"shop/web-0 → shop/db-0 TCP 80: expected allowed"), "{inner}");
    assert!(inner.contains("\ndetails:\n"), "{inner}");

    let ran = test(cases, &["--output", "junit"]);
    assert!(
        ran.out.contains(r#"<testsuites name="netaudit" tests="2" failures="1" errors="0">"#),
        "{}",
        ran.out
    );
    assert!(ran.out.contains(r#"<testcase name="a &lt;b&gt; &amp; &quot;c&quot;""#), "{}", ran.out);
    assert!(
        ran.out.contains(
            r#"<failure message="shop/web-0 → shop/db-0 TCP 80: expected allowed, and it is denied">"#
        ),
        "{}",
        ran.out
    );
    assert_eq!(ran.out.matches("<testcase").count(), 2);
    assert_eq!(ran.out.matches("</testsuites>").count(), 1);

    let ran = test(cases, &["--output", "json"]);
    let told: Value = serde_json::from_str(&ran.out)?;
    assert_eq!((&told["passed"], &told["failed"]), (&json!(1), &json!(1)));
    assert_eq!(
        (&told["cases"][1]["line"], &told["cases"][1]["holds"]),
        (&json!(6), &json!(false)),
        "{told:#}"
    );
    Ok(())
}

#[test]
fn a_pod_of_the_file_stands_in_only_where_the_objects_have_none() {
    let pods = "apiVersion: netaudit/v1\nkind: Expectations\npods:
  - {namespace: shop, name: debug, labels: {run: debug}, addresses: [10.0.0.99], ports: {http: 8080}}
  - {namespace: shop, name: db-0, labels: {app: other}}
cases:
  - {name: a debug pod stays out, expect: deny, from: shop/debug, to: shop/db-0, port: 5432}
  - {name: it can be reached, expect: allow, from: shop/db-0, to: 10.0.0.99, port: 8080}
";
    let expectations = folder(&[("expect.yaml", pods)]);
    let manifests = folder(&[("policies.yaml", POLICIES), ("pods.yaml", PODS)]);
    let ask = || {
        run(netaudit()
            .arg("test")
            .arg(expectations.path().join("expect.yaml"))
            .arg("-f")
            .arg(manifests.path()))
    };
    let ran = ask();
    assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
    assert!(ran.out.ends_with("2 passed, 0 failed\n"), "{}", ran.out);
    // Without the real one, what stands for it is not isolated.
    fs::remove_file(manifests.path().join("pods.yaml")).expect("removed");
    let ran = ask();
    assert_eq!(ran.status, 1, "{}", ran.out);
    assert!(ran.out.contains("to do: isolate the end that no policy isolates"), "{}", ran.out);
}

/// The example's own document says once what its policies do not.
#[test]
fn of_the_examples_verification_exactly_one_does_not_hold() -> Result<()> {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/batchivo");
    let file = example.join("expectations.yaml");
    let ran = run(netaudit().arg("test").arg(&file).arg("-f").arg(&example));
    assert_eq!(ran.status, 1, "{}", ran.err);
    let failed: Vec<&str> = ran.out.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert_eq!(failed, ["FAIL debug pod: curl http://backend:8000/health should work"], "{}", ran.out);
    assert!(ran.out.ends_with("7 passed, 1 failed\n"), "{}", ran.out);
    let told = ran.out.split("FAIL").nth(1).context("told")?;
    for said in [
        "expected allowed, and it is denied",
        "isolated by NetworkPolicy/batchivo/default-deny-all",
        "isolated by NetworkPolicy/batchivo/backend-policy",
        "to do: allow egress to batchivo/backend on TCP 8000 in a policy that selects batchivo/netpol-test",
        "to do: allow ingress from batchivo/netpol-test on TCP 8000 in a policy that selects batchivo/backend",
    ] {
        assert!(told.contains(said), "no {said:?} in\n{told}");
    }
    // The file is no manifest, and makes nothing unknown that is asked of the directory that holds it.
    assert!(!ran.err.contains("expectations.yaml"), "{}", ran.err);
    Ok(())
}
