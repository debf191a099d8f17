//! The history that a real agent keeps: weeks later each flow is told by the policies of then.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use netaudit::store::history::{Verb, read::Change};
use serde_json::{Value, json};

use super::{
    api_server::deny,
    control_plane::{ControlPlane, api_server_or_skip},
    harness::{NETAUDIT, PATIENCE, World, eventually, kernel_or_skip, to},
};
use crate::lab::{Launch, Process};

const SECOND: Duration = Duration::from_secs(1);

/// A world whose agent keeps a store.
struct Kept {
    world: World,
    store: String,
}

impl Kept {
    fn new(purpose: &str) -> Result<Self> {
        let world = World::new(purpose)?;
        let store = world.lab.directory().join("flows").display().to_string();
        Ok(Self { world, store })
    }

    fn agent(&self, mut arguments: Vec<String>) -> Result<Process> {
        arguments.extend(["--flow-store".to_owned(), self.store.clone()]);
        self.world.agent_by(&Launch::new(NETAUDIT, arguments))
    }

    fn ask(&self, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
        let arguments = arguments.iter().copied().chain(["--flow-store", &self.store]);
        let output = Launch::new(NETAUDIT, arguments).run(&self.world.agent_place()?, PATIENCE)?;
        let text = |bytes| String::from_utf8(bytes).context("no text");
        Ok((output.status.code(), text(output.stdout)?, text(output.stderr)?))
    }

    fn changes(&self) -> Result<Vec<Change>> {
        crate::history::all(self.store.as_ref())
    }

    /// Verbs of the policy in the history, in order.
    fn of_policy(&self) -> Result<Vec<Verb>> {
        let changes = self.changes()?;
        let of_policy = changes.iter().filter(|it| it.kind == "NetworkPolicy" && it.name == "deny");
        Ok(of_policy.map(|it| it.verb).collect())
    }

    /// The server's flows on 8080 that it accepted, once there are so many.
    fn accepted(&self, count: usize) -> Result<Vec<Value>> {
        let is_there = |flows: &[Value]| to(flows, "ingress", 8080).len() >= count;
        let flows = self.world.wait_for_flows("accepted flows", is_there)?;
        Ok(to(&flows, "ingress", 8080).into_iter().cloned().collect())
    }

    /// What is said of a flow by the objects of then.
    fn then(&self, flow: &Value) -> Result<Value> {
        let id = flow["flow_id"].as_str().context("an id")?;
        let mut said = String::new();
        // It is in the store within a second.
        eventually("the flow in the store", || {
            let (status, text, errors) = self.ask(&["why", id, "--output", "json"])?;
            said = text;
            Ok(status == Some(0) || !errors.contains("no flow"))
        })?;
        let answer: Value = serde_json::from_str(&said)?;
        Ok(answer["then"].clone())
    }

    /// A flow before a policy, one while it was there, and one after it.
    fn tells_each_by_its_time(
        &self,
        apply: impl Fn() -> Result<()>,
        delete: impl Fn() -> Result<()>,
    ) -> Result<()> {
        self.world.connect(1)?;
        self.accepted(1)?;
        apply()?;
        eventually("the policy in the history", || Ok(self.of_policy()? == [Verb::Applied]))?;
        self.world.connect(1)?;
        self.accepted(2)?;
        delete()?;
        eventually("its end in the history", || Ok(self.of_policy()? == [Verb::Applied, Verb::Deleted]))?;
        self.world.connect(1)?;
        let flows = self.accepted(3)?;
        for (flow, verdict) in flows.iter().zip(["allowed", "denied", "allowed"]) {
            assert_eq!(flow["verdict"], verdict);
            let then = self.then(flow)?;
            assert_eq!(
                (&then["verdict"], &then["same_as_recorded"]),
                (&json!(verdict), &json!(true)),
                "{then:#}"
            );
            let policies = then["policies_of_then"].as_array().context("policies")?;
            assert_eq!(policies.len(), usize::from(verdict == "denied"), "{then:#}");
        }
        Ok(())
    }
}

