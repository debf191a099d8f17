//! The agent on a real API server: the same line with objects by watch, and what happens when the server goes away.

use std::{fs, process::Command, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    control_plane::{ControlPlane, KUBECONFIG, api_server_or_skip, text},
    harness::{NETAUDIT, World, eventually, kernel_or_skip, of},
};
use crate::lab::Launch;

/// Isolates the server's ingress.
pub(super) fn deny() -> Value {
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
    plane.delete("networking.k8s.io/v1", "NetworkPolicy", "shop", "deny")?;
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
