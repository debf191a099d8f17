//! The cluster as the scenario sees it: pods by a short name, commands in them, and what the agents wrote.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    process::{Output, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::driven::{Driven, is_driven};
use crate::{
    account::{
        ledger::{Expected, Party},
        record::{Metrics, Record},
    },
    cluster::{Cluster, Machine},
};

/// How long anything may take that a cluster does by itself.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The agents' namespace.
pub const NAMESPACE: &str = "netaudit";
/// Where agents serve HTTP, on their node's address.
pub const AGENT_PORT: u16 = 9464;

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub ip: String,
    pub node: String,
}

impl From<&Pod> for Party {
    fn from(pod: &Pod) -> Self {
        Self::Pod(format!("{}/{}", pod.namespace, pod.name))
    }
}

/// A line of an agent's flow log, with the node whose agent wrote it.
#[derive(Debug)]
pub struct Line {
    pub node: String,
    pub record: Record,
}

/// The cluster and everything that the scenario knows of it.
pub struct World {
    pub cluster: Cluster,
    pub driven: Driven,
    /// Every line of every agent so far, by flow id.
    lines: BTreeMap<String, Line>,
    /// How far each of their files has been read, in bytes.
    read: BTreeMap<PathBuf, usize>,
}

impl World {
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster, driven: Driven::default(), lines: BTreeMap::new(), read: BTreeMap::new() }
    }

    /// kubectl's output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl_output(arguments).with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    /// What kubectl prints as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        Ok(serde_json::from_str(&self.kubectl(&all)?)?)
    }

    /// The one running pod that has this label.
    pub fn pod(&self, namespace: &str, label: &str) -> Result<Pod> {
        let found = self.get(&["pods", "-n", namespace, "-l", label])?;
        let running: Vec<&Value> = found["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pod| {
                pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["podIP"].is_string()
            })
            .collect();
        ensure!(running.len() == 1, "{} pods of {namespace} have {label}", running.len());
        Ok(pod_of(running[0]))
    }

    /// The pod of this name, once it has an address.
    pub fn pod_named(&self, namespace: &str, name: &str) -> Result<Pod> {
        self.wait(&format!("{namespace}/{name} has an address"), || {
            let pod = self.get(&["pod", "-n", namespace, name])?;
            Ok(pod["status"]["podIP"].is_string().then(|| pod_of(&pod)))
        })
    }

    /// Waits for all pods of these namespaces to be ready.
    pub fn wait_for_pods(&self, namespaces: &[&str]) -> Result<()> {
        for namespace in namespaces {
            let waited = self.kubectl(&[
                "wait",
                "-n",
                namespace,
                "--for=condition=Ready",
                "pod",
                "--all",
                "--timeout=120s",
            ]);
            if let Err(error) = waited {
                let pods = self.kubectl(&["describe", "pods", "-n", namespace]).unwrap_or_default();
                let end: Vec<&str> = pods.lines().rev().take(60).collect();
                bail!("{error:#}\n{}", end.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
        Ok(())
    }

    /// Repeats `look` until it finds something.
    pub fn wait<T>(&self, what: &str, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        self.wait_up_to(PATIENCE, look).with_context(|| what.to_owned())
    }

    /// As [`World::wait`], for so long.
    pub fn wait_up_to<T>(&self, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            let last = match look() {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => String::new(),
                Err(error) => format!("; the last try said: {error:#}"),
            };
            ensure!(Instant::now() < deadline, "not within {limit:?}{last}");
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Runs a command in a pod's first container.
    pub fn exec(&self, pod: &Pod, command: &[impl AsRef<str>]) -> Result<Output> {
        let mut arguments = vec!["exec", "-n", &pod.namespace, &pod.name, "--"];
        arguments.extend(command.iter().map(AsRef::as_ref));
        Ok(self.cluster.kubectl(&arguments)?.stdin(Stdio::null()).output()?)
    }

    /// Runs a command in a pod; `shows` must be in what it prints. Writes down which flows that must have made.
    pub fn attempt(
        &mut self,
        pod: &Pod,
        command: &[impl AsRef<str>],
        shows: &str,
        flows: &[Expected],
    ) -> Result<String> {
        let what = format!("{}/{}: {}", pod.namespace, pod.name, words(command));
        let from = SystemTime::now();
        let output = self.exec(pod, command)?;
        self.driven.add(&what, from, flows);
        let text = text_of(&output);
        ensure!(
            text.contains(shows),
            "{what}: expected {shows:?} in its output ({}):\n{text}",
            output.status
        );
        Ok(text)
    }

    /// Runs a command on a node or outside; `shows` must be in what it prints.
    pub fn attempt_on(
        &mut self,
        machine: &Machine,
        command: &[impl AsRef<str>],
        shows: &str,
        flows: &[Expected],
    ) -> Result<String> {
        let what = format!("{}: {}", machine.name, words(command));
        let from = SystemTime::now();
        let output = machine.output(command[0].as_ref(), command[1..].iter().map(AsRef::as_ref))?;
        self.driven.add(&what, from, flows);
        let text = text_of(&output);
        ensure!(
            text.contains(shows),
            "{what}: expected {shows:?} in its output ({}):\n{text}",
            output.status
        );
        Ok(text)
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> &Machine {
        self.cluster.nodes.iter().find(|node| node.name == name).expect("pods run on our nodes")
    }

    /// Reads what the agents have written since: from the files that the kubelets keep, since those of a pod that was
    /// deleted are gone with it.
    pub fn collect(&mut self) -> Result<()> {
        for node in &self.cluster.nodes {
            for file in agent_logs(node)? {
                let bytes = match fs::read(&file) {
                    // Its pod went away meanwhile, and the log with it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    bytes => bytes.with_context(|| format!("reading {}", file.display()))?,
                };
                let from = self.read.entry(file).or_default();
                // A line that is still being written is for the next time.
                let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                let text = std::str::from_utf8(bytes.get(*from..whole).unwrap_or_default())?;
                *from = whole;
                for line in text.lines() {
                    // The runtime's form: time, stream, F for a whole line, then the line.
                    let mut fields = line.splitn(4, ' ');
                    let (stream, whole, line) = (fields.nth(1), fields.next(), fields.next());
                    let (Some("stdout"), Some("F"), Some(line)) = (stream, whole, line) else { continue };
                    let record: Record = serde_json::from_str(line)
                        .with_context(|| format!("not a line of a flow log: {line}"))?;
                    if !record.is_attempt() {
                        continue;
                    }
                    let id = record.flow_id.clone();
                    self.lines.insert(id, Line { node: node.name.clone(), record });
                }
            }
        }
        Ok(())
    }

    /// Collects until nothing new comes of what was driven. Probes and scrapes go on all the time.
    pub fn settle(&mut self) -> Result<()> {
        let (mut last, mut quiet) = (0, 0);
        for _ in 0..100 {
            thread::sleep(Duration::from_millis(100));
            self.collect()?;
            let driven = self.fresh().filter(|line| is_driven(&line.record)).count();
            quiet = if driven == last { quiet + 1 } else { 0 };
            last = driven;
            if quiet >= 12 {
                break;
            }
        }
        Ok(())
    }

    /// All lines so far.
    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.values()
    }

    /// Waits until some line satisfies `holds`, and returns how many do.
    pub fn wait_for_line(&mut self, what: &str, holds: impl Fn(&Line) -> bool) -> Result<usize> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.collect()?;
            let count = self.lines().filter(|line| holds(line)).count();
            if count > 0 {
                return Ok(count);
            }
            if Instant::now() > deadline {
                let mut last: Vec<&Line> = self.lines().collect();
                last.sort_by(|one, other| other.record.time.cmp(&one.record.time));
                let like: Vec<String> = last
                    .iter()
                    .take(25)
                    .map(|line| format!("{} {}", line.node, line.record.line()))
                    .collect();
                bail!("no line of a flow log says: {what}. The last ones:\n{}", like.join("\n"));
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// A scrape of a node's agent.
    pub fn scrape(&self, node: &Machine) -> Result<Metrics> {
        Metrics::parse(&self.agent(node, "/metrics")?)
    }

    /// What a node's agent answers, whatever the status.
    pub fn agent(&self, node: &Machine, path: &str) -> Result<String> {
        node.run("curl", ["-s", "-m", "5", &format!("http://127.0.0.1:{AGENT_PORT}{path}")])
    }

    /// Waits until every node's agent says that nothing is missing.
    pub fn wait_for_agents(&self) -> Result<()> {
        for node in &self.cluster.nodes {
            self.wait(&format!("the agent on {} is ready", node.name), || {
                let url = format!("http://127.0.0.1:{AGENT_PORT}/readyz");
                let ready = node.output("curl", ["-sf", "-m", "5", &url])?;
                Ok(ready.status.success().then_some(()))
            })?;
        }
        Ok(())
    }

    /// Waits until every agent knows a policy that selects pods on its node, on the nodes named.
    pub fn wait_for_policy(&self, policy: &str, nodes: &[&str]) -> Result<()> {
        for node in nodes {
            self.wait(&format!("the agent on {node} knows {policy}"), || {
                let label = format!("networkpolicy=\"{policy}\"");
                Ok(self.agent(self.node(node), "/metrics")?.contains(&label).then_some(()))
            })?;
        }
        Ok(())
    }

    /// The DaemonSet's arguments as they are.
    pub fn agent_arguments(&self) -> Result<Vec<String>> {
        let mut object = self.get(&["daemonset", "-n", NAMESPACE, "netaudit-agent"])?;
        Ok(serde_json::from_value(object["spec"]["template"]["spec"]["containers"][0]["args"].take())?)
    }

    /// Changes the DaemonSet's arguments and waits for the rollout.
    pub fn set_agent_arguments(&self, arguments: &[String]) -> Result<()> {
        let patch = json!([{
            "op": "replace", "path": "/spec/template/spec/containers/0/args", "value": arguments,
        }]);
        self.kubectl(&[
            "-n",
            NAMESPACE,
            "patch",
            "daemonset",
            "netaudit-agent",
            "--type=json",
            "-p",
            &patch.to_string(),
        ])?;
        self.rollout()
    }

    /// Waits for the DaemonSet, and collects meanwhile: the logs of the pods that it replaces go with them.
    pub fn rollout_collecting(&mut self) -> Result<()> {
        let status = ["-n", NAMESPACE, "rollout", "status", "daemonset/netaudit-agent", "--timeout=120s"];
        let mut kubectl = self.cluster.kubectl(status)?.stdout(Stdio::null()).spawn()?;
        let ended = loop {
            self.collect()?;
            if let Some(ended) = kubectl.try_wait()? {
                break ended;
            }
            thread::sleep(Duration::from_millis(50));
        };
        ensure!(ended.success(), "the agents are not replaced: {ended}");
        self.wait_for_agents()?;
        self.collect()
    }

    /// Waits for the DaemonSet as a person does, and then for its agents.
    pub fn rollout(&self) -> Result<()> {
        self.rolled_out()?;
        self.wait_for_agents()
    }

    /// Waits for the DaemonSet as a person does, whatever its pods do.
    pub fn rolled_out(&self) -> Result<()> {
        let waited = self.kubectl(&[
            "-n",
            NAMESPACE,
            "rollout",
            "status",
            "daemonset/netaudit-agent",
            "--timeout=120s",
        ]);
        if let Err(error) = waited {
            let said = self.kubectl(&[
                "-n",
                NAMESPACE,
                "logs",
                "-l",
                "app.kubernetes.io/name=netaudit",
                "--tail=20",
            ]);
            let events = self.kubectl(&["-n", NAMESPACE, "get", "events", "-o", "wide"]);
            bail!("{error:#}\n{}\n{}", said.unwrap_or_default(), events.unwrap_or_default());
        }
        Ok(())
    }

    /// Starts the enforcer on every node, and waits until it blocks what the policies forbid and lets through what they allow.
    pub fn start_enforcer(&mut self, apps: &super::batchivo::Apps) -> Result<()> {
        for node in &self.cluster.nodes {
            crate::cluster::start_kube_router(node)?;
        }
        let command = super::batchivo::connect(&apps.postgres.ip, 5432);
        for pod in [&apps.stranger, &apps.frontend, &apps.traefik] {
            self.wait("the enforcer blocks", || {
                Ok((!self.exec(pod, &command)?.status.success()).then_some(()))
            })?;
        }
        // It writes one policy after another, so that a name may not be resolved yet where a connection is blocked already.
        for service in ["postgres:5432", "redis:6379", "minio:9000"] {
            let command = ["curl", "-sv", "-m", "5", &format!("http://{service}")];
            self.wait("the enforcer lets through", || {
                let output = self.exec(&apps.backend, &command)?;
                Ok(text_of(&output).contains("Connected to ").then_some(()))
            })?;
        }
        self.forget()
    }

    /// Names of the pods that the scenario drives: everything outside of the cluster's own namespaces.
    pub fn scenario_namespaces() -> BTreeSet<&'static str> {
        ["batchivo", "traefik", "shop", "forgotten"].into()
    }
}

fn words(command: &[impl AsRef<str>]) -> String {
    command.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ")
}

/// What a command printed, on both streams.
pub fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn pod_of(object: &Value) -> Pod {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Pod {
        namespace: text(&object["metadata"]["namespace"]),
        name: text(&object["metadata"]["name"]),
        ip: text(&object["status"]["podIP"]),
        node: text(&object["spec"]["nodeName"]),
    }
}

/// `…/netaudit_<pod>_<uid>/agent/<restart>.log`
fn agent_logs(node: &Machine) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let pods = node.var("log/pods");
    for pod in fs::read_dir(&pods).with_context(|| format!("reading {}", pods.display()))? {
        let pod = pod?;
        if !pod.file_name().to_string_lossy().starts_with(&format!("{NAMESPACE}_")) {
            continue;
        }
        let Ok(entries) = fs::read_dir(pod.path().join("agent")) else { continue };
        files.extend(
            entries
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|end| end == "log")),
        );
    }
    Ok(files)
}
