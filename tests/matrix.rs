//! `netaudit eval --matrix` and `netaudit diff` as a person runs them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Run, folder, netaudit, run};

const PODS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Namespace
metadata: {name: edge}
---
apiVersion: v1
kind: Node
metadata: {name: worker-1}
status: {addresses: [{type: InternalIP, address: 172.18.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: web, uid: a, controller: true}]}
spec: {nodeName: worker-1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: web, uid: a, controller: true}]}
spec: {nodeName: worker-1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.1.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {containers: [{name: c}]}
status: {podIP: 10.1.0.3}
---
apiVersion: v1
kind: Pod
metadata: {name: proxy, namespace: edge, labels: {app: proxy}}
spec: {containers: [{name: c}]}
status: {podIP: 10.2.0.1}
"#;

const POLICIES: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: edge}}}]
    ports: [{port: http}]
  egress:
  - to: [{podSelector: {matchLabels: {app: db}}}]
    ports: [{port: 5432}]
  - to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 172.16.0.0/12]}}]
    ports: [{port: 443}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}, {port: 9187}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: nodes}
spec:
  tier: Admin
  priority: 10
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}}
  egress:
  - {name: api, action: Accept, to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {number: 6443}}}]}
  - {name: updates, action: Accept, to: [{domainNames: ["*.example.com"]}], protocols: [{tcp: {destinationPort: {number: 443}}}]}
"#;

fn path(text: &str) -> &Path {
    Path::new(text)
}

fn matrix(files: &[(&str, &str)], args: &[&str]) -> Run {
    let folder = folder(files);
    let mut all = vec![path("eval"), path("--matrix"), path("-f"), folder.path()];
    all.extend(args.iter().map(|it| path(it)));
    run(netaudit().args(&all))
}

fn diff(old: &Path, new: &Path, args: &[&str]) -> Run {
    let mut all = vec![path("diff"), path("-f"), old, path("-f"), new];
    all.extend(args.iter().map(|it| path(it)));
    run(netaudit().args(&all))
}

fn batchivo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/batchivo")
}

/// The example with one text of one file replaced.
fn changed(file: &str, from: &str, to: &str) -> TempDir {
    let copy = tempfile::tempdir().expect("a temporary directory");
    for entry in fs::read_dir(batchivo()).expect("the example is there") {
        let entry = entry.expect("readable");
        let text = fs::read_to_string(entry.path()).expect("text");
        let text = if entry.file_name() == file {
            assert!(text.contains(from), "{file} has {from:?}");
            text.replacen(from, to, 1)
        } else {
            text
        };
        fs::write(copy.path().join(entry.file_name()), text).expect("written");
    }
    copy
}

#[test]
fn the_matrix_says_who_may_talk_to_whom() {
    let run = matrix(&[("pods.yaml", PODS), ("policies.yaml", POLICIES)], &[]);
    assert_eq!(run.status, 0, "{}", run.err);
    assert_eq!(
        run.out,
        "\
allowed
  edge/proxy → shop/web: TCP 8080
  edge/proxy → node worker-1 (172.18.0.2): any port
  edge/proxy → any address: any port
  shop/db → node worker-1 (172.18.0.2): TCP 6443
  shop/db → addresses named *.example.com: TCP 443
  shop/web → shop/db: TCP 5432
  shop/web → 0.0.0.0/0 except 10.0.0.0/8, 172.16.0.0/12: TCP 443
  node worker-1 (172.18.0.2) → edge/proxy: any port
  any address → edge/proxy: any port
A pod to itself, and between a pod and its own node, is always allowed.
"
    );
}

