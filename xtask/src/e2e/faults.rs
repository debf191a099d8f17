//! What goes wrong or changes under traffic: the API server, the agent, a policy.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    batchivo::Apps,
    driven::is,
    services::Webs,
    world::{Line, NAMESPACE, Pod, World},
};
use crate::{
    account::ledger::nanoseconds,
    cluster::{self, Machine},
};

/// Traffic that goes on by itself in a pod, whether or not anybody can reach the API server.
struct Traffic {
    pod: Pod,
    to: Pod,
    port: u16,
    /// When it was started.
    from: u128,
    count: usize,
}

impl Traffic {
    /// `count` connections, one every `pause` seconds.
    fn start(world: &World, pod: &Pod, to: &Pod, port: u16, count: usize, pause: f64) -> Result<Self> {
        let from = nanoseconds(SystemTime::now());
        let one = format!("(exec 3<>/dev/tcp/{}/{port}) 2>/dev/null", to.ip);
        let script = format!(
            "rm -f /tmp/finished; nohup bash -c 'for i in $(seq {count}); do {one}; sleep {pause}; done; touch \
             /tmp/finished' >/dev/null 2>&1 &"
        );
        let started = world.exec(pod, &["bash", "-c", &script])?;
        ensure!(started.status.success(), "{}", super::world::text_of(&started));
        Ok(Self { pod: pod.clone(), to: to.clone(), port, from, count })
    }

    /// Waits for its end and returns its lines, of one direction, in the order of time.
    fn finish<'w>(&self, world: &'w mut World, direction: &str) -> Result<Vec<&'w Line>> {
        world.wait("the traffic ends", || {
            Ok(world.exec(&self.pod, &["test", "-e", "/tmp/finished"])?.status.success().then_some(()))
        })?;
        world.settle()?;
        let mut lines: Vec<&Line> = world
            .lines()
            .filter(|line| {
                let record = &line.record;
                let (source, destination) = match record.direction.as_str() {
                    "egress" => (&record.subject, &record.peer),
                    _ => (&record.peer, &record.subject),
                };
                record.direction == direction
                    && record.port == self.port
                    && is(source, &self.pod)
                    && is(destination, &self.to)
                    && record.nanoseconds().is_ok_and(|at| at >= self.from)
            })
            .collect();
        lines.sort_by(|one, other| one.record.time.cmp(&other.record.time));
        Ok(lines)
    }
}

/// The API server is gone for `outage`, and comes back: not a flow is lost or less known meanwhile, the agents say what
/// they miss, and hear of what changes afterwards.
pub fn api_server_gone(world: &mut World, apps: &Apps, webs: &Webs, outage: Duration) -> Result<()> {
    let count = outage.as_secs() as usize * 3;
    let near = Traffic::start(world, &apps.stranger, &webs.near, 8080, count, 0.25)?;
    let far = Traffic::start(world, &apps.netpol_test, &apps.redis, 6379, count, 0.25)?;
    thread::sleep(Duration::from_secs(1));
    let node = world.cluster.nodes[0].clone();
    // Asked to end, it would wait a minute for its watches.
    node.kill("kube-apiserver")?;
    thread::sleep(outage / 2);
    for node in &world.cluster.nodes.clone() {
        let ready = world.agent(node, "/readyz")?;
        ensure!(
            ready.contains("watch"),
            "the agent on {} does not say that it hears nothing: {ready}",
            node.name
        );
        ensure!(world.agent(node, "/healthz")?.contains("ok"), "the agent on {} is not alive", node.name);
    }
    thread::sleep(outage / 2);
    cluster::start_api_server(&node)?;
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": "batchivo", "name": "after-the-outage" },
        "spec": { "podSelector": { "matchLabels": { "app": "frontend" } }, "policyTypes": ["Ingress"], "ingress": [
            { "from": [{ "podSelector": { "matchLabels": { "app": "nobody" } } }] },
        ] },
    });
    world.wait("the API server takes objects again", || world.cluster.apply(&policy).map(Some))?;
    world.wait_for_policy("after-the-outage", &[&apps.frontend.node])?;
    world.kubectl(&["delete", "networkpolicy", "-n", "batchivo", "after-the-outage"])?;
    for (traffic, denied) in [(near, false), (far, true)] {
        for direction in ["egress", "ingress"] {
            let lines = traffic.finish(world, direction)?;
            ensure!(
                lines.len() == traffic.count,
                "{} of {} flows of {} are told ({direction})",
                lines.len(),
                traffic.count,
                traffic.pod.name
            );
            let expected = if denied { "denied" } else { "allowed" };
            let wrong: Vec<String> = lines
                .iter()
                .filter(|line| line.record.verdict != expected)
                .map(|line| line.record.line())
                .collect();
            ensure!(wrong.is_empty(), "not {expected}, while the API server was gone:\n{}", wrong.join("\n"));
        }
    }
    world.forget()
}

