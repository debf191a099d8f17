//! Flows that an agent tells to those whom the cluster lets: with a real API server, which knows the tokens and the rights.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    control_plane::{ControlPlane, agent_with, api_server_or_skip, deny_egress, roles},
    harness::{PATIENCE, World, eventually, get, kernel_or_skip},
};
use crate::lab::Launch;

const QUERY: &str = "127.0.0.1:9465";

/// Status and body of what an agent answers to a token.
fn ask(world: &World, query: &str, authorization: Option<&str>) -> Result<(u16, String)> {
    let header = authorization.map(|it| format!("Authorization: {it}\r\n")).unwrap_or_default();
    world.lab.node().enter(|| get(QUERY, &format!("/flows{query}"), &header))?
}

/// The flows of an answer, after which it says whether any is missing.
fn flows(body: &str) -> Result<Vec<Value>> {
    let mut lines: Vec<Value> = body.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let last = lines.pop().context("an answer has an end")?;
    ensure!(last["coverage"].is_object() && last["unreadable"] == json!([]), "{last}");
    Ok(lines)
}

fn binding(kind: &str, namespace: Option<&str>, user: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
        "metadata": {"name": format!("flows-of-{user}"), "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "netaudit-flow-reader"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}],
    })
}

#[test]
fn flows_are_told_to_whom_the_cluster_lets_and_to_nobody_else() -> Result<()> {
    let Some(programs) = api_server_or_skip("who may ask an agent") else { return Ok(()) };
    let world = World::new("query")?;
    let mut plane = ControlPlane::new(&world, programs)?;
    plane.apply_manifests()?;
    plane.apply(deny_egress())?;
    for file in ["base/rbac.yaml", "components/query/rbac.yaml"] {
        roles(&plane, file)?;
    }
    plane.apply(binding("RoleBinding", Some("shop"), "reader"))?;
    plane.apply(binding("RoleBinding", Some("default"), "other"))?;
    plane.apply(binding("ClusterRoleBinding", None, "auditor"))?;
    let store = world.lab.directory().join("flows").display().to_string();
    let _server = world.serve()?;
    let _agent =
        world.agent_by(&agent_with(&world, &plane, &["--flow-store", &store, "--query-listen", QUERY])?)?;
    world.connect(3)?;
    let allowed = |query: &str, user: &str| -> Result<Vec<Value>> {
        let (status, body) = ask(&world, query, Some(&format!("Bearer {user}")))?;
        ensure!(status == 200, "{user} {query}: {status} {body}");
        flows(&body)
    };
    eventually("the flows are in the store", || Ok(allowed("", "auditor")?.len() >= 6))?;
    let all = allowed("", "auditor")?;
    assert!(all.iter().all(|flow| flow["time"].is_string()));
    // His namespace, as the right says; in the words of netaudit flows.
    let of_shop = allowed("?namespace=shop", "reader")?;
    assert!(of_shop.len() >= 6 && of_shop.iter().all(|flow| flow["subject"]["namespace"] == "shop"));
    assert_eq!(allowed("?namespace=shop&direction=egress&limit=2&since=1h", "reader")?.len(), 2);
    assert_eq!(allowed("?namespace=shop&port=1", "reader")?.len(), 0);
    assert_eq!(allowed("?namespace=shop&namespace=default", "auditor")?.len(), of_shop.len());

    let refused = |query: &str, authorization: Option<&str>, expected: u16, says: &str| -> Result<()> {
        let (status, body) = ask(&world, query, authorization)?;
        ensure!(status == expected && body.contains(says) && !body.contains("flow_id"), "{status} {body}");
        Ok(())
    };
    refused("", None, 401, "Authorization: Bearer TOKEN")?;
    refused("", Some("Basic cmVhZGVyOg=="), 401, "Authorization: Bearer TOKEN")?;
    refused("", Some("Bearer "), 401, "Authorization: Bearer TOKEN")?;
    refused("", Some("Bearer forged"), 401, "does not accept this token")?;
    refused("", Some("Bearer reader"), 403, "reader may not get pods/flows in all namespaces")?;
    refused("?namespace=shop&namespace=default", Some("Bearer reader"), 403, "in the namespace default")?;
    refused(
        "?namespace=shop",
        Some("Bearer other"),
        403,
        "other may not get pods/flows in the namespace shop",
    )?;
    refused("?namespace=shop", Some("Bearer nobody"), 403, "in the namespace shop")?;
    refused("?namespace=", Some("Bearer reader"), 400, "namespace")?;
    refused("?since=yesterday", Some("Bearer auditor"), 400, "since: \"yesterday\" is no time")?;
    refused("?name=shop", Some("Bearer auditor"), 400, "\"name\" is nothing to ask for")?;

    // Who loses the right has lost it at once.
    plane.delete("rbac.authorization.k8s.io/v1", "RoleBinding", "shop", "flows-of-reader")?;
    eventually("the right is gone", || Ok(ask(&world, "?namespace=shop", Some("Bearer reader"))?.0 == 403))?;
    // While nobody can say who asks, nobody is told anything; all else goes on.
    plane.stop()?;
    refused("", Some("Bearer auditor"), 503, "cannot be known now")?;
    assert_eq!(world.get("/readyz")?.0, 200);
    plane.start()?;
    eventually("it is known again", || Ok(ask(&world, "", Some("Bearer auditor"))?.0 == 200))
}

#[test]
fn without_its_rights_nobody_is_told_anything() -> Result<()> {
    let Some(programs) = api_server_or_skip("an agent that may not ask who asks") else { return Ok(()) };
    let world = World::new("query-refused")?;
    let plane = ControlPlane::new(&world, programs)?;
    plane.apply_manifests()?;
    roles(&plane, "base/rbac.yaml")?;
    let store = world.lab.directory().join("flows").display().to_string();
    let _agent =
        world.agent_by(&agent_with(&world, &plane, &["--flow-store", &store, "--query-listen", QUERY])?)?;
    let (status, body) = ask(&world, "", Some("Bearer secret"))?;
    assert!(status == 503 && body.contains("forbidden"), "{status} {body}");
    Ok(())
}

#[test]
fn what_cannot_be_guarded_is_not_served() -> Result<()> {
    if !kernel_or_skip("an agent that answers to nobody") {
        return Ok(());
    }
    let world = World::new("query-unguarded")?;
    let store = world.lab.directory().join("flows").display().to_string();
    for (more, says) in [
        // No API server knows who asks.
        (vec!["--flow-store", &store, "--query-listen", QUERY], "needs the API server"),
        (vec!["--query-listen", QUERY], "--flow-store"),
    ] {
        let mut arguments = world.arguments();
        arguments.extend(more.iter().map(|it| (*it).to_owned()));
        let output = Launch::new(super::harness::NETAUDIT, arguments).run(&world.agent_place()?, PATIENCE)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && errors.contains(says), "{errors}");
    }
    Ok(())
}
