//! What the agent may do: what it asks of the API server, and what it says when it may not.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    apps::{self, list},
    world::{NAMESPACE, World},
};

/// What the ClusterRole of `deploy/` gives: group, resource, and the kind by which the agent calls it.
const RESOURCES: [(&str, &str, &str); 6] = [
    ("", "namespaces", "Namespace"),
    ("", "nodes", "Node"),
    ("", "pods", "Pod"),
    ("", "services", "Service"),
    ("discovery.k8s.io", "endpointslices", "EndpointSlice"),
    ("networking.k8s.io", "networkpolicies", "NetworkPolicy"),
];
const VERBS: [&str; 2] = ["list", "watch"];

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
        let what = if event["objectRef"].is_object() {
            text(&event["objectRef"]["resource"])
        } else {
            text(&event["requestURI"])
        };
        asked.insert((text(&event["verb"]), what));
        let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
        ensure!(code != 403, "the agent was refused {} {}", event["verb"], event["requestURI"]);
    }
    let granted: BTreeSet<(String, String)> = RESOURCES
        .iter()
        .flat_map(|(_, resource, _)| VERBS.map(|verb| (verb.to_owned(), (*resource).to_owned())))
        .collect();
    ensure!(
        asked == granted,
        "asked, but not granted: {:?}; granted, but never asked: {:?}",
        asked.difference(&granted).collect::<Vec<_>>(),
        granted.difference(&asked).collect::<Vec<_>>()
    );
    Ok(())
}

/// Takes each verb of each resource away in turn: the agent says which kind it cannot see, and names no other.
///
/// One agent per missing right, all at once, as processes of the first node with a token of their own.
pub fn each_is_needed(world: &World, program: &Path) -> Result<()> {
    let cases: Vec<(usize, &str)> =
        (0..RESOURCES.len()).flat_map(|index| VERBS.map(|verb| (index, verb))).collect();
    let mut objects = vec![apps::namespace("rights")];
    for (index, verb) in &cases {
        objects.extend(account(&name_of(*index, verb), *index, verb));
    }
    world.cluster.apply(&list(&objects))?;
    let node = world.cluster.nodes[0].clone();
    let mut failures = Vec::new();
    for (number, (index, verb)) in cases.iter().enumerate() {
        let name = name_of(*index, verb);
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
    for (number, (index, verb)) in cases.iter().enumerate() {
        let (_, _, kind) = RESOURCES[*index];
        let url = format!("http://127.0.0.1:{}/readyz", 9500 + number);
        let mut last = String::new();
        let said = world.wait_up_to(Duration::from_secs(30), || {
            last =
                node.output("curl", ["-s", "-m", "2", &url]).map(|output| super::world::text_of(&output))?;
            let of_kinds: Vec<&str> =
                RESOURCES.iter().map(|(.., kind)| *kind).filter(|kind| says(&last, kind)).collect();
            Ok((of_kinds == [kind] && last.contains("forbidden")).then_some(()))
        });
        if said.is_err() {
            failures.push(format!("without {verb} of {kind} the agent says: {last}"));
        }
    }
    for (index, verb) in &cases {
        node.stop(&name_of(*index, verb))?;
    }
    world.kubectl(&["delete", "namespace", "rights", "--wait=false"])?;
    world.kubectl(&["delete", "clusterrole,clusterrolebinding", "-l", "app=rights"])?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Whether the answer of `/readyz` names this kind as a word.
fn says(text: &str, kind: &str) -> bool {
    text.split(|letter: char| !letter.is_alphanumeric()).any(|word| word == kind)
}

fn name_of(index: usize, verb: &str) -> String {
    format!("no-{verb}-{}", RESOURCES[index].1)
}

/// An account that may do all but one thing.
fn account(name: &str, missing: usize, missing_verb: &str) -> [Value; 3] {
    let rules: Vec<Value> = RESOURCES
        .iter()
        .enumerate()
        .map(|(index, (group, resource, _))| {
            let verbs: Vec<&str> =
                VERBS.into_iter().filter(|verb| index != missing || *verb != missing_verb).collect();
            json!({ "apiGroups": [group], "resources": [resource], "verbs": verbs })
        })
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
