//! Tests of the conversion from JSON and of reading manifests.

use std::{fs, net::IpAddr};

use serde_json::{Value, json};

use super::{
    convert::{self, Converted},
    manifests::{self, Loaded},
};
use crate::cluster::{Kind, Object, ObjectKey, Pod};

fn one(value: Value) -> Object {
    match convert::document(&value, &"test".into()).as_slice() {
        [Converted::Object(object)] => object.clone(),
        other => panic!("{other:?}"),
    }
}

fn pod(value: Value) -> Pod {
    match one(value) {
        Object::Pod(pod) => pod,
        other => panic!("{other:?}"),
    }
}

fn owned(name: &str, kind: &str, owner: &str, labels: Value) -> String {
    let pod = pod(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "labels": labels,
            "ownerReferences": [
                { "kind": "Something", "name": "else" },
                { "kind": kind, "name": owner, "controller": true },
            ],
        },
        "spec": { "nodeName": "n1" },
    }));
    format!("{} {}", pod.workload.kind, pod.workload.name)
}

#[test]
fn the_top_controller_is_the_workload() {
    let hash = json!({ "pod-template-hash": "5d4f8" });
    assert_eq!(owned("web-5d4f8-abc", "ReplicaSet", "web-5d4f8", hash), "Deployment web");
    assert_eq!(owned("rs-abc", "ReplicaSet", "rs", json!({})), "ReplicaSet rs");
    assert_eq!(owned("db-0", "StatefulSet", "db", json!({})), "StatefulSet db");
    assert_eq!(owned("b-29012345-x", "Job", "backup-29012345", json!({})), "CronJob backup");
    assert_eq!(owned("m-x", "Job", "migrate-v2", json!({})), "Job migrate-v2");
    assert_eq!(owned("etcd-n1", "Node", "n1", json!({})), "Pod etcd");
    let bare = pod(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "bare" } }));
    assert_eq!((&*bare.workload.kind, &*bare.workload.name, &*bare.namespace), ("Pod", "bare", "default"));
}

#[test]
fn a_pod_keeps_what_is_read_and_nothing_else() {
    let pod = pod(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "p", "namespace": "x", "uid": "u", "creationTimestamp": "2026-01-02T03:04:05Z" },
        "spec": {
            "nodeName": "", "hostNetwork": true,
            "initContainers": [
                { "restartPolicy": "Always", "ports": [{ "name": "side", "containerPort": 1 }] },
                { "ports": [{ "name": "init", "containerPort": 2 }] },
            ],
            "containers": [{ "ports": [
                { "name": "dns", "containerPort": 53, "protocol": "UDP" }, { "containerPort": 9 },
            ] }],
        },
        "status": { "phase": "Failed", "podIP": "::ffff:10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] },
    }));
    let ips: Vec<IpAddr> = ["10.0.0.1", "fd00::1"].map(|it| it.parse().unwrap()).into();
    assert_eq!(pod.ips.to_vec(), ips);
    assert!(pod.host_network && pod.completed && pod.node.is_none());
    let ports: Vec<_> =
        pod.ports.iter().map(|it| format!("{} {} {}", it.name, it.protocol, it.port)).collect();
    assert_eq!(ports, ["dns UDP 53", "side TCP 1"]);
    assert_eq!(pod.created.unwrap().to_string(), "2026-01-02T03:04:05.000000000Z");
}

#[test]
fn what_cannot_be_decoded_keeps_its_metadata() {
    let meta = json!({ "name": "o", "namespace": "x" });
    for (kind, version, extra, path) in [
        ("Pod", "v1", json!({ "status": { "podIP": "10.0.0.1", "podIPs": "no list" } }), "status.podIPs"),
        ("Pod", "v1", json!({ "spec": { "hostNetwork": "yes" } }), "spec.hostNetwork"),
        (
            "Node",
            "v1",
            json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "n1" }] } }),
            "status.addresses[0].address",
        ),
        ("Service", "v1", json!({ "spec": { "ports": [{ "port": 70000 }] } }), "spec.ports[0].port"),
        (
            "EndpointSlice",
            "discovery.k8s.io/v1",
            json!({ "endpoints": [{ "addresses": [1] }] }),
            "endpoints[0].addresses[0]",
        ),
        ("NetworkPolicy", "networking.k8s.io/v1", json!({ "spec": "podSelector" }), "spec"),
    ] {
        let mut value = json!({ "apiVersion": version, "kind": kind, "metadata": meta });
        value.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let Object::Broken(broken) = one(value) else { panic!("{kind} is not broken") };
        let kind = Kind::from_name(kind).unwrap();
        assert_eq!(broken.key, Some(ObjectKey::new(kind, "x", "o")));
        assert!(broken.reason.starts_with(&format!("{path}: ")), "{}", broken.reason);
        assert_eq!(broken.ips.len(), usize::from(path == "status.podIPs"), "{kind}");
    }
    let Object::Broken(nameless) = one(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": {} })) else {
        panic!()
    };
    assert_eq!((nameless.key, nameless.kind), (None, Some(Kind::Pod)));
    assert_eq!(&*nameless.reason, "metadata.name: missing");
}