#[test]
fn the_matrix_can_be_filtered() {
    let files = [("pods.yaml", PODS), ("policies.yaml", POLICIES)];
    let lines = |args: &[&str]| {
        let run = matrix(&files, args);
        assert_eq!(run.status, 0, "{}", run.err);
        run.out.lines().filter(|it| it.starts_with("  ")).map(|it| it.trim().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(lines(&["--from", "shop/web", "--to", "shop"]), ["shop/web → shop/db: TCP 5432"]);
    assert_eq!(lines(&["--from", "edge", "--to", "shop/web-1"]), ["edge/proxy → shop/web: TCP 8080"]);
    assert_eq!(lines(&["--from", "shop", "--to", "8.8.8.8"]).len(), 2);
    assert_eq!(lines(&["--from", "shop/web", "--to", "10.9.9.9"]), ["nothing"]);
    assert_eq!(
        lines(&["--to", "172.18.0.2", "--from", "shop"]),
        ["shop/db → node worker-1 (172.18.0.2): TCP 6443"]
    );
    assert_eq!(lines(&["--from", "10.1.0.1", "--to", "10.1.0.3"]), ["shop/web → shop/db: TCP 5432"]);
    let host = "
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop}
spec: {nodeName: worker-1, hostNetwork: true}
status: {podIP: 172.18.0.2}
";
    let run = matrix(&[("pods.yaml", PODS), ("host.yaml", host)], &["--from", "shop/host"]);
    let says =
        "is on its node's network, where no policy selects it, and is told as its node: ask for 172.18.0.2\n";
    assert!(run.err.ends_with(says), "{}", run.err);
    let run = matrix(&files, &["--from", "shop/nobody"]);
    assert_eq!(run.status, 2);
    assert!(run.err.contains("shop/nobody"), "{}", run.err);
}

#[test]
fn the_matrix_is_json_for_programs() {
    let run = matrix(&[("pods.yaml", PODS), ("policies.yaml", POLICIES)], &["--output", "json"]);
    let value: Value = serde_json::from_str(&run.out).expect("JSON");
    let rows = value["allowed"].as_array().expect("rows");
    let row = rows.iter().find(|it| it["text"] == "shop/web → shop/db: TCP 5432").expect("the row");
    assert_eq!(row["ports"], serde_json::json!([{ "protocol": "TCP", "first": 5432, "last": 5432 }]));
    assert_eq!(row["to"], serde_json::json!({ "kind": "pods", "names": ["shop/db"] }));
    let named = rows.iter().find(|it| !it["to"]["named"].is_null()).expect("a row by name");
    assert_eq!(named["to"]["named"], "*.example.com");
    assert_eq!(named["to"]["networks"], serde_json::json!(["0.0.0.0/0", "::/0"]));
}

#[test]
fn what_is_invalid_is_unknown_in_the_matrix() {
    let broken = POLICIES.replace("port: 9187", "port: 99999");
    let run = matrix(
        &[("pods.yaml", PODS), ("policies.yaml", &broken)],
        &["--from", "shop/web", "--to", "shop/db"],
    );
    assert!(run.err.contains("99999 is not a port"), "{}", run.err);
    // It may be any port of the policy, but the egress end allows only one, which is certain.
    assert!(!run.out.contains("unknown"), "{}", run.out);
    let broken = POLICIES.replace("ports: [{port: 5432}, {port: 9187}]", "ports: [{port: 99999}]");
    let run = matrix(
        &[("pods.yaml", PODS), ("policies.yaml", &broken)],
        &["--from", "shop/web", "--to", "shop/db"],
    );
    let expected = "unknown: neither allowed nor denied for certain\n  shop/web → shop/db: TCP 5432\n";
    assert!(run.out.contains(expected), "{}", run.out);
}

#[test]
fn a_matrix_without_pods_is_of_the_labels_that_policies_tell_apart() {
    let run = run(netaudit().args([path("eval"), path("--matrix"), path("-f"), &batchivo()]));
    assert_eq!(run.status, 0, "{}", run.err);
    assert!(run.out.starts_with("there is no Pod, so "), "{}", run.out);
    for line in [
        "  batchivo/app=admin-jobs, batchivo/app=backend → batchivo/app=minio: TCP 9000-9001",
        "  batchivo/app=backend → 0.0.0.0/0 except 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16: TCP 443",
        "  every pod of batchivo → every pod of kube-system: TCP 53; UDP 53",
        "  every pod of kube-system, traefik/app.kubernetes.io/name=traefik → batchivo/app=backend: TCP 8000",
    ] {
        assert!(run.out.lines().any(|it| it == line), "{line}\n{}", run.out);
    }
}

#[test]
fn a_policy_set_does_not_differ_from_itself() {
    let run = diff(&batchivo(), &batchivo(), &[]);
    assert_eq!(run.status, 0, "{}", run.err);
    assert!(run.out.contains("no difference"), "{}", run.out);
    // Another order and another spelling are no difference either.
    let same = changed("50-minio-policy.yaml", "port: 9000", "port: 9000\n          endPort: 9000");
    let run = diff(&batchivo(), same.path(), &[]);
    assert_eq!(run.status, 0, "{}{}", run.out, run.err);
}

#[test]
fn a_changed_port_is_told_in_both_ways_with_the_rules() {
    let new = changed("30-postgres-policy.yaml", "port: 5432", "port: 5433");
    let run = diff(&batchivo(), new.path(), &[]);
    assert_eq!(run.status, 1, "{}", run.err);
    // The egress end still allows 5432 only, so nothing becomes allowed between the two.
    assert!(
        run.out.contains(
            "no longer allowed\n  batchivo/app=backend → batchivo/app=postgres: TCP 5432\n      \
             ingress: was allowed by NetworkPolicy/batchivo/postgres-policy ingress[0]; is isolated by"
        ),
        "{}",
        run.out
    );
    assert!(!run.out.contains("newly allowed"), "{}", run.out);
}

#[test]
fn a_narrower_range_is_told_as_the_range_that_is_gone() {
    let new =
        changed("20-backend-policy.yaml", "- 10.0.0.0/8\n", "- 10.0.0.0/8\n              - 203.0.113.0/24\n");
    let run = diff(&batchivo(), new.path(), &["--output", "json"]);
    assert_eq!(run.status, 1, "{}", run.err);
    let value: Value = serde_json::from_str(&run.out).expect("JSON");
    assert_eq!(value["equal"], false);
    let rows = value["no_longer_allowed"].as_array().expect("rows");
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["to"]["networks"], serde_json::json!(["203.0.113.0/24"]));
    assert_eq!(rows[0]["from"]["names"], serde_json::json!(["batchivo/app=backend"]));
    let back = diff(new.path(), &batchivo(), &[]);
    assert!(
        back.out.contains("newly allowed\n  batchivo/app=backend → 203.0.113.0/24: TCP 443\n"),
        "{}",
        back.out
    );
}

