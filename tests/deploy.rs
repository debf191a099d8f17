//! The manifests that we ship: they say what the documents promise, and nothing beyond it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use netaudit::{cluster::Kind, kernel::DEFAULT_PIN_DIRECTORY};
use serde_json::Value;

/// The directory of everything that is installed.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The documents of a YAML file.
pub fn documents(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path:?}"))?;
    text.split("\n---\n")
        .map(|part| serde_saphyr::from_str(part).with_context(|| format!("{path:?}")))
        .collect()
}

fn typed<T: serde::de::DeserializeOwned>(path: &Path, kind: &str) -> Result<T> {
    let document = documents(path)?.into_iter().find(|document| document["kind"] == kind);
    serde_json::from_value(document.with_context(|| format!("no {kind} in {path:?}"))?).map_err(Into::into)
}

fn policy(file: &str) -> Result<NetworkPolicy> {
    typed(&deploy().join("examples/batchivo").join(file), "NetworkPolicy")
}

/// `key=value,…` as kubectl shows a selector; `<none>` for the one that selects all.
fn selector(policy: &NetworkPolicy) -> String {
    let labels = policy
        .spec
        .as_ref()
        .and_then(|spec| spec.pod_selector.as_ref())
        .and_then(|selector| selector.match_labels.clone())
        .unwrap_or_default();
    if labels.is_empty() {
        return "<none>".to_owned();
    }
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// One peer and one port as a word: `pod app=backend TCP/5432`.
fn words(peers: Option<&Vec<NetworkPolicyPeer>>, ports: Option<&Vec<NetworkPolicyPort>>) -> BTreeSet<String> {
    let labels = |selector: &LabelSelector| {
        let labels: &BTreeMap<String, String> =
            selector.match_labels.as_ref().expect("selectors name labels");
        labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    };
    let peers = peers.into_iter().flatten().map(|peer| {
        let mut words = Vec::new();
        if let Some(selector) = &peer.namespace_selector {
            words.push(format!("ns {}", labels(selector).replace("kubernetes.io/metadata.name=", "")));
        }
        if let Some(selector) = &peer.pod_selector {
            words.push(format!("pod {}", labels(selector)));
        }
        if let Some(block) = &peer.ip_block {
            words.push(format!(
                "{} except {}",
                block.cidr,
                block.except.clone().unwrap_or_default().join(",")
            ));
        }
        words.join(" ")
    });
    peers
        .flat_map(|peer| {
            ports.into_iter().flatten().map(move |port| {
                let number = port.port.as_ref().map(|port| match port {
                    IntOrString::Int(number) => number.to_string(),
                    IntOrString::String(name) => name.clone(),
                });
                format!("{peer} {}/{}", port.protocol.as_deref().unwrap_or("-"), number.unwrap_or_default())
            })
        })
        .collect()
}

fn allowed(policy: &NetworkPolicy) -> (BTreeSet<String>, BTreeSet<String>) {
    let spec = policy.spec.as_ref().expect("a policy has a spec");
    let ingress = spec
        .ingress
        .iter()
        .flatten()
        .flat_map(|rule| words(rule.from.as_ref(), rule.ports.as_ref()))
        .collect();
    let egress =
        spec.egress.iter().flatten().flat_map(|rule| words(rule.to.as_ref(), rule.ports.as_ref())).collect();
    (ingress, egress)
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn the_seven_are_what_kubectl_must_show() -> Result<()> {
    let expected = [
        ("00-default-deny.yaml", "default-deny-all", "<none>"),
        ("01-allow-dns.yaml", "allow-dns-egress", "<none>"),
        ("10-frontend-policy.yaml", "frontend-policy", "app=frontend"),
        ("20-backend-policy.yaml", "backend-policy", "app=backend"),
        ("30-postgres-policy.yaml", "postgres-policy", "app=postgres"),
        ("40-redis-policy.yaml", "redis-policy", "app=redis"),
        ("50-minio-policy.yaml", "minio-policy", "app=minio"),
    ];
    for (file, name, selects) in expected {
        let policy = policy(file)?;
        assert_eq!(policy.metadata.name.as_deref(), Some(name), "{file}");
        assert_eq!(policy.metadata.namespace.as_deref(), Some("batchivo"), "{file}");
        assert_eq!(selector(&policy), selects, "{file}");
        let types = policy.spec.and_then(|spec| spec.policy_types).unwrap_or_default();
        assert!(!types.is_empty(), "{file}: policyTypes are explicit");
    }
    let kustomization = &documents(&deploy().join("examples/batchivo/kustomization.yaml"))?[0];
    let resources: Vec<&str> = expected.iter().map(|(file, ..)| *file).collect();
    assert_eq!(kustomization["resources"], serde_json::json!(resources), "the eighth is not part of it");
    Ok(())
}

#[test]
fn each_policy_allows_what_its_table_says_and_no_more() -> Result<()> {
    let traefik = "ns traefik pod app.kubernetes.io/name=traefik";
    let store =
        |port: u16| set(&[&format!("pod app=backend TCP/{port}"), &format!("ns kube-system TCP/{port}")]);
    let web = |port: u16| set(&[&format!("{traefik} TCP/{port}"), &format!("ns kube-system TCP/{port}")]);
    let none = BTreeSet::new();
    let table: [(&str, BTreeSet<String>, BTreeSet<String>); 8] = [
        ("00-default-deny.yaml", none.clone(), none.clone()),
        ("01-allow-dns.yaml", none.clone(), set(&["ns kube-system UDP/53", "ns kube-system TCP/53"])),
        ("10-frontend-policy.yaml", web(8080), none.clone()),
        (
            "20-backend-policy.yaml",
            web(8000),
            set(&[
                "pod app=postgres TCP/5432",
                "pod app=redis TCP/6379",
                "pod app=minio TCP/9000",
                "pod app=minio TCP/9001",
                "0.0.0.0/0 except 10.0.0.0/8,172.16.0.0/12,192.168.0.0/16 TCP/443",
            ]),
        ),
        ("30-postgres-policy.yaml", store(5432), none.clone()),
        ("40-redis-policy.yaml", store(6379), none.clone()),
        (
            "50-minio-policy.yaml",
            set(&[
                "pod app=backend TCP/9000",
                "pod app=backend TCP/9001",
                "pod app=admin-jobs TCP/9000",
                "pod app=admin-jobs TCP/9001",
                "ns kube-system TCP/9000",
            ]),
            none.clone(),
        ),
        ("60-admin-jobs-policy.yaml", none, set(&["pod app=minio TCP/9000", "pod app=minio TCP/9001"])),
    ];
    for (file, ingress, egress) in table {
        assert_eq!(allowed(&policy(file)?), (ingress, egress), "{file}");
    }
    // Stores must be isolated in both directions: without `Egress` an empty list would mean nothing.
    for file in
        ["00-default-deny.yaml", "30-postgres-policy.yaml", "40-redis-policy.yaml", "50-minio-policy.yaml"]
    {
        let types = policy(file)?.spec.and_then(|spec| spec.policy_types).unwrap_or_default();
        assert_eq!(types, ["Ingress", "Egress"], "{file}");
    }
    Ok(())
}

#[test]
fn the_agent_may_read_what_it_watches_and_nothing_else() -> Result<()> {
    let role: ClusterRole = typed(&deploy().join("base/rbac.yaml"), "ClusterRole")?;
    let mut resources = BTreeSet::new();
    for rule in role.rules.unwrap_or_default() {
        assert_eq!(rule.verbs, ["list", "watch"]);
        for group in rule.api_groups.unwrap_or_default() {
            let names = rule.resources.clone().unwrap_or_default();
            resources.extend(names.iter().map(|name| format!("{name}.{group}")));
        }
    }
    let watched = Kind::ALL.map(|kind| format!("{}.{}", kind.plural(), kind.api_group()));
    assert_eq!(resources, watched.into_iter().collect());
    Ok(())
}

#[test]
fn the_seccomp_component_names_the_profile_beside_it() -> Result<()> {
    let directory = deploy().join("components/seccomp");
    let component = &documents(&directory.join("kustomization.yaml"))?[0];
    let patch = component["patches"][0]["patch"].as_str().context("a patch")?;
    let operations: Value = serde_saphyr::from_str(patch)?;
    let profile = operations[0]["value"]["localhostProfile"].as_str().context("a profile")?;
    assert!(directory.join(profile).is_file(), "{profile}");
    Ok(())
}

#[test]
fn uninstalling_looks_where_the_agents_pin() -> Result<()> {
    let component = &documents(&deploy().join("components/uninstall/kustomization.yaml"))?[0];
    let patch = component["patches"][0]["patch"].as_str().context("a patch")?;
    let operations: Value = serde_saphyr::from_str(patch)?;
    let arguments = operations
        .as_array()
        .into_iter()
        .flatten()
        .find(|it| it["path"] == "/spec/template/spec/containers/0/args");
    let pins = format!("--pin-directory={DEFAULT_PIN_DIRECTORY}");
    assert_eq!(arguments.context("arguments")?["value"], serde_json::json!(["uninstall", pins, "--stay"]));
    Ok(())
}

#[test]
fn the_daemon_set_has_the_powers_it_needs_and_no_more() -> Result<()> {
    let daemon_set: DaemonSet = typed(&deploy().join("base/daemonset.yaml"), "DaemonSet")?;
    let spec = daemon_set.spec.context("a spec")?;
    let update = spec.update_strategy.context("how it is updated")?;
    assert_eq!(update.type_.as_deref(), Some("RollingUpdate"));
    assert_eq!(
        update.rolling_update.and_then(|update| update.max_unavailable),
        Some(IntOrString::String("10%".to_owned()))
    );
    let pod = spec.template.spec.context("a pod template")?;
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    // One without key and effect tolerates every taint.
    let tolerated = pod.tolerations.as_deref().unwrap_or_default();
    assert!(matches!(tolerated, [all] if all.operator.as_deref() == Some("Exists")
        && all.key.is_none() && all.effect.is_none() && all.value.is_none()));
    let profile = pod.security_context.as_ref().and_then(|context| context.seccomp_profile.as_ref());
    assert_eq!(profile.map(|profile| &*profile.type_), Some("RuntimeDefault"));
    let volumes = pod.volumes.as_deref().unwrap_or_default();
    let host_paths: Vec<&str> = volumes
        .iter()
        .map(|volume| volume.host_path.as_ref().map_or("another kind of volume", |host| &*host.path))
        .collect();
    assert_eq!(host_paths, ["/sys/fs/cgroup", "/sys/fs/bpf", "/var/lib/netaudit"]);
    assert_eq!((pod.containers.len(), pod.init_containers.is_none()), (1, true));
    assert_eq!((pod.host_network, pod.host_pid), (Some(true), Some(true)));
    let container = &pod.containers[0];
    let context = container.security_context.as_ref().context("a security context")?;
    assert_eq!(context.read_only_root_filesystem, Some(true));
    assert_eq!(context.privileged, Some(false));
    assert_eq!(context.allow_privilege_escalation, Some(false));
    assert!(context.seccomp_profile.is_none(), "the pod's holds");
    let capabilities = context.capabilities.as_ref().context("capabilities")?;
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
    assert_eq!(capabilities.add.as_deref(), Some(&["BPF", "PERFMON", "NET_ADMIN"].map(str::to_owned)[..]));
    let resources = container.resources.as_ref().context("resources")?;
    let (requests, limits) = (resources.requests.as_ref(), resources.limits.as_ref());
    assert!(requests.is_some_and(|requests| requests.contains_key("cpu") && requests.contains_key("memory")));
    // Without a limit of the processor: where it is throttled, records are lost.
    assert!(limits.is_some_and(|limits| limits.contains_key("memory") && !limits.contains_key("cpu")));
    for (probe, path) in [
        (&container.startup_probe, "/healthz"),
        (&container.liveness_probe, "/healthz"),
        (&container.readiness_probe, "/readyz"),
    ] {
        let get = probe.as_ref().and_then(|probe| probe.http_get.as_ref()).context("an HTTP probe")?;
        assert_eq!(get.path.as_deref(), Some(path));
        assert_eq!(get.port, IntOrString::String("metrics".to_owned()));
    }
    let mounts = container.volume_mounts.as_ref().context("mounts")?;
    let writable = mounts.iter().filter(|mount| mount.read_only != Some(true));
    let writable: Vec<&str> = writable.map(|mount| &*mount.mount_path).collect();
    assert_eq!(writable, ["/sys/fs/bpf", "/var/lib/netaudit"], "nothing else can be written to");
    let state = "--state-directory=/var/lib/netaudit";
    assert!(container.args.iter().flatten().any(|argument| *argument == state));
    let pins = format!("--pin-directory={DEFAULT_PIN_DIRECTORY}");
    assert!(container.args.iter().flatten().any(|argument| *argument == pins));
    let node_name = container.env.iter().flatten().find(|variable| variable.name == "NODE_NAME");
    assert!(node_name.is_some_and(|variable| variable.value_from.is_some()));
    Ok(())
}

#[test]
fn components_give_the_agent_flags_that_it_has() -> Result<()> {
    for (name, says) in [
        ("dns-names", "dnsNames: true"),
        ("events", "events: true"),
        ("reports", "reports: true"),
        ("flow-store", "flowStore: /var/lib/netaudit/flow-store"),
        ("query", "queryListen: 127.0.0.1:9465"),
        ("privacy", "hashKey: /run/secrets/netaudit/key\nomitDnsNames: true\nomitProcesses: true\n"),
    ] {
        let directory = deploy().join("components").join(name);
        let component = &documents(&directory.join("kustomization.yaml"))?[0];
        let patch = component["patches"][0]["patch"].as_str().context("a patch")?;
        let operations: Value = serde_saphyr::from_str(patch)?;
        let operations = operations.as_array().context("operations")?;
        let is_flag = |it: &&Value| it["path"] == "/spec/template/spec/containers/0/args/-";
        let flags: Vec<&str> =
            operations.iter().filter(is_flag).filter_map(|it| it["value"].as_str()).collect();
        assert!(!flags.is_empty(), "{name}");
        // What another component, which it needs, brings.
        let needed = (name == "query").then_some("--flow-store=/var/lib/netaudit/flow-store");
        let printed = std::process::Command::new(env!("CARGO_BIN_EXE_netaudit"))
            .args(["agent", "--kubeconfig", "/", "--print-config"])
            .args(flags.into_iter().chain(needed))
            .output()?;
        assert!(String::from_utf8(printed.stdout)?.contains(says), "{name}");
    }
    Ok(())
}

#[test]
fn what_writes_is_in_components_of_its_own_with_no_more_rights_than_it_needs() -> Result<()> {
    for (name, group, verbs) in [
        ("events", "events.k8s.io", &["create", "patch"][..]),
        ("reports", "openreports.io", &["list", "create", "patch", "delete"][..]),
    ] {
        let directory = deploy().join("components").join(name);
        let component = &documents(&directory.join("kustomization.yaml"))?[0];
        assert_eq!(component["resources"], serde_json::json!(["rbac.yaml"]));
        let role: ClusterRole = typed(&directory.join("rbac.yaml"), "ClusterRole")?;
        let rules = role.rules.unwrap_or_default();
        let [rule] = rules.as_slice() else { panic!("{rules:?}") };
        assert_eq!(rule.api_groups.as_deref(), Some(&[group.to_owned()][..]));
        assert_eq!(rule.resources.as_deref(), Some(&[name.to_owned()][..]));
        assert_eq!(rule.verbs, verbs);
        let binding: ClusterRoleBinding = typed(&directory.join("rbac.yaml"), "ClusterRoleBinding")?;
        let base: ClusterRoleBinding = typed(&deploy().join("base/rbac.yaml"), "ClusterRoleBinding")?;
        assert_eq!(Some(&binding.role_ref.name), role.metadata.name.as_ref());
        assert_eq!(binding.subjects, base.subjects);
    }
    Ok(())
}
