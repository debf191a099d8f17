//! What the agent may do: what it asks of the API server, and what it says when it may not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    apps::{self, list},
    kinds,
    world::{NAMESPACE, World, text_of},
};

/// Agents that start together.
const AT_A_TIME: usize = 10;

/// A right of the agent's role: to do this with that.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Right {
    verb: String,
    group: String,
    resource: String,
}

/// The rights that the installed ClusterRole gives, each verb of each resource.
fn granted(world: &World) -> Result<BTreeSet<Right>> {
    let role = world.get(&["clusterrole", &format!("{NAMESPACE}-agent")])?;
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().context("a role has rules")? {
        // Rules of other forms would be rights that nothing here takes away.
        let keys: Vec<&str> = rule.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
        ensure!(keys == ["apiGroups", "resources", "verbs"], "a rule of another form: {rule}");
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                rights.extend(texts(&rule["verbs"]).into_iter().map(|verb| Right {
                    verb,
                    group: group.clone(),
                    resource: resource.clone(),
                }));
            }
        }
    }
    ensure!(!rights.is_empty(), "the role gives nothing");
    Ok(rights)
}

/// Chooses the component with the agent's own seccomp profile, as a person does: the profile on each node's disk, and a
/// kustomization of one's own.
pub fn seccomp(world: &World, root: &Path) -> Result<()> {
    let component = "deploy/components/seccomp";
    let file = "netaudit-agent.json";
    let profile =
        fs::read_to_string(root.join(component).join(file)).context("reading the seccomp profile")?;
    for node in &world.cluster.nodes {
        let directory = "/var/lib/kubelet/seccomp";
        let script = format!("mkdir -p {directory} && cat > {directory}/{file} <<'END'\n{profile}END\n");
        node.run("sh", ["-c", &script])?;
    }
    // Components are named by relative paths only.
    let own = root.join("target/e2e-kustomization");
    fs::create_dir_all(&own).with_context(|| format!("making {}", own.display()))?;
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../deploy]\n\
         components: [../../{component}]\n"
    );
    fs::write(own.join("kustomization.yaml"), text)?;
    world.kubectl(&["apply", "-k", &own.to_string_lossy()])?;
    world.rollout()
}

/// `netaudit doctor` beside each agent, with its rights: everything is seen there.
pub fn doctor(world: &World) -> Result<()> {
    let label = "app.kubernetes.io/component=agent";
    let agents = world.get(&["pods", "-n", NAMESPACE, "-l", label])?;
    let agents = agents["items"].as_array().context("a list of pods")?;
    ensure!(!agents.is_empty(), "no agents");
    for agent in agents {
        let name = agent["metadata"]["name"].as_str().context("a pod has a name")?;
        let pod = world.pod_named(NAMESPACE, name)?;
        let output = world.exec(&pod, &["/netaudit", "doctor", "--output", "json"])?;
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("doctor: {}", text_of(&output)))?;
        let trials = report["trials"].as_array().context("what was tried")?;
        // The pod may rightly neither make raw sockets nor serve at a port of the node's; that it sees those of others is not
        // tried by it.
        let may_not =
            |it: &Value| ["raw-socket", "packet-socket", "dns"].iter().any(|name| it["trial"] == *name);
        let fine =
            |it: &Value| it["result"] == "works" || may_not(it) && it["result"]["not-made"].is_string();
        let unseen: Vec<&Value> = trials.iter().filter(|it| !fine(it)).collect();
        ensure!(unseen.is_empty() && output.status.success(), "doctor on {name}: {report:#}");
    }
    Ok(())
}

/// What the agent calls objects of this resource: as the API server does, where that is no other's name too.
fn kind_of(world: &World, right: &Right) -> Result<String> {
    let raw =
        |path: &str| -> Result<Value> { Ok(serde_json::from_str(&world.kubectl(&["get", "--raw", path])?)?) };
    let paths: Vec<String> = if right.group.is_empty() {
        vec!["/api/v1".to_owned()]
    } else {
        let group = raw(&format!("/apis/{}", right.group))?;
        let versions = group["versions"].as_array().into_iter().flatten();
        versions
            .filter_map(|version| version["groupVersion"].as_str())
            .map(|it| format!("/apis/{it}"))
            .collect()
    };
    for path in &paths {
        let list = raw(path)?;
        let mut resources = list["resources"].as_array().into_iter().flatten();
        let found = resources.find(|resource| resource["name"] == right.resource.as_str());
        if let Some(kind) = found.and_then(|resource| resource["kind"].as_str()) {
            return Ok(kinds::agent_name(&right.group, kind));
        }
    }
    anyhow::bail!("no {} at {}", right.resource, paths.join(", "))
}

