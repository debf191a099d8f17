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
        (
            "NetworkPolicy",
            "networking.k8s.io/v1",
            json!({ "spec": { "policyTypes": "Ingress" } }),
            "spec.policyTypes",
        ),
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
            { "replicas": 3 },
            { "kind": "NetworkPolicy", "metadata": { "name": "n", "namespace": "x" } },
        ],
    });
    let converted = convert::document(&list, &"test".into());
    let told: Vec<_> = (converted.iter())
        .map(|it| match it {
            Converted::Object(Object::Broken(broken)) => broken.to_string(),
            Converted::Object(object) => object.key().unwrap().to_string(),
            Converted::Ignored(kind) => format!("ignored {kind}"),
        })
        .collect();
    assert_eq!(
        told,
        [
            "Namespace a",
            "Pod default/p",
            "ignored Deployment",
            "ignored NetworkPolicy of crd.projectcalico.org/v1",
            "ignored no kind",
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