#[test]
fn lists_are_flattened_and_other_kinds_only_counted() {
    let list = json!({
        "apiVersion": "v1", "kind": "List",
        "items": [
            { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "a" } },
            { "apiVersion": "v1", "kind": "PodList", "items": [{ "metadata": { "name": "p" } }] },
            { "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" } },
            { "apiVersion": "crd.projectcalico.org/v1", "kind": "NetworkPolicy", "metadata": { "name": "c" } },
            { "apiVersion": "example.com/v1", "kind": "NetworkPolicy", "metadata": { "name": "e" } },
            { "apiVersion": "networking.k8s.io/v1beta1", "kind": "NetworkPolicy", "metadata": { "name": "old" } },
            { "apiVersion": "v1", "kind": "pod", "metadata": { "name": "small" } },
            { "replicas": 3 },
            { "kindd": "NetworkPolicy", "metadata": { "name": "n", "namespace": "x" }, "spec": {} },
            { "kind": "NetworkPolicy", "metadata": { "name": "n", "namespace": "x" } },
        ],
    });
    let converted = convert::document(&list, &"test".into());
    let told: Vec<_> = (converted.iter())
        .map(|it| match it {
            Converted::Object(Object::Broken(broken)) => broken.to_string(),
            Converted::Object(object) => object.key().unwrap().to_string(),
            Converted::Ignored(kind) => format!("ignored {kind}"),
            Converted::Nothing(reason) => format!("nothing {reason}"),
        })
        .collect();
    assert_eq!(
        told,
        [
            "Namespace a",
            "Pod default/p",
            "ignored Deployment",
            "CalicoNetworkPolicy default/c",
            "ignored NetworkPolicy of example.com/v1",
            "NetworkPolicy default/old: apiVersion: \"networking.k8s.io/v1beta1\" instead of \"networking.k8s.io/v1\"",
            "Pod default/small: kind: \"pod\" instead of \"Pod\"",
            "nothing items[7]: something without a kind, which is no object: remove it",
            "test: kind: missing or no text",
            "NetworkPolicy x/n: apiVersion: missing or no text",
        ]
    );
}

/// What was loaded, a line each: keys, errors, ignored kinds.
fn told(loaded: &Loaded) -> Vec<String> {
    let objects = loaded.documents.iter().map(|(source, object)| match object {
        Object::Broken(broken) => format!("{source} broken {:?} {:?}", broken.kind, broken.namespace),
        object => format!("{source} {}", object.key().unwrap()),
    });
    let errors = loaded.errors.iter().map(|it| format!("error {it}"));
    let ignored = loaded.ignored.iter().map(|(kind, count)| format!("ignored {count} {kind}"));
    objects.chain(errors).chain(ignored).collect()
}

#[test]
fn one_bad_document_costs_only_itself() {
    let text = "\
# a comment
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: bad
  namespace: a
spec:
  podSelector: {}
  ingress: [
---
apiVersion: v1
kind: Namespace
metadata: {name: b}
";
    let loaded = manifests::load_text("dir/file.yaml", text);
    let told = told(&loaded);
    assert_eq!(told[0], "dir/file.yaml:1 (document 1) Namespace a");
    assert_eq!(told[1], "dir/file.yaml:5 (document 2) broken Some(NetworkPolicy) Some(\"a\")");
    assert_eq!(told[2], "dir/file.yaml:14 (document 3) Namespace b");
    assert!(
        told[3].starts_with("error dir/file.yaml:1") && told[3].contains("(document 2): "),
        "{}",
        told[3]
    );
    assert_eq!(told.len(), 4);
    let line = loaded.errors[0].line;
    assert!((13..=14).contains(&line), "the error is where the list begins or the document ends: {line}");
}

#[test]
fn json_files_hold_one_value_after_the_other() {
    let text = "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\"}}\n\n{\n\"kind\": \"Pod\",\n\"metadata\": {\"namespace\": \"x\"}, oops}";
    let loaded = manifests::load_text("f.json", text);
    assert_eq!(
        told(&loaded),
        [
            "f.json:1 (document 1) Namespace a",
            "f.json:3 (document 2) broken Some(Pod) Some(\"x\")",
            "error f.json:5:33 (document 2): key must be a string",
        ]
    );
}

#[test]
fn a_directory_is_read_in_order_without_what_is_hidden_or_no_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let namespace = |name: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
    write("b.yml", &namespace("second"));
    write("a.yaml", &namespace("first"));
    write("c/d/e.json", r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"third"}}"#);
    write("kustomization.yaml", "resources: [a.yaml]\n");
    write("values.yaml", "replicas: 3\n");
    write("notes.txt", "kind: Namespace");
    write("..2026/a.yaml", &namespace("hidden"));
    write("z.yaml", "\u{feff}---\n# nothing\n---\n");
    fs::write(folder.path().join("y.yaml"), [0xff, 0xfe]).unwrap();
    std::os::unix::fs::symlink(folder.path(), folder.path().join("c/loop")).unwrap();
    let loaded = manifests::load(&[folder.path()]).unwrap();
    let prefix = format!("{}/", folder.path().display());
    let told: Vec<_> = told(&loaded).into_iter().map(|it| it.replace(&prefix, "")).collect();
    assert_eq!(
        told,
        [
            "a.yaml:1 (document 1) Namespace first",
            "b.yml:1 (document 1) Namespace second",
            "c/d/e.json:1 (document 1) Namespace third",
            "y.yaml:0 (document 0) broken None None",
            "error y.yaml: is not UTF-8 text",
            "ignored 1 Kustomization",
            "ignored 1 no kind",
        ]
    );
    assert_eq!(loaded.files, 7);
    let error = manifests::load(&[folder.path().join("missing")]).unwrap_err();
    assert!(error.to_string().ends_with("missing"));
}

