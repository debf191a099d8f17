//! The agent on a real API server: the same line with objects by watch, and what happens when the server goes away.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use super::harness::{NETAUDIT, World, eventually, kernel_or_skip, of};
use crate::lab::{Launch, Process};

const PATIENCE: Duration = Duration::from_secs(60);

/// Where `cargo xtask test` put kube-apiserver, and that etcd is there.
pub(super) fn api_server_or_skip(test: &str) -> Option<PathBuf> {
    if !kernel_or_skip(test) {
        return None;
    }
    let Some(directory) = std::env::var_os("NETAUDIT_KUBE_DIR").map(PathBuf::from) else {
        eprintln!("SKIPPED {test}: no kube-apiserver; `cargo xtask test` builds one where Go is installed");
        return None;
    };
    Some(directory)
}

/// etcd and kube-apiserver in the node's network namespace.
pub(super) struct ControlPlane<'a> {
    world: &'a World,
    programs: PathBuf,
    directory: PathBuf,
    _etcd: Process,
    server: Option<Process>,
}

impl<'a> ControlPlane<'a> {
    pub(super) fn new(world: &'a World, programs: PathBuf) -> Result<Self> {
        let directory = world.lab.directory().join("control-plane");
        fs::create_dir(&directory)?;
        let etcd = Launch::new(
            "etcd",
            [
                "--data-dir",
                &directory.join("etcd").display().to_string(),
                "--listen-client-urls=http://127.0.0.1:2379",
                "--advertise-client-urls=http://127.0.0.1:2379",
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--initial-advertise-peer-urls=http://127.0.0.1:2380",
                "--initial-cluster=default=http://127.0.0.1:2380",
            ],
        )
        .spawn(&world.lab.host_place("etcd")?, &world.lab.log("etcd"))?;
        let key = directory.join("sa.key");
        let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048").output()?;
        if !made.status.success() {
            bail!("openssl: {}", String::from_utf8_lossy(&made.stderr));
        }
        fs::write(directory.join("tokens.csv"), "secret,admin,admin,system:masters\n")?;
        let mut plane = Self { world, programs, directory, _etcd: etcd, server: None };
        fs::write(plane.kubeconfig(), KUBECONFIG)?;
        plane.start()?;
        Ok(plane)
    }

    fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    fn start(&mut self) -> Result<()> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let arguments = [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            "--secure-port=6443".to_owned(),
            format!("--cert-dir={}", file("certificates")),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", file("sa.key")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=RBAC".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ];
        let mut server = Launch::new(self.programs.join("kube-apiserver"), arguments)
            .spawn(&self.world.lab.host_place("kube-apiserver")?, &self.world.lab.log("kube-apiserver"))?;
        server.wait_until(PATIENCE, "ready", || {
            self.run(async |client| {
                let request = http_get("/readyz")?;
                Ok(client.request_text(request).await? == "ok")
            })
            .unwrap_or(false)
        })?;
        self.server = Some(server);
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        // Killed: asked politely, it would first wait for its watches to end.
        drop(self.server.take().context("it runs")?);
        Ok(())
    }

    /// Runs `work` with a client, inside the node's network namespace.
    pub(super) fn run<T: Send>(&self, work: impl AsyncFnOnce(Client) -> Result<T> + Send) -> Result<T> {
        let kubeconfig = self.kubeconfig();
        self.world.lab.node().enter(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let config = Kubeconfig::read_from(kubeconfig)?;
                let config =
                    kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
                work(Client::try_from(config)?).await
            })
        })?
    }

    /// Applies an object and its status, as its controllers would.
    pub(super) fn apply(&self, mut object: Value) -> Result<()> {
        if object["kind"] == "Pod" {
            // The server gives UIDs of its own. A static pod's object carries the kubelet's in an annotation.
            let uid = object["metadata"]["uid"].take();
            object["metadata"]["annotations"]["kubernetes.io/config.hash"] = uid;
        }
        if let Some(metadata) = object["metadata"].as_object_mut() {
            for key in ["uid", "ownerReferences", "creationTimestamp"] {
                metadata.remove(key);
            }
        }
        let status = match object.as_object_mut() {
            Some(fields) if object_has_status(fields) => fields.remove("status").unwrap_or_default(),
            _ => Value::Null,
        };
        let kind = text(&object["kind"])?;
        let name = text(&object["metadata"]["name"])?;
        let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
        let resource = resource(&text(&object["apiVersion"])?, &kind)?;
        self.run(async move |client| {
            let api: Api<DynamicObject> = match &namespace {
                Some(namespace) => Api::namespaced_with(client, namespace, &resource),
                None => Api::all_with(client, &resource),
            };
            let parameters = PatchParams::apply("test").force();
            api.patch(&name, &parameters, &Patch::Apply(&object))
                .await
                .with_context(|| format!("applying {kind}"))?;
            if !status.is_null() {
                let status = Patch::Merge(json!({"status": status}));
                api.patch_status(&name, &PatchParams::default(), &status).await?;
            }
            Ok(())
        })
    }

    /// Applies everything of the lab's manifests.
    fn apply_manifests(&self) -> Result<()> {
        let mut objects = Vec::new();
        for entry in fs::read_dir(self.world.lab.manifests())? {
            let object: Value = serde_json::from_str(&fs::read_to_string(entry?.path())?)?;
            objects.push(object);
        }
        objects.sort_by_key(|object| object["kind"] != "Namespace");
        objects.into_iter().try_for_each(|object| self.apply(object))
    }

    fn delete_policy(&self, namespace: &'static str, name: &'static str) -> Result<()> {
        self.run(async move |client| {
            let resource = resource("networking.k8s.io/v1", "NetworkPolicy")?;
            let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &resource);
            api.delete(name, &DeleteParams::default()).await?;
            Ok(())
        })
    }

    fn agent(&self) -> Launch {
        Launch::new(NETAUDIT, self.world.arguments_with_api(&self.kubeconfig()))
    }
}