/// The audit log of the API server: the agents asked for what their role gives, each of it, and for nothing else.
pub fn audit_log(world: &World) -> Result<()> {
    let path = world.cluster.nodes[0].var("log/audit.log");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut asked = BTreeSet::new();
    for line in text.lines() {
        let event: Value =
            serde_json::from_str(line).with_context(|| format!("not an audit event: {line}"))?;
        if event["user"]["username"] != format!("system:serviceaccount:{NAMESPACE}:netaudit-agent") {
            continue;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &event["objectRef"];
        let mut resource = text(&object["resource"]);
        if !object.is_object() {
            resource = text(&event["requestURI"]);
        } else if object["subresource"].is_string() {
            resource = format!("{resource}/{}", text(&object["subresource"]));
        }
        asked.insert(Right { verb: text(&event["verb"]), group: text(&object["apiGroup"]), resource });
        let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
        ensure!(code != 403, "the agent was refused {} {}", event["verb"], event["requestURI"]);
    }
    let granted = granted(world)?;
    ensure!(
        asked == granted,
        "asked, but not granted: {:?}; granted, but never asked: {:?}",
        asked.difference(&granted).collect::<Vec<_>>(),
        granted.difference(&asked).collect::<Vec<_>>()
    );
    Ok(())
}

/// Takes each right away in turn: the agent says which kind it cannot see, and names no other.
///
/// One agent per missing right, as processes of the first node with a token of their own; and one that has them all, which
/// says that nothing is missing: so it is the right that the others miss. Some at a time, as each loads its programs.
pub fn each_is_needed(world: &World, program: &Path) -> Result<()> {
    let rights = granted(world)?;
    let kinds: BTreeMap<(&str, &str), String> =
        rights.iter().map(|right| Ok((resource_of(right), kind_of(world, right)?))).collect::<Result<_>>()?;
    let cases: Vec<Option<&Right>> = std::iter::once(None).chain(rights.iter().map(Some)).collect();
    let mut objects = vec![apps::namespace("rights")];
    for missing in &cases {
        let left = rights.iter().filter(|right| Some(*right) != *missing);
        objects.extend(account(&name_of(*missing), left));
    }
    world.cluster.apply(&list(&objects))?;
    let mut failures = Vec::new();
    for cases in cases.chunks(AT_A_TIME) {
        start(world, program, cases)?;
        failures.extend(check(world, cases, &kinds)?);
    }
    world.kubectl(&["delete", "namespace", "rights", "--wait=false"])?;
    world.kubectl(&["delete", "clusterrole,clusterrolebinding", "-l", "app=rights"])?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// A resource with its group: two groups may have one of the same name.
fn resource_of(right: &Right) -> (&str, &str) {
    (&right.group, &right.resource)
}

/// Starts an agent for each case.
fn start(world: &World, program: &Path, cases: &[Option<&Right>]) -> Result<()> {
    let node = &world.cluster.nodes[0];
    for (number, missing) in cases.iter().enumerate() {
        let name = name_of(*missing);
        let token = world.kubectl(&["create", "token", "-n", "rights", &name])?;
        let kubeconfig = node.var(&format!("tmp/{name}.kubeconfig"));
        fs::write(&kubeconfig, world.cluster.kubeconfig_with_token(token.trim()).to_string())?;
        let program = program.to_string_lossy();
        node.daemon(
            &name,
            program.as_ref(),
            [
                "agent".to_owned(),
                format!("--kubeconfig=/var/tmp/{name}.kubeconfig"),
                format!("--listen=127.0.0.1:{}", 9500 + number),
                format!("--node={}", node.name),
                "--ring-bytes=262144".to_owned(),
            ],
            &[],
        )?;
    }
    Ok(())
}

/// Waits for each to say what it misses, and ends them. Returns what they said instead.
fn check(
    world: &World,
    cases: &[Option<&Right>],
    kinds: &BTreeMap<(&str, &str), String>,
) -> Result<Vec<String>> {
    let node = &world.cluster.nodes[0];
    let mut failures = Vec::new();
    for (number, missing) in cases.iter().enumerate() {
        let url = format!("http://127.0.0.1:{}/readyz", 9500 + number);
        let mut last = String::new();
        let said = world.wait_up_to(Duration::from_secs(30), || {
            last = node.output("curl", ["-s", "-m", "2", &url]).map(|output| text_of(&output))?;
            let named: Vec<&str> =
                kinds.values().map(String::as_str).filter(|kind| says(&last, kind)).collect();
            let right_one = match missing {
                Some(right) => named == [kinds[&resource_of(right)].as_str()] && last.contains("forbidden"),
                None => named.is_empty() && last.starts_with("ready"),
            };
            Ok(right_one.then_some(()))
        });
        if said.is_err() {
            failures.push(format!("without {missing:?} the agent says: {last}"));
        }
    }
    for missing in cases {
        node.stop(&name_of(*missing))?;
    }
    Ok(failures)
}

/// Whether the answer of `/readyz` names this kind as a word.
fn says(text: &str, kind: &str) -> bool {
    text.split(|letter: char| !letter.is_alphanumeric()).any(|word| word == kind)
}

fn name_of(missing: Option<&Right>) -> String {
    match missing {
        None => "all".to_owned(),
        // Two groups may have a resource of one name.
        Some(Right { verb, group, resource }) => {
            let group = group.replace('.', "-");
            let group = if group.is_empty() { "core" } else { &group };
            format!("no-{verb}-{resource}-{group}")
        }
    }
}

/// An account with these rights.
fn account<'a>(name: &str, rights: impl Iterator<Item = &'a Right>) -> [Value; 3] {
    let rules: Vec<Value> = rights
        .map(|right| json!({ "apiGroups": [right.group], "resources": [right.resource], "verbs": [right.verb] }))
        .collect();
    let metadata = json!({ "name": name, "labels": { "app": "rights" } });
    [
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name, "namespace": "rights" } }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata, "rules": rules,
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": "rights" }],
        }),
    ]
}