#[test]
fn an_agents_history_tells_flows_and_addresses_by_what_was_then() -> Result<()> {
    if !kernel_or_skip("history") {
        return Ok(());
    }
    let it = Kept::new("history")?;
    let _server = it.world.serve()?;
    let mut agent = it.agent(it.world.arguments())?;
    let policy = it.world.lab.manifests().join("policy.yaml");
    it.tells_each_by_its_time(|| it.world.deny_all(), || Ok(fs::remove_file(&policy)?))?;

    // Both the agent and the objects tell whose the server's address is.
    let (address, server) = (it.world.server.v4.to_string(), format!("shop/{}", it.world.server_name()));
    let now = || jiff::Timestamp::now().to_string();
    eventually("a binding in the history", || {
        let (_, said, _) = it.ask(&["who", &address, "--at", &now(), "--output", "json"])?;
        Ok(said.contains("authored"))
    })?;
    let (status, said, errors) = it.ask(&["who", &address, "--at", &now(), "--output", "json"])?;
    let who: Value = serde_json::from_str(&said)?;
    assert_eq!((status, &who["owners"]), (Some(0), &json!([format!("Pod {server}")])), "{said}{errors}");
    let how: Vec<&Value> =
        who["evidence"].as_array().context("a list")?.iter().map(|it| &it["how"]).collect();
    assert_eq!(how, ["authored", "API view"], "{said}");
    let (status, said, errors) = it.ask(&["timeline", &server])?;
    assert_eq!(status, Some(0), "{errors}");
    for expected in [
        "selected by none",
        "NetworkPolicy/shop/deny applied, selects it",
        "NetworkPolicy/shop/deny deleted, selects it no more",
        "denied (NetworkPolicy/shop/deny)",
        "authored: ",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }

    // A kill, and a restart: what was told is whole, and what has not changed is told once more as present.
    let before = it.changes()?;
    // Dropping kills.
    drop(agent);
    agent = it.agent(it.world.arguments())?;
    it.world.connect(1)?;
    it.accepted(4)?;
    eventually("the next run's list", || {
        let changes = it.changes()?;
        let runs: std::collections::BTreeSet<&str> = changes.iter().map(|it| it.run.as_str()).collect();
        Ok(runs.len() == 2 && changes.len() > before.len())
    })?;
    std::thread::sleep(2 * SECOND);
    let changes = it.changes()?;
    assert_eq!(changes[..before.len()], before, "nothing of the killed run is missing or doubled");
    let objects =
        changes[before.len()..].iter().filter(|it| !["Binding", "Node"].contains(&it.kind.as_str()));
    let unexpected: Vec<&Change> =
        objects.filter(|it| !matches!(it.verb, Verb::Present | Verb::Listed)).collect();
    assert_eq!(unexpected, Vec::<&Change>::new());
    agent.terminate(2 * SECOND)
}

#[test]
fn an_api_servers_objects_are_kept_as_they_change() -> Result<()> {
    let Some(programs) = api_server_or_skip("history of an API server") else { return Ok(()) };
    let it = Kept::new("history-api")?;
    let plane = ControlPlane::new(&it.world, programs)?;
    plane.apply_manifests()?;
    let _server = it.world.serve()?;
    let mut agent = it.agent(it.world.arguments_with_api(&plane.kubeconfig()))?;
    it.tells_each_by_its_time(
        || plane.apply(deny()),
        || plane.delete("networking.k8s.io/v1", "NetworkPolicy", "shop", "deny"),
    )?;
    let changes = it.changes()?;
    let policy = changes.iter().find(|it| it.name == "deny" && it.content.is_some()).context("the policy")?;
    assert!(!policy.resource_version.is_empty() && !policy.uid.is_empty(), "{policy:?}");
    let content = policy.content.as_deref().unwrap_or_default();
    assert!(content.contains(r#""kind":"NetworkPolicy""#) && !content.contains("managedFields"), "{content}");
    agent.terminate(2 * SECOND)
}