#[test]
fn a_policy_that_goes_opens_what_it_isolated() {
    let new = changed("00-default-deny.yaml", "podSelector: {}", "podSelector: {matchLabels: {app: nobody}}");
    let run = diff(&batchivo(), new.path(), &[]);
    assert_eq!(run.status, 1);
    let opened = "ingress: was isolated by NetworkPolicy/batchivo/default-deny-all; is allowed, as no policy isolates it";
    assert!(run.out.contains(opened), "{}", run.out);
}

#[test]
fn pods_and_namespaces_of_both_sides_are_asked_about() {
    let policies = folder(&[("policies.yaml", POLICIES)]);
    let all =
        folder(&[("pods.yaml", PODS), ("policies.yaml", &POLICIES.replace("port: 443}]", "port: 444}]"))]);
    let run = diff(policies.path(), all.path(), &[]);
    assert_eq!(run.status, 1, "{}", run.err);
    assert!(
        run.out.starts_with(
            "newly allowed\n  shop/web → 0.0.0.0/0 except 10.0.0.0/8, 172.16.0.0/12: TCP 444\n      \
             egress: was isolated by NetworkPolicy/shop/default-deny, NetworkPolicy/shop/web; \
             is allowed by NetworkPolicy/shop/web egress[1]\nno longer allowed\n"
        ),
        "{}",
        run.out
    );
}