#[test]
fn a_big_list_is_read_and_an_alias_bomb_is_not() {
    let mut text = "apiVersion: v1\nkind: List\nitems:\n".to_owned();
    for number in 0..30_000 {
        text += &format!(
            "- apiVersion: v1\n  kind: Pod\n  metadata: {{name: p{number}, namespace: x}}\n  status: {{podIP: 10.0.{}.{}}}\n",
            number / 250,
            number % 250
        );
    }
    let loaded = manifests::load_text("pods.yaml", &text);
    assert_eq!(loaded.errors, []);
    assert_eq!(loaded.documents.len(), 30_000);

    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 9].join(", ");
        bomb += &format!("a{level}: &a{level} [{inner}]\n");
    }
    // The size of the text around it gives it no more room.
    bomb += &"# comment\n".repeat(50_000);
    let loaded = manifests::load_text("bomb.yaml", &bomb);
    assert_eq!(loaded.errors.len(), 1);
    assert!(
        loaded.errors[0].reason.starts_with("is too big once its aliases are followed"),
        "{:?}",
        loaded.errors
    );
    assert!(matches!(loaded.documents.as_slice(), [(_, Object::Broken(_))]));
    let deep = format!("a: {}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(manifests::load_text("deep.yaml", &deep).errors.len(), 1);
}

