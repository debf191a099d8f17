//! etcd and kube-apiserver on the laid-out node, for agents that watch a real API server.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::harness::{NETAUDIT, World, kernel_or_skip, python};
use crate::{
    deploy::{deploy, documents},
    lab::{Launch, Process},
};

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
        fs::write(directory.join("tokens.csv"), TOKENS)?;
        let mut plane = Self { world, programs, directory, _etcd: etcd, server: None };
        fs::write(plane.kubeconfig(), KUBECONFIG)?;
        plane.start()?;
        Ok(plane)
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    pub(super) fn start(&mut self) -> Result<()> {
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

    pub(super) fn stop(&mut self) -> Result<()> {
        // Killed: asked politely, it would first wait for its watches to end.
        drop(self.server.take().context("it runs")?);
        Ok(())
    }

    /// Holds the server as it is, or lets it go on: it answers nothing meanwhile, and closes nothing.
    pub(super) fn hold(&self, hold: bool) -> Result<()> {
        let server = self.server.as_ref().context("it runs")?;
        let signal = if hold { Signal::STOP } else { Signal::CONT };
        let pid = Pid::from_raw(i32::try_from(server.pid())?).context("a process")?;
        Ok(kill_process(pid, signal)?)
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
    pub(super) fn apply_manifests(&self) -> Result<()> {
        let mut objects = Vec::new();
        for entry in fs::read_dir(self.world.lab.manifests())? {
            let object: Value = serde_json::from_str(&fs::read_to_string(entry?.path())?)?;
            objects.push(object);
        }
        objects.sort_by_key(|object| object["kind"] != "Namespace");
        objects.into_iter().try_for_each(|object| self.apply(object))
    }

    pub(super) fn delete(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let resource = resource(api_version, kind)?;
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.run(async move |client| {
            let api: Api<DynamicObject> = match &*namespace {
                "" => Api::all_with(client, &resource),
                namespace => Api::namespaced_with(client, namespace, &resource),
            };
            // At once: no kubelet is here that would end a pod.
            api.delete(&name, &DeleteParams::default().grace_period(0)).await?;
            Ok(())
        })
    }

    /// All objects of a kind, of all namespaces.
    pub(super) fn list(&self, api_version: &str, kind: &str) -> Result<Vec<Value>> {
        let resource = resource(api_version, kind)?;
        self.run(async move |client| {
            let api: Api<DynamicObject> = Api::all_with(client, &resource);
            let objects = api.list(&ListParams::default()).await?;
            objects.items.iter().map(|object| Ok(serde_json::to_value(object)?)).collect()
        })
    }

    /// The kubeconfig of the agent's service account, which may do what roles allow it.
    pub(super) fn account_kubeconfig(&self) -> Result<PathBuf> {
        let path = self.directory.join("account-kubeconfig");
        fs::write(&path, KUBECONFIG.replace("token: secret", "token: account"))?;
        Ok(path)
    }

    pub(super) fn agent(&self) -> Launch {
        Launch::new(NETAUDIT, self.world.arguments_with_api(&self.kubeconfig()))
    }
}

/// Namespaces get theirs from the server.
fn object_has_status(fields: &serde_json::Map<String, Value>) -> bool {
    fields.get("kind").is_some_and(|kind| kind == "Pod" || kind == "Node")
}

/// Everybody's master, the agent's service account, and people, whose token is their name.
const TOKENS: &str = "\
secret,admin,admin,system:masters
account,system:serviceaccount:netaudit:netaudit-agent,agent,
reader,reader,reader,
other,other,other,
nobody,nobody,nobody,
auditor,auditor,auditor,
";

pub(super) const KUBECONFIG: &str = "\
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

pub(super) fn text(value: &Value) -> Result<String> {
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

/// What `deploy/` lets the agent's service account do, in files of it.
pub(super) fn roles(plane: &ControlPlane<'_>, file: &str) -> Result<()> {
    for object in documents(&deploy().join(file))? {
        // Whom a binding names need not exist.
        if object["kind"] != "ServiceAccount" {
            plane.apply(object)?;
        }
    }
    Ok(())
}

/// Isolates the client's egress.
pub(super) fn deny_egress() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]},
    })
}

/// A launch of the agent with its own account's rights, and these arguments.
pub(super) fn agent_with(world: &World, plane: &ControlPlane<'_>, more: &[&str]) -> Result<Launch> {
    let mut arguments = world.arguments_with_api(&plane.account_kubeconfig()?);
    arguments.extend(more.iter().map(|it| (*it).to_owned()));
    Ok(Launch::new(NETAUDIT, arguments))
}

/// Tries to connect from the client to ports of the server, once each, whatever comes of it.
pub(super) fn try_ports(world: &World, ports: std::ops::Range<u16>) -> Result<()> {
    let (address, first, end) = (world.server.v4, ports.start, ports.end);
    python(
        &world.client.place,
        &format!(
            "import socket\nfor port in range({first},{end}):\n s=socket.socket()\n s.settimeout(2)\n s.connect_ex(('{address}',port))\n s.close()\n"
        ),
    )
}