#[test]
fn an_invalid_policy_makes_unknown_what_it_changed() {
    let new = changed("40-redis-policy.yaml", "port: 6379", "port: 99999");
    let run = diff(&batchivo(), new.path(), &[]);
    assert_eq!(run.status, 1, "{}", run.out);
    // 443 too: the backend may reach it by address, if redis has one in that range.
    let expected =
        "no longer known whether allowed\n  batchivo/app=backend → batchivo/app=redis: TCP 443, 6379\n";
    assert!(run.out.contains(expected), "{}", run.out);
    assert!(!run.out.contains("newly allowed"), "{}", run.out);
}

const FOREIGN: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {endpointSelector: {matchLabels: {app: db}}, ingressDeny: [{fromEntities: [all]}]}
";

#[test]
fn policies_that_are_not_evaluated_belong_to_their_side() {
    let without = folder(&[("pods.yaml", PODS)]);
    let with = folder(&[("pods.yaml", PODS), ("foreign.yaml", FOREIGN)]);
    let run = diff(without.path(), with.path(), &[]);
    assert_eq!(run.status, 1, "{}", run.err);
    assert!(
        run.out.starts_with("no longer known whether allowed\n  edge/proxy, shop/web → shop/db: any port\n"),
        "{}",
        run.out
    );
    let back = diff(with.path(), without.path(), &[]);
    assert_eq!(back.status, 1, "{}", back.err);
    assert!(back.out.starts_with("allowed, where it was not known\n"), "{}", back.out);
    // One that both have and that differs.
    let other = FOREIGN.replace("ingressDeny: [{fromEntities", "egressDeny: [{toEntities");
    let other = folder(&[("pods.yaml", PODS), ("foreign.yaml", &other)]);
    let run = diff(with.path(), other.path(), &[]);
    assert_eq!(run.status, 1, "{}", run.err);
    assert!(run.out.contains("egress: was allowed, as no policy isolates it; is unknown"), "{}", run.out);
    assert!(run.out.contains("ingress: was unknown: foreign policy"), "{}", run.out);
    assert!(!run.out.contains("that are no policies"), "{}", run.out);
    let same = diff(with.path(), with.path(), &[]);
    assert_eq!(same.status, 0, "{}", same.out);
}

#[test]
fn a_pod_that_one_side_cannot_read_is_not_lost() {
    let open = POLICIES.replace("ports: [{port: 5432}, {port: 9187}]", "ports: [{port: 5432}]");
    let broken = PODS.replace(
        "{name: db, namespace: shop, labels: {app: db}}",
        "{name: db, namespace: shop, labels: {app: db, v: 1}}",
    );
    let old = folder(&[("pods.yaml", PODS), ("policies.yaml", "")]);
    let new = folder(&[("pods.yaml", &broken), ("policies.yaml", &open)]);
    let run = diff(old.path(), new.path(), &[]);
    assert_eq!(run.status, 1, "{}", run.err);
    let note = "asked as the old side has it, as the new one cannot be read: Pod shop/db: metadata.labels.v";
    assert!(run.out.contains(note), "{}", run.out);
    assert!(run.out.contains("shop/db: any port"), "{}", run.out);
    // Where neither can, that is no equality.
    let run = diff(new.path(), new.path(), &["--output", "json"]);
    assert_eq!(run.status, 1, "{}", run.out);
    let value: Value = serde_json::from_str(&run.out).expect("JSON");
    assert_eq!(value["equal"], false);
    let has = |field: &str, text: &str| {
        value[field].as_array().expect("a list").iter().any(|it| it.as_str().expect("text").contains(text))
    };
    assert!(has("notes", "not compared, as it cannot be read: Pod shop/db"), "{}", run.out);
    assert!(has("warnings", "pods.yaml:26 (document 6): Pod shop/db: metadata.labels.v"), "{}", run.out);
    let run = diff(new.path(), new.path(), &[]);
    assert!(run.out.ends_with("no difference in what could be compared\n"), "{}", run.out);
}