/// Namespaces get theirs from the server.
fn object_has_status(fields: &serde_json::Map<String, Value>) -> bool {
    fields.get("kind").is_some_and(|kind| kind == "Pod" || kind == "Node")
}

const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: 'https://127.0.0.1:6443', insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: secret}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
";

fn http_get(path: &str) -> Result<axum::http::Request<Vec<u8>>> {
    Ok(axum::http::Request::get(path).body(Vec::new())?)
}

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().context("not a text")?.to_owned())
}

fn resource(api_version: &str, kind: &str) -> Result<ApiResource> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let plural = match kind {
        "NetworkPolicy" => "networkpolicies".to_owned(),
        "ClusterNetworkPolicy" => "clusternetworkpolicies".to_owned(),
        _ => format!("{}s", kind.to_lowercase()),
    };
    Ok(ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        plural,
    })
}

fn deny() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "deny"},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"]},
    })
}

#[test]
fn the_api_server_goes_and_comes_back() -> Result<()> {
    let Some(programs) = api_server_or_skip("API server") else { return Ok(()) };
    let world = World::new("api-server")?;
    let mut plane = ControlPlane::new(&world, programs)?;
    plane.apply_manifests()?;
    plane.apply(deny())?;
    let _server = world.serve()?;
    let mut agent = world.agent_by(&plane.agent())?;
    let verdicts = |count: usize| -> Result<Vec<Value>> {
        let flows = world.wait_for_flows("accepted flow", |flows| of(flows, "ingress").len() == count)?;
        Ok(of(&flows, "ingress").into_iter().cloned().collect())
    };
    world.connect(1)?;
    let first = &verdicts(1)?[0];
    assert_eq!(first["denied_by"][0], "NetworkPolicy/shop/deny", "{first:#}");
    assert_eq!(first["subject"]["pod"], world.server_name());

    // Away: what is known stays known, and the agent says that it hears nothing.
    plane.stop()?;
    eventually("the fault is counted", || Ok(world.metric_sum("netaudit_watch_errors_total{")? > 0.0))?;
    world.connect(1)?;
    assert_eq!(verdicts(2)?[1]["verdict"], "denied");
    assert_eq!(world.get("/readyz")?.0, 200, "it still does its work");
    assert!(agent.log_tail().contains("what is known stays known"), "{}", agent.log_tail());

    // Back: what changed meanwhile and afterwards is heard.
    plane.start()?;
    plane.delete_policy("shop", "deny")?;
    eventually("the deletion is heard", || {
        Ok(world.metric(r#"netaudit_objects{kind="NetworkPolicy"}"#)? == Some(0.0))
    })?;
    world.connect(1)?;
    assert_eq!(verdicts(3)?[2]["reason"], "not isolated");
    agent.terminate(Duration::from_secs(2))
}

/// The least of a definition that the server takes.
fn cluster_policy_definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": "clusternetworkpolicies.policy.networking.k8s.io",
            // The group is protected, and wants to know who approved.
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": "policy.networking.k8s.io", "scope": "Cluster",
            "names": {
                "kind": "ClusterNetworkPolicy", "listKind": "ClusterNetworkPolicyList",
                "plural": "clusternetworkpolicies", "singular": "clusternetworkpolicy",
            },
            "versions": [{
                "name": "v1alpha2", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    })
}

#[test]
fn policies_of_a_kind_that_is_installed_later_are_found() -> Result<()> {
    let Some(programs) = api_server_or_skip("API server with a kind of its own") else { return Ok(()) };
    let world = World::new("api-kinds")?;
    let plane = ControlPlane::new(&world, programs)?;
    plane.apply_manifests()?;
    let _server = world.serve()?;
    let config = world.lab.directory().join("config.yaml");
    fs::write(&config, "discoverEvery: 1s\n")?;
    let mut arguments = world.arguments_with_api(&plane.kubeconfig());
    arguments.extend(["--config".to_owned(), config.display().to_string()]);
    // Ready without the kind: that it is not there is no fault.
    let mut agent = world.agent_by(&Launch::new(NETAUDIT, arguments))?;
    assert_eq!(world.metric_sum("netaudit_watch_errors_total{")?, 0.0);

    plane.apply(cluster_policy_definition())?;
    let policy = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "closed"},
        "spec": {
            "tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
            "ingress": [{"name": "nobody", "action": "Deny", "from": [{"namespaces": {}}]}],
        },
    });
    eventually("the server takes the new kind", || Ok(plane.apply(policy.clone()).is_ok()))?;
    eventually("the policy is heard", || {
        Ok(world.metric(r#"netaudit_objects{kind="ClusterNetworkPolicy"}"#)? == Some(1.0))
    })?;
    world.connect(1)?;
    let flows = world.wait_for_flows("accepted flow", |flows| !of(flows, "ingress").is_empty())?;
    let flow = of(&flows, "ingress")[0];
    assert_eq!(flow["rule_paths"], json!(["closed ingress[0].from[0]"]), "{flow:#}");
    assert_eq!(flow["denied_by"], json!(["ClusterNetworkPolicy/closed"]));
    let used =
        r#"netaudit_rule_matches_total{kind="ClusterNetworkPolicy",namespace="",networkpolicy="closed""#;
    eventually("the rule is used", || Ok(world.metric_sum(used)? > 0.0))?;

    // The same flow, asked of the cluster as it is.
    let id = text(&flow["flow_id"])?;
    let (kubeconfig, log) = (plane.kubeconfig(), world.flow_log());
    let why = world.lab.node().enter(move || {
        let mut command = Command::new(NETAUDIT);
        command
            .args(["why", &id, "--cluster", "--kubeconfig"])
            .arg(kubeconfig)
            .arg("--flow-log")
            .arg(log)
            .output()
    })??;
    let said = String::from_utf8_lossy(&why.stdout);
    assert!(
        said.contains(
            "denied, as then\n  denied by ClusterNetworkPolicy/closed ingress[0].from[0] \"nobody\""
        ),
        "{said}"
    );
    assert_eq!(why.status.code(), Some(0), "{}", String::from_utf8_lossy(&why.stderr));
    agent.terminate(Duration::from_secs(2))
}

#[test]
fn without_an_api_server_it_is_not_ready_and_says_why() -> Result<()> {
    if !kernel_or_skip("no API server") {
        return Ok(());
    }
    let world = World::new("no-api-server")?;
    let kubeconfig = world.lab.directory().join("kubeconfig");
    fs::write(&kubeconfig, KUBECONFIG)?;
    let launch = Launch::new(NETAUDIT, world.arguments_with_api(&kubeconfig));
    let mut agent = launch.spawn(&world.agent_place()?, &world.lab.log("agent"))?;
    eventually("readiness says what is missing", || {
        Ok(world.get("/readyz").is_ok_and(|(status, body)| {
            status == 503 && body.contains("NetworkPolicy") && body.to_lowercase().contains("connect")
        }))
    })?;
    assert_eq!(world.get("/healthz")?.0, 200);
    agent.terminate(Duration::from_secs(2))
}