/// A policy comes and goes under traffic: verdicts change twice and no more, and nothing is unknown in between.
pub fn policy_changes(world: &mut World, apps: &Apps) -> Result<()> {
    let traffic = Traffic::start(world, &apps.stranger, &apps.redis, 6379, 80, 0.1)?;
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": "batchivo", "name": "stranger-to-redis" },
        "spec": { "podSelector": { "matchLabels": { "app": "redis" } }, "policyTypes": ["Ingress"], "ingress": [
            { "from": [{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "shop" } } }] },
        ] },
    });
    thread::sleep(Duration::from_secs(2));
    world.cluster.apply(&policy)?;
    thread::sleep(Duration::from_secs(2));
    world.kubectl(&["delete", "networkpolicy", "-n", "batchivo", "stranger-to-redis"])?;
    let lines = traffic.finish(world, "ingress")?;
    ensure!(lines.len() == traffic.count, "{} of {} flows are told", lines.len(), traffic.count);
    let mut verdicts: Vec<&str> = lines.iter().map(|line| line.record.verdict.as_str()).collect();
    verdicts.dedup();
    ensure!(verdicts == ["denied", "allowed", "denied"], "the verdicts went {verdicts:?}");
    world.forget()
}

/// Agents are replaced under traffic. The programs go on meanwhile, so nothing is missing and nothing told twice; what was known
/// of rules goes on too, as it is kept on the node.
pub fn agents_replaced(world: &mut World, apps: &Apps, webs: &Webs) -> Result<()> {
    const PAUSE: f64 = 0.1;
    let traffic = Traffic::start(world, &apps.stranger, &webs.far, 8080, 200, PAUSE)?;
    thread::sleep(Duration::from_secs(1));
    let mut known = Vec::new();
    for node in &world.cluster.nodes {
        known.push((node.clone(), rules(world, node)?));
    }
    world.kubectl(&["-n", NAMESPACE, "rollout", "restart", "daemonset/netaudit-agent"])?;
    world.rollout_collecting()?;
    let after = nanoseconds(SystemTime::now());
    for (node, before) in known {
        ensure!(!before.is_empty(), "no rules on {}", node.name);
        let now = rules(world, &node)?;
        for (rule, (since, matches)) in before {
            let found = now.get(&rule).copied();
            let goes_on = found.is_some_and(|(since_now, matches_now)| {
                // The wall clock is read anew by each run.
                (since_now - since).abs() < 1.0 && matches_now >= matches
            });
            ensure!(
                goes_on,
                "{}: {rule:?} was watched since {since} with {matches} matches, and is now: {found:?}",
                node.name
            );
        }
    }
    let lines = traffic.finish(world, "egress")?;
    let sockets: BTreeSet<&str> = lines.iter().map(|line| line.record.time.as_str()).collect();
    ensure!(sockets.len() == lines.len(), "a flow was told twice");
    let in_new_run = lines.iter().filter(|line| line.record.nanoseconds().is_ok_and(|at| at > after)).count();
    ensure!(in_new_run > 0, "the new agents tell nothing");
    ensure!(lines.len() == traffic.count, "{} of {} flows are told", lines.len(), traffic.count);
    ensure!(lines.iter().all(|line| line.record.verdict == "allowed"), "a flow is not judged right");
    world.forget()
}

/// Since when each rule is watched by a node's agent, and its matches, by its labels.
fn rules(world: &World, node: &Machine) -> Result<BTreeMap<BTreeMap<String, String>, (f64, f64)>> {
    let metrics = world.scrape(node)?;
    let mut rules = BTreeMap::new();
    for sample in metrics.named("netaudit_rule_observed_since_timestamp_seconds") {
        rules.insert(sample.labels.clone(), (sample.value, 0.0));
    }
    for sample in metrics.named("netaudit_rule_matches_total") {
        if let Some((_, matches)) = rules.get_mut(&sample.labels) {
            *matches = sample.value;
        }
    }
    Ok(rules)
}