#[test]
fn workloads_of_one_name_are_told_apart_by_their_kinds() {
    let daemon = "
---
apiVersion: v1
kind: Pod
metadata: {name: web-x, namespace: shop, labels: {app: other}, ownerReferences: [{apiVersion: apps/v1, kind: DaemonSet, name: web, uid: b, controller: true}]}
status: {podIP: 10.1.0.9}
";
    let policy = POLICIES.split("---\napiVersion: policy.networking").next().expect("some");
    let policy = format!("{policy}---\n{}", "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: other, namespace: shop}
spec: {podSelector: {matchLabels: {app: other}}, egress: [{to: [{podSelector: {matchLabels: {app: proxy}}, namespaceSelector: {}}]}], policyTypes: [Egress]}
");
    let pods = format!("{PODS}{daemon}");
    let files = [("pods.yaml", pods.as_str()), ("policies.yaml", &policy)];
    let run = matrix(&files, &["--from", "shop"]);
    assert!(run.out.contains("  shop/DaemonSet/web → edge/proxy: any port\n"), "{}", run.out);
    assert!(run.out.contains("  shop/StatefulSet/web → shop/db: TCP 5432\n"), "{}", run.out);
    let run = matrix(&files, &["--from", "shop/daemonset/web"]);
    assert!(run.out.contains("  shop/DaemonSet/web → edge/proxy: any port\n"), "{}", run.out);
    assert!(!run.out.contains("StatefulSet"), "{}", run.out);
}

#[test]
fn no_value_that_a_policy_names_stands_for_all_others() {
    let policy = |selector: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: one}}\n\
             spec: {{podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: [{{podSelector: {selector}}}]}}]}}\n"
        )
    };
    let old = folder(&[("p.yaml", &policy("{matchLabels: {role: any}}"))]);
    let new = folder(&[("p.yaml", &policy("{matchExpressions: [{key: role, operator: Exists}]}"))]);
    let run = diff(old.path(), new.path(), &[]);
    assert_eq!(run.status, 1, "{}", run.out);
    assert!(run.out.contains("newly allowed\n  one/role=any-1 → one/app=db: any port\n"), "{}", run.out);
}

#[test]
fn several_old_and_new_sets_need_the_long_form() {
    let pods = folder(&[("pods.yaml", PODS)]);
    let (old, new) = (folder(&[("p.yaml", POLICIES)]), folder(&[("p.yaml", POLICIES)]));
    let args = [path("diff"), path("-f"), pods.path(), old.path(), path("--new"), new.path()];
    let run = run(netaudit().args(args));
    assert_eq!(run.status, 0, "{}{}", run.out, run.err);
}

#[test]
fn what_is_asked_wrongly_is_a_failure_that_says_why() {
    let empty = folder(&[("README.txt", "nothing")]);
    let example = batchivo();
    let fails = |args: &[&Path], expected: &str| {
        let run = run(netaudit().args(args));
        assert_eq!(run.status, 2, "{args:?}: {}", run.out);
        assert!(run.err.contains(expected), "{args:?}: {}", run.err);
        assert!(run.out.is_empty(), "{}", run.out);
    };
    let f = path("-f");
    fails(&[path("diff")], "-f");
    fails(&[path("diff"), f, &example], "two sets of manifests are needed");
    fails(&[path("diff"), f, &example, f, &example, f, &example], "3 sets of manifests");
    fails(&[path("diff"), f, &example, f, path("/nowhere/at/all")], "cannot read /nowhere/at/all");
    fails(&[path("diff"), f, empty.path(), f, &example], "no object of a kind that matters");
    fails(&[path("diff"), f, &example, f, empty.path()], "no object of a kind that matters");
    fails(&[path("eval"), path("--matrix"), f, empty.path()], "no object of a kind that matters");
    fails(&[path("eval"), path("--matrix"), f, path("/nowhere/at/all")], "cannot read /nowhere/at/all");
    fails(&[path("eval"), path("--matrix"), f, &example, path("--port"), path("80")], "--port");
    fails(&[path("eval"), f, &example], "--from");
}