#[test]
fn pipes_are_told_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let made = std::process::Command::new("mkfifo").arg(folder.path().join("f.yaml")).status().unwrap();
    assert!(made.success());
    fs::write(folder.path().join("g.yaml"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n")
        .unwrap();
    std::os::unix::fs::symlink("g.yaml", folder.path().join("h.yaml")).unwrap();
    std::os::unix::fs::symlink("f.yaml", folder.path().join("i.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere.yaml", folder.path().join("j.yaml")).unwrap();
    let (done, waits) = std::sync::mpsc::channel();
    let path = folder.path().to_owned();
    std::thread::spawn(move || drop(done.send(manifests::load(&[path]))));
    let loaded =
        waits.recv_timeout(std::time::Duration::from_secs(20)).expect("no pipe is waited for").unwrap();
    let prefix = format!("{}/", folder.path().display());
    let told: Vec<_> = told(&loaded).into_iter().map(|it| it.replace(&prefix, "")).collect();
    assert_eq!(told[0], "f.yaml:0 (document 0) broken None None");
    assert_eq!(told[1..3], ["g.yaml:1 (document 1) Namespace a", "h.yaml:1 (document 1) Namespace a"]);
    let reason = "cannot be read: a named pipe, not a regular file; remove it, or give it a name that does not end \
                  like a manifest's";
    assert!(told.contains(&format!("error f.yaml: {reason}")), "{told:?}");
    assert!(told.contains(&format!("error i.yaml: {reason}")), "{told:?}");
    assert!(told.iter().any(|it| it.starts_with("error j.yaml: cannot be read: ")), "{told:?}");
}

#[test]
fn markers_with_tabs_separate_documents_and_errors_advise_no_programmer() {
    let namespace = |name: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
    let text = format!("---\t# first\n{}---\t# second\n{}...\t# end\n", namespace("a"), namespace("b"));
    let loaded = manifests::load_text("f.yaml", &text);
    assert_eq!(told(&loaded), ["f.yaml:1 (document 1) Namespace a", "f.yaml:5 (document 2) Namespace b"]);
    // Lines that end as none do today: the marker is seen by the parser alone.
    let loaded = manifests::load_text("f.yaml", "a: 1\r---\rb: 1\r");
    let reason = "more than one document: each but the first begins with --- on a line of its own";
    assert_eq!(loaded.errors[0].reason, reason);
}

#[test]
fn what_does_not_parse_and_changes_no_verdict_is_only_counted() {
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata:\n  key: !!binary \"//8=\"\n";
    let broken = "kind: ConfigMap\nmetadata: {name: c}\ndata: {a: [\n";
    let other = "kind: NetworkPolcy\nmetadata: {name: c}\nspec: {a: [\n";
    let two = "kind: Secret\ndata: {}\nkind: NetworkPolicy\nspec: {a: [\n";
    let loaded = manifests::load_text("f.yaml", &[secret, broken, other, two].join("---\n"));
    let told = told(&loaded);
    assert_eq!(told[0], "f.yaml:14 (document 4) broken None None");
    assert!(told[1].starts_with("error f.yaml:1") && told[1].contains("(document 3)"), "{told:?}");
    assert!(told[2].contains("(document 4)"), "{told:?}");
    assert_eq!(told[3..], ["ignored 1 ConfigMap", "ignored 1 NetworkPolcy", "ignored 1 Secret"]);
}

#[test]
fn what_is_passed_over_is_told_once() {
    let text = "\
kind: List
apiVersion: v1
items: [null, 7, {}, []]
---
apiVersion: crd.antrea.io/v1beta1
kind: NetworkPolicy
metadata: {name: p, namespace: a}
---
apiVersion: crd.antrea.io/v1beta1
kind: NetworkPolicy
metadata: {name: q, namespace: a}
---
apiVersion: example.com/v1
kind: AllowList
items: [10.0.0.0/8, null]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
";
    let loaded = manifests::load_text("f.yaml", text);
    let passed: Vec<_> = loaded.passed_over.iter().map(ToString::to_string).collect();
    let other = "NetworkPolicy of crd.antrea.io/v1beta1: policies of this kind are not read, and no verdict heeds them";
    assert_eq!(
        passed,
        [
            "f.yaml:1 (document 1): items[0]: null, which is no object: remove it".to_owned(),
            "f.yaml:1 (document 1): items[1]: a plain value, which is no object: remove it".to_owned(),
            "f.yaml:1 (document 1): items[2]: an empty object, which is no object: remove it".to_owned(),
            "f.yaml:1 (document 1): items[3]: an empty list, which is no object: remove it".to_owned(),
            format!("f.yaml:4 (document 2): {other}"),
        ]
    );
    assert_eq!((loaded.errors, loaded.documents), (vec![], vec![]));
    // In a list without a kind, what does not say what it is may be anything.
    let text = "{kind: List, apiVersion: v1, items: [{metadata: {name: p}}, [{}]]}";
    let loaded = manifests::load_text("f.yaml", text);
    assert_eq!(
        told(&loaded),
        [
            "f.yaml:1 (document 1) broken None None",
            "f.yaml:1 (document 1) broken None None",
            "error f.yaml:1 (document 1): items[0].kind: missing or no text",
            "error f.yaml:1 (document 1): items[1]: a list in a list, so nothing in it is read",
        ]
    );
}

#[test]
fn one_anchor_may_be_used_as_often_as_a_policy_has_rules() {
    let mut text = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: a}
spec:
  podSelector: {}
  ingress:
  - ports: &web [{port: 80}, {port: 443}]
"
    .to_owned();
    for number in 0..3_000 {
        text += &format!(
            "  - {{ports: *web, from: [{{ipBlock: {{cidr: 10.0.{}.{}/32}}}}]}}\n",
            number / 250,
            number % 250
        );
    }
    let loaded = manifests::load_text("p.yaml", &text);
    assert_eq!(loaded.errors, []);
    assert!(
        matches!(&loaded.documents[..], [(_, Object::NetworkPolicy(policy))] if policy.ingress.len() == 3_001)
    );
}

#[test]
fn a_key_that_comes_twice_is_refused() {
    let text = r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p","namespace":"x"},
"spec":{"podSelector":{},"podSelector":{"matchLabels":{"app":"nobody"}}}}"#;
    let loaded = manifests::load_text("p.json", text);
    assert_eq!(
        told(&loaded),
        [
            "p.json:1 (document 1) broken Some(NetworkPolicy) Some(\"x\")",
            "error p.json:2:38 (document 1): the key \"podSelector\" comes twice",
        ]
    );
}
